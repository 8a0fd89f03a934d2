"""Finished runs of several methods compared with a baseline: numbers, words and tables."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from rich.table import Table
from scipy import stats

from cutmix.errors import InputError, printable
from cutmix.runs.outcomes import CrossedDifference, crossed_difference, label_outcome, prior_freedom
from cutmix.runs.read import Run, read_outcome
from cutmix.runs.record import Record, number, with_interval
from cutmix.runtime.terminal import Tabular
from cutmix.statistics import LEVEL, holm


@dataclass(frozen=True)
class ClassDifference:
    """The difference of a class."""

    name: str  # the class
    value: float  # error of the method less that of the baseline on the images of the class, mean over seeds, in points
    images: int  # test images of the class
    p: float  # p-value over seeds and images, adjusted by Holm's method for all classes of the comparison


@dataclass(frozen=True)
class Comparison:
    """A method beside the baseline, with equal data, budget and seeds."""

    method: str
    baseline: str
    data: str  # name of the data
    split: str  # split of the test images
    per_class: int | None  # training images of each class; None for all
    error: float  # mean error over seeds of the method, in per cent
    baseline_error: float  # the same for the baseline
    difference: CrossedDifference  # over seeds and images
    p: float  # p-value, adjusted by Holm's method for all comparisons that were made together
    seconds: float  # mean training time of the method
    baseline_seconds: float
    classes: tuple[ClassDifference, ...]
    # "top1_err"; or "f1_images", whose complement is the error, where images can have several labels
    metric: str = "top1_err"
    errors: tuple[float, ...] = ()  # of each seed, in their order
    baseline_errors: tuple[float, ...] = ()
    train_error: float | None = None  # mean error on the training images over seeds, in per cent; with --train-error
    baseline_train_error: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @property
    def settled(self) -> bool:
        """Whether chance is excluded at 5 %, after adjustment."""
        return self.p < LEVEL


def compare_runs(runs: Sequence[Run], methods: Sequence[str], baseline: str) -> list[Comparison]:
    """Compare the methods of finished runs, one for each run, with that of the baseline, subset by subset."""
    groups: dict[tuple[int | None, str], list[Run]] = {}
    for run, method in zip(runs, methods, strict=True):
        groups.setdefault((run.recipe["train_per_class"], method), []).append(run)
    made = [
        _compare(method, members, baseline, groups[count, baseline])
        for (count, method), members in groups.items()
        if method != baseline
    ]
    adjusted = holm([one.p for one in made])
    return [replace(one, p=p) for one, p in zip(made, adjusted, strict=True)]


def _compare(name: str, method: Sequence[Run], baseline_name: str, baseline: Sequence[Run]) -> Comparison:
    from cutmix.runtime.checkpoint import read_header  # loads safetensors

    wrong, missed, errors, seconds = {}, {}, {}, {}
    record = _record(method[0])
    read = _outcome if record.metric == "top1_err" else label_outcome
    labels, files, *_ = read(baseline[0].predictions)
    for side, members in (("method", method), ("baseline", baseline)):
        ordered = sorted(members, key=lambda run: run.recipe["seed"])
        outcomes = [read(run.predictions) for run in ordered]
        if not all(np.array_equal(its, labels) and np.array_equal(own, files) for its, own, *_ in outcomes):
            raise InputError(f"the runs of {ordered[0].label} were not evaluated on the same images as the baseline's")
        wrong[side] = np.stack([its for *_, its, _ in outcomes])
        missed[side] = np.stack([its for *_, its in outcomes])
        errors[side] = tuple((100 * wrong[side].mean(1)).tolist())
        seconds[side] = fmean(_record(run).seconds or 0.0 for run in ordered)
    found = crossed_difference(wrong["method"], wrong["baseline"])
    classes = read_header(method[0].folder / "model.safetensors").classes or ()
    return Comparison(
        name, baseline_name, record.data, record.split, method[0].recipe["train_per_class"], fmean(errors["method"]),
        fmean(errors["baseline"]), found, found.p, seconds["method"], seconds["baseline"],
        _by_class(missed["method"], missed["baseline"], labels, classes), record.metric, errors["method"],
        errors["baseline"], _train_error(method), _train_error(baseline),
    )  # fmt: skip


def _train_error(runs: Sequence[Run]) -> float | None:
    """Return the mean error on the training images after the last epoch; None where a run did not evaluate it."""
    errors = [run.epochs[-1]["train_err"] for run in runs if run.epochs and "train_err" in run.epochs[-1]]
    return fmean(errors) if len(errors) == len(runs) else None


def _outcome(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return labels and files of images with one label each, (N,), and whether each is wrong, (N,) and (N, 1)."""
    labels, right, files = read_outcome(path)
    return labels, files, ~right, ~right[:, None]


