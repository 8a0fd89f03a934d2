"""Whether two results differ: exact McNemar for two runs, Welch's t for two sets of seeds, Holm for several such tests.

No torch here: predictions are read with NumPy, so that a page of finished runs is made anywhere.

Source: McNemar (1947) in its exact form, a binomial test of the samples on which two classifiers disagree; Holm (1979);
Welch (1947).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from scipy.stats import binomtest, ttest_ind

from cutmix.errors import InputError

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
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
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
