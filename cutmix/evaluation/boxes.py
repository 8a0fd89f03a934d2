"""Boxes from maps: intersection over union, the box at one threshold, and MaxBoxAcc and MaxBoxAccV2 over all of them.

A box is x0, y0, x1, y1 in pixels from the image's upper left corner, x1 and y1 exclusive: the whole of a W×H image is
(0, 0, W, H).

For MaxBoxAcc, the connected components of all maps are found at every threshold at once: pixels are grouped by the
maximum that they climb to, and groups are merged at the highest saddle between them. Labelling once per threshold would
be too slow.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from scipy import ndimage

from cutmix.errors import InputError
from cutmix.evaluation.classifier import check_finite, real_numbers


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
    """Return the highest IoU of each image's predicted box with any of its true boxes.

    Args:
        predicted: (N, 4); an empty box, such as (0, 0, 0, 0), overlaps with none.
        boxes: N arrays (B, 4), B at least 1.

    Returns:
        (N,) float64.

    Raises:
        InputError: If the counts differ, an image has no box, or a box is impossible.
    """
    true = padded_boxes(len(predicted), boxes, "predicted boxes")
    found = real_numbers(predicted, "predicted boxes")
    if found.shape != (len(true), 4):
        raise InputError(f"the predicted boxes have the shape {found.shape}; expected (N, 4): x0, y0, x1, y1")
    _check_possible(found[:, None], "predicted box")
    return box_iou(found[:, None], true).max(1)


def padded_boxes(n: int, boxes: Sequence[np.ndarray], what: str = "maps") -> np.ndarray:
    """Return the true boxes as one array (n, B, 4), B the most of any image; an image's last box is repeated.

    Raises:
        InputError: If these are not the boxes of n images, an image has none, or a box is impossible.
    """
    if len(boxes) != n:
        raise InputError(f"there are {n} {what} and boxes of {len(boxes)} images; expected as many")
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
    """Refuse boxes (N, B, 4) with corners that are not finite or in the wrong order; empty boxes are possible."""
    wrong = np.argwhere(~(np.isfinite(boxes).all(-1) & (boxes[..., :2] <= boxes[..., 2:]).all(-1)))
    if len(wrong):
        image, number = wrong[0]
        raise InputError(
            f"image {image} has the {what} {boxes[image, number].tolist()}; "
            "expected finite x0, y0, x1, y1 with x0 ≤ x1 and y0 ≤ y1"
        )


THRESHOLD = 0.15  # of the map's maximum: the paper's


def box_from_map(cam: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """Return the tightest box around the largest component of ``cam > threshold · max(cam)``.

    Pixels that touch at a corner are connected. The largest component is the one with the most pixels; of several, the
    first from above. OpenCV's largest contour, as the benchmark takes it, differs where components have holes or are
    lines of one pixel's width: it encloses holes, and such a line has no area.

    Args:
        cam: (h, w), finite, of any range; raw and normalized maps give two definitions of the threshold, as their
            zeros differ.
        threshold: Share of the maximum, in [0, 1).

    Returns:
        (4,) int64; all 0 where nothing is above the threshold, as in a map without a positive value.

    Raises:
        InputError: If the map or the threshold is out of its range.

    Source: Yun et al. 2019, appendix B: "the tightest box" around the largest component at 15 % of the CAM's maximum.
    """
    cam = np.asarray(cam)
    if cam.ndim != 2 or not cam.size:
        raise InputError(f"the map has the shape {cam.shape}; expected (height, width)")
    check_finite(cam, "map's values")
    check_thresholds([threshold])
    above = cam > threshold * float(cam.max()) if cam.max() > 0 else np.zeros(cam.shape, dtype=bool)
    label, count = ndimage.label(above, structure=np.ones((3, 3)))
    if not count:
        return np.zeros(4, dtype=np.int64)
    largest = np.bincount(label.ravel())[1:].argmax()
    rows, columns = ndimage.find_objects(label)[largest]
    return np.array([columns.start, rows.start, columns.stop, rows.stop])


def check_thresholds(thresholds: Sequence[float] | np.ndarray) -> None:
    """Raise an InputError if there are no thresholds, or one is not a share of the maximum in [0, 1)."""
    if not len(thresholds):
        raise InputError("no threshold is given; expected one or more shares of the maximum in [0, 1)")
    wrong = [float(each) for each in thresholds if not 0 <= each < 1]
    if wrong:
        raise InputError(f"the threshold is {wrong[0]}; expected a share of the maximum in [0, 1)")


Contours = Literal["largest", "all"]

_BATCH = 1 << 17  # pixels of the maps in a batch: few enough to stay in the cache


class MaxBoxAccuracy(NamedTuple):
    """The accuracy at the best threshold.

    Attributes:
        value: Mean of ``accuracies``, per cent.
        accuracies: Per cent, one for each IoU, each at its own threshold.
        thresholds: Those thresholds, as a share of the map's maximum.
        hits: Which images are right at them, (number of IoUs, N) bool.
    """

    value: float
    accuracies: tuple[float, ...]
    thresholds: tuple[float, ...]
    hits: np.ndarray


def max_box_accuracy(
    maps: np.ndarray,
    boxes: Sequence[np.ndarray],
    iou: float | Sequence[float] = (0.5,),
    contours: Contours = "largest",
    *,
    thresholds: Sequence[float] | None = None,
) -> MaxBoxAccuracy:
    """Return MaxBoxAcc: max over τ of the share of images whose box at threshold τ fits a true box.

    With ``contours="all"`` and ``iou=(0.3, 0.5, 0.7)`` it is MaxBoxAccV2: the best of all outer and inner contours
    counts, each IoU has its own τ, and the accuracies are averaged. The threshold is chosen on the evaluated images.

    As in the benchmark, a map is cut to 8 bits, the foreground is what exceeds ⌊τ · max⌋, a box is right at an IoU of δ
    or more, and predicted boxes are one pixel larger than tight ones to the right and below, inside the image. Only the
    largest contour differs: here it is the component with the most pixels, there the contour that encloses the largest
    area, with its holes.

    Args:
        maps: (N, h, w) in [0, 1], normalized so that the minimum of each is 0 and the maximum 1.
        boxes: N arrays (B, 4) of true boxes in the maps' pixels, whole numbers for the benchmark's results.
        iou: The least IoU that counts, δ, or several, in (0, 1].
        contours: "largest" or "all".
        thresholds: τ, in [0, 1); by default 0, 0.001, …, 0.999.

    Raises:
        InputError: If an argument is out of its range, or the counts differ.

    Source: Choe et al. 2020; with "all", equal to ``BoxEvaluator`` of clovaai/wsolevaluation.
    """
    if contours not in get_args(Contours):
        raise InputError(f"contours is {contours!r}; expected 'largest' or 'all'")
    least = np.atleast_1d(iou).tolist()
    if not least or not all(0 < each <= 1 for each in least):
        raise InputError(f"iou is {iou}; expected one or more numbers in (0, 1]")
    tables, peaks = level_iou(maps, boxes, (contours,))
    return best_thresholds(tables[contours], peaks, least, thresholds)


def level_iou(
    maps: np.ndarray, boxes: Sequence[np.ndarray], contours: Sequence[Contours] = get_args(Contours)
) -> tuple[dict[Contours, np.ndarray], np.ndarray]:
    """Return the IoU of every map's box at each of the thresholds that differ in 8 bits.

    Args:
        maps: (N, h, w) in [0, 1].
        boxes: N arrays (B, 4).
        contours: "largest" for the largest component's box, "all" for the best of all contours'.

    Returns:
        For each kind of contours (N, 255) float64, column T for pixels whose 8 bits exceed T; and the maximum of each
        map in 8 bits, (N,) int64.

    Raises:
        InputError: If an argument is out of its range, or the counts differ.
    """
    maps = np.asarray(maps)
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise InputError(f"the maps have the shape {maps.shape}; expected (N, height, width)")
    if not np.issubdtype(maps.dtype, np.floating) or not (maps.min(initial=0) >= 0 and maps.max(initial=0) <= 1):
        raise InputError("the maps are not numbers in [0, 1]; normalize each by its minimum and maximum")
    n, height, width = maps.shape
    true = padded_boxes(n, boxes)
    outside = np.flatnonzero(((true < 0) | (true > (width, height, width, height))).any((1, 2)))
    if len(outside):
        raise InputError(
            f"a box of image {outside[0]} reaches outside its map of {width}×{height}; expected boxes in its pixels"
        )
    tables: dict[Contours, np.ndarray] = {kind: np.zeros((n, 255)) for kind in contours}
    peaks = np.empty(n, dtype=np.int64)
    batch = max(1, _BATCH // (height * width))
    for start in range(0, n, batch):
        part = slice(start, start + batch)
        levels = (maps[part].astype(np.float64) * 255).astype(np.uint8)
        peaks[part] = levels.max((1, 2))
        for kind, table in _scores(maps[part], levels, true[part], contours).items():
            table[peaks[part] == 0] = box_iou(np.array([0, 0, 1, 1]), true[part]).max(1)[peaks[part] == 0, None]
            tables[kind][part] = table  # where nothing is above, the benchmark has a box of one pixel in the corner
    return tables, peaks


def center_iou(boxes: Sequence[np.ndarray], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the results of ``level_iou`` for maps that are one Gaussian in the centre, σ a quarter of each side.

    It depends on no image, so its accuracy is the floor of the metric. Its boxes are centred and have the aspect ratio
    of the image; there is one of every size.

    Args:
        boxes: N arrays (B, 4).
        size: Height and width.

    Source: the baseline "Center" of Choe et al. 2020.
    """
    height, width = size
    y, x = (np.linspace(-2, 2, side) for side in size)
    bell = np.exp(-(y[:, None] ** 2 + x**2) / 2)
    bell = (bell - bell.min()) / max(bell.max() - bell.min(), np.finfo(float).tiny)
    levels = (bell * 255).astype(np.uint8)
    found = find_components(bell[None], levels[None], diagonal=True)
    true = padded_boxes(len(boxes), boxes, "images")
    table, every = np.zeros((len(boxes), 255)), np.arange(len(boxes))
    for level, box in zip(found.level, found.boxes, strict=True):
        table[:, level] = _enlarged_iou(np.tile(box, (len(boxes), 1)), true, every, width, height)
    return table, np.full(len(boxes), int(levels.max()))


