"""Calibration against a loop, scikit-learn, closed forms and classifiers whose calibration is known."""

import contextlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import softmax as scipy_softmax
from sklearn.metrics import brier_score_loss, log_loss
from torch import nn

from cutmix.errors import InputError
from cutmix.evaluation.calibration import calibration_error, calibration_metrics, calibration_suite, fit_temperature
from cutmix.evaluation.classifier import Classifier


def softmax(logits: np.ndarray) -> np.ndarray:
    return scipy_softmax(np.asarray(logits), axis=1)


def draw(n: int = 400, k: int = 7, scale: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw logits and, from their softmax, labels: scale 1 of the logits is calibrated."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, k))
    p = softmax(logits)
    labels = (p.cumsum(1) > rng.random((n, 1))).argmax(1)
    return logits * scale, labels


def loop_errors(p: np.ndarray, labels: np.ndarray, bins: int) -> tuple[float, float]:
    """Return ECE and MCE as Guo et al. define them."""
    errors, shares = [], []
    for b in range(bins):
        inside = [i for i in range(len(p)) if b / bins < p[i].max() <= (b + 1) / bins]
        if inside:
            accuracy = sum(p[i].argmax() == labels[i] for i in inside) / len(inside)
            errors.append(abs(accuracy - sum(p[i].max() for i in inside) / len(inside)))
            shares.append(len(inside) / len(p))
    return 100 * float(np.dot(shares, errors)), 100 * max(errors)


@pytest.mark.parametrize("bins", [1, 2, 10, 15, 100])
def test_errors_are_those_of_a_loop_over_the_bins(bins: int) -> None:
    logits, labels = draw()
    p = softmax(logits)
    ece, mce = loop_errors(p, labels, bins)
    assert calibration_error(p, labels, bins) == pytest.approx(ece)
    assert calibration_error(torch.tensor(p), torch.tensor(labels), bins) == pytest.approx(ece)
    found = calibration_metrics(logits, labels, bins)
    assert (found["ece"], found["mce"]) == pytest.approx((ece, mce))


@pytest.mark.parametrize("bins", [10, 15, 20])
def test_ece_and_mce_are_torchmetrics(bins: int) -> None:
    metrics = pytest.importorskip("torchmetrics")
    logits, labels = draw(3000)
    found, p = calibration_metrics(logits, labels, bins), torch.tensor(softmax(logits))
    for name, norm in (("ece", "l1"), ("mce", "max")):
        expected = metrics.classification.MulticlassCalibrationError(7, n_bins=bins, norm=norm)(p, torch.tensor(labels))
        assert found[name] == pytest.approx(100 * float(expected), abs=1e-3)


def test_adaptive_error_is_that_of_sorted_slices() -> None:
    logits, labels = draw(n=450)
    p = softmax(logits)
    order = p.max(1).argsort()
    right = p.argmax(1) == labels
    slices = [abs(right[part].mean() - p[part].max(1).mean()) for part in np.array_split(order, 15)]
    assert calibration_error(p, labels, adaptive=True) == pytest.approx(100 * np.mean(slices))


def test_nll_and_brier_are_scikit_learns() -> None:
    logits, labels = draw()
    p, found = softmax(logits), calibration_metrics(logits, labels)
    assert found["nll"] == pytest.approx(log_loss(labels, p, labels=range(7)))
    one_hot = np.eye(7)[labels]
    by_class = sum(brier_score_loss(one_hot[:, k], p[:, k]) for k in range(7))
    assert found["brier"] == pytest.approx(by_class)
    assert found["signed_gap"] == pytest.approx(100 * (p.max(1).mean() - (p.argmax(1) == labels).mean()))


def test_perfect_inverted_and_constant_classifiers() -> None:
    labels = np.arange(90) % 3
    assert calibration_error(np.eye(3)[labels], labels) == 0
    right = calibration_metrics(800 * np.eye(3)[labels], labels)
    assert {right[name] for name in ("ece", "ece_adaptive", "ece_debiased", "mce", "signed_gap", "nll", "brier")} == {0}
    wrong = calibration_metrics(800 * np.eye(3)[(labels + 1) % 3], labels)
    assert (wrong["ece"], wrong["mce"], wrong["signed_gap"], wrong["brier"], wrong["nll"]) == (100, 100, 100, 2, 800)
    constant = np.full((90, 3), 1 / 3)  # a third is right, and ties are one bin, and the lowest class
    assert calibration_error(constant, labels) == pytest.approx(0, abs=1e-9)
    assert calibration_error(constant, labels, adaptive=True) == pytest.approx(0, abs=1e-9)
    assert calibration_metrics(np.zeros((90, 3)), labels)["nll"] == pytest.approx(math.log(3))
    assert calibration_error(constant, np.zeros(90, int)) == pytest.approx(100 * 2 / 3)


def test_under_confidence_is_negative() -> None:
    for scale, sign in ((0.5, -1), (2.0, 1)):
        logits, labels = draw(4000, scale=scale)
        assert np.sign(calibration_metrics(logits, labels)["signed_gap"]) == sign


def test_the_tables_of_the_diagrams_add_up() -> None:
    logits, labels = draw()
    p, arrays = softmax(logits), calibration_suite(classifier(400, labels), torch.tensor(logits), draws=2).arrays
    for name in ("reliability", "reliability_adaptive"):
        low, high, images, confidence, accuracy = arrays[name].T
        full = images > 0
        assert images.sum() == 400
        assert (images * np.nan_to_num(accuracy)).sum() == pytest.approx((p.argmax(1) == labels).sum())
        assert (confidence[full] > low[full]).all()
        assert (confidence[full] <= high[full]).all()
        assert calibration_error(p, labels, adaptive=name.endswith("adaptive")) == pytest.approx(
            100 * (images * np.abs(np.nan_to_num(accuracy - confidence))).sum() / 400
        )


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0])
def test_temperature_is_found_again_and_is_the_best(scale: float) -> None:
    logits, labels = draw(6000, scale=scale)
    t = fit_temperature(logits, labels)
    assert t == pytest.approx(scale, rel=0.05)
    best = minimize_scalar(
        lambda log_t: log_loss(labels, softmax(logits / math.exp(log_t)), labels=range(7)),
        bounds=(-4, 4), method="bounded", options={"xatol": 1e-7},
    )  # fmt: skip
    assert t == pytest.approx(math.exp(best.x), rel=1e-4)
    assert fit_temperature(torch.tensor(logits).float(), torch.tensor(labels)) == pytest.approx(t, rel=1e-5)
    assert fit_temperature(logits + 100, labels) == pytest.approx(t)  # a constant says nothing


