"""ViViT's task: classification of video, views averaged, with label smoothing and mixup (Sec. 4.1, Table 7)."""

import math
from collections.abc import Mapping
from typing import Any

from einops import rearrange
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lightning_vl.data.stream import Batch
from lightning_vl.errors import UserError
from lightning_vl.evaluation.classification import ClassificationMetrics
from lightning_vl.evaluation.examples import Example
from lightning_vl.objectives import classification
from lightning_vl.optim import Schedule
from lightning_vl.papers.vivit.convert import Initialisation
from lightning_vl.papers.vivit.data import VideoData
from lightning_vl.papers.vivit.model import ViViT, ViViTOutput
from lightning_vl.task import Task


class VideoMetrics(ClassificationMetrics):
    """`ClassificationMetrics` of what a ViViT gives."""

    def update(self, outputs: ViViTOutput, batch: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Counts a batch."""
        super().update(outputs.logits, batch["labels"])


class ViViTTask(Task):
    """Cross-entropy on each head; with several heads (verb, noun) their mean.

    Args:
        net: one of the five models.
        optimizer: SGD with momentum 0.9 in the paper.
        schedule: linear warm-up over 2.5 epochs and a cosine in the paper.
        label_smoothing: share of the uniform distribution in the target.
        init_from: an image ViT or a ViViT to start from.
    """

    net: ViViT
    unit = "clips"

    def __init__(
        self,
        net: ViViT,
        optimizer: OptimizerCallable,
        schedule: Schedule,
        label_smoothing: float = 0.0,
        init_from: Initialisation | None = None,
    ) -> None:
        metrics = {
            "val": VideoMetrics(net.classes, baseline=False),
            "test": VideoMetrics(net.classes, baseline=True),
        }
        super().__init__(net, optimizer, schedule, init_from, metrics)
        self.label_smoothing = label_smoothing

    def setup(self, stage: str) -> None:
        """The network's heads must be the data's."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, VideoData):
            return
        classes = {head: len(names) for head, names in data.source.heads.items()}
        if classes != self.net.classes:
            raise UserError(
                f"the network has classes {self.net.classes}, the data {classes}",
                f"set --model.init_args.net.init_args.classes '{classes}'",
            )
        size, frames = self.net.embedding.image_size, self.net.embedding.frames
        if (data.evaluation.crop, data.sampling.frames) != (size, frames):
            raise UserError(
                f"the network takes {frames} frames of {size} px, the data gives {data.sampling.frames} of "
                f"{data.evaluation.crop} px",
                "give data.init_args.sampling, .training and .evaluation and the network's embedding the same sizes",
            )

    def forward(self, batch: Batch) -> ViViTOutput:
        """Clips (b, t, c, h, w), or views (b, v, t, c, h, w) whose logits, not probabilities, are averaged (Sec. 4.1)."""
        video: Tensor = batch["video"]
        if video.ndim == 5:
            return self.net(video)
        views = video.shape[1]
        output = self.net(video.flatten(0, 1))  # (b v, ...)
        logits = {head: values.unflatten(0, (-1, views)).mean(1) for head, values in output.logits.items()}
        return ViViTOutput(logits, output.features.unflatten(0, (-1, views)).mean(1))

    def losses(self, batch: Batch, outputs: ViViTOutput) -> dict[str, Tensor]:
        """`<head>` or, with one head only, `classification`: nats."""
        share = batch.get("mixup")
        smoothing = self.label_smoothing if self.training else 0.0
        heads = len(outputs.logits)
        losses: dict[str, Tensor] = {}
        for head, logits in outputs.logits.items():
            labels = batch["labels"][head]
            partners = None if share is None else labels.flip(0)
            weight = 1.0 if share is None else share
            loss = classification(logits, labels, smoothing, partners, weight) / heads
            losses["classification" if heads == 1 else head] = loss
        return losses

    def predictions(self, batch: Batch, outputs: ViViTOutput) -> list[dict[str, Any]]:
        """For each video its id and, by head, the five likeliest classes with probabilities."""
        rows: list[dict[str, Any]] = [{"id": name} for name in batch["id"]]
        for head, logits in outputs.logits.items():
            values, indices = logits.float().softmax(-1).topk(min(5, logits.shape[1]))
            names = self._class_names(head)
            for row, value, index in zip(rows, values.tolist(), indices.tolist(), strict=True):
                row[head] = [{"class": names[i], "probability": p} for i, p in zip(index, value, strict=True)]
        return rows

    def examples(self, batch: Batch, outputs: ViViTOutput) -> list[Example]:
        """The first view of each video with the first answer of every head."""
        video = batch["video"] if batch["video"].ndim == 5 else batch["video"][:, 0]
        pixels = ((video.float() + 1) * 127.5).round().clamp(0, 255).byte()
        frames = rearrange(pixels, "b t c h w -> b t h w c").cpu().numpy()
        answers = {head: logits.float().softmax(-1).max(-1) for head, logits in outputs.logits.items()}
        examples = []
        for i, name in enumerate(batch["id"]):
            truth = [self._class_names(head)[batch["labels"][head][i]] for head in answers]
            said = [self._class_names(head)[answer.indices[i]] for head, answer in answers.items()]
            probability = math.prod(float(answer.values[i]) for answer in answers.values())
            examples.append(Example(name, frames[i], ", ".join(truth), ", ".join(said), probability))
        return examples

    def _class_names(self, head: str) -> list[str]:
        data = getattr(self.trainer, "datamodule", None)
        return (
            data.source.heads[head] if isinstance(data, VideoData) else [str(i) for i in range(self.net.classes[head])]
        )
