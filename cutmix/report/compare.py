"""Finished recipes compared with the baseline, in sentences and image by image."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from cutmix.errors import listed
from cutmix.runs.outcomes import Estimate, confused_pairs, count_by_class, crossed_difference, estimate, read_answers
from cutmix.runs.read import (
    MAIN,
    Main,
    Outcome,
    Run,
    baseline_of,
    differing_fields,
    groups,
    read_outcome,
    tested_alike,
)
from cutmix.runs.record import Record, number, with_interval
from cutmix.statistics import LEVEL, Paired, holm, in_words, mcnemar

MOST_IN_PAIRS = 6  # runs up to which every pair is compared
_GAP = 5.0  # points between mean confidence and accuracy that are a finding

# Options in which compared methods may differ.
_MIX_FIELDS = {
    "mix", "alpha", "mixup_alpha", "mix_prob", "mix_per_sample", "mix_layers", "cutout", "cutout_size",
    "label_smoothing", "stochastic_depth", "shake_drop", "depth_decay", "drop_block", "drop_block_size", "backbone",
}  # fmt: skip


class _Contest(NamedTuple):
    """Recipes whose main metric is of the same test images."""

    main: Main
    line: Record  # a record of it
    baseline: str  # name of the baseline
    members: dict[str, list[Run]]  # the runs of each recipe
    estimates: dict[str, Estimate]  # the metric of each recipe
    # the p-value of no difference of each other recipe, adjusted by Holm's method, and the number of pairs of
    # runs; without recipes that lack predictions of the same images
    chance: dict[str, tuple[float, int]]

    @property
    def ranking(self) -> list[str]:
        """Names of the recipes, that with the best value first."""
        sign = 1 if self.main is MAIN["classification"] else -1
        return sorted(self.estimates, key=lambda name: sign * self.estimates[name].value)

    @property
    def best(self) -> str:
        """Name of the recipe with the best value."""
        return self.ranking[0]


def _contests(runs: Sequence[Run]) -> Iterator[_Contest]:
    """Yield the comparisons that the finished runs allow: one for each task, test set and number of training images."""
    for task, main in MAIN.items():
        by_recipe = groups([run for run in runs if run.task == task])
        settings: dict[tuple[Any, ...], dict[str, Estimate]] = {}
        lines: dict[tuple[Any, ...], Record] = {}
        for name, members in by_recipe.items():
            found = estimate(members, main.metric, "last")
            line = next((line for run in members if run.finished and (line := run.result(main.metric, "last"))), None)
            if found and line:
                setting = (line.data, line.split, line.n, members[0].recipe.get("train_per_class"))
                settings.setdefault(setting, {})[name] = found
                lines.setdefault(setting, line)
        finished = {name: [run for run in members if run.finished] for name, members in by_recipe.items()}
        bases = {key: baseline_of([by_recipe[name][0] for name in found]) for key, found in settings.items()}
        tests = (
            ((key, name), _chance(finished[name], finished[bases[key]]))
            for key, found in settings.items() for name in found if name != bases[key]
        )  # fmt: skip
        p = {test: found for test, found in tests if found}
        adjusted: dict[Any, float] = {}
        for images in dict.fromkeys(key[:3] for key in settings):  # for all numbers of training images, as in compare
            own = [test for test in p if test[0][:3] == images]
            adjusted |= zip(own, holm([p[test][0] for test in own]), strict=True)
        for key, estimates in settings.items():
            chance = {name: (adjusted[key, name], p[key, name][1]) for name in estimates if (key, name) in p}
            compared = {name: finished[name] for name in estimates}
            yield _Contest(main, lines[key], bases[key], compared, estimates, chance)


def _chance(members: Sequence[Run], others: Sequence[Run]) -> tuple[float, int] | None:
    """Return the p-value of no difference, over images or over seeds and images, and the number of pairs of runs."""
    outcomes = [_outcomes(runs) for runs in (members, others)]
    if not all(outcomes) or not tested_alike([*members, *others]):
        return None
    one, other = outcomes
    every = [*one.values(), *other.values()]
    if not all(every[0].same_images(each) for each in every):
        return None
    if len(every) == 2:
        return mcnemar(every[0].right, every[1].right).p, 1
    seeds = sorted(one.keys() & other.keys())
    if len(seeds) < 2:
        return None
    wrong = [np.stack([~outcomes_of[seed].right for seed in seeds]) for outcomes_of in (one, other)]
    return crossed_difference(wrong[0], wrong[1]).p, len(seeds)


def _outcomes(runs: Sequence[Run]) -> dict[int, Outcome]:
    """Return the outcome of each seed; empty if a run has no predictions, or two runs share a seed."""
    paths = {run.recipe.get("seed", 0): run.predictions for run in runs}
    complete = len(paths) == len(runs) and all(run.task == "classification" for run in runs)
    if not complete or not all(path.is_file() for path in paths.values()):
        return {}
    return {seed: read_outcome(path) for seed, path in paths.items()}


# ---- sentences ----


def comparisons(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return the name of each recipe with a finished run, and its main metric beside the baseline's in words.

    Only recipes with the same test images, and as many training images per class, are compared: with the first without
    any method, else the first.
    """
    sentences = []
    for contest in _contests(runs):
        line, members, estimates = contest.line, contest.members, contest.estimates
        baseline, main = estimates[contest.baseline], contest.main
        if len(estimates) > 1:  # the verdict has the result of a single recipe
            sentences.append((contest.baseline, f"{_main(baseline, main, line.n)} on {_images(line)}."))
        for name, found in estimates.items():
            if name == contest.baseline:
                continue
            text = f"{_main(found, main, line.n)}, {_difference(found, baseline, main, line.n)} {contest.baseline}. "
            text += _tested(contest, name) or _verdict(found, baseline)
            sentences.append((name, text + _caveat(members[name][0], members[contest.baseline][0])))
    return sentences


