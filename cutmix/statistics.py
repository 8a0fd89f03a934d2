"""Intervals of results, tests of their differences, calibration bins and the bootstrap. Imports no torch.

McNemar's exact test for two runs, Welch's t for two sets of seeds, Holm for several such tests. Differences of two runs
on the same images: Agresti and Min for rates, DeLong for areas under ROC curves, the paired bootstrap for
everything else.

Source: McNemar (1947) in its exact form, a binomial test of the samples on which two classifiers disagree; Holm (1979);
Welch (1947).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from scipy.special import erf
from scipy.stats import binomtest, norm, rankdata, ttest_ind

from cutmix.errors import InputError

LEVEL = 0.05
BINS = 15  # of equal width or mass, in which confidences are compared with accuracies: Guo et al. 2017
FEW = 100  # images, below which a bootstrap interval is not trusted where it has no width


def in_words(p: float) -> str:
    """Return a p-value for a table; a difference that is not significant says so."""
    text = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    return text if p < LEVEL else f"not significant ({text})"


# ---- tests ----


@dataclass(frozen=True)
class Paired:
    """Two runs on the same images.

    Attributes:
        first: Images that only the first run classifies correctly.
        second: Images that only the second run classifies correctly.
        p: Two-sided p-value of the hypothesis that both runs err equally often.
    """

    first: int
    second: int
    p: float


def mcnemar(first: np.ndarray, second: np.ndarray) -> Paired:
    """Compare two runs by the images that only one of them classifies correctly; exact for any number of images.

    Args:
        first: Whether the first run classifies each image correctly, (N,) bool.
        second: The same for the second run and the same images in the same order.

    Raises:
        InputError: If they are not of as many images.
    """
    if first.shape != second.shape:
        raise InputError(f"two runs on {len(first)} and {len(second)} images cannot be compared in pairs")
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    differing = only_first + only_second
    return Paired(only_first, only_second, float(binomtest(only_first, differing).pvalue) if differing else 1.0)


def welch(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the two-sided p-value of equal means over seeds, with a variance for each recipe.

    None if a recipe has the same value with every seed: without a spread there is no test.

    Args:
        first: A metric of each run of a recipe, two or more.
        second: The same of another recipe.

    Raises:
        InputError: If a recipe has fewer than two runs.
    """
    if min(len(first), len(second)) < 2:
        raise InputError(f"{min(len(first), len(second))} run of a recipe is given; expected two or more of each")
    if len({*first}) == 1 or len({*second}) == 1:
        return None
    return float(ttest_ind(first, second, equal_var=False).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number by Holm's method, in the order given.

    The i-th smallest of m is multiplied by m − i + 1, is no smaller than the one before it, and at most 1. Then each
    that is below a level is significant at it, with that probability of one error or more among all.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for done, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - done)))
        adjusted[index] = highest
    return adjusted


@dataclass(frozen=True)
class Difference:
    """The difference between two runs on the same images.

    Attributes:
        value: The second run's metric less the first's, in points of per cent.
        low: Lower end of its interval.
        high: Upper end of its interval.
        p: Two-sided p-value of no difference.
        few: Whether the interval is of too few images to be trusted; see ``too_narrow``.
    """

    value: float
    low: float
    high: float
    p: float
    few: bool = False


def rate_difference(first: np.ndarray, second: np.ndarray, confidence: float = 0.95) -> Difference:
    """Compare two rates of the same images: Agresti and Min's interval, and McNemar's exact p-value.

    The interval is Wald's for matched pairs with half an image added to each of the four cells: of the n + 2 images,
    d ± z √((p₁₂ + p₂₁ − d²) / (n + 2)), where p₁₂ and p₂₁ are the shares on which only one of the two is true, and d is
    their difference. It has a width, and about its confidence, even if few images differ.

    Args:
        first: Outcome of each image by the first run, (N,) bool.
        second: The same by the second run.
        confidence: Of the interval, in (0, 1).

    Raises:
        InputError: If they are not of as many images, or of none.

    Source: Agresti and Min (2005), section 2.4.
    """
    if not len(first):
        raise InputError("two runs on no images cannot be compared in pairs")
    counts = mcnemar(first, second)
    n = len(first) + 2
    only_first, only_second = (counts.first + 0.5) / n, (counts.second + 0.5) / n
    middle = only_second - only_first
    half = float(norm.ppf((1 + confidence) / 2)) * ((only_first + only_second - middle**2) / n) ** 0.5
    value = 100 * (counts.second - counts.first) / len(first)
    return Difference(value, max(100 * (middle - half), -100.0), min(100 * (middle + half), 100.0), counts.p)


