"""Losses of paired embeddings within a batch, which may be spread over several processes.

Process p has n images and n texts. It makes the rows of its own images only, n x N logits against the texts of all
processes, a block of rows at a time. A loss says what it is worth and its slope, the derivative by a logit. Between forward
and backward no logits are kept: they are made a second time for the gradients, which is one matrix product more than the
three that are needed, and less than the six of making rows for images and rows for texts apart.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812

from lightning_vl.errors import UserError

Slope = Callable[[int, Tensor], Tensor]  # number of a block's first row, its logits (b, N) -> derivatives (b, N)


@dataclass(frozen=True)
class Logits:
    """Those of n images and N texts: scale * cosine + bias; the text of image i is number `first` + i.

    Attributes:
        image: (n, d).
        text: (N, d).
        scale: scalar.
        bias: scalar, where there is one.
        first: see above.
        block: rows made at once.
        across: whether images of other processes have rows for these texts too.
    """

    image: Tensor
    text: Tensor
    scale: Tensor
    bias: Tensor | None
    first: int
    block: int
    across: bool

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """The number of the first row, and a block of rows (b, N), which may be written over."""
        for start in range(0, len(self.image), self.block):
            logits = (self.scale * self.image[start : start + self.block]) @ self.text.T
            yield start, logits if self.bias is None else logits.add_(self.bias)

    def of_pairs(self, start: int, rows: Tensor) -> Tensor:
        """(b,) the entries of a block of rows (b, N) at which image and text make a pair: a view."""
        return rows.diagonal(self.first + start)


class Contrastive(ABC):
    """A loss over all pairs of a batch, computed in float32 (or float64, as the embeddings are) under any autocast.

    Its matrix products are as exact as `torch.set_float32_matmul_precision` lets them be.

    Args:
        block: rows of the matrix of similarities that are held at once; None for all of a process's own. Memory grows with
            block x (pairs of all processes), never with the square of the latter.
    """

    def __init__(self, block: int | None = None) -> None:
        if block is not None and block < 1:
            raise UserError(f"block is {block}", "give 1 or more rows, or null for all of a process's own")
        self.block = block

    @final
    @torch.compiler.disable
    def __call__(self, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None, across: bool) -> Tensor:
        """The loss; row i of both makes a pair.

        Args:
            image: (n, d), of length one.
            text: (n, d), of length one.
            scale: scalar, what cosines are multiplied by.
            bias: scalar that is then added, where there is one.
            across: whether the other processes' embeddings take part; all must then call it, with the same n.

        Returns:
            Scalar, nats; the mean over processes, gradients included, is that of the whole batch on one process.
        """
        if len(image) != len(text):
            raise ValueError(f"{len(image)} images and {len(text)} texts make no pairs")
        with torch.autocast(image.device.type, enabled=False):
            image, text = _exact(image), _exact(text)
            texts, first = gather(text) if across else (text, 0)
            return _Loss.apply(image, texts, scale, bias, first, self.block or len(image), across, self)

    @abstractmethod
    def measure(self, logits: Logits) -> tuple[Tensor, Slope]:
        """The loss of a process's own pairs, and the derivative of the sum over all processes' losses by each logit."""


class InfoNCE(Contrastive):
    """The paper's symmetric loss: L = 1/2 (mean_i CE(S_i., i) + mean_j CE(S_.j, j)) over logits S (CLIP, Fig. 3).

    A bias would add the same to all logits of a row, so it cancels: its gradient is zero.
    """

    def measure(self, logits: Logits) -> tuple[Tensor, Slope]:
        """CE(S_i., i) = log sum_j exp(S_ij) - S_ii, and likewise by columns; the sums are all that is kept of S."""
        n, first = len(logits.image), logits.first
        row = logits.image.new_empty(n)
        pair = torch.empty_like(row)
        column = row.new_full((len(logits.text),), -torch.inf)
        for start, block in logits.blocks():
            row[start : start + len(block)] = block.logsumexp(1)
            pair[start : start + len(block)] = logits.of_pairs(start, block)
            column = torch.logaddexp(column, block.logsumexp(0))
        if logits.across:  # a column goes on in the rows of other processes
            column = gather(column[None])[0].logsumexp(0)

        def slope(start: int, block: Tensor) -> Tensor:
            """(softmax by rows + softmax by columns) / 2 less 1 at a pair, over n."""
            slopes = (block - row[start : start + len(block), None]).exp_()
            slopes.add_(block.sub_(column).exp_()).mul_(0.5)
            logits.of_pairs(start, slopes).sub_(1)
            return slopes.div_(n)

        return ((row + column[first : first + n]) / 2 - pair).mean(), slope


class Sigmoid(Contrastive):
    """L = -1/N sum_ij log sigmoid(z_ij S_ij), z = 1 for pairs and -1 otherwise (SigLIP, arXiv 2303.15343); not in CLIP.

    Most of the N^2 logits should be negative: it needs a bias, which begins at -10.
    """

    def measure(self, logits: Logits) -> tuple[Tensor, Slope]:
        """-log sigmoid(z S) = softplus(-z S).

        Raises:
            UserError: there is no bias.
        """
        if logits.bias is None:
            raise UserError(
                "the sigmoid loss needs a bias, and the network has none",
                "give the network one: --model.init_args.net.init_args.bias=-10 (and scale 10)",
            )
        n = len(logits.image)

        def against(start: int, block: Tensor) -> Tensor:
            """-z S."""
            logits.of_pairs(start, block).neg_()
            return block

        def slope(start: int, block: Tensor) -> Tensor:
            """-z sigmoid(-z S), over n."""
            return against(start, against(start, block).sigmoid_()).div_(n)

        value = sum(
            (F.softplus(against(start, block)).sum() for start, block in logits.blocks()), logits.scale.new_zeros(())
        )
        return value / n, slope


class _Loss(torch.autograd.Function):
    """A `Contrastive`'s value, with gradients by blocks."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        first: int,
        block: int,
        across: bool,
        loss: Contrastive,
    ) -> Tensor:
        ctx.save_for_backward(image, text, scale, bias)
        ctx.layout = first, block, across
        value, ctx.slope = loss.measure(Logits(image, text, scale, bias, first, block, across))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        image, text, scale, bias = ctx.saved_tensors
        logits = Logits(image, text, scale, bias, *ctx.layout)
        to_image, to_text = torch.empty_like(image), torch.zeros_like(text)
        to_bias = torch.zeros_like(scale)
        with torch.autocast(image.device.type, enabled=False):
            for start, block in logits.blocks():
                slopes = ctx.slope(start, block).mul_(gradient)  # (b, N)
                rows = slice(start, start + len(block))
                to_image[rows] = slopes @ text
                to_text.addmm_(slopes.T, image[rows])
                to_bias += slopes.sum()
            to_scale = (to_image * image).sum()  # the sum over cosines times slopes
        return (
            to_image.mul_(scale),
            to_text.mul_(scale),
            to_scale,
            None if bias is None else to_bias,
            *(None,) * 4,
        )


def gather(x: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes end to end; gradients go back to the process that a row is from, summed over all.

    Args:
        x: (n, ...), as many on every process: their number is not compared, which would cost a message of its own, and
            training batches are shared out evenly (`TrainingStream`). Without torch.distributed it is all there is.

    Returns:
        (N, ...), and the number of this process's first row.
    """
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return x, 0
    return _Gather.apply(x), distributed.get_rank() * len(x)


class _Gather(torch.autograd.Function):
    """all-gather forward, reduce-scatter backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gathered = x.new_empty(distributed.get_world_size() * len(x), *x.shape[1:])
        distributed.all_gather_into_tensor(gathered, x.contiguous())
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        own = gradient.new_empty(len(gradient) // distributed.get_world_size(), *gradient.shape[1:])
        distributed.reduce_scatter_tensor(own, gradient.contiguous())
        return own


def _exact(x: Tensor) -> Tensor:
    """float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
