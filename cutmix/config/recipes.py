"""Every run as a value: a recipe is a baseline and a method, each a difference. No torch here.

``cutmix train NAME`` runs one; every field is a flag, so ``cutmix train NAME --epochs 60`` is a recipe too. The
resolved recipe is written into the run's ``config.json`` and can be run again from there.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from cutmix.config.recipe import ARRAYS, FILE_SIZE, Recipe, Training
from cutmix.config.tasks import Detection, Transfer, recipe_of
from cutmix.errors import InputError, did_you_mean

# ---- methods: the changes of a row of the paper's tables to the baseline of its network ----

_CUTOUT = {"mix": "cutout"}
_DROP_BLOCK = {"drop_block": 0.1}
_LABEL_SMOOTHING = {"label_smoothing": 0.1}
_MANIFOLD_MIXUP = {"mix": "manifold-mixup"}
_SHAKE_DROP = {"shake_drop": 0.5}

METHODS: dict[str, dict[str, Any]] = {
    "stochastic-depth": {"stochastic_depth": 0.25},
    "label-smoothing": _LABEL_SMOOTHING,
    "cutout": _CUTOUT,
    "cutout-label-smoothing": _CUTOUT | _LABEL_SMOOTHING,
    "dropblock": _DROP_BLOCK,
    "dropblock-label-smoothing": _DROP_BLOCK | _LABEL_SMOOTHING,
    "mixup": {"mix": "mixup"},
    "mixup-0.5": {"mix": "mixup", "alpha": 0.5},
    "mixup-1.0": {"mix": "mixup", "alpha": 1.0},
    "manifold-mixup": _MANIFOLD_MIXUP,
    "cutout-mixup": {"mix": "mixup", "cutout": True},
    "cutout-manifold-mixup": _MANIFOLD_MIXUP | {"cutout": True},
    "shakedrop": _SHAKE_DROP,
    "cutmix": {"mix": "cutmix"},
    "cutmix-shakedrop": {"mix": "cutmix"} | _SHAKE_DROP,
    "cutmix-or-mixup": {"mix": "cutmix-or-mixup", "mixup_alpha": 0.8},
    "smmix": {"mix": "smmix", "alpha": 0.8, "mix_prob": 0.5},
    **{f"cutmix-alpha-{alpha:g}": {"mix": "cutmix", "alpha": alpha} for alpha in (0.1, 0.25, 0.5, 2.0, 4.0)},
    "feature-cutmix": {"mix": "feature-cutmix"},
    **{f"feature-cutmix-layer-{layer}": {"mix": "feature-cutmix", "mix_layers": (layer,)} for layer in range(5)},
    "cutmix-center-gaussian": {"mix": "cutmix-center-gaussian"},
    "cutmix-fixed-size": {"mix": "cutmix-fixed-size"},
    "cutmix-one-hot": {"mix": "cutmix-one-hot"},
    "cutmix-scheduled": {"mix": "cutmix-scheduled", "mix_prob": 1.0},
    "cutmix-complete-label": {"mix": "cutmix-complete-label"},
    "cutmix-3-images": {"mix": "cutmix-3"},
    "cutmix-4-images": {"mix": "cutmix-4"},
    "autoaugment": {"auto_augment": "imagenet", "color_jitter": 0.0, "lighting": 0.0},
}
"""The paper's methods with its numbers (v2 §4.1, Tables 3 to 8), and these choices where it gives none:

* The probability of CutMix is not in the paper. Its code has 0.5 on CIFAR and 1 elsewhere, which the ablations and
  Feature CutMix share here; Scheduled CutMix ends at 1. Mixup, Manifold Mixup and Cutout are in every batch.
