"""The mixing methods of ``--mix``: one line each.

The names of the package import torch when a method is built, not here: ``cutmix train --help`` lists the methods
without it.
"""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import cutmix
from cutmix.config.recipe import ALL_LAYERS, Recipe, flag
from cutmix.config.recipes import RECIPES
from cutmix.errors import InputError
from cutmix.runtime.seeding import derive_seed

if TYPE_CHECKING:
    from torch import Tensor

    from cutmix.mixing.protocol import Mix
    from cutmix.mixing.targets import Targets


def shared(recipe: Recipe, stream: str) -> dict[str, Any]:
    """Return the options that the transforms share; those with the same ``stream`` start with the same draws.

    They write into the batch, which belongs to the loop.
    """
    seed = derive_seed(recipe.seed, stream)
    return {"prob": recipe.mix_prob, "per_sample": recipe.mix_per_sample, "inplace": True, "seed": seed}


class Method(NamedTuple):
    """A mixing method of ``--mix``."""

    make: Callable[[Recipe], "Mix"]  # build it from a recipe
    layers: bool = False  # whether it reads ``mix_layers``
    # whether it takes whole batches: no draw per sample, no accumulated gradients, a partner for each image
    whole: bool = False
    after_cutout: bool = True  # whether ``--cutout`` may come before it


MIXES = {
    "none": Method(lambda r: cutmix.Mix(), after_cutout=False),
    "cutmix": Method(lambda r: cutmix.CutMix(r.alpha, **shared(r, "cutmix"))),
    "mixup": Method(lambda r: cutmix.Mixup(r.alpha, **shared(r, "mixup"))),
    "cutout": Method(lambda r: cutmix.Cutout(
        r.cutout_size, prob=r.mix_prob, inplace=True, seed=derive_seed(r.seed, "cutout")
    ), after_cutout=False),
    "cutmix-or-mixup": Method(lambda r: cutmix.RandomChoice(
        (cutmix.CutMix(r.alpha, **shared(r, "cutmix")), cutmix.Mixup(r.mixup_alpha or r.alpha, **shared(r, "mixup"))),
        seed=derive_seed(r.seed, "choice"),
    )),
    "feature-cutmix": Method(
        lambda r: cutmix.FeatureCutMix(r.mix_layers, r.alpha, **shared(r, "cutmix")), layers=True
    ),
    "manifold-mixup": Method(
        lambda r: cutmix.ManifoldMixup(r.mix_layers, r.alpha, **shared(r, "mixup")), layers=True
    ),
    "cutmix-center-gaussian": Method(lambda r: cutmix.CenterGaussianCutMix(r.alpha, **shared(r, "cutmix"))),
    "cutmix-fixed-size": Method(lambda r: cutmix.FixedSizeCutMix(r.cutout_size, **shared(r, "cutmix"))),
    "cutmix-one-hot": Method(lambda r: cutmix.OneHotCutMix(r.alpha, **shared(r, "cutmix"))),
    "cutmix-complete-label": Method(lambda r: cutmix.CompleteLabelCutMix(r.alpha, **shared(r, "cutmix"))),
    "cutmix-scheduled": Method(lambda r: cutmix.ScheduledCutMix(r.alpha, **shared(r, "cutmix"))),
    "cutmix-3": Method(lambda r: cutmix.MultiCutMix(r.alpha, 3, **shared(r, "cutmix"))),
    "cutmix-4": Method(lambda r: cutmix.MultiCutMix(r.alpha, 4, **shared(r, "cutmix"))),
    "smmix": Method(lambda r: cutmix.SMMix(
        r.mix_prob, mixup_alpha=r.alpha, inplace=True, seed=derive_seed(r.seed, "smmix"), head=cutmix.WithTokenHead
    ), whole=True),
}  # fmt: skip
"""The choices of ``--mix``."""


def method_of(recipe: Recipe) -> Method:
    """Return the mixing method that a recipe names."""
    if recipe.mix not in MIXES:
        raise InputError(f"--mix is {recipe.mix}; expected one of {', '.join(MIXES)}")
    return MIXES[recipe.mix]


def make_mix(recipe: Recipe) -> "Mix":
    """Return the mixing method of a recipe, and refuse fields that it does not read."""
    method, mix = method_of(recipe), recipe.mix
    if recipe.mix_layers != ALL_LAYERS and not method.layers:
        expected = " or ".join(name for name, other in MIXES.items() if other.layers)
        raise InputError(f"--mix-layers is given, but --mix is {mix}, which has none; expected --mix {expected}")
    if method.whole and (recipe.mix_per_sample or recipe.accumulate > 1):
        raise InputError(f"--mix {mix} takes whole batches: give neither --mix-per-sample nor --accumulate")
    if recipe.cutout and not method.after_cutout:
        raise InputError(
            f"--cutout goes before another mix, but --mix is {mix}; for Cutout alone, give --mix cutout only"
        )
    return method.make(recipe)


