"""``cutmix reproduce``: run the rows of a table of the paper, with one or more seeds.

full    the paper's protocol
short   the same with fewer epochs; milestones and warm-up are shares of them, so the schedule shrinks too
smoke   a few steps on a few images: shows that a row runs; its results mean nothing
"""

from collections.abc import Sequence
from dataclasses import replace

from cutmix.config.options import ReproduceOptions
from cutmix.config.recipe import Recipe
from cutmix.config.recipes import find_recipe
from cutmix.data import ArraySet, open_data
from cutmix.errors import InputError
from cutmix.models import create_model
from cutmix.paper.command import show
from cutmix.paper.compare import find
from cutmix.paper.tables import DATA, Table, find_rows, find_runnable
from cutmix.training.campaign import Job, is_first, open_campaign, parse_shard, print_plan, run_jobs

SHORT_EPOCHS = 10
SMOKE_BATCH = 16


def run_reproduce(options: ReproduceOptions) -> None:
    """Run the rows of a table that are not finished, and print the table.

    Raises:
        InputError: If table, row, data or folder do not fit, another process is running it, or rows failed; the others
            are run nevertheless.
        SystemExit: After SIGTERM or Ctrl-C; the same command resumes.
    """
    tables = find_runnable(options.table)
    brief, planned = options.scale == "smoke", plan(tables, options)
    parse_shard(options.shard)
    if is_first():
        check_data(planned, options)
        if options.model:
            create_model(options.model, 10)  # one sentence now, and not one for each row
    with open_campaign(planned, options, "reproduce") as (jobs, console):
        print_plan(jobs, options, console, brief=brief)
        failures = run_jobs(jobs, options, console, brief=brief)
        if not console.quiet:
            show(tables, find([options.out], []))
        if failures:
            raise InputError(
                f"{len(failures)} of {sum(job.done < 1 for job in jobs)} runs failed, the first being {failures[0]}"
            )


def plan(tables: Sequence[Table], options: ReproduceOptions) -> list[Job]:
    """Return every run of the options, each once; the seed changes slowest, so that every row has a result soon."""
    if options.epochs is not None and options.scale != "short":
        raise InputError(f"--epochs is for --scale short; {options.scale} has its own number of epochs")
    if options.lr is not None and options.model is None:
        raise InputError("--lr is for another model, --model; the rows' own models have their own")
    for option, value in (("seeds", options.seeds), ("epochs", options.epochs)):
        if value is not None and value < 1:
            raise InputError(f"--{option} is {value}; expected at least 1")
    seeds = options.seeds if options.seeds is not None else 1 if options.scale == "smoke" else 3
    rows = {row.recipe: row for row in find_rows(tables, options.rows)}
    jobs = []
    for seed in range(seeds):
        for name, row in rows.items():
            recipe = scaled(find_recipe(str(name)), options, seed)
            jobs.append(Job(row.label, recipe, options.out / f"{recipe.name}-seed{seed}"))
    return jobs


def scaled(recipe: Recipe, options: ReproduceOptions, seed: int) -> Recipe:
    """Return a row's recipe as it is run; its name says after a "+" how it differs from the row's own."""
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
    """Check that the data are those of the rows, by the number of classes and the size of the images.

    Raises:
        InputError: If the data are missing, or others.
    """
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
