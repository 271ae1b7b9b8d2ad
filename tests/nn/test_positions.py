import math

import pytest
import torch
from einops import rearrange
from scipy.ndimage import zoom

from lightning_vl.nn.positions import (
    PositionTables,
    resize_line,
    resize_positions,
    sincos_positions,
    tile_positions,
)


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


def test_two_tables_give_x_and_then_y() -> None:
    """Patches of one column share the first half, of one row the second; swapped, a grid that is no square would mix them."""
    tables = PositionTables((2, 3), dim=8, class_row=True)
    out = tables()
    assert out.shape == (1, 7, 8)
    assert torch.equal(out[:, :1], tables.class_row)
    grid = rearrange(out[0, 1:], "(h w) d -> h w d", h=2)
    for row in range(2):
        for column in range(3):
            assert torch.equal(grid[row, column], torch.cat([tables.columns[0, column], tables.rows[0, row]]))
    assert PositionTables((2, 3), dim=8, class_row=False)().shape == (1, 6, 8)
    with pytest.raises(ValueError, match="no halves"):
        PositionTables((2, 3), dim=7, class_row=True)


def test_a_table_is_resized_along_its_axis() -> None:
    """A ramp stays a ramp; the same length, the same numbers."""
    ramp = torch.linspace(0, 1, 4)[None, :, None]
    torch.testing.assert_close(resize_line(ramp, 7), torch.linspace(0, 1, 7)[None, :, None], atol=1e-6, rtol=0)
    table = torch.randn(1, 4, 8)
    assert torch.equal(resize_line(table, 4), table)


def test_sines_and_cosines_of_each_patch() -> None:
    """Against the formula written out for one patch after the other; the class token's row is zero."""
    table = sincos_positions((2, 3), dim=12, class_row=True)
    assert table.shape == (1, 7, 12)
    assert not table[0, 0].any()
    for row in range(2):
        for column in range(3):
            wavelengths = [10_000 ** (k / 2) for k in range(3)]
            expected = [f(v / w) for v in (column, row) for f in (math.sin, math.cos) for w in wavelengths]
            torch.testing.assert_close(table[0, 1 + 3 * row + column], torch.tensor(expected), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="no quarters"):
        sincos_positions((2, 3), dim=10, class_row=False)
