"""Which detections are right: the records of detections and objects, and Pascal VOC's way of telling. No torch here.

Source: Everingham et al. 2010; checked bit for bit against the ``voc_eval`` that the paper's code bases carry.
"""

from typing import Any, NamedTuple, TypeVar

import numpy as np

from cutmix.errors import InputError

RIGHT, WRONG, LEFT_OUT = 1, 0, -1


class Detections(NamedTuple):
    """What was found in a whole set, one row a detection, in any order.

    Attributes:
        images: Which picture, (N,) integers from 0.
        labels: Which class, (N,) integers from 0.
        scores: (N,) finite.
        boxes: (N, 4): left, top, right, bottom in pixels of the picture as it lies on the disk.
    """

    images: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray


class Objects(NamedTuple):
    """What is there in a whole set, one row an object.

    Attributes:
        images: Which picture, (M,) integers from 0.
        labels: Which class, (M,) integers from 0.
        boxes: (M, 4): left, top, right, bottom in pixels.
        difficult: (M,) bool: an object that is neither asked for nor held against who finds it.
    """

    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    difficult: np.ndarray


class Judged(NamedTuple):
    """Detections with their verdicts, and the objects that are asked for: all that a precision is made of.

    Attributes:
        images: Which picture, (N,) integers from 0, in any order.
        labels: Which class, (N,).
        scores: (N,).
        verdicts: (N,) int8: ``RIGHT``, ``WRONG`` or ``LEFT_OUT``.
        object_images: Which picture, (M,).
        object_labels: Which class, (M,).
    """

    images: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    verdicts: np.ndarray
    object_images: np.ndarray
    object_labels: np.ndarray


_Boxed = TypeVar("_Boxed", Detections, Objects)


def inclusive(boxed: _Boxed) -> _Boxed:
    """Return the same boxes with the last pixel inside instead of the edge after it, as VOC's files have them."""
    return boxed._replace(boxes=np.asarray(boxed.boxes, dtype=np.float64) - (0, 0, 1, 1))


def judge(found: Detections, objects: Objects, *, iou: float = 0.5, plus_one: bool = True) -> Judged:
    """Say of each detection whether it is right; takes what ``voc_average_precision`` takes, and checks nothing."""
    order = by_class_and_score(found.labels, found.scores)
    overlap, taken = _best_overlap(Detections(*(column[order] for column in found)), objects, plus_one)
    hit = overlap > iou
    difficult = np.append(objects.difficult, False)[taken]  # taken is -1 where there is nothing to take
    claims = np.flatnonzero(hit & ~difficult)
    sorted_verdicts = np.where(hit & difficult, LEFT_OUT, WRONG).astype(np.int8)
    sorted_verdicts[claims[np.unique(taken[claims], return_index=True)[1]]] = RIGHT  # the first claim of each object
    verdicts = np.empty_like(sorted_verdicts)
    verdicts[order] = sorted_verdicts
    asked = ~objects.difficult
    return Judged(found.images, found.labels, found.scores, verdicts, objects.images[asked], objects.labels[asked])


def by_class_and_score(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the order of the classes and, within each, of falling score; equal scores keep their order."""
    return np.lexsort((-scores.astype(np.float64), labels))


def _best_overlap(found: Detections, objects: Objects, plus_one: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return each detection's highest IoU with an object of its class and picture, and the first such object."""
    pictures = 1 + max(found.images.max(initial=0), objects.images.max(initial=0))
    group = objects.labels.astype(np.int64) * pictures + objects.images
    order = np.argsort(group, kind="stable")
    wanted = found.labels.astype(np.int64) * pictures + found.images
    first, last = (np.searchsorted(group[order], wanted, side) for side in ("left", "right"))
    count = last - first
    detection = np.repeat(np.arange(len(wanted)), count)  # one row for each pair of detection and object
    start = np.cumsum(count) - count
    candidate = order[np.arange(len(detection)) - np.repeat(start - first, count)]
    overlap = _pair_iou(found.boxes[detection], objects.boxes[candidate], plus_one)
    best, taken = np.full(len(wanted), -np.inf), np.full(len(wanted), -1)
    some = count > 0
    if some.any():
        best[some] = np.maximum.reduceat(overlap, start[some])
        highest = np.flatnonzero(overlap == best[detection])
        which, index = np.unique(detection[highest], return_index=True)
        taken[which] = candidate[highest[index]]
    return best, taken


def _pair_iou(a: np.ndarray, b: np.ndarray, plus_one: bool) -> np.ndarray:
    """Return the overlap of each row of a with the same row of b, rounded as the reference rounds it."""
    a, b, one = a.astype(np.float64), b.astype(np.float64), float(plus_one)
    width = np.maximum(np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0]) + one, 0.0)
    height = np.maximum(np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1]) + one, 0.0)
    area_a, area_b = ((x[:, 2] - x[:, 0] + one) * (x[:, 3] - x[:, 1] + one) for x in (a, b))
    return width * height / (area_a + area_b - width * height)


