"""Out-of-distribution detection: scores of a classifier's confidence for its own test images and for other images.

In-distribution (ID) is the positive class and has the higher scores. The paper names its metrics as two programs do
that count ties differently, and does not say which one it used; so every result names its convention, and scores are
computed in float64, where far fewer are equal.

Source: paper, Table 12 and E.2; Hendrycks and Gimpel (2017) for the score; the conventions are in
:mod:`cutmix.evaluation.ood_conventions`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import logsumexp
from torch import Tensor

from cutmix.config.options import Convention
from cutmix.data.loaders import Upload
from cutmix.data.outliers import SEVEN, Outliers, Shape, open_outliers
from cutmix.errors import InputError
from cutmix.evaluation.classifier import Classifier, SuiteResult, as_logits
from cutmix.evaluation.ood_conventions import (
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

    It ranks images as the probability does, and distinguishes scores whose probability rounds to 1.

    Args:
        logits: (N, K), two classes or more.

    Raises:
        InputError: If the values are not finite logits.
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
        InputError: If the values are not finite logits, or ``temperature`` is not positive.
    """
    if not temperature > 0:
        raise InputError(f"temperature is {temperature}; expected a number above 0")
    return np.exp(_log_max(as_logits(logits) / temperature))


# ---- metrics of scores ----


def ood_metrics(
    id_scores: ArrayLike | Tensor,
    ood_scores: ArrayLike | Tensor,
    convention: Convention = "exact",
    *,
    num_classes: int | None = None,
) -> OodMetrics:
    """Return the metrics of a score that separates in-distribution from out-of-distribution images.

    * "exact": TNR at the highest threshold with at least 95 % of ID at or above it; a tie counts as half in AUROC;
      AUPR is average precision.
    * "odin": 100,000 thresholds from 1/K to 1; ties in favour of ID; TNR is the mean over TPR in [0.9495, 0.9505].
    * "confident": 200,000 thresholds from the lowest to the highest score; TPR in [0.94, 0.96], and TNR 0 where no
      threshold gives such a TPR; AUROC without its last piece.
    * "mahalanobis": one step a sample, ties against ID; TNR where TPR is nearest to 95 %; trapezoids.
    * "openood": OOD is positive, so its TNR at 95 % has another threshold; AUPR by trapezoids.

    Args:
        id_scores: (N,), higher where the classifier is more confident.
        ood_scores: (M,).
        convention: Convention of the metrics.
        num_classes: Number of classes K; for "odin", whose scores are probabilities.

    Raises:
        InputError: If a side is empty or not finite, or a convention cannot be applied.
    """
    sides = Sides(as_scores(id_scores, "in-distribution"), as_scores(ood_scores, "out-of-distribution"))
    return statistic_of(convention, num_classes)(sides.counts())


# ---- the suite ----


class _Evaluated(NamedTuple):
    """A score with a convention, and the metrics that are recorded."""

    score: str
    convention: Convention
    metrics: tuple[str, ...]  # in the order of ``statistic``, which may return more
    statistic: Statistic
    exponential: bool = False  # whether the score's exponential is counted: a probability in place of its logarithm


_SCORES = {"max-softmax": log_max_softmax, "energy": energy, "odin-temperature": odin_temperature}
_ALWAYS = (
    _Evaluated("max-softmax", "exact", OodMetrics._fields, exact),
    _Evaluated("max-softmax", "mahalanobis", ("tnr95", "auroc"), mahalanobis_tnr95_auroc),
    _Evaluated("energy", "exact", ("auroc",), lambda c: (auroc(c),)),
    _Evaluated("odin-temperature", "exact", ("auroc",), lambda c: (auroc(c),)),
)


def _evaluated(conventions: Sequence[Convention], num_classes: int) -> list[_Evaluated]:
    """Return the default metrics, and all metrics of the largest probability by further conventions."""
    further = [
        _Evaluated("max-softmax", name, OodMetrics._fields[:5], statistic_of(name, num_classes), exponential=True)
        for name in dict.fromkeys(conventions) if name != "exact"
    ]  # fmt: skip
    return [each for each in _ALWAYS if each.convention == "exact" or each.convention not in conventions] + further


