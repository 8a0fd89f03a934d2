"""Metrics of images with several labels, against scikit-learn and exhaustive search."""

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import average_precision_score, f1_score, hamming_loss, log_loss

from cutmix.errors import InputError
from cutmix.evaluation.classification import (
    average_precisions,
    best_thresholds,
    fit_label_temperature,
    label_calibration,
    label_records,
)
from cutmix.runs.outcomes import image_f1, predicted_labels

CLASSES = ("bird", "boat", "car", "dog")


def drawn(n: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits with ties and labels that they say something about."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, len(CLASSES))) < (0.1, 0.3, 0.5, 0.8)).astype(np.uint8)
    return np.round(rng.normal(2.0 * labels - 1.5, 1.5), 1).astype(np.float32), labels


def test_average_precision_is_scikit_learns_with_ties() -> None:
    logits, labels = drawn()
    assert len(np.unique(logits)) < logits.size / 4
    expected = [average_precision_score(y, z) for y, z in zip(labels.T, logits.T, strict=True)]
    assert average_precisions(logits, labels) == pytest.approx(expected, abs=1e-12)


def test_a_label_without_images_has_no_average_precision() -> None:
    logits, labels = drawn()
    labels[:, 1] = 0
    found = average_precisions(logits, labels)
    assert np.isnan(found).tolist() == [False, True, False, False]
    records = label_records(logits, labels, CLASSES, np.full(4, 0.5), chosen_on="val", split="test")
    by_name = {(record.metric, record.of): record for record in records}
    assert by_name["label_map", None].value == pytest.approx(100 * np.nanmean(found))
    assert ("label_ap", "boat") not in by_name


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_has_a_larger_f1(seed: int) -> None:
    logits, labels = drawn(60, seed)
    thresholds = best_thresholds(logits, labels)
    predicted = predicted_labels(logits, thresholds)
    for k in range(len(CLASSES)):
        candidates = np.unique(np.concatenate([logits[:, k] - 0.05, logits[:, k] + 0.05]))
        best = max(f1_score(labels[:, k], logits[:, k] >= t, zero_division=0) for t in candidates)
        assert f1_score(labels[:, k], predicted[:, k]) == pytest.approx(best)
    assert ((thresholds > 0) & (thresholds < 1)).all()


def test_of_equal_thresholds_the_one_nearest_to_a_half_is_taken() -> None:
    logits = np.array([[4.0, 4.0], [-2.0, -2.0], [-6.0, -6.0]], dtype=np.float32)
    labels = np.array([[1, 0], [0, 0], [0, 0]], dtype=np.uint8)
    assert best_thresholds(logits, labels) == pytest.approx([expit(1.0), 0.5])


def test_records_have_scikit_learns_values_inside_their_intervals() -> None:
    logits, labels = drawn()
    thresholds = np.array([0.3, 0.5, 0.6, 0.4])
    predicted = expit(logits.astype(np.float64)) >= thresholds
    records = label_records(logits, labels, CLASSES, thresholds, chosen_on="val", split="test")
    found = {(record.metric, record.of): record for record in records}
    expected = {
        "label_map": average_precision_score(labels, logits), "f1_macro": f1_score(labels, predicted, average="macro"),
        "f1_micro": f1_score(labels, predicted, average="micro"),
        "f1_images": f1_score(labels, predicted, average="samples", zero_division=1),
        "hamming": hamming_loss(labels, predicted),
    }  # fmt: skip
    for metric, value in expected.items():
        record = found[metric, None]
        assert record.value == pytest.approx(100 * value), metric
        assert record.low < record.value < record.high
        assert (record.task, record.suite, record.n) == ("multilabel", "labels", 200)
    assert found["label_f1", "dog"].value == pytest.approx(100 * f1_score(labels[:, 3], predicted[:, 3]))
    assert found["label_ap", "dog"].n == labels[:, 3].sum()
    assert [found["label_threshold", name].value for name in CLASSES] == thresholds.tolist()
    assert found["f1_macro", None].note == "the threshold of each label was chosen on val, for the largest F1"


@pytest.mark.parametrize("score", [9.0, -9.0])
def test_a_label_of_one_image_has_too_few(score: float) -> None:
    """It is first, or last and missed, in every resample of 300 images: an interval of no width at 100 or 0 %."""
    logits, labels = drawn(300)
    labels[:, 0], labels[7, 0] = 0, 1
    logits[:, 0], logits[7, 0] = -2.0, score
    records = label_records(logits, labels, CLASSES, np.full(4, 0.5), chosen_on="val", split="test")
    found = {(r.metric, r.of): r for r in records}
    for metric in ("label_ap", "label_f1"):
        one = found[metric, "bird"]
        assert one.few or one.high - one.low > 0.1
    assert found["label_f1", "bird"].few
    assert not any(r.few for (metric, of), r in found.items() if of != "bird")


def test_the_interval_covers_another_draw_of_images() -> None:
    """The width is that of the metric over independent sets of images."""
    values = [average_precision_score(y, z) for z, y in (drawn(200, seed) for seed in range(1, 60))]
    record = label_records(*drawn(), CLASSES, np.full(4, 0.5), chosen_on=None, split="test")[0]
    assert (record.high - record.low) / (4 * 100 * np.std(values)) == pytest.approx(1.0, abs=0.25)


def test_images_without_labels_count_as_right_when_none_is_predicted() -> None:
    labels = np.array([[0, 0], [0, 0], [1, 1]], dtype=np.uint8)
    assert image_f1(np.array([[False, False], [True, False], [True, False]]), labels).tolist() == [1, 0, 2 / 3]
    with pytest.raises(InputError, match="no test image has a label"):
        label_records(np.zeros((3, 2)), np.zeros((3, 2)), ("a", "b"), np.full(2, 0.5), chosen_on=None, split="test")


def test_calibration_is_that_of_every_yes_or_no_answer() -> None:
    logits, labels = drawn()
    p, y = expit(logits.astype(np.float64)).ravel(), labels.ravel().astype(float)
    result = label_calibration(torch.from_numpy(logits), torch.from_numpy(labels), seed=0)
    found = {record.metric: record for record in result.records}
    bins = np.ceil(p * 15).astype(int)
    ece = sum((bins == b).mean() * abs(p[bins == b].mean() - y[bins == b].mean()) for b in np.unique(bins))
    assert found["ece"].value == pytest.approx(100 * ece)
    assert found["nll"].value == pytest.approx(log_loss(y, p))
    assert found["brier"].value == pytest.approx(((p - y) ** 2).mean())
    assert found["signed_gap"].value == pytest.approx(100 * (p - y).mean())
    assert found["ece"].n == 200
    assert found["nll_scaled"].value <= found["nll_unscaled"].value + 0.02


def test_the_temperature_is_that_of_least_loss() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, (5000, 3))
    labels = (rng.random(z.shape) < expit(z)).astype(np.uint8)
    assert fit_label_temperature(3 * z, labels) == pytest.approx(3.0, rel=0.05)
    losses = {t: log_loss(labels.ravel(), expit(z / t).ravel()) for t in (0.9, 1.1)}
    assert log_loss(labels.ravel(), expit(z / fit_label_temperature(z, labels)).ravel()) < min(losses.values())
