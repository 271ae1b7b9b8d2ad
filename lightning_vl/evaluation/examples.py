"""A few test samples with what the network says of them: a sheet, GIFs, and a table at W&B."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

SHOWN_FRAMES = 8


class Example(NamedTuple):
    """One sample and a prediction.

    Attributes:
        id: the sample's name.
        sample: uint8 (t, h, w, 3), one frame for an image; or a text.
        truth: the right answer, as a person reads it.
        prediction: the network's first answer.
        probability: that it gives it.
    """

    id: str
    sample: np.ndarray | str
    truth: str
    prediction: str
    probability: float

    @property
    def correct(self) -> bool:
        """Whether the prediction is the truth."""
        return self.truth == self.prediction


class Examples(Callback):
    """Keeps the first correct and the first wrong predictions of a test and shows them.

    Writes `figures/examples.png` and one GIF each to the run's folder, or `figures/examples.txt`, and a table
    `test/examples` to W&B.

    Args:
        folder: the run folder.
        each: how many correct ones, and how many wrong ones.
    """

    def __init__(self, folder: Path, each: int = 4) -> None:
        self.folder = folder / "figures"
        self.each = each
        self.kept: dict[bool, list[Example]] = {True: [], False: []}

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keeps what is still wanted."""
        if outputs is None or all(len(kept) >= self.each for kept in self.kept.values()):
            return
        for example in pl_module.examples(batch, outputs):
            if len(self.kept[example.correct]) < self.each:
                self.kept[example.correct].append(example)

    @rank_zero_only
    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """Draws and logs."""
        examples = self.kept[True] + self.kept[False]
        if not examples:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        texts = [example for example in examples if isinstance(example.sample, str)]
        samples: list[Any] = [example.sample for example in texts]
        if texts:
            (self.folder / "examples.txt").write_text("\n".join(map(_paragraph, texts)), encoding="utf-8")
        else:
            sheet(examples).savefig(self.folder / "examples.png", dpi=120)
            samples = [_gif(example, self.folder) for example in examples]
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                import wandb

                shown = samples if texts else [wandb.Video(str(path), format="gif") for path in samples]
                rows = [
                    [e.id, sample, e.truth, e.prediction, e.probability, e.correct]
                    for e, sample in zip(examples, shown, strict=True)
                ]
                columns = ["id", "text" if texts else "clip", "truth", "prediction", "probability", "correct"]
                logger.log_table("test/examples", columns=columns, data=rows)
                if not texts:
                    logger.log_image("test/examples_sheet", [str(self.folder / "examples.png")])


def _paragraph(example: Example) -> str:
    verdict = "correct" if example.correct else f"is: {example.truth}"
    return f"{example.id}\n  {example.sample}\n  {example.prediction} ({example.probability:.0%}), {verdict}\n"


def _gif(example: Example, folder: Path) -> Path:
    assert isinstance(example.sample, np.ndarray)
    path = folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', example.id).strip('-')}.gif"
    scale = max(1, 128 // example.sample.shape[1])
    size = (example.sample.shape[2] * scale, example.sample.shape[1] * scale)
    images = [Image.fromarray(frame).resize(size, Image.Resampling.NEAREST) for frame in example.sample]
    images[0].save(path, save_all=True, append_images=images[1:], duration=120, loop=0)
    return path


def sheet(examples: Sequence[Example]) -> Any:
    """A row of frames for each example, its truth and prediction beside it.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.95 * len(examples) + 0.3), layout="constrained")
    axes = figure.subplots(len(examples), 2, width_ratios=[4, 1.5], squeeze=False)
    for (left, right), example in zip(axes, examples, strict=True):
        frames = example.sample
        assert isinstance(frames, np.ndarray)
        chosen = np.linspace(0, len(frames) - 1, min(SHOWN_FRAMES, len(frames))).round().astype(int)
        strip = np.concatenate([np.pad(frames[i], ((0, 0), (0, 1), (0, 0)), constant_values=255) for i in chosen], 1)
        left.imshow(strip, aspect="equal", interpolation="nearest")
        left.set_anchor("E")
        colour = "#1b7837" if example.correct else "#b2182b"
        mark = "correct" if example.correct else f"is {example.truth}"
        right.text(0, 0.62, f"{example.prediction}  ({example.probability:.0%})", fontsize=9, va="center", color=colour)
        right.text(0, 0.25, mark, fontsize=8, va="center", color="#555555")
        left.axis("off")
        right.axis("off")
    return figure
