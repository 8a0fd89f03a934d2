"""Outputs of a classifier, checked and converted to float64: logits, probabilities, class ids."""

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import log_softmax
from torch import Tensor

from cutmix.errors import InputError


def as_logits(logits: ArrayLike | Tensor) -> np.ndarray:
    """Return logits as (N, K) float64.

    Raises:
        InputError: If there are no images, fewer than two classes, values that are not finite, or probabilities.
    """
    z = _matrix(logits, "logits")
    if z.min() >= 0 and _sum_to_one(z, logits):
        raise InputError("probabilities were given; expected logits, the model's output before the softmax")
    return z


def softmax(logits: ArrayLike | Tensor) -> np.ndarray:
    """Return the probabilities of logits, (N, K) float64; raises as :func:`as_logits`."""
    return np.exp(log_softmax(as_logits(logits), axis=1))


def as_probabilities(probabilities: ArrayLike | Tensor) -> np.ndarray:
    """Return probabilities as (N, K) float64.

    Raises:
        InputError: If there are no images, fewer than two classes, values that are not finite, or logits.
    """
    p = _matrix(probabilities, "probabilities")
    if p.min() < 0 or not _sum_to_one(p, probabilities):
        raise InputError(
            f"the values range from {p.min():.4g} to {p.max():.4g}; expected probabilities, which sum to 1 in each "
            "row: apply the softmax to logits first"
        )
    return p


def class_ids(labels: ArrayLike | Tensor, of: np.ndarray) -> np.ndarray:
    """Return the labels (N,) of logits or probabilities (N, K).

    Raises:
        InputError: If they are not N integers from 0 to K − 1.
    """
    ids = as_numpy(labels)
    if ids.shape != (len(of),) or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"the labels are {ids.dtype} of shape {ids.shape}; expected {len(of)} class ids, integers")
    if ids.min() < 0 or ids.max() >= of.shape[1]:
        raise InputError(
            f"the labels range from {ids.min()} to {ids.max()}; expected 0 to {of.shape[1] - 1}, as there are "
            f"{of.shape[1]} classes"
        )
    return ids


def as_numpy(values: ArrayLike | Tensor) -> np.ndarray:
    """Return an array on the CPU; floating-point tensors, bfloat16 among them, become float64."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.double() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def real_numbers(values: ArrayLike | Tensor, what: str) -> np.ndarray:
    """Return an array on the CPU as float64.

    Raises:
        InputError: If the values are not real numbers, or rows of different lengths.
    """
    try:
        array = as_numpy(values)
    except ValueError:  # NumPy speaks of inhomogeneous shapes
        raise InputError(f"the {what} have rows of different lengths; expected an array") from None
    if array.dtype.kind not in "biuf":
        raise InputError(f"the {what} are {array.dtype}; expected real numbers")
    return array.astype(np.float64)


def check_finite(values: np.ndarray | Tensor, what: str) -> None:
    """Raise an InputError with the number of values that are not finite, if there are any."""
    finite = values.isfinite() if isinstance(values, Tensor) else np.isfinite(values)
    refuse_nonfinite(int((~finite).sum()), what)


def refuse_nonfinite(count: int, what: str) -> None:
    """Raise an InputError if a count of values that are not finite is above 0."""
    if count:
        raise InputError(f"{count:,} of the {what} are NaN or infinite; expected finite numbers")


def _matrix(values: ArrayLike | Tensor, what: str) -> np.ndarray:
    array = real_numbers(values, what)
    if array.ndim != 2 or not len(array) or array.shape[1] < 2:
        raise InputError(f"the {what} have the shape {array.shape}; expected (images, classes), two classes or more")
    check_finite(array, what)
    return array


def _sum_to_one(rows: np.ndarray, given: ArrayLike | Tensor) -> bool:
    """Return whether each row sums to 1 within the precision of the numbers that were given."""
    kind = given.dtype if isinstance(given, Tensor) else np.asarray(given).dtype
    eps = 0.0
    if isinstance(kind, torch.dtype):
        eps = torch.finfo(kind).eps if kind.is_floating_point else 0.0
    elif kind.kind == "f":
        eps = float(np.finfo(kind).eps)
    return bool(np.allclose(rows.sum(1), 1, rtol=0, atol=max(1e-3, 2 * eps)))  # bfloat16 was seen 2.8e-3 away
