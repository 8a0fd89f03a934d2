"""``cutmix paper``: print tables of the paper with the results here."""

from collections.abc import Sequence
from pathlib import Path

from cutmix.paper.compare import Found, Sheet, find, footnotes, sheets
from cutmix.paper.tables import Table, find_tables


def run_paper(tables: Sequence[str], runs: Sequence[Path], results: Sequence[Path]) -> None:
    """Print tables of the paper with the results here.

    Args:
        tables: Names; by default all.
        runs: Folders of runs.
        results: JSON-lines files; without both, runs/ and results/*.jsonl are read, but not results/*.log.jsonl.
    """
    wanted = tuple(dict.fromkeys(table for word in tables or ("all",) for table in find_tables(word)))
    if not runs and not results:
        runs = [path for path in [Path("runs")] if path.is_dir()]
        results = sorted(path for path in Path("results").glob("*.jsonl") if not path.name.endswith(".log.jsonl"))
    show(wanted, find(runs, results))


def show(tables: Sequence[Table], found: Sequence[Found]) -> None:
    """Print tables and their footnotes."""
    for table in tables:
        made, how = sheets(table, found)
        _print(made, [*how, *table.remarks, *([f"Run by: {table.command}"] if table.command else [])])
    by_row = [table for table in tables if not table.command]
    if by_row:
        _print([], footnotes(by_row))


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
