"""COCO's average precision of detections, computed by COCO's own program, which is imported only when asked for.

Source: Lin et al. 2014 and the evaluation program of the data set.
"""

import contextlib
import io
from typing import Any, NamedTuple

import numpy as np

from cutmix.errors import InputError
from cutmix.transfer.matching import Detections, Objects, checked


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
        raise InputError(
            'COCO\'s measure needs faster-coco-eval or pycocotools; install it with pip install "cutmix[coco]"'
        ) from None
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
