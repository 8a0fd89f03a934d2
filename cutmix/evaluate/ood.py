"""Out-of-distribution detection: is a classifier less sure of images that are of no class of its own?

In-distribution (ID) is the positive class, and its scores are meant to be higher. The paper's measures are named as in
two programs that count ties differently, and it does not say which it ran; so every result names its convention, and
scores are taken in float64, where far fewer are equal.

Source: paper, Table 12 and E.2; Hendrycks and Gimpel (2017) for the score; the conventions are in
:mod:`cutmix.evaluate.ood_conventions`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import logsumexp
from torch import Tensor

from cutmix.data.outliers import SEVEN, Outliers, Shape, open_outliers
from cutmix.errors import InputError
from cutmix.evaluate.classifier import Classifier, Suite
from cutmix.evaluate.logits import as_logits
from cutmix.evaluate.ood_conventions import (
    Convention,
    OodMetrics,
    Sides,
    Statistic,
    as_scores,
    auroc,
    exact,
    mahalanobis_tnr95_auroc,
    statistic_of,
)
from cutmix.runs.record import Record
from cutmix.statistics import bootstrap_interval

# ---- scores, from logits ----


def max_softmax(logits: ArrayLike | Tensor) -> np.ndarray:
    """Return the largest probability of each image, (N,) float64: the paper's score; see :func:`log_max_softmax`."""
    return np.exp(log_max_softmax(logits))


def log_max_softmax(logits: ArrayLike | Tensor) -> np.ndarray:
    """Return log max p = −log(1 + Σ_others exp(z − max z)), (N,) float64.

    It ranks as the probability does, and keeps apart what rounds to the probability 1.

    Args:
        logits: (N, K), two classes or more.

    Raises:
        InputError: If these are no finite logits.
    """
    return _log_max(as_logits(logits))


def _log_max(z: np.ndarray) -> np.ndarray:
    top = z.argmax(1)[:, None]
    others = np.exp(z - np.take_along_axis(z, top, 1))
    np.put_along_axis(others, top, 0.0, 1)
    return -np.log1p(others.sum(1))


def energy(logits: ArrayLike | Tensor) -> np.ndarray:
    """Return log Σ_k exp z_k, the negative energy, (N,) float64; higher for ID. Source: Liu et al. (2020), T = 1."""
    return logsumexp(as_logits(logits), axis=1)


def odin_temperature(logits: ArrayLike | Tensor, temperature: float = 1000.0) -> np.ndarray:
    """Return the largest probability of softmax(logits / T), (N,) float64: ODIN's score without its perturbation.

    Raises:
        InputError: If these are no finite logits, or ``temperature`` is not positive.
    """
    if not temperature > 0:
        raise InputError(f"temperature is {temperature}: expected a number above 0")
    return np.exp(_log_max(as_logits(logits) / temperature))


# ---- measures, from scores ----


def ood_metrics(
    id_scores: ArrayLike | Tensor,
    ood_scores: ArrayLike | Tensor,
    convention: Convention = "exact",
    *,
    num_classes: int | None = None,
) -> OodMetrics:
    """Measure how well a score tells in-distribution from out-of-distribution images.

    * "exact": TNR at the highest threshold with at least 95 % of ID at or above it; a tie counts as half in AUROC;
      AUPR is average precision.
    * "odin": 100,000 thresholds from 1/K to 1; ties in favour of ID; TNR is the mean over TPR in [0.9495, 0.9505].
    * "confident": 200,000 thresholds from the lowest to the highest score; TPR in [0.94, 0.96], and TNR 0 where no
      threshold gives that; AUROC without its last piece.
    * "mahalanobis": one step a sample, ties against ID; TNR where TPR is nearest to 95 %; trapezoids.
    * "openood": OOD is positive, so its TNR at 95 % is of another threshold; AUPR by trapezoids.

    Args:
        id_scores: (N,), higher where the classifier is surer.
        ood_scores: (M,).
        convention: What is counted how.
        num_classes: K of the classifier, for "odin" alone, whose scores are probabilities.

    Raises:
        InputError: If a side is empty or not finite, or a convention cannot be applied.
    """
    sides = Sides(as_scores(id_scores, "in-distribution"), as_scores(ood_scores, "out-of-distribution"))
    return statistic_of(convention, num_classes)(sides.counts())


