"""The report card: a section of the page for each suite of `cutmix evaluate`, the runs side by side. No torch here.

What compares runs in pairs or with the paper is for the sections of detection and captioning too.
"""

from collections.abc import Sequence

from markupsafe import Markup

from cutmix.card_figures import curves, histograms, pictures, reliability_of
from cutmix.other_tables import measured_in, paper_sheets
from cutmix.paper_measures import FGSM, LOCALIZATION, UNKNOWN, PaperTable
from cutmix.report.metrics import MEASURES, Measure, measure_of
from cutmix.report.page import HTML, Definition, Row, Section, link
from cutmix.report.paired import against_baseline, differences
from cutmix.report.tables import (
    Card,
    Key,
    anchor,
    gather,
    is_mean,
    name,
    notes,
    number,
    refusals,
    table,
    table_of_checks,
    table_of_sets,
)
from cutmix.runs.read import Run
from cutmix.statistics import Difference, in_words

SUITES = {
    "calibration": "Calibration",
    "robustness": "Robustness",
    "ood": "The unknown",
    "localization": "Localization",
    "detection": "Detection",
    "captioning": "Captioning",
}


def calibration(runs: Sequence[Run]) -> Section | None:
    """Whether confidences mean what they say."""
    card = gather(runs, "calibration")
    if card is None:
        return None
    held_out = [row for row in card.rows if row.of or row.name == "temperature"]
    body = refusals(card)
    body += table(
        card, "Confidence against accuracy, on all test images", [row for row in card.rows if row not in held_out]
    )
    body += reliability_of(card)
    body += table(card, "Before and after a temperature, on held-out test images", held_out)
    body += differences_of(card) + pictures(card)
    return Section(SUITES[card.suite], "calibration", body)


def robustness(runs: Sequence[Run]) -> Section | None:
    """What attacks, occlusion, mixtures and corruptions do to the error."""
    card = gather(runs, "robustness")
    if card is None:
        return None
    sweeps, main = card.sweeps(), {row.at for row in card.rows if row.name == "noise_err"}
    attacked, checks, corrupted = [], [], []
    for row in card.rows:
        if measure_of(row.name).check:
            checks.append(row)
        elif row.name in ("corruption_mean_err", "mean_corruption_err", "corruption_ce", "mean_corruption_ce"):
            corrupted.append(row)
        elif (row.name, row.of) not in sweeps or (row.name == "fgsm_err" and row.at in main):
            attacked.append(row)
    kinds = {same: rows for same, rows in sweeps.items() if same[0] == "corruption_err"}
    body = refusals(card) + table(card, "Errors as the images are, under attack and under noise", attacked)
    body += table_of_checks(card, "Checks: are the attacks sound?", checks)
    body += differences_of(card)
    body += curves(card, {same: rows for same, rows in sweeps.items() if same not in kinds})
    body += table(card, "Published corruptions", corrupted) + curves(card, kinds, small=True)
    body += pictures(card) + beside_paper(FGSM, card.runs)
    return Section(SUITES[card.suite], "robustness", body)


def unknown(runs: Sequence[Run]) -> Section | None:
    """Whether networks are less sure of images of no class that they know."""
    card = gather(runs, "ood")
    if card is None:
        return None
    body = refusals(card)
    main = [[row for row in card.rows if row.name == each] for each in ("ood_auroc", "ood_tnr95", "ood_detection_acc")]
    for rows in main:
        if rows:
            caption = (
                f"{measure_of(rows[0].name).label} of the largest softmax probability, known against unknown images"
            )
            body += table_of_sets(card, caption, rows)
    body += notes(card, [row for rows in main for row in rows]) + differences_of(card) + histograms(card)
    others = [row for row in card.rows if all(row not in rows for rows in main)]
    mean = [row for row in others if is_mean(row)]
    each_set = [row for row in others if row not in mean]
    if mean:
        body += table(card, "Other measures and scores, mean of the sets", mean)
        folded = table(card, "Other measures and scores, each set", each_set, with_notes=False)
        body += HTML.folded("Other measures and scores, each set", folded) if each_set else ""
    else:
        body += table(card, "Other measures and scores", each_set, with_notes=False)
    body += pictures(card) + beside_paper(UNKNOWN, card.runs)
    return Section(SUITES[card.suite], "the-unknown", body)


