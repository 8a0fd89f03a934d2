"""Classification: predictions of a whole test set, errors with intervals, and the metrics of several labels an image.

The paper's tables report top-1 and top-5 error in per cent. The interval is Wilson's (1927), which stays inside
[0, 100] and keeps its coverage near the ends.

With several labels, each is a yes-or-no question: average precision, F1 at a threshold for each label, and calibration.
Where a label has no test image, its average precision and F1 do not exist, and the means leave it out.
"""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit
from scipy.stats import binomtest, norm
from torch import Tensor, nn

from cutmix.data import FileSet, ImageSet
from cutmix.errors import InputError
from cutmix.evaluation.calibration import CalibrationSums, calibration_result, zero_of
from cutmix.evaluation.classifier import SuiteResult, check_finite
from cutmix.runs.outcomes import image_f1, predicted_labels
from cutmix.runs.record import Record
from cutmix.runtime.device import World, gather_first
from cutmix.runtime.seeding import derive_seed
from cutmix.statistics import LEVEL, Interval, bootstrap, bootstrap_interval, check_confidence, too_narrow


class LabelledLogits(NamedTuple):
    """Logits of all samples in the order of the data set, from which any metric can be computed again.

    Attributes:
        logits: (N, K) float32 on the CPU.
        labels: Class ids, (N,) int64 on the CPU; or (N, K) uint8, 0 or 1, where an image can have several labels.
    """

    logits: Tensor
    labels: Tensor

    @property
    def multi_label(self) -> bool:
        """Whether an image can have several labels."""
        return self.labels.ndim == 2


class Proportion(NamedTuple):
    """A percentage and its interval.

    Attributes:
        value: Per cent.
        low: Lower bound, per cent.
        high: Upper bound, per cent.
        n: Number of samples.
    """

    value: float
    low: float
    high: float
    n: int


@torch.inference_mode()
def predict(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    world: World,
    *,
    autocast: contextlib.AbstractContextManager | None = None,
) -> LabelledLogits | None:
    """Return the predictions of a model on a test set; each process computes its share, and the first has the whole.

    No sample is padded or counted twice: process r of R has samples r, r + R, …, and the result is exact whatever
    the number of processes.

    Args:
        model: Maps images (n, C, H, W) to logits (n, K); put into eval mode, and back into its own mode afterwards.
        batches: Batches of this process, as ``cutmix.data.test_loader`` yields them.
        world: This process among all.
        autocast: Context of the forward pass, e.g. ``torch.autocast``.

    Returns:
        The predictions in the first process, and None in the others.

    Raises:
        InputError: In the first process, if the test set is empty or a logit is not finite.
    """
    training, logits, labels = model.training, [], []
    model.eval()
    with autocast or contextlib.nullcontext():
        for images, ids in batches:
            logits.append(model(images).float())
            labels.append(ids)
    model.train(training)
    share = (torch.cat(logits).cpu(), torch.cat(labels).cpu()) if logits else None
    gathered = gather_first(share, world)
    if gathered is None:
        return None
    shares = [part for part in gathered if part is not None]
    if not shares:
        raise InputError("the test set is empty")
    n, k = sum(len(part[1]) for part in shares), shares[0][0].shape[1]
    labels_of = shares[0][1]
    every = LabelledLogits(torch.empty(n, k), torch.empty(n, *labels_of.shape[1:], dtype=labels_of.dtype))
    for rank, (its_logits, its_labels) in enumerate(shares):
        every.logits[rank :: world.size] = its_logits
        every.labels[rank :: world.size] = its_labels
    check_finite(every.logits, "logits")
    return every


def wilson_interval(count: int, n: int, confidence: float = 0.95) -> Proportion:
    """Return a count out of n > 0 as a percentage with Wilson's score interval (scipy's, without a correction)."""
    check_confidence(confidence)
    interval = binomtest(count, n).proportion_ci(confidence, method="wilson")
    return Proportion(100 * count / n, 100 * interval.low, 100 * interval.high, n)


def mean_interval(values: np.ndarray, most: float = 100.0) -> Interval:
    """Return the normal 95 % interval of a mean over images, (N,), from 0 to ``most``; one image has none."""
    n = len(values)
    if n < 2:
        return Interval(np.nan, np.nan, True)
    value = float(values.mean())
    half = float(norm.ppf(1 - LEVEL / 2)) * float(values.std(ddof=1)) / n**0.5
    low, high = max(value - half, 0.0), min(value + half, most)
    return Interval(low, high, too_narrow(value, low, high, n, 0.0, most))


def classification_error(predictions: LabelledLogits, confidence: float = 0.95) -> dict[str, Proportion]:
    """Return ``top1_err`` and, for more than five classes, ``top5_err``, in per cent.

    A sample is right at k if fewer than k other classes have a higher logit, or an equal one and a lower index: ties
    are broken by the index, as ``argmax`` does, and not in the model's favour.

    Raises:
        InputError: If a label has no logit.
    """
    logits, labels = predictions
    if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        raise InputError(
            f"the labels range from {int(labels.min())} to {int(labels.max())}; expected 0 to {logits.shape[1] - 1}"
        )
    rank = true_class_rank(logits, labels)
    errors = {"top1_err": wilson_interval(int((rank >= 1).sum()), len(labels), confidence)}
    if logits.shape[1] > 5:
        errors["top5_err"] = wilson_interval(int((rank >= 5).sum()), len(labels), confidence)
    return errors