def ood_suite(
    classifier: Classifier,
    outliers: Sequence[str] | None = None,
    *,
    conventions: Sequence[Convention] = (),
    logits: Tensor | None = None,
    draws: int = 1000,
) -> SuiteResult:
    """Evaluate how well a classifier's confidence separates its own test images from others.

    Args:
        classifier: Model and images; the images are in-distribution.
        outliers: Data sets as for :func:`cutmix.data.outliers.open_outliers`, each with at most as many images as the
            classifier's; None is the paper's seven, and those that are not found are recorded as not run.
        conventions: Further conventions for the largest softmax probability; see :func:`ood_metrics`. Always evaluated
            are the metrics by definition, and TNR and AUROC of "mahalanobis".
        logits: The classifier's logits on its images, (N, K), if they are known.
        draws: Number of resamples for the intervals.

    Returns:
        Records, the array ``labels`` (N,) int64, and for every score and data set the array ``SCORE/SET`` (n,)
        float64, ``SCORE/id`` for the classifier's own images; for the largest softmax probability its logarithm.

    Raises:
        InputError: If a named data set cannot be opened, none is named, or a logit is not finite.
    """
    if outliers is not None and not outliers:
        raise InputError("outliers is empty; expected one or more data sets, or None for the paper's seven")
    own = as_logits(classifier.predict() if logits is None else logits)
    evaluated = _evaluated(conventions, own.shape[1])
    arrays = {"labels": classifier.labels.cpu().numpy()} | {f"{name}/id": of(own) for name, of in _SCORES.items()}
    common: dict[str, Any] = {"suite": "ood"}
    records: list[Record] = []
    found: dict[str, list[_Found]] = {}
    images = len(own)
    for name in dict.fromkeys(outliers or SEVEN):
        opened = _open(name, classifier, named=outliers is not None)
        if isinstance(opened, str):
            usual: dict[str, Any] = {"convention": "exact", "score": "max-softmax"}
            records.append(Record(metric="ood_auroc", value=None, n=0, of=name, note=opened, **usual, **common))
            continue
        other = _logits(classifier, opened)
        arrays |= {f"{score}/{name}": of(other) for score, of in _SCORES.items()}
        found[name] = [_find(each, arrays, name, draws, classifier.seed) for each in evaluated]
        records += _records(evaluated, found[name], common | {"n": len(own) + len(other), "of": name}, opened.note)
        images += len(other)
    if len(found) > 1:
        mean = [_mean(sets) for sets in zip(*found.values(), strict=True)]
        seven = set(found) == set(SEVEN)
        note = None if seven else f"the mean of {', '.join(found)}, not of the paper's seven sets"
        records += _records(evaluated, mean, common | {"n": images, "of": f"mean of {len(found)} sets"}, note)
    return SuiteResult(records, arrays)


def _logits(classifier: Classifier, outliers: Outliers) -> np.ndarray:
    """Return the logits of all images of a data set, (n, K) float64."""
    upload, batches = Upload(classifier.device), outliers.batches(classifier.batch_size)
    logits = torch.cat([classifier.logits(*upload([batch])) for batch in batches])
    classifier.check()
    return as_logits(logits)


class _Found(NamedTuple):
    """The metrics of a score and convention, (k,), of its resamples, (draws, k), and the images of the smaller side."""

    values: np.ndarray
    drawn: np.ndarray
    fewest: int


def _find(evaluated: _Evaluated, arrays: dict[str, np.ndarray], name: str, draws: int, seed: int) -> _Found:
    scores = (arrays[f"{evaluated.score}/{side}"] for side in ("id", name))
    sides = Sides(*(np.exp(each) if evaluated.exponential else each for each in scores))
    values, drawn = evaluated.statistic(sides.counts()), sides.resampled(evaluated.statistic, draws, seed, name)
    metrics = len(evaluated.metrics)
    return _Found(np.array(values)[:metrics], drawn[:, :metrics], sides.fewest)


def _mean(sets: Sequence[_Found]) -> _Found:
    """Average data sets, resample by resample; in each resample all have the same ID images."""
    values, drawn, fewest = zip(*sets, strict=True)
    return _Found(np.mean(values, 0), np.mean(drawn, 0), min(fewest))


def _open(name: str, classifier: Classifier, *, named: bool) -> Outliers | str:
    """Open a data set, or return the reason not to run it; only a data set given by name must exist."""
    ours = classifier.data
    if name == ours or (name.startswith("tiny-imagenet") and ours.startswith(("tiny-imagenet", "imagenet"))):
        return f"not run: {name} is in-distribution for this classifier ({ours})"
    shape: Shape = tuple(classifier.images.shape[1:])  # type: ignore[assignment]
    try:
        return open_outliers(name, shape, count=len(classifier), seed=classifier.seed)
    except InputError as error:
        if named:
            raise
        return f"not run: {error}"


def _records(
    evaluated: Sequence[_Evaluated], found: Sequence[_Found], common: dict[str, Any], note: str | None
) -> list[Record]:
    """Return the records of one data set."""
    records = []
    for each, (values, drawn, fewest) in zip(evaluated, found, strict=True):
        for name, value, spread in zip(each.metrics, values, drawn.T, strict=True):
            ends = bootstrap_interval(float(value), spread, fewest)
            chosen_on = "test" if name == "detection_acc" else None
            records.append(Record(
                metric=f"ood_{name}", value=float(value), **ends._asdict(), convention=each.convention,
                score=each.score, chosen_on=chosen_on, note=note, **common,
            ))  # fmt: skip
    return records
