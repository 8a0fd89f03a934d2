"""Campaigns: many training runs in one folder, timed in advance, resumed, and shared among machines.

``cutmix compare``, ``cutmix reproduce`` and ``cutmix train --folds`` are campaigns; this file also lists the runs of
the first and the last.
"""

import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table as Grid
from rich.text import Text

from cutmix.config.options import CORES, SHARED, CampaignOptions, CompareOptions, TrainOptions
from cutmix.config.recipe import FILE_SIZE, Recipe, flag
from cutmix.data import Splits, open_splits
from cutmix.data.decode import FAST_JPEG
from cutmix.data.loaders import Batch, Loader
from cutmix.data.opening import refuse_inside
from cutmix.data.sets import keep_per_class
from cutmix.errors import InputError
from cutmix.evaluation.classification import predict
from cutmix.runs.folder import TYPED, command_line, hold, is_complete, saved_recipe, write_arrays, write_json
from cutmix.runs.outcomes import mean_over_runs
from cutmix.runs.read import read_environment, read_run
from cutmix.runs.record import Record, Results
from cutmix.runtime.device import any_process, arithmetic, autocast, processes
from cutmix.runtime.files import make_folder, read_arrays, to_json, write_atomic
from cutmix.runtime.terminal import Console, Stop, duration, remembered_signals, say, saying_once
from cutmix.training.loop import DivergedError, evaluated_batches, run_to_end, run_training, train_step
from cutmix.training.mixes import note_named, with_method
from cutmix.training.setup import fill_in, prepare

BRIEF_STEPS = 3


@dataclass(frozen=True)
class Job:
    """One run of a campaign."""

    label: str  # name of the recipe in tables
    recipe: Recipe  # with its seed
    path: Path  # its folder
    done: float = 0.0  # share of its epochs that are done; 1 for a finished run
    method: str = ""  # that ``cutmix compare`` compares: a mix, or one with settings


class First:
    """The first batches of a loader, as a loader."""

    def __init__(self, loader: Loader, steps: int) -> None:
        self.loader, self.steps = loader, min(steps, loader.steps)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yield the first batches from number ``start`` on."""
        return islice(self.loader.epoch(epoch, start), max(self.steps - start, 0))


def is_first() -> bool:
    """Return whether this process prints and locks the folder: the first process of torchrun."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def open_campaign(jobs: Sequence[Job], options: CampaignOptions, name: str) -> Iterator[tuple[list[Job], Console]]:
    """Lock the folder for this shard; yield its jobs, with the share of each that is done, and a console."""
    first = is_first()
    shard, shards = parse_shard(options.shard)
    make_folder(options.out)
    lock = hold(options.out, f".{name}-{shard}-of-{shards}.lock") if first else None
    try:
        with saying_once():
            yield [replace(job, done=share_done(job)) for job in jobs[shard - 1 :: shards]], Console(quiet=not first)
    finally:
        if lock is not None:
            lock.close()


def run_jobs(
    jobs: Sequence[Job], options: CampaignOptions | TrainOptions, console: Console, *, brief: bool = False
) -> list[str]:
    """Run the unfinished jobs, resuming interrupted ones, and return the reasons of failures.

    A run that fails, for example because its loss is not finite, does not stop the others; with several processes only
    one that diverges does not, as another error may be that of one process, for which the others would wait. A
    ``brief`` run takes a few steps only: it shows that a recipe works, and its results mean nothing.
    """
    left = [job for job in jobs if job.done < 1]
    failures, stop = [], Stop()
    for number, job in enumerate(left, start=1):
        console.print(Text(f"\nrun {number} of {len(left)}: {job.label}, seed {job.recipe.seed}", style="bold"))
        started = time.perf_counter()
        try:
            (train_briefly if brief else run_training)(job.recipe, train_options(job, options), stop)
        except InputError as error:
            if os.environ.get("WORLD_SIZE", "1") != "1" and not isinstance(error, DivergedError):
                raise
            console.print(Text(f"failed: {error}"))
            failures.append(f"{job.recipe.name}, seed {job.recipe.seed}: {error}")
        except SystemExit:
            console.print("the same command resumes")
            raise
        if stop.number is not None:  # the run had no step left, or failed
            console.print("stopped; the same command resumes")
            raise SystemExit(128 + stop.number)
        if brief and number == 1 < len(left):
            others = duration((time.perf_counter() - started) * (len(left) - 1))
            console.print(f"about {others} more, if the others take as long")
    return failures


