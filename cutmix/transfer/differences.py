"""Two detectors or two captioners on the same pictures, compared by resampling the pictures in pairs. No torch here.

Source: Efron and Tibshirani (1993), chapters 13 and 15.
"""

from collections.abc import Callable

import numpy as np

from cutmix.errors import InputError
from cutmix.statistics import Difference, difference_of_resamples
from cutmix.transfer.average_precision import precision_of, tally
from cutmix.transfer.caption_scores import PictureScores, corpus_bleu
from cutmix.transfer.matching import Judged

# So many that the smallest p, 2 / (draws + 1), stays below 0.05 when Holm multiplies it by a page's scores and runs.
_DRAWS = {"detection": 2000, "captioning": 5000}


def precision_difference(
    first: Judged, second: Judged, pictures: int, draws: int = _DRAWS["detection"], seed: int = 0
) -> Difference:
    """Compare two mean average precisions (11-point), in per cent, the second run's less the first's.

    Args:
        first: Judged detections of one run.
        second: Those of the other, of the same objects.
        pictures: How many there are, those without objects among them.
        draws: Resamples.
        seed: Of the resamples; NumPy's own generator.

    Raises:
        InputError: If they are not of the same objects, or of none.
    """
    if not len(first.object_images):
        raise InputError("two runs on no objects cannot be compared in pairs")
    if not all(map(np.array_equal, first[-2:], second[-2:])):
        raise InputError("two runs on different objects cannot be compared in pairs")
    classes = 1 + int(max(column.max(initial=0) for column in (first.labels, second.labels, first.object_labels)))
    one, other = (tally(judged, classes) for judged in (first, second))

    def less(counts: np.ndarray) -> float:
        return 100 * (precision_of(other, counts=counts).mean - precision_of(one, counts=counts).mean)

    return _resampled(less, pictures, draws, seed)


def caption_difference(
    first: PictureScores, second: PictureScores, score: str, draws: int = _DRAWS["captioning"], seed: int = 0
) -> Difference:
    """Compare a score of two sets of captions, times 100, the second run's less the first's.

    Args:
        first: What one run's scores are made of.
        second: The other's, of the same pictures; CIDEr-D's weights of n-grams stay those of the whole set.
        score: One of those of ``caption_scores``.
        draws: Resamples.
        seed: Of the resamples; NumPy's own generator.

    Raises:
        InputError: If they are not of as many pictures, or of none.
    """
    n = len(first.rouge_l)
    if n != len(second.rouge_l) or not n:
        raise InputError(f"two runs on {n} and {len(second.rouge_l)} pictures cannot be compared in pairs")
    one, other = (part.bleu if score.startswith("bleu") else getattr(part, score) for part in (first, second))

    def value(sums: np.ndarray) -> float:
        return corpus_bleu(sums)[int(score[-1]) - 1] if score.startswith("bleu") else float(sums) / n

    return _resampled(lambda counts: 100 * (value(counts @ other) - value(counts @ one)), n, draws, seed)


def _resampled(less: Callable[[np.ndarray], float], n: int, draws: int, seed: int) -> Difference:
    """Return a difference with what it is for ``draws`` choices of n of n pictures, given how often each counts."""
    generator = np.random.default_rng(seed)
    resampled = [less(np.bincount(generator.integers(n, size=n), minlength=n)) for _ in range(draws)]
    return difference_of_resamples(less(np.ones(n, dtype=np.int64)), np.array(resampled))