def test_temperatures_without_a_best_one() -> None:
    labels = np.arange(30) % 3
    right = 5 * np.eye(3)[labels]
    assert fit_temperature(right, labels) == 1e-3
    assert fit_temperature(-right, labels) == 1e3
    assert fit_temperature(np.full((30, 3), 2.0), labels) == 1


def classifier(n: int, labels: np.ndarray | None = None, seed: int = 0) -> Classifier:
    images = torch.randint(0, 256, (n, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 7)).eval().requires_grad_(False)
    ids = torch.arange(n) % 7 if labels is None else torch.tensor(labels)
    names = tuple("abcdefg")
    return Classifier(network, (0.5,), (0.25,), images, ids, names, "toy", contextlib.nullcontext(), 64, seed)


def test_records_are_the_metrics_of_the_functions() -> None:
    logits, labels = draw(600)
    records, arrays, *_ = calibration_suite(classifier(600, labels), torch.tensor(logits), draws=100)
    json.dumps([record.to_json() for record in records], allow_nan=False)
    p, of = softmax(logits), {record.metric: record for record in records}
    assert of["ece"].value == pytest.approx(calibration_error(p, labels))
    assert of["ece_adaptive"].value == pytest.approx(calibration_error(p, labels, adaptive=True))
    for name, value in calibration_metrics(logits, labels).items():
        record = of[name]
        assert record.value == pytest.approx(value)
        assert record.low < record.value < record.high
        assert (record.n, record.confidence, record.suite) == (600, 0.95, "calibration")
    assert "biased upwards: with 600 images in 15 bins" in of["ece"].note
    assert arrays["confidence"] == pytest.approx(p.max(1))
    assert (arrays["right"] == (p.argmax(1) == labels)).all()


