"""MaxBoxAcc and MaxBoxAccV2: how often a box from the map fits at the threshold that is best for the whole set."""

from collections.abc import Sequence
from typing import NamedTuple, get_args

import numpy as np

from cutmix.errors import InputError
from cutmix.evaluate.boxes import (
    Backend,
    Contours,
    box_iou,
    check_thresholds,
    contour_boxes,
    find_components,
    padded_boxes,
    uses_opencv,
)

_BATCH = 1 << 17  # pixels of the maps that are taken at a time: few enough to stay in the cache


class MaxBoxAccuracy(NamedTuple):
    """The accuracy at the best threshold.

    Attributes:
        value: Mean of ``accuracies``, per cent.
        accuracies: Per cent, one for each IoU, each at a threshold of its own.
        thresholds: Those thresholds, as a share of the map's maximum.
        hits: Which images are right there, (number of IoUs, N) bool.
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
    backend: Backend = "scipy",
    thresholds: Sequence[float] | None = None,
) -> MaxBoxAccuracy:
    """Return MaxBoxAcc: max over τ of the share of images whose box at threshold τ fits a true box.

    With ``contours="all"`` and ``iou=(0.3, 0.5, 0.7)`` it is MaxBoxAccV2: the best of all outer and inner contours
    counts, every IoU has a τ of its own, and the accuracies are averaged. The threshold is chosen on what is measured.

    As in the benchmark, a map is cut to 8 bits, the foreground is what exceeds ⌊τ · max⌋, a box is right at an IoU of δ
    or more, and predicted boxes are one pixel larger than tight ones to the right and below, inside the image. Only the
    largest contour differs by backend: "scipy" takes the one with the most pixels, "opencv" the benchmark's.

    Args:
        maps: (N, h, w) in [0, 1], normalised so that their least value is 0 and their greatest 1.
        boxes: N arrays (B, 4) of true boxes in the maps' pixels, whole numbers for the benchmark's figures.
        iou: The least IoU that counts, δ, or several.
        contours: "largest" or "all".
        backend: "scipy" evaluates all thresholds at once; "opencv" traces the contours at each distinct one.
        thresholds: τ, in [0, 1); 0, 0.001, …, 0.999 by default.

    Raises:
        InputError: If counts, ranges or names are wrong.

    Source: Choe et al. 2020; equal to ``BoxEvaluator`` of clovaai/wsolevaluation.
    """
    if contours not in get_args(Contours):
        raise InputError(f"contours is {contours!r}; expected 'largest' or 'all'")
    least = np.atleast_1d(iou).tolist()
    if not least or not all(0 < each <= 1 for each in least):
        raise InputError(f"iou is {iou}; expected one or more numbers in (0, 1]")
    tables, peaks = level_iou(maps, boxes, (contours,), backend=backend)
    return best_thresholds(tables[contours], peaks, least, thresholds)


def level_iou(
    maps: np.ndarray,
    boxes: Sequence[np.ndarray],
    contours: Sequence[Contours] = get_args(Contours),
    *,
    backend: Backend = "scipy",
) -> tuple[dict[Contours, np.ndarray], np.ndarray]:
    """Return the IoU of every map's box at each of the thresholds that differ in 8 bits.

    Args:
        maps: (N, h, w) in [0, 1].
        boxes: N arrays (B, 4).
        contours: "largest" for the largest component's box, "all" for the best of all contours'.
        backend: "scipy" or "opencv".

    Returns:
        For each kind of contours (N, 255) float64, column T for pixels whose 8 bits exceed T; and the greatest value
        of each map in 8 bits, (N,) int64.

    Raises:
        InputError: If counts or ranges are wrong.
    """
    maps = np.asarray(maps)
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise InputError(f"the maps have the shape {maps.shape}; expected (N, height, width)")
    if not np.issubdtype(maps.dtype, np.floating) or not (maps.min(initial=0) >= 0 and maps.max(initial=0) <= 1):
        raise InputError("the maps are not numbers in [0, 1]; normalise each by its least and greatest value")
    n, height, width = maps.shape
    true = padded_boxes(n, boxes)
    outside = np.flatnonzero(((true < 0) | (true > (width, height, width, height))).any((1, 2)))
    if len(outside):
        raise InputError(
            f"a box of image {outside[0]} reaches outside its map of {width}×{height}; expected boxes in its pixels"
        )
    tables: dict[Contours, np.ndarray] = {kind: np.zeros((n, 255)) for kind in contours}
    peaks = np.empty(n, dtype=np.int64)
    score = _opencv_scores if uses_opencv(backend) else _scores
    batch = max(1, _BATCH // (height * width))
    for start in range(0, n, batch):
        part = slice(start, start + batch)
        levels = (maps[part].astype(np.float64) * 255).astype(np.uint8)
        peaks[part] = levels.max((1, 2))
        for kind, table in score(maps[part], levels, true[part], contours).items():
            table[peaks[part] == 0] = box_iou(np.array([0, 0, 1, 1]), true[part]).max(1)[peaks[part] == 0, None]
            tables[kind][part] = table  # where nothing is above, the benchmark has a box of one pixel in the corner
    return tables, peaks


def center_iou(boxes: Sequence[np.ndarray], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return what ``level_iou`` gives where every map is one Gaussian in the centre, σ a quarter of each side.

    It looks at no image: the accuracy that it has is the floor under a measured one. Its boxes are centred and have
    the image's shape; one of every size is among them.

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
    """Choose, for each IoU, the threshold with the most hits, among equals the lowest; see ``max_box_accuracy``.

    Args:
        table: (N, 255) as ``level_iou`` returns it.
        peaks: (N,) as ``level_iou`` returns it.
        iou: The least IoUs that count.
        thresholds: In [0, 1); 0, 0.001, …, 0.999 by default.

    Raises:
        InputError: If there are no maps or a threshold is out of its range.
    """
    thresholds = np.arange(0, 1, 0.001) if thresholds is None else np.asarray(thresholds)
    check_thresholds(thresholds)
    if not len(table):
        raise InputError("there are no maps, so nothing can be measured")
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
    """Fill tables (n, 255) from the components at all levels."""
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
        outline = holes.boxes[inner] + np.array([-1, -1, 1, 1])  # a hole's contour is the pixels round it
        np.maximum.at(tables["all"], image * 255 + level, _enlarged_iou(outline, true, image, width, height))
    return {kind: table.reshape(n, 255) for kind, table in tables.items()}


def _enlarged_iou(found: np.ndarray, true: np.ndarray, image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return the best IoU of tight boxes, enlarged as the benchmark does, with the true ones of their images."""
    enlarged = np.concatenate([found[:, :2], np.minimum(found[:, 2:] + 1, (width, height))], axis=1)
    iou = np.zeros(len(found))
    for k in range(true.shape[1]):
        np.maximum(iou, box_iou(enlarged, true[image, k]), out=iou)
    return iou


def _opencv_scores(
    maps: np.ndarray, levels: np.ndarray, true: np.ndarray, contours: Sequence[Contours]
) -> dict[Contours, np.ndarray]:
    """Fill tables (n, 255) from contours traced at each level."""
    n, height, width = levels.shape
    tables: dict[Contours, np.ndarray] = {kind: np.zeros((n, 255)) for kind in contours}
    for kind, table in tables.items():
        for i in range(n):
            for level in range(levels[i].max()):
                found = contour_boxes(levels[i] > level, kind)
                table[i, level] = _enlarged_iou(found, true, np.full(len(found), i), width, height).max()
    return tables
