"""COCO's average precision: both programs, a third package, and cases worked out by hand."""

import builtins
from typing import Any

import numpy as np
import pytest
import torch

from cutmix.errors import InputError
from cutmix.transfer.average_precision import Detections, Objects, coco_average_precision

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


def test_both_programs_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faster_coco_eval")
    pytest.importorskip("pycocotools")
    fast = coco_average_precision(*scene(), CLASSES, IMAGES)
    without(monkeypatch, "faster_coco_eval")
    slow = coco_average_precision(*scene(), CLASSES, IMAGES)
    assert 0.1 < fast.mean < fast.at_50 < 0.9
    assert fast[:3] == pytest.approx(slow[:3], abs=1e-12)
    np.testing.assert_allclose(fast.per_class, slow.per_class, atol=1e-12)


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
    result = coco_average_precision(found, truth, CLASSES, IMAGES)
    assert result.mean == pytest.approx(expected["map"].item(), abs=1e-6)
    assert result.at_50 == pytest.approx(expected["map_50"].item(), abs=1e-6)
    assert result.at_75 == pytest.approx(expected["map_75"].item(), abs=1e-6)
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
    result = coco_average_precision(found, truth, 4, 2)
    assert result[:3] == pytest.approx((0.85, 1, 1))
    np.testing.assert_allclose(result.per_class, [0.7, 1, np.nan, np.nan])


def test_nothing_found_is_0() -> None:
    pytest.importorskip("faster_coco_eval")
    found, truth = scene()
    assert coco_average_precision(Detections(*(column[:0] for column in found)), truth, CLASSES, IMAGES).mean == 0


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "faster_coco_eval", "pycocotools")
    with pytest.raises(InputError, match=r"needs faster-coco-eval; install it with pip"):
        coco_average_precision(*scene(), CLASSES, IMAGES)
