"""``cutmix compare``: does mixing help on these images? Trains every method and seed, then says so in words."""

import os
import subprocess
import sys
from dataclasses import replace

from cutmix.comparison.verdict import Comparisons, compare_runs
from cutmix.config.options import WORKERS, CompareOptions
from cutmix.config.recipe import Recipe, complete
from cutmix.data import FileSet, open_data
from cutmix.errors import InputError
from cutmix.report.summary import write_report
from cutmix.runs.folder import write_json
from cutmix.runtime.terminal import say
from cutmix.training.campaign import Job, is_first, open_campaign, print_plan, run_jobs
from cutmix.training.mixes import make_mix


def run_compare(recipe: Recipe, options: CompareOptions) -> Comparisons:
    """Run what is not finished of each method, seed and subset, and return a comparison with the baseline each.

    Args:
        recipe: What all runs share; its mix, seed and subset are those of the options.
        options: Methods, seeds and subsets.

    Raises:
        InputError: If recipe, data or folder do not fit, or runs failed; the others were run nevertheless.
        SystemExit: After SIGTERM or Ctrl-C; the same command resumes.
    """
    jobs = plan(recipe, options)
    for job in jobs:
        make_mix(job.recipe)  # refuses a method that does not exist
    if options.jobs > 1:
        _run_shards(recipe, options)
    with open_campaign(jobs, options, "compare") as (own, console):
        left = sum(job.done < 1 for job in own)
        if left:
            print_plan(own, options, console)
        failures = run_jobs(own, options, console)
        if failures:
            raise InputError(f"{len(failures)} of {left} runs failed, the first being {failures[0]}")
    missing = [job.path for job in jobs if not (job.path / "results.jsonl").is_file()]
    if missing or not is_first():
        console.print(f"{len(missing)} of {len(jobs)} runs are left to other shards")
        return Comparisons()
    found = Comparisons(compare_runs(jobs, options.mix[0]))
    write_json(options.out / "comparison.json", [one.to_json() for one in found])
    found.page = write_report([job.path for job in jobs], options.out / "report.html")
    return found


def plan(recipe: Recipe, options: CompareOptions) -> list[Job]:
    """Return every run, each once; the seed changes slowest, so that each method is soon seen."""
    jobs = []
    data = open_data(recipe.data, "train", val_fraction=recipe.val_fraction, seed=recipe.split_seed)
    classes, files = data.num_classes, isinstance(data, FileSet)
    for seed in range(options.seeds):
        for count in options.train_per_class or (recipe.train_per_class,):
            images = len(data) if count is None else count * classes
            shared, _ = complete(recipe, images=images, classes=classes, files=files)
            stem = shared.name.removesuffix(f"-{shared.mix}")
            for mix in options.mix:
                name = f"{stem}-{mix}" if count is None else f"{stem}-{mix}-{count}-per-class"
                one = replace(shared, mix=mix, seed=seed, train_per_class=count, name=name)
                jobs.append(
                    Job(mix if count is None else f"{mix}, {count} a class", one, options.out / f"{name}-seed{seed}")
                )
    return jobs


def _run_shards(recipe: Recipe, options: CompareOptions) -> None:
    """Run shards in processes of their own, each with its share of the cores; their output goes to files."""
    threads = max(WORKERS // options.jobs, 1)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    options.out.mkdir(parents=True, exist_ok=True)
    kept = recipe.to_dict()
    write_json(options.out / "recipe.json", {name: value for name, value in kept.items() if value is not None})
    words = ["--config", options.out / "recipe.json", "--out", options.out, "--mix", *options.mix]
    words += ["--seeds", options.seeds, "--device", options.device, "--workers", options.workers]
    words += ["--train-per-class", *options.train_per_class] if options.train_per_class else []
    words += ["--download"] if options.download else []
    running = []
    for shard in range(1, options.jobs + 1):
        log = open(options.out / f"shard-{shard}.txt", "w", encoding="utf-8")  # noqa: SIM115
        command = [sys.executable, "-m", "cutmix", "compare", *map(str, words), "--shard", f"{shard}/{options.jobs}"]
        running.append((subprocess.Popen(command, stdout=log, stderr=log, env=environment), log))
    say(f"{options.jobs} runs at a time, {threads} threads each; their output is in {options.out}/shard-N.txt")
    try:
        codes = [process.wait() for process, _ in running]
    except BaseException:  # Ctrl-C or a signal: the runs save and stop
        for process, _ in running:
            process.terminate()
        for process, _ in running:
            process.wait()
        raise
    finally:
        for _, log in running:
            log.close()
    if any(codes):
        last = (options.out / f"shard-{codes.index(next(filter(None, codes))) + 1}.txt").read_text(encoding="utf-8")
        raise InputError(f"a shard failed: {(last.strip().splitlines() or ['no output'])[-1]}")