* Manifold Mixup and Feature CutMix choose among the five layers of Figure 3.
* Stochastic depth is linear in depth, as its authors recommend; so is ShakeDrop, with its authors' 0.5.
* DropBlock has one rate all through the training, at the places that ``regularize`` describes.
* Center-Gaussian CutMix has a deviation of a quarter of the side.
* AutoAugment replaces the colour jitter and lighting; its authors found that random colours beside it change nothing.
"""


def with_methods(
    baseline: Recipe, *methods: str, cutmix_prob: float | None = None, **changes: dict[str, Any]
) -> list[Recipe]:
    """Return a baseline and the same with each of ``METHODS``, named after it.

    ``cutmix_prob`` replaces the probability of CutMix and its variants; ``changes`` are further fields of a method on
    this baseline.
    """
    made = [baseline]
    for name in methods:
        fields: dict[str, Any] = {"name": f"{baseline.name}-{name}"}
        if cutmix_prob is not None and "cutmix" in METHODS[name].get("mix", ""):
            fields |= {"mix_prob": cutmix_prob}
        made.append(replace(baseline, **(fields | METHODS[name] | changes.get(name, {}))))
    return made


# ---- short runs, and other people's protocols ----

SMALL = Recipe(**ARRAYS)
"""The defaults for a set of small images: ResNet-20 from random weights, 30 epochs."""

DIGITS = replace(
    SMALL, name="digits-resnet20", data="digits", crop_padding=1, flip=False, epochs=40, batch_size=64, lr=0.05,
    cutout_size=4,
)  # fmt: skip
"""The embedded set: 8×8 scans, a thousand to train on. Digits have a left and a right, so nothing is mirrored."""

FASHION = replace(SMALL, name="fashion-resnet20", data="fashion-mnist", crop_padding=2)

CIFAR100 = replace(SMALL, name="cifar100-resnet20", data="cifar-100", warmup_epochs=1)
"""A short run for a CPU, not one of the paper's: cosine instead of steps, because it needs fewer epochs."""

CIFAR10 = replace(CIFAR100, name="cifar10-resnet20", data="cifar-10")

CIFAR100_RESNET18 = replace(
    CIFAR100, name="cifar100-resnet18", model="resnet18_cifar", epochs=200, batch_size=100, weight_decay=1e-4,
    warmup_epochs=0, nesterov=False, padding_mode="reflect",
)  # fmt: skip
"""The protocol of OpenMixup's CIFAR-100 table, so that its published numbers can be compared with."""

TINY = replace(
    SMALL, name="tiny-resnet18", data="tiny-imagenet-200", model="resnet18_cifar", epochs=100, batch_size=100, lr=0.2,
    weight_decay=1e-4, crop_padding=8, cutout_size=32,
)  # fmt: skip

TINY_RESNET20 = replace(TINY, name="tiny-resnet20", model="resnet20", epochs=10, lr=0.1, warmup_epochs=1)
"""A short run for a CPU, with class activation maps of 16×16."""

PHOTOS = Recipe(name="photos", data="")
"""The recipe of ``cutmix train --data FOLDER``: everything follows from the images (``cutmix.config.recipe``)."""

# ---- the paper's ----

PAPER_CIFAR100 = replace(
    SMALL, name="cifar100-pyramidnet200", data="cifar-100", model="pyramidnet200", epochs=300, batch_size=64, lr=0.25,
    weight_decay=1e-4, schedule="step", milestones=(0.5, 0.75),
)  # fmt: skip
"""§4.1.2, with Nesterov, the decay and the CIFAR-10 constants of normalization that only its code has.

The authors divided each batch between two GPUs, so that a normalization saw 32 images: ``torchrun --nproc-per-node 2``.
They computed in float32, which ``--precision float32`` is on a GPU too.
"""

PAPER_CIFAR10 = replace(PAPER_CIFAR100, name="cifar10-pyramidnet200", data="cifar-10")

PAPER_CIFAR100_PYRAMIDNET110 = replace(PAPER_CIFAR100, name="cifar100-pyramidnet110", model="pyramidnet110")
"""As PyramidNet-200, also for CutMix, as an author says that it probably was."""

PAPER_CIFAR100_RESNET110 = replace(PAPER_CIFAR100, name="cifar100-resnet110", model="resnet110")
"""As PyramidNet-200; but CutMix ran at lr 0.1 and probability 1 here, as an author says."""

PAPER_IMAGENET = replace(
    SMALL, name="imagenet-resnet50", data="imagenet", model="resnet50", zero_init=False, image_size=224,
    color_jitter=0.4, lighting=0.1, epochs=300, batch_size=256, lr=0.1, weight_decay=1e-4, schedule="step",
    milestones=(0.25, 0.5, 0.75), cutout_size=112,
)  # fmt: skip
"""§4.1.1, with Nesterov, the decay, the colours and the first weights that only its code has.

The authors divided each batch among four GPUs (``torchrun --nproc-per-node 4``), in float32. The table's DropBlock is
quoted from its authors, who trained for 270 epochs; here it has their block of 7 and the epochs of the others.
AutoAugment is quoted too.
"""

PAPER_IMAGENET_RESNET101 = replace(PAPER_IMAGENET, name="imagenet-resnet101", model="resnet101")
PAPER_IMAGENET_RESNEXT101 = replace(PAPER_IMAGENET, name="imagenet-resnext101", model="resnext101_32x4d")

