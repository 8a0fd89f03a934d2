"""``cutmix reproduce``: runs the rows of a table of the paper, as many seeds of each as are wanted.

full    the paper's protocol
short   the same with fewer epochs; milestones and warm-up are shares of them, so the schedule shrinks too
smoke   a few steps on a few images: it shows that a row works, and measures nothing
"""

import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from rich.table import Table as Grid
from rich.text import Text

from cutmix.config.options import ReproduceOptions, TrainOptions
from cutmix.config.recipe import Recipe, flag
from cutmix.config.recipes import find_recipe
from cutmix.data import ArraySet, open_data
from cutmix.data.loaders import Batch, Loader
from cutmix.errors import InputError
from cutmix.evaluate.classification import predict
from cutmix.models import create_model
from cutmix.paper.command import find_runnable, show
from cutmix.paper.compare import find_results
from cutmix.paper.tables import DATA, Row, Table, find_rows
from cutmix.runs.folder import has_results, hold, saved_recipe
from cutmix.runs.read import read_run
from cutmix.runtime.distributed import any_process, processes
from cutmix.runtime.progress import duration
from cutmix.runtime.terminal import Console
from cutmix.training.loop import run_to_end, run_training, train_step
from cutmix.training.setup import prepare

SHORT_EPOCHS = 10
SMOKE_STEPS, SMOKE_BATCH = 3, 16


@dataclass(frozen=True)
class Job:
    """One run: a row with a seed.

    Attributes:
        row: The row.
        recipe: What is run, scaled.
        path: Its folder.
        done: Share of its epochs that were done before; 1 is a finished run.
    """

    row: Row
    recipe: Recipe
    path: Path
    done: float


class First:
    """The first batches of a loader, as a loader.

    Args:
        loader: All of them.
        steps: How many are left of an epoch at most.
    """

    def __init__(self, loader: Loader, steps: int) -> None:
        self.loader, self.steps = loader, min(steps, loader.steps)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yield the first batches from one on."""
        return islice(self.loader.epoch(epoch, start), max(self.steps - start, 0))


def run_reproduce(options: ReproduceOptions) -> None:
    """Run what is not finished yet of a table's rows, and print the table.

    Raises:
        InputError: If table, row, data or folder do not fit, another process is at it, or rows failed; the others were
            run nevertheless.
        SystemExit: After SIGTERM or Ctrl-C; the same command goes on from there.
    """
    first = os.environ.get("RANK", "0") == "0"  # torchrun's: one process of a run speaks and holds the folder
    console = Console(quiet=not first)
    tables = find_runnable(options.table)
    shard, shards = parse_shard(options.shard)
    chosen = plan(tables, options)[shard - 1 :: shards]
    if first:
        check_data(chosen, options)
        if options.model:
            create_model(options.model, 10)  # one sentence now, and not one for each row
    lock = hold(_made(options.out), f".reproduce-{shard}-of-{shards}.lock") if first else None
    try:
        jobs = [replace(job, done=share_done(job)) for job in chosen]
        left = [job for job in jobs if job.done < 1]
        print_plan(jobs, options, console)
        failures = []
        for number, job in enumerate(left, start=1):
            console.print(Text(f"\nrun {number} of {len(left)}: {job.row.label}, seed {job.recipe.seed}", style="bold"))
            started = time.perf_counter()
            try:
                (train_briefly if options.scale == "smoke" else run_training)(job.recipe, train_options(job, options))
            except InputError as error:  # such as a loss that is not finite: no reason not to run the others
                console.print(Text(f"failed: {error}"))
                failures.append(f"{job.recipe.name}, seed {job.recipe.seed}: {error}")
            except SystemExit:
                console.print("the same cutmix reproduce command goes on from there")
                raise
            if options.scale == "smoke" and number == 1 < len(left):
                others = duration((time.perf_counter() - started) * (len(left) - 1))
                console.print(f"about {others} more, if the others take as long")
        if first:
            show(tables, find_results([options.out], []))
        if failures:
            raise InputError(f"{len(failures)} of {len(left)} runs failed, the first being {failures[0]}")
    finally:
        if lock is not None:
            lock.close()


def plan(tables: Sequence[Table], options: ReproduceOptions) -> list[Job]:
    """Return every run that the options ask for, each once; the seed changes slowest, so each row is soon seen."""
    if options.epochs is not None and options.scale != "short":
        raise InputError(f"--epochs is for --scale short; {options.scale} has its own number of epochs")
    if options.lr is not None and options.model is None:
        raise InputError("--lr is for another network, --model; the rows' own networks have their own")
    for option, value in (("seeds", options.seeds), ("epochs", options.epochs)):
        if value is not None and value < 1:
            raise InputError(f"--{option} is {value}; expected at least 1")
    seeds = options.seeds if options.seeds is not None else 1 if options.scale == "smoke" else 3
    rows = {row.recipe: row for row in find_rows(tables, options.rows)}
    jobs = []
    for seed in range(seeds):
        for name, row in rows.items():
            recipe = scaled(find_recipe(str(name)), options, seed)
            jobs.append(Job(row, recipe, options.out / f"{recipe.name}-seed{seed}", 0.0))
    return jobs


def scaled(recipe: Recipe, options: ReproduceOptions, seed: int) -> Recipe:
    """Return a row's recipe as it is to be run; its name then says after a "+" in what it is not the row's own."""
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


def parse_shard(text: str) -> tuple[int, int]:
    """Return i and n of "i/n".

    Raises:
        InputError: If it is something else, or i is not from 1 to n.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"--shard is {text}; expected i/n with i from 1 to n, such as 2/8")
    return int(match[1]), int(match[2])


