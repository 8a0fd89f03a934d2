"""Classification error: predictions of a whole test set, and top-1 and top-5 error with Wilson intervals.

Source: the paper's tables report top-1 and top-5 error in per cent. The interval is Wilson's (1927), which stays inside
[0, 100] and keeps its coverage near the ends.
"""

import contextlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor, nn

from cutmix.data import FileSet, ImageSet
from cutmix.errors import InputError
from cutmix.evaluation.classifier import check_finite
from cutmix.runs.record import Record
from cutmix.runtime.distributed import World, gather_first
from cutmix.statistics import check_confidence


class Predictions(NamedTuple):
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
) -> Predictions | None:
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
    every = Predictions(torch.empty(n, k), torch.empty(n, *labels_of.shape[1:], dtype=labels_of.dtype))
    for rank, (its_logits, its_labels) in enumerate(shares):
        every.logits[rank :: world.size] = its_logits
        every.labels[rank :: world.size] = its_labels
    check_finite(every.logits, "logits")
    return every


def wilson_interval(count: int, n: int, confidence: float = 0.95) -> Proportion:
    """Return a count out of n as a percentage with Wilson's score interval (scipy's, without continuity correction).

    Args:
        count: Number of cases, 0 to n.
        n: Number of samples, above 0.
        confidence: Confidence of the interval, in (0, 1).

    Raises:
        InputError: If ``confidence`` is out of its range.
    """
    check_confidence(confidence)
    interval = binomtest(count, n).proportion_ci(confidence, method="wilson")
    return Proportion(100 * count / n, 100 * interval.low, 100 * interval.high, n)


def classification_error(predictions: Predictions, confidence: float = 0.95) -> dict[str, Proportion]:
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


def error_records(predictions: Predictions, confidence: float = 0.95) -> list[Record]:
    """Return the errors with their intervals."""
    errors = classification_error(predictions, confidence)
    return [Record(metric=name, **error._asdict(), confidence=confidence) for name, error in errors.items()]


def true_class_rank(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the number of classes ranked before the true one, (N,) int64; 0 is a right prediction."""
    own = logits.gather(1, labels[:, None])
    before = torch.arange(logits.shape[1]) < labels[:, None]
    return ((logits > own) | ((logits == own) & before)).sum(1)


def mean_loss(predictions: Predictions) -> float:
    """Return the mean cross-entropy of the true classes, or of every label, in nats, computed in float64."""
    if predictions.multi_label:
        return float(F.binary_cross_entropy_with_logits(predictions.logits.double(), predictions.labels.double()))
    return float(F.cross_entropy(predictions.logits.double(), predictions.labels))


def predictions_arrays(predictions: Predictions, data: ImageSet) -> dict[str, np.ndarray]:
    """Return the arrays of a predictions file.

    Args:
        predictions: N predictions of K classes.
        data: The images, in the same order.

    Returns:
        ``logits`` (N, K) float32, ``labels`` (N,) int64 or (N, K) uint8, ``classes`` (K,) text and, for image files,
        ``files`` (N,) text: each path below the folder that all of them share.
    """
    arrays = {"logits": predictions.logits.numpy(), "labels": predictions.labels.numpy()}
    arrays["classes"] = np.array(data.classes, dtype=np.str_)
    if isinstance(data, FileSet):
        arrays["files"] = np.array(data.paths.names(), dtype=np.str_)
    return arrays
