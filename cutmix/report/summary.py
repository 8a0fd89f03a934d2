"""One self-contained page of finished and unfinished runs: `write_report(runs, out)`.

The page is a list of sections. A section is a function that takes the runs and returns its title, its anchor and its
HTML, or None when the runs give it nothing to show; it is added by writing it and naming it in `SECTIONS`.
"""

import re
from collections.abc import Sequence
from datetime import date
from itertools import count
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cutmix import __version__
from cutmix.config.tasks import backbone_in_words
from cutmix.errors import InputError, counted
from cutmix.paper.compare import footnotes, merged, of_run, rows_run, sheets, sweeps
from cutmix.paper.tables import TABLES, find_tables
from cutmix.report.compare import calibration_findings, comparisons, pairs, verdict
from cutmix.report.figures import Curve, key, learning_curves, lines
from cutmix.report.mistakes import show_mistakes
from cutmix.report.page import HTML, Row, Section, figure
from cutmix.report.suites import (
    attention,
    calibration,
    captioning,
    definitions,
    detection,
    labels,
    localization,
    out_of_distribution,
    paper_of_transfer,
    robustness,
)
from cutmix.runs.outcomes import estimate
from cutmix.runs.read import MAIN, Run, differing_fields, groups, read_runs, tested_alike
from cutmix.runs.record import Record, with_interval
from cutmix.runtime.files import make_folder, write_atomic
from cutmix.statistics import in_words


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write one HTML page about finished and unfinished runs; it needs no script, no connection and no other file.

    An existing file is replaced atomically.
    """
    loaded = read_runs([Path(run) for run in runs])
    sections = [made for section in SECTIONS if (made := section(loaded)) is not None]
    page = _distinct_ids(HTML.page(*_titles(loaded), sections))
    out = Path(out)
    if out.is_dir():
        raise InputError(f"{out} is a folder; give the name of the page, for example {out / 'report.html'}")
    make_folder(out.parent)
    write_atomic(out, lambda file: file.write(page.encode("utf-8", "backslashreplace")))
    return out


def summarize(runs: Sequence[Run]) -> Section:
    """Return the verdict, then a sentence for each recipe, each finding and each unfinished run."""
    items = [Markup("<strong>{}</strong>: {}").format(*each) for each in comparisons(runs) + calibration_findings(runs)]
    items += [_unfinished(run) for run in runs if not run.finished]
    items += [_only_suites(run) for run in runs if run.finished and _line(run) is None]
    finding = verdict(runs)
    brief = [(run.label, steps) for run in runs if run.finished and 0 < (steps := _steps(run)) < _FEW_STEPS]
    body = Markup("")
    if brief:
        those = ", ".join(f"{label} ({counted(steps, 'step')})" for label, steps in brief)
        body += HTML.note(f"Trained for so few steps that the results mean little: {those}.")
    body += Markup(HTML.lead(finding)) if finding else Markup("")
    if any(_tested_apart([run for run in runs if run.task == task]) for task in MAIN):
        body += HTML.note("The runs have different test images; results on different images are not comparable.")
    return Section("Summary", "summary", body + HTML.sentences(items))


_FEW_STEPS = 100


def _steps(run: Run) -> int:
    """Return the number of optimizer steps of a run; 0 where nothing was trained."""
    return int(run.epochs[-1].get("step", 0)) if run.epochs else 0


def results(runs: Sequence[Run]) -> Section | None:
    """Return the errors with their intervals, the last epoch apart from the best."""
    runs = [run for run in runs if run.task == "classification"]
    if not runs:
        return None
    trained_here = [run for run in runs if not run.evaluated]
    chosen = [run for run in trained_here if run.result("top1_err", "best") is not None or not run.finished]
    captions = {
        "last": "Last epoch: the model at the end of training",
        "best": _how_chosen(chosen),
        "file": "Weights from a file",
    }
    header = [
        "Run",
        "Top-1 error, % [95\u00a0%\u00a0interval]",
        "Top-5 error, %",
        "Test images",
        "Test set",
        "Epoch",
        "Weights",
    ]
    shown = {"last": trained_here, "best": chosen, "file": [run for run in runs if run.evaluated]}
    tables = [
        HTML.table(
            captions[which],
            header,
            [row for same in groups(members).values() for row in _error_rows(same, which.replace("file", "last"))],
        )
        for which, members in shown.items()
        if members
    ]
    return Section("Results", "results", Markup("\n").join(tables))


def _how_chosen(runs: Sequence[Run]) -> str:
    """Return the caption of the best epochs, which tells whether their errors are optimistic."""
    lines = [line for run in runs if (line := run.result("top1_err", "best"))]
    if lines and all(line.chosen_on == "val" for line in lines):
        if all(line.split != "val" for line in lines):
            return "Best epoch: chosen on the validation images, evaluated on the test images"
        return "Best epoch: optimistic where the validation images that chose it are also the test images"
    return "Best epoch: chosen on the test set, hence optimistic; for comparison with papers that report it"


def error_curves(runs: Sequence[Run]) -> Section | None:
    """Return error and training loss by epoch, all runs in the same plots; the seeds of a recipe share a style."""
    splits = {entry.get("split", "test") for run in runs for entry in run.epochs if "top1_err" in entry}
    evaluated = "Validation error" if splits == {"val"} else "Error" if "val" in splits else "Test error"
    caption = (
        f"{evaluated} is evaluated after an epoch. Training loss is the mean over an epoch’s batches; a loss against "
        "mixed labels is not comparable with one against plain labels."
    )
    if any(run.recipe.get("mix") == "smmix" for run in runs):
        caption += " SMMix’s is a sum of three losses, and not comparable with either."
    (figure2,) = find_tables("figure2")
    if {str(run.recipe.get("name")).partition("+")[0] for run in runs} & {row.recipe for row in figure2.rows}:
        caption += " Figure 2 of the paper shows these curves for its baseline and CutMix, without printed values."
    styles = {group: style for style, group in enumerate(groups(runs))}
    figures = (evaluated, "top1_err", "top-1 error, %"), ("Training loss", "train_loss", "loss")
    body = learning_curves([run for run in runs if run.task == "classification"], styles, figures, caption)
    return Section("Error curves", "error-curves", body) if body else None


def paired_comparisons(runs: Sequence[Run]) -> Section | None:
    """Return the runs that differ on the same test images by more than chance."""
    rows = [
        Row(f"{pair.first}, {pair.second}", [f"{pair.counts.first:,}", f"{pair.counts.second:,}", in_words(pair.p)])
        for pair in pairs(runs)
    ]
    if not rows:
        return None
    header = ["Runs", "Only the first right", "Only the second right", "Exact McNemar test, Holm-adjusted"]
    caption = "Pairs of runs, image by image, after the last epoch"
    if len({run.recipe.get("seed") for run in runs}) > 1:
        caption += "; p is that of the two models of a row, the summary has that of all seeds"
    return Section("In pairs", "in-pairs", HTML.table(caption, header, rows))


def paper_tables(runs: Sequence[Run]) -> Section | None:
    """Return the paper's tables and figures with a row that was run, and its numbers where the protocol is the same."""
    ours = merged(map(of_run, runs))
    known = {table: rows for table in TABLES if not table.command and (rows := rows_run(table, ours))}
    more = [table for table, rows in known.items() if not all(row.is_baseline for row in rows)]
    shown = more or [*known][:1]  # a baseline is a row of many tables
    if not shown:
        return None
    body = Markup("\n").join(
        HTML.table(sheet.caption, sheet.header, [Row(name, cells) for name, *cells in sheet.rows])
        for table in shown
        for sheet in sheets(table, ours)[0]
    )
    return Section("The paper’s tables", "paper", body + HTML.sentences(footnotes(shown)))


