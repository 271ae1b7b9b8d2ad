"""How far a run is: a bar in a terminal, lines elsewhere."""

import sys
import time
from typing import Any

from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar
from tqdm import tqdm

from lightning_vl.callbacks import step_is_done
from lightning_vl.peak_rates import TERA
from lightning_vl.throughput import Throughput, memory_gib

SECONDS_BETWEEN_LINES = 10.0  # where no terminal reads along


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
