"""What was measured here beside the paper's numbers of localization, transfer, robustness and the unknown. No torch.

As with errors, a result stands beside the paper's number only if everything about it is the paper's; what else was
measured has a table of its own, which says in what it differs.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cutmix.config.recipes import RECIPES
from cutmix.config.transfer import backbone_in_words, backbone_name, recipe_of_arch
from cutmix.paper.compare import Sheet, departures, identity, read_file, read_folders
from cutmix.paper_measures import METHODS, PaperRow, PaperTable
from cutmix.report.compare import pooled
from cutmix.runs.read import Json, Run


class Found(NamedTuple):
    """A result, and the recipe of its run where the run's folder is at hand."""

    line: Json
    config: Json | None


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
    lines: dict[str, Json]

    @property
    def key(self) -> tuple[str, ...]:
        """What results that are pooled have in common, apart from the row."""
        return self.name, self.method, self.backbone, self.how


def find_measured(runs: Sequence[Path], results: Sequence[Path]) -> list[Found]:
    """Read results of the last epoch, each once, wherever it is found; of the same measured twice, the later.

    Takes and raises what ``find_results`` does.
    """
    found: dict[tuple[str, ...], Found] = {}
    lines = [Found(line, None) for path in results for line in read_file(path)]
    for one in [*lines, *(one for run in read_folders(runs) for one in measured_in(run))]:
        if one.line.get("which") == "last" and one.line.get("value") is not None:
            key = tuple(str(one.line.get(name)) for name in ("measure", "of", "at", "convention", "score", "arch"))
            found[identity(one.line), *key] = one
    return list(found.values())


def measured_in(run: Run) -> list[Found]:
    """Return the results of a run folder."""
    return [Found(line, run.recipe) for line in run.results] if run.finished else []


def paper_sheets(table: PaperTable, found: Iterable[Found]) -> tuple[list[Sheet], list[str]]:
    """Return a table with what was measured by the paper's protocol, one of what was measured otherwise, and how."""
    found = list(found)
    cells = {row: list(_cells(row, found)) for row in table.rows}
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
        lines = [(cell.lines[measure].get("seed"), cell.lines[measure]) for cell in cells if measure in cell.lines]
        estimate = pooled(lines)
        if estimate is None:
            said.append("not run")
            continue
        ends = [estimate.value, estimate.low, estimate.high]
        if table.accuracy:
            ends = [None if end is None else 100 - end for end in (estimate.value, estimate.high, estimate.low)]
        value, low, high = ("" if end is None else f"{end:.{table.digits}f}" for end in ends)
        said.append(f"{value} [{low}, {high}]" if low and high else value)
    return "; ".join(said) if set(said) != {"not run"} else "not run"


def _cells(row: PaperRow, found: Iterable[Found]) -> Iterator[Cell]:
    """Yield the results that are of a row: of the same measure, by one of its recipes or architectures."""
    by_run: dict[str, list[Found]] = {}
    for one in found:
        if _is_of(row, one.line):
            by_run.setdefault(identity(one.line), []).append(one)
    for its in by_run.values():
        line, config = its[0]
        recipe = str((line.get("backbone_recipe") if row.arch else line.get("recipe")) or "")
        method = METHODS[row.recipes.index(recipe)] if recipe in row.recipes else ""
        how = _transfer_departures(row, line, config) if row.arch else _departures(row, line, config)
        backbone = str(line.get("backbone") or "") if row.arch else ""
        lines = {one.line["measure"]: one.line for one in its}
        yield Cell(method, ", ".join(how), _name(line, backbone), backbone, lines)


def _name(line: Json, backbone: str) -> str:
    """Return what a run is called: by its recipe, which mostly ends in the backbone, and by its seed."""
    name = str(line.get("recipe"))
    if backbone and not name.endswith(backbone_name(backbone)):
        name += f" on {backbone_in_words(backbone)}"
    return name + (f", seed {line['seed']}" if line.get("seed") else "")


def _is_of(row: PaperRow, line: Json) -> bool:
    if line.get("measure") not in row.measures or line.get("which") != "last" or line.get("value") is None:
        return False
    if row.arch:
        return bool(line.get("arch") == row.arch)
    usual = line.get("convention", "exact") == "exact" and line.get("score", "max-softmax") == "max-softmax"
    place = row.at is None or abs(line.get("at", -1) - row.at) < 1e-6
    named = str(line.get("recipe")).partition("+")[0] in row.recipes
    return usual and place and named and line.get("of") == row.of


def _departures(row: PaperRow, line: Json, config: Json | None) -> list[str]:
    name = str(line["recipe"])
    how = departures(RECIPES[name.partition("+")[0]], line, config, row.test_images)
    return how + ([str(line["note"])] if row.of and line.get("note") else [])  # the other data are not the paper's


def _transfer_departures(row: PaperRow, line: Json, config: Json | None) -> list[str]:
    how = departures(recipe_of_arch(row.arch), line, config, row.test_images)
    if line.get("training_pictures") != row.training_pictures:
        count = line.get("training_pictures")
        how.append(f"{'unknown number of' if count is None else f'{count:,}'} training pictures")
    if line.get("backbone_recipe") not in row.recipes:
        how.append(f"a backbone of {line.get('backbone_recipe') or backbone_in_words(str(line.get('backbone')))}")
    return how