def paper_sweeps(runs: Sequence[Run]) -> Section | None:
    """Return the paper's figure 3: the error by α and by layer, with the baseline of the same protocol."""
    ours = merged(map(of_run, runs))
    legend: dict[str, int] = {}
    plots = []
    for name, axis in (("figure3-alpha", "α"), ("figure3-layer", "layer")):
        (table,) = find_tables(name)
        curves, descriptions = [], []
        for sweep in sweeps(table, ours):
            xs, ys = zip(*sweep.points, strict=True)
            names = [(sweep.how or "the paper’s protocol", xs, ys)]
            if sweep.baseline is not None:
                names.append((f"baseline ({names[0][0]})", (xs[0], xs[-1]), (sweep.baseline,) * 2))
            curves += [Curve(x, y, legend.setdefault(label, len(legend))) for label, x, y in names]
            descriptions.append(f"{names[0][0]}: " + ", ".join(f"{y:.1f} at {x:g}" for x, y in sweep.points))
        if curves:
            alt = f"Top-1 error by {axis}. {'; '.join(descriptions)}."
            plots.append(
                (table.heading.partition(": ")[2], lines(curves, xlabel=axis, ylabel="top-1 error, %", alt=alt))
            )
    if not plots:
        return None
    caption = "Figure 3 of the paper: last epoch, mean over seeds. The paper prints no values to compare with."
    return Section("Sweeps", "sweeps", HTML.curves([(key(s), name) for name, s in legend.items()], plots, caption))


