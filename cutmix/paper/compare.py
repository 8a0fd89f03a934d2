"""Results beside the paper's numbers: ``cutmix paper``, and the same for the report. Imports no torch.

A result is shown beside the paper's number only if it was made by the row's own protocol. Other results, such as those
of short runs or of other models, have tables of their own.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from cutmix.config.recipe import Training
from cutmix.config.recipes import RECIPES
from cutmix.config.tasks import backbone_in_words, backbone_name, recipe_of_arch
from cutmix.errors import InputError, listed
from cutmix.paper.tables import DATA, FOOTNOTES, METHODS, Row, Table
from cutmix.runs.outcomes import Estimate, pooled
from cutmix.runs.read import Run, read_outcome, read_run
from cutmix.runs.record import Record, read_records, with_interval
from cutmix.statistics import holm, in_words, mcnemar, welch

# Fields that change where and how fast a recipe runs, or are compared on their own, but not its protocol.
_FREE = {
    "name", "data", "val_fraction", "model", "epochs", "seed", "precision", "channels_last", "compile", "arch",
    "backbone",
}  # fmt: skip
_HERE = ("Best epoch here", "Last epoch here", "Seeds", "Last, to baseline")
_KEY = ("recipe", "data", "model", "epochs", "seed", "weights", "backbone")
_OF_TRAINING = ("commit", "date", "seconds", "command")
_METRIC = ("metric", "which", "of", "at", "convention", "score", "arch")
_ERRORS = ("top1_err", "top5_err")

SMOKE = "a few steps, which measure nothing"


class Found(NamedTuple):
    """The records of one finished run, or of the evaluations of one file of weights."""

    records: tuple[Record, ...]  # those with a value, each metric once
    predictions: Path | None = None  # file of the last epoch's predictions


@dataclass(frozen=True)
class Result:
    """The result of a row, or of the rows of one label, by one run."""

    recipe: str  # recipe of the run or, for a detector or captioner, of its backbone
    how: str  # differences from the paper's protocol; "" without any
    name: str  # name of the run; that of a detector or captioner includes its backbone
    backbone: str  # weights of the backbone; "" for a classifier
    seed: int
    lines: dict[tuple[str, str], Record]  # the record of each metric and epoch, such as ("top1_err", "last")
    predictions: Path | None = None  # file of the last epoch's predictions

    @property
    def error(self) -> float:
        """The top-1 error of the last epoch, in per cent."""
        value = self.lines["top1_err", "last"].value
        assert value is not None
        return value


class Sheet(NamedTuple):
    """A table of text, for a terminal or a page."""

    caption: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


class Sweep(NamedTuple):
    """A figure's points that were run in the same way."""

    how: str  # differences from the paper's protocol; "" without any
    points: list[tuple[float, float]]  # position and top-1 error of the last epoch, in per cent, the mean over seeds
    baseline: float | None  # the baseline's error, if it was run in the same way


# ---- results ----


def find(runs: Sequence[Path], results: Sequence[Path]) -> list[Found]:
    """Read finished runs and evaluations, each once; of a metric that was computed twice, the later record.

    ``runs`` are run folders, or folders that hold them one or two levels down; ``results`` are JSON-lines files.
    """
    found: list[Found] = []
    for path in results:
        if not path.is_file():
            raise InputError(f"{path} is not a file; give a JSON-lines file of results with --results")
        found.append(Found(tuple(read_records(path))))
    for folder in runs:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder; give a folder of runs with --runs")
        configs = {file for depth in ("", "*/", "*/*/") for file in folder.glob(f"{depth}config.json")}
        found += [of_run(read_run(config.parent)) for config in sorted(configs)]
    return merged(found)


def of_run(run: Run) -> Found:
    """Return the records of a run folder, without those of an unfinished run."""
    path = run.predictions
    return Found(tuple(run.results) if run.finished else (), path if path.is_file() else None)


