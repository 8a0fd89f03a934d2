"""Calibration against a loop, scikit-learn, closed forms and classifiers whose calibration is known."""

import contextlib
import json
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import brier_score_loss, log_loss
from torch import nn

from cutmix.errors import InputError
from cutmix.evaluate.calibration import (
    brier,
    calibration_error,
    calibration_suite,
    debiased_calibration_error,
    fit_temperature,
    max_calibration_error,
    nll,
    reliability,
    signed_gap,
)
from cutmix.evaluate.classifier import Classifier
from cutmix.evaluate.logits import softmax


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
    assert max_calibration_error(p, labels, bins) == pytest.approx(mce)
    assert calibration_error(torch.tensor(p), torch.tensor(labels), bins) == pytest.approx(ece)


def test_adaptive_error_is_that_of_sorted_slices() -> None:
    logits, labels = draw(n=450)
    p = softmax(logits)
    order = p.max(1).argsort()
    right = p.argmax(1) == labels
    slices = [abs(right[part].mean() - p[part].max(1).mean()) for part in np.array_split(order, 15)]
    assert calibration_error(p, labels, adaptive=True) == pytest.approx(100 * np.mean(slices))


def test_nll_and_brier_are_scikit_learns() -> None:
    logits, labels = draw()
    p = softmax(logits)
    assert nll(p, labels) == pytest.approx(log_loss(labels, p, labels=range(7)))
    one_hot = np.eye(7)[labels]
    by_class = sum(brier_score_loss(one_hot[:, k], p[:, k]) for k in range(7))
    assert brier(p, labels) == pytest.approx(by_class)
    assert signed_gap(p, labels) == pytest.approx(100 * (p.max(1).mean() - (p.argmax(1) == labels).mean()))


def test_perfect_inverted_and_constant_classifiers() -> None:
    labels = np.arange(90) % 3
    sure = np.eye(3)[labels]
    for error in (calibration_error, max_calibration_error, debiased_calibration_error, brier, nll, signed_gap):
        assert error(sure, labels) == 0
    wrong = np.eye(3)[(labels + 1) % 3]
    assert calibration_error(wrong, labels) == max_calibration_error(wrong, labels) == signed_gap(wrong, labels) == 100
    assert brier(wrong, labels) == 2
    assert nll(wrong, labels) == math.inf
    constant = np.full((90, 3), 1 / 3)  # a third is right, and it says so: ties are one bin, and the lowest class
    assert calibration_error(constant, labels) == pytest.approx(0, abs=1e-9)
    assert calibration_error(constant, labels, adaptive=True) == pytest.approx(0, abs=1e-9)
    assert nll(constant, labels) == pytest.approx(math.log(3))
    assert calibration_error(constant, np.zeros(90, int)) == pytest.approx(100 * 2 / 3)


def test_under_confidence_is_negative() -> None:
    for scale, sign in ((0.5, -1), (2.0, 1)):
        logits, labels = draw(4000, scale=scale)
        assert np.sign(signed_gap(softmax(logits), labels)) == sign


def test_the_diagrams_table_adds_up() -> None:
    logits, labels = draw()
    p = softmax(logits)
    for adaptive in (False, True):
        table = reliability(p, labels, 15, adaptive)
        full = table.images > 0
        assert table.images.sum() == 400
        assert (table.images * np.nan_to_num(table.accuracy)).sum() == pytest.approx((p.argmax(1) == labels).sum())
        assert (table.confidence[full] > table.low[full]).all()
        assert (table.confidence[full] <= table.high[full]).all()


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


