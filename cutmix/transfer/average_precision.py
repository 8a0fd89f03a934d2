"""Pascal VOC's average precision of detections, with all that the programs which compute it differ in.

Source: Everingham et al. 2010; the paper's code bases report the 11-point precision of VOC 2007 at an IoU above 0.5.
Checked bit for bit against the ``voc_eval`` that both of them carry.
"""

import contextlib
import io
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np

from cutmix.errors import InputError, missing_extra

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
    from cutmix.statistics import resamples as draw  # torch, which a page does without

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


# ---- coco precision ----
# COCO's average precision of detections, computed by COCO's own program, which is imported only when asked for.


class CocoPrecision(NamedTuple):
    """COCO's average precision, 0 to 1.

    Attributes:
        mean: Over ten IoU thresholds 0.50, 0.55, …, 0.95, and over the classes with objects.
        at_50: At 0.50.
        at_75: At 0.75.
        per_class: (C,) float64, over the ten thresholds; NaN where no object of the class is asked for.
    """

    mean: float
    at_50: float
    at_75: float
    per_class: np.ndarray


def coco_average_precision(found: Detections, objects: Objects, num_classes: int, images: int) -> CocoPrecision:
    """Return COCO's average precision, computed by faster-coco-eval or, where that is not installed, pycocotools.

    Each detection takes the best object that is still free, precision is read at 101 recalls, and at most 100
    detections of a picture and class count. ``difficult`` is COCO's crowd: whatever lies in it counts neither way.

    Args:
        found: What was found; width = right - left.
        objects: What is there, likewise.
        num_classes: C; labels are 0 to C - 1.
        images: Pictures in the set.

    Raises:
        InputError: As ``voc_average_precision``, or neither package is installed.

    Source: Lin et al. 2014, the data set's evaluation.
    """
    found, objects = checked(found, objects, num_classes, plus_one=False)
    coco_class, eval_class = _coco_program()
    truth, answers = _coco_records(found, objects, num_classes, images)
    with contextlib.redirect_stdout(io.StringIO()):  # both packages print as they go
        coco = coco_class()
        coco.dataset = truth
        coco.createIndex()
        evaluation = eval_class(coco, coco.loadRes(answers) if answers else _nothing_found(coco_class, truth), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    table = evaluation.eval["precision"][..., 0, -1]  # IoU × recall × class, objects of every size, 100 a picture
    table = np.where(table < 0, np.nan, table)  # the program's -1: no object of the class
    present = ~np.isnan(table).all((0, 1))
    per_class = np.full(num_classes, np.nan)
    per_class[present] = table[..., present].mean((0, 1))
    mean, at_50, at_75 = (float(np.nanmean(part)) for part in (table, table[0], table[5]))
    return CocoPrecision(mean, at_50, at_75, per_class)


def _coco_program() -> tuple[Any, Any]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster

        return COCO, COCOeval_faster
    except ImportError:
        pass
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise missing_extra("COCO's average precision", "coco") from None
    return COCO, COCOeval


def _coco_records(
    found: Detections, objects: Objects, num_classes: int, images: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return truth and answers as in COCO's files: numbers from 1; areas, which sort objects by size, are not read."""
    sides = [np.hstack((x.boxes[:, :2], x.boxes[:, 2:] - x.boxes[:, :2])).astype(np.float64) for x in (objects, found)]
    columns = objects.images.tolist(), objects.labels.tolist(), objects.difficult.tolist(), sides[0].tolist()
    truth = {
        "info": {},
        "images": [{"id": i} for i in range(images)],
        "categories": [{"id": label + 1, "name": str(label)} for label in range(num_classes)],
        "annotations": [
            {"id": i, "image_id": image, "category_id": label + 1, "iscrowd": int(crowd), "bbox": box, "area": 1.0}
            for i, (image, label, crowd, box) in enumerate(zip(*columns, strict=True), 1)
        ],
    }  # fmt: skip
    rows = zip(found.images.tolist(), found.labels.tolist(), found.scores.tolist(), sides[1].tolist(), strict=True)
    return truth, [
        {"image_id": image, "category_id": label + 1, "score": score, "bbox": box} for image, label, score, box in rows
    ]


def _nothing_found(coco_class: Any, truth: dict[str, Any]) -> Any:
    coco = coco_class()
    coco.dataset = truth | {"annotations": []}
    coco.createIndex()
    return coco