def verdict(runs: Sequence[Run]) -> list[str]:
    """Return two sentences: the result, and its reliability."""
    return next((_decide(one) if len(one.estimates) > 1 else _describe(one) for one in _contests(runs)), [])


def _decide(contest: _Contest) -> list[str]:
    """Return which recipe is best of those shown to be better than the baseline, else of the others, and its chance."""
    base, main = contest.baseline, contest.main
    better = contest.ranking[: contest.ranking.index(base)]
    shown = [name for name in better if name in contest.chance and contest.chance[name][0] < LEVEL]
    other = (shown or better or contest.ranking[1:])[0]
    its, own = (_value(contest.estimates[name], main, contest.line.n) for name in (base, other))
    tested = contest.chance.get(other)
    if not better:
        opening = f"No method is better than the baseline, {base}: {its}, against {own} with {other}"
    elif tested and not shown:
        opening = f"No method is shown to be better than the baseline, {base}: {its}, against {own} with {other}"
    elif other == contest.best:
        opening = f"The best method is {other}: {own}, against {its} with the baseline, {base}"
    else:
        opening = f"{other} is better than the baseline, {base}: {own}, against {its}"
    count = contest.members[base][0].recipe.get("train_per_class")
    opening += f" ({_images(contest.line)}{'' if count is None else f', {count:,} training images per class'})."
    if tested is None:
        return [opening, _verdict(contest.estimates[other], contest.estimates[base])]
    p, seeds = tested
    over = f"over {seeds} seeds" if seeds > 1 else "for these two models"
    if p < LEVEL:
        closing = f"The difference is more than chance ({over}, {in_words(p)})."
    else:
        closing = f"The difference may be chance ({over}, p = {p:.3f}): do not decide by it."
    return [opening, closing if seeds > 1 else f"{closing} Another seed could change it; train with three or more."]


def _describe(contest: _Contest) -> list[str]:
    """Return the result of the only recipe, and its weakest class."""
    ((name, found),) = contest.estimates.items()
    line, run = contest.line, contest.members[name][0]
    interval = "" if found.low is None or found.high is None else f" (95\u00a0% interval {_range(found, contest.main)})"
    sentences = [f"{name}: {_value(found, contest.main, line.n)}{interval}, on {_images(line)}."]
    made = read_answers(run)
    if made is not None:
        worst, count = min(count_by_class([made]).items(), key=lambda item: item[1].right / item[1].images)
        text = f"The weakest class is {made.classes[worst]}, with {count.right:,} of {count.images:,} right"
        pairs = {pair: n for pair, n in confused_pairs([made]).items() if pair[0] == worst}
        if pairs:
            (_, taken), n = max(pairs.items(), key=lambda item: item[1])
            text += f"; {n:,} of its images are taken for {made.classes[taken]}"
        sentences.append(f"{text}.")
    return sentences


def _images(line: Record) -> str:
    """Return the number of images, the split and the data of a record."""
    split = {"val": "validation images"}.get(line.split, f"{line.split} images")
    return f"{line.n:,} {split} of {line.data}" if line.n else f"the {split} of {line.data}"


