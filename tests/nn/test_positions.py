import pytest
import torch
from einops import rearrange
from scipy.ndimage import zoom

from lightning_vl.nn.positions import resize_positions, tile_positions


def test_linear_ramp_stays_linear() -> None:
    """Corners that are not aligned would bend a ramp at the borders."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 4), torch.linspace(0, 1, 4), indexing="ij")
    ramp = rearrange(torch.stack([rows, 3 * columns - rows]), "d h w -> 1 (h w) d")
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 7), torch.linspace(0, 1, 5), indexing="ij")
    expected = rearrange(torch.stack([rows, 3 * columns - rows]), "d h w -> 1 (h w) d")
    torch.testing.assert_close(resize_positions(ramp, (4, 4), (7, 5)), expected, atol=1e-6, rtol=0)


def test_class_row_is_left_alone() -> None:
    """Interpolated along with the patches it would shift all of them by one."""
    positions = torch.randn(1, 17, 8)
    resized = resize_positions(positions, (4, 4), (6, 6))
    assert resized.shape == (1, 37, 8)
    assert torch.equal(resized[:, 0], positions[:, 0])
    assert torch.equal(resized[:, 1:], resize_positions(positions[:, 1:], (4, 4), (6, 6)))


def test_equal_grids_change_nothing() -> None:
    """Not even by rounding."""
    positions = torch.randn(1, 17, 8)
    assert torch.equal(resize_positions(positions, (4, 4), (4, 4)), positions)


def test_equals_the_official_zoom() -> None:
    """The official code resizes with scipy's zoom of order 1."""
    positions = torch.randn(1, 16, 8)
    grid = positions.reshape(4, 4, 8).numpy()
    expected = torch.from_numpy(zoom(grid, (7 / 4, 7 / 4, 1), order=1)).reshape(1, 49, 8)
    torch.testing.assert_close(resize_positions(positions, (4, 4), (7, 7)), expected, atol=1e-6, rtol=0)


def test_wrong_grid_is_refused() -> None:
    """Positions of another model would be reshaped into nonsense."""
    with pytest.raises(ValueError, match="not a 4 x 4 grid"):
        resize_positions(torch.randn(1, 20, 8), (4, 4), (6, 6))


def test_tiling_repeats_the_whole_image_at_each_time() -> None:
    """Repeating each patch instead would give all patches of a time the same few positions."""
    positions = torch.randn(1, 4, 8)
    tiled = rearrange(tile_positions(positions, 3), "1 (t s) d -> t s d", t=3)
    assert all(torch.equal(one, positions[0]) for one in tiled)
