"""What happens around the steps: the last checkpoint, signals, throughput, progress."""

import copy
import math
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar
from torch import Tensor
from torch.utils._pytree import tree_map_only
from tqdm import tqdm

from lightning_vl.errors import UserError
from lightning_vl.peak_rates import TERA, peak_rate
from lightning_vl.sharding import load_weights
from lightning_vl.terminal import say

SECONDS_BETWEEN_LINES = 10.0  # of progress, where no terminal reads along
REQUEUE = 85  # exit code that asks the batch script for a requeue
TRAINING = 3  # forwards that a training step costs: itself, and the gradients by weights and by inputs


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, from which the run goes on exactly.

    It is saved between optimiser steps. Where a validation is due after the step it is saved after the validation, so a
    resumed run neither misses a validation nor repeats one.

    Args:
        every_n_train_steps: optimiser steps between two saves.
    """

    def __init__(self, every_n_train_steps: int = 200) -> None:
        self.every_n_train_steps = every_n_train_steps
        self.path = Path("last.ckpt")  # set by the command to the run's folder
        self.saved_step = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """A run whose own criterion had ended its training does not train on when it is started again."""
        if any(callback.wait_count >= callback.patience for callback in trainer.early_stopping_callbacks):
            trainer.should_stop = True

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Saves when it is time, unless a validation comes first."""
        due = trainer.global_step - self.saved_step >= self.every_n_train_steps
        if due and step_is_done(trainer, batch_idx) and not validation_follows(trainer, batch_idx):
            self.save(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Saves after every validation of a training run."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.save(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Saves the last step."""
        if trainer.global_step > self.saved_step:
            self.save(trainer)

    def save(self, trainer: Any) -> None:
        """Writes the checkpoint now."""
        self.saved_step = trainer.global_step
        trainer.save_checkpoint(self.path)

    def state_dict(self) -> dict[str, Any]:
        """The step saved last."""
        return {"saved_step": self.saved_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The step saved last."""
        self.saved_step = state_dict["saved_step"]


def step_is_done(trainer: Any, batch_idx: int) -> bool:
    """Whether this micro-batch was the last of its optimiser step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def validation_follows(trainer: Any, batch_idx: int) -> bool:
    """Whether a validation comes after this micro-batch."""
    return bool(trainer.enable_validation) and (batch_idx + 1) % trainer.val_check_batch == 0


class StopOnSignal(Checkpoint):
    """Ctrl-C, SIGTERM and SIGUSR1 end the run between two steps, with a checkpoint.

    The handler only sets a flag; all ranks agree on it at the next optimiser step, or after the validation under way,
    save once and leave: Ctrl-C with 130, SIGTERM with 143, SIGUSR1 with 85, which asks the batch script for a requeue. A second
    Ctrl-C leaves at once. Before training and in the test after it there is nothing to save: a signal ends the process there as
    it ends any other. It is a `Checkpoint` to Lightning so that it comes after those that save.

    Args:
        last: saves the checkpoint.
    """

    CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: REQUEUE}  # noqa: RUF012

    def __init__(self, last: LastCheckpoint) -> None:
        self.last = last
        self.code = 0
        self.earlier: dict[int, Any] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Takes over the signals: Lightning's own handlers talk to other ranks from inside the handler."""
        for number in self.CODES:
            self.earlier[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        if self.code and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.code = self.CODES[signal.Signals(number)]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Leaves after a whole step, unless a validation comes first."""
        if step_is_done(trainer, batch_idx) and not validation_follows(trainer, batch_idx) and self._asked(trainer):
            # Lightning writes a step's row after this hook, which does not return
            trainer._logger_connector.update_train_step_metrics()
            self._leave(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Leaves after the validation under way."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._asked(trainer):
            self._leave(trainer)

    def _asked(self, trainer: Any) -> bool:
        """Whether any rank was asked to leave; all ranks get the same answer at the same step."""
        if trainer.world_size > 1:
            code = torch.tensor(float(self.code), device=trainer.strategy.root_device)
            self.code = int(trainer.strategy.reduce(code, reduce_op="max"))
        return self.code != 0

    def _leave(self, trainer: Any) -> None:
        if self.last.saved_step != trainer.global_step:
            self.last.save(trainer)
        for logger in trainer.loggers:
            logger.finalize("interrupted")
        trainer.strategy.barrier()
        run_id = self.last.path.parent.parent.name
        say(
            f"\nstopped at step {trainer.global_step} of {trainer.max_steps}; saved {self.last.path}\n"
            f"the same command with --run.id {run_id} goes on from there"
        )
        # one exit code is enough, and Lightning kills the others where a process that it started has a bad one
        raise SystemExit(self.code if trainer.is_global_zero else 0)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Gives the signals back."""
        self._restore()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Gives the signals back."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.earlier.items():
            signal.signal(number, handler)
        self.earlier.clear()


class MovingAverage(Callback):
    """Validates, keeps and tests a moving average of the weights: average = decay average + (1 - decay) weights.

    It is taken after every optimiser step, and begins with the weights as they are before the first. A checkpoint's
    `state_dict` is the average; the weights that training goes on with lie beside it. Statistics of batch norm are averaged
    too.

    Args:
        decay: how much of the average stays in a step, in [0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of a moving average lies in [0, 1), not at {decay}")
        self.decay = decay
        self._average: list[Tensor] = []
        self._step = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """A run that goes on has its average from the checkpoint."""
        if getattr(trainer.strategy, "sharded_checkpoints", False):
            raise UserError(
                "a moving average of the weights and sharded checkpoints do not go together",
                "leave trainer.strategy.init_args.sharded_checkpoints at false",
            )
        self._step = trainer.global_step
        if not self._average:
            self._average = [tensor.detach().clone() for tensor in self._tensors(pl_module)]

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Takes a step of the average after a step of the optimiser."""
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            for average, tensor in zip(self._average, self._tensors(pl_module), strict=True):
                average.lerp_(tensor, 1 - self.decay)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """The average is what is validated."""
        self._swap(pl_module)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Training goes on with the weights."""
        self._swap(pl_module)

    @torch.no_grad()
    def _swap(self, pl_module: Any) -> None:
        for average, tensor in zip(self._average, self._tensors(pl_module), strict=bool(self._average)):
            kept = tensor.detach().clone()
            tensor.copy_(average)
            average.copy_(kept)

    @staticmethod
    def _tensors(pl_module: Any) -> list[Tensor]:
        """What is averaged: the network's parameters, and the buffers that are numbers."""
        return [tensor for tensor in pl_module.net.state_dict(keep_vars=True).values() if tensor.is_floating_point()]

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """The average for whoever uses the network, the weights for the training that goes on."""
        if self._average:
            self._swap(pl_module)
            checkpoint["trained_state_dict"] = checkpoint["state_dict"]
            average = trainer.strategy.lightning_module_state_dict()
            # those of one process are the tensors themselves
            checkpoint["state_dict"] = {name: tensor.clone() for name, tensor in average.items()}
            self._swap(pl_module)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Training goes on with the weights; by now the network has the average."""
        if trainer.state.fn == "fit" and "trained_state_dict" in checkpoint:
            self._average = [tensor.detach().clone() for tensor in self._tensors(pl_module)]
            load_weights(pl_module, checkpoint["trained_state_dict"])


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
        """Totals over restarts; runs begun before tokens and operations were counted have none of these."""
        self.seconds = state_dict["seconds"]
        self.total = Work(
            state_dict["samples_seen"],
            state_dict.get("tokens_seen", 0),
            state_dict.get("operations", 0.0),
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


class Progress(ProgressBar):
    """One bar over the whole training with speeds, data wait, memory and ETA.

    Where no terminal reads along, a plain line a while instead.

    Args:
        unit: what a sample is called.
        throughput: measures.
    """

    def __init__(self, throughput: Throughput, unit: str = "samples") -> None:
        super().__init__()
        self.throughput = throughput
        self.unit = unit
        self.terminal = sys.stderr.isatty()
        self.bar: tqdm | None = None
        self._shown = 0.0
        self._start = (time.perf_counter(), 0)
        self._enabled = True

    def disable(self) -> None:
        """Lightning calls it on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Shows again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints above the bar."""
        if self._enabled:
            tqdm.write(" ".join(map(str, args)), file=sys.stderr)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Opens the bar where the run stands."""
        self._start = (time.perf_counter(), trainer.global_step)
        if self.terminal and self._enabled:
            self.bar = tqdm(
                total=trainer.max_steps,
                initial=trainer.global_step,
                desc="training",
                unit="step",
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} ETA {remaining}{postfix}",
            )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Moves on."""
        if not self._enabled or not step_is_done(trainer, batch_idx):
            return
        now = time.perf_counter()
        if self.bar is not None:
            self.bar.update(trainer.global_step - self.bar.n)
        last = trainer.global_step >= trainer.max_steps
        if now - self._shown < (0.5 if self.terminal else SECONDS_BETWEEN_LINES) and not last:
            return
        self._shown = now
        text = "  ".join(self._numbers(trainer))
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=True)
        else:
            begun, first = self._start
            steps = max(1, trainer.global_step - first)
            left = (trainer.max_steps - trainer.global_step) * (now - begun) / steps
            self.print(f"training {trainer.global_step}/{trainer.max_steps}  ETA {tqdm.format_interval(left)}  {text}")

    def _numbers(self, trainer: Any) -> list[str]:
        shown: list[str] = []
        if rates := self.throughput.recent():
            shown += [f"{rates.samples_per_second:.0f} {self.unit}/s"]
            if rates.tokens_per_second is not None:
                shown += [f"{tqdm.format_sizeof(rates.tokens_per_second)} tokens/s"]
            shown += [f"data wait {rates.data_wait:.0%}"]
            if rates.teraflops_per_second is not None:
                shown += [f"{tqdm.format_sizeof(rates.teraflops_per_second * TERA)}FLOP/s"]
            if rates.utilisation is not None:
                shown[-1] += f" ({rates.utilisation:.0%} of peak)"
            shown += [f"{memory_gib(trainer.strategy.root_device):.1f} GiB"]
        shown += [f"{name} {float(value):.3f}" for name, value in trainer.progress_bar_metrics.items()]
        return shown

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Without a terminal, a line with what the validation gave."""
        if self._enabled and not trainer.sanity_checking and self.bar is None:
            values = {k: v for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
            self.print("validation  " + "  ".join(f"{name} {float(value):.3f}" for name, value in values.items()))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Closes the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Closes the bar."""
        self.on_train_end(trainer, pl_module)
