"""Compares recipes by their finished runs, in plain words and image by image."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from cutmix.errors import listed
from cutmix.runs.read import MAIN, Estimate, Main, Run, baseline_of, differing_fields, estimate, groups, read_outcome
from cutmix.runs.record import with_interval
from cutmix.statistics import Paired, holm, in_words, mcnemar

MOST_IN_PAIRS = 6  # runs of which every pair is compared

# What a comparison of methods may vary.
_MIX_FIELDS = {
    "mix", "alpha", "mix_prob", "mix_per_sample", "mix_layers", "cutout", "cutout_size", "label_smoothing",
    "stochastic_depth", "shake_drop", "depth_decay", "drop_block", "drop_block_size", "backbone",
}  # fmt: skip


def comparisons(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """The name of each recipe with a finished run, and its main measure beside the baseline's in words.

    Only recipes measured on the same test set are compared, with the first without any method, or else the first.
    """
    return [said for task, main in MAIN.items() for said in _comparisons([r for r in runs if r.task == task], main)]


def _comparisons(runs: Sequence[Run], main: Main) -> list[tuple[str, str]]:
    by_recipe = groups(runs)
    settings: dict[tuple[str, str, int | None], dict[str, Estimate]] = {}
    for name, members in by_recipe.items():
        found = estimate(members, main.metric, "last")
        if found:
            line = next(run.result(main.metric, "last") for run in members if run.finished)
            setting = (line.data, line.split, line.n) if line else ("", "", None)
            settings.setdefault(setting, {})[name] = found
    said = []
    for (data, split, n), estimates in settings.items():
        baseline = baseline_of([by_recipe[name][0] for name in estimates])
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
    baseline = baseline_of([run for run, _ in members]) if members else None
    found = []
    for (one, its), (other, others) in combinations(members, 2):
        chosen = len(members) <= MOST_IN_PAIRS or baseline in (one.group, other.group)
        same = one.group != other.group and one.recipe.get("seed") == other.recipe.get("seed")
        if chosen and same and its.same_images(others):
            found.append((one.label, other.label, mcnemar(its.right, others.right)))
    adjusted = holm([counts.p for _, _, counts in found])
    return [Pair(*pair, p) for pair, p in zip(found, adjusted, strict=True)]


def _main(found: Estimate, main: Main) -> str:
    what = main.label if found.count == 1 else f"mean {main.label} of {found.count} runs"
    return f"{what} {with_interval(found, '.1f', main.unit)}"


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
    if not one.same_images(other):
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