def best_thresholds(
    table: np.ndarray, peaks: np.ndarray, iou: Sequence[float], thresholds: Sequence[float] | np.ndarray | None = None
) -> MaxBoxAccuracy:
    """Choose, for each IoU, the threshold with the most hits, and the lowest of several; see ``max_box_accuracy``.

    Args:
        table: (N, 255) as ``level_iou`` returns it.
        peaks: (N,) as ``level_iou`` returns it.
        iou: The least IoUs that count.
        thresholds: In [0, 1); by default 0, 0.001, …, 0.999.

    Raises:
        InputError: If there are no maps or a threshold is out of its range.
    """
    thresholds = np.arange(0, 1, 0.001) if thresholds is None else np.asarray(thresholds)
    check_thresholds(thresholds)
    if not len(table):
        raise InputError("there are no maps; expected at least one")
    accuracies, chosen, hits = [], [], []
    for least in iou:
        counts = np.zeros(len(thresholds), dtype=np.int64)
        for peak in np.unique(peaks):
            at_level = (table[peaks == peak] >= least).sum(0)
            counts += at_level[(thresholds * peak).astype(np.int64)]
        best = int(counts.argmax())
        right = table[np.arange(len(table)), (thresholds[best] * peaks).astype(np.int64)] >= least
        accuracies.append(100 * int(counts[best]) / len(table))
        chosen.append(float(thresholds[best]))
        hits.append(right)
    return MaxBoxAccuracy(float(np.mean(accuracies)), tuple(accuracies), tuple(chosen), np.stack(hits))


