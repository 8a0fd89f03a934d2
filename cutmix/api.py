"""The commands as Python functions: ``train``, ``evaluate`` and ``compare``. Torch is imported when they are called."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutmix.config.options import CompareOptions, EvaluateOptions, TrainOptions
from cutmix.config.recipe import Recipe
from cutmix.config.recipes import find_recipe, with_authors_milestones
from cutmix.errors import InputError, did_you_mean
from cutmix.runtime.files import regular

if TYPE_CHECKING:
    from cutmix.report.verdict import Comparisons
    from cutmix.runs.read import Run
    from cutmix.runs.record import Results

Pathlike = str | os.PathLike[str]


def train(data: Pathlike | None = None, *, recipe: Recipe | str | None = None, **settings: Any) -> "Run":
    """Train a classifier and evaluate it after each epoch, as ``cutmix train`` does.

    Args:
        data: Folder of images, or the name of a known set.
        recipe: A recipe, or its name, that the other arguments change; by default the one that suits the data.
        **settings: Any flag of ``cutmix train`` by its name, such as ``model="resnet50"``, ``mix="cutmix"``,
            ``epochs=30``, ``out="runs/x"``, ``resume=True``, ``config="recipe.yaml"``.

    Returns:
        The run. It prints as a table of its results, and is accepted wherever the path of a run is.

    Raises:
        InputError: If an argument, the data, the folder or the device does not fit.
        KeyboardInterrupt: After Ctrl-C and a checkpoint; the same call with ``resume=True`` resumes.
    """
    if data is not None:
        settings["data"] = os.fspath(data)
    chosen, options = settle(recipe, settings)
    from cutmix.runs.read import read_run
    from cutmix.training.loop import run_training

    with _interruptible():
        return read_run(run_training(chosen, options))


def evaluate(run: Pathlike, suites: str | Sequence[str] = "classification", **settings: Any) -> "Results":
    """Evaluate a run, or a file of weights, as ``cutmix evaluate`` does.

    Args:
        run: What ``train`` returned, the folder of a run, or a file of weights.
        suites: Names of suites, or "all".
        **settings: Any flag of ``cutmix evaluate`` by its name, such as ``data``, ``images``, ``device``.

    Returns:
        The records, which print as a table. Those of a run are saved in its folder.

    Raises:
        InputError: If an argument, the weights, the data or a suite do not fit each other.
    """
    suite = suites if isinstance(suites, str) else ",".join(suites)
    options = _options(EvaluateOptions, {"source": Path(run), "suite": suite} | settings)
    from cutmix.evaluation.command import run_evaluate

    with _interruptible():
        return run_evaluate(options, shown=False)


def compare(
    data: Pathlike | None = None, mix: Sequence[str] = ("none", "cutmix"), *, seeds: int = 3,
    recipe: Recipe | str | None = None, **settings: Any,
) -> "Comparisons":  # fmt: skip
    """Train several mixing methods with equal budget, splits and seeds, as ``cutmix compare`` does.

    Args:
        data: Folder of images, or the name of a known set.
        mix: Mixing methods; the first is the baseline.
        seeds: Runs of each method.
        recipe: A recipe, or its name, that the other arguments change.
        **settings: Any flag of ``cutmix compare`` or ``cutmix train`` by its name.

    Returns:
        A comparison with the baseline for each method, which prints as words and tables. Called again, finished runs
        are read and not run again.

    Raises:
        InputError: If an argument or the data does not fit, or runs failed.
        KeyboardInterrupt: After Ctrl-C and a checkpoint; the same call resumes.
    """
    if data is not None:
        settings["data"] = os.fspath(data)
    names = {field.name for field in fields(CompareOptions)}
    own = {name: settings.pop(name) for name in names & settings.keys()}
    options = _options(CompareOptions, own | {"mix": tuple(mix), "seeds": seeds})
    chosen, _ = settle(recipe, settings)
    from cutmix.report.summary import write_report
    from cutmix.report.verdict import Comparisons, compare_runs
    from cutmix.runs.folder import write_json
    from cutmix.runs.read import read_runs
    from cutmix.training.campaign import run_methods

    with _interruptible():
        jobs = run_methods(chosen, options)
    if not jobs:
        return Comparisons()
    paths = [job.path for job in jobs]
    found = Comparisons(compare_runs(read_runs(paths), options.mix[0]))
    write_json(options.out / "comparison.json", [one.to_json() for one in found])
    found.page = write_report(paths, options.out / "report.html")
    return found


# ---- what decides a training run ----


def settle(recipe: Recipe | str | None, settings: Mapping[str, Any]) -> tuple[Recipe, TrainOptions]:
    """Return the recipe and the options of a training run from what a user gives.

    Args:
        recipe: A recipe or its name; None for that of the data, or of the run that is resumed.
        settings: Fields of the recipe and of the options by their names; ``config`` names a file of further ones.

    Raises:
        InputError: If a name or a value is not valid.
    """
    given = {name: value for name, value in settings.items() if name not in ("config", "print_config")}
    if settings.get("config"):
        named, held = read_config_file(Path(settings["config"]))
        recipe, given = recipe if recipe is not None else named, held | given
    of_recipe, of_options = ({field.name for field in fields(kind)} for kind in (Recipe, TrainOptions))
    for name in given.keys() - of_recipe - of_options:
        raise InputError(f"there is no setting '{name}' of cutmix train" + _hint(name, of_recipe | of_options))
    base = base_recipe(recipe, given)
    changes = {name: value for name, value in given.items() if name in of_recipe}
    options = _options(TrainOptions, {name: value for name, value in given.items() if name in of_options})
    chosen = Recipe.from_dict(base.to_dict() | changes, "cutmix train") if changes else base
    own_epochs = "epochs" in given and "milestones" not in given
    return with_authors_milestones(chosen) if own_epochs else chosen, options


def base_recipe(recipe: Recipe | str | None, given: Mapping[str, Any]) -> Recipe:
    """Return the recipe that given fields change, without the fields of it that contradict one that is given."""
    resumed = given.get("resume") and given.get("out") and (Path(given["out"]) / "config.json").is_file()
    if recipe is not None:
        base = find_recipe(recipe) if isinstance(recipe, str) else recipe
    elif resumed:
        from cutmix.runs.folder import saved_recipe

        base = saved_recipe(Path(given["out"]))
    elif given.get("data"):
        base = Recipe()
    else:
        raise InputError("there is nothing to train on; give --data FOLDER, or the name of a recipe (cutmix recipes)")
    rivals: dict[str, dict[str, Any]] = {
        "weights": {"pretrained": False}, "pretrained": {"weights": None}, "mix": {"mix_layers": (0, 1, 2, 3, 4)},
        "shake_drop": {"stochastic_depth": 0.0}, "stochastic_depth": {"shake_drop": 0.0},
    }  # fmt: skip
    changes: dict[str, Any] = {}
    for field, losers in rivals.items():
        changes |= {name: value for name, value in losers.items() if field in given and name not in given}
    return replace(base, **changes)


def read_config_file(path: Path) -> tuple[str | None, dict[str, Any]]:
    """Read a YAML or JSON file of settings: the name of a recipe under ``recipe``, if any, and the others by name.

    Raises:
        InputError: If it cannot be read, or is no mapping of names to values.
    """
    import yaml

    try:
        found = yaml.safe_load(regular(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise InputError(f"{path} is no mapping; expected lines such as 'epochs: 30', by the names of the flags")
    found = {name.replace("-", "_"): value for name, value in found.items()}
    return found.pop("recipe", None), found


def config_text(recipe: Recipe, options: TrainOptions) -> str:
    """Return a recipe and its options as YAML, which ``--config`` reads; what is None is left to the data."""
    import yaml

    held = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()} | recipe.to_dict()
    kept = {name: value for name, value in held.items() if value is not None}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, default_flow_style=None)


def _options(kind: type, values: Mapping[str, Any]) -> Any:
    """Return an options object from keyword arguments; paths may be strings, and tuples lists."""
    known = {field.name: str(field.type) for field in fields(kind)}
    converted = {}
    for name, value in values.items():
        if name not in known:
            raise InputError(f"there is no setting '{name}'" + _hint(name, known))
        several = isinstance(value, list | tuple)
        converted[name] = tuple(value) if several else Path(value) if _is_path(known[name], value) else value
    return kind(**converted)


def _is_path(annotation: str, value: Any) -> bool:
    return "Path" in annotation and isinstance(value, str)


def _hint(name: str, known: Any) -> str:
    hint = did_you_mean(name, known)
    return f"; {hint}" if hint else ""


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt where Ctrl-C ended a run, which is saved by then; SystemExit would end a notebook."""
    try:
        yield
    except SystemExit as stop:
        if stop.code != 130:
            raise
        raise KeyboardInterrupt("stopped after a checkpoint; the same call with resume=True resumes") from None