def auroc_difference(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], confidence: float = 0.95
) -> Difference:
    """Compare the areas under two ROC curves of the same images by DeLong's method.

    An image's part in the area is the share of the other side's images against which it is ranked correctly; a tie
    counts as half. All parts follow from the midranks among both sides and within each side. The variance of the
    difference of the areas is the variance of the difference of these parts.

    Args:
        first: Scores of the first run: of positive images, (N,), expected to be higher, and of negative ones, (M,).
        second: Scores of the second run for the same images in the same order.
        confidence: Of the interval, in (0, 1).

    Raises:
        InputError: If they are not of as many images, or of fewer than two on a side.

    Source: DeLong et al. (1988); the midranks are Sun and Xu's (2014).
    """
    sizes = [[len(side) for side in run] for run in (first, second)]
    if sizes[0] != sizes[1] or min(sizes[0]) < 2:
        raise InputError(
            f"two runs on {sizes[0][0]} and {sizes[0][1]}, and on {sizes[1][0]} and {sizes[1][1]} images: areas are "
            "compared on the same images, two or more on each side"
        )
    gains = [after - before for before, after in zip(_placements(*first), _placements(*second), strict=True)]
    value = float(gains[0].mean())
    deviation = float(sum(gain.var(ddof=1) / len(gain) for gain in gains)) ** 0.5
    half = float(norm.ppf((1 + confidence) / 2)) * deviation
    every = np.concatenate(gains)
    # a normal test needs a spread; without one, the exact test of the gains' signs
    p = float(2 * norm.sf(abs(value) / deviation)) if deviation > 1e-12 else mcnemar(every > 0, every < 0).p
    low, high = max(100 * (value - half), -100.0), min(100 * (value + half), 100.0)
    return Difference(100 * value, low, high, p, too_narrow(100 * value, low, high, min(sizes[0]), -100.0, 100.0))


