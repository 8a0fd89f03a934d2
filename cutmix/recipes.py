"""Every run as a value: a recipe is a difference from its baseline. No torch here.

``cutmix train NAME`` runs one; every field is a flag, so ``cutmix train NAME --epochs 60`` is a recipe too. The
resolved recipe is written into the run's ``config.json`` and can be run again from there.
"""

import math
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, Literal

from cutmix.errors import InputError

Mix = Literal["none", "cutmix", "mixup", "cutout", "cutmix-or-mixup"]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a training run computes.

    Raises:
        InputError: If a field is out of its range.
    """

    name: str = "custom"
    """What the run is called in its folder, its results and the report."""

    data: str = "digits"
    """A folder, or one of digits, cifar-10, cifar-100, fashion-mnist, tiny-imagenet-200, imagenet."""
    val_fraction: float = 0.2
    """Share of each class that is kept for testing where a folder has no test split."""
    image_size: int | None = None
    """Side of the network's input in pixels; by default a small set's own size, and 224 for photographs."""
    crop_padding: int = 4
    """Small sets: pixels of padding before the random crop; 0 does not crop."""
    padding_mode: Literal["constant", "reflect"] = "constant"
    """Small sets: pad with black, or with the mirrored border."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Photographs: smallest and largest share of the picture that a random crop covers."""
    crop_fraction: float = 0.875
    """Photographs: share of the resized picture's side that the centre crop for testing takes."""
    flip: bool = True
    """Mirror half of the training images."""

    model: str = "resnet20"
    """A network of the paper (resnet20, resnet110, resnet18_cifar, ...) or any name that timm knows."""
    pretrained: bool = False
    """Start from timm's pretrained weights."""
    weights: str | None = None
    """Start from a file of weights; a head for other classes is replaced."""

    mix: Mix = "none"
    """What is done to each batch."""
    alpha: float = 1.0
    """α of the Beta distribution of CutMix and Mixup."""
    mix_prob: float = 1.0
    """Probability that a batch is mixed (mix_per_sample: a sample)."""
    mix_per_sample: bool = False
    """Draw λ and the box for every sample instead of once a batch."""
    cutout_size: int = 16
    """Side of Cutout's square in pixels."""

    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    epochs: int = 30
    """Passes over the training set."""
    batch_size: int = 128
    """Images of one optimizer step, over all processes."""
    accumulate: int = 1
    """Parts into which a process splits its share of a batch to save memory."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    lr: float = 0.1
    """Highest learning rate."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = True
    """Nesterov's form of momentum."""
    weight_decay: float = 5e-4
    """Weight decay."""
    decay_all: bool = True
    """Decay biases and normalisation too, as the paper's code does."""
    schedule: Literal["step", "cosine", "constant"] = "cosine"
    """How the learning rate falls."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Shares of the epochs after which a step schedule multiplies the learning rate by gamma."""
    gamma: float = 0.1
    """Factor of a step schedule."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up."""
    clip_grad_norm: float = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    ema_decay: float = 0.0
    """Decay of a moving average of the weights, which is then what is measured; 0 keeps none."""
    eval_every: int = 1
    """Epochs between two measurements on the test set; the last epoch is always measured."""
    seed: int = 0
    """Seed of everything random."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the forward pass; auto is bfloat16 where the device is fast at it."""
    channels_last: bool = True
    """Memory layout that convolutions are faster in."""
    compile: bool = False
    """Compile the network; the first steps then take a minute."""

    def __post_init__(self) -> None:
        limits = {
            "val_fraction": (0, 1), "crop_fraction": (0, 1), "mix_prob": (0, 1), "label_smoothing": (0, 1),
            "momentum": (0, 1), "ema_decay": (0, 1), "gamma": (0, 1), "alpha": (0, math.inf), "lr": (0, math.inf),
            "weight_decay": (0, math.inf), "warmup_epochs": (0, math.inf), "clip_grad_norm": (0, math.inf),
            "crop_padding": (0, math.inf), "epochs": (1, math.inf), "batch_size": (1, math.inf),
            "accumulate": (1, math.inf), "eval_every": (1, math.inf), "cutout_size": (1, math.inf),
        }  # fmt: skip
        for field, (low, high) in limits.items():
            value = getattr(self, field)
            open_below = field in ("alpha", "lr", "crop_fraction")
            if not low <= value <= high or (open_below and value == low) or value == math.inf:
                wanted = f"above {low}" if open_below else f"of at least {low}"
                wanted += "" if high == math.inf else f" and at most {high}"
                raise InputError(f"--{flag(field)} is {value}; expected a number {wanted}")
        if self.image_size is not None and self.image_size < 1:
            raise InputError(f"--image-size is {self.image_size}; expected a number of pixels above 0")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise InputError(f"--crop-scale is {self.crop_scale}; expected two rising shares in (0, 1]")
        if any(not 0 <= m <= 1 for m in self.milestones):
            raise InputError(f"--milestones is {self.milestones}; expected shares of the epochs in [0, 1]")
        if self.ema_decay == 1:
            raise InputError("--ema-decay is 1, which would never learn; expected a number below 1")
        if not -(2**63) <= self.seed < 2**63:
            raise InputError(f"--seed is {self.seed}; expected a 64-bit integer")
        if self.nesterov and self.momentum == 0 and self.optimizer == "sgd":
            raise InputError("--nesterov needs momentum; give --no-nesterov or --momentum above 0")
        if self.pretrained and self.weights:
            raise InputError("--pretrained and --weights are both given; the network can start from one only")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """Build a recipe from ``to_dict()``.

        Raises:
            InputError: If a field is not one of a recipe's.
        """
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise InputError(f"a recipe has no field named {', '.join(sorted(unknown))}")
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**arguments)