def bootstrap_ood(
    id_scores: ArrayLike | Tensor,
    ood_scores: ArrayLike | Tensor,
    convention: Convention = "exact",
    *,
    num_classes: int | None = None,
    draws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[OodMetrics, OodMetrics]:
    """Return lower and upper ends of each measure's interval, both sides resampled; else as :func:`ood_metrics`.

    Args:
        id_scores: (N,).
        ood_scores: (M,).
        convention: As in :func:`ood_metrics`.
        num_classes: As in :func:`ood_metrics`.
        draws: Resamples.
        confidence: In (0, 1).
        seed: Of the resamples.
    """
    sides = Sides(as_scores(id_scores, "in-distribution"), as_scores(ood_scores, "out-of-distribution"))
    statistic = statistic_of(convention, num_classes)
    value, drawn = statistic(sides.counts()), sides.resampled(statistic, draws, seed, "out")
    ends = [bootstrap_interval(*pair, confidence) for pair in zip(value, drawn.T, strict=True)]
    return OodMetrics(*(low for low, _ in ends)), OodMetrics(*(high for _, high in ends))


# ---- the suite ----

# score, its function of logits, convention, statistic, and the names of its measures
_MEASURED: tuple[tuple[str, Callable[[np.ndarray], np.ndarray], str, Statistic, tuple[str, ...]], ...] = (
    ("max-softmax", log_max_softmax, "exact", exact, OodMetrics._fields),
    ("max-softmax", log_max_softmax, "mahalanobis", mahalanobis_tnr95_auroc, ("tnr95", "auroc")),
    ("energy", energy, "exact", lambda c: (auroc(c),), ("auroc",)),
    ("odin-temperature", odin_temperature, "exact", lambda c: (auroc(c),), ("auroc",)),
)


def ood_suite(
    classifier: Classifier,
    outliers: Sequence[str] | None = None,
    *,
    logits: Tensor | None = None,
    count: int | None = None,
    draws: int = 1000,
    confidence: float = 0.95,
    seed: int | None = None,
) -> Suite:
    """Measure how well a classifier's confidence tells its own test images from others.

    Args:
        classifier: What is measured; its images are in-distribution.
        outliers: Sets as :func:`cutmix.data.outliers.open_outliers` takes them; by default the paper's seven, of which
            those that are not at hand are recorded as not run.
        logits: The classifier's on its own images, (N, K), where they are known already.
        count: Most images of a set; by default as many as the classifier has.
        draws: Resamples for the intervals.
        confidence: Of the intervals.
        seed: Of noise, crops and resamples; by default the classifier's.

    Returns:
        Records, the array ``labels`` (N,) int64, and for every score and set the array ``SCORE/SET`` (n,)
        float64, ``SCORE/id`` for the classifier's own images; of the maximum softmax the logarithm, which orders the
        same and rounds nothing to 1.

    Raises:
        InputError: If a set that was named cannot be opened, or none is named.
    """
    if outliers is not None and not outliers:
        raise InputError("no set of outliers is named: expected one or more, or None for the paper's seven")
    seed = classifier.seed if seed is None else seed
    own = as_logits(classifier.predict() if logits is None else logits)
    arrays = {"labels": classifier.labels.cpu().numpy()}
    arrays |= {f"{score}/id": of(own) for score, of, *_ in _MEASURED}
    common: dict[str, Any] = {"confidence": confidence, "suite": "ood"}
    records: list[Record] = []
    measured: dict[str, list[_Measured]] = {}
    images = len(own)
    for name in dict.fromkeys(outliers or SEVEN):
        found = _open(name, classifier, count or len(classifier), seed, named=outliers is not None)
        if isinstance(found, str):
            usual: dict[str, Any] = {"convention": "exact", "score": "max-softmax"}
            records.append(Record(metric="ood_auroc", value=None, n=0, of=name, note=found, **usual, **common))
            continue
        batches = found.batches(classifier.batch_size)
        other = as_logits(torch.cat([classifier.logits(batch.to(classifier.device)).cpu() for batch in batches]))
        arrays |= {f"{score}/{name}": of(other) for score, of, *_ in _MEASURED}
        measured[name] = [
            _measure(Sides(arrays[f"{score}/id"], arrays[f"{score}/{name}"]), statistic, draws, seed, name)
            for score, _, _, statistic, _ in _MEASURED
        ]
        records += _records(measured[name], common | {"n": len(own) + len(other), "of": name}, found.note)
        images += len(other)
    if len(measured) > 1:
        mean = [_mean(sets) for sets in zip(*measured.values(), strict=True)]
        seven = set(measured) == set(SEVEN)
        note = None if seven else f"the mean of {', '.join(measured)}, not of the paper's seven sets"
        records += _records(mean, common | {"n": images, "of": f"mean of {len(measured)} sets"}, note)
    return Suite(records, arrays)


class _Measured(NamedTuple):
    """The measures of one score and convention, (k,), and those of the resamples, (draws, k)."""

    values: np.ndarray
    drawn: np.ndarray


def _measure(sides: Sides, statistic: Statistic, draws: int, seed: int, name: str) -> _Measured:
    return _Measured(np.array(statistic(sides.counts())), sides.resampled(statistic, draws, seed, name))


def _mean(sets: Sequence[_Measured]) -> _Measured:
    """Average sets, resample by resample: in each, all of them met the same ID images."""
    return _Measured(*(np.mean(part, 0) for part in zip(*sets, strict=True)))


def _open(name: str, classifier: Classifier, count: int, seed: int, *, named: bool) -> Outliers | str:
    """Open a set, or return why it is not run; only a set that was named has to be there."""
    ours = classifier.data
    if name == ours or (name.startswith("tiny-imagenet") and ours.startswith(("tiny-imagenet", "imagenet"))):
        return f"not run: {name} is what the classifier knows ({ours})"
    shape: Shape = tuple(classifier.images.shape[1:])  # type: ignore[assignment]
    try:
        return open_outliers(name, shape, count=count, seed=seed)
    except InputError as error:
        if named:
            raise
        return f"not run: {error}"


def _records(measured: Sequence[_Measured], common: dict[str, Any], note: str | None) -> list[Record]:
    """Make the records of one set."""
    records = []
    for (score, _, convention, _, names), (values, drawn) in zip(_MEASURED, measured, strict=True):
        for name, value, spread in zip(names, values, drawn.T, strict=True):
            low, high = bootstrap_interval(value, spread, common["confidence"])
            chosen_on = "test" if name == "detection_acc" else None
            records.append(Record(
                metric=f"ood_{name}", value=value, low=low, high=high, convention=convention, score=score,
                chosen_on=chosen_on, note=note, **common,
            ))  # fmt: skip
    return records