def _run_left(jobs: Sequence[Job], options: CampaignOptions | TrainOptions, console: Console) -> None:
    """Print the expected duration of the unfinished runs, and run them; raise InputError if some fail."""
    left = sum(job.done < 1 for job in jobs)
    if left:
        print_plan(jobs, options, console)
    failures = run_jobs(jobs, options, console)
    if failures:
        raise InputError(f"{len(failures)} of {left} runs failed, the first being {failures[0]}")


def check_images(jobs: Sequence[Job], options: CampaignOptions | TrainOptions) -> None:
    """Refuse finished runs on other images than the data hold now; the data may have moved."""
    done = [(job, saved_recipe(job.path).data) for job in jobs if share_done(job) == 1]
    if len(done) == len(jobs):
        done = [(job, before) for job, before in done if before != job.recipe.data]
    opened: dict[str, Splits] = {}
    copies: dict[str, Any] = {}  # the copies among a folder's images, found once
    for job, before in done:
        data, reading, count = job.recipe.data, job.recipe.reading(), job.recipe.train_per_class
        if (key := f"{data} {reading}") not in opened:
            skip = train_options(job, options).skip_unreadable
            opened[key] = open_splits(data, copies=copies.get(data), skip_unreadable=skip, **reading)
            copies[data] = opened[key].copies
        splits = opened[key] if count is None else replace(opened[key], train=keep_per_class(opened[key].train, count))
        kept = read_environment(job.path / "environment.json").get("images")
        if kept != splits.fingerprint() and (kept is not None or before != data):
            raise InputError(
                f"{data} does not hold the images that {job.path} was trained and tested on; give another folder with "
                "--out, so that all runs have the same images"
            )


def parse_shard(text: str) -> tuple[int, int]:
    """Return i and n of "i/n", 1 ≤ i ≤ n."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"--shard is {text}; expected i/n with i from 1 to n, such as 2/8")
    return int(match[1]), int(match[2])


def share_done(job: Job) -> float:
    """Return the share of a run's epochs that its folder holds; 1 only with its results."""
    if not (job.path / "config.json").is_file():
        return 0.0
    theirs = saved_recipe(job.path).to_dict()
    ours = job.recipe.to_dict() | {"data": theirs["data"]}  # whose images are compared
    ours |= {name: theirs[name] for name, values in RESOLVED.items() if (ours[name], theirs[name]) in values}
    different = [f"--{flag(k)} {theirs[k]} instead of {ours[k]}" for k in ours if ours[k] != theirs[k]]
    if different:
        raise InputError(f"{job.path} holds another run, with {', '.join(different)}; give another folder with --out")
    if is_complete(job.path):
        return 1.0
    logged = read_run(job.path).epochs
    return logged[-1]["epoch"] / (job.recipe.epochs + 1) if logged else 0.0


# Fields that a run resolves from its data and its machine: from which value to which.
RESOLVED: dict[str, list[tuple[Any, Any]]] = {
    "image_size": [(None, FILE_SIZE)],
    "precision": [("auto", "float32"), ("auto", "bfloat16")],
    "decoder": [] if FAST_JPEG else [("fast", "exact")],
}


def print_plan(
    jobs: Sequence[Job], options: CampaignOptions | TrainOptions, console: Console, *, brief: bool = False
) -> None:
    """Print the planned runs and their duration, timed on a few steps of each recipe.

    Brief runs are not timed in advance; the time of the first is the estimate for the others.
    """
    total = 0.0
    grid = Grid("Recipe", "Model", "Epochs", "Runs left", "A run takes", "Together")
    for name in dict.fromkeys(job.recipe.name for job in jobs):
        same = [job for job in jobs if job.recipe.name == name]
        left = [job for job in same if job.done < 1]
        if left and not brief:
            each = time_run(left[0], options)
            together = each * sum(1 - job.done for job in left)
            total += together
            takes = [duration(each), duration(together)]
        else:
            takes = [f"{BRIEF_STEPS} steps" if left else "finished", ""]
        recipe = same[0].recipe
        cells = [same[0].label, recipe.model, recipe.epochs, f"{len(left)} of {len(same)}", *takes]
        grid.add_row(*(Text(str(cell)) for cell in cells))
    console.print(grid)
    if total:
        console.print(f"about {duration(total)} in all, timed on a few steps of each recipe")