def test_temperature_is_evaluated_on_images_that_it_was_not_fitted_on() -> None:
    logits, labels = draw(601, scale=3)
    records, arrays, *_ = calibration_suite(classifier(601, labels), torch.tensor(logits), draws=50)
    of, held_out = {record.metric: record for record in records}, arrays["held_out"]
    assert held_out.sum() == 301
    t = fit_temperature(logits[~held_out], labels[~held_out])
    assert of["temperature"].value == pytest.approx(t)
    assert of["temperature"].n == 300
    assert of["nll_unscaled"].value == pytest.approx(calibration_metrics(logits[held_out], labels[held_out])["nll"])
    scaled = calibration_metrics(logits[held_out] / t, labels[held_out])
    for name in ("nll", "ece", "brier", "signed_gap"):
        record = of[f"{name}_scaled"]
        assert record.value == pytest.approx(scaled[name])
        assert (record.n, record.of) == (301, "held-out half")
        assert record.note.startswith("fitted on a random half of the images, 300, and evaluated on the other 301")
    assert of["nll_scaled"].value < of["nll_unscaled"].value
    worse = labels.copy()  # what is wrong with the half that was fitted does not reach the other's unscaled errors
    worse[~held_out] = (worse[~held_out] + 1) % 7
    changed = {r.metric: r for r in calibration_suite(classifier(601, worse), torch.tensor(logits), draws=5).records}
    assert changed["ece_unscaled"].value == of["ece_unscaled"].value
    assert changed["temperature"].value > 10 * t
    easy = np.where(~held_out & (np.arange(601) % 10 > 0), logits.argmax(1), labels)
    cold = {r.metric: r for r in calibration_suite(classifier(601, easy), torch.tensor(logits), draws=5).records}
    assert cold["nll_scaled"].value > cold["nll_unscaled"].value
    assert "it does not lower the NLL of that half, so cutmix predict and export use 1" in cold["temperature"].note
    assert "export" not in of["temperature"].note


def test_suite_runs_the_network_and_depends_on_the_seed_alone() -> None:
    torch.manual_seed(0)
    subject = classifier(90)
    assert (
        calibration_suite(subject, draws=20).records == calibration_suite(subject, subject.predict(), draws=20).records
    )
    other = calibration_suite(replace(subject, seed=1), draws=20)
    assert other.records[0].value == calibration_suite(subject, draws=20).records[0].value
    assert other.records[0].low != calibration_suite(subject, draws=20).records[0].low


def test_one_image_has_no_half() -> None:
    names = [record.metric for record in calibration_suite(classifier(1), draws=5).records]
    assert "ece" in names
    assert "temperature" not in names


def test_a_calibrated_classifiers_error_at_n_is_in_its_interval() -> None:
    # the interval is that of the metric at this n: it has to contain the mean ECE of such samples
    errors = [calibration_error(softmax(x), y) for x, y in (draw(300, scale=1, seed=s) for s in range(100, 200))]
    inside = 0
    for seed in range(30):
        logits, labels = draw(300, scale=1, seed=seed)
        record = calibration_suite(classifier(300, labels, seed), torch.tensor(logits), draws=80).records[0]
        inside += record.low <= np.mean(errors) <= record.high
    assert inside >= 24


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        (np.zeros((0, 3)), [], r"the probabilities have the shape \(0, 3\)"),
        ([[1.0], [1.0]], [0, 0], "two classes or more"),
        ([[3.0, -1.0]], [0], "the values range from -1 to 3; expected probabilities"),
        ([[0.5, math.nan]], [0], "1 of the probabilities are NaN or infinite"),
        ([[0.5, 0.5]], [2], "labels range from 2 to 2; expected 0 to 1"),
        ([[0.5, 0.5]], [0.0], "the labels are float64"),
    ],
)
def test_wrong_input_is_one_sentence(values: list, labels: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        calibration_error(np.array(values), np.array(labels))


def test_temperature_refuses_probabilities() -> None:
    with pytest.raises(InputError, match="probabilities were given; expected logits"):
        fit_temperature([[0.25, 0.75]], [1])