def _scores(
    maps: np.ndarray, levels: np.ndarray, true: np.ndarray, contours: Sequence[Contours]
) -> dict[Contours, np.ndarray]:
    """Return tables (n, 255) from the components at all levels."""
    n, height, width = levels.shape
    found = find_components(maps, levels, diagonal=True)
    iou = _enlarged_iou(found.boxes, true, found.image, width, height)
    cell = found.image * 255 + found.level
    tables: dict[Contours, np.ndarray] = {kind: np.zeros(n * 255) for kind in contours}
    if "largest" in contours:
        order = np.lexsort((found.first, -found.pixels, cell))
        order = order[np.diff(cell[order], prepend=-1) > 0]
        tables["largest"][cell[order]] = iou[order]
    if "all" in contours:
        np.maximum.at(tables["all"], cell, iou)
        holes = find_components(-maps, 255 - levels, diagonal=False)  # 255 − v > 254 − T where v is not above T
        edges = np.array([0, 0, width, height])
        inner = (holes.boxes != edges).all(1)
        image, level = holes.image[inner], 254 - holes.level[inner]
        outline = holes.boxes[inner] + np.array([-1, -1, 1, 1])  # a hole's contour is the pixels around it
        np.maximum.at(tables["all"], image * 255 + level, _enlarged_iou(outline, true, image, width, height))
    return {kind: table.reshape(n, 255) for kind, table in tables.items()}


