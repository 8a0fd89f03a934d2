"""What was measured here beside the paper's numbers: ``cutmix paper``, and the same for the report. No torch here.

A result stands beside the paper's number only if it was made by the row's own protocol; every other one, such as a
short run or one of another network, has a table of its own.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from cutmix.config.recipe import Training
from cutmix.config.recipes import RECIPES
from cutmix.config.transfer import backbone_in_words, backbone_name, recipe_of_arch
from cutmix.errors import InputError, listed
from cutmix.paper.tables import DATA, FOOTNOTES, METHODS, TABLES, Measure, PaperRow, PaperTable, Row, Table, is_baseline
from cutmix.runs.read import Estimate, Run, pooled, read_outcome, read_run
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

SMOKE = "a few steps, which measure nothing"


@dataclass(frozen=True)
class Trained:
    """A finished run of a row's recipe.

    Attributes:
        recipe: Name of the row's recipe.
        how: In what the run differs from the paper's protocol; "" where it does not.
        seed: The run's seed.
        lines: The result of each measure and epoch, such as ("top1_err", "last").
        predictions: File of the last epoch's predictions, if there is one.
    """

    recipe: str
    how: str
    seed: int
    lines: dict[tuple[str, str], Record]
    predictions: Path | None = None

    def value(self) -> float:
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
    """A figure's points that were run in the same way.

    Attributes:
        how: In what the runs differ from the paper's protocol; "" where they do not.
        points: Position and top-1 error of the last epoch, in per cent, the mean over seeds.
        baseline: The baseline's error, if it was run in the same way.
    """

    how: str
    points: list[tuple[float, float]]
    baseline: float | None


def find_results(runs: Sequence[Path], results: Sequence[Path]) -> list[Trained]:
    """Read finished runs of the paper's recipes, each once, wherever it is found.

    Args:
        runs: Run folders, or folders that hold them one or two levels down.
        results: JSON-lines files of results.

    Raises:
        InputError: If one is not there, or is damaged.
    """
    found: dict[str, Trained] = {}
    for run in read_folders(runs):
        if (one := trained(run)) is not None:
            found[identity(run.results[0])] = one
    for path in results:
        by_run: dict[str, list[Record]] = {}
        for line in read_file(path):
            if line.source == "training":
                by_run.setdefault(identity(line), []).append(line)
        for key, lines in by_run.items():
            if key not in found and (one := _trained(lines, None)) is not None:
                found[key] = one
    return list(found.values())


def read_folders(folders: Sequence[Path]) -> Iterator[Run]:
    """Yield the runs of run folders, or of folders that hold them; see ``find_results``."""
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder; give a folder of runs with --runs")
        for config in sorted({file for depth in ("", "*/", "*/*/") for file in folder.glob(f"{depth}config.json")}):
            yield read_run(config.parent)


def read_file(path: Path) -> list[Record]:
    """Return the records of a file of results; see ``find_results``."""
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a JSON-lines file of results with --results")
    return read_records(path)


def trained(run: Run) -> Trained | None:
    """Return a run folder's results if it is finished and its recipe is one of the paper's."""
    lines = [line for line in run.results if line.source == "training"]
    path = run.folder / "predictions" / "last.npz"
    return _trained(lines, path if path.is_file() else None) if run.finished else None


def sheets(table: Table, runs: Sequence[Trained]) -> list[Sheet]:
    """Return a table with what was run by the paper's protocol, and one for each other way in which rows were run."""
    ours = [run for run in runs if run.recipe in {row.recipe for row in table.rows}]
    units = {"top1_acc": "top-1 accuracy", "top1_err": "top-1 error", "top5_err": "top-5 error"}
    unit = "; ".join(units[measure] for measure in table.measures)
    against = _against_baseline(table, [run for run in ours if run.how != SMOKE])
    made = []
    rows: list[tuple[str, ...]]
    for how in ["", *sorted({run.how for run in ours if run.how})]:
        same = {row: [run for run in ours if run.recipe == row.recipe and run.how == how] for row in table.rows}
        if how:
            caption = f"{table.heading.partition(':')[0]}, not comparable with the paper's numbers: {how}"
            header: tuple[str, ...] = ("Row", *_HERE)
            rows = [(row.label, *_cells(table, its), against.get((row, how), "")) for row, its in same.items() if its]
        else:
            caption = _with_notes(table.heading, table.notes)
            header = ("Row", "Paper", *_HERE)
            rows = [
                (
                    _with_notes(row.label, row.notes),
                    _printed(table, row),
                    *_cells(table, its),
                    against.get((row, ""), ""),
                )
                for row, its in same.items()
            ]
        kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
        made.append(
            Sheet(
                f"{caption} ({unit}, %)", tuple(header[i] for i in kept), [tuple(row[i] for i in kept) for row in rows]
            )
        )
    return made


