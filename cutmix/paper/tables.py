"""The paper's tables and figures, read from ``tables.toml``: the numbers of each row, and the recipe that runs it."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from cutmix.errors import InputError, did_you_mean

METHODS = ("Baseline", "Mixup", "Cutout", "CutMix")


@dataclass(frozen=True)
class Row:
    """A result that the paper prints: a line of a table, a cell of a table with a column per method, or a point."""

    label: str  # as printed, with the model if the table has several
    recipe: str | None  # recipe of the classifier, or of the backbone of a detector or captioner
    metrics: tuple[str, ...]  # the printed metrics, by their names in results
    numbers: tuple[float, ...] = ()  # the paper's number for each metric, in per cent; empty where it prints none
    method: str = ""  # the column, one of ``METHODS``; "" where the table has one line per method
    quoted: bool = False  # whether the authors took the numbers from another paper
    notes: str = ""  # letters of the footnotes
    x: float | None = None  # position on a figure's horizontal axis
    # number of test images, with the outliers in out-of-distribution detection; None: all of the data
    test_images: int | None = None
    of: str | None = None  # the other data of the metric, such as the outliers
    at: float | None = None  # the ε of the metric
    arch: str = ""  # the detector or captioner
    training_images: int | None = None  # of the detector or captioner

    @property
    def is_baseline(self) -> bool:
        """Whether the following rows of its table are compared with this row."""
        return not self.method and "Baseline" in self.label


@dataclass(frozen=True)
class Table:
    """A table or a figure."""

    name: str  # its name on the command line
    heading: str  # its name and its title, as in the paper
    unit: str  # unit of the numbers in a cell
    rows: tuple[Row, ...]  # in the paper's order
    names: tuple[str, ...]  # all names on the command line
    notes: str = ""  # letters of the footnotes that hold for every row
    remarks: tuple[str, ...] = ()  # notes on the comparison, one sentence or more each
    command: str = ""  # the command that runs a row; "" for ``cutmix reproduce``
    digits: int = 2  # decimals, as printed
    accuracy: bool = False  # whether the paper prints 100 less the metric

    @property
    def lines(self) -> dict[str, list[Row]]:
        """The rows by label: one row, or one for each method."""
        lines: dict[str, list[Row]] = {}
        for row in self.rows:
            lines.setdefault(row.label, []).append(row)
        return lines


@dataclass(frozen=True)
class DataFacts:
    """Properties by which one of the paper's data sets is recognized."""

    classes: int  # number of classes
    side: int | None  # side of an image in pixels; None where sizes differ
    test_images: int  # number of test images


DATA = {
    "cifar-10": DataFacts(10, 32, 10_000),
    "cifar-100": DataFacts(100, 32, 10_000),
    "imagenet": DataFacts(1000, None, 50_000),
}


def _rows(line: Mapping[str, Any], metrics: Sequence[str], mixup: str) -> list[Row]:
    """Return the row of a line, or that of each method."""
    fields: dict[str, Any] = {"recipe": None, "numbers": (), "metrics": metrics, **line}
    fields["metrics"] = tuple(fields["metrics"])
    cells = fields.pop("by_method", None)
    if cells is None:
        return [Row(**fields | {"numbers": tuple(fields["numbers"])})]
    recipe = fields["recipe"]
    names = (recipe, f"{recipe}{mixup}", f"{recipe}-cutout", f"{recipe}-cutmix") if recipe else (None,) * 4
    return [
        Row(**fields | {"recipe": name, "method": method, "numbers": tuple(cell)})
        for name, method, cell in zip(names, METHODS, cells, strict=True)
    ]


def _table(content: dict[str, Any]) -> Table:
    name, metrics, mixup = content["name"], content.pop("metrics", ()), content.pop("mixup", "-mixup")
    content["names"] = (name, *content.pop("also", [name.partition("-")[0]]))
    content["rows"] = tuple(row for line in content["rows"] for row in _rows(line, metrics, mixup))
    return Table(**content | {"remarks": tuple(content.get("remarks", ()))})


_CONTENT = tomllib.loads((files("cutmix.paper") / "tables.toml").read_text(encoding="utf-8"))
FOOTNOTES: dict[str, str] = _CONTENT["footnotes"]
TABLES: tuple[Table, ...] = tuple(map(_table, _CONTENT["tables"]))


def find_tables(word: str) -> tuple[Table, ...]:
    """Return the tables of a name: one table, both parts of figure 3, or all; "Table 5" and "5" name table5 too."""
    name = re.sub(r"^(?=a?\d)", "table", word.lower().replace(" ", "").replace("_", "-"))
    found = tuple(table for table in TABLES if name == "all" or name in table.names)
    if not found:
        names = [table.name for table in TABLES]
        hint = did_you_mean(name, names, f"there are {', '.join(names)}")
        raise InputError(f'there is no table "{word}"; {hint}')
    return found


def find_runnable(word: str) -> tuple[Table, ...]:
    """Return the tables of a name whose rows ``cutmix reproduce`` runs."""
    found = find_tables(word)
    runnable = tuple(table for table in found if not table.command)
    if not runnable:
        raise InputError(f"cutmix reproduce has no rows of {found[0].name}; they are run by {found[0].command}")
    return runnable


def find_rows(tables: Sequence[Table], words: tuple[str, ...]) -> tuple[Row, ...]:
    """Return the rows with these labels or recipes, in the order of the tables; by default all that have a recipe."""
    rows = [row for table in tables for row in table.rows]
    names = {name.lower(): row for row in sorted(rows, key=lambda row: row.recipe is not None)
             for name in (row.label, row.recipe) if name}  # fmt: skip
    where = " and ".join(table.name for table in tables)
    for word in words:
        if word.lower() not in names:
            labels = list(dict.fromkeys(row.label for row in names.values()))
            hint = did_you_mean(word, labels, f"the rows are {', '.join(labels)}", cutoff=0.4)
            raise InputError(f'{where} has no row "{word}"; {hint}')
        if names[word.lower()].recipe is None:
            raise InputError(f'the row "{word}" of {where} is quoted in the paper; no recipe here runs it')
    chosen = {word.lower() for word in words}
    return tuple(row for row in rows if row.recipe and (not words or {row.label.lower(), row.recipe.lower()} & chosen))