def time_run(job: Job, options: CampaignOptions | TrainOptions) -> float:
    """Estimate the seconds of a run, training and evaluation, from a few steps of each."""
    its = train_options(job, options)
    with processes(its.device, its.timeout) as world, contextlib.ExitStack() as flags:
        run = prepare(job.recipe, its, world)
        flags.enter_context(arithmetic(run.recipe.precision, world.device))
        clock = time.perf_counter()
        tested = run.task.val_batches or run.task.test_batches
        assert tested is not None
        predict(
            run.state.exported, First(tested, 1).epoch(), world, autocast=autocast(run.recipe.precision, world.device)
        )
        testing = time.perf_counter() - clock
        run.network.train()
        started, taken = time.perf_counter(), []
        for images, labels in First(run.batches, 4).epoch():
            float(train_step(run, images, labels))  # waits for a GPU
            taken.append(time.perf_counter() - started)
            if any_process(taken[-1] > (60 if len(taken) == 1 else 5), world):
                break
        warm = len(taken) > 1  # then the first step, which sets up and compiles, does not count
        step = (taken[-1] - taken[0]) / (len(taken) - 1) if warm else taken[0]
        return run.recipe.epochs * run.batches.steps * step + evaluated_batches(run) * min(testing, step)


def train_options(job: Job, options: CampaignOptions | TrainOptions) -> TrainOptions:
    """Return the options of a run, which resumes the run in its folder."""
    if isinstance(options, TrainOptions):
        return replace(options, out=job.path, resume=True)
    return TrainOptions(**shared_options(options) | {"out": job.path, "resume": True})


def shared_options(options: CampaignOptions) -> dict[str, Any]:
    """Return the options of a campaign that are those of each of its runs."""
    return {name: getattr(options, name) for name in SHARED}


def train_briefly(recipe: Recipe, options: TrainOptions, stop: Stop | None = None) -> Path:
    """Run training on the first batches of one epoch and of the test set."""
    with processes(options.device, options.timeout) as world:
        run = prepare(recipe, options, world)
        run.batches = First(run.batches, BRIEF_STEPS)
        for name in ("train_batches", "val_batches", "test_batches"):
            batches: Loader | None = getattr(run.task, name)
            setattr(run.task, name, batches and First(batches, 2))
        return run_to_end(run, stop)


def run_methods(recipe: Recipe, options: CompareOptions) -> list[Job]:
    """Run every unfinished method, seed and subset; return all runs, or none while other shards run some.

    The mix, seed and subset of ``recipe`` are replaced by those of the options.
    """
    if recipe.folds:
        raise InputError("--folds is given; expected none, as cutmix compare trains on one split of the images")
    jobs = plan_methods(recipe, options)
    check_images(jobs, options)
    if options.jobs > 1:
        _run_shards(recipe, options)
    with open_campaign(jobs, options, "compare") as (own, console):
        _run_left(own, options, console)
    missing = [job.path for job in jobs if not (job.path / "results.jsonl").is_file()]
    if missing or not is_first():
        console.print(f"{len(missing)} of {len(jobs)} runs are left to other shards")
        return []
    precisions = dict.fromkeys(saved_recipe(job.path).precision for job in jobs)
    if len(precisions) > 1:  # of machines that chose it
        say(f"note: the runs were computed in {' and '.join(precisions)}; give --precision to compute all alike")
    return jobs