PAPER_CUB = replace(
    SMALL, name="cub-resnet50-wsol", data="cub-200-2011", model="resnet50_wsol", pretrained=True, new_head=True,
    head_lr_factor=10.0, image_size=224, squash=True, epochs=600, batch_size=32, lr=0.001, weight_decay=1e-4,
    nesterov=False, schedule="step", milestones=(0.25, 0.5, 0.75), eval_every=10,
    cutout_size=112,
)  # fmt: skip
"""Localization, appendix B: learning rate 0.01 for the head, decays every 150 epochs, images resized to 256×256.

Flips, Nesterov's momentum and CutMix's probability are not stated; here there are flips, plain momentum and 1.
"""

PAPER_CUB_VGG = replace(PAPER_CUB, name="cub-vgg16-wsol", model="vgg16_gap", lr=0.0001)

PAPER_IMAGENET_WSOL = replace(
    PAPER_CUB, name="imagenet-resnet50-wsol", data="imagenet", epochs=20, batch_size=256, lr=0.01,
    milestones=(0.3, 0.6, 0.9), eval_every=1,
)  # fmt: skip
"""Learning rate 0.1 for the head, decays every 6 epochs."""

# ---- vision transformers: SMMix beside CutMix, Mixup and their random choice ----

SMMIX_IMAGENET = replace(
    SMALL, name="imagenet-deit-tiny", data="imagenet", model="deit_tiny_patch16_224", image_size=224, epochs=300,
    batch_size=1024, optimizer="adamw", lr=1e-3, min_lr=1e-5, weight_decay=0.05, decay_all=False, warmup_epochs=5,
    label_smoothing=0.1, stochastic_depth=0.1, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic",
    channels_last=False, cutout_size=112,
)  # fmt: skip
"""As SMMix's code trains, which is DeiT without the parts that its defaults leave out. Its choices by their names here:

* ``mix_prob`` 0.5 of the batches have SMMix, the others Mixup with ``alpha`` 0.8, as in DeiT's random choice.
* No repeated augmentation and no random erasing, which DeiT has; no ``clip_grad_norm``, as in DeiT.
* ``ema_decay`` 0: the code keeps an average that it never updates, and evaluates the weights themselves.
* ``color_jitter`` 0: the code asks for 0.4, which timm leaves out beside RandAugment.
* No cool-down: the code asks for ten epochs of it, but ends after its 300, before they would begin.

The learning rate is set step by step here and its cosine begins after the warm-up; the code sets it epoch by epoch.
"""

_NETWORKS = {
    "deit-tiny": "deit_tiny_patch16_224", "deit-small": "deit_small_patch16_224", "deit-base": "deit_base_patch16_224",
    "cait-xxs24": "cait_xxs24_224", "cait-xxs36": "cait_xxs36_224", "pvt-tiny": "pvt_tiny", "pvt-small": "pvt_small",
    "pvt-medium": "pvt_medium", "pvt-large": "pvt_large",
}  # fmt: skip

SMMIX_CIFAR100 = replace(
    SMMIX_IMAGENET, name="cifar100-deit-tiny", data="cifar-100", model="deit_tiny_patch4_32", image_size=None,
    interpolation="bilinear", epochs=200, batch_size=128, lr=5e-4, warmup_epochs=10, cutout_size=16,
)  # fmt: skip
"""From no paper: 8×8 tokens of 4×4 pixels. Small images have no colour jitter, and are cropped after padding only."""

SMMIX_TINY = replace(
    SMMIX_CIFAR100, name="tiny-deit-tiny", data="tiny-imagenet-200", model="deit_tiny_patch8_64", crop_padding=8,
    cutout_size=32,
)  # fmt: skip

_SMALL = {
    SMMIX_CIFAR100: {
        "deit-tiny": "deit_tiny_patch4_32",
        "cait-xxs24": "cait_xxs24_patch4_32",
        "pvt-tiny": "pvt_tiny_patch1_32",
    },
    SMMIX_TINY: {
        "deit-tiny": "deit_tiny_patch8_64",
        "cait-xxs24": "cait_xxs24_patch8_64",
        "pvt-tiny": "pvt_tiny_patch2_64",
    },
}


def _transformers(baseline: Recipe, networks: dict[str, str]) -> list[Recipe]:
    """Return each network of a baseline with SMMix and the methods that it is compared with."""
    made = []
    for name, model in networks.items():
        decay = "constant" if name.startswith("cait") else "linear"
        network = replace(baseline, name=baseline.name.replace("deit-tiny", name), model=model, depth_decay=decay)  # type: ignore[arg-type]
        made += with_methods(network, "cutmix", "mixup", "cutmix-or-mixup", "smmix", mixup={"alpha": 0.8})
    return made


