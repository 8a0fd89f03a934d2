"""Parts of the page: sections, rows, definitions, links, images, macros, and tables of several runs. No torch here."""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from cutmix.errors import InputError
from cutmix.report.metrics import METRICS, Metric, metric_of, name_of
from cutmix.runs.read import Run, groups
from cutmix.runs.record import Record, with_interval

_TEMPLATE = files("cutmix.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
# The macros of the page; they escape their arguments unless these are Markup.
HTML: Any = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(_TEMPLATE).module


class Section(NamedTuple):
    """A section of the page: its title, the anchor of its link, its content."""

    title: str
    anchor: str
    body: Markup


class Row(NamedTuple):
    """A row of a table: its heading, its cells, and whether it is emphasized."""

    name: str
    cells: Sequence[str]
    strong: bool = False


class Definition(NamedTuple):
    """A definition: the anchor of its link, the term, its meaning."""

    anchor: str
    term: str
    text: str


def link(anchor: str, text: str) -> Markup:
    """Return a link to an anchor on the page."""
    return Markup('<a href="#{}">{}</a>').format(anchor, text)


def figure(png: bytes, where: object, *, alt: str, caption: str) -> dict[str, Any]:
    """Return a PNG file as the template embeds it; ``where`` is its name in the error message."""
    if png[:8] != b"\x89PNG\r\n\x1a\n" or len(png) < 24:
        raise InputError(f"{where} is not a PNG image; remove it or write it again")
    return {
        "base64": base64.b64encode(png).decode(),
        "width": int.from_bytes(png[16:20], "big"),
        "height": int.from_bytes(png[20:24], "big"),
        "alt": alt,
        "caption": caption,
    }


_POINTS = 3  # values of ``at`` from which a metric is a curve


class Key(NamedTuple):
    """The key of a row: the key of its metric in ``METRICS``, its subject and its ``at``."""

    name: str
    of: str
    at: float | None


@dataclass(frozen=True)
class Card:
    """The results of a suite in several runs."""

    suite: str
    runs: tuple[Run, ...]  # the runs in which it was tried, the columns of every table
    rows: dict[Key, dict[str, Record]]  # the line of each run, by the run's label, for each row
    refused: dict[str, str]  # the reason why a run has no result, by its label
    styles: dict[str, int]  # the style of each recipe's curves, the same in every figure of the page

    def sweeps(self) -> dict[tuple[str, str], list[Key]]:
        """Return the groups of three or more rows that differ in ``at`` alone."""
        found: dict[tuple[str, str], list[Key]] = {}
        for row in self.rows:
            if row.at is not None and not metric_of(row.name).check:
                found.setdefault((row.name, row.of), []).append(row)
        return {
            same: sorted(rows, key=lambda row: row.at or 0.0) for same, rows in found.items() if len(rows) >= _POINTS
        }


def gather(runs: Sequence[Run], suite: str) -> Card | None:
    """Collect a suite's lines, rows in the order of ``METRICS``; None if no run has any."""
    rows: dict[Key, dict[str, Record]] = {}
    refused: dict[str, str] = {}
    tried = []
    for run in runs:
        found = run.suite(suite)
        if found:
            tried.append(run)
        for line in found:
            if line.metric == suite:  # the whole suite did not fit the classifier
                refused[run.label] = line.note or "not run"
                continue
            name = name_of(line)
            at = line.at if metric_of(name).at else None
            rows.setdefault(Key(name, line.of or "", at), {})[run.label] = line
    for label in {label for lines_ in rows.values() for label in lines_}:
        refused.pop(label, None)  # another evaluation has a result
    if not tried:
        return None
    styles = {group: style for style, group in enumerate(groups(runs))}
    order = {name: index for index, name in enumerate(METRICS)}
    ordered = sorted(rows, key=lambda row: order.get(row.name, len(order)))
    return Card(suite, tuple(tried), {row: rows[row] for row in ordered}, refused, styles)


# ---- tables ----


def table(card: Card, caption: str, rows: Sequence[Key], *, with_notes: bool = True) -> Markup:
    """Return a table of metrics, the runs side by side, and their notes; nothing without rows."""
    if not rows:
        return Markup("")
    shown = []
    for row in rows:
        found = card.rows[row]
        cells = [cell(metric_of(row.name), found.get(run.label)) for run in card.runs]
        tag = _CHOSEN if _is_chosen(found) else ""
        shown.append(Row(name(row) + tag, [*cells, metric_of(row.name).better or "–", _images(found.values())]))
    header = ["Metric", *(run.label for run in card.runs), "Better", "Images"]
    made = Markup(HTML.table(caption + _INTERVAL, header, shown))
    return made + notes(card, rows) if with_notes else made


def table_of_sets(card: Card, caption: str, rows: Sequence[Key]) -> Markup:
    """Return a table of one metric with a row for each set that any run has, without the notes."""
    rows = [row for row in rows if any(line.value is not None for line in card.rows[row].values())]
    if not rows:
        return Markup("")
    metric = metric_of(rows[0].name)
    caption += f" ({metric.better} is better)" if metric.better else ""
    caption += "; threshold chosen on the test images" if any(_is_chosen(card.rows[row]) for row in rows) else ""
    shown = [
        Row(
            row.of,
            [*(cell(metric, card.rows[row].get(run.label)) for run in card.runs), _images(card.rows[row].values())],
            strong=is_mean(row),
        )
        for row in rows
    ]
    header = [link(anchor(rows[0].name), metric.heading), *(run.label for run in card.runs), "Images"]
    with_ends = any(line.low is not None for row in rows for line in card.rows[row].values())
    return Markup(HTML.table(caption + (_INTERVAL if with_ends else ""), header, shown))


def table_of_checks(card: Card, caption: str, rows: Sequence[Key]) -> Markup:
    """Return a table of checks that hold or fail, each once for all places at which it was made."""
    by_name: dict[str, list[Key]] = {}
    for row in rows:
        by_name.setdefault(row.name, []).append(row)
    if not by_name:
        return Markup("")
    shown = []
    for name_, same in by_name.items():
        metric = metric_of(name_)
        made = {
            run.label: [card.rows[row][run.label] for row in same if run.label in card.rows[row]] for run in card.runs
        }
        places = [row.at for row in same if row.at is not None]
        at = f"ε = {in_255ths(min(places))} to {in_255ths(max(places))}" if len(places) > 1 else ""
        head = name(same[0]) if len(same) == 1 else name(Key(name_, "", None)) + _quiet(at)
        every = [line for lines in made.values() for line in lines]
        shown.append(Row(head, [*(_verdict(metric, lines) for lines in made.values()), _images(every)]))
    return Markup(HTML.table(caption, ["Check", *(run.label for run in card.runs), "Images"], shown))


def _verdict(metric: Metric, lines: Sequence[Record]) -> str:
    """Return whether a check holds at all its places, and if not, where and why."""
    if not lines:
        return "not run"
    failed = [line for line in lines if not metric.holds(line)]
    if not failed:
        return "holds"
    line = failed[-1]
    share = f" for {line.value:.2g} % of the images" if metric.check == "none" else ""
    where = f" at {at_in_words(metric, line.at)}" if len(lines) > 1 and line.at is not None else ""
    return f"fails{share}{where}" + (f": {line.note}" if line.note else "")


def cell(metric: Metric, line: Record | None) -> str:
    """Return a value with its interval and, where it was chosen, the threshold."""
    if line is None or line.value is None:
        return "not run"
    said = with_interval(line, f".{metric.digits}f")
    chosen_at = line.at if line.chosen_on == "test" else None
    return said if chosen_at is None else f"{said} at {chosen_at:.2f}"


def name(row: Key) -> Markup:
    """Return the name of a metric, linked to its definition, with its subject and its ``at``."""
    metric = metric_of(row.name)
    head = link(anchor(row.name), metric.heading) if metric.definition else Markup.escape(metric.heading)
    of = row.of if row.of and row.of != "held-out half" and not is_mean(row) else ""
    return head + _quiet(of) + _quiet("" if row.at is None else at_in_words(metric, row.at))


def notes(card: Card, rows: Iterable[Key]) -> Markup:
    """Return the caveats of some rows, each once, with its metrics and runs; those of checks stand in their cells."""
    rows = [row for row in rows if not metric_of(row.name).check]
    about: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for row in rows:
        for label, line in card.rows[row].items():
            if line.note:
                subjects, labels = about.setdefault(line.note, ({}, {}))
                subjects[row.of if card.suite == "ood" else metric_of(row.name).label] = None
                labels[label] = None
    items = []
    for note, (subjects, labels) in about.items():
        names = list(subjects) if len(subjects) <= 3 else [f"{next(iter(subjects))} and {len(subjects) - 1} more"]
        names += [] if len(labels) == len(card.runs) else labels
        items.append(Markup("{}: {}.").format(", ".join(names), note.rstrip(".")))
    if any(_is_chosen(card.rows[row]) for row in rows):
        items.append(Markup(_CHOSEN_MEANS))
    return Markup(HTML.notes(items)) if items else Markup("")


def refusals(card: Card) -> Markup:
    """Return the reason for each run to which the suite could not be applied."""
    items = [Markup("<strong>{}</strong>: {}.").format(label, why.rstrip(".")) for label, why in card.refused.items()]
    return Markup(HTML.sentences(items)) if items else Markup("")


# ---- words ----

_INTERVAL = " [95\u00a0%\u00a0interval]"
_CHOSEN = Markup('<br><span class="quiet">threshold chosen on the test images</span>')
_CHOSEN_MEANS = (
    "Threshold chosen on the test images: it is the best one for these images, so the value is optimistic and "
    "comparable only with values that were chosen in the same way."
)


def at_in_words(metric: Metric, at: float) -> str:
    """Return a record's ``at`` in words, to follow the name of the metric."""
    if metric.at == "ε":
        return f"ε\u00a0=\u00a0{in_255ths(at)}"
    unit = "\u00a0px" if metric.at.startswith("side") else ""
    return f"{metric.at}\u00a0{at:g}{unit}" if metric.at != "λ" else f"λ\u00a0=\u00a0{at:g}"


def in_255ths(value: float) -> str:
    """Return a change of a pixel, in [0, 1], as a fraction such as 8/255."""
    steps = value * 255
    if value == 1:
        return "1"
    return f"{steps:.0f}/255" if abs(steps - round(steps)) < 1e-3 else f"{steps:.2f}/255"


def anchor(name: str) -> str:
    """Return the anchor of a metric's definition on the page."""
    return f"metric-{name}"


def _quiet(text: str) -> Markup:
    return Markup('<span class="quiet">, {}</span>').format(text) if text else Markup("")


def _images(lines: Iterable[Record]) -> str:
    """Return the number of evaluated images and, where they are a subset, the size of the whole test set."""
    counts = sorted({(line.n, whole_of(line)) for line in lines if line.n})
    return " to ".join(dict.fromkeys(_part(*each) for each in (counts[0], counts[-1]))) if counts else "–"


def _part(n: int, whole: int) -> str:
    return f"{n:,} of {whole:,}" if whole else f"{n:,}"


def whole_of(line: Record) -> int:
    """Return the size of the whole test set where a metric uses a subset, otherwise 0."""
    n, whole = line.n or 0, line.test_images or 0
    return whole if n < whole and line.suite in ("calibration", "robustness", "localization") else 0


def _is_chosen(found: dict[str, Record]) -> bool:
    return any(line.chosen_on == "test" for line in found.values())


def is_mean(row: Key) -> bool:
    """Return whether a row is the mean over sets."""
    return row.of.startswith("mean of ")
