"""Calibration: the agreement of confidence and accuracy, and the temperature that improves it.

The confidence is the largest probability, and bins are (low, high]. All arithmetic is float64. A calibration error from
bins is biased upwards, the more the fewer images there are: it is recorded with n, bins and an interval, beside NLL and
Brier score, which have no bins.

Source: Guo et al. (2017) for ECE, MCE and the temperature; Nguyen and O'Connor (2015) for bins of equal mass; Kumar et
al. (2019) for the debiased error. Checked against torchmetrics' ``MulticlassCalibrationError`` (ℓ₁ and max norm).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import log_softmax
from torch import Tensor

from cutmix.evaluation.classifier import Classifier, SuiteResult, as_logits, as_probabilities, class_ids
from cutmix.runs.record import Record
from cutmix.runtime.seeding import derive_seed
from cutmix.statistics import (
    BINS,
    Reliability,
    bin_edges,
    bootstrap,
    bootstrap_interval,
    chance_error,
    debiased_error,
    expected_error,
    max_error,
    one_hot_bins,
    reliability_table,
)

TEMPERATURES = (1e-3, 1e3)


def calibration_error(
    probabilities: ArrayLike | Tensor, labels: ArrayLike | Tensor, bins: int = BINS, adaptive: bool = False
) -> float:
    """Return the expected calibration error: Σ_b n_b/N · |acc_b − conf_b|, in per cent.

    Args:
        probabilities: (N, K), each row non-negative with sum 1.
        labels: Class ids, (N,).
        bins: Number of bins.
        adaptive: Bins of equal mass instead of equal width; equal confidences share a bin.

    Raises:
        InputError: If the values are not probabilities, or the labels do not fit them.
    """
    p = as_probabilities(probabilities)
    confidence, right = _top(p, class_ids(labels, p))
    edges = bin_edges(confidence, bins, adaptive)
    sums = one_hot_bins(confidence, edges).T @ np.stack([np.ones_like(confidence), confidence, right], 1)
    return float(expected_error(reliability_table(edges, sums)))


def calibration_metrics(logits: ArrayLike | Tensor, labels: ArrayLike | Tensor, bins: int = BINS) -> dict[str, float]:
    """Return all metrics of the suite that need no held-out images.

    * ``ece``: expected calibration error, Σ_b n_b/N · |acc_b − conf_b|, in per cent; ``ece_adaptive`` with bins of
      equal mass.
    * ``ece_debiased``: ECE less the noise of the bins' accuracies. With d_b = acc_b − conf_b and
      σ_b² = acc_b (1 − acc_b) / n_b it is ECE − Σ_b n_b/N · (E|N(d_b, σ_b²)| − |d_b|). It can be below 0, and some bias
      is left for a nearly calibrated classifier. The expectation, which Kumar et al. sample, is exact here.
    * ``mce``: the largest |acc_b − conf_b| of the bins that hold images, in per cent.
    * ``signed_gap``: mean confidence − accuracy, in percentage points; above 0 is over-confident.
    * ``nll``: mean of −log p of the true class, in nats.
    * ``brier``: mean over images of Σ_k (p_k − [k is the label])², in [0, 2].

    Args:
        logits: (N, K).
        labels: Class ids, (N,).
        bins: Number of bins.

    Raises:
        InputError: If the values are not logits, or the labels do not fit them.
    """
    z = as_logits(logits)
    return {name: float(value) for name, value in _class_sums(z, class_ids(labels, z), bins).values.items()}


def fit_temperature(logits: ArrayLike | Tensor, labels: ArrayLike | Tensor) -> float:
    """Return the temperature T whose softmax(logits / T) has the least NLL on these images.

    NLL is convex in 1/T, so its slope, E_p[logit] − logit of the label, has one zero, which is found in log T. Where
    it has none, for example because all images are right by a large margin, T is the end of its range.

    Args:
        logits: (N, K).
        labels: Class ids, (N,). Metrics at this temperature need other images.

    Returns:
        T in [0.001, 1000]; above 1 the classifier was over-confident.

    Raises:
        InputError: If the values are not logits, or the labels do not fit them.

    Source: Guo et al. (2017), section 4.2.
    """
    z = as_logits(logits)
    z -= z.max(1, keepdims=True)
    own = z[np.arange(len(z)), class_ids(labels, z)]

    def slope(log_t: float) -> float:
        p = np.exp(log_softmax(z * np.exp(-log_t), axis=1))
        return float(((p * z).sum(1) - own).mean())

    return zero_of(slope)


def zero_of(slope: Callable[[float], float]) -> float:
    """Return the temperature at which the slope of a loss in log T is 0, or the end of the range that is lower."""
    cold, hot = np.log(TEMPERATURES)
    at_cold, at_hot = slope(cold), slope(hot)
    if at_cold == at_hot:  # constant logits: every temperature is the same
        return 1.0
    if at_cold <= 0 or at_hot >= 0:
        return TEMPERATURES[0] if at_cold <= 0 else TEMPERATURES[1]
    return float(np.exp(brentq(slope, cold, hot)))


def calibration_suite(classifier: Classifier, logits: Tensor | None = None, *, draws: int = 1000) -> SuiteResult:
    """Evaluate the calibration of a classifier, before and after temperature scaling; see ``calibration_result``.

    Args:
        classifier: Model and images.
        logits: The classifier's logits on its images, (N, K), if they are known.
        draws: Number of resamples for the intervals.

    Raises:
        InputError: If a logit is not finite, or an argument is out of its range.
    """
    z = as_logits(classifier.predict() if logits is None else logits)
    ids = class_ids(classifier.labels, z)
    return calibration_result(z, ids, _class_sums, fit_temperature, classifier.seed, draws=draws)


def calibration_result(
    z: np.ndarray,
    labels: np.ndarray,
    sums_of: Callable[[np.ndarray, np.ndarray], "CalibrationSums"],
    fit: Callable[[np.ndarray, np.ndarray], float],
    seed: int,
    *,
    draws: int = 1000,
    **fields: str,
) -> SuiteResult:
    """Evaluate the calibration of logits z, (N, K), before and after temperature scaling.

    The temperature is fitted on one random half of the images; the metrics before and after are those of the other
    half. The bins of equal mass stay the same while images are resampled for the intervals.

    Returns:
        Records with ``fields``, and the arrays ``labels``, ``confidence`` (E,) float64, ``right`` (E,) bool,
        ``reliability`` and ``reliability_adaptive`` (bins, 5) float64 with the columns of :class:`Reliability`,
        ``held_out`` (N,) bool.
    """
    common: dict[str, Any] = {"suite": "calibration"} | fields
    whole = sums_of(z, labels)
    records = whole.records(common, draws, (seed, "calibration", "all"))
    fitted, held_out = random_halves(len(z), seed)
    if len(fitted):
        t = fit(z[fitted], labels[fitted])
        scaled = {
            name: sums_of(z[held_out] / scale, labels[held_out]) for name, scale in (("unscaled", 1.0), ("scaled", t))
        }
        records += calibration_records(t, scaled, len(fitted), common, seed, draws)
    arrays = {
        "labels": labels,
        "confidence": whole.confidence,
        "right": whole.right.astype(bool),
        "reliability": np.stack(whole.equal, 1).astype(np.float64),
        "reliability_adaptive": np.stack(whole.adaptive, 1).astype(np.float64),
        "held_out": np.isin(np.arange(len(z)), held_out),
    }
    return SuiteResult(records, arrays)


def random_halves(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of two random halves of n images: to fit a temperature on, and to evaluate it on."""
    half = torch.randperm(n, generator=torch.Generator().manual_seed(derive_seed(seed, "calibration", "half")))
    return half[: n // 2].numpy(), half[n // 2 :].numpy()


def calibration_records(
    t: float, scaled: dict[str, "CalibrationSums"], fitted: int, common: dict[str, Any], seed: int, draws: int
) -> list[Record]:
    """Return the records of a temperature, and of the held-out half before and after it ("unscaled" and "scaled").

    ``fitted`` is the number of images that the temperature was fitted on.
    """
    note = f"fitted on a random half of the images, {fitted:,}, and evaluated on the other {scaled['scaled'].n:,}"
    if t in TEMPERATURES:
        note += "; the temperature is at the end of its range, as no temperature is the best for the fitted half"
    elif scaled["scaled"].values["nll"] >= scaled["unscaled"].values["nll"]:
        note += "; it does not lower the NLL of that half, so cutmix predict and export use 1"
    records = [Record(metric="temperature", value=t, n=fitted, note=note, **common)]
    for name, sums in scaled.items():
        stream = (seed, "calibration", "held out")  # the same for both, so that their intervals are comparable
        for record in sums.records(common, draws, stream):
            if record.metric in ("ece", "nll", "brier", "signed_gap"):
                record = replace(record, metric=f"{record.metric}_{name}", of="held-out half")
                records.append(replace(record, at=t, note=note) if name == "scaled" else record)
    return records


def _class_sums(logits: np.ndarray, ids: np.ndarray, bins: int = BINS) -> "CalibrationSums":
    """Return the calibration of the predicted class of each image."""
    log_p = log_softmax(logits, axis=1)
    p = np.exp(log_p)
    confidence, right = _top(p, ids)
    return CalibrationSums(confidence, right, -log_p[np.arange(len(ids)), ids], _brier(p, ids), bins)


class CalibrationSums:
    """The columns whose sums over images determine every metric, so that all resamples are one matrix product.

    Args:
        confidence: Probability of each prediction, (E,), with the same number of predictions for each image in turn.
        right: Whether it is right, (E,), 0 or 1.
        loss: Its negative log-likelihood, (E,).
        square: Its Brier score, (E,).
        bins: Number of bins.
        images: Number of images; None for one prediction an image.
    """

    def __init__(
        self, confidence: np.ndarray, right: np.ndarray, loss: np.ndarray, square: np.ndarray, bins: int = BINS, *,
        images: int | None = None,
    ) -> None:  # fmt: skip
        self.n = images or len(confidence)
        self.confidence, self.right = confidence, right
        self.edges = [bin_edges(self.confidence, bins, adaptive) for adaptive in (False, True)]
        one = np.ones(len(confidence))
        losses = np.stack([one, confidence, right, loss, square], 1)
        hot = np.concatenate([one_hot_bins(self.confidence, edge) for edge in self.edges], 1)
        parts = [hot * column[:, None] for column in (one, self.confidence, self.right)]
        columns = np.concatenate([losses, *parts], 1)
        self.columns = columns.reshape(self.n, -1, columns.shape[1]).sum(1)
        sums = self.columns.sum(0)
        self.equal, self.adaptive = self.tables(sums)
        self.values = self.metrics(sums)

    def tables(self, sums: np.ndarray) -> tuple[Reliability, Reliability]:
        """Return the tables of equal width and of equal mass of sums over images, (..., columns)."""
        parts = sums[..., 5:].reshape(*sums.shape[:-1], 3, 2, -1)
        equal, adaptive = (np.moveaxis(parts[..., kind, :], -2, -1) for kind in (0, 1))
        return reliability_table(self.edges[0], equal), reliability_table(self.edges[1], adaptive)

    def metrics(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Return the metrics, each (...), of sums over images, (..., columns)."""
        equal, adaptive = self.tables(sums)
        confidence, right, loss, square = np.moveaxis(sums[..., 1:5] / sums[..., :1], -1, 0)
        return {
            "ece": expected_error(equal), "ece_adaptive": expected_error(adaptive),
            "ece_debiased": debiased_error(equal), "mce": max_error(equal), "signed_gap": 100 * (confidence - right),
            "nll": loss, "brier": square,
        }  # fmt: skip

    def records(self, common: dict[str, Any], draws: int, stream: tuple[int | str, ...]) -> list[Record]:
        """Return a record of each metric with a bootstrap interval over the images, seeded by ``stream``."""

        def resampled(counts: np.ndarray) -> np.ndarray:
            return np.stack([*self.metrics(counts.astype(np.float64) @ self.columns).values()], 1)

        drawn = bootstrap(resampled, (self.n, derive_seed(*stream)), draws=draws)
        records = []
        for (name, each), spread in zip(self.values.items(), drawn.T, strict=True):
            value, (least, most) = float(each), _RANGES.get(name, (0.0, 100.0))
            ends = bootstrap_interval(value, spread, self.n, least=least, most=most)
            bins = len(self.edges[0]) - 1
            more: dict[str, Any] = {"bins": bins} if name in _BINNED else {}
            if name == "ece":
                more["note"] = (
                    f"biased upwards: with {self.n:,} images in {bins} bins, a perfectly calibrated classifier "
                    f"with these confidences has {chance_error(self.confidence, self.edges[0]):.2f} on average"
                )
            records.append(Record(metric=name, value=value, **ends._asdict(), n=self.n, **common, **more))
        return records


# Metrics that depend on the number of bins, which their records name; ranges other than 0 to 100.
_BINNED = ("ece", "ece_adaptive", "ece_debiased", "mce")
_RANGES = {"signed_gap": (-100.0, 100.0), "nll": (0.0, np.inf), "brier": (0.0, 2.0), "ece_debiased": (-100.0, 100.0)}


def _top(p: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each image's confidence and whether it is right, float64; of equal probabilities the first counts."""
    top = p.argmax(1)
    return p[np.arange(len(p)), top], (top == ids).astype(np.float64)


def _brier(p: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return Σ_k p_k² − 2 p_y + 1 of each image."""
    return (p * p).sum(1) - 2 * p[np.arange(len(p)), ids] + 1
