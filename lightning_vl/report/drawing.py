"""``python -m lightning_vl figure``: what a network has learned, as pictures with the numbers drawn in them."""

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_vl.run import CONFIG

if TYPE_CHECKING:  # the command's help needs no matplotlib
    from matplotlib.figure import Figure

DPI = 160


class Drawing(NamedTuple):
    """A figure and what is drawn in it, as the rows of a table.

    Attributes:
        figure: to be saved.
        columns: the table's header.
        rows: numbers in full, not as rounded for the picture; layers, heads, rows, columns count from 1.
    """

    figure: "Figure"
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def write(self, stem: Path) -> list[Path]:
        """Writes `<stem>.png` and `<stem>.csv`; gives their paths."""
        stem.parent.mkdir(parents=True, exist_ok=True)
        picture, table = stem.with_suffix(".png"), stem.with_suffix(".csv")
        self.figure.savefig(picture, dpi=DPI)
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self.columns)
            writer.writerows(self.rows)
        return [picture, table]


def main(argv: Sequence[str]) -> int:
    """Run the verb; gives the exit code."""
    arguments = _parser().parse_args(argv)
    drawing = arguments.draw(arguments)
    run = run_folder(arguments.weights)
    folder = arguments.out or (run / "figures" if run else Path("figures"))
    for path in drawing.write(folder / arguments.figure):
        print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    from lightning_vl.papers.bert.figures import add_figures as add_figures_of_bert
    from lightning_vl.papers.vit.figures import add_figures as add_figures_of_vit

    parser = argparse.ArgumentParser(
        prog="python -m lightning_vl figure",
        description="Draw what a network has learned, from a run's checkpoint or weights of other libraries.",
        epilog="example: python -m lightning_vl figure attention_distance runs/vit_tiny/ID/checkpoints/best.ckpt",
        allow_abbrev=False,
    )
    figures = parser.add_subparsers(dest="figure", metavar="FIGURE", required=True)
    add_figures_of_vit(figures)
    add_figures_of_bert(figures)
    return parser


def add_figure(
    figures: Any, name: str, text: str, network: str, draw: Callable[[argparse.Namespace], Drawing]
) -> argparse.ArgumentParser:
    """A figure that can be asked for by name.

    Args:
        figures: argparse's subparsers.
        name: of the figure, and of the files that it is written to.
        text: what it shows.
        network: whose weights it takes: "a ViT".
        draw: makes it from what was asked for.
    """
    figure: argparse.ArgumentParser = figures.add_parser(
        name, help=f"{text} ({network})", description=f"Draws {text}.", allow_abbrev=False
    )
    figure.add_argument("weights", metavar="WEIGHTS", help=f"a checkpoint (.ckpt) or file of weights of {network}")
    figure.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where the PNG and the CSV go (default: figures in the run folder, or here)",
    )
    figure.set_defaults(draw=draw)
    return figure


def run_folder(weights: str) -> Path | None:
    """The run that a checkpoint is of."""
    folder = Path(weights).absolute().parent.parent
    return folder if (folder / CONFIG).is_file() else None


def blank(width: float, height: float) -> "Figure":
    """A figure of so many inches, which pyplot knows nothing of."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def add_caption(figure: "Figure", text: str) -> None:
    """What the reader has to know, small and below the figure."""
    from lightning_vl.report.figure import GREY

    figure.supxlabel(text, x=0.01, ha="left", fontsize=9, color=GREY)