def plan_methods(recipe: Recipe, options: CompareOptions) -> list[Job]:
    """Return the planned runs, each once; the seed changes slowest, so that every method has a result early."""
    jobs: list[Job] = []
    alone = os.environ.get("WORLD_SIZE", "1") == "1"  # several processes would write the same files
    splits = open_splits(
        recipe.data, skip_unreadable=options.skip_unreadable, download=options.download and alone, **recipe.reading()
    )
    if splits.reported is None:
        raise InputError(f"{recipe.data} leaves no images to compare the runs on; expected --val-fraction above 0")
    data = splits.train
    refuse_inside(options.out, recipe.data)
    if recipe.mix is None:  # no note on an automatic choice, as the methods decide
        mixes = [method.partition(":")[0] for method in options.mix]
        recipe = replace(recipe, mix=next((mix for mix in mixes if mix != "none"), "none"))
    for seed in range(options.seeds):
        for count in options.train_per_class or (recipe.train_per_class,):
            images = len(data) if count is None else count * data.num_classes
            filled = fill_in(recipe, data, images)
            if options.steps is not None:
                filled = fill_in(_in_steps(recipe, filled[0], options.steps, images), data, images)
            shared, notes = filled
            if seed == 0:
                _say_once(notes)
            stem = shared.name.removesuffix(f"-{shared.mix}")
            methods = {method: with_method(shared, method) for method in options.mix}
            if not jobs:
                _say_once(list(filter(None, (note_named(one, stem, method) for method, one in methods.items()))))
            if len(set(methods.values())) < len(methods):
                raise InputError(f"--mix is {' '.join(methods)}; expected different methods, but two are the same")
            for method, recipe_of in methods.items():
                name = f"{stem}-{re.sub('[:,=]', '-', method)}" + ("" if count is None else f"-{count}-per-class")
                one = replace(recipe_of, seed=seed, train_per_class=count, name=name)
                label = method if count is None else f"{method}, {count} per class"
                jobs.append(Job(label, one, options.out / f"{name}-seed{seed}", method=method))
    return jobs


def _say_once(notes: Sequence[str]) -> None:
    """Print the settings that the data decide, before the runs and in the first process."""
    for note in notes if is_first() else ():
        say(note)


def _in_steps(recipe: Recipe, filled: Recipe, steps: int, images: int) -> Recipe:
    """Return a recipe with the epochs that make this many steps; other fields in epochs keep their share of them.

    ``filled`` has what the recipe leaves open; the rest of that will be chosen for the new epochs.
    """
    epochs = max(round(steps / math.ceil(images / filled.batch_size)), 1)
    share = epochs / filled.epochs
    whole = {name: getattr(recipe, name) for name in ("eval_every", "freeze", "patience")}
    whole = {name: max(round(share * given), min(given, 1)) for name, given in whole.items()}
    warmup = round(share * filled.warmup_epochs, 3)
    return replace(recipe, epochs=epochs, warmup_epochs=warmup, **whole)


