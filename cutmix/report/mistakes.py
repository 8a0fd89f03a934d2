"""The section of the page about classes and images: accuracy, confusions, and predictions with a low margin."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from cutmix.report.compare import lead
from cutmix.report.figures import COLOURS
from cutmix.report.page import HTML, Row, Section, figure
from cutmix.runs.outcomes import (
    EXAMPLES,
    Answers,
    ClassCount,
    LabelAnswers,
    confused_pairs,
    count_by_class,
    doubtful_labels,
    least_sure,
    read_answers,
    read_label_answers,
    surest_mistakes,
    surest_wrong_labels,
)
from cutmix.runs.read import Run, groups
from cutmix.runtime.files import regular

_SHOWN = 12  # classes before the rest is folded
_PAIRS = 8


class _Group(NamedTuple):
    """The runs of a recipe with predictions of the same images."""

    name: str
    colour: str
    answers: list[Answers]


def show_mistakes(runs: Sequence[Run]) -> Section | None:
    """Return the accuracy of each class, the classes that are confused, and images of the best run."""
    first = lead(runs)
    if not first or not first.predictions.is_file():
        return None
    if first.task == "multilabel":
        body = _label_gallery(first, read_label_answers(first.predictions))
        return Section("Mistakes", "mistakes", body) if body else None
    made = read_answers(first)
    assert made is not None
    compared = list(_same_images(runs, made))
    body = _by_class(compared, made.classes) + _confusions(compared, made.classes)
    return Section("Mistakes", "mistakes", body + _class_galleries(first, made))


def _same_images(runs: Sequence[Run], first: Answers) -> Iterable[_Group]:
    """Yield the recipes with finished runs whose predictions are of the images of the first one."""
    for style, (name, members) in enumerate(groups(runs).items()):
        found = [made for run in members if run.finished and (made := read_answers(run))]
        same = [
            one for one in found
            if one.classes == first.classes and one.files == first.files and (len(one.labels) == len(first.labels))
            and (one.labels == first.labels).all()
        ]  # fmt: skip
        if same:
            yield _Group(name, COLOURS[style % len(COLOURS)], same)


def _by_class(compared: Sequence[_Group], classes: Sequence[str]) -> Markup:
    """Return a bar for each class and recipe, the class with the least accuracy first."""
    counts = [count_by_class(group.answers) for group in compared]
    order = sorted(counts[0], key=lambda k: (sum(each[k].right / each[k].images for each in counts), classes[k]))
    rows = [
        Row(classes[k], [_bar(each[k], group.colour) for each, group in zip(counts, compared, strict=True)])
        for k in order
    ]
    header = ["Class", *(group.name for group in compared)]
    caption = "Right predictions by class, the worst class first"
    seeds = max(len(group.answers) for group in compared)
    caption += f", summed over up to {seeds} runs of a recipe" if seeds > 1 else ""
    table = HTML.table(caption, header, rows[:_SHOWN], "bars")
    if len(rows) > _SHOWN:
        rest = HTML.table(f"{caption}, continued", header, rows[_SHOWN:], "bars")
        table += HTML.folded(f"The other {len(rows) - _SHOWN} classes", rest)
    return Markup(HTML.heading("Accuracy by class")) + Markup(table)


def _bar(count: ClassCount, colour: str) -> Markup:
    """Return a count in words above a bar of that share."""
    return Markup(HTML.bar(f"{count.right:,} of {count.images:,}", 100 * count.right / count.images, colour))


def _confusions(compared: Sequence[_Group], classes: Sequence[str]) -> Markup:
    """Return the pairs of classes that are confused most often."""
    pairs = [confused_pairs(group.answers) for group in compared]
    counts = [count_by_class(group.answers) for group in compared]
    total = sum(pairs[1:], pairs[0])
    often = [(pair, n) for pair, n in total.most_common() if n > 1][:_PAIRS]
    if not often:
        return Markup("")
    rows = [
        Row(
            f"{classes[label]} as {classes[predicted]}",
            [f"{times[label, predicted]:,} of {n[label].images:,}" for times, n in zip(pairs, counts, strict=True)],
        )
        for (label, predicted), _ in often
    ]
    left = sum(total.values()) - sum(n for _, n in often)
    caption = "Wrong predictions of the most frequent pairs, of all images of the true class"
    table = HTML.table(caption, ["Class and prediction", *(group.name for group in compared)], rows)
    notes = [f"{left:,} more wrong predictions are of other pairs."] if left else []
    return Markup(HTML.heading("Confused classes")) + Markup(table) + (Markup(HTML.notes(notes)) if notes else "")


# ---- images ----

_SUSPECT = (
    "The model contradicts these labels with at least the probability that it has on average for images of its class. "
    "Some of the labels may be wrong: look at the images. Method: confident learning (Northcutt et al. 2021)."
)


_WEAK = 0.3  # error from which on contradictions are the model's own mistakes rather than label errors


class _Answer(NamedTuple):
    """The words of the page about an image."""

    name: str
    prediction: str
    label: str
    right: bool = False


def _class_galleries(run: Run, made: Answers) -> Markup:
    """Return the surest mistakes, the least sure predictions and the doubtful labels of a run, with their images."""
    error = 1 - float(made.right.mean())
    doubtful = doubtful_labels(made) if error <= _WEAK else []
    lists = (
        ("Surest mistakes", surest_mistakes(made), "Wrong predictions with the highest probability."),
        ("Least sure", least_sure(made), "The two most probable classes are closest to each other here."),
        ("Possible label errors", doubtful[:EXAMPLES], f"{len(doubtful):,} of {len(made.labels):,} images. {_SUSPECT}"),
    )

    def answer(i: int) -> _Answer:
        return _Answer(_name(made, i), _prediction(made, i), made.classes[made.labels[i]], bool(made.right[i]))

    body = _galleries(run, lists, answer, "the run with the most right predictions", "the predicted class")
    if body and error > _WEAK:
        note = f"The model is wrong on {error:.0%} of the images: its contradictions do not point to label errors."
        body += Markup(HTML.heading("Possible label errors")) + Markup(HTML.note(note))
    return body


def _label_gallery(run: Run, made: LabelAnswers) -> Markup:
    """Return the images of a run with several labels whose labels are most confidently predicted wrongly, or missed."""
    index = [*surest_wrong_labels(made)]

    def answer(i: int) -> _Answer:
        def named(chosen: np.ndarray, valued: np.ndarray) -> str:
            p = made.probabilities[i]
            words = (made.classes[k] + (f" {_percent(p[k])}" if valued[k] else "") for k in chosen.nonzero()[0])
            return ", ".join(words) or "no label"

        labels, predicted = made.labels[i], made.predicted[i]
        return _Answer(_name(made, i), named(predicted, predicted), named(labels, labels & ~predicted))

    caption = "Wrong labels with the highest probability, and missed labels with the lowest, each with its probability."
    return _galleries(
        run, [("Surest mistakes", index, caption)], answer, "the run with the highest mAP", "the surest wrong label"
    )


def _galleries(
    run: Run, lists: Iterable[tuple[str, list[int], str]], answer: Callable[[int], _Answer], which: str, mapped: str
) -> Markup:
    """Return lists of images of a run, each under its heading; as tables if the run has not drawn them."""
    body, has_maps = Markup(""), False
    for title, index, caption in lists:
        items = [item for i in index if (item := _example(run, i, answer(i)))]
        if items:
            has_maps |= any(item["width"] > item["height"] for item in items)
            body += Markup(HTML.heading(title)) + Markup(HTML.gallery(caption, items))
        elif index:
            rows = [Row(answered.name, [answered.prediction, answered.label]) for answered in map(answer, index)]
            body += Markup(HTML.heading(title)) + Markup(HTML.table(caption, ["Image", "Prediction", "Label"], rows))
    if not body:
        return Markup("")
    whose = f"Images of {run.label}, {which}, after the last epoch."
    if has_maps:
        whose += f" Right of each: where the evidence for {mapped} is (class activation map)."
    return Markup(HTML.note(whose)) + body


def _example(run: Run, i: int, answer: _Answer) -> dict[str, Any] | None:
    """Return an image with its prediction and its label; None if the run has not drawn it."""
    names = (f"example-{i}.png", f"last-example-{i}.png")
    path = next((path for name in names if (path := run.folder / "figures" / name).is_file()), None)
    if path is None:
        return None
    verdict = f"{answer.prediction}; right" if answer.right else f"{answer.prediction}; labelled {answer.label}"
    caption = Markup('{}<br><span class="file">{}</span>').format(verdict, answer.name)
    return figure(regular(path).read_bytes(), path, alt=f"Test image {answer.name}: {verdict}", caption=caption)


def _name(made: Answers | LabelAnswers, i: int) -> str:
    return made.files[i] if made.files else f"no. {i}"


def _percent(p: float) -> str:
    return f"{100 * p:.0f}\u00a0%"


def _prediction(made: Answers, i: int) -> str:
    """Return the predicted class with its probability in per cent and, at a low margin, the second class."""
    p = made.probabilities[i]
    second, first = p.argsort(kind="stable")[-2:]
    first = made.predicted[i]
    if second == first:
        second = p.argsort(kind="stable")[-1]
    text = f"{made.classes[first]} {_percent(p[first])}"
    return text if p[first] - p[second] > 0.2 else f"{text}, {made.classes[second]} {_percent(p[second])}"
