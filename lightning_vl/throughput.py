"""How fast a training goes: samples, tokens and operations a second, the wait for data, memory."""

import copy
import math
import os
import resource
import sys
import time
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils._pytree import tree_map_only

from lightning_vl.callbacks import step_is_done
from lightning_vl.peak_rates import TERA, peak_rate

TRAINING = 3  # forwards that a training step costs: itself, and the gradients by weights and by inputs


class Rates(NamedTuple):
    """How fast a training goes, all devices together; None is unknown.

    Attributes:
        samples_per_second: in 1/s.
        tokens_per_second: in 1/s, see `count_tokens`.
        data_wait: share of the time spent waiting for data.
        teraflops_per_second: operations of the network, 3 forwards a step, in 1e12/s.
        utilisation: share of what the devices could do at best (MFU).
    """

    samples_per_second: float
    tokens_per_second: float | None
    data_wait: float
    teraflops_per_second: float | None
    utilisation: float | None


@dataclass
class Work:
    """What was done in some time of training.

    Attributes:
        samples: of all processes.
        tokens: likewise; 0 where the network has none.
        operations: floating-point ones of the network, likewise; 0 where they are unknown.
        seconds: that it took, evaluation left out.
        waited: seconds of these that the data took.
    """

    samples: int = 0
    tokens: int = 0
    operations: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0

    def add(self, other: "Work") -> None:
        """Both together."""
        for part in fields(self):
            setattr(self, part.name, getattr(self, part.name) + getattr(other, part.name))

    def rates(self, peak: float | None) -> Rates:
        """Per second.

        Args:
            peak: operations a second that all devices could do together; None where it is unknown.
        """
        speed = self.operations / self.seconds if self.operations else None
        return Rates(
            samples_per_second=self.samples / self.seconds,
            tokens_per_second=self.tokens / self.seconds if self.tokens else None,
            data_wait=self.waited / self.seconds,
            teraflops_per_second=None if speed is None else speed / TERA,
            utilisation=None if speed is None or peak is None else speed / peak,
        )


