"""Pascal VOC's average precision of detections, with all that the programs which compute it differ in.

Source: Everingham et al. 2010; the paper's code bases report the 11-point precision of VOC 2007 at an IoU above 0.5.
Checked bit for bit against the ``voc_eval`` that both of them carry.
"""

from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np
import torch

from cutmix.errors import InputError
from cutmix.seeding import derive_seed

Interpolation = Literal["11-point", "exact 11-point", "all-point"]


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


class AveragePrecision(NamedTuple):
    """Average precision of each class, 0 to 1.

    Attributes:
        per_class: (C,) float64; NaN where no object of the class is asked for.
        recall: (C,) float64: the share of its objects that were found at any score; NaN likewise.
        objects: (C,) int64: objects that are asked for.
        detections: (C,) int64.
    """

    per_class: np.ndarray
    recall: np.ndarray
    objects: np.ndarray
    detections: np.ndarray

    @property
    def mean(self) -> float:
        """The mean over the classes that have objects (the reference would count the others as 0)."""
        return float(np.nanmean(self.per_class))


def voc_average_precision(
    found: Detections,
    objects: Objects,
    num_classes: int,
    *,
    iou: float = 0.5,
    interpolation: Interpolation = "11-point",
    plus_one: bool = True,
) -> AveragePrecision:
    """Return Pascal VOC's average precision of each class.

    By falling score, each detection takes the object of its class and picture that it overlaps most, also one that is
    taken already. It is right if the overlap is above ``iou`` and the object not yet taken, left out if the object is
    difficult, and wrong otherwise. With recall r = right / objects and precision p = right / (right + wrong) down to
    each detection, AP = 1/11 Σ_t max{p : r ≥ t} over t = 0, 0.1, …, 1, or the area below max{p : r ≥ ·}.

    Args:
        found: What was found; equal scores keep their order.
        objects: What is there.
        num_classes: C; labels are 0 to C - 1.
        iou: What the overlap has to exceed, in [0, 1).
        interpolation: "11-point" takes the reference's recalls, of which the 4th, 7th and 8th are a rounding error
            above 0.3, 0.6 and 0.7: 3 of 10 objects found and nothing else, and AP is 27.27 %. "exact 11-point" takes
            i / 10: 36.36 %. "all-point" is VOC's from 2010 on.
        plus_one: A box includes the pixels of its right and lower edge, as in VOC's files: width = right - left + 1.
            Without it width = right - left. ``inclusive`` makes such boxes of those that detectors work with.

    Raises:
        InputError: Arrays do not fit each other, a value is not finite, a label is no class, a box is inside out, or no
            object is asked for.
    """
    check_boxes(found, objects, num_classes, plus_one)
    if interpolation not in get_args(Interpolation) or not 0 <= iou < 1:
        raise InputError(
            f"interpolation is '{interpolation}' and iou {iou}: expected one of {', '.join(get_args(Interpolation))}, "
            "and 0 ≤ iou < 1"
        )
    return _score(_judge(found, objects, num_classes, iou, plus_one), interpolation)


def voc_interval(
    found: Detections,
    objects: Objects,
    num_classes: int,
    images: int,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    iou: float = 0.5,
    interpolation: Interpolation = "11-point",
    plus_one: bool = True,
) -> tuple[float, float]:
    """Return the bootstrap interval of the mean average precision: pictures drawn again with replacement.

    A picture's detections are judged once, as judging looks at one picture only; a drawn picture then counts as often
    as it was drawn. The interval is that of the percentiles; it says how much the test pictures matter, not the seed.

    Args:
        found: What was found.
        objects: What is there.
        num_classes: C; labels are 0 to C - 1.
        images: Pictures in the set, those without objects among them.
        confidence: In (0, 1).
        resamples: Draws.
        seed: Of the draws.
        iou: As ``voc_average_precision`` has it.
        interpolation: Likewise.
        plus_one: Likewise.

    Returns:
        Lower and upper bound, 0 to 1.

    Raises:
        InputError: As ``voc_average_precision``, or a picture's number is not below ``images``.
    """
    check_boxes(found, objects, num_classes, plus_one)
    if max(found.images.max(initial=-1), objects.images.max(initial=-1)) >= images:
        raise InputError(f"images is {images}: expected more than the highest number of a picture, from 0")
    judged = _judge(found, objects, num_classes, iou, plus_one)
    generator = torch.Generator().manual_seed(derive_seed(seed, "bootstrap"))
    means = np.empty(resamples)
    for i in range(resamples):
        drawn = torch.randint(images, (images,), generator=generator)
        means[i] = _score(judged, interpolation, torch.bincount(drawn, minlength=images).numpy()).mean
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(means, [tail, 100 - tail])
    return float(low), float(high)