METHOD_FIELDS = (
    "alpha", "mixup_alpha", "mix_prob", "mix_per_sample", "mix_layers", "cutout", "cutout_size", "label_smoothing",
    "stochastic_depth", "shake_drop", "depth_decay", "drop_block", "drop_block_size", "auto_augment", "random_erasing",
)  # fmt: skip
"""Fields of a recipe that a method of ``cutmix compare`` may set."""


def with_method(recipe: Recipe, text: str) -> Recipe:
    """Return a recipe with a method in place of its own: a mix, or one with settings.

    In "cutmix:alpha=0.5,label-smoothing=0.1" the settings are fields of the recipe; "mix-layers=0+2" has two values.
    """
    mix, colon, settings = text.partition(":")
    changes: dict[str, Any] = {}
    for setting in settings.split(",") if colon else ():
        name, _, value = setting.partition("=")
        field = name.replace("-", "_")
        if field not in METHOD_FIELDS or not value or field in changes:
            raise InputError(
                f"--mix is {text}; expected a method, or one with settings, such as cutmix:alpha=0.5,cutout=true, of "
                f"{', '.join(map(flag, METHOD_FIELDS))}"
            )
        changes[field] = [*map(_value, value.split("+"))] if field == "mix_layers" else _value(value)
    changed = Recipe.from_dict(recipe.to_dict() | {"mix": mix} | changes, f"--mix {text}")
    make_mix(changed)  # refuses what does not fit
    for field in changes:
        if field not in read_fields(changed):
            raise InputError(f"--mix is {text}; {mix} does not read {flag(field)}, so it would change nothing")
    return changed


class _Noting:
    """A recipe that notes which of its fields are read."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe, self._read = recipe, set[str]()

    def __getattr__(self, name: str) -> Any:
        self._read.add(name)
        return getattr(self._recipe, name)


def read_fields(recipe: Recipe) -> set[str]:
    """Return the fields that decide how a recipe mixes and regularizes."""
    noting: Any = _Noting(recipe)
    method_of(recipe).make(noting)
    read = noting._read | {"mix", "cutout", "label_smoothing", "auto_augment", "random_erasing"}
    read |= {"stochastic_depth", "shake_drop", "drop_block"}
    read |= {"cutout_size"} if recipe.cutout else set()
    read |= {"depth_decay"} if recipe.stochastic_depth or recipe.shake_drop else set()
    return read | ({"drop_block_size"} if recipe.drop_block else set())


def note_named(recipe: Recipe, name: str, method: str) -> str:
    """Return a note if the method of a comparison has other settings than the recipe that is named after it.

    ``name`` is that of the baseline; settings that the user has changed need no note.
    """
    baseline, named = RECIPES.get(name), RECIPES.get(f"{name}-{method}")
    if not baseline or not named:
        return ""
    fields = [field for field in METHOD_FIELDS if field in read_fields(named)]
    fields = [field for field in fields if getattr(named, field) != getattr(recipe, field) == getattr(baseline, field)]
    here, there = (" ".join(f"--{flag(field)} {getattr(one, field)}" for field in fields) for one in (recipe, named))
    settings = ",".join(f"{flag(field)}={getattr(named, field)}" for field in fields)
    text = f"note: {method} has {here} here, and {there} in the recipe {named.name}; {method}:{settings} is as there"
    return text if fields else ""


def _value(text: str) -> Any:
    """Return a number or a truth value that a text holds, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def make_cutout(recipe: Recipe) -> "cutmix.Cutout | None":
    """Return the Cutout of ``--cutout``, which writes into a batch before it is mixed; None without it."""
    seed = derive_seed(recipe.seed, "cutout")
    return cutmix.Cutout(recipe.cutout_size, seed=seed, inplace=True) if recipe.cutout else None


def image_mixing(recipe: Recipe) -> "Callable[[Tensor, Tensor], tuple[Tensor, Targets]] | None":
    """Return the recipe's change of images, applied to every batch, for previews; None without one."""
    cutout, mix = make_cutout(recipe), make_mix(recipe).on_images()
    if mix:
        mix.prob = 1.0

    def transform(images: "Tensor", labels: "Tensor") -> "tuple[Tensor, Targets]":
        if cutout:
            images, _ = cutout(images, labels)
        return mix(images, labels) if mix else (images, labels)

    return transform if cutout or mix else None
