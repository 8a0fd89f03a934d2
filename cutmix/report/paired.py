"""Each run against the baseline on the same images, from the arrays of per-image results. No torch here.

``cutmix evaluate`` writes those of a classifier, and the run itself those of a detector or a captioner.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from cutmix.config.tasks import EVALUATE
from cutmix.errors import InputError
from cutmix.runs.read import Run, baseline_of
from cutmix.runs.record import Record
from cutmix.runtime.files import read_arrays
from cutmix.statistics import (
    Difference,
    auroc_difference,
    ece_difference,
    holm,
    paired_difference,
    rate_difference,
)
from cutmix.transfer.average_precision import Judged, precision_of, tally
from cutmix.transfer.caption_scores import SCORES, ImageScores, corpus_bleu

Arrays = Mapping[str, np.ndarray]

IOU = 0.5  # above which a box is right


class Compared(NamedTuple):
    """A metric of a run and of the baseline."""

    name: str  # the metric's key in ``METRICS``
    of: str  # subject of the metric, such as the other data; "" for the test images alone
    at: float | None  # such as ε
    run: str  # label of the run
    baseline: str  # label of the baseline's run
    difference: Difference  # the run less the baseline; its p-value is adjusted, by Holm's method, for all comparisons


class _Sample(NamedTuple):
    """The per-image results of a metric."""

    name: str  # the metric's key in ``METRICS``
    of: str  # its subject; "" for the test images alone
    at: float | None
    line: Record | None  # its latest record, which belongs to the arrays; None where it was not evaluated
    values: Any
    compare: Callable[[Any, Any], Difference]  # returns the difference of the values of two runs
    same: tuple[Any, ...] = ()  # further values that have to be the same in both runs


def differences(runs: Sequence[Run], suite: str) -> list[Compared]:
    """Compare each run with the baseline, which ``baseline_of`` names.

    A run is compared with the baseline's run of its own seed and fold, if there is one, and only if both have the same
    images.
    Runs without the arrays of the suite are left out.
    """
    found_in = {run.label: read_arrays(run.arrays(suite)) for run in runs if run.arrays(suite).is_file()}
    samples = {
        run.label: {
            (sample.name, sample.of): sample for sample in _SAMPLES[suite](run, found_in[run.label]) if sample.line
        }
        for run in runs
        if run.label in found_in
    }
    found = []
    for baseline, run in against_baseline([run for run in runs if run.label in found_in]):
        own, its = (found_in[one.label].get("images") for one in (run, baseline))
        # a digest of the images, which arrays from Python may lack; of a detector, the image of each detection
        if suite in EVALUATE and own is not None and its is not None and not np.array_equal(own, its):
            continue
        for key, second in samples[run.label].items():
            first = samples[baseline.label].get(key)
            if first and _comparable(baseline, first, run, second):
                difference = second.compare(first.values, second.values)
                found.append(Compared(second.name, second.of, second.at, run.label, baseline.label, difference))
    adjusted = holm([one.difference.p for one in found])
    return [one._replace(difference=replace(one.difference, p=p)) for one, p in zip(found, adjusted, strict=True)]


def against_baseline(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Return, for every run of another recipe than the baseline's, the baseline's run and the run itself."""
    if not runs:
        return []
    group = baseline_of(runs)
    baselines = [run for run in runs if run.group == group]
    same = {_seed_and_fold(run): run for run in reversed(baselines)}
    return [(same.get(_seed_and_fold(run), baselines[0]), run) for run in runs if run.group != group]


def _seed_and_fold(run: Run) -> tuple[Any, Any]:
    return run.recipe.get("seed"), run.recipe.get("fold")


def _comparable(run: Run, first: _Sample, other: Run, second: _Sample) -> bool:
    """Return whether two runs were evaluated in the same way on the same images, by their arrays and results.

    Images that are held out of a folder depend on the share and the seed of the split; drawn images and outliers depend
    on the evaluation's seed.
    """
    if first.at != second.at or not _equal(first.same, second.same):
        return False
    one, two = first.line, second.line
    assert one is not None
    assert two is not None
    if (one.data, one.split, one.drawn) != (two.data, two.split, two.drawn):
        return False
    if one.drawn and one.draw_seed != two.draw_seed:
        return False
    division = ("val_fraction", "split_seed")
    return one.split == "all" or all(run.recipe.get(name) == other.recipe.get(name) for name in division)


def _equal(first: tuple[Any, ...], second: tuple[Any, ...]) -> bool:
    return len(first) == len(second) and all(map(np.array_equal, first, second))


# ---- the compared metrics of each suite ----


def _calibration(run: Run, arrays: Arrays) -> Iterator[_Sample]:
    if {"confidence", "right"} <= arrays.keys():
        labels = arrays.get("labels", arrays["right"])  # (N, K) where an image can have several
        values = tuple(arrays[name].reshape(labels.shape) for name in ("confidence", "right"))
        line, same = _last(run, "calibration", "ece"), (len(labels), arrays.get("labels", ()))
        yield _Sample("ece", "", None, line, values, ece_difference, same)