def _run_shards(recipe: Recipe, options: CompareOptions) -> None:
    """Run shards in processes of their own, each with its share of the cores; their output goes to files."""
    threads = max(CORES // options.jobs, 1)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), TYPED: command_line()}
    make_folder(options.out)
    kept = recipe.to_dict() | shared_options(options)
    write_json(options.out / "recipe.json", {name: value for name, value in kept.items() if value is not None})
    words = ["--config", options.out / "recipe.json", "--out", options.out, "--mix", *options.mix]
    words += ["--seeds", options.seeds]
    words += ["--train-per-class", *options.train_per_class] if options.train_per_class else []
    words += ["--steps", options.steps] if options.steps else []
    running: list[subprocess.Popen[bytes]] = []
    with remembered_signals() as stop:
        try:
            for shard in range(1, options.jobs + 1):
                part = ["compare", *map(str, words), "--shard", f"{shard}/{options.jobs}"]
                output = options.out / f"shard-{shard}.txt"
                output.unlink(missing_ok=True)  # a shard of a killed command may still write to the old file
                with output.open("xb") as log:
                    command = [sys.executable, "-m", "cutmix", *part]
                    running.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
            say(f"{options.jobs} runs at a time, {threads} threads each; their output is in {options.out}/shard-N.txt")
            while any(process.poll() is None for process in running) and stop.number is None:
                time.sleep(0.1)
        finally:  # the shards save and stop
            for process in running:
                process.terminate()
            codes = [process.wait() for process in running]
    if stop.number is not None:
        say("stopped; the same command resumes")
        raise SystemExit(128 + stop.number)
    for number, code in enumerate(codes, start=1):
        if (ended := -code if code < 0 else code - 128) in [*signal.Signals]:
            raise InputError(f"shard {number} was ended by {signal.Signals(ended).name}; the same command resumes")
        if code:
            last = (options.out / f"shard-{number}.txt").read_text(encoding="utf-8", errors="backslashreplace")
            raise InputError(f"a shard failed: {(last.strip().splitlines() or ['no output'])[-1]}")


# ---- cross-validation ----


def run_folds(recipe: Recipe, options: TrainOptions) -> Results:
    """Train a recipe once for each of its folds, and return the results of each fold and their means.

    The folder gets a folder for each fold; ``results.jsonl`` with the lines of all folds and the means; and
    ``predictions/out-of-fold.npz``, the prediction for each image by the model that was not trained on it. Runs that
    were begun in the folder are resumed.
    """
    if options.overwrite:
        raise InputError("--overwrite and --folds are both given; give another --out instead")
    data = open_splits(recipe.data, skip_unreadable=options.skip_unreadable, **replace(recipe, fold=1).reading()).train
    data = data if recipe.train_per_class is None else keep_per_class(data, recipe.train_per_class)
    shared, notes = fill_in(recipe, data)
    _say_once(notes)
    out = options.out or Path("runs") / f"{shared.name}-{recipe.folds}-folds-seed{recipe.seed}"
    refuse_inside(out, recipe.data)
    jobs = [
        Job(f"{recipe.folds} folds", replace(shared, fold=k), out / f"fold-{k}") for k in range(1, recipe.folds + 1)
    ]
    check_images(jobs, options)
    with open_campaign(jobs, CampaignOptions(out=out), "folds") as (own, console):
        _run_left(own, options, console)
        if not is_first():
            return Results()
        found = Results(summarize_folds(jobs, out))
        console.print(f"results of all folds: {out / 'results.jsonl'}", soft_wrap=True, markup=False, highlight=False)
    return found


def summarize_folds(jobs: Sequence[Job], out: Path) -> list[Record]:
    """Write the predictions and the results of all folds, and return the latter.

    The mean over K folds has Student's interval with the variance (1/K + 1/(K − 1)) s², as the folds share most of
    their training images; equal values, as 0 % in each of a few small folds, have no spread and no interval.

    Source: Nadeau and Bengio 2003, "Inference for the generalization error", the corrected resampled t-test.
    """
    folds, records = len(jobs), []
    predictions = [read_arrays(job.path / "predictions/last.npz") for job in jobs]
    for k, job in enumerate(jobs, 1):
        last = [r for r in read_run(job.path).results if r.source == "training" and r.which == "last"]
        records += [replace(r, fold=f"{k} of {folds}") for r in last]
    note = "mean over the folds; the interval allows for the training images that they share (Nadeau and Bengio 2003)"
    for metric, of in dict.fromkeys((r.metric, r.of) for r in records):
        same = [r for r in records if (r.metric, r.of) == (metric, of) and r.value is not None]
        if len(same) == folds:
            mean = mean_over_runs(same, 1 / folds + 1 / (folds - 1))
            records.append(replace(
                same[0], fold=f"mean of {folds}", value=mean.value, low=mean.low, high=mean.high, few=False, note=note,
                n=sum(r.n or 0 for r in same) or None, test_images=sum(r.test_images or 0 for r in same) or None,
                epoch=None, seconds=sum(r.seconds or 0.0 for r in same) or None,
            ))  # fmt: skip
    arrays = {name: np.concatenate([each[name] for each in predictions]) for name in ("logits", "labels", "files")}
    arrays["fold"] = np.repeat(np.arange(1, folds + 1), [len(each["labels"]) for each in predictions])
    write_arrays(out / "predictions/out-of-fold.npz", arrays | {"classes": predictions[0]["classes"]})
    lines = [to_json(record.to_json()) for record in records]
    write_atomic(out / "results.jsonl", lambda file: file.writelines(lines))
    return records