def sweeps(table: Table, runs: Sequence[Trained]) -> list[Sweep]:
    """Return a figure's sweep for each way in which two or more of its points were run."""
    made = []
    for how in sorted({run.how for run in runs} - {SMOKE}):
        same = {row: [run for run in runs if (run.recipe, run.how) == (row.recipe, how)] for row in table.rows}
        points = [(row.x, _mean(its)) for row, its in same.items() if its and row.x is not None]
        baselines = [_mean(its) for row, its in same.items() if its and is_baseline(row)]
        if len(points) > 1:
            made.append(Sweep(how, points, baselines[0] if baselines else None))
    return made


def footnotes(tables: Iterable[Table]) -> list[str]:
    """Return the footnotes of tables, each once and with its letter, and how tests are made."""
    letters = "".join(table.notes + "".join(row.notes for row in table.rows) for table in tables)
    return [
        *(f"[{letter}] {text}" for letter, text in FOOTNOTES.items() if letter in letters),
        "In brackets: 95 % interval, Wilson's over the test images of one run, Student's t over the seeds of several.",
        "p: exact McNemar test over the test images for one run of each, Welch's t test over seeds for several; "
        "adjusted by Holm's method for the tests of a table.",
    ]  # fmt: skip


def _trained(lines: Sequence[Record], predictions: Path | None) -> Trained | None:
    measures = {(line.metric, str(line.which)): line for line in lines if line.value is not None}
    last = measures.get(("top1_err", "last"))
    if last is None:
        return None
    name, _, scale = last.recipe.partition("+")
    if name not in {row.recipe for table in TABLES for row in table.rows} or name not in RECIPES:
        return None
    how = ", ".join([SMOKE] if scale.endswith("smoke") else departures(RECIPES[name], last))
    return Trained(name, how, last.seed or 0, measures, predictions)


def departures(recipe: Training, line: Record, test_images: int | None = None) -> list[str]:
    """Say in what a result was not made as a recipe says.

    Args:
        recipe: The paper's.
        line: The result.
        test_images: How many the result has to be of; by default those of the recipe's data.
    """
    facts, n, said = DATA.get(recipe.data), line.n, []
    wanted = test_images or (facts and facts.test_images)
    side = getattr(recipe, "image_size", None) or (facts and facts.side)
    if line.model != recipe.model:
        said.append(f"network {line.model}")
    if line.epochs != recipe.epochs:
        said.append(f"{line.epochs} of {recipe.epochs} epochs")
    small = bool(facts and facts.side)  # a set of photographs is known by its size, wherever it lies
    if line.data != recipe.data and (small or n != wanted):
        said.append(f"data {line.data}")
    if line.drawn:
        said.append(f"{line.drawn:,} of the images")
    elif wanted and n != wanted:
        said.append("unknown number of test images" if n is None else f"{n:,} test images")
    if side and line.image_size not in (None, side):
        said.append(f"images of {line.image_size}×{line.image_size}")
    if line.weights != "model":
        said.append("averaged weights")
    if line.recipe_changes is None:
        return [*said, "how it was trained is not known"]
    changed = [name for name in line.recipe_changes if name not in _FREE]
    return said + ([f"{listed(changed)} changed"] if changed else [])


def _against_baseline(table: Table, runs: Sequence[Trained]) -> dict[tuple[Row, str], str]:
    """Compare each row with the last baseline above it that was run in the same way."""
    tested: dict[tuple[Row, str], tuple[float, float | None]] = {}
    baseline: Row | None = None
    for row in table.rows:
        if is_baseline(row):
            baseline = row
            continue
        for how in {run.how for run in runs}:
            mine = [run for run in runs if run.recipe == row.recipe and run.how == how]
            base = [run for run in runs if baseline and run.recipe == baseline.recipe and run.how == how]
            if mine and base:
                gain = _mean(mine) - _mean(base)
                tested[row, how] = (gain, _p_value(mine, base))
    keys = [key for key, (_, p) in tested.items() if p is not None]
    adjusted = dict(zip(keys, holm([p for _, p in tested.values() if p is not None]), strict=True))
    return {
        key: f"{gain:+.2f}; {in_words(adjusted[key]) if key in adjusted else 'not tested'}"
        for key, (gain, _) in tested.items()
    }