def _robustness(run: Run, arrays: Arrays) -> Iterator[_Sample]:
    noise = _last(run, "robustness", "noise_err")
    eps = noise.at if noise else None
    for name in ("clean", "fgsm", "noise", "pgd", "apgd"):
        if f"{name}_right" in arrays:
            subset = (arrays["pgd_index"],) if "pgd" in name else ()
            at, line = None if name == "clean" else eps, _last(run, "robustness", f"{name}_err")
            wrong, same = ~arrays[f"{name}_right"], (arrays["labels"], *subset)
            yield _Sample(f"{name}_err", "", at, line, wrong, rate_difference, same)


def _ood(run: Run, arrays: Arrays) -> Iterator[_Sample]:
    for name in arrays:
        score, _, of = name.partition("/")
        if score == "max-softmax" and of != "id":
            values, line = (arrays["max-softmax/id"], arrays[name]), _last(run, "ood", "ood_auroc", of)
            drawn = (line.note, line.draw_seed) if line else ()
            same = (len(values[0]), len(values[1]), arrays.get("labels", ()), *map(str, drawn))
            yield _Sample("ood_auroc", of, None, line, values, auroc_difference, same)


def _localization(run: Run, arrays: Arrays) -> Iterator[_Sample]:
    if not {"iou", "right", "true_boxes"} <= arrays.keys():
        return
    located, right = arrays["iou"] > IOU, arrays["right"]
    for name, hits in (("top1_loc", located & right), ("gt_known_loc", located), ("top1_cls", right)):
        line = _last(run, "localization", name)
        yield _Sample(name, "", line.at if line else None, line, hits, rate_difference, (arrays["true_boxes"],))


def _detection(run: Run, arrays: Arrays) -> Iterator[_Sample]:
    if "verdicts" in arrays:
        judged, line = Judged(*(arrays[name] for name in Judged._fields)), _last(run, "detection", "map")
        n = (line.n if line else None) or 0
        same = (n, judged.object_images, judged.object_labels)
        yield _Sample("map", "", None, line, judged, partial(precision_difference, images=n), same)


def _captioning(run: Run, arrays: Arrays) -> Iterator[_Sample]:
    if "bleu" in arrays:
        scores = ImageScores((), arrays["bleu"], arrays["rouge_l"], arrays["cider_d"])
        for name in SCORES:
            line, compare = _last(run, "captioning", name), partial(caption_difference, score=name)
            yield _Sample(name, "", None, line, scores, compare, (arrays["references"],))


_SAMPLES: dict[str, Callable[[Run, Arrays], Iterator[_Sample]]] = {
    "calibration": _calibration,
    "robustness": _robustness,
    "ood": _ood,
    "localization": _localization,
    "detection": _detection,
    "captioning": _captioning,
}


def _last(run: Run, suite: str, metric: str, of: str = "") -> Record | None:
    """Return the latest record of a metric, which belongs to the arrays; None where it was not evaluated."""
    lines = (line for line in reversed(run.suite(suite)) if line.metric == metric)
    return next((line for line in lines if (line.of or "") == of), None)


# ---- differences ----
# Two detectors or two captioners on the same images, compared by resampling the images in pairs. No torch here.

# Enough draws that the smallest p, 2 / (draws + 1), stays below 0.05 after Holm's factor, a page's scores and runs.
_DRAWS = {"detection": 2000, "captioning": 5000}


def precision_difference(first: Judged, second: Judged, images: int, draws: int = _DRAWS["detection"]) -> Difference:
    """Compare two mean average precisions (11-point) of the same objects, in per cent, the second less the first.

    ``images`` is their number, including those without objects.
    """
    if not len(first.object_images):
        raise InputError("two runs on no objects cannot be compared in pairs")
    if not all(map(np.array_equal, first[-2:], second[-2:])):
        raise InputError("two runs on different objects cannot be compared in pairs")
    classes = 1 + int(max(column.max(initial=0) for column in (first.labels, second.labels, first.object_labels)))
    one, other = (tally(judged, classes) for judged in (first, second))

    def less(counts: np.ndarray) -> list[float]:
        return [100 * (precision_of(other, counts=row).mean - precision_of(one, counts=row).mean) for row in counts]

    return paired_difference(less, images, draws)


def caption_difference(
    first: ImageScores, second: ImageScores, score: str, draws: int = _DRAWS["captioning"]
) -> Difference:
    """Compare a score of two sets of captions of the same images, times 100, the second less the first.

    CIDEr-D's weights of n-grams stay those of the whole set.
    """
    n = len(first.rouge_l)
    if n != len(second.rouge_l) or not n:
        raise InputError(f"two runs on {n} and {len(second.rouge_l)} images cannot be compared in pairs")
    one, other = (part.bleu if score.startswith("bleu") else getattr(part, score) for part in (first, second))

    def value(sums: np.ndarray) -> float:
        return corpus_bleu(sums)[int(score[-1]) - 1] if score.startswith("bleu") else float(sums) / n

    def less(counts: np.ndarray) -> list[float]:
        return [100 * (value(row @ other) - value(row @ one)) for row in counts]

    return paired_difference(less, n, draws)