_MIXES = ("cutmix", "mixup", "cutout")
_ON_CIFAR100 = [
    name for name in METHODS if name not in ("mixup", "autoaugment", "cutmix-or-mixup", "smmix")
]  # Tables 5 and 8, Figure 3, the talk

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        *with_methods(DIGITS, *_MIXES, cutmix_prob=0.5),
        *with_methods(FASHION, *_MIXES, cutmix_prob=0.5),
        *with_methods(CIFAR10, *_MIXES, cutmix_prob=0.5),
        *with_methods(CIFAR100, *_MIXES, cutmix_prob=0.5),
        *with_methods(CIFAR100_RESNET18, *_MIXES, cutmix={"alpha": 0.2}),
        *with_methods(TINY, *_MIXES),
        *with_methods(TINY_RESNET20, *_MIXES, cutmix_prob=0.5),
        PHOTOS,
        *with_methods(PAPER_CIFAR100, *_ON_CIFAR100, cutmix_prob=0.5),
        *with_methods(PAPER_CIFAR100_PYRAMIDNET110, "cutmix", cutmix_prob=0.5),
        *with_methods(PAPER_CIFAR100_RESNET110, *_MIXES, cutmix={"lr": 0.1, "mix_prob": 1.0}),
        *with_methods(PAPER_CIFAR10, "cutout", "mixup-1.0", "manifold-mixup", "cutmix", cutmix_prob=0.5),
        *with_methods(
            PAPER_IMAGENET, "stochastic-depth", "cutout", "mixup", "manifold-mixup", "dropblock", "feature-cutmix",
            "cutmix", "autoaugment", dropblock={"drop_block_size": 7},
        ),
        *with_methods(PAPER_IMAGENET_RESNET101, *_MIXES),
        *with_methods(PAPER_IMAGENET_RESNEXT101, "cutmix"),
        *_transformers(SMMIX_IMAGENET, _NETWORKS),
        *(recipe for baseline, networks in _SMALL.items() for recipe in _transformers(baseline, networks)),
        *(
            recipe
            for localization in (PAPER_CUB, PAPER_CUB_VGG, PAPER_IMAGENET_WSOL)
            for recipe in with_methods(localization, *_MIXES)
        ),
    )
}  # fmt: skip


def find_recipe(name: str) -> Recipe:
    """Return the recipe of a name; an unknown name is refused with the closest ones."""
    if name in RECIPES:
        return RECIPES[name]
    hint = did_you_mean(name, RECIPES, "cutmix recipes lists them", cutoff=0.4)
    if Path(name).exists():
        hint = f"to train on the images in it, give --data {name}"
    raise InputError(f'there is no recipe "{name}"; {hint}')


def with_authors_milestones(recipe: Recipe) -> Recipe:
    """Return one of the paper's ImageNet recipes with the decays of its authors' code for its number of epochs.

    The code's ``adjust_learning_rate`` decays every 75 epochs if there are 300, and every 30 otherwise; shares of the
    epochs would move the decays. Any other recipe is returned unchanged.
    """
    named = RECIPES.get(recipe.name)
    own = (named.data, named.milestones, named.epochs) if named else ()
    paper = ("imagenet", PAPER_IMAGENET.milestones, PAPER_IMAGENET.epochs)
    changed = recipe.schedule != "step" or recipe.milestones != PAPER_IMAGENET.milestones
    if own != paper or changed or recipe.epochs == PAPER_IMAGENET.epochs:
        return recipe
    return replace(recipe, milestones=tuple(epoch / recipe.epochs for epoch in range(30, recipe.epochs, 30)))


# Fields that name a run or that its results hold.
_NO_CHANGE = {"name", "seed", "data", "backbone"}


def recipe_changes(recipe: Training) -> dict[str, Any] | None:
    """Return the fields in which a recipe differs from the one of its name, as JSON values; None without such a recipe.

    The text after a "+" in the name is not part of it; detectors and captioners are compared with the paper's. A field
    that the named recipe leaves open (its precision, the size of image files) is not a change.
    """
    if isinstance(recipe, Transfer):
        named: Training | None = recipe_of(recipe)
        named = named.without_unread() if isinstance(named, Detection) else named
    else:
        named = RECIPES.get(recipe.name.partition("+")[0])
    if named is None:
        return None
    own, theirs = recipe.to_dict(), named.to_dict()
    changed = {name: own[name] for name in own if name not in _NO_CHANGE and own[name] != theirs[name]}
    if theirs["precision"] == "auto":
        changed.pop("precision", None)
    if theirs.get("image_size") is None and changed.get("image_size") == FILE_SIZE:
        del changed["image_size"]
    return changed
