"""Learned position embeddings taken to another grid or to several time steps."""

import torch
from einops import rearrange
from torch import Tensor, nn


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


def tile_positions(positions: Tensor, times: int) -> Tensor:
    """Repeat the positions of one image's patches, (1, s, d), for every time: (1, times * s, d) (ViViT, Sec. 3.4)."""
    return positions.repeat(1, times, 1)
