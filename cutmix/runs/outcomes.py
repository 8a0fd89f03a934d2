"""Predictions of single test images: mistakes, doubtful labels, the difference of two methods; a metric over seeds.

No torch here.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import brentq
from scipy.special import expit, nctdtrinc, polygamma

from cutmix.errors import InputError
from cutmix.runs.read import Run, read_predictions
from cutmix.runs.record import Record
from cutmix.runtime.files import read_arrays
from cutmix.statistics import LEVEL, rate_difference

EXAMPLES = 12  # images of each list


class Answers(NamedTuple):
    """The predictions for a test set."""

    labels: np.ndarray  # class ids, (N,) int64
    probabilities: np.ndarray  # softmax of the logits, (N, K) float64
    classes: tuple[str, ...]
    files: tuple[str, ...] = ()  # path of each image below the folder of the data, (N,); empty for sets without files

    @property
    def predicted(self) -> np.ndarray:
        """Class ids of the largest probabilities, (N,) int64; of equal ones the first."""
        return self.probabilities.argmax(1)

    @property
    def right(self) -> np.ndarray:
        """Whether each prediction is the label, (N,) bool."""
        return self.predicted == self.labels


class LabelAnswers(NamedTuple):
    """The predictions for a test set whose images can have several labels."""

    labels: np.ndarray  # whether each image has each label, (N, K) bool
    probabilities: np.ndarray  # of each label, (N, K) float64
    predicted: np.ndarray  # whether each label is predicted, by its threshold, (N, K) bool
    classes: tuple[str, ...]
    files: tuple[str, ...] = ()  # path of each image below the folder of the data, (N,); empty for sets without files


def answers(arrays: dict[str, np.ndarray]) -> Answers:
    """Return the predictions in arrays of logits and labels; classes without names are numbered."""
    logits = arrays["logits"].astype(np.float64)
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return Answers(arrays["labels"], exponentials / exponentials.sum(1, keepdims=True), *_names(arrays))


def label_answers(arrays: dict[str, np.ndarray]) -> LabelAnswers:
    """Return the predictions in arrays of logits, labels and thresholds of images with several labels."""
    logits = arrays["logits"].astype(np.float64)
    predicted = predicted_labels(logits, arrays["thresholds"])
    return LabelAnswers(arrays["labels"] > 0, expit(logits), predicted, *_names(arrays))


def predicted_labels(logits: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return which labels reach their thresholds, (N, K) bool."""
    return logits.astype(np.float64) >= np.log(thresholds) - np.log1p(-thresholds)


