"""The demo: the same small network on embedded digits, with and without CutMix, a table and a page."""

from dataclasses import replace
from pathlib import Path

from rich.table import Table

from cutmix.config.options import DemoOptions, TrainOptions
from cutmix.config.recipes import find_recipe
from cutmix.report.compare import comparisons
from cutmix.report.summary import write_report
from cutmix.runs.read import read_runs
from cutmix.runs.record import read_records, with_interval
from cutmix.runtime.terminal import Console
from cutmix.training.loop import run_training


def run_demo(options: DemoOptions) -> Path:
    """Train both recipes, print the table of errors, and return the page's path."""
    runs = []
    for name in ("digits-resnet20", "digits-resnet20-cutmix"):
        recipe = replace(find_recipe(name), epochs=options.epochs, seed=options.seed)
        how = TrainOptions(options.out / name, overwrite=True, device=options.device, log_every=8)
        runs.append(run_training(recipe, how))
    console = Console()
    table = Table("mix", "top-1 error, % [95 % interval]", "test images", "training (s)")
    for run in runs:
        records = read_records(run / "results.jsonl")
        line = next(record for record in records if (record.metric, record.which) == ("top1_err", "last"))
        table.add_row(line.mix, with_interval(line), f"{line.n:,}", f"{line.seconds:.0f}")
    console.print(table)
    for name, sentence in comparisons(read_runs(runs)):
        console.print(f"{name}: {sentence}", highlight=False, markup=False)
    page = write_report(runs, options.out / "report.html")
    console.print(f"The page with curves and pictures: {page}", soft_wrap=True, highlight=False)
    return page
