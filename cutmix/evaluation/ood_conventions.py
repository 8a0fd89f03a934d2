"""Conventions of the metrics of out-of-distribution detection, as functions of the number of times a score occurs.

In-distribution (ID) is positive and has the higher scores. The conventions agree on large sets without equal scores;
over-confident float32 scores, many of them exactly 1, move AUROC by twenty points.

Source: the code of ODIN (``calMetric.py``), of Lee et al. 2018a (Confident_classifier) and 2018b
(deep_Mahalanobis_detector), and of OpenOOD v1.5. Each is tested against a loop written from its definition, AUROC and
AUPR of "exact" against scikit-learn.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import trapezoid
from torch import Tensor

from cutmix.config.options import Convention
from cutmix.errors import InputError
from cutmix.evaluation.classifier import check_finite, real_numbers
from cutmix.runtime.seeding import derive_seed
from cutmix.statistics import bootstrap


class OodMetrics(NamedTuple):
    """Metrics of a score that separates two sets of images, in per cent.

    Attributes:
        tnr95: True negative rate where the true positive rate is 95 %; NaN where a convention has no such threshold.
        auroc: Area under the ROC curve: the probability that an ID image has the higher score.
        detection_acc: Largest mean of true positive and true negative rate, over all thresholds.
        aupr_in: Area under precision and recall, ID positive.
        aupr_out: Area under precision and recall, OOD positive.
        ties: Share of the scores that occur in both sets.
    """

    tnr95: float
    auroc: float
    detection_acc: float
    aupr_in: float
    aupr_out: float
    ties: float


class Counts(NamedTuple):
    """Numbers of images with each score; the metrics depend on nothing else, so that a resample is new counts."""

    values: np.ndarray  # the distinct scores, ascending, (U,)
    id: np.ndarray  # number of ID images with that score, (U,) int64
    ood: np.ndarray  # number of OOD images with that score, (U,) int64
    id_to: np.ndarray  # number of ID images with that score or a lower one, (U,) int64
    ood_to: np.ndarray  # number of OOD images with that score or a lower one, (U,) int64

    @property
    def n(self) -> int:
        """Number of ID images."""
        return int(self.id_to[-1])

    @property
    def m(self) -> int:
        """Number of OOD images."""
        return int(self.ood_to[-1])


class Sides:
    """The scores of both sides, sorted once, together."""

    def __init__(self, id_scores: np.ndarray, ood_scores: np.ndarray) -> None:
        self.values, rank = np.unique(np.concatenate([id_scores, ood_scores]), return_inverse=True)
        self.id_rank, self.ood_rank = rank[: len(id_scores)], rank[len(id_scores) :]

    @property
    def fewest(self) -> int:
        """Number of images of the smaller side."""
        return min(len(self.id_rank), len(self.ood_rank))

    def counts(self, id_counts: np.ndarray | None = None, ood_counts: np.ndarray | None = None) -> Counts:
        """Return the counts of the scores, each image counted as often as the arguments (n,) say, by default once."""
        size = len(self.values)
        inside = np.bincount(self.id_rank, id_counts, size).astype(np.int64)
        outside = np.bincount(self.ood_rank, ood_counts, size).astype(np.int64)
        return Counts(self.values, inside, outside, np.cumsum(inside), np.cumsum(outside))

    def resampled(self, statistic: "Statistic", draws: int, seed: int, name: str) -> np.ndarray:
        """Return the statistic of each resample, (draws, metrics); ID is resampled alike for every ``name``."""

        def resampled(ids: np.ndarray, oods: np.ndarray) -> list[Sequence[float]]:
            return [statistic(self.counts(*pair)) for pair in zip(ids, oods, strict=True)]

        own = len(self.id_rank), derive_seed(seed, "ood", "in")
        other = len(self.ood_rank), derive_seed(seed, "ood", name)
        return bootstrap(resampled, own, other, draws=draws)


Statistic = Callable[[Counts], Sequence[float]]


def as_scores(scores: ArrayLike | Tensor, side: str) -> np.ndarray:
    """Return scores as (N,) float64, checked to be finite real numbers."""
    array = real_numbers(scores, f"{side} scores")
    if array.ndim != 1 or not len(array):
        raise InputError(f"the {side} scores have the shape {array.shape}; expected (N,), one for each image")
    check_finite(array, f"{side} scores")
    return array


def statistic_of(convention: str, num_classes: int | None) -> Callable[[Counts], OodMetrics]:
    """Return a convention as a function of the counts; "odin" needs the number of classes."""
    if convention == "odin":
        if num_classes is None or num_classes < 2:
            raise InputError(f"num_classes is {num_classes}; expected at least 2, as ODIN's thresholds are 1/K to 1")
        return partial(_odin, num_classes=num_classes)
    if convention not in CONVENTIONS:
        raise InputError(f"the convention is '{convention}'; expected one of {', '.join(get_args(Convention))}")
    return CONVENTIONS[convention]


# ---- conventions ----


def exact(c: Counts) -> OodMetrics:
    """Return the metrics by their definitions, a tie counted as half."""
    return OodMetrics(
        _tnr95(c),
        auroc(c),
        _detection_acc(c),
        _average_precision(c.id, c.n - c.id_to + c.id, c.m - c.ood_to + c.ood),
        _average_precision(c.ood, c.ood_to, c.id_to),
        _ties(c),
    )


def _tnr95(c: Counts) -> float:
    """Return the share of OOD below t, the highest score with 95 % of ID at or above it, by integer arithmetic."""
    place = np.searchsorted(c.id_to, c.n - -(-95 * c.n // 100), side="right")
    return 100 * float(c.ood_to[place] - c.ood[place]) / c.m


def auroc(c: Counts) -> float:
    """Return P(ID > OOD) + P(ID = OOD) / 2, in per cent."""
    return 100 * float(np.dot(c.id, 2 * c.ood_to - c.ood)) / (2 * c.n * c.m)


def _detection_acc(c: Counts) -> float:
    return 50 * (1 + max(0.0, float((c.ood_to / c.m - c.id_to / c.n).max())))


def _average_precision(positive: np.ndarray, found: np.ndarray, false: np.ndarray) -> float:
    """Return Σ precision · (gain in recall), from counts at each threshold."""
    precision = found / np.maximum(found + false, 1)
    return 100 * float((positive * precision).sum()) / int(positive.sum())


def _ties(c: Counts) -> float:
    shared = (c.id > 0) & (c.ood > 0)
    return 100 * float((c.id + c.ood)[shared].sum()) / (c.n + c.m)


def _mahalanobis(c: Counts) -> OodMetrics:
    # one sample a step, upwards: equal scores of ID come first
    steps = np.repeat(np.tile([True, False], len(c.values)), np.stack([c.id, c.ood], 1).ravel())
    tp, fp = (np.concatenate([[0], np.cumsum(side)]) for side in (steps, ~steps))
    tp, fp = c.n - tp, c.m - fp
    tnr95, area = mahalanobis_tnr95_auroc(c)
    some = tp + fp > 0  # not at the end, where nothing is left
    aupr_in = trapezoid(np.r_[0.5, tp[some] / (tp + fp)[some], 0.0][::-1], np.r_[1.0, tp[some] / c.n, 0.0][::-1])
    tn, fn = c.m - fp, c.n - tp
    some = tn + fn > 0
    aupr_out = trapezoid(np.r_[0.0, tn[some] / (tn + fn)[some], 0.5], np.r_[0.0, tn[some] / c.m, 1.0])
    return OodMetrics(tnr95, area, _detection_acc(c), 100 * float(aupr_in), 100 * float(aupr_out), _ties(c))


def mahalanobis_tnr95_auroc(c: Counts) -> tuple[float, float]:
    """Return TNR, OOD below the i-th lowest ID score with (n − i)/n nearest to 0.95, and P(ID > OOD), a tie lost."""
    i = min((c.n // 20, c.n // 20 + 1), key=lambda i: abs((c.n - i) / c.n - 0.95))
    below = c.ood_to - c.ood
    tnr95 = float(below[np.searchsorted(c.id_to, i)]) / c.m if i else 0.0
    return 100 * tnr95, 100 * float(np.dot(c.id, below)) / (c.n * c.m)


def _openood(c: Counts) -> OodMetrics:
    place = np.searchsorted(c.ood_to, -(-95 * c.m // 100))  # OOD positive: 95 % of it at or below
    return OodMetrics(
        100 * (1 - float(c.id_to[place]) / c.n),
        auroc(c),
        _detection_acc(c),
        _precision_recall_area((c.n - c.id_to + c.id)[::-1], (c.m - c.ood_to + c.ood)[::-1]),
        _precision_recall_area(c.ood_to, c.id_to),
        _ties(c),
    )


def _precision_recall_area(found: np.ndarray, false: np.ndarray) -> float:
    """Return the area by trapezoids from precision 1 at recall 0, from counts that grow with each threshold."""
    precision = np.where(found + false > 0, found / np.maximum(found + false, 1), 1.0)
    return 100 * float(trapezoid(np.r_[1.0, precision], np.r_[0.0, found / found[-1]]))


def _odin(c: Counts, num_classes: int) -> OodMetrics:
    used = c.values[(c.id > 0) | (c.ood > 0)]
    if used[0] < 0 or used[-1] > 1 + 1e-6:
        raise InputError(
            f"the scores range from {used[0]:.4g} to {used[-1]:.4g}; the convention 'odin' expects probabilities"
        )
    return _grid(c, 1 / num_classes, 1.0, 100_000, (0.9495, 0.9505), float("nan"), tail=True)


def _confident(c: Counts) -> OodMetrics:
    used = c.values[(c.id > 0) | (c.ood > 0)]
    if len(used) < 2:
        raise InputError("all scores are equal; the convention 'confident' expects at least two different ones")
    return _grid(c, used[0], used[-1], 200_000, (0.94, 0.96), 1.0, tail=False)


def _grid(
    c: Counts, start: float, end: float, steps: int, window: tuple[float, float], otherwise: float, *, tail: bool
) -> OodMetrics:
    """Return the metrics at ``steps`` evenly spaced thresholds: ID at or above one, OOD above it, precision of rates.

    The FPR is averaged where the TPR is in ``window``, and is ``otherwise`` where it never is; ``tail`` says whether
    the last piece of the ROC curve counts.
    """
    gap = (end - start) / steps
    up, down = np.arange(start, end, gap), np.arange(end, start, -gap)
    id_to, ood_to = np.r_[0, c.id_to], np.r_[0, c.ood_to]
    below, upto = np.searchsorted(c.values, up), np.searchsorted(c.values, up, side="right")
    tpr, fpr = (c.n - id_to[below]) / c.n, (c.m - ood_to[upto]) / c.m
    inside = (tpr >= window[0]) & (tpr <= window[1])
    auroc = float(np.dot(-np.diff(fpr, prepend=1.0), tpr)) + (float(fpr[-1] * tpr[-1]) if tail else 0.0)
    error = min(1.0, float((id_to[below] / c.n + fpr).min()) / 2)
    under = np.searchsorted(c.values, down)
    return OodMetrics(
        100 * (1 - (float(fpr[inside].mean()) if inside.any() else otherwise)),
        100 * auroc,
        100 * (1 - error),
        _left_area(tpr, (c.m - ood_to[below]) / c.m),
        _left_area(ood_to[under] / c.m, id_to[under] / c.n),
        _ties(c),
    )


def _left_area(recall: np.ndarray, false: np.ndarray) -> float:
    """Return the area under precision over falling recall, each piece as high as its lower end, the last one to 0."""
    some = recall + false > 0
    if not some.any():
        return float("nan")
    recall, false = recall[some], false[some]
    precision = recall / (recall + false)
    return 100 * float(np.dot(-np.diff(recall, prepend=1.0), precision) + recall[-1] * precision[-1])


CONVENTIONS: dict[str, Callable[[Counts], OodMetrics]] = {
    "exact": exact,
    "confident": _confident,
    "mahalanobis": _mahalanobis,
    "openood": _openood,
}
