"""Pascal VOC's average precision of detections and its interval, in every variant that programs differ in.

Source: Everingham et al. 2010. The paper's code bases report the 11-point precision of VOC 2007 at an IoU above 0.5;
the results equal those of their ``voc_eval`` bit for bit.
"""

from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np

from cutmix.errors import InputError
from cutmix.runtime.seeding import derive_seed
from cutmix.statistics import Interval, bootstrap, bootstrap_interval

RIGHT, WRONG, LEFT_OUT = 1, 0, -1


class Detections(NamedTuple):
    """The detections in a whole set, one row for each, in any order.

    Attributes:
        images: Index of the image, (N,) integers from 0.
        labels: Class id, (N,) integers from 0.
        scores: (N,) finite numbers.
        boxes: (N, 4): left, top, right, bottom in pixels of the stored image.
    """

    images: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray


class Objects(NamedTuple):
    """The annotated objects in a whole set, one row for each.

    Attributes:
        images: Index of the image, (M,) integers from 0.
        labels: Class id, (M,) integers from 0.
        boxes: (M, 4): left, top, right, bottom in pixels.
        difficult: (M,) bool: neither the object nor a detection of it is counted.
    """

    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    difficult: np.ndarray


class Judged(NamedTuple):
    """Detections with their verdicts, and the objects that are counted: all that a precision is computed from.

    Attributes:
        images: Index of the image of each detection, (N,) integers from 0, in any order.
        labels: Its class id, (N,).
        scores: Its score, (N,).
        verdicts: ``RIGHT``, ``WRONG`` or ``LEFT_OUT``, (N,) int8.
        object_images: Index of the image of each object that is not difficult, (M,).
        object_labels: Its class id, (M,).
    """

    images: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    verdicts: np.ndarray
    object_images: np.ndarray
    object_labels: np.ndarray


_Boxed = TypeVar("_Boxed", Detections, Objects)


def inclusive(boxed: _Boxed) -> _Boxed:
    """Return boxes that end with their last pixel, as in VOC's files, from boxes that end with the edge after it."""
    return boxed._replace(boxes=np.asarray(boxed.boxes, dtype=np.float64) - (0, 0, 1, 1))


def judge(found: Detections, objects: Objects, *, iou: float = 0.5, plus_one: bool = True) -> Judged:
    """Return the verdict on each detection; the arguments are those of ``voc_average_precision``, unchecked."""
    order = by_class_and_score(found.labels, found.scores)
    overlap, taken = _best_overlap(Detections(*(column[order] for column in found)), objects, plus_one)
    hit = overlap > iou
    difficult = np.append(objects.difficult, False)[taken]  # taken is -1 where there is nothing to take
    claims = np.flatnonzero(hit & ~difficult)
    sorted_verdicts = np.where(hit & difficult, LEFT_OUT, WRONG).astype(np.int8)
    sorted_verdicts[claims[np.unique(taken[claims], return_index=True)[1]]] = RIGHT  # the first claim of each object
    verdicts = np.empty_like(sorted_verdicts)
    verdicts[order] = sorted_verdicts
    counted = ~objects.difficult
    return Judged(found.images, found.labels, found.scores, verdicts, objects.images[counted], objects.labels[counted])


def by_class_and_score(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the order by class and, within a class, by falling score; equal scores keep their order."""
    return np.lexsort((-scores.astype(np.float64), labels))


def _best_overlap(found: Detections, objects: Objects, plus_one: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return each detection's highest IoU with an object of its class and image, and the first such object."""
    images = 1 + max(found.images.max(initial=0), objects.images.max(initial=0))
    group = objects.labels.astype(np.int64) * images + objects.images
    order = np.argsort(group, kind="stable")
    wanted = found.labels.astype(np.int64) * images + found.images
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
    """Return the IoU of each row of a with the same row of b, rounded as the reference rounds it."""
    a, b, one = a.astype(np.float64), b.astype(np.float64), float(plus_one)
    width = np.maximum(np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0]) + one, 0.0)
    height = np.maximum(np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1]) + one, 0.0)
    area_a, area_b = ((x[:, 2] - x[:, 0] + one) * (x[:, 3] - x[:, 1] + one) for x in (a, b))
    return width * height / (area_a + area_b - width * height)