def test_suite_measures_what_the_functions_do() -> None:
    logits, labels = draw(600)
    records, arrays, *_ = calibration_suite(classifier(600, labels), torch.tensor(logits), draws=100)
    json.dumps([record.to_json() for record in records], allow_nan=False)
    p, of = softmax(logits), {record.metric: record for record in records}
    expected = {
        "ece": calibration_error(p, labels), "ece_adaptive": calibration_error(p, labels, adaptive=True),
        "ece_debiased": debiased_calibration_error(p, labels), "mce": max_calibration_error(p, labels),
        "signed_gap": signed_gap(p, labels), "nll": nll(p, labels), "brier": brier(p, labels),
    }  # fmt: skip
    for name, value in expected.items():
        record = of[name]
        assert record.value == pytest.approx(value)
        assert record.low < record.value < record.high
        assert (record.n, record.confidence, record.suite) == (600, 0.95, "calibration")
    assert "biased upwards: of 600 images in 15 bins" in of["ece"].note
    assert arrays["confidence"] == pytest.approx(p.max(1))
    assert (arrays["right"] == (p.argmax(1) == labels)).all()
    np.testing.assert_allclose(arrays["reliability"], np.stack(reliability(p, labels), 1))
    np.testing.assert_allclose(arrays["reliability_adaptive"], np.stack(reliability(p, labels, adaptive=True), 1))


def test_temperature_is_measured_on_images_that_it_was_not_fitted_on() -> None:
    logits, labels = draw(601, scale=3)
    records, arrays, *_ = calibration_suite(classifier(601, labels), torch.tensor(logits), draws=50)
    of, held_out, p = {record.metric: record for record in records}, arrays["held_out"], softmax(logits)
    assert held_out.sum() == 301
    t = fit_temperature(logits[~held_out], labels[~held_out])
    assert of["temperature"].value == pytest.approx(t)
    assert of["temperature"].n == 300
    assert of["nll_unscaled"].value == pytest.approx(nll(p[held_out], labels[held_out]))
    scaled = softmax(logits[held_out] / t)
    for name, measure in (("nll", nll), ("ece", calibration_error), ("brier", brier), ("signed_gap", signed_gap)):
        record = of[f"{name}_scaled"]
        assert record.value == pytest.approx(measure(scaled, labels[held_out]))
        assert (record.n, record.of) == (301, "held-out half")
        assert record.note.startswith("fitted on a random half of the images, 300, and measured on the other 301")
    assert of["nll_scaled"].value < of["nll_unscaled"].value
    worse = labels.copy()  # what is wrong with the half that was fitted does not reach the other's unscaled errors
    worse[~held_out] = (worse[~held_out] + 1) % 7
    changed = {r.metric: r for r in calibration_suite(classifier(601, worse), torch.tensor(logits), draws=5).records}
    assert changed["ece_unscaled"].value == of["ece_unscaled"].value
    assert changed["temperature"].value > 10 * t


def test_suite_runs_the_network_and_depends_on_the_seed_alone() -> None:
    torch.manual_seed(0)
    subject = classifier(90)
    assert (
        calibration_suite(subject, draws=20).records == calibration_suite(subject, subject.predict(), draws=20).records
    )
    other = calibration_suite(subject, draws=20, seed=1)
    assert other.records[0].value == calibration_suite(subject, draws=20).records[0].value
    assert other.records[0].low != calibration_suite(subject, draws=20).records[0].low


def test_one_image_has_no_half() -> None:
    names = [record.metric for record in calibration_suite(classifier(1), draws=5).records]
    assert "ece" in names
    assert "temperature" not in names


def test_a_calibrated_classifiers_error_at_n_is_in_its_interval() -> None:
    # the interval is that of the measure at this n: it has to hold the mean ECE of such samples
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
        ([[3.0, -1.0]], [0], "the values go from -1 to 3, and are no probabilities"),
        ([[0.5, math.nan]], [0], "1 of the probabilities are NaN or infinite"),
        ([[0.5, 0.5]], [2], "labels go from 2 to 2, but there are 2 classes"),
        ([[0.5, 0.5]], [0.0], "the labels are float64"),
    ],
)
def test_wrong_input_is_one_sentence(values: list, labels: list, message: str) -> None:
    for measure in (calibration_error, max_calibration_error, debiased_calibration_error, nll, brier, signed_gap):
        with pytest.raises(InputError, match=message):
            measure(np.array(values), np.array(labels))


def test_temperature_refuses_probabilities() -> None:
    with pytest.raises(InputError, match="probabilities were given where logits are meant"):
        fit_temperature([[0.25, 0.75]], [1])
