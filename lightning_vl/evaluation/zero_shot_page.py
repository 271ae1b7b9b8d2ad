"""What zero-shot classification came to, as a person reads it: tables, and sheets of examples (CLIP, Fig. 21)."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lightning_vl.evaluation.zero_shot import Absent, Result
from lightning_vl.report.table import markdown_row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# inches
CELL_WIDTH, CELL_HEIGHT, IMAGE, MARGIN, TOP, BOTTOM = 5.5, 1.98, 1.62, 0.3, 0.95, 0.4
BAR = 0.2
LARGEST = 512  # px of a picture in the sheet
TRUE, FALSE, OTHER = "#8fd3bd", "#f3b78a", "#e3e3e3"  # bars: the true class, another one that comes first, the others
GREEN, RED, GREY = "#00694d", "#b04a00", "#555555"


class Example(NamedTuple):
    """One image and what it was taken for.

    Attributes:
        pixels: uint8 (h, w, 3).
        truth: what it shows.
        rank: place of the true class, from 1; of several the best one's.
        probability: that it is given.
        bars: the first classes with their probabilities, and whether they are true, in descending order.
    """

    pixels: np.ndarray
    truth: list[str]
    rank: int
    probability: float
    bars: list[tuple[str, float, bool]]


def picture_name(task: str) -> str:
    """The file of a data set's sheet."""
    return f"zero_shot_{re.sub(r'[^A-Za-z0-9.-]+', '_', task)}.png"


# -- tables -----------------------------------------------------------------------------------------------------------------


def columns(results: Sequence[Result | Absent]) -> dict[str, list[str]]:
    """The table of results: cells by header, a row a data set, shares in percent."""
    rows = [_cells(result) for result in results]
    return {name: [row.get(name, "") for row in rows] for name in max(rows, key=len)}


def _cells(result: Result | Absent) -> dict[str, str]:
    if isinstance(result, Absent):
        return {"data set": result.task.name, "measured": "not here"}
    return {
        "data set": result.task.name,
        "images": f"{result.images:,}",
        "classes": str(result.classes),
        "templates": str(result.templates),
        "metric": result.task.measure.title,
        "measured": percent(result.value),
        "top-1": percent(result.top1),
        "top-5": percent(result.top5) if result.classes > 5 else "-",
        "chance": percent(1 / result.classes),
        "majority": percent(result.majority),
        "confidence": percent(result.confidence),
        "median rank": f"{result.median_rank:g}",
        "linear probe": percent(result.probe),
    }


def published(results: Sequence[Result | Absent]) -> dict[str, list[str]]:
    """What the published models reach beside ours: a row for the paper and one for others' measurements of each data set.

    Empty where no data set has any.
    """
    rows: list[dict[str, str]] = []
    models: list[str] = []
    for result in results:
        task = result.task
        models += [model for known in (task.paper, task.released) for model in known or {} if model not in models]
        measured = percent(result.value) if isinstance(result, Result) else "not here"
        for source, values in (("paper", task.paper), ("released weights", task.released)):
            if values:
                cells = {model: f"{value:.1f}" for model, value in values.items()}
                rows.append({"data set": task.name, "measured": measured, "source": source, **cells})
    names = ["data set", "measured", "source", *models] if rows else []
    return {name: [row.get(name, "-") for row in rows] for name in names}


def notes(results: Sequence[Result | Absent]) -> list[str]:
    """What else must be known of a data set."""
    found = []
    for result in results:
        name = result.task.name
        if isinstance(result, Absent):
            found.append(f"{name} is not here: {result.what} — {result.how}")
            continue
        if result.unreadable:
            found.append(f"{name}: {result.unreadable} unreadable images were left out")
        if result.tied:
            found.append(
                f"{name}: for {percent(result.tied)} % of the images another class has the logit of the true one, "
                "which then counts as the lower"
            )
    return found


def percent(share: float | None) -> str:
    """To one decimal; a dash for None."""
    return "-" if share is None else f"{100 * share:.1f}"


