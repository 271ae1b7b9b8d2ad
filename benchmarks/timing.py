"""Rivals timed in turn in one process, for the benchmarks beside it."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[[], object]
WARM_UP = 3


@dataclass(frozen=True)
class Bench:
    """Where and how everything of a benchmark is measured.

    Attributes:
        device: of networks and batches.
        precision: "fp32", or "bf16" for bfloat16 autocast.
        repeats: timed runs of each rival.
    """

    device: torch.device
    precision: str
    repeats: int

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def synchronise(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def times(self, rivals: dict[str, Run]) -> dict[str, list[float]]:
        """Seconds of each run of each rival; they take turns, first one and then the other ahead.

        A busy machine is busy for all of them, and the times of one turn are comparable.
        """
        for _ in range(WARM_UP):
            for run in rivals.values():
                run()
        times: dict[str, list[float]] = {name: [] for name in rivals}
        for number in range(self.repeats):
            for name, run in list(rivals.items())[:: 1 if number % 2 else -1]:
                self.synchronise()
                start = time.perf_counter()
                run()
                self.synchronise()
                times[name].append(time.perf_counter() - start)
        return times

    def seconds(self, rivals: dict[str, Run]) -> dict[str, float]:
        """Median seconds of each rival, see `times`."""
        return {name: statistics.median(values) for name, values in self.times(rivals).items()}

    def forward(self, net: Callable[..., object], *inputs: Any) -> Run:
        """One forward pass without gradients."""

        def run() -> object:
            with torch.inference_mode(), self.autocast():
                return net(*inputs)

        return run

    def step(self, net: nn.Module, loss: Callable[[], Tensor]) -> Run:
        """One training step: forward, loss, backward, SGD with momentum."""
        return self.steps(torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9), [loss])

    def steps(self, optimizer: torch.optim.Optimizer, losses: Sequence[Callable[[], Tensor]]) -> Run:
        """A training step on each of several batches."""

        def run() -> None:
            for each in losses:
                with self.autocast():
                    loss = each()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()

        return run
