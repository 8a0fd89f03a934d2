"""Seeded resampling of test images, and the interval that it gives.

Source: Efron and Tibshirani (1993), chapters 10 and 13.
"""

from collections.abc import Iterator
from numbers import Integral

import numpy as np
import torch

from cutmix.errors import InputError
from cutmix.runtime.seeding import derive_seed

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