def _record(run: Run) -> Record:
    """Return the record of the error after the last epoch that the training wrote."""
    found = run.result("top1_err", "last") or run.result("f1_images", "last")
    assert found is not None, run.folder
    return found


def _by_class(
    method: np.ndarray, baseline: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> tuple[ClassDifference, ...]:
    """Return the differences by class, the most helped first; of errors (S, N, K), or (S, N, 1) for all classes.

    A few seeds do not tell how much one class varies from seed to seed: the variance is the mean of all classes, or
    the class's own if that is larger, and its degrees of freedom fall where classes vary unequally. Of simulated equal
    methods with 3 seeds and 3 to 100 classes, some class differs in 7 % of the comparisons or fewer, with 2 seeds in
    12 %. p is at least that of a sign test in which all images of the class agree.
    """
    found, by_seed = [], []
    for index, name in enumerate(names):
        images = labels[:, index] if labels.ndim == 2 else labels == index
        k = index if labels.ndim == 2 else 0
        if images.sum() > 1:
            one, other = (errors[:, images, k] for errors in (method, baseline))
            found.append((name, crossed_difference(one, other)))
            by_seed.append(100 * (one.mean(1) - other.mean(1)))
    p = [one.p for _, one in found]
    if found and (seeds := len(method)) > 1:
        rounding = np.array([(100 / one.images) ** 2 / 12 for _, one in found])  # images are counted, so 0 is not exact
        own = np.var(by_seed, axis=1, ddof=1) + rounding
        variance = np.maximum(own, own.mean()) / seeds + [one.over_images**2 / one.images for _, one in found]
        ratios = [one.value / v**0.5 for (_, one), v in zip(found, variance, strict=True)]
        freedom = seeds - 1
        p = (2 * stats.t.sf(np.abs(ratios), min(freedom + prior_freedom(own, freedom), len(found) * freedom))).tolist()
    p = [max(each, 2.0 ** (1 - one.images)) if one.value else 1.0 for each, (_, one) in zip(p, found, strict=True)]
    made = [ClassDifference(name, d.value, d.images, each) for (name, d), each in zip(found, holm(p), strict=True)]
    return tuple(sorted(made, key=lambda one: one.value))


# ---- words ----


def in_words(one: Comparison) -> str:
    """Return the answer in a few sentences: the difference, its test, and the seeds that would settle it."""
    d = one.difference
    points, better = abs(d.value), "better" if d.value < 0 else "worse"
    where = "" if one.per_class is None else f" with {one.per_class} training images per class"
    right, before = 100 - one.error, 100 - one.baseline_error
    if one.metric == "top1_err":
        share = "of 100" if d.images >= 100 else "% of the"
        text = f"{one.method}{where}: {right:.1f} {share} images right, {before:.1f} with {one.baseline}"
    else:
        text = f"{one.method}{where}: F1 of the labels of an image {right:.1f} %, {before:.1f} % with {one.baseline}"
    if d.low == d.high == 0 or (d.seeds == 1 and not d.value and not d.over_images):
        return f"{text} – equal on every image in every run: more or harder test images are needed.{_time(one)}"
    text += f" – {f'{points:.1f} points {better}' if points else 'equal'} "
    text += f"[{0.0 - d.high:+.1f}, {0.0 - d.low:+.1f}].".replace("-", "−")
    over = f"{d.seeds} seeds and {_images(one)}" if d.seeds > 1 else f"{_images(one)} and one seed"
    if one.settled:
        text += f" This is more than chance ({_chance(one)}, over {over})."
    else:
        text += f" Chance is not excluded ({_chance(one)}, over {over}); {_what_would_settle(one)}"
    if d.seeds == 1:
        return f"{text} One seed says nothing about another: give --seeds 3 or more.{_fit_in_words(one)}{_time(one)}"
    return f"{text} {_classes_in_words(one)}{_fit_in_words(one)}{_time(one)}"


def _images(one: Comparison) -> str:
    return f"{one.difference.images:,} {'validation' if one.split == 'val' else one.split} images"


def _p(p: float) -> str:
    return "below 0.001" if p < 0.001 else f"{p:.3f}"


def _chance(one: Comparison) -> str:
    text = "p below 0.001" if one.p < 0.001 else f"p = {one.p:.3f}"
    return text if one.p == one.difference.p else f"{text} adjusted for all comparisons"


def _what_would_settle(one: Comparison) -> str:
    d = one.difference
    found = f"these runs would have found a difference of {d.detectable:.1f} points in 80 % of the cases."
    if d.detectable >= 100:
        found = "these runs are too few to find a difference of any size in 80 % of the cases."
    needed = d.seeds_needed()
    if d.seeds == 1:
        return found
    if needed is None:
        return f"{found} To settle a difference of this size, more than these {_images(one)} are needed."
    if needed == d.seeds:
        return found
    return f"{found} If the difference is as large as it looks, {needed} seeds would settle it."


def _classes_in_words(one: Comparison) -> str:
    helped = [each for each in one.classes if each.p < LEVEL and each.value < 0]
    hurt = [each for each in reversed(one.classes) if each.p < LEVEL and each.value > 0]
    if not helped and not hurt:
        return "No class alone differs by more than chance."
    return " ".join(
        f"{word} most on {', '.join(f'{each.name} ({each.value:+.0f} points of error)' for each in some[:3])}."
        for word, some in (("Helps", helped), ("Hurts", hurt))
        if some
    ).replace("-", "−")


# Per cent of the training images. In docs/experiments/few-images.md the methods that ended above it gained little or
# lost, and CutMix gained where it was then trained for longer.
_UNFITTED = 40.0


def _fit_in_words(one: Comparison) -> str:
    own, before = one.train_error, one.baseline_train_error
    if own is None or before is None:
        return ""
    text = f" Of the training images {own:.1f} % are wrong at the end, {before:.1f} % with {one.baseline}"
    return f"{text}: longer training may change the answer." if own > _UNFITTED else f"{text}."


def _time(one: Comparison) -> str:
    if not one.baseline_seconds or not one.seconds:
        return ""
    return f" Training took {one.seconds / one.baseline_seconds:.2f} times as long by the clock."


class Comparisons(Tabular, list[Comparison]):
    """Comparisons with one baseline, which print as the answer in words, then tables."""

    page: Path | None = None  # the page that shows the runs; None while runs are left to other shards

    def tables(self) -> Iterator[Table | str]:
        """Yield the answers in words, the tables and the path of the page."""
        yield from map(in_words, self)
        yield from _tables(self) if self else ()
        if self.page:
            yield f"the page with curves and samples: {self.page}"

    def to_json(self) -> str:
        """Return the comparisons as JSON text."""
        return json.dumps([one.to_json() for one in self], indent=1, ensure_ascii=False)


def _tables(found: Sequence[Comparison]) -> Iterable[Table]:
    """Yield a table of the comparisons, and of the classes that differ most."""
    head = ["method", "images per class", _error(found), "baseline (%)", "difference [95 %]", "p (Holm)", "time"]
    grid = Table(*head)
    for one in found:
        d = one.difference
        ratio = f"{one.seconds / one.baseline_seconds:.2f} ×" if one.baseline_seconds else "–"
        grid.add_row(
            one.method, "all" if one.per_class is None else f"{one.per_class:,}", f"{one.error:.2f}",
            f"{one.baseline_error:.2f} ({one.baseline})", with_interval(d, "+.2f"), _p(one.p),
            ratio,
        )  # fmt: skip
    yield grid
    for one in found:
        if len(one.classes) > 2:
            where = "" if one.per_class is None else f", {one.per_class} per class"
            by_class = Table(
                "class", "difference (points)", "images", "p (Holm)", title=f"{one.method}{where}: classes"
            )
            chosen = one.classes if len(one.classes) <= 10 else (*one.classes[:5], *one.classes[-5:])
            for each in chosen:
                by_class.add_row(each.name, number(each.value, "+.1f"), f"{each.images:,}", _p(each.p))
            yield by_class


# ---- a table for a paper ----


def as_csv(found: Sequence[Comparison]) -> str:
    """Return a row for each subset and method as CSV: errors and their spread over the seeds, without rounding."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["data", "split", "images", "seeds", "metric", "train_per_class", "method", "mean", "sd", "difference", "low",
         "high", "p"]
    )  # fmt: skip
    for one, method, errors in _rows(found):
        d, metric = one.difference, one.metric if one.metric == "top1_err" else f"100 - {one.metric}"
        spread = stdev(errors) if len(errors) > 1 else None
        tested = (d.value, d.low, d.high, one.p) if method == one.method else ()
        shared = (one.data, one.split, d.images, d.seeds, metric, one.per_class)
        writer.writerow([*shared, method, fmean(errors), spread, *(tested or [None] * 4)])
    return file.getvalue()


def as_markdown(found: Sequence[Comparison]) -> str:
    """Return a row for each subset and method as a table in Markdown."""
    head, *rows = ([cell.replace("|", "\\|") for cell in row] for row in _cells(found))
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{_caption(found)}\n"


def as_latex(found: Sequence[Comparison]) -> str:
    """Return a row for each subset and method as a LaTeX table, which needs the package booktabs."""
    head, *rows = (" & ".join(cell.translate(_LATEX) for cell in row) + " \\\\\n" for row in _cells(found))
    columns = "l" + "r" * head.count(" & ")
    return (
        f"% \\usepackage{{booktabs}}\n% {_caption(found)}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{head}"
        f"\\midrule\n{''.join(rows)}\\bottomrule\n\\end{{tabular}}\n"
    )


TEXTS = {".csv": as_csv, ".md": as_markdown, ".tex": as_latex}  # by the ending of --table
_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$"}
)


def _rows(found: Sequence[Comparison]) -> Iterator[tuple[Comparison, str, tuple[float, ...]]]:
    """Yield each subset and method with its errors, and the baseline of each subset before them."""
    known = set()
    for one in found:
        if one.per_class not in known:
            yield one, one.baseline, one.baseline_errors
        known.add(one.per_class)
        yield one, one.method, one.errors


def _cells(found: Sequence[Comparison]) -> Iterator[list[str]]:
    """Yield the header and the rows of a table for a paper."""
    curve = any(one.per_class is not None for one in found)
    subset = ["images per class"] if curve else []
    yield ["method", *subset, _error(found), "difference [95 %]", "p"]
    for one, method, errors in _rows(found):
        subset = ["all" if one.per_class is None else f"{one.per_class:,}"] if curve else []
        error = f"{fmean(errors):.2f}" + (f" ± {stdev(errors):.2f}" if len(errors) > 1 else "")
        tested = [with_interval(one.difference, "+.2f"), _p(one.p)] if method == one.method else ["", ""]
        yield [method, *subset, error, *tested]


def _error(found: Sequence[Comparison]) -> str:
    return "error (%)" if all(one.metric == "top1_err" for one in found) else "100 − F1 (%)"


def _caption(found: Sequence[Comparison]) -> str:
    one = found[0]
    seeds = one.difference.seeds
    spread = f", {seeds} seeds, mean ± standard deviation over them" if seeds > 1 else ", one seed"
    over = "over seeds and images" if seeds > 1 else "over images alone"
    return (
        f"{printable(one.data)}, {_images(one)}{spread}; difference from {one.baseline} in points with its 95 % "
        f"interval {over}; p adjusted by Holm's method."
    )