def calibration_findings(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return the label of each run whose confidence is off by 5 points or more, and the effect of a temperature."""
    sentences = []
    for run in runs:
        found = {line.metric: line for line in run.suite("calibration")}
        gap, temperature = found.get("signed_gap"), found.get("temperature")
        if gap is None or gap.value is None or abs(gap.value) < _GAP or (gap.low or 0) * (gap.high or 0) < 0:
            continue
        sides = ("overconfident", "above") if gap.value > 0 else ("underconfident", "below")
        text = f"{sides[0]}: the mean confidence is {abs(gap.value):.0f} points {sides[1]} the accuracy"
        after = found.get("signed_gap_scaled")
        if temperature and temperature.value is not None and after and after.value is not None:
            does = "corrects this" if abs(after.value) < abs(gap.value) / 2 else "does not correct this"
            text += f"; a temperature of {temperature.value:.2f} {does} ({number(after.value, '+.0f')} points after it)"
        sentences.append((run.label, f"{text}."))
    return sentences


def lead(runs: Sequence[Run]) -> Run | None:
    """Return the finished classifier with the best metric among those with the test images of the first one."""
    for contest in _contests(runs):
        if contest.main in (MAIN["classification"], MAIN["multilabel"]):
            found = [(run, run.result(contest.main.metric, "last")) for run in contest.members[contest.best]]
            valued = [(run, line.value) for run, line in found if line and line.value is not None]
            choose = min if contest.main is MAIN["classification"] else max
            return choose(valued, key=lambda each: each[1])[0]
    return None


class Pair(NamedTuple):
    """Two runs on the same test images, compared image by image after the last epoch."""

    first: str
    second: str
    counts: Paired  # images that only the first or only the second classifies correctly, and the unadjusted p-value
    p: float  # the p-value, adjusted for all pairs by Holm's method


def pairs(runs: Sequence[Run]) -> list[Pair]:
    """Compare finished runs of different recipes and the same seed that have predictions of the same images.

    Of up to six runs every pair is compared; of more, each one with the runs of the baseline.
    """
    outcomes = {}
    for run in runs:
        if run.finished and run.result("top1_err", "last") and run.predictions.is_file():
            outcomes[run.label] = (run, read_outcome(run.predictions))
    members = list(outcomes.values())
    baseline = baseline_of([run for run, _ in members]) if members else None
    found = []
    for (one, outcome), (other, others) in combinations(members, 2):
        chosen = len(members) <= MOST_IN_PAIRS or baseline in (one.group, other.group)
        same = one.group != other.group and one.recipe.get("seed") == other.recipe.get("seed")
        if chosen and same and outcome.same_images(others) and tested_alike([one, other]):
            found.append((one.label, other.label, mcnemar(outcome.right, others.right)))
    adjusted = holm([counts.p for _, _, counts in found])
    return [Pair(*pair, p) for pair, p in zip(found, adjusted, strict=True)]


# ---- words ----


def _one_decimal(value: float) -> str:
    return number(value, ".1f").removesuffix(".0")


def _value(found: Estimate, main: Main, images: int | None) -> str:
    """Return a result for a sentence: of a classifier the right images in 100, or their share in per cent."""
    if main is not MAIN["classification"]:
        return f"{main.label} {found.value:.1f}{main.unit}"
    return f"{_one_decimal(100 - found.value)} {'of 100' if (images or 100) >= 100 else '% of the'} images right"


def _range(found: Estimate, main: Main) -> str:
    assert found.low is not None
    assert found.high is not None
    ends = (found.low, found.high) if main is not MAIN["classification"] else (100 - found.high, 100 - found.low)
    return " to ".join(map(_one_decimal, ends)) + (", too few images" if found.few else "")


def _main(found: Estimate, main: Main, images: int | None) -> str:
    if main is not MAIN["classification"]:
        what = main.label if found.count == 1 else f"mean {main.label} of {found.count} runs"
        return f"{what} {with_interval(found, '.1f', main.unit)}"
    text = _value(found, main, images) + (f" (mean of {found.count} runs)" if found.count > 1 else "")
    return text if found.low is None else f"{text}, 95\u00a0% interval {_range(found, main)}"


def _difference(found: Estimate, baseline: Estimate, main: Main, images: int | None) -> str:
    points = found.value - baseline.value
    if abs(points) < 0.05:
        return "to one decimal the same as"
    if main is not MAIN["classification"]:
        return f"{abs(points):.1f} points {'below' if points < 0 else 'above'}"
    if (images or 100) < 100:
        return f"{_one_decimal(abs(points))} points {'above' if points < 0 else 'below'}"
    return f"{_one_decimal(abs(points))} {'more' if points < 0 else 'fewer'} than"


def _tested(contest: _Contest, name: str) -> str:
    """Return the outcome of the test on the same images, or the section that has it; "" without a test."""
    if name in contest.chance:
        p, seeds = contest.chance[name]
        if seeds > 1:
            return f"Over {seeds} seeds and the same images: {in_words(p)}."
        return f"Image by image: {in_words(p)} (exact McNemar test); the effect of another seed is not known."
    (one, *more), (other, *others) = contest.members[name], contest.members[contest.baseline]
    both = not more and not others and one.predictions.is_file() and other.predictions.is_file()
    if one.task != "classification" and both:
        return f"The section {one.task.capitalize()} compares them in pairs if both keep the results of each image."
    return ""


def _verdict(one: Estimate, other: Estimate) -> str:
    single = one.count == other.count == 1
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return "Without both intervals the difference is not established."
    if max(one.low, other.low) <= min(one.high, other.high):
        by = "one run of each" if single else "these runs"
        return f"The two intervals overlap, so the difference is not established by {by}."
    if one.count > 1 and other.count > 1:
        return "The two intervals over seeds do not overlap."
    return "The two intervals do not overlap; the effect of another seed is not known from one run."


def _caveat(run: Run, baseline: Run) -> str:
    """Return a warning if the difference may have another cause than the mixing."""
    fields = [field for field in differing_fields([run, baseline]) if field not in _MIX_FIELDS]
    return f" Note that the two recipes also differ in {listed(fields)}." if fields else ""
