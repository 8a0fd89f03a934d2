"""The claims of the CutMix paper beside what was found here, from claims.toml, results/ and the paper's tables."""

import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
        command: Command that runs it, without its seeds.
        value: Difference of the two sides, in points.
        over: Seeds and images of the interval.
        low: Lower end of the 95 % interval, over images alone with one seed; None without an interval.
        high: Upper end of it.
        p: P-value of no difference, adjusted by Holm's method for the paper's table; None with one seed.
        detectable: Smallest true difference that the row alone would find with a power of 80 %.
        digits: Decimals of the numbers.
    """

    setting: str
    command: str
    value: float
    over: str = "1 seed"
    low: float | None = None
    high: float | None = None
    p: float | None = None
    detectable: float | None = None
    digits: int = 1

    def verdict(self, sign: int) -> str:
        """Return the verdict on a claim whose difference has this sign."""
        if self.p is None:
            return "cannot tell: one seed"
        if self.low == self.high == 0:
            return "cannot tell: 0 in all runs"
        if self.p >= LEVEL and sign == 0:
            return (
                f"cannot tell: p = {self.p:.2f}; gain below {max(math.ceil(-10 * (self.low or 0)), 0) / 10:.1f} points"
            )
        if self.p >= LEVEL:
            return f"cannot tell: p = {self.p:.2f}; detectable (80 % power): {self.detectable:.{self.digits}f}"
        chance = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}"
        return f"{'agrees' if self.value * (sign or 1) > 0 else 'disagrees'} here: {chance}"

    def __str__(self) -> str:
        form = f"+.{self.digits}f"
        between = "" if self.low is None else f" [{number(self.low, form)}, {number(self.high or 0, form)}]"
        return f"{self.setting}: {number(self.value, form)}{between}; {self.over}"


class Claim(NamedTuple):
    """A claim of the paper.

    Attributes:
        where: Its table or figure; begins with ``OWN`` if the paper does not make it.
        says: The claim, with the paper's numbers.
        sign: Sign of the difference that agrees; 0 for a claim of no gain.
        command: Command that runs the paper's own rows.
        found: What the experiments here say; empty where none was run.
    """

    where: str
    says: str
    sign: int
    command: str
    found: Sequence[Evidence]


def read_claims() -> list[Claim]:
    """Return the claims, with p-values adjusted by Holm's method for the experiments of each table and figure."""
    content = tomllib.loads((Path(__file__).parent / "claims.toml").read_text(encoding="utf-8"))
    commands, settings = content["commands"], content["settings"]
    made = []
    for one in content["claims"]:
        says = one["says"].format(*(_printed(*each) for each in one.get("numbers", ())))
        found = [_evidence(each, settings, commands) for each in one.get("found", ())]
        made.append(Claim(one["where"], says, one.get("sign", -1), one["command"], found))
    adjusted: dict[str, Iterator[float]] = {}
    for where in {claim.where for claim in made}:
        same = [one.p for claim in made if claim.where == where for one in claim.found]
        adjusted[where] = iter(holm([p for p in same if p is not None]))
    return [
        claim._replace(
            found=[one if one.p is None else replace(one, p=next(adjusted[claim.where])) for one in claim.found]
        )
        for claim in made
    ]


OWN = ("SMMix paper", "Not in the paper")
"""What a claim begins with that is not the CutMix paper's."""


def claims() -> str:
    """Return how many rows agree, the table with a row for each claim and each further experiment, and the commands."""
    rows: list[list[str]] = []
    commands: dict[str, int] = {}
    verdicts: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
    for claim in read_claims():
        cells = [(str(one), one.verdict(claim.sign), one.command) for one in claim.found]
        for index, (found, verdict, command) in enumerate(cells or [("", "**not run**", claim.command)]):
            number = commands.setdefault(command, len(commands) + 1)
            rows.append([*(("", "") if index else (claim.where, claim.says)), found, verdict, f"{number}"])
            verdicts[claim.where.startswith(OWN)][re.split(r" here|:", verdict)[0].strip("*")] += 1
    text = f"The CutMix paper, {verdicts[False].total()} rows: {_counted(verdicts[False])}. "
    text += f"Other claims, {verdicts[True].total()} rows: {_counted(verdicts[True])}.\n\n"
    text += table(["where", "the claim", "here: difference [95 %]", "verdict", "command"], rows)
    return text + "\n\nThe commands:\n\n" + "\n".join(f"{n}. `{command}`" for command, n in commands.items())


