"""COCO's average precision and recall of detections, computed by COCO's own program, which is imported on demand."""

import contextlib
import io
from typing import Any, NamedTuple

import numpy as np

from cutmix.errors import missing_extra
from cutmix.transfer.average_precision import Detections, Objects, checked


class CocoMetrics(NamedTuple):
    """The twelve metrics of COCO, each in [0, 1]; NaN where no object is counted.

    All but ``at_50`` and ``at_75`` are means over the ten IoU thresholds 0.50, 0.55, …, 0.95. All are means over the
    classes with objects, with at most 100 detections of an image and class if nothing else is said. Small objects are
    of at most 32² pixels, medium ones of at most 96².

    Attributes:
        mean: Average precision.
        at_50: Average precision at an IoU of 0.50.
        at_75: Average precision at an IoU of 0.75.
        small: Average precision of small objects.
        medium: Average precision of medium objects.
        large: Average precision of large objects.
        recall_1: Recall with at most one detection of an image and class.
        recall_10: Recall with at most ten.
        recall_100: Recall with at most 100.
        recall_small: Recall of small objects.
        recall_medium: Recall of medium objects.
        recall_large: Recall of large objects.
        per_class: Average precision of each class, (C,) float64.
    """

    mean: float
    at_50: float
    at_75: float
    small: float
    medium: float
    large: float
    recall_1: float
    recall_10: float
    recall_100: float
    recall_small: float
    recall_medium: float
    recall_large: float
    per_class: np.ndarray


def coco_metrics(
    found: Detections, objects: Objects, num_classes: int, images: int, areas: np.ndarray | None = None
) -> CocoMetrics:
    """Return COCO's metrics, computed by faster-coco-eval or, where that is not installed, by pycocotools.

    Each detection takes the best object that is still free, precision is read at 101 recalls, and at most 100
    detections of an image and class count. ``difficult`` marks COCO's crowds: a detection in one counts neither way.

    Args:
        found: The detections; width = right - left.
        objects: The objects, likewise.
        num_classes: C; labels are 0 to C - 1.
        images: Number of images in the set.
        areas: Area of each object in pixels, (M,), by which its size is small, medium or large; COCO's files give that
            of the object's outline. By default that of its box.

    Raises:
        InputError: As ``voc_average_precision``, or if neither package is installed.

    Source: Lin et al. 2014, the data set's evaluation.
    """
    found, objects = checked(found, objects, num_classes, plus_one=False)
    coco_class, eval_class = _coco_program()
    truth, answers = _coco_records(found, objects, num_classes, images, areas)
    with contextlib.redirect_stdout(io.StringIO()):  # both packages print as they go
        coco = coco_class()
        coco.dataset = truth
        coco.createIndex()
        evaluation = eval_class(coco, coco.loadRes(answers) if answers else _no_detections(coco_class, truth), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    # IoU (× recall) × class × size (all, small, medium, large) × detections (1, 10, 100); -1 where nothing is counted
    precision, recall = (
        np.where(table < 0, np.nan, table) for table in (evaluation.eval["precision"], evaluation.eval["recall"])
    )
    whole = precision[..., 0, -1]
    present = ~np.isnan(whole).all((0, 1))
    per_class = np.full(num_classes, np.nan)
    per_class[present] = whole[..., present].mean((0, 1))
    return CocoMetrics(
        _mean(whole), _mean(whole[0]), _mean(whole[5]),
        _mean(precision[..., 1, -1]), _mean(precision[..., 2, -1]), _mean(precision[..., 3, -1]),
        _mean(recall[..., 0, 0]), _mean(recall[..., 0, 1]), _mean(recall[..., 0, 2]),
        _mean(recall[..., 1, -1]), _mean(recall[..., 2, -1]), _mean(recall[..., 3, -1]),
        per_class,
    )  # fmt: skip


def _mean(table: np.ndarray) -> float:
    return float("nan") if np.isnan(table).all() else float(np.nanmean(table))


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
    found: Detections, objects: Objects, num_classes: int, images: int, areas: np.ndarray | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the objects and the detections as in COCO's files, with class ids from 1."""
    corners = [np.asarray(part.boxes, dtype=np.float64) for part in (objects, found)]
    sides = [np.hstack((box[:, :2], box[:, 2:] - box[:, :2])) for box in corners]
    sizes = sides[0][:, 2] * sides[0][:, 3] if areas is None else areas
    columns = objects.images, objects.labels, objects.difficult, sides[0], sizes
    truth = {
        "info": {},
        "images": [{"id": i} for i in range(images)],
        "categories": [{"id": label + 1, "name": str(label)} for label in range(num_classes)],
        "annotations": [
            {"id": i, "image_id": image, "category_id": label + 1, "iscrowd": int(crowd), "bbox": box, "area": area}
            for i, (image, label, crowd, box, area) in enumerate(zip(*(x.tolist() for x in columns), strict=True), 1)
        ],
    }  # fmt: skip
    rows = zip(found.images.tolist(), found.labels.tolist(), found.scores.tolist(), sides[1].tolist(), strict=True)
    return truth, [
        {"image_id": image, "category_id": label + 1, "score": score, "bbox": box} for image, label, score, box in rows
    ]


def _no_detections(coco_class: Any, truth: dict[str, Any]) -> Any:
    coco = coco_class()
    coco.dataset = truth | {"annotations": []}
    coco.createIndex()
    return coco
