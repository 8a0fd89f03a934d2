"""The claims of the CutMix paper beside what was found here, from claims.toml, results/ and the paper's tables."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from cells import RESULTS, lines, table
from cutmix.paper.tables import TABLES
from cutmix.runs.outcomes import seed_difference
from cutmix.runs.record import number
from cutmix.runtime.files import read_lines
from cutmix.statistics import LEVEL, holm


@dataclass(frozen=True)
class Evidence:
    """What an experiment says about a claim.

    Attributes:
        setting: Model, data and metric.
        value: Difference of the two sides, in points.
        over: Seeds and images of the interval.
        low: Lower end of the 95 % interval, over images alone with one seed; None without an interval.
        high: Upper end of it.
        p: P-value of no difference, adjusted by Holm's method over the page; None with one seed.
        detectable: Smallest true difference that would be found in 80 % of the cases.
    """

    setting: str
    value: float
    over: str = "1 seed"
    low: float | None = None
    high: float | None = None
    p: float | None = None
    detectable: float | None = None

    def verdict(self, sign: int) -> str:
        """Return the verdict on a claim whose difference has this sign."""
        if self.p is None:
            return "cannot tell: one seed"
        if self.p >= LEVEL:
            return f"cannot tell: p = {self.p:.2f}, from {self.detectable:.1f} points on it would show"
        chance = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}"
        return f"{'agrees' if self.value * sign > 0 else 'disagrees'} here: {chance}"

    def __str__(self) -> str:
        between = "" if self.low is None else f" [{number(self.low, '+.1f')}, {number(self.high or 0, '+.1f')}]"
        return f"{self.setting}: {number(self.value, '+.1f')}{between}; {self.over}"


class Claim(NamedTuple):
    """A claim of the paper.

    Attributes:
        where: Its table or figure.
        says: The claim, with the paper's numbers.
        sign: Sign of the difference that agrees.
        command: Command of the nearest experiment; of the paper's own where none was run.
        found: What the experiments here say; empty where none was run.
    """

    where: str
    says: str
    sign: int
    command: str
    found: Sequence[Evidence]


def read_claims() -> list[Claim]:
    """Return the claims, with p-values adjusted by Holm's method for all experiments that they rest on."""
    content = tomllib.loads((Path(__file__).parent / "claims.toml").read_text(encoding="utf-8"))
    commands, settings = content["commands"], content["settings"]
    made = []
    for one in content["claims"]:
        says = one["says"].format(*(_printed(*each) for each in one.get("numbers", ())))
        found = [evidence for each in one.get("found", ()) if (evidence := _evidence(each, settings))]
        command = commands.get(one["command"], one["command"])
        made.append(Claim(one["where"], says, one.get("sign", -1), command, found))
    raw = [one.p for claim in made for one in claim.found if one.p is not None]
    adjusted = iter(holm(raw))
    return [
        claim._replace(found=[one if one.p is None else replace(one, p=next(adjusted)) for one in claim.found])
        for claim in made
    ]


def claims() -> str:
    """Return the table of claims: a row for each, and a row for each further experiment."""
    rows = []
    for claim in read_claims():
        cells = [(str(one), one.verdict(claim.sign)) for one in claim.found] or [("", "**not run**")]
        for index, (found, verdict) in enumerate(cells):
            where, says, command = ("", "", "") if index else (claim.where, claim.says, f"`{claim.command}`")
            rows.append([where, says, found, verdict, command])
    return table(["where", "the paper says", "here: difference in points [95 %]", "verdict", "command"], rows)


# ---- the paper's numbers ----


def _printed(name: str, label: str, other: str | int = 0) -> str:
    """Return the paper's numbers of two rows, or those of a row by method with the number of the metric."""
    its = next(one for one in TABLES if one.name == name)
    if isinstance(other, str):
        before, after = (next(row.numbers[0] for row in its.rows if row.label == one) for one in (label, other))
        return f"{before:.{its.digits}f} → {after:.{its.digits}f} %"
    of = {row.method: f"{row.numbers[other]:.{its.digits}f}" for row in its.rows if row.label == label}
    return f"{of['CutMix']} against {of['Baseline']} (Mixup {of['Mixup']}, Cutout {of['Cutout']})"


# ---- experiments ----


def _evidence(asked: Mapping[str, Any], settings: Mapping[str, str]) -> Evidence | None:
    """Return what an experiment says; None if it was not run."""
    setting = settings[asked["setting"]] + (f", {asked['what']}" if "what" in asked else "")
    sides = tuple(asked.get("sides", ("cutmix", "none")))
    runs = {key: asked[key] for key in ("model", "per_class", "steps") if key in asked}
    if "compare" in asked:
        return _compared(setting, asked["compare"], runs, sides)
    if "epochs" in asked:
        return _risen(setting, asked["epochs"], runs, sides)
    return _of_metric(setting, asked, sides)


def _compared(setting: str, name: str, runs: dict[str, Any], sides: tuple[str, ...]) -> Evidence | None:
    """Return the comparison of two methods over seeds and images, of the runs asked for, whichever was the baseline."""
    for one in read_lines(RESULTS / f"{name}-comparison.log.jsonl"):
        own = one["method"], one["baseline"]
        if own in (sides, sides[::-1]) and runs.items() <= one.items():
            d = one["difference"]
            value, low, high = d["value"], d["low"], d["high"]
            if own != sides:
                value, low, high = -value, -high, -low
            several = d["seeds"] > 1
            over = f"{d['seeds']} seed{'s' * several} × {d['images']:,} images"
            return Evidence(setting, value, over, low, high, d["p"] if several else None, d["detectable"])
    return None


def _risen(setting: str, name: str, runs: dict[str, Any], sides: tuple[str, ...]) -> Evidence | None:
    """Return the difference in how far the test error rises, from its lowest value to the last epoch, over seeds."""
    errors: dict[tuple[str, int], list[float]] = {}
    for line in read_lines(RESULTS / f"{name}.log.jsonl"):
        if runs.items() <= line.items():
            errors.setdefault((line["method"], line["seed"]), []).append(line["top1_err"])
    seeds = sorted(seed for method, seed in errors if method == sides[0] and (sides[1], seed) in errors)
    if len(seeds) < 2:
        return None
    rise, other = ([errors[method, seed][-1] - min(errors[method, seed]) for seed in seeds] for method in sides)
    return _over_seeds(setting, rise, other)


def _of_metric(setting: str, asked: Mapping[str, Any], sides: tuple[str, ...]) -> Evidence | None:
    """Return the difference of a metric between the runs of two methods, over seeds where there are several."""
    found: dict[tuple[str | None, int | None], float] = {
        (line.mix, line.seed): line.value or 0.0
        for line in lines(f"{asked['file']}.jsonl")
        if (line.metric, line.which, line.of) == (asked["metric"], "last", asked.get("of"))
        and line.usual and ("at" not in asked or abs((line.at or 0) - asked["at"]) < 1e-6)
    }  # fmt: skip
    seeds = sorted(seed or 0 for mix, seed in found if mix == sides[0] and (sides[1], seed) in found)
    if not seeds:
        return None
    own, other = ([found[mix, seed] for seed in seeds] for mix in sides)
    return _over_seeds(setting, own, other) if len(seeds) > 1 else Evidence(setting, own[0] - other[0])


def _over_seeds(setting: str, own: Sequence[float], other: Sequence[float]) -> Evidence:
    """Return the difference of a metric of two methods over seeds, by Student's paired t."""
    d = seed_difference(own, other)
    return Evidence(setting, d.value, f"{d.seeds} seeds", d.low, d.high, d.p, d.detectable)
