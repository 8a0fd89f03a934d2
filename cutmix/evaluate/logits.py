"""What a network gave for a set of images, checked and in float64: logits, probabilities, class ids."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_softmax
from torch import Tensor

from cutmix.errors import InputError

_ROUNDING = 1e-3  # how far a sum of probabilities may be from 1: float32, and 1,000 classes


def as_logits(logits: ArrayLike | Tensor) -> np.ndarray:
    """Return logits as (N, K) float64.

    Raises:
        InputError: If there are no images, fewer than two classes, values that are not finite, or probabilities.
    """
    z = _matrix(logits, "logits")
    if z.min() >= 0 and _sum_to_one(z):
        raise InputError("probabilities were given where logits are meant: give the network's output before softmax")
    return z


def softmax(logits: ArrayLike | Tensor) -> np.ndarray:
    """Return the probabilities of logits, (N, K) float64; raises what :func:`as_logits` raises."""
    return np.exp(log_softmax(as_logits(logits), axis=1))


def as_probabilities(probabilities: ArrayLike | Tensor) -> np.ndarray:
    """Return probabilities as (N, K) float64.

    Raises:
        InputError: If there are no images, fewer than two classes, values that are not finite, or logits.
    """
    p = _matrix(probabilities, "probabilities")
    if p.min() < 0 or not _sum_to_one(p):
        raise InputError(
            f"the values go from {p.min():.4g} to {p.max():.4g}, and are no probabilities with the sum 1 in each row: "
            "of logits take the softmax first"
        )
    return p


def class_ids(labels: ArrayLike | Tensor, of: np.ndarray) -> np.ndarray:
    """Return the labels (N,) of logits or probabilities (N, K).

    Raises:
        InputError: If they are not N integers from 0 to K − 1.
    """
    ids = as_numpy(labels)
    if ids.shape != (len(of),) or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"the labels are {ids.dtype} of shape {ids.shape}: expected {len(of)} class ids, integers")
    if ids.min() < 0 or ids.max() >= of.shape[1]:
        raise InputError(f"labels go from {ids.min()} to {ids.max()}, but there are {of.shape[1]} classes")
    return ids


def as_numpy(values: ArrayLike | Tensor) -> np.ndarray:
    """Return an array on the CPU; a tensor's floating-point values become float64, bfloat16 among them."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.double() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def _matrix(values: ArrayLike | Tensor, what: str) -> np.ndarray:
    array = as_numpy(values).astype(np.float64)
    if array.ndim != 2 or not len(array) or array.shape[1] < 2:
        raise InputError(f"the {what} have the shape {array.shape}: expected (images, classes), two classes or more")
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise InputError(f"{count:,} of the {what} are NaN or infinite, so nothing can be measured")
    return array


def _sum_to_one(rows: np.ndarray) -> bool:
    return bool(np.allclose(rows.sum(1), 1, rtol=0, atol=_ROUNDING))