def flag(field: str) -> str:
    """Return a field's name as it is written on the command line."""
    return field.replace("_", "-")


def with_mixes(baseline: Recipe, **changes: dict[str, Any]) -> list[Recipe]:
    """Return a baseline and the same with each mixing method, named after it; ``changes`` go to a method's recipe."""
    methods: dict[str, dict[str, Any]] = {"cutmix": {}, "mixup": {}, "cutout": {}} | changes
    mixed = [
        replace(baseline, **{"name": f"{baseline.name}-{mix}", "mix": mix} | change) for mix, change in methods.items()
    ]
    return [baseline, *mixed]


DIGITS = Recipe(name="digits-resnet20", data="digits", crop_padding=1, flip=False, epochs=40, batch_size=64, lr=0.05)
"""The embedded set: 8×8 scans, a thousand to train on. Digits have a left and a right, so nothing is mirrored."""

FASHION = Recipe(name="fashion-resnet20", data="fashion-mnist", crop_padding=2)

CIFAR100 = Recipe(name="cifar100-resnet20", data="cifar-100", warmup_epochs=1)
"""A short run for a CPU, not one of the paper's: cosine instead of steps, because it needs fewer epochs."""

CIFAR10 = replace(CIFAR100, name="cifar10-resnet20", data="cifar-10")

CIFAR100_RESNET18 = replace(
    CIFAR100, name="cifar100-resnet18", model="resnet18_cifar", epochs=200, batch_size=100, weight_decay=1e-4,
    warmup_epochs=0, nesterov=False, padding_mode="reflect",
)  # fmt: skip
"""The protocol of OpenMixup's CIFAR-100 table, so that its published numbers can be compared with."""

PAPER_CIFAR100_RESNET110 = Recipe(
    name="cifar100-resnet110", data="cifar-100", model="resnet110", epochs=300, batch_size=64, lr=0.25,
    weight_decay=1e-4, schedule="step",
)  # fmt: skip
"""The paper's §4.1.2 with the settings that only its code has; CutMix ran at lr 0.1 and probability 1 here."""

TINY = Recipe(
    name="tiny-resnet18", data="tiny-imagenet-200", model="resnet18_cifar", epochs=100, batch_size=100, lr=0.2,
    weight_decay=1e-4, crop_padding=8,
)  # fmt: skip

PHOTOS = Recipe(
    name="photos", data="", model="resnet50", pretrained=True, mix="cutmix", mix_prob=0.5, epochs=30, batch_size=64,
    lr=0.01, weight_decay=1e-4, warmup_epochs=2, crop_scale=(0.3, 1.0), label_smoothing=0.1, ema_decay=0.99,
)  # fmt: skip
"""What ``cutmix train --data FOLDER`` does: a pretrained network, fine-tuned with CutMix on every second batch."""

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        *with_mixes(DIGITS, cutmix={"mix_prob": 0.5}, cutout={"cutout_size": 4}),
        *with_mixes(FASHION, cutmix={"mix_prob": 0.5}),
        *with_mixes(CIFAR10, cutmix={"mix_prob": 0.5}),
        *with_mixes(CIFAR100, cutmix={"mix_prob": 0.5}),
        *with_mixes(CIFAR100_RESNET18, cutmix={"alpha": 0.2}),
        *with_mixes(PAPER_CIFAR100_RESNET110, cutmix={"lr": 0.1, "mix_prob": 1.0}),
        *with_mixes(TINY),
        PHOTOS,
    )
}


def find_recipe(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        InputError: If there is none, with the closest names.
    """
    if name in RECIPES:
        return RECIPES[name]
    close = get_close_matches(name, RECIPES, n=3, cutoff=0.4) or list(RECIPES)[:3]
    raise InputError(f'there is no recipe "{name}"; close to it are {", ".join(close)}')
