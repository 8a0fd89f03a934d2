"""What the runs of a recipe give for a metric, and which recipe is the baseline. No torch here."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import NamedTuple

from scipy import stats

from cutmix.runs.read import Run
from cutmix.runs.record import Record


class Main(NamedTuple):
    """The metric by which the runs of a task are compared.

    Attributes:
        metric: Its name in the results.
        label: Its name in a sentence.
        unit: What follows the number.
    """

    metric: str
    label: str
    unit: str


MAIN = {
    "classification": Main("top1_err", "top-1 error", " %"),
    "detection": Main("map", "mAP", " %"),
    "captioning": Main("cider_d", "CIDEr-D", ""),
}


@dataclass(frozen=True)
class Estimate:
    """A metric of a recipe: of its only run, or the mean over its seeds.

    Attributes:
        value: In the metric's unit.
        low: Lower end of the interval; None without an interval.
        high: Upper end of the interval.
        count: Number of runs.
        few: Whether the interval of the only run is of too few images to be trusted.
    """

    value: float
    low: float | None
    high: float | None
    count: int
    few: bool = False


def estimate(runs: Iterable[Run], metric: str, which: str, confidence: float = 0.95) -> Estimate | None:
    """Return a metric of the finished runs of one recipe; None where none of them has it. See ``pooled``."""
    found = [run.result(metric, which) for run in runs if run.finished]
    return pooled([record for record in found if record is not None], confidence)


def pooled(records: Iterable[Record], confidence: float = 0.95) -> Estimate | None:
    """Return the mean of a metric over runs with different seeds; None where no record has a value.

    One run keeps the interval of its record. Several have Student's t interval of the mean over m seeds, x̄ ± t s / √m;
    runs that share a seed are not independent, and equal values have no spread: both have no interval.

    Args:
        records: One for each run.
        confidence: Of the interval over seeds, in (0, 1).
    """
    found = [(record.value, record) for record in records if record.value is not None]
    values = [value for value, _ in found]
    if not values:
        return None
    if len(values) == 1:
        return Estimate(values[0], found[0][1].low, found[0][1].high, 1, found[0][1].few)
    mean = fmean(values)
    if len({record.seed for _, record in found}) < len(values) or len({*values}) == 1:
        return Estimate(mean, None, None, len(values))
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return Estimate(mean, mean - half, mean + half, len(values))


def baseline_of(runs: Sequence[Run]) -> str:
    """Return the group of the baseline: of the first run without mixing and regularizers or, without one, the first."""
    return next((run.group for run in runs if is_plain(run)), runs[0].group)


def is_plain(run: Run) -> bool:
    """Return whether a run has neither mixing nor another regularizer that is compared."""
    methods = ("label_smoothing", "stochastic_depth", "shake_drop", "drop_block", "cutout")
    return run.recipe.get("mix") == "none" and not any(run.recipe.get(name) for name in methods)
