"""Sequences of different lengths laid end to end, so that nothing is computed on padding.

A batch of texts is one line of t tokens. Linear layers, norms and activations work on (t, d) as it is; attention alone
needs to know which tokens belong together, and is given the padded form (b, n, ...) for its products.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor


class Packing(NamedTuple):
    """Where the sequences of a batch lie in their line of tokens.

    Attributes:
        slots: (b, n) for each place of the padded form the number of its token in the line; padding names token 0.
        places: (t,) for each token of the line its place in the padded form, b n + i for the i-th of sequence b.
        mask: (b, n) True where there is a token; None where all sequences have the same length.
    """

    slots: Tensor
    places: Tensor
    mask: Tensor | None

    @property
    def longest(self) -> int:
        """n, tokens of the longest sequence."""
        return self.slots.shape[1]

    @property
    def positions(self) -> Tensor:
        """(t,) the place of each token in its own sequence, from 0."""
        return self.places % self.longest

    @property
    def first(self) -> Tensor:
        """(b,) the number of each sequence's first token in the line."""
        return self.slots[:, 0]

    @property
    def last(self) -> Tensor:
        """(b,) the number of each sequence's last token in the line."""
        if self.mask is None:
            return self.slots[:, -1]
        return self.slots.gather(1, self.mask.sum(1, keepdim=True) - 1).squeeze(1)

    def pad(self, x: Tensor) -> Tensor:
        """(t, ...) to (b, n, ...); padding holds what token 0 holds."""
        if self.mask is None:
            return x.view(*self.slots.shape, *x.shape[1:])
        return x[self.slots]

    def unpad(self, x: Tensor) -> Tensor:
        """(b, n, ...) to (t, ...)."""
        flat = rearrange(x, "b n ... -> (b n) ...")
        return flat if self.mask is None else flat[self.places]


def pack(lengths: Tensor) -> Packing:
    """The packing of sequences of these lengths.

    Args:
        lengths: (b,) tokens of each, at least one.
    """
    if not len(lengths) or int(lengths.min()) < 1:
        raise ValueError(f"every sequence has at least one token, not {lengths.tolist()}")
    inside = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]  # (b, n)
    places = inside.flatten().nonzero().squeeze(1)
    slots = torch.zeros_like(inside, dtype=torch.long)
    slots[inside] = torch.arange(len(places), device=lengths.device)
    return Packing(slots, places, None if bool(inside.all()) else inside)


def chunks(token_ids: Tensor, packing: Packing, size: int) -> list[tuple[Tensor, Packing]]:
    """The sequences of a line in groups, each a line of its own.

    Args:
        token_ids: (t,).
        packing: where the b sequences lie.
        size: sequences of a group; the last one may have fewer.
    """
    first, last = packing.first, packing.last
    lengths = last - first + 1
    groups = []
    for start in range(0, len(first), size):
        end = min(start + size, len(first))
        groups.append((token_ids[int(first[start]) : int(last[end - 1]) + 1], pack(lengths[start:end])))
    return groups
