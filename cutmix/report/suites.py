"""The report card: a section of the page for each suite and task of transfer, the runs side by side. No torch here."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from cutmix.config.recipes import RECIPES
from cutmix.config.tasks import SUITES, Paired
from cutmix.paper.compare import merged, of_run, sheets
from cutmix.paper.tables import Table, find_tables
from cutmix.report.figures import curves, histograms, learning_curves, reliability_of, suite_figures
from cutmix.report.metrics import METRICS, Metric, metric_of
from cutmix.report.page import (
    HTML,
    Card,
    Definition,
    Key,
    Row,
    Section,
    anchor,
    cell,
    figure,
    gather,
    is_mean,
    link,
    name,
    notes,
    refusals,
    table,
    table_of_checks,
    table_of_sets,
    whole_of,
)
from cutmix.report.paired import Compared, against_baseline, differences
from cutmix.runs.outcomes import seed_difference
from cutmix.runs.read import Run, groups
from cutmix.runs.record import with_interval
from cutmix.runtime.files import regular
from cutmix.statistics import Difference, holm, in_words


def calibration(runs: Sequence[Run]) -> Section | None:
    """Return the calibration before and after a temperature."""
    card = gather(runs, "calibration")
    if card is None:
        return None
    held_out = [row for row in card.rows if row.of or row.name == "temperature"]
    body = refusals(card)
    overall = [row for row in card.rows if row not in held_out]
    body += table(card, f"Confidence against accuracy, {_of_the_test_set(card, overall)}", overall)
    body += reliability_of(card)
    body += table(card, "Before and after a temperature, on held-out test images", held_out)
    body += differences_of(card) + suite_figures(card)
    return Section(SUITES[card.suite].title, card.suite, body)


def _of_the_test_set(card: Card, rows: Sequence[Key]) -> str:
    """Return "on all test images", or the number of images of a subset."""
    parts = {(line.n, whole_of(line)) for row in rows for line in card.rows[row].values()}
    if any(whole for _, whole in parts):
        return "on " + " and ".join(f"{n:,} of {whole or n:,}" for n, whole in sorted(parts) if n) + " test images"
    return "on all test images"


def robustness(runs: Sequence[Run]) -> Section | None:
    """Return the errors under attacks, occlusion, mixtures and corruptions."""
    card = gather(runs, "robustness")
    if card is None:
        return None
    sweeps, main = card.sweeps(), {row.at for row in card.rows if row.name == "noise_err"}
    attacked, checks, corrupted = [], [], []
    for row in card.rows:
        if metric_of(row.name).check:
            checks.append(row)
        elif row.name in ("corruption_mean_err", "mean_corruption_err", "corruption_ce", "mean_corruption_ce"):
            corrupted.append(row)
        elif (row.name, row.of) not in sweeps or (row.name == "fgsm_err" and row.at in main):
            attacked.append(row)
    kinds = {same: rows for same, rows in sweeps.items() if same[0] == "corruption_err"}
    body = refusals(card) + table(card, "Errors on unchanged images, under attack and under noise", attacked)
    body += table_of_checks(card, "Checks: are the attacks sound?", checks)
    body += differences_of(card)
    body += curves(card, {same: rows for same, rows in sweeps.items() if same not in kinds})
    body += table(card, "Published corruptions", corrupted) + curves(card, kinds, small=True)
    body += suite_figures(card) + _beside_paper_of(card)
    return Section(SUITES[card.suite].title, card.suite, body)


def out_of_distribution(runs: Sequence[Run]) -> Section | None:
    """Return the out-of-distribution detection by the confidence and by other scores."""
    card = gather(runs, "ood")
    if card is None:
        return None
    body = refusals(card)
    main = [[row for row in card.rows if row.name == each] for each in ("ood_auroc", "ood_tnr95", "ood_detection_acc")]
    for rows in main:
        if rows:
            caption = (
                f"{metric_of(rows[0].name).label} of the largest softmax probability, test images against other images"
            )
            body += table_of_sets(card, caption, rows)
    body += notes(card, [row for rows in main for row in rows]) + differences_of(card) + histograms(card)
    others = [row for row in card.rows if all(row not in rows for rows in main)]
    mean = [row for row in others if is_mean(row)]
    each_set = [row for row in others if row not in mean]
    if mean:
        body += table(card, "Other metrics and scores, mean of the sets", mean)
        folded = table(card, "Other metrics and scores, each set", each_set, with_notes=False)
        body += HTML.folded("Other metrics and scores, each set", folded) if each_set else ""
    else:
        body += table(card, "Other metrics and scores", each_set, with_notes=False)
    body += suite_figures(card) + _beside_paper_of(card)
    return Section(SUITES[card.suite].title, card.suite, body)


def localization(runs: Sequence[Run]) -> Section | None:
    """Return the agreement of boxes from class activation maps with true boxes."""
    card = gather(runs, "localization")
    if card is None:
        return None
    body = refusals(card) + table(card, "Boxes from class activation maps", list(card.rows))
    body += differences_of(card) + suite_figures(card)
    return Section(SUITES[card.suite].title, card.suite, body + (_beside_paper_of(card) if card.rows else Markup("")))


def labels(runs: Sequence[Run]) -> Section | None:
    """Return the metrics of images with several labels, and of each label."""
    card = gather(runs, "labels")
    if card is None:
        return None
    body = refusals(card) + table(card, "All labels, after the last epoch", [row for row in card.rows if not row.of])
    for metric in ("label_ap", "label_f1", "label_threshold"):
        body += table_of_sets(card, f"{metric_of(metric).label}: each label", [
            row for row in card.rows if row.name == metric
        ])  # fmt: skip
    return Section(SUITES[card.suite].title, card.suite, body)


def definitions(runs: Sequence[Run]) -> list[tuple[str, list[Definition]]]:
    """Return the definitions of the metrics on the page, by section."""
    found = []
    compared: dict[str, Definition] = {}
    for suite, about in SUITES.items():
        card = gather(runs, suite)
        if card is None or not card.rows:
            continue
        names = dict.fromkeys(row.name for row in card.rows if row.name in METRICS)
        if not names:
            continue
        entries = [Definition(anchor(name), METRICS[name].label, _definition(METRICS[name])) for name in names]
        found.append((about.title, entries))
        if against_baseline([run for run in card.runs if run.arrays(suite).is_file()]):
            how, _ = _PAIRED[about.paired]
            compared[how.anchor] = how
    return found + ([("Differences between runs", list(compared.values()))] if compared else [])


def differences_of(card: Card) -> Markup:
    """Return the difference of each run to the baseline, with paired intervals."""
    found = differences(card.runs, card.suite)
    if not found:
        return Markup("")
    labels = list(dict.fromkeys(one.run for one in found))
    rows: dict[Key, dict[str, Difference]] = {}
    for one in found:
        rows.setdefault(Key(one.name, one.of, one.at), {})[one.run] = one.difference
    shown = [
        Row(name(row), [_difference(row, by_run[label]) if label in by_run else "not run" for label in labels])
        for row, by_run in rows.items()
    ]
    baselines = ", ".join(dict.fromkeys(one.baseline for one in found))
    caption = f"Difference to {baselines} on the same images, in points [95\u00a0%\u00a0paired interval]"
    how, interval = _PAIRED[SUITES[card.suite].paired]
    note = Markup("{}: the interval is {}. The differences are between these weights; another seed would move them.")
    about = [note.format(link(how.anchor, how.term), interval)]
    if len(found) > 1:
        about.append(
            Markup(
                "p is adjusted by Holm’s method for the {} differences here, the intervals are not: one may exclude "
                "0 where p says not significant."
            ).format(len(found))
        )
    return (
        Markup(HTML.table(caption, ["Metric", *labels], shown)) + Markup(HTML.notes(about)) + _over_seeds(card, found)
    )


def _over_seeds(card: Card, found: Sequence[Compared]) -> Markup:
    """Return the mean difference of each recipe to the baseline over the seeds that both have."""
    runs = {run.label: run for run in card.runs}
    gains: dict[tuple[Key, str], dict[Any, float]] = {}
    for one in found:
        run, seed = runs[one.run], runs[one.run].recipe.get("seed")
        if seed == runs[one.baseline].recipe.get("seed") and not run.recipe.get("folds"):
            gains.setdefault((Key(one.name, one.of, one.at), run.group), {})[seed] = one.difference.value
    several = {key: [*by_seed.values()] for key, by_seed in gains.items() if len(by_seed) > 1}
    tested = {key: seed_difference(values, [0.0] * len(values)) for key, values in several.items()}
    if not tested:
        return Markup("")
    adjusted = dict(zip(tested, holm([one.p for one in tested.values()]), strict=True))

    def shown(row: Key, group: str) -> str:
        if (one := tested.get((row, group))) is None:
            return "fewer than two seeds"
        form = f"+.{metric_of(row.name).digits}f"
        return f"{with_interval(one, form)}, {one.seeds} seeds, {in_words(adjusted[row, group])}"

    recipes = list(dict.fromkeys(group for _, group in tested))
    rows = [Row(name(row), [shown(row, group) for group in recipes]) for row in dict.fromkeys(row for row, _ in tested)]
    note = (
        "The mean of the differences above over the seeds that both recipes have, with Student’s t interval; the "
        "test images are taken as given. p is adjusted by Holm’s method for this table."
    )
    caption = "Mean difference over seeds, in points [95\u00a0% interval over seeds]"
    return Markup(HTML.table(caption, ["Metric", *recipes], rows)) + Markup(HTML.note(note))


def _difference(row: Key, found: Difference) -> str:
    return f"{with_interval(found, f'+.{metric_of(row.name).digits}f')}, {in_words(found.p)}"


def _beside_paper_of(card: Card) -> Markup:
    """Return the paper's results of a suite beside those of the runs; nothing where no run has the paper's data."""
    (table,) = find_tables(SUITES[card.suite].paper)
    data = {RECIPES[row.recipe].data for row in table.rows if row.recipe in RECIPES}
    return beside_paper(table, card.runs) if data & {run.data for run in card.runs} else Markup("")


def beside_paper(table: Table, runs: Sequence[Run]) -> Markup:
    """Return a table of the paper beside the runs by its protocol, and the differences of other runs of its rows."""
    made, differing = sheets(table, merged(map(of_run, runs)))
    body = Markup("")
    for sheet in made:
        body += HTML.table(sheet.caption, sheet.header, [Row(first, cells) for first, *cells in sheet.rows])
    return body + HTML.notes([*differing, *table.remarks, f"Run by: {table.command}"])


def _definition(metric: Metric) -> str:
    return f"{metric.definition} {metric.better.capitalize()} is better." if metric.better else metric.definition


# How two runs are compared in pairs: the definition of the difference, and its interval.
_PAIRED: dict[Paired, tuple[Definition, str]] = {
    "ece": (
        Definition(
            "paired-ece",
            "Difference of ECE",
            "The interval is the percentiles of 2,000 seeded resamples of the images, drawn in pairs and moved so that "
            "their mean is the observed difference, as noise increases ECE; p is twice the share of resamples at or "
            "beyond zero (Efron and Tibshirani 1993).",
        ),
        "the paired bootstrap’s",
    ),
    "rates": (
        Definition(
            "paired-rates",
            "Difference of rates",
            "The share of the images on which only the one run is wrong less the share on which only the other is. The "
            "interval is Wald’s for matched pairs with half an image added to each of the four cells (Agresti and Min "
            "2005); p is McNemar’s exact test, adjusted by Holm’s method for all differences of the section.",
        ),
        "Agresti and Min’s, p McNemar’s exact one",
    ),
    "auroc": (
        Definition(
            "paired-auroc",
            "Difference of AUROC",
            "DeLong’s method: its variance is that of the differences of each image’s own part in the two areas, over "
            "the test images and over the others; interval and p are the normal distribution’s (DeLong et al. 1988; "
            "Sun and Xu 2014).",
        ),
        "DeLong’s, and so is p",
    ),
    "resampled": (
        Definition(
            "paired-images",
            "Difference of mAP or of captions’ scores",
            "The interval is the percentiles of seeded resamples of the test images, 2,000 for detectors and 5,000 for "
            "captioners, drawn in pairs; p is twice the share of resamples at or beyond zero (Efron and Tibshirani "
            "1993). An image’s detections are judged once; CIDEr-D’s weights stay those of all images.",
        ),
        "the paired bootstrap’s",
    ),
}


# ---- transfer card ----
# The sections of the page about detectors and captioners, the runs side by side. No torch here.

_LOSS = (
    "The loss is the mean over an epoch’s batches: the sum of a detector’s training losses, or the cross-entropy "
    "of the words. It is not comparable between architectures. The test images are evaluated after some epochs only."
)


def detection(runs: Sequence[Run]) -> Section | None:
    """Return the average precision of detectors."""
    card = gather(runs, "detection")
    tables = Markup("")
    if card is not None:
        classes = [row for row in card.rows if row.name == "ap"]
        tables += table(card, "Average precision after the last epoch", [r for r in card.rows if r not in classes])
        tables += differences_of(card) + _per_class(card)
    return _section(runs, "detection", tables, ("mAP on the test images", "map", "mAP, %"))


def captioning(runs: Sequence[Run]) -> Section | None:
    """Return the scores of captions against reference captions."""
    card = gather(runs, "captioning")
    tables = Markup("")
    if card is not None:
        tables += table(card, "Scores against the reference captions, after the last epoch", list(card.rows))
        tables += differences_of(card)
    return _section(runs, "captioning", tables, ("CIDEr-D on the test images", "cider_d", "CIDEr-D × 100"))


def paper_of_transfer(runs: Sequence[Run]) -> Section | None:
    """Return the paper's tables of transfer beside runs on its data, recognized by the number of test images."""
    tested = {(run.task, record.n) for run in runs for record in run.results}
    tables = [
        table
        for name in ("table10", "tablea2")
        for table in find_tables(name)
        if any(
            ("detection" if row.metrics == ("map",) else "captioning", row.test_images) in tested for row in table.rows
        )
    ]
    if not tables:
        return None
    body = Markup("").join(beside_paper(table, runs) for table in tables)
    return Section("The paper’s transfer", "paper-transfer", body)


