"""Boxes: intersection over union, and the tightest box of the largest component of a map.

A box is x0, y0, x1, y1 in pixels from the image's upper left corner, x1 and y1 exclusive: the whole of a W×H image is
(0, 0, W, H).
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from cutmix.errors import InputError
from cutmix.evaluation.logits import check_finite, real_numbers


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


def box_from_map(cam: np.ndarray, threshold: float = 0.15) -> np.ndarray:
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
