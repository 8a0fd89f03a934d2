"""Whether two results differ: exact McNemar for two runs, Welch's t for two sets of seeds, Holm for several such tests.

By how much, for two runs on the same images: Agresti–Min of rates, DeLong of areas under ROC curves, the paired
bootstrap of calibration errors.

No torch here: predictions are read with NumPy, so that a page of finished runs is made anywhere.

Source: McNemar (1947) in its exact form, a binomial test of the samples on which two classifiers disagree; Holm (1979);
Welch (1947).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import erf
from scipy.stats import binomtest, norm, rankdata, ttest_ind

from cutmix.errors import UNREADABLE, InputError
from cutmix.runtime.seeding import derive_seed

LEVEL = 0.05


@dataclass(frozen=True)
class Outcome:
    """What a run made of each image of a test set.

    Attributes:
        labels: Class ids, (N,) int64.
        right: Whether the highest logit was the label's, (N,) bool.
    """

    labels: np.ndarray
    right: np.ndarray


@dataclass(frozen=True)
class Paired:
    """Two runs on the same images.

    Attributes:
        first: Images that only the first run got right.
        second: Images that only the second run got right.
        p: Two-sided p-value of the hypothesis that both runs err equally often.
    """

    first: int
    second: int
    p: float


def read_outcome(path: Path) -> Outcome:
    """Read a file of predictions; of equal logits the lowest class counts, as when errors are measured.

    Raises:
        InputError: If the file cannot be read or holds something else.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            logits, labels = arrays["logits"], arrays["labels"]
    except (*UNREADABLE, KeyError) as error:
        raise InputError(f"{path} cannot be read as predictions (logits and labels in an npz file): {error}") from None
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise InputError(
            f"{path} holds logits of shape {logits.shape} and labels of {labels.shape}; expected (N, K) and (N,)"
        )
    return Outcome(labels, logits.argmax(1) == labels)


def mcnemar(first: np.ndarray, second: np.ndarray) -> Paired:
    """Compare two runs by the images that one gets right and the other wrong; exact, so it holds for few of them too.

    Args:
        first: Whether the first run got each image right, (N,) bool.
        second: The same of the second run, for the same images in the same order.

    Raises:
        InputError: If they are not of as many images.
    """
    if first.shape != second.shape:
        raise InputError(f"two runs on {len(first)} and {len(second)} images cannot be compared in pairs")
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    differing = only_first + only_second
    return Paired(only_first, only_second, float(binomtest(only_first, differing).pvalue) if differing else 1.0)


def welch(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the two-sided p-value of equal means over seeds, the spreads of the two recipes being their own.

    None where one recipe gave the same value with every seed: there is no spread to test against.

    Args:
        first: A measure of each run of a recipe, two or more.
        second: The same of another recipe.

    Raises:
        InputError: If there are fewer than two runs of one.
    """
    if min(len(first), len(second)) < 2:
        raise InputError("means over seeds are compared from two runs of each recipe on")
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


def in_words(p: float) -> str:
    """Return a p-value for a table: what is not significant says so."""
    said = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    return said if p < LEVEL else f"not significant ({said})"


@dataclass(frozen=True)
class Difference:
    """What a second run has more than a first one, on the same images.

    Attributes:
        value: The second run's measure less the first's, in points of per cent.
        low: Lower end of its interval.
        high: Upper end of its interval.
        p: Two-sided p-value of no difference.
    """

    value: float
    low: float
    high: float
    p: float


def rate_difference(first: np.ndarray, second: np.ndarray, confidence: float = 0.95) -> Difference:
    """Compare two rates of the same images: Agresti and Min's interval, and McNemar's exact p-value.

    The interval is Wald's for matched pairs with half an image added to each of the four cells: of the n + 2 images,
    d ± z √((p₁₂ + p₂₁ − d²) / (n + 2)), where p₁₂ and p₂₁ are the shares on which only one of the two is true, and d is
    their difference. So it has a width, and about its confidence, for few differing images too.

    Args:
        first: Whether something is true of each image by the first run, (N,) bool.
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
    return Difference(value, 100 * (middle - half), 100 * (middle + half), counts.p)


def auroc_difference(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], confidence: float = 0.95
) -> Difference:
    """Compare the areas under two ROC curves of the same images by DeLong's method.

    An image's part in the area is the share of the other side's images that it is ranked rightly against, a tie counted
    as half; all of them are read off midranks, among both sides and among the own one. The variance of the difference
    of the areas is that of the difference of these parts.

    Args:
        first: Scores of the first run: of positive images, (N,), meant to be higher, and of negative ones, (M,).
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
    (positive, negative), (other_positive, other_negative) = _placements(*first), _placements(*second)
    gains = other_positive - positive, other_negative - negative
    value = float(gains[0].mean())
    deviation = float(sum(gain.var(ddof=1) / len(gain) for gain in gains)) ** 0.5
    half = float(norm.ppf((1 + confidence) / 2)) * deviation
    # without any spread there is no test
    p = float(2 * norm.sf(abs(value) / deviation)) if deviation > 0 else float(value == 0)
    return Difference(100 * value, 100 * (value - half), 100 * (value + half), p)


def _placements(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each image's share of the other side that it is ranked rightly against; both means are the area."""
    ranks = rankdata(np.concatenate([positive, negative]))
    below = (ranks[: len(positive)] - rankdata(positive)) / len(negative)
    above = 1 - (ranks[len(positive) :] - rankdata(negative)) / len(positive)
    return below, above


