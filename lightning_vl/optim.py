"""Parameter groups, learning-rate schedules, and BERT's Adam; other optimisers are torch's and timm's."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


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


class WarmupOverLinear(Schedule):
    """A straight line from step 0 to the last, which the warm-up overrides while it lasts (BERT's released code).

    The line has begun to fall when the warm-up ends: there the rate drops by warmup_steps / total. The first step has
    none.

    Args:
        warmup_steps: optimiser steps of the warm-up.
    """

    def __init__(self, warmup_steps: int) -> None:
        self.warmup_steps = warmup_steps

    def factor(self, step: int, total: int) -> float:
        """Rises from nought, drops onto the line and falls to nought at `total`."""
        if step < self.warmup_steps:
            return step / self.warmup_steps
        return max(0.0, 1 - step / total)


class WarmupInverseSquareRoot(Schedule):
    """Linear warm-up, then as the inverse square root of the step ("Attention Is All You Need", Eq. 3).

    There the highest rate is d^-0.5 warmup_steps^-0.5: give it as the optimiser's, 6.99e-4 for the base model.

    Args:
        warmup_steps: optimiser steps of the warm-up.
    """

    def __init__(self, warmup_steps: int) -> None:
        self.warmup_steps = warmup_steps

    def factor(self, step: int, total: int) -> float:
        """Rises to one over the warm-up and never reaches nought."""
        return min((step + 1) / self.warmup_steps, math.sqrt(self.warmup_steps / (step + 1)))


class BertAdam(torch.optim.Optimizer):
    """Adam without bias correction, its weight decay added to the update (BERT's released code).

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w = w - lr (m / (sqrt(v) + eps) + weight_decay w)

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        betas: b1 and b2.
        eps: added to the root of v.
        weight_decay: of the weights.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._update(weights, group)
        return loss

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] = {"m": torch.zeros_like(weight), "v": torch.zeros_like(weight)}
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        first = [self.state[weight]["m"] for weight in weights]
        second = [self.state[weight]["v"] for weight in weights]
        b1, b2 = group["betas"]
        torch._foreach_lerp_(first, gradients, 1 - b1)
        torch._foreach_mul_(second, b2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - b2)
        denominators = torch._foreach_sqrt(second)
        torch._foreach_add_(denominators, group["eps"])
        updates = torch._foreach_div(first, denominators)
        torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        torch._foreach_add_(weights, updates, alpha=-group["lr"])
