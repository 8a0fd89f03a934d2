"""The recipe and the options of a training run, from keyword arguments, a file of settings, or a resumed run."""

import os
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from cutmix.config.options import TrainOptions
from cutmix.config.recipe import ALL_LAYERS, Recipe
from cutmix.config.recipes import RECIPES, find_recipe, with_authors_milestones
from cutmix.errors import InputError, did_you_mean
from cutmix.runtime.files import check_fields, kind_of, regular

# YAML 1.2.2, section 10.3.2. In YAML 1.1, which PyYAML reads, 1e-05 is text, 010 is eight and off is false.
_SCALARS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?",
}


def settle(recipe: Recipe | str | None, settings: Mapping[str, Any]) -> tuple[Recipe, TrainOptions]:
    """Return the recipe and the options of a training run from a user's keyword arguments.

    Without ``recipe``, which may be a name, that of the data or of the resumed run is taken. The settings are fields of
    the recipe and of the options by their names; ``config`` names a file of further ones, and ``labels`` is a file of
    labels in place of ``data``.
    """
    given = {name: value for name, value in settings.items() if name != "config"}
    if "labels" in given:
        if "data" in given:
            raise InputError("data and labels are both given; a file of labels names its images by itself")
        given["data"] = os.fspath(given.pop("labels"))
    if settings.get("config"):
        named, held = read_config_file(Path(settings["config"]))
        recipe, given = recipe if recipe is not None else named, held | given
    of_recipe, of_options = ({field.name for field in fields(kind)} for kind in (Recipe, TrainOptions))
    for name in given.keys() - of_recipe - of_options:
        raise InputError(f"there is no setting '{name}' of cutmix train" + _hint(name, of_recipe | of_options))
    base = base_recipe(recipe, given)
    changes = {name: value for name, value in given.items() if name in of_recipe}
    options = make_options(TrainOptions, {name: value for name, value in given.items() if name in of_options})
    chosen = Recipe.from_dict(base.to_dict() | changes, "cutmix train") if changes else base
    own_epochs = "epochs" in given and "milestones" not in given
    return with_authors_milestones(chosen) if own_epochs else chosen, options


def base_recipe(recipe: Recipe | str | None, given: Mapping[str, Any]) -> Recipe:
    """Return the recipe that the given fields change, without those of its fields that contradict a given one."""
    resumed = given.get("resume") and given.get("out") and (Path(given["out"]) / "config.json").is_file()
    if recipe is not None:
        base = find_recipe(recipe) if isinstance(recipe, str) else recipe
        if not isinstance(base, Recipe):
            raise InputError(f"recipe is {kind_of(recipe)}; expected a recipe, or the name of one (cutmix recipes)")
    elif resumed:
        from cutmix.runs.folder import saved_recipe

        base = saved_recipe(Path(given["out"]))
    elif given.get("data"):
        base = Recipe()
    else:
        raise InputError("there is nothing to train on; give --data FOLDER, or the name of a recipe (cutmix recipes)")
    rivals: dict[str, dict[str, Any]] = {
        "weights": {"pretrained": False}, "pretrained": {"weights": None}, "mix": {"mix_layers": ALL_LAYERS},
        "shake_drop": {"stochastic_depth": 0.0}, "stochastic_depth": {"shake_drop": 0.0},
    }  # fmt: skip
    if base in RECIPES.values():  # the hole is half the side of its own images; a user's own recipe keeps what it has
        rivals |= {"image_size": {"cutout_size": None}, "data": {"cutout_size": None}}
    changes: dict[str, Any] = {}
    for field, losers in rivals.items():
        changes |= {name: value for name, value in losers.items() if field in given and name not in given}
    return replace(base, **changes)


def read_config_file(path: Path) -> tuple[str | None, dict[str, Any]]:
    """Read a YAML or JSON file of settings: the name of a recipe under ``recipe``, if any, and the others by name."""
    import yaml

    try:
        found = yaml.load(regular(path).read_text(encoding="utf-8"), _core_schema(yaml.SafeLoader, {}))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise InputError(f"{path} is not a mapping; expected lines such as 'epochs: 30', by the names of the flags")
    found = {name.replace("-", "_"): value for name, value in found.items()}
    return found.pop("recipe", None), found


def config_text(recipe: Recipe, options: TrainOptions) -> str:
    """Return a recipe and its options as YAML for ``--config``; None is left out, as the data decide it."""
    import yaml

    held = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()} | recipe.to_dict()
    kept = {name: value for name, value in held.items() if value is not None}
    dumper = _core_schema(yaml.SafeDumper, yaml.SafeDumper.yaml_implicit_resolvers)  # quotes for both
    return str(yaml.dump(kept, None, dumper, sort_keys=False, allow_unicode=True, default_flow_style=None))


def _core_schema(kind: Any, resolvers: dict[Any, Any]) -> Any:
    """Return a loader or a dumper of PyYAML that has the scalars of YAML 1.2 beside the given ones."""
    import yaml

    made: Any = type(kind.__name__, (kind,), {"yaml_implicit_resolvers": {k: list(v) for k, v in resolvers.items()}})
    for name, pattern in _SCALARS.items():
        made.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(rf"(?:{pattern})\Z"), None)
    if issubclass(kind, yaml.SafeLoader):
        made.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node)))
    return made


def make_options(kind: type, values: Mapping[str, Any]) -> Any:
    """Return an options object from keyword arguments; paths may be strings, and tuples lists."""
    known = {field.name for field in fields(kind)}
    for name in values.keys() - known:
        raise InputError(f"there is no setting '{name}'" + _hint(name, known))
    device = {"device": str(values["device"])} if "device" in values else {}  # a torch.device too
    return kind(**check_fields(kind, {**values, **device}, "the settings"))


def _hint(name: str, known: Any) -> str:
    hint = did_you_mean(name, known)
    return f"; {hint}" if hint else ""
