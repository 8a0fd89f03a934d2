"""Compares recipes by their finished runs: an estimate with its interval, and what it means in plain words."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, stdev
from typing import NamedTuple

from scipy import stats

from cutmix.runs.read import Run, differing_fields, groups
from cutmix.runs.record import Record
from cutmix.statistics import Paired, holm, in_words, mcnemar, read_outcome

MOST_IN_PAIRS = 6  # runs of which every pair is compared

# What a comparison of methods may vary.
_MIX_FIELDS = {
    "mix", "alpha", "mix_prob", "mix_per_sample", "mix_layers", "cutout", "cutout_size", "label_smoothing",
    "stochastic_depth", "shake_drop", "depth_decay", "drop_block", "drop_block_size", "backbone",
}  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A measure of one recipe: of its only run, or the mean over its seeds.

    Attributes:
        value: the measure, in its own unit (errors: per cent).
        low: lower end of the interval; None without one.
        high: upper end of the interval; None without one.
        count: number of runs.
    """

    value: float
    low: float | None
    high: float | None
    count: int


def estimate(runs: Iterable[Run], measure: str, which: str, confidence: float = 0.95) -> Estimate | None:
    """What the finished runs of one recipe say of a measure; None when it was run in none of them.

    One run has the interval that its results give (Wilson's, of the test images). Several have Student's t interval of
    the mean over m seeds, x̄ ± t s / √m; runs that repeat a seed are no independent draws and get no interval.
    """
    found = [run.result(measure, which) for run in runs if run.finished]
    return pooled([record for record in found if record is not None], confidence)


def pooled(records: Iterable[Record], confidence: float = 0.95) -> Estimate | None:
    """What the results of one recipe say; see `estimate`."""
    found = [(record.seed, record.value, record) for record in records if record.value is not None]
    values = [value for _, value, _ in found]
    if not values:
        return None
    if len(values) == 1:
        return Estimate(values[0], found[0][2].low, found[0][2].high, 1)
    mean = fmean(values)
    if len({seed for seed, _, _ in found}) < len(values):
        return Estimate(mean, None, None, len(values))
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return Estimate(mean, mean - half, mean + half, len(values))


class Main(NamedTuple):
    """The measure by which runs of a task are compared: its name in the results and in words, and its unit."""

    measure: str
    label: str
    unit: str


MAIN = {
    "classification": Main("top1_err", "top-1 error", " %"),
    "detection": Main("map", "mAP", " %"),
    "captioning": Main("cider_d", "CIDEr-D", ""),
}