def image_f1(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the F1 of the labels of each image, (N,) float64; 1 where there are none and none is predicted."""
    both, either = (predicted & (labels > 0)).sum(1), predicted.sum(1) + (labels > 0).sum(1)
    return np.where(either > 0, 2 * both / np.maximum(either, 1), 1.0)


def _names(arrays: dict[str, np.ndarray]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the classes, and of the files."""
    names = arrays.get("classes", range(arrays["logits"].shape[1]))
    return tuple(map(str, names)), tuple(map(str, arrays.get("files", ())))


def read_answers(run: Run) -> Answers | None:
    """Return the predictions of a run after its last epoch, or None if it has none."""
    path = run.predictions
    if run.task != "classification" or not path.is_file():
        return None
    return answers(read_predictions(path))


def read_label_answers(path: Path) -> LabelAnswers:
    """Return the predictions in a file of a run with several labels an image."""
    arrays = read_arrays(path)
    if not {"logits", "labels", "thresholds"} <= arrays.keys() or arrays["logits"].shape != arrays["labels"].shape:
        raise InputError(f"{path} holds the arrays {', '.join(arrays) or 'none'}; expected logits, labels, thresholds")
    return label_answers(arrays)


def label_outcome(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the labels of images that can have several, and the errors of the predicted ones.

    These are the labels, (N, K) bool; the files, (N,) text; 1 − F1 of the labels of each image, (N,) float64 in [0, 1],
    0 where there are none and none is predicted; and which labels of each image are missed, (N, K) bool.
    """
    labels, _, predicted, _, files = read_label_answers(path)
    return labels, np.array(files, np.str_), 1 - image_f1(predicted, labels), labels & ~predicted


def surest_mistakes(made: Answers) -> list[int]:
    """Return the indices of the wrong predictions with the largest probabilities, the surest first."""
    wrong = (~made.right).nonzero()[0]
    return wrong[np.argsort(-made.probabilities[wrong].max(1), kind="stable")][:EXAMPLES].tolist()


def surest_wrong_labels(made: LabelAnswers) -> dict[int, int]:
    """Return the images with the surest wrong label, the surest first, and that label: predicted wrongly or missed.

    The sureness of a wrongly predicted label is its probability p, that of a missed label 1 − p.
    """
    sureness = np.where(made.predicted != made.labels, np.abs(made.probabilities - made.labels), -1.0)
    order = np.argsort(-sureness.max(1), kind="stable")[:EXAMPLES]
    return {int(i): int(sureness[i].argmax()) for i in order if sureness[i].max() >= 0}


def least_sure(made: Answers) -> list[int]:
    """Return the indices of the smallest differences between the two largest probabilities, the smallest first."""
    top = np.sort(made.probabilities, axis=1)[:, -2:]
    return np.argsort(top[:, -1] - top[:, 0], kind="stable")[:EXAMPLES].tolist()


def doubtful_labels(made: Answers) -> list[int]:
    """Return the indices of possible label errors by confident learning, the most doubtful first.

    The threshold of a class is the mean probability that its own images have for it. Of the classes whose threshold an
    image reaches, the most probable one is its confident class. An image is doubtful if its confident class and its
    prediction both contradict the label. The order is that of p(label) − p(prediction).

    Source: Northcutt, Jiang and Chuang 2021, "Confident Learning", section 3.1: the off-diagonal of the confident
    joint. Checked against cleanlab 2's ``find_label_issues(filter_by="confident_learning")`` on 200 random sets; two
    differed by an image that reaches the thresholds of several classes but not that of its prediction.
    """
    p, labels = made.probabilities, made.labels
    thresholds = np.array([p[labels == k, k].mean() if (labels == k).any() else np.inf for k in range(p.shape[1])])
    reached = p >= thresholds
    confident = np.where(reached, p, -1.0).argmax(1)
    doubtful = (reached.any(1) & (confident != labels) & ~made.right).nonzero()[0]
    margin = p[doubtful, labels[doubtful]] - p[doubtful].max(1)
    return doubtful[np.argsort(margin, kind="stable")].tolist()


def examples(arrays: dict[str, np.ndarray]) -> dict[int, int]:
    """Return the indices of all images that a report shows, ascending, each with the class of its heat map."""
    if "thresholds" in arrays:
        return dict(sorted(surest_wrong_labels(label_answers(arrays)).items()))
    made = answers(arrays)
    index = sorted({*surest_mistakes(made), *least_sure(made), *doubtful_labels(made)[:EXAMPLES]})
    return {i: int(made.predicted[i]) for i in index}


class ClassCount(NamedTuple):
    """Right predictions of the images of a class, summed over runs."""

    right: int
    images: int  # number of predictions


def count_by_class(runs: Sequence[Answers]) -> dict[int, ClassCount]:
    """Return the counts of each class id that has test images."""
    labels, right = (np.concatenate([getattr(made, name) for made in runs]) for name in ("labels", "right"))
    return {int(k): ClassCount(int(right[labels == k].sum()), int((labels == k).sum())) for k in np.unique(labels)}


def confused_pairs(runs: Sequence[Answers]) -> Counter[tuple[int, int]]:
    """Return the number of wrong predictions of each pair of label and predicted class."""
    pairs = ((made.labels[~made.right], made.predicted[~made.right]) for made in runs)
    return Counter(
        pair for labels, predicted in pairs for pair in zip(labels.tolist(), predicted.tolist(), strict=True)
    )


# ---- difference of two methods over seeds and test images, both random ----


@dataclass(frozen=True)
class CrossedDifference:
    """The difference of two error rates, for other seeds and other images of the same kind."""

    value: float  # error of the method less that of the baseline, in percentage points; below 0 the method is better
    low: float
    high: float
    p: float  # two-sided p-value of "no difference"
    seeds: int  # number of seeds S
    images: int  # number of test images N
    df: float  # degrees of freedom of the interval: Satterthwaite's, or S − 1 of the seeds alone; with one seed N − 1
    # standard deviation from seed to seed, without that of the images, in points; None with one seed
    over_seeds: float | None
    over_images: float  # standard deviation from image to image, without that of the seeds, in points
    residual: float | None  # standard deviation of the rest for one image and one seed, in points; None with one seed
    # smallest true difference, in points, that these seeds and images would find in 80 % of the cases
    detectable: float

    def seeds_needed(self) -> int | None:
        """Return the number of seeds that would tell a difference of this size from 0; None above 100."""
        if self.p < LEVEL:
            return self.seeds
        if self.over_seeds is None or self.residual is None:
            return None
        for seeds in range(self.seeds + 1, 101):
            of_both = self.residual**2
            of_seeds, of_images = of_both + self.images * self.over_seeds**2, of_both + seeds * self.over_images**2
            if abs(self.value) > _widest(_errors(of_seeds, of_images, of_both, seeds, self.images))[0]:
                return seeds
        return None


_FEWEST = math.ceil(1 - math.log2(LEVEL))  # images that differ one way before McNemar's exact p is below the level


def crossed_difference(method: np.ndarray, baseline: np.ndarray) -> CrossedDifference:
    """Compare two methods that were trained with the same seeds and evaluated on the same images.

    Both arguments are (S, N), a row for each seed and a column for each image in the same places: whether each image is
    classified wrongly, or its error in [0, 1].

    With d_si = wrong_method(s, i) − wrong_baseline(s, i), seeds and images are crossed random effects: d_si = μ + a_s +
    b_i + e_si. The variance of the mean is estimated without bias from the mean squares of the two-way layout, (MS_S +
    MS_I − MS_E) / (S N), at least by (MS_S / (S N)) and (MS_I / (S N)) alone, and the interval is Student's with
    Satterthwaite's degrees of freedom, at least 1, or Student's over the seeds alone where that is wider; p is the
    larger of the two. Where the seeds happen to agree, Satterthwaite's degrees of freedom alone make small p-values too
    small: simulated with 3 seeds, 10,000 images and a spread of 1 point over seeds, 12 times as many as there should be
    are below 0.001. As it is, the 95 % interval covers in 94 to 99 % of the cases with 2 to 5 seeds. With one seed only
    the images are random: the interval says nothing about another seed. Interval and p are then ``rate_difference``'s
    for images that are right or wrong (bool), and the paired t-test's for errors between. Where all images differ alike
    in all runs, there is no spread, and they are ``rate_difference``'s too; six images are the fewest it finds.

    Source: Satterthwaite (1946); Searle, Casella and McCulloch, Variance Components (1992), chapter 4, for the two-way
    crossed random model without replication. Checked against simulated coverage and, for one seed, the paired t-test
    and McNemar's exact test.
    """
    d = 100.0 * (method.astype(np.float64) - baseline.astype(np.float64))
    seeds, images = d.shape
    mean, by_seed, by_image = d.mean(), d.mean(1), d.mean(0)
    of_images = seeds * float(((by_image - mean) ** 2).sum()) / max(images - 1, 1)
    if seeds == 1:
        errors = [((of_images / images) ** 0.5, float(images - 1))]
        sizes: tuple[float | None, float, float | None] = (None, of_images**0.5, None)
    else:
        of_seeds = images * float(((by_seed - mean) ** 2).sum()) / (seeds - 1)
        left = d - by_seed[:, None] - by_image[None] + mean
        of_both = float((left**2).sum()) / ((seeds - 1) * max(images - 1, 1))
        errors = _errors(of_seeds, of_images, of_both, seeds, images)
        a, b = max(of_seeds - of_both, 0.0) / images, max(of_images - of_both, 0.0) / seeds
        sizes = (a**0.5, b**0.5, of_both**0.5)
    half, df, detectable = _widest(errors)
    low, high, p = max(float(mean - half), -100.0), min(float(mean + half), 100.0), _chance(float(mean), errors)
    alike = bool(d.min() == d.max())
    if (seeds == 1 and (alike or method.dtype == baseline.dtype == bool)) or (alike and mean):
        # exact for few images, where t is not; it has neither a width nor a chance where all images differ alike
        size = float(np.abs(d).max()) / 100 or 1.0
        of_one = rate_difference(d[0] < 0, d[0] > 0)
        low, high, p = size * of_one.low, size * of_one.high, of_one.p
        found = stats.beta.ppf(0.8, _FEWEST, images - _FEWEST + 1) if images >= _FEWEST else 1 / size
        detectable = max(100 * size * float(found), detectable if images > 1 else 0.0)
    return CrossedDifference(float(mean), low, high, p, seeds, images, df, *sizes, detectable)


def prior_freedom(variances: np.ndarray, freedom: int) -> float:
    """Return how alike the true variances are behind estimates with ``freedom`` degrees each: inf where they are equal.

    The true variances are taken as s₀² d₀ / χ²(d₀); returned is d₀, from the spread of the logarithms of the estimates,
    which are positive. A test with one of these variances then has ``freedom`` + d₀ degrees of freedom.

    Source: Smyth (2004), Linear models and empirical Bayes methods for assessing differential expression, section 6.
    """
    spread = float(np.var(np.log(variances), ddof=1)) if len(variances) > 1 else 0.0
    spread -= float(polygamma(1, freedom / 2))
    least, most = 1e-3, 1e4  # of d₀ / 2, whose trigamma function falls
    if spread <= polygamma(1, most):
        return np.inf
    return 2 * float(brentq(lambda half: polygamma(1, half) - spread, least, most)) if spread < 1e5 else 0.0


def _errors(of_seeds: float, of_images: float, of_both: float, seeds: int, images: int) -> list[tuple[float, float]]:
    """Return standard errors of the mean, each with its degrees of freedom: over seeds and images, over seeds alone."""
    squares = max(of_seeds + of_images - of_both, of_seeds, of_images)
    spread = (of_seeds**2 + of_both**2 / max(images - 1, 1)) / (seeds - 1) + of_images**2 / max(images - 1, 1)
    # below 1, which a few images can give, Student's t means nothing, and SciPy's noncentral t does not return
    df = max(squares**2 / spread, 1.0) if spread else float(seeds - 1)
    count = seeds * images
    return [((squares / count) ** 0.5, df), ((of_seeds / count) ** 0.5, float(seeds - 1))]


def _widest(errors: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Return half of the widest interval, its degrees of freedom, and the difference found in 80 % of the cases."""
    half, error, df = max((float(stats.t.ppf(1 - LEVEL / 2, df)) * error, error, df) for error, df in errors)
    # the difference for which Student's test has a power of 80 % is the parameter of a noncentral t distribution
    return half, df, float(nctdtrinc(df, 0.2, stats.t.ppf(1 - LEVEL / 2, df))) * error


def _chance(mean: float, errors: Sequence[tuple[float, float]]) -> float:
    """Return the largest two-sided p-value of no difference."""
    return max(float(2 * stats.t.sf(abs(mean) / error, df)) if error else float(mean == 0) for error, df in errors)


@dataclass(frozen=True)
class SeedDifference:
    """The difference of a metric, for other seeds and the same images."""

    value: float  # metric of the method less that of the baseline, mean over seeds
    low: float
    high: float
    p: float  # two-sided p-value of "no difference"
    seeds: int
    detectable: float  # smallest true difference that these seeds would find in 80 % of the cases


def seed_difference(method: Sequence[float], baseline: Sequence[float]) -> SeedDifference:
    """Compare a metric of two methods that were trained with the same seeds, in the same order, by Student's paired t.

    Only seeds are random: the interval says nothing about other images. For error rates, use ``crossed_difference``.
    """
    if len(method) != len(baseline) or len(method) < 2:
        raise InputError(f"{len(method)} and {len(baseline)} seeds are given; expected two or more, the same for both")
    gains = np.subtract(method, baseline)
    value, errors = float(gains.mean()), [(float(stats.sem(gains)), len(gains) - 1.0)]
    half, _, detectable = _widest(errors)
    return SeedDifference(value, value - half, value + half, _chance(value, errors), len(gains), detectable)


# ---- a metric over the seeds of a recipe ----


@dataclass(frozen=True)
class Estimate:
    """A metric of a recipe: of its only run, or the mean over its seeds."""

    value: float
    low: float | None
    high: float | None
    count: int  # number of runs
    few: bool = False  # whether the interval of the only run is of too few images to be trusted


def estimate(runs: Iterable[Run], metric: str, which: str) -> Estimate | None:
    """Return a metric of the finished runs of one recipe; None where none of them has it. See ``pooled``."""
    found = [run.result(metric, which) for run in runs if run.finished]
    return pooled([record for record in found if record is not None])


def pooled(records: Iterable[Record]) -> Estimate | None:
    """Return the mean of a metric over runs with different seeds; None where no record has a value.

    One run keeps the interval of its record. Several have Student's t interval of the mean over m seeds, x̄ ± t s / √m;
    runs that share a seed are not independent, and equal values have no spread: both have no interval. The interval of
    a share in per cent ends at 0 and 100, which it would exceed for few seeds that differ much.
    """
    found = [record for record in records if record.value is not None]
    if not found:
        return None
    mean = mean_over_runs(found, 1 / len(found))
    if len(found) == 1:
        return replace(mean, low=found[0].low, high=found[0].high, few=found[0].few)
    return mean if len({record.seed for record in found}) == len(found) else replace(mean, low=None, high=None)


def mean_over_runs(records: Sequence[Record], variance: float) -> Estimate:
    """Return the mean with Student's interval for a variance of the mean, in units of that of the values."""
    values = [value for record in records if (value := record.value) is not None]
    mean = fmean(values)
    if len({*values}) == 1:
        return Estimate(mean, None, None, len(values))
    half = float(stats.t.ppf(1 - LEVEL / 2, len(values) - 1)) * stdev(values) * variance**0.5
    lowest, highest = (0.0, 100.0) if _SHARES.fullmatch(records[0].metric) else (-math.inf, math.inf)
    return Estimate(mean, max(mean - half, lowest), min(mean + half, highest), len(values))


# metrics that are a share in per cent
_SHARES = re.compile(
    r"\w+_err|label_(map|ap|f1)\w*|(coco_)?map(_all_point)?|ap|ece\w*|f1_\w+|hamming|ood_(auroc|tnr95|detection_acc|aupr)\w*|"
    r"(center_)?max_box_acc\w*|(top1|gt_known)_(loc|cls)"
)