def checked(found: Detections, objects: Objects, num_classes: int, plus_one: bool) -> tuple[Detections, Objects]:
    """Return both as checked arrays; raises as ``voc_average_precision``.

    Columns may be anything that NumPy converts: lists, tensors on the CPU, whole numbers as floats, 0 and 1 as flags.
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
        raise InputError(f"the {what} cannot be converted to an array ({error}); expected numbers") from None


def _boxes(column: Any, what: str) -> np.ndarray:
    boxes = _numbers(column, what)
    return boxes if boxes.size else boxes.reshape(-1, 4)  # a list of none has no second side


def _whole(column: Any, what: str) -> np.ndarray:
    numbers = _numbers(column, what)
    if not (np.abs(numbers) < 2**53).all() or (numbers % 1).any():
        raise InputError(f"the {what} are not all whole numbers; expected integers")
    return numbers.astype(np.int64)


def _flags(column: Any, what: str) -> np.ndarray:
    flags = _numbers(column, what)
    if not np.isin(flags, (0, 1)).all():
        raise InputError(f"the {what} are not all 0 or 1; expected flags")
    return flags.astype(np.bool_)


def _check_values(found: Detections, objects: Objects, num_classes: int, plus_one: bool) -> None:
    for what, part, values in (("detections", found, found.scores), ("objects", objects, objects.difficult)):
        n, labels = len(part.images), part.labels
        if part.boxes.shape != (n, 4) or any(column.shape != (n,) for column in (part.images, labels, values)):
            shapes = ", ".join(f"{name} {column.shape}" for name, column in part._asdict().items())
            raise InputError(
                f"the {what} have columns of shapes {shapes}; expected (n, 4) for boxes and (n,) for the others"
            )
        if not (np.isfinite(part.boxes).all() and np.isfinite(values).all()):
            raise InputError(f"the {what} have values that are not finite; expected finite numbers")
        if n and not (labels.min() >= 0 and labels.max() < num_classes and part.images.min() >= 0):
            raise InputError(
                f"the labels of the {what} go from {labels.min()} to {labels.max()}, their images from "
                f"{part.images.min()}; expected labels from 0 to {num_classes - 1} and images from 0"
            )
    if (found.boxes[:, 2:] + plus_one < found.boxes[:, :2]).any():
        raise InputError("a detected box ends before it begins; expected left ≤ right and top ≤ bottom")
    if (objects.boxes[:, 2:] + plus_one <= objects.boxes[:, :2]).any():
        raise InputError("an object's box has no area; expected left < right and top < bottom")
    if not (~objects.difficult).any():
        raise InputError("every object is difficult, or there is none; expected one or more to detect")


Interpolation = Literal["11-point", "exact 11-point", "all-point"]


class AveragePrecision(NamedTuple):
    """Average precision of each class, 0 to 1.

    Attributes:
        per_class: (C,) float64; NaN where no object of the class is counted.
        recall: (C,) float64: the share of its objects that were detected at any score; NaN likewise.
        objects: (C,) int64: number of objects that are counted.
        detections: (C,) int64: number of detections.
    """

    per_class: np.ndarray
    recall: np.ndarray
    objects: np.ndarray
    detections: np.ndarray

    @property
    def mean(self) -> float:
        """The mean over the classes with objects (the reference counts the others as 0); NaN without any."""
        return float(np.nanmean(self.per_class)) if self.objects.any() else float("nan")


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

    By falling score, each detection takes the object of its class and image that it overlaps most, even if that is
    taken already. It is right if the IoU is above ``iou`` and the object is not yet taken, left out if the object is
    difficult, and wrong otherwise. With recall r = right / objects and precision p = right / (right + wrong) down to
    each detection, AP = 1/11 Σ_t max{p : r ≥ t} over t = 0, 0.1, …, 1, or the area below max{p : r ≥ ·}.

    Args:
        found: The detections; equal scores keep their order. Columns may be lists or tensors on the CPU.
        objects: The objects, likewise.
        num_classes: C; labels are 0 to C - 1.
        iou: The IoU that a right detection exceeds, in [0, 1).
        interpolation: "11-point" takes the reference's recalls, whose 4th, 7th and 8th are a rounding error
            above 0.3, 0.6 and 0.7: with 3 of 10 objects detected and no wrong detection, AP is 27.27 %. "exact
            11-point" takes i / 10: 36.36 %. "all-point" is VOC's definition from 2010 on.
        plus_one: Boxes include the pixels of their right and lower edge, as in VOC's files: width = right - left + 1.
            Otherwise width = right - left. ``inclusive`` converts the boxes of detectors.

    Raises:
        InputError: If arrays do not fit each other, a value is not finite, a label is not a class, a box ends before it
            begins, or no object is counted.
    """
    found, objects = checked(found, objects, num_classes, plus_one)
    if interpolation not in get_args(Interpolation) or not 0 <= iou < 1:
        raise InputError(
            f"interpolation is '{interpolation}' and iou {iou}; expected one of {', '.join(get_args(Interpolation))}, "
            "and 0 ≤ iou < 1"
        )
    judged = judge(found, objects, iou=iou, plus_one=plus_one)
    return precision_of(tally(judged, num_classes), interpolation)


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
) -> Interval:
    """Return the percentile bootstrap interval of the mean average precision, in per cent, over the test images.

    Detections are judged once, since a verdict depends on one image only; an image then counts as often as it is drawn.
    The interval reflects the choice of test images, not the seed of training.

    Args:
        found: The detections.
        objects: The objects.
        num_classes: C; labels are 0 to C - 1.
        images: Number of images in the set, with and without objects.
        confidence: In (0, 1).
        resamples: Number of resamples.
        seed: Seed of the resamples.
        iou: As in ``voc_average_precision``.
        interpolation: Likewise.
        plus_one: Likewise.

    Raises:
        InputError: As ``voc_average_precision``, or if the index of an image is not below ``images``.
    """
    found, objects = checked(found, objects, num_classes, plus_one)
    if max(found.images.max(initial=-1), objects.images.max(initial=-1)) >= images:
        raise InputError(f"images is {images}; expected more than the highest index of an image")
    counted = tally(judge(found, objects, iou=iou, plus_one=plus_one), num_classes)

    def means(counts: np.ndarray) -> list[float]:
        return [100 * precision_of(counted, interpolation, row).mean for row in counts]

    drawn = bootstrap(means, (images, derive_seed(seed, "bootstrap")), draws=resamples)
    value = 100 * precision_of(counted, interpolation).mean
    return bootstrap_interval(value, drawn, images, confidence, centred=False)


