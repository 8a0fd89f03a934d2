"""Pascal VOC's average precision of detections, with all that the programs which compute it differ in.

Source: Everingham et al. 2010; the paper's code bases report the 11-point precision of VOC 2007 at an IoU above 0.5.
Checked bit for bit against the ``voc_eval`` that both of them carry.
"""

from typing import Literal, NamedTuple, get_args

import numpy as np

from cutmix.errors import InputError
from cutmix.transfer.matching import RIGHT, WRONG, Detections, Judged, Objects, by_class_and_score, checked, judge

Interpolation = Literal["11-point", "exact 11-point", "all-point"]


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
        """The mean over the classes that have objects (the reference would count the others as 0); NaN without any."""
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

    By falling score, each detection takes the object of its class and picture that it overlaps most, also one that is
    taken already. It is right if the overlap is above ``iou`` and the object not yet taken, left out if the object is
    difficult, and wrong otherwise. With recall r = right / objects and precision p = right / (right + wrong) down to
    each detection, AP = 1/11 Σ_t max{p : r ≥ t} over t = 0, 0.1, …, 1, or the area below max{p : r ≥ ·}.

    Args:
        found: What was found; equal scores keep their order. Lists and tensors on the CPU will do for arrays.
        objects: What is there, likewise.
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
    found, objects = checked(found, objects, num_classes, plus_one)
    if interpolation not in get_args(Interpolation) or not 0 <= iou < 1:
        raise InputError(
            f"interpolation is '{interpolation}' and iou {iou}: expected one of {', '.join(get_args(Interpolation))}, "
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
    found, objects = checked(found, objects, num_classes, plus_one)
    if max(found.images.max(initial=-1), objects.images.max(initial=-1)) >= images:
        raise InputError(f"images is {images}: expected more than the highest number of a picture, from 0")
    from cutmix.evaluate.bootstrap import resamples as draw  # torch, which a page does without

    counted = tally(judge(found, objects, iou=iou, plus_one=plus_one), num_classes)
    means = [
        precision_of(counted, interpolation, np.bincount(drawn, minlength=images)).mean
        for drawn in draw(images, resamples, seed, "bootstrap")
    ]
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(means, [tail, 100 - tail])
    return float(low), float(high)


class Tally(NamedTuple):
    """What a precision needs of judged detections, by class and falling score.

    Precision falls from each wrong detection to the next, so that only what it is at the right ones counts.

    Attributes:
        images: Picture of each right detection, (R,).
        bounds: Of each class among them, (C + 1,).
        wrong_images: Picture of each wrong detection, (W,).
        wrong_before: How many wrong ones come before each right one, (R,), those of the classes before among them.
        wrong_first: How many wrong ones the classes before have, (C,).
        object_images: Picture of each object that is asked for, (M,).
        object_labels: Its class, (M,).
        detections: Of each class, (C,).
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
    """Sort judged detections once, for any number of counts of pictures."""
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
        counted: The detections.
        interpolation: As ``voc_average_precision`` has it.
        counts: How often each picture counts, (pictures,) integers from 0; once without.
    """
    if counts is None:
        pictures = (counted.images, counted.wrong_images, counted.object_images)
        counts = np.ones(1 + max(column.max(initial=-1) for column in pictures), dtype=np.int64)
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