def checked(found: Detections, objects: Objects, num_classes: int, plus_one: bool) -> tuple[Detections, Objects]:
    """Return both as arrays of the types that they are measured in; raises as ``voc_average_precision``.

    Columns may be whatever NumPy makes arrays of: lists, tensors on the CPU, whole numbers as floats, 0 and 1 as flags.
    """
    found = Detections(
        _whole(found.images, "images of the detections"), _whole(found.labels, "labels of the detections"),
        _numbers(found.scores, "scores"), _boxes(found.boxes, "boxes of the detections"),
    )  # fmt: skip
    objects = Objects(
        _whole(objects.images, "images of the objects"), _whole(objects.labels, "labels of the objects"),
        _boxes(objects.boxes, "boxes of the objects"), _flags(objects.difficult, "difficult flags"),
    )  # fmt: skip
    _check_values(found, objects, num_classes, plus_one)
    return found, objects


def _numbers(column: Any, what: str) -> np.ndarray:
    try:
        return np.asarray(column, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"the {what} are no array of numbers ({error})") from None


def _boxes(column: Any, what: str) -> np.ndarray:
    boxes = _numbers(column, what)
    return boxes if boxes.size else boxes.reshape(-1, 4)  # a list of none has no second side


def _whole(column: Any, what: str) -> np.ndarray:
    numbers = _numbers(column, what)
    if not (np.abs(numbers) < 2**53).all() or (numbers % 1).any():
        raise InputError(f"the {what} are not all whole numbers: expected integers")
    return numbers.astype(np.int64)


def _flags(column: Any, what: str) -> np.ndarray:
    flags = _numbers(column, what)
    if not np.isin(flags, (0, 1)).all():
        raise InputError(f"the {what} are not all true or false, 1 or 0")
    return flags.astype(np.bool_)


def _check_values(found: Detections, objects: Objects, num_classes: int, plus_one: bool) -> None:
    for what, part, values in (("detections", found, found.scores), ("objects", objects, objects.difficult)):
        n, labels = len(part.images), part.labels
        if part.boxes.shape != (n, 4) or any(column.shape != (n,) for column in (part.images, labels, values)):
            shapes = ", ".join(f"{name} {column.shape}" for name, column in part._asdict().items())
            raise InputError(f"the {what} have columns of shapes {shapes}: expected (n, 4) for boxes, (n,) else")
        if not (np.isfinite(part.boxes).all() and np.isfinite(values).all()):
            raise InputError(f"the {what} have values that are not finite, so nothing can be measured")
        if n and not (labels.min() >= 0 and labels.max() < num_classes and part.images.min() >= 0):
            raise InputError(
                f"the labels of the {what} run from {labels.min()} to {labels.max()}, their pictures from "
                f"{part.images.min()}: expected labels from 0 to {num_classes - 1} and pictures from 0"
            )
    if (found.boxes[:, 2:] + plus_one < found.boxes[:, :2]).any():
        raise InputError("a detected box ends before it begins: expected left ≤ right and top ≤ bottom")
    if (objects.boxes[:, 2:] + plus_one <= objects.boxes[:, :2]).any():
        raise InputError("an object's box has no area: expected left < right and top < bottom")
    if not (~objects.difficult).any():
        raise InputError("no object is asked for, so there is no precision to average")
