"""The connected components of many maps at every threshold at once, where one labelling a threshold is too slow.

Every pixel climbs from neighbour to higher neighbour and ends at a local maximum. The pixels of one maximum that lie
above a threshold are connected, because the way up leads through pixels that are higher still; two maxima are connected
below the highest saddle between them. So a component at a threshold is the union of what a few maxima hold, and from
tables of counts and extents of each maximum at each level, merged at the saddles, all components can be read.
"""

from typing import NamedTuple

import numpy as np

_NONE = np.iinfo(np.int32).max


class Components(NamedTuple):
    """Components of the pixels above each level; C of them over all maps and levels.

    Attributes:
        image: Which map, (C,) int64.
        level: T, the component holds pixels above it, (C,) int64 in [0, 254].
        pixels: How many, (C,) int32.
        first: Index of the first pixel in the map, row by row, (C,) int32.
        boxes: Left, top, right, bottom, the last two exclusive, (C, 4) int32.
    """

    image: np.ndarray
    level: np.ndarray
    pixels: np.ndarray
    first: np.ndarray
    boxes: np.ndarray


def find_components(values: np.ndarray, levels: np.ndarray, *, diagonal: bool) -> Components:
    """Find the components of ``levels > T`` for every T from 0 to 254.

    Args:
        values: (n, h, w) floating point, finite: what ``levels`` was made from; it says which way is up where
            levels are equal.
        levels: (n, h, w) uint8, nowhere falling where ``values`` rise.
        diagonal: Whether pixels that touch at a corner are connected.
    """
    _, height, width = levels.shape
    basin, roots = _basins(values, diagonal)
    bounds, counts = _tables(basin, levels, len(roots), width)
    parent = list(range(len(roots)))

    def find(node: int) -> int:
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    for saddle, a, b in _saddles(basin.reshape(levels.shape), levels, len(roots), diagonal):
        a, b = find(a), find(b)
        if a != b:  # connected at every level below the saddle: there, all that b holds goes to a
            parent[b] = a
            np.minimum(bounds[a, :, :saddle], bounds[b, :, :saddle], out=bounds[a, :, :saddle])
            counts[a, :saddle] += counts[b, :saddle]
            counts[b, :saddle] = 0
    row, level = np.nonzero(counts)
    first, last, left, right = bounds[row, :, level].T
    boxes = np.stack([left, first // width, 1 - right, -last // width + 1], axis=1)
    return Components(roots[row] // (height * width), level, counts[row, level], first, boxes)


def _basins(values: np.ndarray, diagonal: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return each pixel's maximum, numbered in the order of the maxima, and the pixels that the maxima are.

    Among equal neighbours the first in the map is up, so that no way goes in a circle.
    """
    highest, itself = values.copy(), np.arange(values.size).reshape(values.shape)
    up = itself.copy()
    _climb(highest, up, values, itself, axis=2)
    if diagonal:  # the highest of three in the highest of three rows
        _climb(highest, up, highest.copy(), up.copy(), axis=1)
    else:
        _climb(highest, up, values, itself, axis=1)
    end = up.ravel()
    while not np.array_equal(higher := end[end], end):
        end = higher
    roots = np.flatnonzero(end == itself.ravel())
    number = np.empty(len(end), dtype=np.int32)
    number[roots] = np.arange(len(roots))
    return number[end], roots


def _climb(highest: np.ndarray, up: np.ndarray, values: np.ndarray, pixels: np.ndarray, *, axis: int) -> None:
    """Let every pixel's highest neighbour so far give way to a higher one, or as high and earlier, along an axis."""
    head = (slice(None),) * axis + (slice(None, -1),)
    tail = (slice(None),) * axis + (slice(1, None),)
    for here, there, beats in ((tail, head, np.greater_equal), (head, tail, np.greater)):
        wins = beats(values[there], highest[here])
        np.copyto(highest[here], values[there], where=wins)
        np.copyto(up[here], pixels[there], where=wins)


def _tables(basin: np.ndarray, levels: np.ndarray, rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what each maximum holds above each level, before any merging.

    Returns:
        Bounds (rows, 4, 255) int32: the least of index, −index, column, −column; and counts (rows, 255) int32.
    """
    cell = basin.astype(np.int64) * 256 + levels.ravel()
    pixel = np.resize(np.arange(levels[0].size, dtype=np.int32), levels.size)
    column = pixel % width
    bounds = np.full((4, rows * 256), _NONE, dtype=np.int32)
    for bound, least in zip(bounds, (pixel, -pixel, column, -column), strict=True):
        np.minimum.at(bound, cell, least)
    counts = np.bincount(cell, minlength=rows * 256).astype(np.int32).reshape(rows, 256)
    descending = bounds.reshape(4, rows, 256)[..., :0:-1]  # a pixel of level v is above v − 1 and all below
    bounds = np.minimum.accumulate(descending, axis=-1)[..., ::-1].swapaxes(0, 1)
    return np.ascontiguousarray(bounds), np.ascontiguousarray(counts[:, :0:-1].cumsum(-1, dtype=np.int32)[:, ::-1])


def _saddles(basin: np.ndarray, levels: np.ndarray, rows: int, diagonal: bool) -> list[tuple[int, int, int]]:
    """Return the highest saddle between each two maxima that touch, as (level, one, other), the highest first."""
    every, head, tail = slice(None), slice(None, -1), slice(1, None)
    steps = [((every, head), (every, tail)), ((head, every), (tail, every))]
    if diagonal:
        steps += [((head, head), (tail, tail)), ((head, tail), (tail, head))]
    found = []
    for here, there in steps:
        a, b = basin[:, *here], basin[:, *there]
        border = np.nonzero(a != b)
        a, b = a[border].astype(np.int64), b[border].astype(np.int64)
        saddle = np.minimum(levels[:, *here][border], levels[:, *there][border])
        found.append((np.minimum(a, b) * rows + np.maximum(a, b)) * 256 + saddle)
    keys = np.sort(np.concatenate(found))
    keys = keys[np.append(keys[1:] >> 8 != keys[:-1] >> 8, True)] if len(keys) else keys
    keys = keys[keys & 255 > 0]
    keys = keys[np.argsort(-(keys & 255), kind="stable")]
    pair = keys >> 8
    return list(zip((keys & 255).tolist(), (pair // rows).tolist(), (pair % rows).tolist(), strict=True))