class Throughput(Callback):
    """How fast a training goes and what it takes, since the last row of metrics and over all restarts.

    Clocks are read between steps and nothing waits for the device: over the steps between two rows, whose losses are
    waited for anyway, they tell the same. Processes do the same number of samples; the first one's tokens stand for all.
    """

    def __init__(self) -> None:
        self.seconds = 0.0  # training and validation, over restarts
        self.total = Work()  # likewise
        self.peak: float | None = None  # operations a second of one device
        self._forward: ForwardOperations | None = None
        self._mark = self._last_end = time.perf_counter()
        self._window = Work()
        self._waited_before = 0.0
        self._logged: Rates | None = None
        self._devices = 1

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Looks at the network as it is built: later it may be cut into shards."""
        if stage == "fit":
            self._forward = ForwardOperations(pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Starts the clocks."""
        tf32 = torch.get_float32_matmul_precision() != "highest"
        self.peak = peak_rate(hardware_name(trainer.strategy.root_device), str(trainer.precision), tf32)
        self._devices = trainer.world_size
        self._mark = self._last_end = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A batch is done."""
        now = time.perf_counter()
        samples, tokens = len(batch["id"]), count_tokens(pl_module.net, batch)
        assert self._forward is not None
        done = Work(
            samples * trainer.world_size,
            tokens * trainer.world_size,
            TRAINING * self._forward.operations(batch, samples, tokens) * trainer.world_size,
            now - self._last_end,
            trainer.train_dataloader.seconds_waited - self._waited_before,
        )
        self._waited_before = trainer.train_dataloader.seconds_waited
        self.total.add(done)
        self._window.add(done)
        if step_is_done(trainer, batch_idx) and trainer.global_step % trainer.log_every_n_steps == 0:
            rates = self.recent()
            assert rates is not None
            values = {**rates._asdict(), "memory_gib": memory_gib(trainer.strategy.root_device)}
            known = {f"train/{name}": value for name, value in values.items() if value is not None}
            pl_module.log_dict(known, rank_zero_only=True)
            self._logged = rates
            self._window = Work()
        self._last_end = time.perf_counter()  # operations may just have been counted, which is no training

    def recent(self) -> Rates | None:
        """Since the last row of metrics; None before the first step."""
        return self._window.rates(self._peak_of_all) if self._window.seconds else self._logged

    @property
    def _peak_of_all(self) -> float | None:
        return None if self.peak is None else self.peak * self._devices

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """The clock of training starts anew."""
        self._last_end = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Totals over restarts."""
        now = time.perf_counter()
        self.seconds += now - self._mark
        self._mark = now
        return {
            "seconds": self.seconds,
            "samples_seen": self.total.samples,
            "tokens_seen": self.total.tokens,
            "operations": self.total.operations,
            "training_seconds": self.total.seconds,
            "waiting_seconds": self.total.waited,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Totals over restarts."""
        self.seconds = state_dict["seconds"]
        self.total = Work(
            state_dict["samples_seen"],
            state_dict["tokens_seen"],
            state_dict["operations"],
            state_dict["training_seconds"],
            state_dict["waiting_seconds"],
        )

    def summary(self, device: torch.device) -> dict[str, Any]:
        """The run's totals for its record."""
        self.state_dict()
        rates = self.total.rates(self._peak_of_all)._asdict() if self.total.seconds else dict.fromkeys(Rates._fields)
        return {
            "samples_seen": self.total.samples,
            "tokens_seen": self.total.tokens or None,
            "hours": self.seconds / 3600,
            **rates,
            "peak_teraflops_per_second": None if self.peak is None else self.peak / TERA,
            "peak_memory_gib": memory_gib(device),
        }


class ForwardOperations:
    """Floating-point operations of a task's forward, counted on the meta device on batches that training has seen.

    A batch is counted once where all are of one shape. Texts are of any length: their operations go with the tokens (where
    a batch has nothing else), and are counted anew once its sequences have become a tenth longer or shorter.

    Args:
        task: whose network is to be counted; a copy without values is kept.
    """

    CHANGE = 0.1

    def __init__(self, task: Any) -> None:
        self._task = self._without_values(task)
        self._each = 0.0  # operations of a sample, or of a token
        self._length: float | None = None  # tokens of a sample, of the batches that were counted
        self._tokens, self._samples = 0, 0  # since it was compared

    @staticmethod
    def _without_values(task: Any) -> Any:
        """The task with a network on the meta device alone; None where three forwards would not be a step."""
        parameters = list(task.net.parameters())
        frozen = sum(one.numel() for one in parameters if not one.requires_grad)
        if frozen > 0.01 * sum(one.numel() for one in parameters):  # a frozen part goes forward only
            return None
        tensors = [*parameters, *task.net.buffers()]
        made: dict[int, Any] = {}
        for tensor in tensors:
            empty = torch.empty_like(tensor, device="meta", dtype=_single(tensor))
            learned = isinstance(tensor, torch.nn.Parameter)
            made[id(tensor)] = torch.nn.Parameter(empty, requires_grad=False) if learned else empty
        alone = copy.copy(task)
        alone._modules = {"net": copy.deepcopy(task.net, made)}
        return alone.eval()

    def operations(self, batch: Any, samples: int, tokens: int) -> float:
        """Of one forward of a batch; 0 where they are unknown."""
        if self._task is None:
            return 0.0
        text = "token_ids" in batch and "image" not in batch
        self._tokens, self._samples = self._tokens + tokens, self._samples + samples
        if self._length is None or self._samples >= 100 * samples:
            length = self._tokens / self._samples
            if self._length is None or abs(length - self._length) > self.CHANGE * self._length:
                self._length = length
                self._each = self._count(batch) / (tokens if text else samples)
            self._tokens, self._samples = 0, 0
        return self._each * (tokens if text else samples)

    def _count(self, batch: Any) -> float:
        from lightning_vl.report.cost import count_operations

        shapes = tree_map_only(Tensor, lambda x: torch.empty_like(x, device="meta", dtype=_single(x)), batch)
        try:
            return 2.0 * count_operations(self._task, shapes).macs
        except RuntimeError:  # a forward that depends on values cannot be counted without them
            self._task = None
            return 0.0


def _single(tensor: Tensor) -> torch.dtype:
    """Its type; for networks in half precision, whose inputs are not, single."""
    return torch.float32 if tensor.is_floating_point() else tensor.dtype


def count_tokens(net: Any, batch: Any) -> int:
    """Tokens of a batch; 0 where there are none.

    Of texts those that are there, without padding; of images and videos without text the patches or tubelets that the
    network cuts them into. A class token is none.
    """
    if "token_ids" in batch:
        return len(batch["token_ids"])
    grid = getattr(getattr(net, "embedding", None), "grid", ())  # of a PatchEmbedding, a TubeletEmbedding, ...
    return len(batch["id"]) * math.prod(grid) if grid else 0


def memory_gib(device: torch.device) -> float:
    """The most memory that was held so far, in GiB: of the GPU's allocator, or else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held * (1 if sys.platform == "darwin" else 1024) / 2**30


def hardware_name(device: torch.device) -> str:
    """The device by the name that `peak_rate` knows it by; a TPU's is what its environment says."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "xla":
        return f"TPU {os.environ.get('TPU_ACCELERATOR_TYPE', '').partition('-')[0]}"
    return device.type