def error_records(predictions: LabelledLogits) -> list[Record]:
    """Return the errors with their intervals."""
    errors = classification_error(predictions)
    return [Record(metric=name, **error._asdict()) for name, error in errors.items()]


def true_class_rank(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the number of classes ranked before the true one, (N,) int64; 0 is a right prediction."""
    own = logits.gather(1, labels[:, None])
    before = torch.arange(logits.shape[1]) < labels[:, None]
    return ((logits > own) | ((logits == own) & before)).sum(1)


def mean_loss(predictions: LabelledLogits) -> float:
    """Return the mean cross-entropy of the true classes, or of every label, in nats, computed in float64."""
    if predictions.multi_label:
        return float(F.binary_cross_entropy_with_logits(predictions.logits.double(), predictions.labels.double()))
    return float(F.cross_entropy(predictions.logits.double(), predictions.labels))


def predictions_arrays(predictions: LabelledLogits, data: ImageSet) -> dict[str, np.ndarray]:
    """Return the arrays of a predictions file.

    These are ``logits`` (N, K) float32, ``labels`` (N,) int64 or (N, K) uint8, ``classes`` (K,) text and, for image
    files, ``files`` (N,) text: each path below the folder that all of them share.
    """
    arrays = {"logits": predictions.logits.numpy(), "labels": predictions.labels.numpy()}
    arrays["classes"] = np.array(data.classes, dtype=np.str_)
    if isinstance(data, FileSet):
        arrays["files"] = np.array(data.paths.names(), dtype=np.str_)
    return arrays


def average_precisions(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the average precision of each label: the mean of the precision at the rank of each of its images.

    Equal logits share a rank. The same as ``sklearn.metrics.average_precision_score`` for each column.

    Args:
        logits: (N, K), or anything of the same order.
        labels: (N, K), 0 or 1.

    Returns:
        (K,) float64 in [0, 1]; NaN for a label without images.
    """
    return _precisions(logits, labels)(np.ones((1, len(labels))))[0]


def _precisions(logits: np.ndarray, labels: np.ndarray) -> Any:
    """Return the function that maps counts of the images, (B, N), to average precisions, (B, K)."""
    ranked = []
    for z, y in zip(logits.T, labels.T, strict=True):
        order = np.argsort(-z, kind="stable")
        ranked.append((order, y[order].astype(np.float64), np.append(np.diff(z[order]) != 0, True).nonzero()[0]))

    def precisions(counts: np.ndarray) -> np.ndarray:
        columns = []
        for order, right, ends in ranked:
            drawn = counts[:, order].astype(np.float64)
            found, of = (drawn * right).cumsum(1)[:, ends], drawn.cumsum(1)[:, ends]
            gained = np.diff(found, axis=1, prepend=0.0)
            total = found[:, -1]
            with np.errstate(invalid="ignore"):
                columns.append((gained * found / np.maximum(of, 1)).sum(1) / np.where(total > 0, total, np.nan))
        return np.stack(columns, 1)

    return precisions


def best_thresholds(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return, for each label, the probability from which on it is predicted with the largest F1 on these images.

    A threshold lies in the middle between two logits. Of equal F1, the threshold nearest to 0.5 is taken; a label
    without images has 0.5.

    Args:
        logits: (N, K).
        labels: (N, K), 0 or 1.

    Returns:
        (K,) float64 in (0, 1).
    """
    chosen = np.full(labels.shape[1], 0.5)
    for k, (z, y) in enumerate(zip(logits.T.astype(np.float64), labels.T.astype(np.float64), strict=True)):
        if not y.any():
            continue
        order = np.argsort(-z, kind="stable")
        ends = np.append(np.diff(z[order]) != 0, True).nonzero()[0]
        f1 = 2 * y[order].cumsum()[ends] / (ends + 1 + y.sum())
        values = z[order][ends]
        middles = np.append((values[:-1] + values[1:]) / 2, values[-1] - 1)
        best = middles[f1 >= f1.max() - 1e-12]
        chosen[k] = expit(best[np.abs(best).argmin()])
    return np.clip(chosen, 1e-12, 1 - 1e-12)


_OVERALL = ("label_map", "f1_macro", "f1_micro", "f1_images", "hamming")  # metrics of all labels together


def label_records(
    logits: np.ndarray, labels: np.ndarray, classes: Sequence[str], thresholds: np.ndarray, *,
    chosen_on: str | None, split: str, seed: int = 0,
) -> list[Record]:  # fmt: skip
    """Return mAP, F1 and the share of wrong labels with bootstrap intervals over the images, and each label's own.

    Logits and labels, 0 or 1, are (N, K), thresholds (K,) probabilities from which on a label is predicted.
    ``chosen_on`` is the split that chose the thresholds, None if they are 0.5 because there is none; ``split`` is that
    of these images.
    """
    if not labels.any():
        raise InputError(f"no {split} image has a label; expected images of some labels")
    (n, k), present = labels.shape, (labels > 0).sum(0)
    metrics = _label_metrics(logits, labels, thresholds)
    values = metrics(np.ones((1, n)))[0]
    draws = 1000 if n * k <= 200_000 else 200
    drawn = bootstrap(metrics, (n, derive_seed(seed, "labels")), draws=draws)
    shared: dict[str, Any] = {"task": "multilabel", "suite": "labels"}
    names: list[tuple[str, str | None]] = [(metric, None) for metric in _OVERALL]
    names += [(metric, name) for metric in ("label_ap", "label_f1") for name in classes]
    counts = [n] * len(_OVERALL) + present.tolist() * 2
    sides = np.minimum(present, n - present)  # a label with few images, or in nearly all, is of so few
    rarest = int(sides[present > 0].min())
    fewest = [rarest, rarest, n, n, n, *sides.tolist() * 2]
    note = _origin_of_thresholds(chosen_on, split)
    records = []
    for (metric, name), value, spread, count, few in zip(names, values, drawn.T, counts, fewest, strict=True):
        if np.isnan(value):
            continue
        ends = bootstrap_interval(float(value), spread, few)
        records.append(Record(
            metric=metric, of=name, value=float(value), **ends._asdict(), n=count, **shared,
            note=note if metric in _OVERALL[1:] else None,
        ))  # fmt: skip
    return records + [
        Record(metric="label_threshold", of=name, value=float(t), chosen_on=chosen_on, **shared)
        for name, t in zip(classes, thresholds, strict=True)
    ]


def _label_metrics(logits: np.ndarray, labels: np.ndarray, thresholds: np.ndarray) -> Any:
    """Return the function that maps counts of the images, (B, N), to ``_OVERALL``, AP and F1 of each label, in %."""
    n, k = labels.shape
    precisions, predicted, y = _precisions(logits, labels), predicted_labels(logits, thresholds), labels > 0
    sums = np.concatenate([predicted & y, predicted ^ y, y], 1).astype(np.float64)
    per_image = image_f1(predicted, labels)

    def metrics(counts: np.ndarray) -> np.ndarray:
        ap = precisions(counts)
        right, wrong, present = np.moveaxis((counts @ sums).reshape(-1, 3, k), 1, 0)
        f1 = np.where(present > 0, 2 * right / np.maximum(2 * right + wrong, 1), np.nan)
        micro = 2 * right.sum(1) / np.maximum(2 * right.sum(1) + wrong.sum(1), 1)
        means = [_mean(ap), _mean(f1), micro, counts @ per_image / n, wrong.sum(1) / (n * k)]
        return 100 * np.concatenate([np.stack(means, 1), ap, f1], 1)

    return metrics


def _origin_of_thresholds(chosen_on: str | None, split: str) -> str:
    if chosen_on is None:
        return "the threshold of each label is 0.5, as there are no validation images to choose another"
    if chosen_on == split:
        return f"the thresholds were chosen on the same {split} images, so F1 is optimistic"
    return f"the threshold of each label was chosen on {chosen_on}, for the largest F1"


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean of each row without NaN; NaN for a row of only NaN."""
    known = ~np.isnan(values)
    return np.where(known, values, 0.0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)


# ---- calibration ----


def fit_label_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature T whose sigmoid(logits / T) has the least binary cross-entropy on these images.

    It is convex in 1/T, so its slope, Σ (p − y) logit, has one zero at most; where it has none, T is the end of its
    range, [0.001, 1000].
    """
    z, y = logits.astype(np.float64).ravel(), labels.ravel()

    def slope(log_t: float) -> float:
        return float(((expit(z * np.exp(-log_t)) - y) * z).mean())

    return zero_of(slope)


def label_sums(logits: np.ndarray, labels: np.ndarray) -> CalibrationSums:
    """Return the calibration of every label of every image; NLL and Brier score are means over the labels."""
    z, y = logits.astype(np.float64), (labels > 0).astype(np.float64)
    p = expit(z)
    loss = np.logaddexp(0.0, z) - y * z
    return CalibrationSums(p.ravel(), y.ravel(), loss.ravel(), ((p - y) ** 2).ravel(), images=len(z))


def label_calibration(logits: Tensor, labels: Tensor, *, seed: int) -> SuiteResult:
    """Evaluate the calibration of each label's prediction, (N, K), before and after one temperature for all labels."""
    z, y = logits.double().numpy(), labels.numpy()
    found = calibration_result(z, y, label_sums, fit_label_temperature, seed, task="multilabel")
    note = f"over the {y.shape[1]} labels of each image: the probability of a label against whether the image has it"
    records = [replace(record, note=note) if record.metric == "ece" else record for record in found.records]
    return found._replace(records=records)
