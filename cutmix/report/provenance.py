"""The section of the page about recipes, circumstances and commands of the runs. No torch here."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from cutmix.config.transfer import backbone_in_words
from cutmix.report.page import HTML, Row, Section
from cutmix.runs.read import Run, differing_fields, groups

_LEARNERS = {"classification": "the classifiers", "detection": "the detectors", "captioning": "the captioners"}


def what_was_run(runs: Sequence[Run]) -> Section:
    """The recipes and the circumstances of every run."""
    classifiers = [run for run in runs if run.task == "classification"]
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
    transferred = [run for run in runs if run.task != "classification"]
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
        "When and on what each ran", ["Run", "Date", "Device", "torch", "Commit", "Training time"], circumstances
    )
    return Section("What was run", "what-was-run", body + HTML.commands(runs))


def _transferred(run: Run) -> Row:
    """The row of a detector or a captioner."""
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
            "The recipe is what the file says of itself."
            if "epochs" in run.recipe
            else "How they were trained is not "
            "known here, so their normalisation and the test images may not be those of their training.",
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