def sample_mixes(runs: Sequence[Run]) -> Section | None:
    """Return mixed training images of each run."""
    images = [_image(run, run.samples) for run in runs if run.samples is not None]
    return Section("Sample mixes", "sample-mixes", HTML.images(images)) if images else None


def method_definitions(runs: Sequence[Run]) -> Section:
    """Return the definitions of everything on the page."""
    errors = any(run.task == "classification" for run in runs)
    return Section("Definitions", "definitions", HTML.definitions(definitions(runs), errors))


_LEARNERS = {
    "classification": "the classifiers", "multilabel": "the classifiers with several labels an image",
    "detection": "the detectors", "captioning": "the captioners",
}  # fmt: skip


def provenance(runs: Sequence[Run]) -> Section:
    """Return the recipes and the circumstances of every run."""
    classifiers = [run for run in runs if run.task in ("classification", "multilabel")]
    recipes = [
        Row(run.label, [status(run), *map(_text, (run.recipe.get("name"), run.data, run.recipe.get("model"),
            run.fact("parameters"), run.recipe.get("mix"), run.recipe.get("epochs"), run.recipe.get("seed")))])
        for run in classifiers
    ]  # fmt: skip
    circumstances = [
        Row(run.label, [*map(_text, (run.fact("date"), run.fact("device"), run.fact("torch"), run.fact("commit"))),
            _duration(run)])
        for run in runs
    ]  # fmt: skip
    transferred = [run for run in runs if run not in classifiers]
    body = Markup("")
    if recipes:
        header = ["Run", "Status", "Recipe", "Data", "Model", "Parameters", "Mix", "Epochs", "Seed"]
        body += HTML.table("Every classifier" if transferred else "Every run", header, recipes)
    if transferred:
        header = ["Run", "Status", "Data", "What", "Backbone", "Parameters", "Epochs", "Seed"]
        body += HTML.table("Every detector and captioner", header, [_transferred(run) for run in transferred])
    body += _origins(runs)
    for task in _LEARNERS:
        body += _recipe_differences([run for run in runs if run.task == task])
    body += HTML.table(
        "Circumstances of each run",
        ["Run", "Date", "Device", "torch", "Commit", "Training time"],
        circumstances,
    )
    return Section("Provenance", "provenance", body + HTML.commands(runs))


def _transferred(run: Run) -> Row:
    """Return the row of a detector or a captioner."""
    what = {"ssd300": "SSD300", "faster-rcnn": "Faster R-CNN"}.get(str(run.recipe.get("arch")), "Show and Tell")
    what += ", tuned" if run.recipe.get("tune_encoder") else ""
    weights = backbone_in_words(str(run.recipe.get("backbone")))
    trained_by = run.fact("backbone_recipe")
    if trained_by not in (None, weights):
        weights += f" ({trained_by})"
    facts = run.fact("parameters"), run.recipe.get("epochs"), run.recipe.get("seed")
    return Row(
        run.label,
        [status(run), run.data, what, f"{run.recipe.get('model')}, {weights}", *map(_text, facts)],
    )


def _origins(runs: Sequence[Run]) -> Markup:
    """Return the origin of evaluated files of weights."""
    items = [
        Markup("<strong>{}</strong>: the weights are those of the file <code>{}</code>. {}").format(
            run.label,
            run.evaluated,
            "The recipe is read from the header of the file."
            if "epochs" in run.recipe
            else "How they were trained is not "
            "known here, so normalization and test images may differ from those of their training.",
        )
        for run in runs
        if run.evaluated
    ]
    return Markup(HTML.sentences(items)) if items else Markup("")


def _recipe_differences(runs: Sequence[Run]) -> Markup:
    runs = [run for run in runs if not run.evaluated]
    firsts = {name: members[0] for name, members in groups(runs).items()}
    fields = differing_fields([*firsts.values()])
    if not fields:
        return Markup("")
    rows = [Row(field, [_text(run.recipe.get(field)) for run in firsts.values()]) for field in fields]
    caption = f"Fields in which the recipes of {_LEARNERS[runs[0].task]} differ; every other one is the same"
    return Markup(HTML.table(caption, ["Field", *firsts], rows))


def status(run: Run) -> str:
    """Return the progress of a run."""
    if run.evaluated:
        return "weights from a file"
    if run.finished:
        return "finished"
    reached = f"epoch {run.epochs[-1]['epoch']} of {run.recipe.get('epochs')}" if run.epochs else "no epoch logged"
    return f"unfinished, {reached}"


