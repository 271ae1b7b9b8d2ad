"""CLIP's task: to tell which text belongs to which image (Sec. 2.3, Fig. 3)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_vl.contrastive import Contrastive
from lightning_vl.data.stream import Batch
from lightning_vl.errors import UserError
from lightning_vl.evaluation.dual_encoder import DualEncoder
from lightning_vl.evaluation.retrieval import RetrievalMetrics
from lightning_vl.nn.packing import chunks
from lightning_vl.optim import Schedule
from lightning_vl.papers.bert.task import check_vocabulary
from lightning_vl.papers.clip.convert import TowerInitialisation
from lightning_vl.papers.clip.data import CaptionData
from lightning_vl.papers.clip.model import CLIP, ClipOutput
from lightning_vl.papers.clip.search import fingerprints
from lightning_vl.task import Task
from lightning_vl.weights import Initialisation, newest


class ClipTask(Task):
    """The contrastive loss over the batch of all processes.

    Args:
        net: the two towers.
        objective: `InfoNCE`, the paper's, or `Sigmoid`.
        optimizer: AdamW in the paper (Table 18).
        schedule: a short warm-up, then a half cosine in the paper.
        init_from: files whose weights training starts from.
        chunk: embed so many pairs at a time and keep nothing but the embeddings; what lay between is computed again for
            the gradients ("gradient caching"). So a batch may be larger than memory allows; one third more is computed.
            Batch norm (the ResNets') takes its statistics over a chunk. None for all at once.
    """

    net: CLIP
    unit = "pairs"

    def __init__(
        self,
        net: CLIP,
        objective: Contrastive,
        optimizer: OptimizerCallable,
        schedule: Schedule,
        init_from: Initialisation | None = None,
        chunk: int | None = None,
    ) -> None:
        super().__init__(net, optimizer, schedule, init_from, {"val": RetrievalMetrics(), "test": RetrievalMetrics()})
        if chunk is not None and chunk < 1:
            raise UserError(f"chunk is {chunk}", "give 1 or more pairs, or null for all of a process's own at once")
        self.objective = objective
        self.chunk = chunk

    def setup(self, stage: str) -> None:
        """The towers must fit the data: image size, pieces of the vocabulary, tokens of a caption.

        Gradients of micro-batches must not be summed: a pair would be compared with those of its micro-batch alone, which
        is another objective than that of the batch.
        """
        data = getattr(self.trainer, "datamodule", None)
        if self.from_weights and isinstance(data, CaptionData):
            start = self.init_from.text if isinstance(self.init_from, TowerInitialisation) else self.init_from
            if start is not None:
                check_vocabulary(newest(start.path), data.tokenizer)
        super().setup(stage)
        if stage == "fit" and self.trainer.accumulate_grad_batches > 1:
            raise UserError(
                "with trainer.accumulate_grad_batches a pair is compared with those of its micro-batch alone",
                "leave it at 1; for a batch larger than memory give pairs at a time: --model.init_args.chunk=256",
            )
        if not isinstance(data, CaptionData):
            return
        if data.image_size != self.net.image.image_size:
            raise UserError(
                f"the image tower takes images of {self.net.image.image_size} px, the data gives {data.image_size} px",
                "give data.init_args.image_size and the tower's image_size the same value",
            )
        if len(data.tokenizer) != self.net.text.vocabulary_size:
            raise UserError(
                f"the text tower reads {self.net.text.vocabulary_size} pieces, the vocabulary has {len(data.tokenizer)}",
                f"give the text tower vocabulary_size {len(data.tokenizer)}, or the data the vocabulary it was made for",
            )
        if data.context_length > self.net.text.context_length:
            raise UserError(
                f"the data has captions of {data.context_length} tokens, the text tower places for "
                f"{self.net.text.context_length}",
                f"lower data.init_args.context_length to {self.net.text.context_length}",
            )

    def forward(self, batch: Batch) -> ClipOutput:
        """Images (b, c, h, w) and packed captions (t,); pictures to be searched have none."""
        images = batch["image"]
        if "token_ids" not in batch:
            image = self.net.embed_images(images)
            return ClipOutput(image, image[:0], self.net.scale, self.net.logit_bias)
        token_ids, packing = batch["token_ids"], batch["packing"]
        if self.chunk is None or not self.training:
            return self.net(images, token_ids, packing)
        parts = [
            checkpoint(self.net.embed_images, part, use_reentrant=False, context_fn=self._once)
            for part in images.split(self.chunk)
        ]
        text = [
            checkpoint(self.net.embed_texts, *part, use_reentrant=False)
            for part in chunks(token_ids, packing, self.chunk)
        ]
        return ClipOutput(torch.cat(parts), torch.cat(text), self.net.scale, self.net.logit_bias)

    def _once(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """For the first time that a chunk is embedded and for the second, which must not count in batch norms again."""
        return nullcontext(), statistics_kept(self.net.image)

    def losses(self, batch: Batch, outputs: ClipOutput) -> dict[str, Tensor]:
        """`contrastive`, nats; in evaluation of the first caption of each image, over the batch alone."""
        text = outputs.text
        if not self.training:
            first = torch.searchsorted(batch["image_of"], torch.arange(len(outputs.image), device=text.device))
            text = text[first]
        return {"contrastive": self.objective(outputs.image, text, outputs.scale, outputs.bias, across=self.training)}

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Logs the scale of the logits, the reciprocal of the temperature."""
        if self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("train/scale", self.net.scale.detach(), batch_size=1)

    def encoder(self) -> DualEncoder:
        """The towers with what their inputs need, for use outside of the loop."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        return DualEncoder(self.net, data.tokenizer, data.context_length, data.evaluation_batch_size)

    def predictions(self, batch: Batch, outputs: ClipOutput) -> list[dict[str, Any]]:
        """For each image its captions with the cosine of each; pictures to be searched are kept for `conclusions`."""
        if "token_ids" not in batch:
            self.trainer.datamodule.search.keep(batch["id"], outputs.image)  # type: ignore[attr-defined]
            return []
        cosines = (outputs.image[batch["image_of"]] * outputs.text).sum(-1).tolist()
        rows: list[dict[str, Any]] = [{"id": id, "captions": []} for id in batch["id"]]
        for image, text, cosine in zip(batch["image_of"].tolist(), batch["text"], cosines, strict=True):
            rows[image]["captions"].append({"caption": text, "cosine": cosine})
        return rows

    def conclusions(self, folder: Path) -> list[dict[str, Any]]:
        """For each query of a search the pictures found; nothing for the test split."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data.search is None:
            return []
        made_with = fingerprints(self.net, self.network, data.preprocessing)
        rows: list[dict[str, Any]] = data.search.answer(self.encoder(), made_with, folder)
        return rows


@contextmanager
def statistics_kept(net: nn.Module) -> Iterator[None]:
    """Within it, what goes through a network in training changes no running statistics of its batch norms."""
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