def merged(sources: Iterable[Found]) -> list[Found]:
    """Group records by run; of two sources with the same run, the later replaces the records of the other."""
    by_run: dict[str, dict[tuple[str, ...], Record]] = {}
    predictions: dict[str, Path | None] = {}
    for source in sources:
        for record in source.records:
            if record.value is not None:
                run = identity(record)
                by_run.setdefault(run, {})[tuple(str(getattr(record, name)) for name in _METRIC)] = record
                predictions[run] = source.predictions
    return [Found(tuple(records.values()), predictions[run]) for run, records in by_run.items()]


def identity(record: Record) -> str:
    """Return a text that identifies the run of a record.

    All evaluations of a file of weights are one run; an evaluation on a random subset is another.
    """
    own = _OF_TRAINING if record.source == "training" else ("file", "drawn")
    return json.dumps([getattr(record, name) for name in (*_KEY, *own)])


def results_of(rows: Sequence[Row], found: Iterable[Found]) -> list[Result]:
    """Return the results of the rows that share a label: runs of their recipes or architectures."""
    made = []
    for run in found:
        lines = {(one.metric, str(one.which)): one for one in run.records if _is_of(rows, one)}
        last = next((one for (_, which), one in lines.items() if which == "last"), None)
        row = rows[0]
        if last is None or not (row.method or (row.metrics[0], "last") in lines):
            continue
        backbone = last.backbone or ""
        if row.arch:
            recipe, how = last.backbone_recipe or "", _transfer_departures(rows, last)
        else:
            recipe, _, scale = last.recipe.partition("+")
            how = [SMOKE] if scale.endswith("smoke") else departures(RECIPES[recipe], last, row.test_images)
            how += [last.note] if row.of and last.note else []  # the other data are not the paper's
            backbone = ""
        made.append(
            Result(recipe, ", ".join(how), _name(last, backbone), backbone, last.seed or 0, lines, run.predictions)
        )
    return made


def _is_of(rows: Sequence[Row], record: Record) -> bool:
    row = rows[0]
    if record.metric not in row.metrics or (row.method and record.which != "last"):
        return False
    if row.arch:
        return record.arch == row.arch
    if record.metric in _ERRORS and record.source != "training":
        return False
    place = row.at is None or (record.at is not None and abs(record.at - row.at) < 1e-6)
    name = record.recipe.partition("+")[0]
    return record.usual and place and record.of == row.of and name in RECIPES and name in {one.recipe for one in rows}


def _name(record: Record, backbone: str) -> str:
    """Return the name of a run: its recipe, its backbone unless the recipe ends in it, and its seed."""
    name = record.recipe
    if backbone and not name.endswith(backbone_name(backbone)):
        name += f" on {backbone_in_words(backbone)}"
    return name + (f", seed {record.seed}" if record.seed else "")


def departures(recipe: Training, line: Record, test_images: int | None = None) -> list[str]:
    """Return the differences of a result from its recipe, for the test images of its data or another number of them."""
    facts, n, changes = DATA.get(recipe.data), line.n, []
    wanted = test_images or (facts and facts.test_images)
    side = getattr(recipe, "image_size", None) or (facts and facts.side)
    if line.model != recipe.model:
        changes.append(f"network {line.model}")
    if line.epochs != recipe.epochs:
        changes.append(f"{line.epochs} of {recipe.epochs} epochs")
    small = bool(facts and facts.side)  # a set of image files is recognized by its size, wherever it is
    if line.data != recipe.data and (small or n != wanted):
        changes.append(f"data {line.data}")
    if line.drawn:
        changes.append(f"{line.drawn:,} of the images")
    elif wanted and n != wanted:
        changes.append("unknown number of test images" if n is None else f"{n:,} test images")
    if side and line.image_size not in (None, side):
        changes.append(f"images of {line.image_size}×{line.image_size}")
    if line.weights != "model":
        changes.append("averaged weights")
    if line.recipe_changes is None:
        return [*changes, "how it was trained is not known"]
    changed = [name for name in line.recipe_changes if name not in _FREE]
    return changes + ([f"{listed(changed)} changed"] if changed else [])


def _transfer_departures(rows: Sequence[Row], record: Record) -> list[str]:
    how = departures(recipe_of_arch(rows[0].arch), record, rows[0].test_images)
    if record.training_images != rows[0].training_images:
        count = record.training_images
        how.append(f"{'unknown number of' if count is None else f'{count:,}'} training images")
    if record.backbone_recipe not in {row.recipe for row in rows}:
        how.append(f"a backbone of {record.backbone_recipe or backbone_in_words(str(record.backbone))}")
    return how