def _duration(run: Run) -> str:
    if run.evaluated:
        return "–"
    so_far = run.epochs[-1].get("seconds") if run.epochs else None  # of all epochs up to this one
    seconds = (run.fact("seconds") if run.finished else None) or so_far
    if not seconds:
        return "not recorded"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _text(value: Any) -> str:
    """Return a field of a recipe or a circumstance as text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and value >= 10_000:
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return str(value)


SECTIONS = (
    summarize, show_mistakes, results, labels, paired_comparisons, error_curves, calibration, robustness,
    out_of_distribution, localization, attention, detection, captioning, paper_tables, paper_sweeps, paper_of_transfer,
    sample_mixes, method_definitions, provenance,
)  # fmt: skip


def _distinct_ids(page: str) -> str:
    """Return the page with the ids inside its drawings numbered, as the same drawing may be there twice."""
    number = count()
    return re.sub(
        r"<svg .*?</svg>", lambda svg: re.sub(r"\bf[0-9a-f]{8}-", f"f{next(number)}-", svg[0]), page, flags=re.DOTALL
    )


def _titles(runs: Sequence[Run]) -> tuple[str, str]:
    """Return the title, with the names of few runs, and the subtitle."""
    data = ", ".join(dict.fromkeys(run.data for run in runs))
    shown = ", ".join(run.label for run in runs) if len(runs) <= 3 else f"{len(runs)} runs"
    written = f"written {date.today().isoformat()} by cutmix {__version__}"
    return f"{data}: {shown}", f"{counted(len(runs), 'run')} on {data} · {written}"


def _line(run: Run) -> Record | None:
    """The record of the metric by which runs of its task are compared."""
    return run.result(MAIN[run.task].metric, "last")


def _tested_apart(runs: Sequence[Run]) -> bool:
    sizes = {line.n for run in runs if (line := _line(run)) and line.n}
    return len({run.data for run in runs}) > 1 or len(sizes) > 1 or not tested_alike(runs)


def _unfinished(run: Run) -> Markup:
    text = f": {status(run)}, so it does not enter the comparison"
    metric, label, unit = MAIN[run.task]
    evaluated = [entry for entry in run.epochs if entry.get(metric) is not None]
    if evaluated:
        text += f" ({label} after epoch {evaluated[-1]['epoch']}: {evaluated[-1][metric]:.1f}{unit})"
    return Markup("<strong>{}</strong>{}.").format(run.label, text)


def _only_suites(run: Run) -> Markup:
    suites = dict.fromkeys(line.suite for line in run.results if line.suite)
    if run.untested and not suites:
        text = "<strong>{}</strong>: trained on all images, none of which are left to evaluate: no test result."
        return Markup(text).format(run.label)
    text = "<strong>{}</strong>: top-1 error not run; other results are below ({})."
    return Markup(text).format(run.label, ", ".join(suites))


def _error_rows(members: Sequence[Run], which: str) -> list[Row]:
    """A row for each run of a recipe, and one for their mean when there are several."""
    rows = []
    for run in members:
        line = run.result("top1_err", which)
        n, epoch = (line.n, line.epoch) if line else (None, None)
        chosen = f" (chosen on {line.chosen_on})" if line and line.chosen_on else ""
        rows.append(
            Row(
                run.label if run.finished else f"{run.label} (unfinished)",
                [
                    with_interval(line),
                    _top5(run, which),
                    "not run" if n is None else f"{n:,}",
                    f"{line.data} {line.split}" if line else run.data,
                    ("–" if run.evaluated else "not run") if epoch is None else f"{epoch}{chosen}",
                    {"ema": "averaged (EMA)", "model": "model"}[line.weights] if line else "not run",
                ],
            )
        )
    means = [estimate(members, metric, which) for metric in ("top1_err", "top5_err")]
    if means[0] and means[0].count > 1:
        name = f"{members[0].group}: mean of {means[0].count} runs"
        top5 = _top5(members[0], which) if means[1] is None else with_interval(means[1])
        rows.append(Row(name, [with_interval(means[0]), top5, "", "", "", ""], strong=True))
    return rows


def _top5(run: Run, which: str) -> str:
    """Return the top-5 error, which five classes or fewer do not have."""
    top1 = run.result("top1_err", which)
    if top1 is not None and top1.classes is not None and top1.classes <= 5:
        return "not applicable"
    return with_interval(run.result("top5_err", which))


def _image(run: Run, png: bytes) -> dict[str, Any]:
    mix = run.recipe.get("mix", "none")
    return figure(
        png,
        run.folder / "samples.png",
        alt=f"Grid of training images of {run.label} as they enter the model, mix: {mix}",
        caption=f"{run.label}: training images as they enter the model (mix: {mix})",
    )