_Boxed = TypeVar("_Boxed", Detections, Objects)


def inclusive(boxed: _Boxed) -> _Boxed:
    """Return the same boxes with the last pixel inside instead of the edge after it, as VOC's files have them."""
    return boxed._replace(boxes=np.asarray(boxed.boxes, dtype=np.float64) - (0, 0, 1, 1))


# ---- VOC, step by step ----


class _Judged(NamedTuple):
    """Detections sorted by class and falling score."""

    images: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    bounds: np.ndarray  # of each class among the detections, (C + 1,)
    object_images: np.ndarray  # of the objects that are asked for
    object_labels: np.ndarray


def _judge(found: Detections, objects: Objects, num_classes: int, iou: float, plus_one: bool) -> _Judged:
    order = np.lexsort((-found.scores.astype(np.float64), found.labels))  # stable: equal scores keep their order
    found = Detections(*(column[order] for column in found))
    overlap, taken = _best_overlap(found, objects, plus_one)
    hit = overlap > iou
    difficult = np.append(objects.difficult, False)[taken]  # taken is -1 where there is nothing to take
    claims = np.flatnonzero(hit & ~difficult)
    right = np.zeros(len(hit), dtype=bool)
    right[claims[np.unique(taken[claims], return_index=True)[1]]] = True  # the first claim of each object
    asked = ~objects.difficult
    return _Judged(
        found.images, right, ~right & ~(hit & difficult),
        np.searchsorted(found.labels, np.arange(num_classes + 1)), objects.images[asked], objects.labels[asked],
    )  # fmt: skip


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


def _score(judged: _Judged, interpolation: Interpolation, counts: np.ndarray | None = None) -> AveragePrecision:
    """Return each class's average precision; ``counts`` says how often each picture counts."""
    classes = len(judged.bounds) - 1
    weight = None if counts is None else counts[judged.object_images]
    objects = np.bincount(judged.object_labels, weight, minlength=classes).astype(np.int64)
    right, wrong = judged.right.astype(np.int64), judged.wrong.astype(np.int64)
    if counts is not None:
        right, wrong = right * counts[judged.images], wrong * counts[judged.images]
    precision, recall = np.full(classes, np.nan), np.full(classes, np.nan)
    for label, (first, last) in enumerate(zip(judged.bounds[:-1], judged.bounds[1:], strict=True)):
        if objects[label]:
            hits, misses = np.cumsum(right[first:last]), np.cumsum(wrong[first:last])
            recalls = hits / objects[label]
            precisions = hits / np.maximum(hits + misses, np.finfo(np.float64).eps)
            recall[label] = recalls[-1] if len(recalls) else 0.0
            precision[label] = _area(recalls, precisions, interpolation)
    return AveragePrecision(precision, recall, objects, np.diff(judged.bounds))


_REFERENCE_RECALLS = np.arange(0.0, 1.1, 0.1)  # three of them are not i / 10, and deliberately so
_EXACT_RECALLS = np.arange(11) / 10


def _area(recall: np.ndarray, precision: np.ndarray, interpolation: Interpolation) -> float:
    """Return the average precision of one class from its curve, by falling score."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]  # max{p : r ≥ ·}, as recall does not fall
    if interpolation == "all-point":
        steps = np.concatenate(([0.0], recall, [1.0]))
        heights = np.concatenate((envelope, [0.0]))
        rises = np.flatnonzero(steps[1:] != steps[:-1])
        return float(np.sum((steps[rises + 1] - steps[rises]) * heights[rises]))
    grid = _REFERENCE_RECALLS if interpolation == "11-point" else _EXACT_RECALLS
    total = 0.0
    for height in np.append(envelope, 0.0)[np.searchsorted(recall, grid)]:
        total += float(height) / 11.0  # one by one, as the reference adds them
    return total


def check_boxes(found: Detections, objects: Objects, num_classes: int, plus_one: bool) -> None:
    """Raise ``InputError`` where ``voc_average_precision`` says so."""
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
