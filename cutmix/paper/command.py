"""``cutmix paper``: prints tables of the paper with what was measured here."""

from collections.abc import Sequence
from pathlib import Path

from cutmix.errors import InputError
from cutmix.paper.compare import Sheet, Trained, find_measured, find_results, footnotes, paper_sheets, sheets
from cutmix.paper.tables import MORE_TABLES, TABLES, PaperTable, Table, find_among
from cutmix.runs.record import Record

EVERY_TABLE: tuple[Table | PaperTable, ...] = (*TABLES, *MORE_TABLES)


def find_runnable(word: str) -> tuple[Table, ...]:
    """Return the tables of a name whose rows are training runs.

    Raises:
        InputError: If there is none of that name, or its rows are run by another command.
    """
    found = find_among(EVERY_TABLE, word)
    runnable = tuple(table for table in found if isinstance(table, Table))
    others = [table for table in found if isinstance(table, PaperTable)]
    if not runnable:
        raise InputError(f"cutmix reproduce has no rows of {others[0].name}; they are run by {others[0].command}")
    return runnable


def run_paper(tables: Sequence[str], runs: Sequence[Path], results: Sequence[Path]) -> None:
    """Print tables of the paper with what was measured here.

    Args:
        tables: Names; all without one.
        runs: Folders of runs.
        results: JSON-lines files; without both, runs/ and results/*.jsonl are read, but not results/*.log.jsonl.
    """
    wanted = tuple(dict.fromkeys(table for word in tables or ("all",) for table in find_among(EVERY_TABLE, word)))
    if not runs and not results:
        runs = [path for path in [Path("runs")] if path.is_dir()]
        results = sorted(path for path in Path("results").glob("*.jsonl") if not path.name.endswith(".log.jsonl"))
    show(wanted, find_results(runs, results), find_measured(runs, results))


def show(tables: Sequence[Table | PaperTable], runs: Sequence[Trained], measured: Sequence[Record] = ()) -> None:
    """Print tables and their footnotes.

    Args:
        tables: In their order.
        runs: Finished runs of classification.
        measured: Results of other metrics.
    """
    for table in tables:
        if isinstance(table, Table):
            _print(sheets(table, runs))
        else:
            made, how = paper_sheets(table, measured)
            _print(made, [*how, *table.notes, f"Run by: {table.command}"])
    of_training = [table for table in tables if isinstance(table, Table)]
    if of_training:
        _print([], footnotes(of_training))


def _print(made: Sequence[Sheet], notes: Sequence[str] = ()) -> None:
    from rich.table import Table as Grid
    from rich.text import Text

    from cutmix.runtime.terminal import Console

    console = Console()
    for sheet in made:
        grid = Grid()
        for name in sheet.header:
            grid.add_column(Text(name), overflow="fold")
        for cells in sheet.rows:
            grid.add_row(*(Text(cell.replace("; ", "\n")) for cell in cells))
        console.print(Text(f"\n{sheet.caption}", style="bold"))
        console.print(grid)
    for note in notes:
        console.print(Text(note))
