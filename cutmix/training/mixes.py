"""The mixing of a recipe: each ``--mix`` is one case."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from cutmix.config.recipe import Recipe
from cutmix.mixing import (
    CenterGaussianCutMix,
    CompleteLabelCutMix,
    CutMix,
    Cutout,
    FeatureCutMix,
    FeatureMix,
    FixedSizeCutMix,
    ManifoldMixup,
    Mixup,
    MultiCutMix,
    OneHotCutMix,
    RandomChoice,
    ScheduledCutMix,
    SMMix,
)
from cutmix.mixing.images import BatchTransform
from cutmix.mixing.targets import Targets
from cutmix.runtime.seeding import derive_seed


def make_cutout(recipe: Recipe) -> Cutout | None:
    """Return what cuts squares out of a batch before it is mixed; it writes into the batch."""
    return Cutout(recipe.cutout_size, seed=derive_seed(recipe.seed, "cutout"), inplace=True) if recipe.cutout else None


def make_mix(recipe: Recipe) -> BatchTransform | FeatureMix | SMMix | None:
    """Return the recipe's mixing of a batch; it writes into the batch, which the loader has just made.

    The variants of CutMix and of Mixup have their seed, so that with one seed all begin with the same boxes.
    """
    shared: dict[str, Any] = {"prob": recipe.mix_prob, "per_sample": recipe.mix_per_sample, "inplace": True}
    cutmix = shared | {"seed": derive_seed(recipe.seed, "cutmix")}
    mixup = shared | {"seed": derive_seed(recipe.seed, "mixup")}
    alpha, layers = recipe.alpha, recipe.mix_layers
    match recipe.mix:
        case "none":
            return None
        case "cutmix":
            return CutMix(alpha, **cutmix)
        case "mixup":
            return Mixup(alpha, **mixup)
        case "cutout":
            seed = derive_seed(recipe.seed, "cutout")
            return Cutout(recipe.cutout_size, seed=seed, prob=recipe.mix_prob, inplace=True)
        case "cutmix-or-mixup":
            both = CutMix(alpha, **cutmix), Mixup(recipe.mixup_alpha or alpha, **mixup)
            return RandomChoice(both, seed=derive_seed(recipe.seed, "choice"))
        case "feature-cutmix":
            return FeatureCutMix(layers, alpha, **cutmix)
        case "manifold-mixup":
            return ManifoldMixup(layers, alpha, **mixup)
        case "cutmix-center-gaussian":
            return CenterGaussianCutMix(alpha, **cutmix)
        case "cutmix-fixed-size":
            return FixedSizeCutMix(recipe.cutout_size, **cutmix)
        case "cutmix-one-hot":
            return OneHotCutMix(alpha, **cutmix)
        case "cutmix-complete-label":
            return CompleteLabelCutMix(alpha, **cutmix)
        case "cutmix-scheduled":
            return ScheduledCutMix(alpha, **cutmix)
        case "cutmix-3":
            return MultiCutMix(alpha, 3, **cutmix)
        case "cutmix-4":
            return MultiCutMix(alpha, 4, **cutmix)
        case "smmix":
            seed = derive_seed(recipe.seed, "smmix")
            return SMMix(recipe.mix_prob, mixup_alpha=alpha, inplace=True, seed=seed)


def image_mixing(recipe: Recipe) -> Callable[[Tensor, Tensor], tuple[Tensor, Targets]] | None:
    """Return what the recipe does to images where it does all of it, for pictures; None if it leaves them alone."""
    cutout, mix = make_cutout(recipe), make_mix(replace(recipe, mix_prob=1.0))
    if isinstance(mix, ScheduledCutMix):
        mix.progress = 1.0
    if isinstance(mix, FeatureMix):
        mix = mix.transform if 0 in mix.layers else None
    if isinstance(mix, SMMix):  # which needs the network that looks
        mix = None

    def transform(images: Tensor, labels: Tensor) -> tuple[Tensor, Targets]:
        if cutout:
            images, _ = cutout(images, labels)
        return mix(images, labels) if mix else (images, labels)

    return transform if cutout or mix else None