# ---- tables ----


def sheets(table: Table, found: Iterable[Found]) -> tuple[list[Sheet], list[str]]:
    """Return a table of the results by the paper's protocol, tables of the other results, and their differences."""
    found = list(found)
    return _by_method(table, found) if table.rows[0].method else (_by_row(table, found), [])


def rows_run(table: Table, found: Sequence[Found]) -> list[Row]:
    """Return the rows of a table that have a result, by the paper's protocol or another."""
    return [row for row in table.rows if results_of([row], found)]


def _by_row(table: Table, found: Sequence[Found]) -> list[Sheet]:
    """Return the sheets of a table with a line for each method."""
    ours = {row: results_of([row], found) for row in table.rows}
    against = _against_baseline(ours)
    made = []
    rows: list[tuple[str, ...]]
    for how in ["", *sorted({one.how for runs in ours.values() for one in runs if one.how})]:
        same = {row: [one for one in runs if one.how == how] for row, runs in ours.items()}
        if how:
            caption = f"{table.heading.partition(':')[0]}, not comparable with the paper's numbers: {how}"
            header: tuple[str, ...] = ("Row", *_HERE)
            rows = [
                (row.label, *_cells(table, row, runs), against.get((row, how), ""))
                for row, runs in same.items()
                if runs
            ]
        else:
            caption = _with_notes(table.heading, table.notes)
            header = ("Row", "Paper", *_HERE)
            rows = [
                (
                    _with_notes(row.label, row.notes), _printed(table, row), *_cells(table, row, runs),
                    against.get((row, ""), ""),
                )
                for row, runs in same.items()
            ]  # fmt: skip
        kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
        made.append(
            Sheet(
                f"{caption} ({table.unit})",
                tuple(header[i] for i in kept),
                [tuple(row[i] for i in kept) for row in rows],
            )
        )
    return made


def _against_baseline(ours: dict[Row, list[Result]]) -> dict[tuple[Row, str], str]:
    """Compare each row with the last baseline above it that was run in the same way."""
    tested: dict[tuple[Row, str], tuple[float, float | None]] = {}
    baseline: Row | None = None
    for row, runs in ours.items():
        if row.is_baseline:
            baseline = row
            continue
        for how in {one.how for one in runs} - {SMOKE}:
            mine = [one for one in runs if one.how == how]
            base = [one for one in ours[baseline] if one.how == how] if baseline else []
            if base:
                tested[row, how] = (_mean(mine) - _mean(base), _p_value(mine, base))
    keys = [key for key, (_, p) in tested.items() if p is not None]
    adjusted = dict(zip(keys, holm([p for _, p in tested.values() if p is not None]), strict=True))
    return {
        key: f"{gain:+.2f}; {in_words(adjusted[key]) if key in adjusted else 'not tested'}"
        for key, (gain, _) in tested.items()
    }


def _p_value(mine: Sequence[Result], base: Sequence[Result]) -> float | None:
    """Test a difference over seeds, or over images; None without enough seeds or predictions."""
    if all(len({run.seed for run in group}) == len(group) > 1 for group in (mine, base)):
        return welch([run.error for run in mine], [run.error for run in base])
    if len(mine) > 1 or len(base) > 1 or not (mine[0].predictions and base[0].predictions):
        return None
    one, other = read_outcome(mine[0].predictions), read_outcome(base[0].predictions)
    return mcnemar(one.right, other.right).p if one.same_images(other) else None


def _mean(runs: Sequence[Result]) -> float:
    return sum(run.error for run in runs) / len(runs)


def _cells(table: Table, row: Row, runs: Sequence[Result]) -> tuple[str, str, str]:
    """Return the best epoch's and the last one's errors, and the number of seeds."""
    if not runs:
        return "not run", "not run", ""
    seeds = str(len({one.seed for one in runs}))
    if runs[0].how == SMOKE:
        return "", "ran", seeds
    return _values(table, row, runs, "best"), _values(table, row, runs, "last"), seeds


