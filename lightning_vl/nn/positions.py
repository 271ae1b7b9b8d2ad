"""How tokens know where they are (the Transformer, Sec. 3.5; ViT, App. D.4), and how positions go to other grids and times."""

from abc import ABC, abstractmethod

import torch
from einops import rearrange
from torch import Tensor, nn

from lightning_vl.nn.attention import Attention, RelativeAttention
from lightning_vl.nn.initialisation import learned_positions

Grid = tuple[int, int]  # rows and columns of the patches


class Positions(ABC):
    """A kind of position: what is added to the tokens ahead of the encoder, and how its blocks attend."""

    @abstractmethod
    def embedding(self, grid: Grid, dim: int, class_row: bool) -> nn.Parameter | nn.Module | None:
        """What is added to the tokens, (1, n, d), or a module that gives it when called; None for nothing.

        Args:
            grid: rows and columns of the patches.
            dim: width d of the tokens.
            class_row: whether a class token stands ahead of the patches.
        """

    def attention(self, grid: Grid, class_row: bool, dim: int, heads: int) -> Attention:
        """A block's attention."""
        return Attention(dim, heads)


class LearnedPositions(Positions):
    """1-D: one learned vector a token, its place in the grid left to be learned; the paper's default."""

    def embedding(self, grid: Grid, dim: int, class_row: bool) -> nn.Parameter:
        return learned_positions(_tokens(grid, class_row), dim)


class NoPositions(Positions):
    """None: a bag of patches."""

    def embedding(self, grid: Grid, dim: int, class_row: bool) -> None:
        return None


class TwoDimensionalPositions(Positions):
    """2-D: a learned table over x and one over y, of d / 2 each and concatenated in this order."""

    def embedding(self, grid: Grid, dim: int, class_row: bool) -> nn.Module:
        return PositionTables(grid, dim, class_row)


class SinCosPositions(Positions):
    """2-D and fixed: sines and cosines of x, then of y, at d / 4 wavelengths each (as in big_vision; not in the paper).

    The class token's row is zero. The table is kept with the weights, frozen.
    """

    def embedding(self, grid: Grid, dim: int, class_row: bool) -> nn.Parameter:
        return nn.Parameter(sincos_positions(grid, dim, class_row), requires_grad=False)


class RelativePositions(Positions):
    """Relative: 1-D offsets between tokens as extra logits of attention, in every block; nothing ahead of the encoder.

    The class token counts as the token before the first patch.
    """

    def embedding(self, grid: Grid, dim: int, class_row: bool) -> None:
        return None

    def attention(self, grid: Grid, class_row: bool, dim: int, heads: int) -> Attention:
        return RelativeAttention(_tokens(grid, class_row), dim, heads)


class PositionTables(nn.Module):
    """See :class:`TwoDimensionalPositions`.

    Args:
        grid: rows and columns of the patches.
        dim: width d of the tokens.
        class_row: whether the class token has a vector of its own ahead of the patches.
    """

    def __init__(self, grid: Grid, dim: int, class_row: bool) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"dim {dim} has no halves for x and y")
        self.columns = learned_positions(grid[1], dim // 2)
        self.rows = learned_positions(grid[0], dim // 2)
        self.class_row = learned_positions(1, dim) if class_row else None

    def forward(self) -> Tensor:
        """(1, n, d)."""
        height, width = self.rows.shape[1], self.columns.shape[1]
        x, y = self.columns.repeat(1, height, 1), self.rows.repeat_interleave(width, dim=1)  # (1, h w, d / 2) each
        patches = torch.cat([x, y], dim=-1)
        return patches if self.class_row is None else torch.cat([self.class_row, patches], dim=1)


def sincos_positions(grid: Grid, dim: int, class_row: bool) -> Tensor:
    """The fixed table of :class:`SinCosPositions`, (1, n, d)."""
    if dim % 4 or dim < 8:
        raise ValueError(f"dim {dim} has no quarters of two or more for the sines and cosines of x and y")
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    frequencies = 10_000 ** -torch.linspace(0, 1, dim // 4)
    x, y = x.reshape(-1, 1) * frequencies, y.reshape(-1, 1) * frequencies  # (h w, d / 4) each
    patches = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=-1)[None]
    return torch.cat([torch.zeros(1, 1, dim), patches], dim=1) if class_row else patches


def sinusoids(positions: Tensor, dim: int) -> Tensor:
    """Fixed positions of any length ("Attention Is All You Need", Sec. 3.5).

    PE(pos, 2 i) = sin(pos / 10000^(2 i / d)) and PE(pos, 2 i + 1) = cos(of the same): sines and cosines alternate, as
    the paper writes them (its code puts all sines first).

    Args:
        positions: (t,) the place of each token in its sequence, from 0.
        dim: width d; even.

    Returns:
        (t, d).
    """
    if dim % 2:
        raise ValueError(f"dim {dim} has no pairs of a sine and a cosine")
    frequencies = 10_000 ** -(torch.arange(0, dim, 2, device=positions.device) / dim)  # (d / 2,)
    angles = positions[:, None] * frequencies  # (t, d / 2)
    return rearrange([angles.sin(), angles.cos()], "two t i -> t (i two)")


def _tokens(grid: Grid, class_row: bool) -> int:
    return int(class_row) + grid[0] * grid[1]


def resize_positions(positions: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Interpolate the positions of a grid of patches for another grid (ViT, Sec. 3.2).

    Bilinear with aligned corners, which is what the official code's ``scipy.ndimage.zoom(order=1)`` computes. Rows
    ahead of the grid (a class token's) are left as they are.

    Args:
        positions: (1, n, d) with n = rows * columns, or one more for the class token, which comes first.
        grid: rows and columns of the patches that ``positions`` was learned for.
        new_grid: rows and columns wanted.

    Returns:
        (1, n', d).
    """
    patches = grid[0] * grid[1]
    ahead = positions.shape[1] - patches
    if ahead not in (0, 1):
        raise ValueError(f"{positions.shape[1]} positions are not a {grid[0]} x {grid[1]} grid with or without class")
    if grid == new_grid:
        return positions
    image = rearrange(positions[:, ahead:], "one (h w) d -> one d h w", h=grid[0])
    image = nn.functional.interpolate(image, new_grid, mode="bilinear", align_corners=True)
    return torch.cat([positions[:, :ahead], rearrange(image, "one d h w -> one (h w) d")], dim=1)


def resize_line(positions: Tensor, length: int) -> Tensor:
    """Interpolate one axis' table of :class:`PositionTables` as :func:`resize_positions` does: (1, n, d) to (1, n', d)."""
    if positions.shape[1] == length:
        return positions
    line = nn.functional.interpolate(positions.mT, length, mode="linear", align_corners=True)
    return line.mT


def tile_positions(positions: Tensor, times: int) -> Tensor:
    """Repeat the positions of one image's patches, (1, s, d), for every time: (1, times * s, d) (ViViT, Sec. 3.4)."""
    return positions.repeat(1, times, 1)