def write_results(results: Sequence[Result | Absent], folder: Path) -> None:
    """Writes `zero_shot.md`, and `zero_shot.csv` with numbers in full, to a run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "zero_shot.md").write_text(as_markdown(results), encoding="utf-8")
    rows = [_row(result) for result in results]
    fields = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "zero_shot.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _row(result: Result | Absent) -> dict[str, Any]:
    row: dict[str, Any] = {"dataset": result.task.name}
    if isinstance(result, Absent):
        row["not_here"] = f"{result.what} — {result.how}"
    else:
        row |= {
            "metric": result.task.measure.name,
            "value": result.value,
            **{name: value for name, value in vars(result).items() if name not in ("task", "example", "value")},
            "chance": 1 / result.classes,
        }
    row |= {f"paper {model} (%)": value for model, value in (result.task.paper or {}).items()}
    return row | {f"released {model} (%)": value for model, value in (result.task.released or {}).items()}


def as_markdown(results: Sequence[Result | Absent]) -> str:
    """The tables and notes."""
    lines = ["# Zero-shot classification", "", *_markdown(columns(results)), "", "Shares in percent."]
    lines += ["The median rank and the confidence (mean probability) are those of the true class."]
    if beside := published(results):
        lines += ["", "## Beside the published models", "", *_markdown(beside), ""]
        lines += [
            "By the metric of the data set. *paper*: as printed there; *released weights*: as others measured them."
        ]
    if remarks := notes(results):
        lines += ["", "## Notes", "", *[f"- {remark}" for remark in remarks]]
    pictures = [
        f"![{result.task.name}](figures/{picture_name(result.task.name)})"
        for result in results
        if isinstance(result, Result)
    ]
    return "\n".join([*lines, "", "## Examples", "", *"\n\n".join(pictures).split("\n"), ""])


def _markdown(table: dict[str, list[str]]) -> list[str]:
    head = [markdown_row(list(table)), "|---|" + "---:|" * (len(table) - 1)]
    return head + [markdown_row(row) for row in zip(*table.values(), strict=True)]


def print_results(results: Sequence[Result | Absent]) -> None:
    """The tables and notes on the terminal, in as many parts as its width needs."""
    from rich.console import Console

    console = Console()
    for title, table in (("zero-shot (%)", columns(results)), ("beside the published models (%)", published(results))):
        if table:
            _print(title, table, console)
    for remark in notes(results):
        console.print(remark, style="yellow", markup=False, highlight=False)


def _print(title: str, table: dict[str, list[str]], console: Any) -> None:
    from rich import box
    from rich.table import Table

    def made(part: dict[str, list[str]]) -> Table:
        drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for number, name in enumerate(part):
            drawn.add_column(
                name.replace(" ", "\n") if number else name, justify="right" if number else "left", no_wrap=True
            )
        for row in zip(*part.values(), strict=True):
            drawn.add_row(*row)
        return drawn

    first = dict(list(table.items())[:1])
    part = dict(first)
    for name, cells in list(table.items())[1:]:
        wider = {**part, name: cells}
        if console.measure(made(wider), options=console.options.update(width=10_000)).maximum > console.width:
            console.print(made(part))
            wider = {**first, name: cells}
        part = wider
    console.print(made(part))


# -- sheet of examples ------------------------------------------------------------------------------------------------------


def sheet(result: Result, examples: Sequence[Example]) -> "Figure":
    """Correct examples on the left, wrong ones on the right; each with its first classes as bars.

    Args:
        result: of the data set.
        examples: one or more.
    """
    from matplotlib.figure import Figure

    sides = [[example for example in examples if (example.rank == 1) == right] for right in (True, False)]
    heads = ["named correctly", "named wrongly"]
    if not all(sides):  # both columns for those that there are
        only = sides[0] or sides[1]
        sides, heads = [only[0::2], only[1::2]], [heads[0] if sides[0] else heads[1], ""]
    rows = max(map(len, sides))
    width, height = 2 * CELL_WIDTH + 3 * MARGIN, rows * CELL_HEIGHT + TOP + BOTTOM
    figure = Figure(figsize=(width, height), facecolor="white")
    measured = f"{result.task.measure.title} {percent(result.value)} %"
    title = f"{result.task.name}, zero-shot: {measured} of {result.images:,} images in {result.classes} classes"
    _write(
        figure, MARGIN / width, 1 - 0.3 / height, shortened(title, width - 2 * MARGIN, 14, bold=True), 14, weight="bold"
    )
    for column, (side, head) in enumerate(zip(sides, heads, strict=True)):
        left = MARGIN + column * (CELL_WIDTH + MARGIN)
        colour = GREEN if "correctly" in head else RED
        _write(figure, left / width, 1 - 0.7 / height, head, 11, colour=colour)
        for row, example in enumerate(side):
            bottom = height - TOP - (row + 1) * CELL_HEIGHT
            _draw(figure, example, result, (left, bottom), (width, height))
    more = f"{result.templates} templates, the first of them" if result.templates > 1 else "Template"
    caption = f'{more}: "{result.example}" · bold: the true class, with its place and probability'
    _write(figure, MARGIN / width, 0.22 / height, shortened(caption, width - 2 * MARGIN, 9), 9, colour=GREY)
    return figure


def _draw(
    figure: "Figure", example: Example, result: Result, corner: tuple[float, float], size: tuple[float, float]
) -> None:
    """One cell, whose lower left corner is given in inches."""

    def axes(left: float, bottom: float, width: float, height: float) -> "Axes":
        place = ((corner[0] + left) / size[0], (corner[1] + bottom) / size[1], width / size[0], height / size[1])
        drawn = figure.add_axes(place)
        drawn.set_axis_off()
        return drawn

    picture = axes(0, CELL_HEIGHT - IMAGE, IMAGE, IMAGE)
    pixels = middle(example.pixels)
    picture.imshow(pixels, interpolation="nearest" if len(pixels) < 100 else "antialiased")
    picture.set_axis_on()
    picture.set(xticks=[], yticks=[])
    picture.spines[:].set(color="#cccccc", linewidth=0.6)
    left = IMAGE + 0.18
    width = CELL_WIDTH - left
    said = axes(left, CELL_HEIGHT - 0.42, width, 0.42)
    said.set(xlim=(0, width), ylim=(0, 0.42))
    _write(said, 0, 0.33, shortened(", ".join(example.truth), width, 11, bold=True), 11, weight="bold")
    rank = f"rank {example.rank} of {result.classes}, {precise(example.probability)}"
    _write(said, 0, 0.12, rank, 9.5, colour=GREEN if example.rank == 1 else RED)
    rows = [(float(row), *bar) for row, bar in enumerate(example.bars)]
    if not any(true for _, _, true in example.bars):
        rows.append((len(rows) + 0.2, ", ".join(example.truth), example.probability, True))
    bars = axes(left, CELL_HEIGHT - 0.5 - 6.4 * BAR, width, 6.4 * BAR)
    bars.set(xlim=(0, width), ylim=(6.4, 0))
    for row, name, probability, true in rows:
        colour = TRUE if true else FALSE if row == 0 else OTHER
        bars.barh(row + 0.5, width, 0.82, color="#f6f6f6")
        bars.barh(row + 0.5, width * probability, 0.82, color=colour)
        text = shortened(name, width - 0.9, 8.5, bold=true) + (" ✓" if true else "")
        _write(bars, 0.06, row + 0.52, text, 8.5, weight="bold" if true else "normal")
        _write(bars, width - 0.06, row + 0.52, precise(probability), 8.5, colour=GREY, align="right")


def middle(pixels: np.ndarray) -> np.ndarray:
    """The square that the network sees, as large as it is drawn: uint8 (h, w, 3) -> uint8 (s, s, 3)."""
    from PIL import Image

    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[top : top + side, left : left + side]
    if side <= LARGEST:
        return square
    return np.asarray(Image.fromarray(square).resize((LARGEST, LARGEST), Image.Resampling.LANCZOS))


def precise(probability: float) -> str:
    """In percent; of small ones the order of magnitude."""
    return f"{100 * probability:.1f} %" if probability >= 0.0005 else "<0.1 %"


def shortened(text: str, width: float, size: float, bold: bool = False) -> str:
    """A text of so many points, cut with an ellipsis if it is wider than so many inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(weight="bold" if bold else "normal", size=size)

    def inches(part: str) -> float:
        return text_to_path.get_text_width_height_descent(part, font, ismath=False)[0] / 72

    text = " ".join(text.split())
    if inches(text) <= width:
        return text
    least, most = 0, len(text)  # characters that fit, and that do not
    while most - least > 1:
        half = (least + most) // 2
        least, most = (half, most) if inches(text[:half] + "…") <= width else (least, half)
    return text[:least].rstrip(" ,.") + "…"


def _write(
    where: Any,
    x: float,
    y: float,
    text: str,
    size: float,
    colour: str = "#111111",
    weight: str = "normal",
    align: str = "left",
) -> None:
    """Text as it is: a dollar sign is no formula."""
    where.text(x, y, text, fontsize=size, color=colour, weight=weight, ha=align, va="center", parse_math=False)
