"""Bins of confidence, (low, high], and the calibration errors that are taken from them."""

from numbers import Integral
from typing import NamedTuple

import numpy as np
from scipy.special import erf

from cutmix.errors import InputError


class Reliability(NamedTuple):
    """The table behind a reliability diagram, one row a bin.

    Attributes:
        low: Confidences of the bin are above it, (bins,).
        high: And at most this, (bins,).
        images: How many are in the bin, (bins,) int64.
        confidence: Their mean confidence, in [0, 1]; NaN in an empty bin.
        accuracy: Share of them that is right, in [0, 1]; NaN in an empty bin.
    """

    low: np.ndarray
    high: np.ndarray
    images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def bin_edges(confidence: np.ndarray, bins: int, adaptive: bool) -> np.ndarray:
    """Return the bins' bounds, (bins + 1,), from 0 to 1."""
    if not isinstance(bins, Integral) or bins < 1:
        raise InputError(f"bins is {bins}: expected at least one, a whole number")
    edges = np.linspace(0.0, 1.0, bins + 1)
    if adaptive:
        n = len(confidence)
        last = -(-np.arange(1, bins) * n // bins) - 1  # of the sorted confidences, the last one of each bin
        edges[1:-1] = np.sort(confidence)[last.clip(0)]
    return edges


def one_hot_bins(confidence: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return in which bin each confidence is, (N, bins) float64; rounding above 1 counts as 1."""
    index = np.searchsorted(edges[1:-1], confidence, side="left")
    return (index[:, None] == np.arange(len(edges) - 1)).astype(np.float64)


def reliability_table(edges: np.ndarray, sums: np.ndarray) -> Reliability:
    """Make the table of each bin's sums of 1, confidence and right, (bins, 3)."""
    count = sums[:, 0]
    means = np.full((len(sums), 2), np.nan)
    np.divide(sums[:, 1:], count[:, None], out=means, where=count[:, None] > 0)
    return Reliability(edges[:-1], edges[1:], count.round().astype(np.int64), means[:, 0], means[:, 1])


def expected_error(table: Reliability) -> float:
    """Return Σ_b n_b/N · |acc_b − conf_b|, in per cent."""
    gaps = np.abs(table.accuracy - table.confidence)
    return 100 * float(np.nansum(table.images * gaps) / table.images.sum())


def max_error(table: Reliability) -> float:
    """Return the largest |acc_b − conf_b|, in per cent."""
    return 100 * float(np.nanmax(np.abs(table.accuracy - table.confidence)))


def debiased_error(table: Reliability) -> float:
    """Return the expected error less what noise adds to it; see ``calibration.debiased_calibration_error``."""
    full = table.images > 0
    count, accuracy = table.images[full], table.accuracy[full]
    gap = np.abs(accuracy - table.confidence[full])
    deviation = np.sqrt((accuracy * (1 - accuracy)).clip(0) / count)
    noisy = deviation > 0
    ratio = gap[noisy] / deviation[noisy]
    mean = gap.copy()  # E|N(gap, deviation²)|, the folded normal's mean
    mean[noisy] = deviation[noisy] * np.sqrt(2 / np.pi) * np.exp(-(ratio**2) / 2) + gap[noisy] * erf(ratio / np.sqrt(2))
    return 100 * float((count * (2 * gap - mean)).sum() / count.sum())


def chance_error(confidence: np.ndarray, edges: np.ndarray) -> float:
    """Return the mean ECE of a calibrated classifier with these confidences, in per cent; the bins' gaps are normal."""
    variance = one_hot_bins(confidence, edges).T @ (confidence * (1 - confidence))
    return 100 * float(np.sqrt(2 / np.pi * variance.clip(0)).sum() / len(confidence))
