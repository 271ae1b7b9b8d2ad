"""What every LightningDataModule here shares: the stream, exact resume, corrupt samples, preprocessing that travels along."""

from abc import ABC, abstractmethod
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

from lightning_vl.data.source import Split
from lightning_vl.data.stream import (
    Batch,
    EvaluationKeys,
    KeyedDataset,
    Sample,
    SeededDataset,
    TrainingLoader,
    TrainingStream,
    evaluation_loader,
)
from lightning_vl.data.streamed import StreamedDataset, StreamedKeyedDataset, StreamedKeys
from lightning_vl.errors import UserError
from lightning_vl.terminal import say


class DataModule(lightning.LightningDataModule, ABC):
    """Batches of three splits over one stream of samples.

    A subclass says which data set a split has (`dataset`), how samples become a batch (`collate`), and which preprocessing
    a checkpoint must be used with (`preprocessing`).

    Args:
        batch_size: samples of one optimiser step, over all devices and accumulated micro-batches: overlays that change
            devices or accumulation leave the science alone.
        evaluation_batch_size: samples of one forward pass in evaluation, on each device.
        workers: processes that read ahead, on each device.
        max_corrupt: largest share of samples that may turn out unreadable before the run stops.
    """

    def __init__(self, batch_size: int, evaluation_batch_size: int, workers: int, max_corrupt: float) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.evaluation_batch_size = evaluation_batch_size
        self.workers = workers
        self.max_corrupt = max_corrupt
        self.seed = 0  # the run's seed: set by the command before the run starts
        self.skipped: dict[Split, list[str]] = {}  # what could not be read, in the order met

    @abstractmethod
    def dataset(self, split: Split) -> SeededDataset | StreamedDataset:
        """The data set of a split; called once a split."""

    @abstractmethod
    def collate(self, samples: list[Sample]) -> Batch:
        """A batch of samples; `id` lists theirs."""

    @property
    @abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """What the network's inputs depend on (size, range, ...): saved in checkpoints, compared on loading."""

    def setup(self, stage: str) -> None:
        """Builds the data sets of a stage; everything that can be wrong with the data is found here, before training."""
        splits: dict[str, tuple[Split, ...]] = {"fit": ("train", "validation"), "validate": ("validation",)}
        built: dict[Split, Any] = getattr(self, "datasets", {})
        for split in splits.get(stage, ("test",)):
            if split not in built:
                built[split] = self.dataset(split)
                if not len(built[split]):
                    raise UserError(
                        f"the {split} split is empty", "check the paths and the split of data.init_args.source"
                    )
        self.datasets = built

    def train_dataloader(self) -> TrainingLoader:
        """The run's stream from its first to its last step."""
        trainer = self._trainer
        if trainer.max_steps < 1:
            raise UserError("trainer.max_steps is not set", "say how long to train: --trainer.max_steps 1000")
        dataset = self.datasets["train"]
        streamed = isinstance(dataset, StreamedDataset)
        stream = (StreamedKeys if streamed else TrainingStream)(
            len(dataset),
            self.batch_size,
            trainer.max_steps,
            self.seed,
            trainer.global_rank,
            trainer.world_size,
            trainer.accumulate_grad_batches,
        )
        keyed = (StreamedKeyedDataset if streamed else KeyedDataset)(
            dataset,
            self.collate,
            self.seed,
            replace_corrupt=True,
        )
        return TrainingLoader(keyed, stream, self.workers, self._pin_memory)

    def val_dataloader(self) -> DataLoader:
        """Every validation sample once."""
        return self._evaluation("validation")

    def test_dataloader(self) -> DataLoader:
        """Every test sample once."""
        return self._evaluation("test")

    def predict_dataloader(self) -> DataLoader:
        """Every test sample once, for `predict`."""
        return self._evaluation("test")

    def _evaluation(self, split: Split) -> DataLoader:
        trainer = self._trainer
        keys = EvaluationKeys(
            len(self.datasets[split]), self.evaluation_batch_size, trainer.global_rank, trainer.world_size
        )
        keyed = KeyedDataset(self.datasets[split], self.collate, self.seed, replace_corrupt=False)
        return evaluation_loader(keyed, keys, self.workers, self._pin_memory)

    @property
    def _trainer(self) -> lightning.Trainer:
        if self.trainer is None:
            raise RuntimeError("a data module needs its trainer to know steps and processes")
        return self.trainer

    @property
    def _pin_memory(self) -> bool:
        return self._trainer.strategy.root_device.type == "cuda"

    @property
    def split(self) -> Split:
        """The split whose batches the trainer takes now."""
        stage = self._trainer.state.stage
        return "train" if stage == "train" else "test" if stage in ("test", "predict") else "validation"

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Counts what the workers could not read, and stops when it is too much."""
        split = self.split
        skipped = self.skipped.setdefault(split, [])
        for report in batch.pop("skipped", ()):
            if report not in skipped:
                skipped.append(report)
                say(f"skipped an unreadable sample: {report}")
        total = len(self.datasets[split])
        if len(skipped) > self.max_corrupt * total:
            raise UserError(
                f"{len(skipped)} of {total} samples of the {split} split cannot be read, the last one {skipped[-1]}",
                f"mend or remove them, or allow more than {self.max_corrupt:.1%} with data.init_args.max_corrupt",
            )
        return batch

    def baselines(self) -> dict[str, float]:
        """What trivial predictors score on the test split, by the metric's name: logged as `baseline/<name>` after a test."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Preprocessing travels with the checkpoint."""
        return {"preprocessing": self.preprocessing}

    def accept(self, saved: dict[str, Any]) -> None:
        """Refuses the preprocessing of a checkpoint whose network saw inputs made otherwise."""
        for key, value in self.preprocessing.items():
            if saved.get(key) != value:
                raise UserError(
                    f"the checkpoint was trained with {key} {saved.get(key)!r}, the data now has {value!r}",
                    f"give the data the same {key}, or start a new network from its weights with init_from",
                )


def to_signed_unit_range(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 -> float -1..1, as x * 2 / 255 - 1 (ViViT's and ViT's input range)."""
    return pixels.float().mul_(2 / 255).sub_(1)