def check_data(jobs: Sequence[Job], options: ReproduceOptions) -> None:
    """See that the data are those of the rows, by the number of classes and the size of the images.

    Raises:
        InputError: If they are not there, or others.
    """
    for name, data in sorted({(find_recipe(str(job.row.recipe)).data, job.recipe.data) for job in jobs}):
        found, facts = open_data(data, "test", download=options.download), DATA[name]
        side = found.images.shape[-1] if isinstance(found, ArraySet) else None
        if (found.num_classes, side) != (facts.classes, facts.side):
            wanted, given = (
                f"{classes} classes of {f'{pixels}×{pixels} pixels' if pixels else 'photographs'}"
                for classes, pixels in ((facts.classes, facts.side), (found.num_classes, side))
            )
            raise InputError(
                f"{data} holds {given}, but {options.table} is about {name}: {wanted}; give that with --data"
            )


def share_done(job: Job) -> float:
    """Return the share of a run's epochs that its folder holds already; 1 only if its results are there too.

    Raises:
        InputError: If the folder holds another run.
    """
    if not (job.path / "config.json").is_file():
        return 0.0
    saved = saved_recipe(job.path)
    resolved = replace(job.recipe, **{name: getattr(saved, name) for name in ("image_size", "precision")})
    ours, theirs = resolved.to_dict(), saved.to_dict()
    different = [f"{flag(name)} {theirs[name]} instead of {ours[name]}" for name in ours if ours[name] != theirs[name]]
    if different:
        raise InputError(f"{job.path} holds another run, with {', '.join(different)}; give another folder with --out")
    if has_results(job.path):
        return 1.0
    logged = read_run(job.path).epochs
    return logged[-1]["epoch"] / (job.recipe.epochs + 1) if logged else 0.0


def print_plan(jobs: Sequence[Job], options: ReproduceOptions, console: Console) -> None:
    """Say what will be run, and how long it will take: each row is timed on a few steps, which is all that smoke runs.

    At smoke scale the first row is what is timed, and the time is said after it.
    """
    seconds: dict[str, float] = {}
    grid = Grid("Row", "Network", "Epochs", "Runs left", "A run takes", "Together")
    for name in dict.fromkeys(job.recipe.name for job in jobs):
        its = [job for job in jobs if job.recipe.name == name]
        left = [job for job in its if job.done < 1]
        if left and options.scale != "smoke":
            each = time_run(left[0], options)
            seconds[name] = each * sum(1 - job.done for job in left)
            takes = [duration(each), duration(seconds[name])]
        else:
            takes = [f"{SMOKE_STEPS} steps" if left else "finished", ""]
        recipe = its[0].recipe
        cells = [its[0].row.label, recipe.model, recipe.epochs, f"{len(left)} of {len(its)}", *takes]
        grid.add_row(*(Text(str(cell)) for cell in cells))
    console.print(grid)
    if seconds:
        console.print(f"about {duration(sum(seconds.values()))} in all, measured on a few steps of each row")


def time_run(job: Job, options: ReproduceOptions) -> float:
    """Return about how many seconds a run takes, training and measuring, from a few steps of each."""
    with processes(options.device) as world:
        run = prepare(job.recipe, train_options(job, options), world)
        clock = time.perf_counter()
        predict(run.state.exported, First(run.task.test_batches, 1).epoch(), world, autocast=run.autocast)
        testing = time.perf_counter() - clock
        run.network.train()
        started, taken = time.perf_counter(), []
        for images, labels in First(run.batches, 4).epoch():
            float(train_step(run, images, labels))  # waits for a GPU
            taken.append(time.perf_counter() - started)
            if any_process(taken[-1] > 5, world):
                break
        warm = len(taken) > 1  # then the first step, which sets up and compiles, does not count
        step = (taken[-1] - taken[0]) / (len(taken) - 1) if warm else taken[0]
        tests = -(-job.recipe.epochs // job.recipe.eval_every)
        return job.recipe.epochs * run.batches.steps * step + tests * run.task.test_batches.steps * min(testing, step)


def train_options(job: Job, options: ReproduceOptions) -> TrainOptions:
    """Return how a run is run: what is there is gone on with."""
    return TrainOptions(
        out=job.path, resume=True, device=options.device, workers=options.workers, download=options.download
    )


def train_briefly(recipe: Recipe, options: TrainOptions) -> Path:
    """Do what ``run_training`` does on the first batches of one epoch and of the test set."""
    with processes(options.device) as world:
        run = prepare(recipe, options, world)
        run.batches, run.task.test_batches = First(run.batches, SMOKE_STEPS), First(run.task.test_batches, 2)
        return run_to_end(run)


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} could not be made: {error.strerror}") from None
    return folder