def ece_difference(
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    bins: int = 15,
    draws: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Compare two expected calibration errors of the same images by resampling them in pairs.

    The interval is the percentiles of the resampled differences, moved so that their mean is the measured difference,
    for noise makes a calibration error larger; p is twice the smaller share of those at or beyond zero.

    Args:
        first: Confidence, (N,) in [0, 1], and whether it was right, (N,) bool, by the first run.
        second: The same by the second run.
        bins: Number of bins of equal width, (low, high].
        draws: Resamples.
        confidence: Of the interval, in (0, 1).
        seed: Of the resamples; NumPy's own generator, as no torch is here.

    Raises:
        InputError: If they are not of as many images, or of none.

    Source: Efron and Tibshirani (1993), chapters 13 and 15.
    """
    n = len(first[0])
    if n != len(second[0]) or not n:
        raise InputError(f"two runs on {n} and {len(second[0])} images cannot be compared in pairs")
    gaps = np.concatenate([_gaps(*first, bins), _gaps(*second, bins)], 1)
    generator = np.random.default_rng(seed)
    drawn = []
    for start in range(0, draws, 32):
        indices = generator.integers(n, size=(min(32, draws - start), n))
        drawn.append(np.stack([np.bincount(index, minlength=n) for index in indices]) @ gaps)
    errors = np.abs(np.concatenate([gaps.sum(0)[None], *drawn])).reshape(-1, 2, bins).sum(2) * 100 / n
    value, *resampled = errors[:, 1] - errors[:, 0]
    return difference_of_resamples(float(value), np.array(resampled) - np.mean(resampled) + value, confidence)


def difference_of_resamples(value: float, resampled: np.ndarray, confidence: float = 0.95) -> Difference:
    """Return a difference with the percentiles of its resamples; p is twice the smaller share at or beyond zero.

    Args:
        value: The difference on the samples themselves.
        resampled: The difference on each resample, (draws,); where it is NaN, as of pictures without an object, the
            resample is left out.
        confidence: Of the interval, in (0, 1).

    Source: Efron and Tibshirani (1993), chapters 13 and 15.
    """
    resampled = resampled[~np.isnan(resampled)]
    low, high = np.percentile(resampled, [50 * (1 - confidence), 50 * (1 + confidence)])
    beyond = int(min((resampled <= 0).sum(), (resampled >= 0).sum()))
    return Difference(value, float(low), float(high), min(1.0, 2 * (1 + beyond) / (len(resampled) + 1)))


def _gaps(confidence: np.ndarray, right: np.ndarray, bins: int) -> np.ndarray:
    """Return right − confidence of each image in the column of its bin, (N, bins): ECE is Σ_b |Σ_n of it| / N."""
    index = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
    return (index[:, None] == np.arange(bins)) * (right - confidence)[:, None]


# ---- calibration bins ----
# Bins of confidence, (low, high], and the calibration errors that are taken from them.


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


# ---- bootstrap ----
# Seeded resampling of test images, and the interval that it gives.

_BLOCK = 64  # resamples drawn at a time: a call for each would cost more than its numbers


def resamples(n: int, draws: int, *stream: int | str) -> Iterator[np.ndarray]:
    """Yield ``draws`` times n indices below n, drawn with replacement; the same for the same stream.

    Args:
        n: Number of samples.
        draws: Number of resamples, at least 1.
        *stream: What names the random stream, as in :func:`cutmix.runtime.seeding.derive_seed`.

    Raises:
        InputError: If ``draws`` is no whole number, or below 1.
    """
    if not isinstance(draws, Integral) or draws < 1:
        raise InputError(f"draws is {draws}: expected at least one resample, a whole number")
    import torch

    generator = torch.Generator().manual_seed(derive_seed(*stream))
    for start in range(0, draws, _BLOCK):
        yield from torch.randint(n, (min(_BLOCK, draws - start), n), generator=generator).numpy()


def bootstrap_interval(
    value: float, draws: np.ndarray, confidence: float, least: float = 0.0, most: float = 100.0
) -> tuple[float, float]:
    """Return the percentile interval of resampled values, moved so that their mean is the measured value.

    A measure that noise makes larger, like a calibration error or a maximum over thresholds, is larger again in every
    resample, whose samples repeat: the plain percentile interval then lies above the value. Moved, it is the spread
    of the measure at this number of samples. For an unbiased measure nothing moves.

    Args:
        value: The measure on the samples themselves.
        draws: The measure on each resample, (draws,).
        confidence: In (0, 1).
        least: Lower end of the measure's range.
        most: Upper end of it.

    Raises:
        InputError: If ``confidence`` is out of its range.
    """
    check_confidence(confidence)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(draws, [tail, 100 - tail]) - draws.mean() + value
    return float(max(min(low, value), least)), float(min(max(high, value), most))


def check_confidence(confidence: float) -> None:
    """Refuse a confidence that leaves nothing on either side of an interval, or no interval.

    Raises:
        InputError: If it is not in (0, 1).
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}: expected a share between 0 and 1, e.g. 0.95")
