"""Boxes from maps, and how well they fit: the tightest box of the largest component, intersection over union.

A box is x0, y0, x1, y1 in pixels from the image's upper left corner, x1 and y1 exclusive: the whole of a W×H image is
(0, 0, W, H).
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Literal, NamedTuple, get_args

import numpy as np
from scipy import ndimage

from cutmix.errors import InputError
from cutmix.evaluate.logits import check_finite, real_numbers

Backend = Literal["scipy", "opencv"]
Contours = Literal["largest", "all"]


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return intersection over union, |a ∩ b| / |a ∪ b|, in [0, 1]; 0 where both are empty.

    Args:
        a: (..., 4) boxes.
        b: (..., 4) boxes, of a shape that broadcasts with a's.

    Returns:
        (...) float64.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    inner = sides.clip(0).prod(-1)
    outer = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inner
    return np.divide(inner, outer, out=np.zeros(inner.shape), where=outer > 0)


def best_iou(predicted: np.ndarray, boxes: Sequence[np.ndarray]) -> np.ndarray:
    """Return the IoU of each image's predicted box with the one of its true boxes that it fits best.

    Args:
        predicted: (N, 4); an empty box, such as (0, 0, 0, 0), fits none.
        boxes: N arrays (B, 4), B at least 1.

    Returns:
        (N,) float64.

    Raises:
        InputError: If the counts differ, an image has no box, or one is impossible.
    """
    true = padded_boxes(len(predicted), boxes, "predicted boxes")
    found = real_numbers(predicted, "predicted boxes")
    if found.shape != (len(true), 4):
        raise InputError(f"the predicted boxes have the shape {found.shape}; expected (N, 4): x0, y0, x1, y1")
    _check_possible(found[:, None], "predicted box")
    return box_iou(found[:, None], true).max(1)


def padded_boxes(n: int, boxes: Sequence[np.ndarray], what: str = "maps") -> np.ndarray:
    """Return the true boxes as one array (n, most boxes of an image, 4), the last box of an image repeated.

    Raises:
        InputError: If these are not the boxes of n images, an image has none, or one is impossible.
    """
    if len(boxes) != n:
        raise InputError(f"there are {n} {what}, but boxes of {len(boxes)} images; expected as many")
    each = [_rows_of_four(own, i) for i, own in enumerate(boxes)]
    without = next((i for i, own in enumerate(each) if not len(own)), None)
    if without is not None:
        raise InputError(f"image {without} has no box; expected at least one for each of the {n} images")
    most = max((len(own) for own in each), default=1)
    padded = np.stack([own[np.minimum(np.arange(most), len(own) - 1)] for own in each]) if n else np.empty((0, 1, 4))
    _check_possible(padded, "true box")
    return padded


def _rows_of_four(boxes: np.ndarray, image: int) -> np.ndarray:
    rows = real_numbers(boxes, f"boxes of image {image}")
    if rows.size and (rows.ndim > 2 or rows.shape[-1] != 4):
        raise InputError(f"the boxes of image {image} have the shape {rows.shape}; expected (B, 4): x0, y0, x1, y1")
    return rows.reshape(-1, 4)


def _check_possible(boxes: np.ndarray, what: str) -> None:
    """Refuse boxes (N, B, 4) with corners that are not finite or lie the wrong way round; empty ones are possible."""
    wrong = np.argwhere(~(np.isfinite(boxes).all(-1) & (boxes[..., :2] <= boxes[..., 2:]).all(-1)))
    if len(wrong):
        image, number = wrong[0]
        raise InputError(
            f"image {image} has the {what} {boxes[image, number].tolist()}; "
            "expected finite x0, y0, x1, y1 with x0 ≤ x1 and y0 ≤ y1"
        )


def box_from_map(cam: np.ndarray, threshold: float = 0.15, backend: Backend = "scipy") -> np.ndarray:
    """Return the tightest box round the largest component of ``cam > threshold · max(cam)``.

    Pixels that touch at a corner are connected. The largest component is the one with the most pixels, among equals
    the first from above; with "opencv" the one whose contour encloses the largest area, holes included, so that a ring
    beats a disc of more pixels and a line of one pixel's width has no area at all.

    Args:
        cam: (h, w), finite, of any range; raw or normalised are two definitions of the threshold, as its zero differs.
        threshold: Share of the maximum, in [0, 1).
        backend: "scipy" or "opencv".

    Returns:
        (4,) int64; all 0 where nothing is above the threshold, as in a map without a positive value.

    Raises:
        InputError: If the map, the threshold or the backend is not one of these.

    Source: Yun et al. 2019, appendix B: "the tightest box" round the largest component at 15 % of the CAM's maximum.
    """
    cam = np.asarray(cam)
    if cam.ndim != 2 or not cam.size:
        raise InputError(f"the map has the shape {cam.shape}; expected (height, width)")
    check_finite(cam, "map's values")
    check_thresholds([threshold])
    above = cam > threshold * float(cam.max()) if cam.max() > 0 else np.zeros(cam.shape, dtype=bool)
    if uses_opencv(backend):
        found = contour_boxes(above, "largest")
        return found[0] if len(found) else np.zeros(4, dtype=np.int64)
    label, count = ndimage.label(above, structure=np.ones((3, 3)))
    if not count:
        return np.zeros(4, dtype=np.int64)
    largest = np.bincount(label.ravel())[1:].argmax()
    rows, columns = ndimage.find_objects(label)[largest]
    return np.array([columns.start, rows.start, columns.stop, rows.stop])


def contour_boxes(above: np.ndarray, contours: Contours) -> np.ndarray:
    """Return the tight boxes (C, 4) of the contours that OpenCV traces, or of the one with the largest area."""
    cv2 = _import_opencv()
    outlines = list(cv2.findContours(above.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0])
    if contours == "largest" and outlines:
        outlines = [max(outlines, key=cv2.contourArea)]
    corners = np.array([cv2.boundingRect(outline) for outline in outlines], dtype=np.int64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return corners


def uses_opencv(backend: str) -> bool:
    """Return whether OpenCV is asked for, and see that it is there."""
    if backend not in get_args(Backend):
        raise InputError(f"backend is {backend!r}; expected 'scipy' or 'opencv'")
    return backend == "opencv" and bool(_import_opencv())


def _import_opencv() -> ModuleType:
    try:
        import cv2
    except ImportError:
        raise InputError(
            "backend is 'opencv', but OpenCV is not installed: pip install opencv-python-headless"
        ) from None
    return cv2


def check_thresholds(thresholds: Sequence[float] | np.ndarray) -> None:
    """Refuse thresholds that are no shares of the maximum."""
    if not len(thresholds):
        raise InputError("no threshold is given; expected one or more shares of the maximum in [0, 1)")
    wrong = [float(each) for each in thresholds if not 0 <= each < 1]
    if wrong:
        raise InputError(f"the threshold is {wrong[0]}; expected a share of the maximum in [0, 1)")


# ---- components ----
# The connected components of many maps at every threshold at once, where one labelling a threshold is too slow.

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