def comparisons(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """The name of each recipe with a finished run, and its main measure beside the baseline's in words.

    Only recipes measured on the same test set are compared, with the first without any method, or else the first.
    """
    return [said for task, main in MAIN.items() for said in _comparisons([r for r in runs if r.task == task], main)]


def _comparisons(runs: Sequence[Run], main: Main) -> list[tuple[str, str]]:
    by_recipe = groups(runs)
    settings: dict[tuple[str, str, int | None], dict[str, Estimate]] = {}
    for name, members in by_recipe.items():
        found = estimate(members, main.measure, "last")
        if found:
            line = next(run.result(main.measure, "last") for run in members if run.finished)
            setting = (line.data, line.split, line.n) if line else ("", "", None)
            settings.setdefault(setting, {})[name] = found
    said = []
    for (data, split, n), estimates in settings.items():
        plain = (name for name in estimates if is_plain(by_recipe[name][0]))
        baseline = next(plain, next(iter(estimates)))
        images = "images" if n is None else f"{n:,} images"
        said.append((baseline, f"{_main(estimates[baseline], main)} on the {images} of {data} ({split})."))
        for name, found in estimates.items():
            if name != baseline:
                text = f"{_main(found, main)}, {_difference(found.value - estimates[baseline].value)} {baseline}. "
                tested = _tested(by_recipe[name], by_recipe[baseline])
                text += tested or _verdict(found, estimates[baseline])
                text += _mind(by_recipe[name][0], by_recipe[baseline][0])
                said.append((name, text))
    return said


def is_plain(run: Run) -> bool:
    """Return whether a run has no method that is compared: neither mixing nor another regularizer."""
    methods = ("label_smoothing", "stochastic_depth", "shake_drop", "drop_block", "cutout")
    return run.recipe.get("mix") == "none" and not any(run.recipe.get(name) for name in methods)


class Pair(NamedTuple):
    """Two runs on the same test images, compared image by image after the last epoch.

    Attributes:
        first: Label of a run.
        second: Label of another.
        counts: Images that only the one and only the other got right, and the p-value by itself.
        p: The p-value, adjusted for all pairs by Holm's method.
    """

    first: str
    second: str
    counts: Paired
    p: float


def pairs(runs: Sequence[Run]) -> list[Pair]:
    """Compare finished runs of different recipes and the same seed, where both have predictions of the same images.

    Up to six runs every pair is compared; of more, each one with those of the recipe without any method, or of the
    first.
    """
    outcomes = {}
    for run in runs:
        path = run.folder / "predictions" / "last.npz"
        if run.finished and run.result("top1_err", "last") and path.is_file():
            outcomes[run.label] = (run, read_outcome(path))
    members = list(outcomes.values())
    baseline = next((run.group for run, _ in members if is_plain(run)), None)
    baseline = baseline or (members[0][0].group if members else None)
    found = []
    for (one, its), (other, others) in combinations(members, 2):
        chosen = len(members) <= MOST_IN_PAIRS or baseline in (one.group, other.group)
        same = one.group != other.group and one.recipe.get("seed") == other.recipe.get("seed")
        if chosen and same and its.labels.shape == others.labels.shape and bool((its.labels == others.labels).all()):
            found.append((one.label, other.label, mcnemar(its.right, others.right)))
    adjusted = holm([counts.p for _, _, counts in found])
    return [Pair(*pair, p) for pair, p in zip(found, adjusted, strict=True)]


def _main(found: Estimate, main: Main) -> str:
    what = main.label if found.count == 1 else f"mean {main.label} of {found.count} runs"
    interval = "" if found.low is None or found.high is None else f" [{found.low:.1f}, {found.high:.1f}]"
    return f"{what} {found.value:.1f}{main.unit}{interval}"


def _difference(points: float) -> str:
    if abs(points) < 0.05:
        return "to one decimal the same as"
    return f"{abs(points):.1f} points {'below' if points < 0 else 'above'}"


def _tested(members: Sequence[Run], others: Sequence[Run]) -> str:
    """What a test in pairs says of two single runs on the same images, or where; "" where there are more, or others."""
    paths = [run.folder / "predictions" / "last.npz" for run in (*members, *others)]
    if len(paths) != 2 or not all(path.is_file() for path in paths):
        return ""
    if members[0].task != "classification":
        return f"Under {members[0].task.capitalize()} they are compared in pairs, if both keep what that takes."
    one, other = map(read_outcome, paths)
    if one.labels.shape != other.labels.shape or not bool((one.labels == other.labels).all()):
        return ""
    p = mcnemar(one.right, other.right).p
    return f"Image by image: {in_words(p)} (exact McNemar test); how far another seed would move it is not known."


def _verdict(one: Estimate, other: Estimate) -> str:
    single = one.count == other.count == 1
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return "Without both intervals the difference is not established."
    if max(one.low, other.low) <= min(one.high, other.high):
        by = "one run of each" if single else "these runs"
        return f"The two intervals overlap, so the difference is not established by {by}."
    if one.count > 1 and other.count > 1:
        return "The two intervals over seeds do not overlap."
    return "The two intervals do not overlap; how far another seed would move them is not known from one run."


def _mind(run: Run, baseline: Run) -> str:
    """A warning when the difference cannot be put down to the mixing alone."""
    fields = [field for field in differing_fields([run, baseline]) if field not in _MIX_FIELDS]
    if not fields:
        return ""
    return f" Mind that the two recipes differ also in {listed(fields)}."


def listed(words: Sequence[str]) -> str:
    """Return words as a sentence lists them: a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