def _values(table: Table, row: Row, runs: Sequence[Result], which: str = "last") -> str:
    """Return a row's metrics with their intervals: of one run, or the mean over its seeds."""
    values = []
    for metric in row.metrics:
        estimate = pooled(one.lines[metric, which] for one in runs if (metric, which) in one.lines)
        digits = table.digits if row.method else 2
        values.append(with_interval(_accuracy(estimate) if table.accuracy else estimate, f".{digits}f"))
    return "; ".join(values) if set(values) != {"not run"} else "not run"


def _accuracy(error: Estimate | None) -> Estimate | None:
    """Return the accuracy of an error, in per cent."""
    if error is None:
        return None
    low, high = (None if end is None else 100 - end for end in (error.high, error.low))
    return replace(error, value=100 - error.value, low=low, high=high)


def _printed(table: Table, row: Row) -> str:
    numbers = "; ".join(f"{number:.{table.digits}f}" for number in row.numbers)
    return (numbers or "–") + (" (quoted)" if row.quoted else "")


def _with_notes(text: str, letters: str) -> str:
    return text + "".join(f" [{letter}]" for letter in letters)


def _by_method(table: Table, found: Sequence[Found]) -> tuple[list[Sheet], list[str]]:
    """Return the sheets of a table with a column for each method."""
    ours = {label: results_of(rows, found) for label, rows in table.lines.items()}
    body: list[tuple[str, ...]] = []
    for label, rows in table.lines.items():
        own = [[one for one in ours[label] if one.recipe == row.recipe and not one.how] for row in rows]
        body.append((f"{label}: paper", *(_printed(table, row) for row in rows)))
        body.append((f"{label}: here", *(_values(table, row, runs) for row, runs in zip(rows, own, strict=True))))
    made = [Sheet(f"{table.heading} ({table.unit})", ("Row", *METHODS), body)]
    others = list(dict.fromkeys(_pool(one) for runs in ours.values() for one in runs if one.how))
    shown = [label for label, runs in ours.items() if any(one.how for one in runs)]
    if others:
        body = []
        for key in others:
            same = {label: [one for one in ours[label] if _pool(one) == key] for label in shown}
            values = [_values(table, table.lines[label][0], runs) if runs else "–" for label, runs in same.items()]
            body.append((key[0], *values))
        caption = f"{table.heading.partition(':')[0]}, not comparable with the paper’s numbers"
        made.append(Sheet(caption, ("Run", *shown), body))
    notes = [f"{name} is not the paper’s protocol: {how}." for name, *_, how in others]
    return made, list(dict.fromkeys(notes))


def _pool(one: Result) -> tuple[str, ...]:
    """Return the properties that pooled results share, apart from the row."""
    return one.name, one.recipe, one.backbone, one.how


def sweeps(table: Table, found: Iterable[Found]) -> list[Sweep]:
    """Return a figure's sweep for each way in which two or more of its points were run."""
    found = list(found)
    ours = {row: results_of([row], found) for row in table.rows}
    made = []
    for how in sorted({one.how for runs in ours.values() for one in runs} - {SMOKE}):
        means = {row: _mean(same) for row, runs in ours.items() if (same := [one for one in runs if one.how == how])}
        points = [(row.x, mean) for row, mean in means.items() if row.x is not None]
        baselines = [mean for row, mean in means.items() if row.is_baseline]
        if len(points) > 1:
            made.append(Sweep(how, points, baselines[0] if baselines else None))
    return made


def footnotes(tables: Iterable[Table]) -> list[str]:
    """Return the footnotes of tables, each once and with its letter, and how differences are tested."""
    letters = "".join(table.notes + "".join(row.notes for row in table.rows) for table in tables)
    return [
        *(f"[{letter}] {text}" for letter, text in FOOTNOTES.items() if letter in letters),
        "In brackets: 95 % interval, Wilson's over the test images of one run, Student's t over the seeds of several.",
        "p: exact McNemar test over the test images for one run of each, Welch's t test over seeds for several; "
        "adjusted by Holm's method for the tests of a table.",
    ]  # fmt: skip