def _section(runs: Sequence[Run], task: str, tables: Markup, figure: tuple[str, str, str]) -> Section | None:
    """Return a task's section: its tables, learning curves and images; None without a run of the task."""
    styles = {group: style for style, group in enumerate(groups(runs))}
    runs = [run for run in runs if run.task == task]
    if not runs:
        return None
    figures = [("Training loss", "train_loss", "loss"), figure]
    if not any(sum(figure[1] in entry for entry in run.epochs) > 1 for run in runs):
        figures.pop()  # one point does not make a curve
    curves = learning_curves(runs, styles, figures, _LOSS)
    return Section(SUITES[task].title, task, tables + curves + _transfer_figures(runs))


def _per_class(card: Card) -> Markup:
    """Return the average precision of each class and the number of its objects, a class a row."""
    rows, metric = [], metric_of("ap")
    for row, found in card.rows.items():
        if row.name == "ap":
            counts = " to ".join(f"{n:,}" for n in sorted({line.n or 0 for line in found.values()}))
            rows.append(Row(row.of, [*(cell(metric, found.get(run.label)) for run in card.runs), counts]))
    if not rows:
        return Markup("")
    header = [link("metric-ap", "Class"), *(run.label for run in card.runs), "Objects"]
    made = HTML.table("Average precision of each class, %; classes without test objects are left out", header, rows)
    return Markup(HTML.folded("Average precision of each class", made) if len(rows) > 30 else made)