def _p_value(mine: Sequence[Trained], base: Sequence[Trained]) -> float | None:
    """Test a difference over seeds, or over images; None where there are neither seeds nor predictions for it."""
    if all(len({run.seed for run in group}) == len(group) > 1 for group in (mine, base)):
        return welch([run.value() for run in mine], [run.value() for run in base])
    if len(mine) > 1 or len(base) > 1 or not (mine[0].predictions and base[0].predictions):
        return None
    one, other = read_outcome(mine[0].predictions), read_outcome(base[0].predictions)
    return mcnemar(one.right, other.right).p if one.same_images(other) else None


def _mean(runs: Sequence[Trained]) -> float:
    return sum(run.value() for run in runs) / len(runs)


def _cells(table: Table, runs: Sequence[Trained]) -> tuple[str, str, str]:
    """Return the best epoch's and the last one's errors, and the number of seeds."""
    if not runs:
        return "not run", "not run", ""
    seeds = str(len({run.seed for run in runs}))
    if runs[0].how == SMOKE:
        return "", "ran", seeds
    best, last = (
        "; ".join(_estimated(measure, which, runs) for measure in table.measures) for which in ("best", "last")
    )
    return best, last, seeds


def _estimated(measure: Measure, which: str, runs: Sequence[Trained]) -> str:
    error = "top5_err" if measure == "top5_err" else "top1_err"
    found = pooled(run.lines[error, which] for run in runs if (error, which) in run.lines)
    return with_interval(_accuracy(found) if measure == "top1_acc" else found)


def _accuracy(error: Estimate | None) -> Estimate | None:
    """Return the accuracy of an error, in per cent."""
    if error is None:
        return None
    low, high = (None if end is None else 100 - end for end in (error.high, error.low))
    return replace(error, value=100 - error.value, low=low, high=high)


def _printed(table: Table, row: Row) -> str:
    digits = [
        f"{number:.{1 if measure == 'top1_acc' else 2}f}"
        for measure, number in zip(table.measures, row.numbers, strict=False)
    ]
    return ("; ".join(digits) or "–") + (" (quoted)" if row.quoted else "")


def _with_notes(text: str, letters: str) -> str:
    return text + "".join(f" [{letter}]" for letter in letters)


def identity(line: Record) -> str:
    """Return what tells the run of a record from other runs.

    Evaluations of a file of weights are one run; an evaluation of drawn images is apart.
    """
    own = _OF_TRAINING if line.source == "training" else ("file", "drawn")
    return json.dumps([getattr(line, name) for name in (*_KEY, *own)])


# ---- other tables ----
# Results beside the paper's numbers of localization, transfer, robustness and out-of-distribution detection.


class Cell(NamedTuple):
    """Results of one row by one way of running.

    Attributes:
        method: Which of ``METHODS``; "" where it is none of them.
        how: In what it differs from the paper's protocol; "" where it does not.
        name: What the run is called; of a detector or a captioner, with its backbone.
        backbone: Where the weights of its backbone are; "" of a classifier.
        lines: The result of each measure.
    """

    method: str
    how: str
    name: str
    backbone: str
    lines: dict[str, Record]

    @property
    def key(self) -> tuple[str, ...]:
        """What results that are pooled have in common, apart from the row."""
        return self.name, self.method, self.backbone, self.how


def find_measured(runs: Sequence[Path], results: Sequence[Path]) -> list[Record]:
    """Read results of the last epoch, each once, wherever it is found; of the same measured twice, the later.

    Takes and raises what ``find_results`` does.
    """
    found: dict[tuple[str, ...], Record] = {}
    lines = [line for path in results for line in read_file(path)]
    for line in [*lines, *(line for run in read_folders(runs) for line in measured_in(run))]:
        if line.which == "last" and line.value is not None:
            key = tuple(str(getattr(line, name)) for name in ("metric", "of", "at", "convention", "score", "arch"))
            found[identity(line), *key] = line
    return list(found.values())


def measured_in(run: Run) -> tuple[Record, ...]:
    """Return the results of a run folder."""
    return run.results if run.finished else ()