class Tally(NamedTuple):
    """Judged detections sorted by class and falling score, as a precision needs them.

    Only the precision at right detections is needed, since each wrong one lowers it.

    Attributes:
        images: Index of the image of each right detection, (R,).
        bounds: Where each class begins and ends among them, (C + 1,).
        wrong_images: Index of the image of each wrong detection, (W,).
        wrong_before: Number of wrong detections before each right one, of all classes, (R,).
        wrong_first: Number of wrong detections of the classes before each class, (C,).
        object_images: Index of the image of each object that is counted, (M,).
        object_labels: Its class id, (M,).
        detections: Number of detections of each class, (C,).
    """

    images: np.ndarray
    bounds: np.ndarray
    wrong_images: np.ndarray
    wrong_before: np.ndarray
    wrong_first: np.ndarray
    object_images: np.ndarray
    object_labels: np.ndarray
    detections: np.ndarray


def tally(judged: Judged, num_classes: int) -> Tally:
    """Sort judged detections, once for any number of resamples."""
    order = by_class_and_score(judged.labels, judged.scores)
    images, verdicts = judged.images[order], judged.verdicts[order]
    right, wrong = np.flatnonzero(verdicts == RIGHT), np.flatnonzero(verdicts == WRONG)
    bounds = np.searchsorted(judged.labels[order], np.arange(num_classes + 1))
    return Tally(
        images[right], np.searchsorted(right, bounds), images[wrong], np.searchsorted(wrong, right),
        np.searchsorted(wrong, bounds[:-1]), judged.object_images, judged.object_labels, np.diff(bounds),
    )  # fmt: skip


def precision_of(
    counted: Tally, interpolation: Interpolation = "11-point", counts: np.ndarray | None = None
) -> AveragePrecision:
    """Return each class's average precision.

    Args:
        counted: The judged detections, sorted.
        interpolation: As in ``voc_average_precision``.
        counts: How often each image counts, (images,) integers from 0; by default once.
    """
    if counts is None:
        indices = (counted.images, counted.wrong_images, counted.object_images)
        counts = np.ones(1 + max(column.max(initial=-1) for column in indices), dtype=np.int64)
    classes = len(counted.wrong_first)
    objects = np.bincount(counted.object_labels, counts[counted.object_images], minlength=classes).astype(np.int64)
    right, wrong = counts[counted.images], np.append(0, np.cumsum(counts[counted.wrong_images]))
    before = wrong[counted.wrong_before]
    precision, recall = np.full(classes, np.nan), np.full(classes, np.nan)
    for label, (first, last) in enumerate(zip(counted.bounds[:-1], counted.bounds[1:], strict=True)):
        if objects[label]:
            hits, misses = np.cumsum(right[first:last]), before[first:last] - wrong[counted.wrong_first[label]]
            recalls = hits / objects[label]
            precisions = hits / np.maximum(hits + misses, np.finfo(np.float64).eps)
            recall[label] = recalls[-1] if len(recalls) else 0.0
            precision[label] = _area(recalls, precisions, interpolation)
    return AveragePrecision(precision, recall, objects, counted.detections)


_REFERENCE_RECALLS = np.arange(0.0, 1.1, 0.1)  # three of them are not i / 10, as in the reference
_EXACT_RECALLS = np.arange(11) / 10


def _area(recall: np.ndarray, precision: np.ndarray, interpolation: Interpolation) -> float:
    """Return the average precision of one class from its curve."""
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
