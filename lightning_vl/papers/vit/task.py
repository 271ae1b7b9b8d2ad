"""ViT's task: classification of images with softmax cross-entropy (Sec. 4.1)."""

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
from lightning_vl.papers.vit.convert import Initialisation
from lightning_vl.papers.vit.data import ImageData
from lightning_vl.papers.vit.model import ImageClassifier, ViTOutput
from lightning_vl.task import Task


class ImageMetrics(ClassificationMetrics):
    """`ClassificationMetrics` of what a ViT gives."""

    def update(self, outputs: ViTOutput, batch: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Counts a batch."""
        super().update({"class": outputs.logits}, {"class": batch["label"]})


class ViTTask(Task):
    """Cross-entropy of one label an image.

    Args:
        net: a ViT or a BiT.
        optimizer: Adam with large weight decay in the paper's pre-training (Table 3).
        schedule: linear warm-up, then linear or cosine decay in the paper.
        init_from: a file whose trunk training starts from; the head starts anew.
    """

    net: ImageClassifier
    unit = "images"

    def __init__(
        self,
        net: ImageClassifier,
        optimizer: OptimizerCallable,
        schedule: Schedule,
        init_from: Initialisation | None = None,
    ) -> None:
        classes = {"class": net.classes}
        metrics = {
            "val": ImageMetrics(classes, baseline=False),
            "test": ImageMetrics(classes, baseline=True),
        }
        super().__init__(net, optimizer, schedule, init_from, metrics)

    def setup(self, stage: str) -> None:
        """The network's head and image size must be the data's."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ImageData):
            return
        names = data.source.class_names
        if len(names) != self.net.classes:
            raise UserError(
                f"the network has {self.net.classes} classes, the data {len(names)}",
                f"set --model.init_args.net.init_args.classes {len(names)}",
            )
        if data.image_size != self.net.image_size:
            raise UserError(
                f"the network takes images of {self.net.image_size} px, the data gives {data.image_size} px",
                "give data.init_args.image_size and the network's image_size the same value",
            )

    def forward(self, batch: Batch) -> ViTOutput:
        """Images (b, c, h, w)."""
        return self.net(batch["image"])

    def losses(self, batch: Batch, outputs: ViTOutput) -> dict[str, Tensor]:
        """`classification`, nats."""
        return {
            "classification": classification(outputs.logits, batch["target"] if "target" in batch else batch["label"])
        }

    def predictions(self, batch: Batch, outputs: ViTOutput) -> list[dict[str, Any]]:
        """For each image its id and the five likeliest classes with probabilities."""
        probabilities = outputs.logits.float().softmax(-1)
        values, indices = probabilities.topk(min(5, probabilities.shape[1]))
        names = self._class_names
        return [
            {"id": id, "class": [{"class": names[i], "probability": p} for i, p in zip(index, value, strict=True)]}
            for id, value, index in zip(batch["id"], values.tolist(), indices.tolist(), strict=True)
        ]

    def examples(self, batch: Batch, outputs: ViTOutput) -> list[Example]:
        """Each image with the first answer."""
        pixels = ((batch["image"].float() + 1) * 127.5).round().clamp(0, 255).byte()
        frames = rearrange(pixels, "b c h w -> b 1 h w c").cpu().numpy()
        values, indices = outputs.logits.float().softmax(-1).max(-1)
        names = self._class_names
        return [
            Example(id, frames[i], names[batch["label"][i]], names[indices[i]], float(values[i]))
            for i, id in enumerate(batch["id"])
        ]

    @property
    def _class_names(self) -> list[str]:
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, ImageData):
            return data.source.class_names
        return [str(i) for i in range(self.net.classes)]