def _counted(verdicts: Counter[str]) -> str:
    words = {"agrees": "agree", "disagrees": "disagree", "cannot tell": "cannot tell", "not run": "not run"}
    return ", ".join(f"{verdicts[one]} {word}" for one, word in words.items())


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


def _evidence(asked: Mapping[str, Any], settings: Mapping[str, str], commands: Mapping[str, str]) -> Evidence:
    """Return what an experiment says."""
    setting = settings[asked["setting"]].removesuffix(": error" if "rise" in asked else "")
    setting += f", {asked['what']}" if "what" in asked else ""
    command = commands[asked.get("command", asked["setting"])]
    sides = tuple(asked.get("sides", ("cutmix", "none")))
    runs = {key: asked[key] for key in ("model", "per_class", "steps") if key in asked}
    if "compare" in asked:
        return _compared(setting, command, asked["compare"], runs, sides)
    if "rise" in asked:
        rises = (_rise(asked["rise"], asked["of"], runs, side) for side in sides)
        return replace(_over_seeds(setting, command, *rises), digits=2)
    return _of_metric(setting, command, asked, sides)


def _compared(setting: str, command: str, name: str, runs: dict[str, Any], sides: tuple[str, ...]) -> Evidence:
    """Return the comparison of two methods over seeds and images, of the runs asked for, whichever was the baseline."""
    (one,) = (
        one for one in read_lines(RESULTS / f"{name}-comparison.log.jsonl")
        if (one["method"], one["baseline"]) in (sides, sides[::-1]) and runs.items() <= one.items()
    )  # fmt: skip
    d = one["difference"]
    value, low, high = d["value"], d["low"], d["high"]
    if one["method"] != sides[0]:
        value, low, high = -value, -high, -low
    several = d["seeds"] > 1
    over = f"{d['seeds']} seed{'s' * several} × {d['images']:,} images"
    return Evidence(setting, command, value, over, low, high, d["p"] if several else None, d["detectable"])


def _rise(name: str, metric: str, runs: dict[str, Any], method: str) -> dict[int, float]:
    """Return by seed how far an error or a loss rises from its lowest value to the last epoch."""
    values: dict[int, list[float]] = {}
    for line in read_lines(RESULTS / f"{name}.log.jsonl"):
        if runs.items() <= line.items() and line["method"] == method:
            values.setdefault(line["seed"], []).append(line[metric])
    return {seed: each[-1] - min(each) for seed, each in values.items()}


def _of_metric(setting: str, command: str, asked: Mapping[str, Any], sides: tuple[str, ...]) -> Evidence:
    """Return the difference of a metric between the runs of two methods, over seeds where there are several."""
    found: dict[str | None, dict[int, float]] = {}
    for line in lines(f"{asked['file']}.jsonl"):
        same = (line.metric, line.which, line.of) == (asked["metric"], "last", asked.get("of"))
        same = same and asked.get("model") in (None, line.model)
        if same and line.usual and ("at" not in asked or abs((line.at or 0) - asked["at"]) < 1e-6):
            assert line.value is not None, line
            value = found.setdefault(line.mix, {}).setdefault(line.seed or 0, line.value)
            assert value == line.value, f"two settings in {asked['file']} have the same method and seed"
    return _over_seeds(setting, command, *(found[side] for side in sides))


def _over_seeds(setting: str, command: str, own: Mapping[int, float], other: Mapping[int, float]) -> Evidence:
    """Return the difference of a metric of two methods over seeds, by Student's paired t; with one seed without it."""
    seeds = sorted(own.keys() & other.keys())
    if len(seeds) == 1:
        return Evidence(setting, command, own[seeds[0]] - other[seeds[0]])
    d = seed_difference([own[seed] for seed in seeds], [other[seed] for seed in seeds])
    return Evidence(setting, command, d.value, f"{d.seeds} seeds", d.low, d.high, d.p, d.detectable)
