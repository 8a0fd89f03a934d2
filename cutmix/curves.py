"""Measures and losses by epoch, all runs of a task in the same plots. No torch here."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from cutmix.report.figures import Curve, key, lines
from cutmix.report.page import HTML
from cutmix.runs.read import Run, groups


def learning_curves(
    runs: Sequence[Run], styles: Mapping[str, int], figures: Sequence[tuple[str, str, str]], caption: str
) -> Markup:
    """Return a plot for each figure, the seeds of a recipe alike; nothing where no run has logged an epoch.

    Args:
        runs: Those to draw; what was only evaluated has no training to show.
        styles: The style of each recipe, the same on all of the page.
        figures: Title, field of the log and name of the vertical axis.
        caption: What stands below.
    """
    runs = [run for run in runs if run.epochs and not run.evaluated]
    if not runs:
        return Markup("")
    by_recipe = groups(runs)
    legend = [
        (key(styles[name]), name + (f" ({len(members)} runs)" if len(members) > 1 else ""))
        for name, members in by_recipe.items()
    ]
    plots = []
    for title, field, unit in figures:
        curves = [_curve(run, field, styles[run.group]) for members in by_recipe.values() for run in members]
        alt = f"{title} by epoch. " + " ".join(_spoken(run, field) for run in runs)
        plots.append((title, lines(curves, xlabel="epoch", ylabel=unit, alt=alt)))
    return Markup(HTML.curves(legend, plots, caption))


def _curve(run: Run, field: str, style: int) -> Curve:
    measured = [entry for entry in run.epochs if entry.get(field) is not None]
    return Curve([entry["epoch"] for entry in measured], [entry[field] for entry in measured], style)


def _spoken(run: Run, field: str) -> str:
    """A curve in words: where it starts and ends."""
    curve = _curve(run, field, 0)
    if not curve.x:
        return f"{run.label}: not run."
    return f"{run.label}: {curve.y[0]:.3g} at epoch {curve.x[0]}, {curve.y[-1]:.3g} at epoch {curve.x[-1]}."
