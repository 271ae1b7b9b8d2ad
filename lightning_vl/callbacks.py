"""What happens around the steps: the last checkpoint, signals, throughput, progress."""

import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar
from tqdm import tqdm

from lightning_vl.terminal import say

SECONDS_BETWEEN_LINES = 10.0  # of progress, where no terminal reads along
REQUEUE = 85  # exit code that asks the batch script for a requeue


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
    Ctrl-C leaves at once. It is a `Checkpoint` to Lightning so that it comes after those that save.

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


class Throughput(Callback):
    """Samples a second, the share of time spent waiting for data, hours and samples over all restarts.

    Both rates are over the steps since they were last logged, evaluation left out.
    """

    def __init__(self) -> None:
        self.samples_seen = 0
        self.seconds = 0.0  # training and validation, over restarts
        self.training_seconds = 0.0
        self.waiting_seconds = 0.0
        self._mark = self._last_end = time.perf_counter()
        self._window = [0, 0.0, 0.0]  # samples, seconds, seconds waited
        self._waited_before = 0.0
        self._logged = (0.0, 0.0)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Starts the clocks."""
        self._mark = self._last_end = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A batch is done."""
        now = time.perf_counter()
        samples = len(batch["id"]) * trainer.world_size
        self.samples_seen += samples
        self.training_seconds += now - self._last_end
        waited = trainer.train_dataloader.seconds_waited - self._waited_before
        self._waited_before = trainer.train_dataloader.seconds_waited
        self.waiting_seconds += waited
        self._window[2] += waited
        self._window[0] += samples
        self._window[1] += now - self._last_end
        self._last_end = now
        if step_is_done(trainer, batch_idx) and trainer.global_step % trainer.log_every_n_steps == 0:
            rate, wait = self.recent()
            pl_module.log("train/samples_per_second", rate, rank_zero_only=True)
            pl_module.log("train/data_wait", wait, rank_zero_only=True)
            self._logged = (rate, wait)
            self._window = [0, 0.0, 0.0]

    def recent(self) -> tuple[float, float]:
        """Samples a second and share of time waited for data, since they were last logged."""
        samples, seconds, waited = self._window
        return (samples / seconds, waited / seconds) if seconds else self._logged

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """The clock of training starts anew."""
        self._last_end = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Totals over restarts."""
        now = time.perf_counter()
        self.seconds += now - self._mark
        self._mark = now
        names = ("samples_seen", "seconds", "training_seconds", "waiting_seconds")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Totals over restarts."""
        for name, value in state_dict.items():
            setattr(self, name, value)

    def summary(self, device: torch.device) -> dict[str, Any]:
        """The run's totals for its record."""
        self.state_dict()
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device)
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "samples_seen": self.samples_seen,
            "hours": self.seconds / 3600,
            "samples_per_second": self.samples_seen / self.training_seconds if self.training_seconds else None,
            "data_wait": self.waiting_seconds / self.training_seconds if self.training_seconds else None,
            "peak_memory_gib": peak / 2**30,
        }


class Progress(ProgressBar):
    """One bar over the whole training with samples/s, data wait and ETA, and one for each evaluation.

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
        rate, wait = self.throughput.recent()
        shown = [f"{rate:.0f} {self.unit}/s", f"data wait {wait:.0%}"]
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
