"""Parameter groups and learning-rate schedules. Optimisers are torch's and timm's."""

import math
from abc import ABC, abstractmethod
from typing import Any

from torch import nn


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Two groups: matrices and kernels, which decay, and vectors (biases, norms) and learned tokens and positions, which do not.

    Learned tokens and positions are the parameters with a leading axis of one. Frozen parameters are in neither group.
    """
    decay: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            (spared if parameter.ndim < 2 or parameter.shape[0] == 1 else decay).append(parameter)
    return [{"params": decay}, {"params": spared, "weight_decay": 0.0}]


class Schedule(ABC):
    """The factor on the base learning rate, as a function of the step."""

    @abstractmethod
    def factor(self, step: int, total: int) -> float:
        """Factor at optimiser step `step` of `total`."""


class Constant(Schedule):
    """The base learning rate throughout."""

    def factor(self, step: int, total: int) -> float:
        """Always one."""
        return 1.0


class WarmupCosine(Schedule):
    """Linear warm-up, then a half cosine from the end of the warm-up to the last step.

    Args:
        warmup_steps: optimiser steps of the warm-up.
    """

    def __init__(self, warmup_steps: int) -> None:
        self.warmup_steps = warmup_steps

    def factor(self, step: int, total: int) -> float:
        """Rises to one over the warm-up and falls to nought at `total`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class WarmupConstant(Schedule):
    """Linear warm-up, then the base learning rate: for runs that end by a criterion, whatever the last step would be.

    Args:
        warmup_steps: optimiser steps of the warm-up.
    """

    def __init__(self, warmup_steps: int) -> None:
        self.warmup_steps = warmup_steps

    def factor(self, step: int, total: int) -> float:
        """Rises to one over the warm-up and stays."""
        return min(1.0, (step + 1) / max(1, self.warmup_steps))


class WarmupLinear(Schedule):
    """Linear warm-up, then a straight line from the end of the warm-up to the last step (ViT's pre-training, Table 3).

    Args:
        warmup_steps: optimiser steps of the warm-up.
        end: factor at the last step.
    """

    def __init__(self, warmup_steps: int, end: float = 0.0) -> None:
        self.warmup_steps = warmup_steps
        self.end = end

    def factor(self, step: int, total: int) -> float:
        """Rises to one over the warm-up and falls to `end` at `total`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
        return 1 + (self.end - 1) * min(1.0, progress)