def localization(runs: Sequence[Run]) -> Section | None:
    """Whether networks look at the object that they name."""
    card = gather(runs, "localization")
    if card is None:
        return None
    body = refusals(card) + table(card, "Boxes from class activation maps", list(card.rows))
    body += differences_of(card) + pictures(card)
    return Section(
        SUITES[card.suite], "localization", body + (beside_paper(LOCALIZATION, card.runs) if card.rows else Markup(""))
    )


def definitions(runs: Sequence[Run]) -> list[tuple[str, list[Definition]]]:
    """The definitions of the measures that the page shows, by section."""
    found = []
    compared: dict[str, Definition] = {}
    for suite, title in SUITES.items():
        card = gather(runs, suite)
        if card is None or not card.rows:
            continue
        names = dict.fromkeys(row.name for row in card.rows if row.name in MEASURES)
        entries = [Definition(anchor(name), MEASURES[name].label, _definition(MEASURES[name])) for name in names]
        found.append((title, entries))
        if against_baseline([run for run in card.runs if run.arrays(suite).is_file()]):
            compared[_PAIRED[suite].anchor] = _PAIRED[suite]
    return found + ([("Differences between runs", list(compared.values()))] if compared else [])


def differences_of(card: Card) -> Markup:
    """Each run less the baseline, with paired intervals."""
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
    how = _PAIRED[card.suite]
    note = Markup("{}: the interval is {}. The differences are between these weights; another seed would move them.")
    about = [note.format(link(how.anchor, how.term), _METHODS[card.suite])]
    if len(found) > 1:
        about.append(
            Markup(
                "p is adjusted by Holm’s method for the {} differences here, the intervals are not: one may exclude "
                "0 where p says not significant."
            ).format(len(found))
        )
    return Markup(HTML.table(caption, ["Measure", *labels], shown)) + Markup(HTML.notes(about))


def _difference(row: Key, found: Difference) -> str:
    digits = measure_of(row.name).digits
    ends = ", ".join(number(end, digits, signed=True) for end in (found.low, found.high))
    return f"{number(found.value, digits, signed=True)} [{ends}], {in_words(found.p)}"


def beside_paper(table: PaperTable, runs: Sequence[Run]) -> Markup:
    """Return a table of the paper with what was run by its protocol, and in what other runs of its rows differ."""
    made, differing = paper_sheets(table, [one for run in runs for one in measured_in(run)])
    body = Markup("")
    for sheet in made:
        body += HTML.table(sheet.caption, sheet.header, [Row(first, cells) for first, *cells in sheet.rows])
    return body + HTML.notes([*differing, *table.notes, f"Run by: {table.command}"])


def _definition(measure: Measure) -> str:
    return f"{measure.definition} {measure.better.capitalize()} is better." if measure.better else measure.definition


_METHODS = {
    "calibration": "the paired bootstrap’s",
    "robustness": "Agresti and Min’s, p McNemar’s exact one",
    "ood": "DeLong’s, and so is p",
    "localization": "Agresti and Min’s, p McNemar’s exact one",
    "detection": "the paired bootstrap’s",
    "captioning": "the paired bootstrap’s",
}
_RATES = Definition(
    "paired-rates",
    "Difference of rates",
    "The share of the images on which only the one run is wrong less the share on which only the other is. The "
    "interval is Wald’s for matched pairs with half an image added to each of the four cells (Agresti and Min 2005); "
    "p is McNemar’s exact test, adjusted by Holm’s method for all differences of the section.",
)
_PICTURES = Definition(
    "paired-pictures",
    "Difference of mAP or of captions’ scores",
    "The interval is the percentiles of 500 seeded resamples of the test pictures, drawn in pairs; p is twice the "
    "share of them at or beyond zero (Efron and Tibshirani 1993). A picture’s detections are judged once; CIDEr-D’s "
    "weights stay those of all pictures.",
)
_PAIRED = {
    "calibration": Definition(
        "paired-ece",
        "Difference of ECE",
        "The interval is the percentiles of 500 seeded resamples of the images, drawn in pairs and moved so that their "
        "mean is the measured difference, for noise makes ECE larger; p is twice the share of them at or beyond zero "
        "(Efron and Tibshirani 1993).",
    ),
    "robustness": _RATES,
    "ood": Definition(
        "paired-auroc",
        "Difference of AUROC",
        "DeLong’s method: its variance is that of the differences of each image’s own part in the two areas, over the "
        "test images and over the others; interval and p are the normal distribution’s (DeLong et al. 1988; Sun and Xu "
        "2014).",
    ),
    "localization": _RATES,
    "detection": _PICTURES,
    "captioning": _PICTURES,
}