def paper_sheets(table: PaperTable, found: Iterable[Record]) -> tuple[list[Sheet], list[str]]:
    """Return a table with what was measured by the paper's protocol, one of what was measured otherwise, and how."""
    found = list(found)
    cells = {row: list(_other_cells(row, found)) for row in table.rows}
    rows = []
    for row in table.rows:
        rows.append(
            (f"{row.label}: paper", *("; ".join(f"{x:.{table.digits}f}" for x in cell) for cell in row.numbers))
        )
        rows.append((f"{row.label}: here", *(_here(table, row, cells[row], method) for method in METHODS)))
    made = [Sheet(f"{table.title} ({'; '.join(table.measures)})", ("Row", *METHODS), rows)]
    others = list(dict.fromkeys(cell.key for its in cells.values() for cell in its if cell.how))
    shown = [row for row in table.rows if any(cell.how for cell in cells[row])]
    if others:
        rows = []
        for key in others:
            its = [[cell for cell in cells[row] if cell.key == key] for row in shown]
            values = [_value(table, row, one) if one else "–" for row, one in zip(shown, its, strict=True)]
            rows.append((key[0], *values))
        caption = f"{table.title.partition(':')[0]}, not comparable with the paper’s numbers"
        made.append(Sheet(caption, ("Run", *(row.label for row in shown)), rows))
    said = [f"{name} is not the paper’s protocol: {how}." for name, *_, how in others]
    return made, list(dict.fromkeys(said))


def _here(table: PaperTable, row: PaperRow, cells: Sequence[Cell], method: str) -> str:
    return _value(table, row, [cell for cell in cells if cell.method == method and not cell.how])


def _value(table: PaperTable, row: PaperRow, cells: Sequence[Cell]) -> str:
    """Return a cell's measures with their intervals: of one run, or the mean over its seeds."""
    said = []
    for measure in row.measures:
        found = pooled(cell.lines[measure] for cell in cells if measure in cell.lines)
        said.append(with_interval(_accuracy(found) if table.accuracy else found, f".{table.digits}f"))
    return "; ".join(said) if set(said) != {"not run"} else "not run"


def _other_cells(row: PaperRow, found: Iterable[Record]) -> Iterator[Cell]:
    """Yield the results that are of a row: of the same measure, by one of its recipes or architectures."""
    by_run: dict[str, list[Record]] = {}
    for line in found:
        if _is_of(row, line):
            by_run.setdefault(identity(line), []).append(line)
    for its in by_run.values():
        line = its[0]
        recipe = (line.backbone_recipe if row.arch else line.recipe) or ""
        method = METHODS[row.recipes.index(recipe)] if recipe in row.recipes else ""
        how = _transfer_departures(row, line) if row.arch else _departures(row, line)
        backbone = line.backbone or "" if row.arch else ""
        yield Cell(method, ", ".join(how), _name(line, backbone), backbone, {one.metric: one for one in its})


def _name(line: Record, backbone: str) -> str:
    """Return what a run is called: by its recipe, which mostly ends in the backbone, and by its seed."""
    name = line.recipe
    if backbone and not name.endswith(backbone_name(backbone)):
        name += f" on {backbone_in_words(backbone)}"
    return name + (f", seed {line.seed}" if line.seed else "")


def _is_of(row: PaperRow, line: Record) -> bool:
    if line.metric not in row.measures or line.which != "last" or line.value is None:
        return False
    if row.arch:
        return line.arch == row.arch
    place = row.at is None or (line.at is not None and abs(line.at - row.at) < 1e-6)
    named = line.recipe.partition("+")[0] in row.recipes
    return line.usual and place and named and line.of == row.of


def _departures(row: PaperRow, line: Record) -> list[str]:
    how = departures(RECIPES[line.recipe.partition("+")[0]], line, row.test_images)
    return how + ([line.note] if row.of and line.note else [])  # the other data are not the paper's


def _transfer_departures(row: PaperRow, line: Record) -> list[str]:
    how = departures(recipe_of_arch(row.arch), line, row.test_images)
    if line.training_images != row.training_pictures:
        count = line.training_images
        how.append(f"{'unknown number of' if count is None else f'{count:,}'} training pictures")
    if line.backbone_recipe not in row.recipes:
        how.append(f"a backbone of {line.backbone_recipe or backbone_in_words(str(line.backbone))}")
    return how
