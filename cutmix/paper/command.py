"""``cutmix paper`` prints tables of the paper with the results here; ``cutmix reproduce`` runs the rows of one.

Scales of ``cutmix reproduce``:

full    the paper's protocol
short   the same with fewer epochs; milestones and warm-up are shares of them, so the schedule shrinks too
smoke   a few steps on a few images: shows that a row runs; its results mean nothing
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table as Grid
from rich.text import Text

from cutmix.config.options import ReproduceOptions
from cutmix.config.recipe import Recipe
from cutmix.config.recipes import find_recipe
from cutmix.data import ArraySet, open_data
from cutmix.errors import InputError
from cutmix.models import create_model
from cutmix.paper.compare import Found, find, footnotes, sheets
from cutmix.paper.tables import DATA, Table, find_rows, find_runnable, find_tables
from cutmix.runtime.terminal import Tabular, print_tables
from cutmix.training.campaign import Job, check_images, is_first, open_campaign, parse_shard, print_plan, run_jobs


class PaperTables(Tabular):
    """Tables of the paper with the results here, and their footnotes."""

    def __init__(self, shown: Sequence[Table], found: Sequence[Found]) -> None:
        self.shown, self.found = shown, found

    def tables(self) -> "Iterator[Grid | str]":
        """Yield each table below its caption, and the footnotes."""
        for table in self.shown:
            made, how = sheets(table, self.found)
            for sheet in made:
                grid = Grid()
                for name in sheet.header:
                    grid.add_column(Text(name), overflow="fold")
                for cells in sheet.rows:
                    grid.add_row(*(Text(cell.replace("; ", "\n")) for cell in cells))
                yield f"\n{sheet.caption}"
                yield grid
            yield from how
            yield from table.remarks
            if table.command:
                yield f"Run by: {table.command}"
        by_row = [table for table in self.shown if not table.command]
        yield from footnotes(by_row) if by_row else ()


def run_paper(tables: Sequence[str], runs: Sequence[Path], results: Sequence[Path]) -> PaperTables:
    """Return tables of the paper, by default all, with the results here.

    Without ``runs`` and ``results``, runs/ and results/*.jsonl are read, but not results/*.log.jsonl.
    """
    wanted = tuple(dict.fromkeys(table for word in tables or ("all",) for table in find_tables(word)))
    if not runs and not results:
        runs = [path for path in [Path("runs")] if path.is_dir()]
        results = sorted(path for path in Path("results").glob("*.jsonl") if not path.name.endswith(".log.jsonl"))
    return PaperTables(wanted, find(runs, results))


SHORT_EPOCHS = 10
SMOKE_BATCH = 16


def run_reproduce(options: ReproduceOptions) -> PaperTables:
    """Run the unfinished rows of a table, and return the table; it is printed if rows failed."""
    tables = find_runnable(options.table)
    brief, planned = options.scale == "smoke", plan(tables, options)
    parse_shard(options.shard)
    if is_first():
        check_data(planned, options)
        check_images(planned, options)
        if options.model:
            create_model(options.model, 10)  # one sentence now, and not one for each row
    with open_campaign(planned, options, "reproduce") as (jobs, console):
        print_plan(jobs, options, console, brief=brief)
        failures = run_jobs(jobs, options, console, brief=brief)
        made = PaperTables(tables, find([options.out], []) if is_first() else [])
        if failures:
            print_tables(made, console)
            raise InputError(
                f"{len(failures)} of {sum(job.done < 1 for job in jobs)} runs failed, the first being {failures[0]}"
            )
    return made


def plan(tables: Sequence[Table], options: ReproduceOptions) -> list[Job]:
    """Return the planned runs, each once; the seed changes slowest, so that every row has a result early."""
    if options.epochs is not None and options.scale != "short":
        raise InputError(f"--epochs is given with --scale {options.scale}; expected --scale short")
    if options.lr is not None and options.model is None:
        raise InputError("--lr is given without --model; expected both, as each row has its own learning rate")
    if options.seeds is not None and not 1 <= options.seeds <= 1000:
        raise InputError(f"--seeds is {options.seeds}; expected 1 to 1000")
    if options.epochs is not None and options.epochs < 1:
        raise InputError(f"--epochs is {options.epochs}; expected at least 1")
    seeds = options.seeds if options.seeds is not None else 1 if options.scale == "smoke" else 3
    rows = {row.recipe: row for row in find_rows(tables, options.rows)}
    jobs = []
    for seed in range(seeds):
        for name, row in rows.items():
            recipe = scaled(find_recipe(str(name)), options, seed)
            jobs.append(Job(row.label, recipe, options.out / f"{recipe.name}-seed{seed}"))
    return jobs


def scaled(recipe: Recipe, options: ReproduceOptions, seed: int) -> Recipe:
    """Return the recipe to run for a row; after a "+", its name has the differences from the row's recipe."""
    lr, scale = options.lr, options.scale
    suffix = [options.model, None if lr is None else f"lr{lr:g}", None if scale == "full" else scale]
    recipe = replace(
        recipe, seed=seed, model=options.model or recipe.model, lr=recipe.lr if options.lr is None else options.lr,
        data=options.data or recipe.data, name="+".join([recipe.name, *filter(None, suffix)]),
    )  # fmt: skip
    if options.scale == "full":
        return recipe
    smoke = options.scale == "smoke"
    epochs = 1 if smoke else options.epochs or SHORT_EPOCHS
    batch_size = min(recipe.batch_size, SMOKE_BATCH) if smoke else recipe.batch_size
    warmup_epochs = recipe.warmup_epochs * epochs / recipe.epochs
    return replace(recipe, epochs=epochs, batch_size=batch_size, warmup_epochs=warmup_epochs)


def check_data(jobs: Sequence[Job], options: ReproduceOptions) -> None:
    """Check that the data fit the rows, by the number of classes and the size of the images."""
    for name, data in sorted({(find_recipe(job.recipe.name.partition("+")[0]).data, job.recipe.data) for job in jobs}):
        found, facts = open_data(data, "test", download=options.download), DATA[name]
        side = found.images.shape[-1] if isinstance(found, ArraySet) else None
        if (found.num_classes, side) != (facts.classes, facts.side):
            wanted, given = (
                f"{classes} classes of {f'{pixels}×{pixels} pixels' if pixels else 'images of any size'}"
                for classes, pixels in ((facts.classes, facts.side), (found.num_classes, side))
            )
            raise InputError(
                f"{data} holds {given}, but {options.table} is about {name}: {wanted}; give that with --data"
            )