_DRAWN = {
    "detections": "solid: objects; dotted: difficult objects, which do not count; dashed: detections with a score "
    "of 0.5 or more, or as many as there are objects",
    "captions": "bold: the model’s caption; below: two reference captions",
}


def _transfer_figures(runs: Sequence[Run]) -> Markup:
    """Return the test images that each run drew."""
    items = []
    for run in runs:
        for kind, title in _DRAWN.items():
            path = run.folder / "figures" / f"{kind}.png"
            if path.is_file():
                alt = f"Test images with the {kind} of {run.label}"
                items.append(figure(regular(path).read_bytes(), path, alt=alt, caption=f"{run.label}: {title}"))
    return Markup(HTML.images(items)) if items else Markup("")


# ---- attention card ----
# Attention of models that were trained with SMMix.

_LEGEND = (
    "Top: training images. Middle: the attention of the trained model’s last block to each token, the mean "
    "over its heads and over the image’s tokens (in CaiT, that of the class token); each image has its own scale. "
    "Bottom: the images mixed by SMMix, with the shares of their labels: the square with the least attention is "
    "overwritten by the one with the most of another image."
)


def attention(runs: Sequence[Run]) -> Section | None:
    """Return the attention of runs with SMMix after training."""
    files = [(run, run.folder / "figures" / "attention.png") for run in runs]
    images = [
        figure(
            regular(path).read_bytes(),
            path,
            alt=f"Grid of images, the attention of {run.label}, the squares with the most and the least attention, "
            "and the images mixed by SMMix",
            caption=f"{run.label}, after training",
        )
        for run, path in files
        if path.is_file()
    ]
    return Section("Attention", "attention", HTML.note(_LEGEND) + HTML.images(images)) if images else None
