"""What happens around the steps: the last checkpoint, signals, a moving average of the weights."""

import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import Tensor

from lightning_vl.errors import UserError
from lightning_vl.sharding import load_weights
from lightning_vl.terminal import say

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
