"""The sections of the page about detectors and captioners, the runs side by side. No torch here."""

from collections.abc import Sequence

from markupsafe import Markup

from cutmix.curves import learning_curves
from cutmix.paper_measures import CAPTIONING, TRANSFER
from cutmix.report.metrics import measure_of
from cutmix.report.page import HTML, Row, Section, link, picture
from cutmix.report.suites import SUITES, beside_paper, differences_of
from cutmix.report.tables import Card, cell, gather, table
from cutmix.runs.read import Run, groups

_LOSS = (
    "The loss is the mean over an epoch’s batches: the sum of all that a detector is trained by, or the cross-entropy "
    "of the words. It is not comparable between architectures. The test pictures are measured after some epochs only."
)


def detection(runs: Sequence[Run]) -> Section | None:
    """How well detectors find objects."""
    card = gather(runs, "detection")
    tables = Markup("")
    if card is not None:
        classes = [row for row in card.rows if row.name == "ap"]
        tables += table(card, "Average precision after the last epoch", [r for r in card.rows if r not in classes])
        tables += differences_of(card) + _per_class(card)
    return _section(runs, "detection", tables, ("mAP on the test pictures", "map", "mAP, %"))


def captioning(runs: Sequence[Run]) -> Section | None:
    """How near captions are to those of people."""
    card = gather(runs, "captioning")
    tables = Markup("")
    if card is not None:
        tables += table(card, "Captions against those of people, after the last epoch", list(card.rows))
        tables += differences_of(card)
    return _section(runs, "captioning", tables, ("CIDEr-D on the test pictures", "cider_d", "CIDEr-D × 100"))


def paper_of_transfer(runs: Sequence[Run]) -> Section | None:
    """The paper's tables of transfer with what was run by its protocol, and in what the runs differ from it."""
    tasks = {run.task for run in runs}
    tables = [table for table, task in ((TRANSFER, {"detection", "captioning"}), (CAPTIONING, {"captioning"}))
              if task & tasks]  # fmt: skip
    if not tables:
        return None
    body = Markup("").join(beside_paper(one, runs) for one in tables)
    return Section("The paper’s transfer", "paper-transfer", body)


def _section(runs: Sequence[Run], task: str, tables: Markup, figure: tuple[str, str, str]) -> Section | None:
    """Return a task's section: its tables, what was learnt by epoch, and pictures; None where no run is of it."""
    styles = {group: style for style, group in enumerate(groups(runs))}
    runs = [run for run in runs if run.task == task]
    if not runs:
        return None
    figures = [("Training loss", "train_loss", "loss"), figure]
    if not any(sum(figure[1] in entry for entry in run.epochs) > 1 for run in runs):
        figures.pop()  # one point is no curve
    curves = learning_curves(runs, styles, figures, _LOSS)
    return Section(SUITES[task], task, tables + curves + _pictures(runs))


def _per_class(card: Card) -> Markup:
    """Return the average precision of each class and the number of its objects, a class a row."""
    rows, measure = [], measure_of("ap")
    for row, found in card.rows.items():
        if row.name == "ap":
            counts = " to ".join(f"{n:,}" for n in sorted({line["n"] for line in found.values()}))
            rows.append(Row(row.of, [*(cell(measure, found.get(run.label)) for run in card.runs), counts]))
    if not rows:
        return Markup("")
    header = [link("measure-ap", "Class"), *(run.label for run in card.runs), "Objects"]
    made = HTML.table("Average precision of each class, %; classes without test objects are left out", header, rows)
    return Markup(HTML.folded("Average precision of each class", made) if len(rows) > 30 else made)


_DRAWN = {
    "detections": "solid: objects; dotted: difficult ones, which do not count; dashed: what was found, all of score "
    "0.5 or more and, where these are fewer than the objects, the surest others",
    "captions": "in bold the network’s caption, below it two by people",
}


def _pictures(runs: Sequence[Run]) -> Markup:
    """Return what each run drew of its test pictures."""
    items = []
    for run in runs:
        for kind, said in _DRAWN.items():
            path = run.folder / "pictures" / f"{kind}.png"
            if path.is_file():
                alt = f"Test pictures with the {kind} of {run.label}"
                items.append(picture(path.read_bytes(), path, alt=alt, caption=f"{run.label}: {said}"))
    return Markup(HTML.images(items)) if items else Markup("")
