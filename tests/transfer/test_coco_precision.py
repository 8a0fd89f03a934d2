"""COCO's metrics: both programs, a third package, and cases worked out by hand."""

import builtins
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cutmix.errors import InputError
from cutmix.transfer.average_precision import Detections, Objects
from cutmix.transfer.detection_task import coco_metrics

IMAGES, CLASSES = 20, 4


def scene(seed: int = 0) -> tuple[Detections, Objects]:
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 300, (120, 2))
    boxes = np.hstack((corner, corner + rng.integers(10, 120, (120, 2)))).astype(np.float32)
    truth = Objects(rng.integers(0, IMAGES, 120), rng.integers(0, CLASSES, 120), boxes, np.zeros(120, dtype=bool))
    near = rng.integers(0, 120, 500)
    moved = truth.boxes[near] + rng.integers(-8, 9, (500, 4)).astype(np.float32)
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
    label = np.where(rng.random(500) < 0.8, truth.labels[near], rng.integers(0, CLASSES, 500))
    return Detections(truth.images[near], label, (rng.permutation(500) / 500).astype(np.float32), moved), truth


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Make packages look as if they were not installed."""
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] in packages:
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)


def areas(seed: int = 0) -> np.ndarray:
    """Areas of outlines, smaller than those of the boxes, of all three sizes."""
    boxes = scene(seed)[1].boxes
    return (boxes[:, 2:] - boxes[:, :2]).prod(1) * np.random.default_rng(seed).uniform(0.3, 1, len(boxes))


@pytest.mark.parametrize("with_areas", [False, True])
def test_both_programs_agree(monkeypatch: pytest.MonkeyPatch, with_areas: bool) -> None:
    pytest.importorskip("faster_coco_eval")
    pytest.importorskip("pycocotools")
    arguments = (*scene(), CLASSES, IMAGES, areas() if with_areas else None)
    fast = coco_metrics(*arguments)
    without(monkeypatch, "faster_coco_eval")
    slow = coco_metrics(*arguments)
    assert 0.1 < fast.mean < fast.at_50 < 0.9
    assert fast[:-1] == pytest.approx(slow[:-1], abs=1e-12)
    np.testing.assert_allclose(fast.per_class, slow.per_class, atol=1e-12)


@pytest.mark.parametrize("package", ["faster_coco_eval", "pycocotools"])
def test_all_twelve_are_those_of_the_programs_own_summary(tmp_path: Path, package: str) -> None:
    """From files, with crowds, areas of outlines and ids as COCO has them."""
    pytest.importorskip(package)
    if package == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval

    found, truth = scene(3)
    truth = truth._replace(difficult=np.arange(len(truth.labels)) % 9 == 0)
    own, ids = areas(3), [3, 7, 11, 90]

    def entries(part: Any, **columns: np.ndarray) -> list[dict[str, Any]]:
        sides = np.hstack((part.boxes[:, :2], part.boxes[:, 2:] - part.boxes[:, :2])).astype(float)
        rows = zip(part.images, part.labels, sides, strict=True)
        return [
            {"id": i + 1, "image_id": int(image) + 5, "category_id": ids[label], "bbox": box.tolist()}
            | {name: column[i].item() for name, column in columns.items()}
            for i, (image, label, box) in enumerate(rows)
        ]

    content = {
        "info": {},
        "images": [{"id": i + 5, "file_name": f"{i}.jpg", "width": 500, "height": 500} for i in range(IMAGES)],
        "categories": [{"id": number, "name": f"c{number}"} for number in ids],
        "annotations": entries(truth, area=own, iscrowd=truth.difficult.astype(int)),
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "found.json").write_text(json.dumps(entries(found, score=found.scores)))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "truth.json"))
        evaluation = COCOeval(coco, coco.loadRes(str(tmp_path / "found.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    result = coco_metrics(found, truth, CLASSES, IMAGES, own)
    assert result[:-1] == pytest.approx(list(evaluation.stats[:12]), abs=1e-12)
    assert len({round(value, 6) for value in result[:-1]}) == 12


@pytest.mark.slow  # importing it takes long
def test_equals_torchmetrics_with_exact_thresholds() -> None:
    pytest.importorskip("faster_coco_eval")
    detection = pytest.importorskip("torchmetrics.detection")
    found, truth = scene()
    metric = detection.MeanAveragePrecision(
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),  # its own defaults are rounded to float32
        rec_thresholds=np.linspace(0, 1, 101).tolist(),
        class_metrics=True, backend="faster_coco_eval",
    )  # fmt: skip

    def of(part: Any, image: int, **names: str) -> dict[str, torch.Tensor]:
        rows = part.images == image
        return {name: torch.from_numpy(getattr(part, column)[rows]) for name, column in names.items()}

    for image in range(IMAGES):
        answer = of(found, image, boxes="boxes", labels="labels", scores="scores")
        metric.update([answer], [of(truth, image, boxes="boxes", labels="labels")])
    expected = metric.compute()
    result = coco_metrics(found, truth, CLASSES, IMAGES)
    assert result.mean == pytest.approx(expected["map"].item(), abs=1e-6)
    assert result.at_50 == pytest.approx(expected["map_50"].item(), abs=1e-6)
    assert result.at_75 == pytest.approx(expected["map_75"].item(), abs=1e-6)
    assert result.small == pytest.approx(expected["map_small"].item(), abs=1e-6)
    assert result.recall_large == pytest.approx(expected["mar_large"].item(), abs=1e-6)
    np.testing.assert_allclose(result.per_class, expected["map_per_class"].numpy(), atol=1e-6)


def test_by_hand() -> None:
    pytest.importorskip("faster_coco_eval")
    # Class 0: its object 0..100 × 0..100 is found as 0..100 × 0..80, IoU 0.8: right at .50, .55, …, .80, which are 7 of
    # the 10 thresholds. Class 1: found exactly: 10 of 10. Class 2: a crowd only, in which a detection counts neither
    # way. Class 3: no object. So AP = (0.7 + 1) / 2, at .50 and .75 it is 1.
    box = [0.0, 0.0, 100.0, 100.0]
    truth = Objects(np.array([0, 1, 1]), np.array([0, 1, 2]), np.array([box] * 3), np.array([False, False, True]))
    found = Detections(
        np.array([0, 1, 1, 0]), np.array([0, 1, 2, 3]), np.array([0.9, 0.8, 0.7, 0.6]),
        np.array([[0.0, 0.0, 100.0, 80.0], box, box, box]),
    )  # fmt: skip
    result = coco_metrics(found, truth, 4, 2)
    assert result[:3] == pytest.approx((0.85, 1, 1))
    # Both objects have 100² pixels, which is large; there is no other size. Recall is 0.7 and 1, as with one detection.
    assert (result.large, result.recall_1, result.recall_100) == pytest.approx((0.85, 0.85, 0.85))
    assert np.isnan([result.small, result.medium, result.recall_small, result.recall_medium]).all()
    np.testing.assert_allclose(result.per_class, [0.7, 1, np.nan, np.nan])


def test_no_detections_score_0() -> None:
    pytest.importorskip("faster_coco_eval")
    found, truth = scene()
    result = coco_metrics(Detections(*(column[:0] for column in found)), truth, CLASSES, IMAGES)
    assert set(result[:-1]) == {0}


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "faster_coco_eval", "pycocotools")
    with pytest.raises(InputError, match=r"needs faster-coco-eval; install it with pip"):
        coco_metrics(*scene(), CLASSES, IMAGES)