def _enlarged_iou(found: np.ndarray, true: np.ndarray, image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return the best IoU of tight boxes, enlarged as the benchmark does, with the true ones of their images."""
    enlarged = np.concatenate([found[:, :2], np.minimum(found[:, 2:] + 1, (width, height))], axis=1)
    iou = np.zeros(len(found))
    for k in range(true.shape[1]):
        np.maximum(iou, box_iou(enlarged, true[image, k]), out=iou)
    return iou


# ---- components at every level ----

_NONE = np.iinfo(np.int32).max


class Components(NamedTuple):
    """Components of the pixels above each level; C of them over all maps and levels."""

    image: np.ndarray  # index of the map, (C,) int64
    level: np.ndarray  # T, where the component is of pixels above T, (C,) int64 in [0, 254]
    pixels: np.ndarray  # number of pixels, (C,) int32
    first: np.ndarray  # index of the first pixel in the map, row by row, (C,) int32
    boxes: np.ndarray  # left, top, right, bottom, the last two exclusive, (C, 4) int32


def find_components(values: np.ndarray, levels: np.ndarray, *, diagonal: bool) -> Components:
    """Find the components of ``levels > T`` for every T from 0 to 254.

    ``levels`` (n, h, w) uint8 is a non-decreasing function of the floating-point ``values``, which order pixels of
    equal levels. With ``diagonal``, pixels that touch at a corner are connected.
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
        if a != b:  # connected at every level below the saddle: there, b is merged into a
            parent[b] = a
            np.minimum(bounds[a, :, :saddle], bounds[b, :, :saddle], out=bounds[a, :, :saddle])
            counts[a, :saddle] += counts[b, :saddle]
            counts[b, :saddle] = 0
    row, level = np.nonzero(counts)
    first, last, left, right = bounds[row, :, level].T
    boxes = np.stack([left, first // width, 1 - right, -last // width + 1], axis=1)
    return Components(roots[row] // (height * width), level, counts[row, level], first, boxes)


def _basins(values: np.ndarray, diagonal: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of each pixel's maximum, in the order of the maxima, and the pixels of the maxima.

    Of equal neighbours the first in the map is the higher one, so that no path is a circle.
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
    """Replace each pixel's highest neighbour so far by a higher one along an axis, or an equal and earlier one."""
    head = (slice(None),) * axis + (slice(None, -1),)
    tail = (slice(None),) * axis + (slice(1, None),)
    for here, there, beats in ((tail, head, np.greater_equal), (head, tail, np.greater)):
        wins = beats(values[there], highest[here])
        np.copyto(highest[here], values[there], where=wins)
        np.copyto(up[here], pixels[there], where=wins)


def _tables(basin: np.ndarray, levels: np.ndarray, rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return bounds and counts of each maximum's pixels above each level, before any merging.

    Bounds (rows, 4, 255) int32 are the least of index, −index, column, −column; counts are (rows, 255) int32.
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
    """Return the highest saddle between each two adjacent maxima as (level, one, other), the highest first."""
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