def _placements(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each image's share of the other side against which it is ranked correctly; both means are the area."""
    ranks = rankdata(np.concatenate([positive, negative]))
    below = (ranks[: len(positive)] - rankdata(positive)) / len(negative)
    above = 1 - (ranks[len(positive) :] - rankdata(negative)) / len(positive)
    return below, above


def ece_difference(
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    bins: int = BINS,
    draws: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Compare two expected calibration errors of the same images by the paired bootstrap.

    The resampled differences are centred at the difference, as noise makes a calibration error larger. The smallest p,
    2 / (draws + 1), stays below 0.05 after Holm's factor for up to 50 runs.

    Args:
        first: Confidence in [0, 1] and whether it was right, bool, by the first run: (N,), or (N, K) of K labels.
        second: The same by the second run.
        bins: Number of bins of equal width, (low, high].
        draws: Number of resamples.
        confidence: Of the interval, in (0, 1).
        seed: Of the resamples.

    Raises:
        InputError: If they are not of as many images, or of none.
    """
    n = len(first[0])
    if n != len(second[0]) or not n:
        raise InputError(f"two runs on {n} and {len(second[0])} images cannot be compared in pairs")
    gaps = np.concatenate([_gaps(*first, bins), _gaps(*second, bins)], 1)

    def less(counts: np.ndarray) -> np.ndarray:
        errors = np.abs(counts @ gaps).reshape(-1, 2, bins).sum(2) * 100 / n
        return errors[:, 1] - errors[:, 0]

    return paired_difference(less, n, draws, confidence, seed, centred=True)


def paired_difference(
    statistic: Callable[[np.ndarray], Any],
    n: int,
    draws: int,
    confidence: float = 0.95,
    seed: int = 0,
    *,
    centred: bool = False,
) -> Difference:
    """Return a difference with its percentile interval over resamples of the images of both runs.

    p is twice the smaller share of the resampled differences at or beyond zero.

    Args:
        statistic: Maps how often each image counts, (B, N), to the differences, (B,); NaN leaves a resample out, such
            as one without an object.
        n: N.
        draws: Number of resamples.
        confidence: Of the interval, in (0, 1).
        seed: Of the resamples.
        centred: Whether the resampled differences are moved so that their mean is the difference.

    Source: Efron and Tibshirani (1993), chapters 13 and 15.
    """
    value = float(np.asarray(statistic(np.ones((1, n), dtype=np.int64)))[0])
    drawn = bootstrap(statistic, (n, seed), draws=draws)
    drawn = drawn[~np.isnan(drawn)]
    drawn = drawn - drawn.mean() + value if centred else drawn
    low, high = _percentiles(drawn, confidence)
    beyond = int(min((drawn <= 0).sum(), (drawn >= 0).sum()))
    p = min(1.0, 2 * (1 + beyond) / (len(drawn) + 1))
    return Difference(value, low, high, p, too_narrow(value, low, high, n))


def _gaps(confidence: np.ndarray, right: np.ndarray, bins: int) -> np.ndarray:
    """Return the mean right − confidence of an image's labels in the columns of bins: ECE is Σ_b |Σ_n of it| / N."""
    each = one_hot_bins(confidence.ravel(), bin_edges(confidence, bins, False)) * (right - confidence).reshape(-1, 1)
    return each.reshape(len(confidence), -1, bins).mean(1)


# ---- calibration bins ----
# Bins of confidence, (low, high], and the calibration errors from them.


class Reliability(NamedTuple):
    """The table behind a reliability diagram, one row a bin.

    Attributes:
        low: Confidences of the bin are above it, (bins,).
        high: And at most this, (bins,).
        images: Number of images in the bin, (bins,) int64.
        confidence: Their mean confidence, in [0, 1]; NaN in an empty bin.
        accuracy: Share of right predictions, in [0, 1]; NaN in an empty bin.
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
    """Return the bin of each confidence, one-hot (N, bins) float64; rounding above 1 counts as 1."""
    index = np.searchsorted(edges[1:-1], confidence, side="left")
    return (index[:, None] == np.arange(len(edges) - 1)).astype(np.float64)


def reliability_table(edges: np.ndarray, sums: np.ndarray) -> Reliability:
    """Return the table of each bin's sums of 1, confidence and right, (..., bins, 3)."""
    count = sums[..., :1]
    means = np.full((*count.shape[:-1], 2), np.nan)
    np.divide(sums[..., 1:], count, out=means, where=count > 0)
    return Reliability(edges[:-1], edges[1:], count[..., 0].round().astype(np.int64), means[..., 0], means[..., 1])


def expected_error(table: Reliability) -> np.ndarray:
    """Return Σ_b n_b/N · |acc_b − conf_b|, in per cent, (...)."""
    gaps = np.abs(table.accuracy - table.confidence)
    return 100 * np.nansum(table.images * gaps, -1) / table.images.sum(-1)


def max_error(table: Reliability) -> np.ndarray:
    """Return the largest |acc_b − conf_b|, in per cent, (...)."""
    return 100 * np.nanmax(np.abs(table.accuracy - table.confidence), -1)


def debiased_error(table: Reliability) -> np.ndarray:
    """Return the expected error less the part that noise adds, (...): ``ece_debiased``."""
    count, accuracy = table.images, table.accuracy
    gap = np.abs(accuracy - table.confidence)
    deviation = np.sqrt((accuracy * (1 - accuracy)).clip(0) / np.maximum(count, 1))
    ratio = np.divide(gap, deviation, out=np.full_like(gap, np.inf), where=deviation > 0)
    # E|N(gap, deviation²)|, the folded normal's mean
    mean = deviation * np.sqrt(2 / np.pi) * np.exp(-(ratio**2) / 2) + gap * erf(ratio / np.sqrt(2))
    return 100 * np.nansum(count * (2 * gap - mean), -1) / count.sum(-1)


def chance_error(confidence: np.ndarray, edges: np.ndarray) -> float:
    """Return the mean ECE of a calibrated classifier with these confidences, in per cent; the bins' gaps are normal."""
    variance = one_hot_bins(confidence, edges).T @ (confidence * (1 - confidence))
    return 100 * float(np.sqrt(2 / np.pi * variance.clip(0)).sum() / len(confidence))


# ---- bootstrap ----


class Interval(NamedTuple):
    """The ends of an interval.

    Attributes:
        low: Lower end.
        high: Upper end.
        few: Whether the interval is of too few images to be trusted; see ``too_narrow``.
    """

    low: float
    high: float
    few: bool


def bootstrap(statistic: Callable[..., Any], *sides: tuple[int, int], draws: int) -> np.ndarray:
    """Return a statistic of images drawn with replacement, (draws, ...).

    Args:
        statistic: Maps how often each image counts, (B, n) int64 for each side, to (B, ...).
        *sides: Number of images and seed of each set of images; one seed always gives the same resamples.
        draws: Number of resamples, at least 1.

    Raises:
        InputError: If ``draws`` is not a whole number, or below 1.
    """
    if not isinstance(draws, Integral) or draws < 1:
        raise InputError(f"draws is {draws}: expected at least one resample, a whole number")
    generators = [(n, np.random.default_rng(seed)) for n, seed in sides]
    block = max(1, min(64, 2_000_000 // max(n for n, _ in sides)))  # a matrix is faster than its rows, and has to fit
    found = []
    for start in range(0, int(draws), block):
        size = min(block, int(draws) - start)
        found.append(np.asarray(statistic(*(_count(size, n, generator) for n, generator in generators))))
    return np.concatenate(found)


def _count(size: int, n: int, generator: np.random.Generator) -> np.ndarray:
    """Return the counts of each of n images among n draws, (size, n)."""
    index = generator.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
    return np.bincount(index.ravel(), minlength=size * n).reshape(size, n)


def bootstrap_interval(
    value: float,
    drawn: np.ndarray,
    n: int,
    confidence: float = 0.95,
    *,
    least: float = 0.0,
    most: float = 100.0,
    centred: bool = True,
) -> Interval:
    """Return the percentile interval of a resampled metric.

    Centred, the resampled values are moved so that their mean is the value: a metric that noise makes larger, like a
    calibration error or a maximum over thresholds, is larger again in every resample, whose samples repeat, and the
    plain percentile interval lies above the value. For an unbiased metric nothing moves.

    Args:
        value: The metric on the images themselves.
        drawn: The metric on each resample, (draws,); NaN leaves a resample out.
        n: Number of images, of the smaller side where there are two.
        confidence: In (0, 1).
        least: Lower end of the metric's range.
        most: Upper end of it.
        centred: Whether the resampled values are moved.

    Raises:
        InputError: If ``confidence`` is out of its range.
    """
    check_confidence(confidence)
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return Interval(np.nan, np.nan, True)
    low, high = _percentiles(drawn, confidence)
    if centred:
        move = value - float(drawn.mean())
        low, high = max(min(low + move, value), least), min(max(high + move, value), most)
    return Interval(low, high, too_narrow(value, low, high, n, least, most))


def too_narrow(value: float, low: float, high: float, n: int, least: float = -np.inf, most: float = np.inf) -> bool:
    """Return whether an interval from fewer than ``FEW`` images has no width, or none on one side of the value.

    A few images may have the same value in every resample, or none beyond their own: the interval then says nothing
    of the images that were not drawn. An end at the value is no fault where it is the end of the metric's range.
    """
    tiny = 1e-9
    below, above = value - low < tiny and value - least > tiny, high - value < tiny and most - value > tiny
    return bool(n < FEW and (high - low < tiny or below or above))


def _percentiles(drawn: np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.percentile(drawn, [50 * (1 - confidence), 50 * (1 + confidence)])
    return float(low), float(high)


def check_confidence(confidence: float) -> None:
    """Refuse a confidence that leaves nothing on either side of an interval, or no interval.

    Raises:
        InputError: If it is not in (0, 1).
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}: expected a share between 0 and 1, e.g. 0.95")
