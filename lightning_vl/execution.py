"""How a network is carried out, whatever it computes: blocks computed twice to save memory, blocks compiled."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_vl.errors import UserError


@dataclass
class Execution:
    """How the network is carried out. Names and values of its weights stay as they are, and so do checkpoints.

    Args:
        activation_checkpointing: keep a block's inputs alone and compute the block again for its gradients: less memory,
            about a third more time, the same numbers.
        compile: compile the blocks with torch.compile: some time before the first steps, faster ones then, and numbers
            that are the same but for rounding. Needs a C++ compiler on the CPU.
    """

    activation_checkpointing: bool = False
    compile: bool = False

    def apply(self, net: nn.Module) -> None:
        """Arranges a network, once."""
        if not (self.activation_checkpointing or self.compile):
            return
        parts = blocks(net)
        if not parts:
            raise UserError(
                f"{type(net).__name__} has no blocks that could be compiled or computed again",
                "leave execution.compile and execution.activation_checkpointing out",
            )
        for block in parts:
            if self.activation_checkpointing:
                block.forward = partial(_again, block, block.forward)
            if self.compile:
                block.compile()  # in place: a wrapper would show in the weights' names


def blocks(net: nn.Module) -> list[nn.Module]:
    """The repeated parts of a network: members of what is called `blocks`, without batch norm, which counts every forward."""
    groups = [module for name, module in net.named_modules() if name.rpartition(".")[2] == "blocks"]
    members = [block for group in groups for block in group.children()]
    return [block for block in members if not has_batch_norm(block)]


def has_batch_norm(net: nn.Module) -> bool:
    """Whether a part of it keeps statistics of what went through it."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules())


def _again(block: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    """A block's forward, of which nothing but the inputs is kept for the gradients; random numbers are drawn alike."""
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False)
