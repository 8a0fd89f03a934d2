"""The components at all levels against scipy's labelling, one level at a time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from cutmix.evaluation.boxes import find_components


def smooth_maps(n: int, grid: int, side: int) -> np.ndarray:
    """Return maps like CAMs: random on a coarse grid, interpolated, between 0 and 1."""
    generator = torch.Generator().manual_seed(grid)
    maps = F.interpolate(torch.randn(n, 1, grid, grid, generator=generator), (side, side), mode="bicubic")[:, 0]
    maps = maps - maps.amin((1, 2), keepdim=True)
    return (maps / maps.amax((1, 2), keepdim=True)).double().numpy()


def labelled(levels: np.ndarray, level: int, diagonal: bool) -> list[tuple[int, ...]]:
    """Return pixels, first pixel and box of each component, as scipy finds them."""
    label, count = ndimage.label(levels > level, structure=np.ones((3, 3)) if diagonal else None)
    found = []
    for k, (rows, columns) in enumerate(ndimage.find_objects(label), 1):
        pixels = np.flatnonzero(label == k)
        found.append((len(pixels), int(pixels[0]), columns.start, rows.start, columns.stop, rows.stop))
    assert len(found) == count
    return sorted(found)


def assert_labelled(values: np.ndarray, levels: np.ndarray, diagonal: bool) -> None:
    found = find_components(values, levels, diagonal=diagonal)
    rows = np.column_stack([found.pixels, found.first, found.boxes])
    for i in range(len(levels)):
        for level in range(255):
            ours = rows[(found.image == i) & (found.level == level)]
            assert sorted(map(tuple, ours.tolist())) == labelled(levels[i], level, diagonal)


@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("grid", [3, 7])
def test_smooth_maps(grid: int, diagonal: bool) -> None:
    maps = smooth_maps(2, grid, 28)
    assert_labelled(maps, (maps * 255).astype(np.uint8), diagonal)


@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("shape", [(3, 12, 9), (2, 1, 14), (2, 14, 1), (3, 1, 1), (2, 2, 2)])
def test_plateaus_and_odd_shapes(shape: tuple[int, ...], diagonal: bool) -> None:
    levels = np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8) * 100
    assert_labelled(levels.astype(np.float32), levels, diagonal)


@pytest.mark.parametrize("diagonal", [True, False])
def test_noise_and_constants(diagonal: bool) -> None:
    noise = np.random.default_rng(0).random((3, 11, 13)).astype(np.float32)
    noise[1], noise[2] = 0, 1
    assert_labelled(noise, (noise.astype(np.float64) * 255).astype(np.uint8), diagonal)


def test_a_spiral_is_one_component_whose_way_up_is_long() -> None:
    levels = np.zeros((1, 21, 21), dtype=np.uint8)
    y, x, length = 10, 10, 1
    for turn in range(18):
        for _ in range(length):
            levels[0, y, x] = 200
            y, x = y + (0, 1, 0, -1)[turn % 4], x + (1, 0, -1, 0)[turn % 4]
        length += 1 if turn % 2 else 0
    found = find_components(levels.astype(np.float64), levels, diagonal=False)
    assert_labelled(levels.astype(np.float64), levels, False)
    assert len(found.level) == 200
