"""A recipe: all fields that decide the result of a training run; each is a flag. Imports no torch."""

import math
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, Self, TypeVar

from cutmix.errors import InputError
from cutmix.runtime.files import check_field, check_fields

Value = TypeVar("Value")
if TYPE_CHECKING:
    Derived = Annotated[Value, "None until the data are known"]
else:
    Derived = Optional  # for the command line
BY_DATA: Any = None
"""The value of a field that ``cutmix.config.recipe.complete`` derives from the data; a recipe that runs has none."""

ALL_LAYERS = (0, 1, 2, 3, 4)
FILE_SIZE = 224
"""Side in pixels of a model's input for image files, where the recipe leaves it open."""


@dataclass(frozen=True)
class Training:
    """The fields of every task of the training loop, checked to be in their ranges."""

    name: str = "custom"
    """Name of the run in its folder, its results and the report."""

    data: str = "digits"
    """Data set."""
    model: str = "resnet20"
    """Model."""

    epochs: int = 30
    """Passes over the training set."""
    batch_size: int = 128
    """Images in one optimizer step, over all processes."""
    accumulate: int = 1
    """Number of parts that each process splits its share of a batch into, to save memory."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    lr: float = 0.1
    """Highest learning rate."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = True
    """Use Nesterov momentum."""
    weight_decay: float = 5e-4
    """Weight decay."""
    decay_all: bool = True
    """Apply weight decay to biases and normalization too, as the paper's code does."""
    schedule: Literal["step", "cosine", "constant"] = "cosine"
    """Learning rate schedule."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Shares of the epochs after which the step schedule multiplies the learning rate by gamma."""
    gamma: float = 0.1
    """Factor of the step schedule at each milestone."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up."""
    min_lr: float = 0.0
    """Learning rate at the end of the cosine schedule."""
    clip_grad_norm: float = 0.0
    """Clip the gradient to this norm; 0 does not clip."""
    ema_decay: float = 0.0
    """Decay of the moving average of the weights, which is evaluated in their place; 0 keeps no average."""
    eval_every: int = 1
    """Evaluate every N epochs on the images that choose the best epoch."""
    seed: int = 0
    """Seed of all random draws."""

    precision: Literal["auto", "float32", "tf32", "bfloat16", "float16"] = "auto"
    """Precision of the forward pass; auto is bfloat16 where the device has it in hardware, else float32, as for
    depthwise convolutions on a CPU. tf32 needs a CUDA GPU; float16 scales the loss."""
    channels_last: bool = True
    """Use the channels_last memory format, in which convolutions are usually faster."""
    sync_bn: bool = False
    """Several GPUs: normalize batches over the images of all GPUs; useful with few images on each."""
    compile: Literal["off", "model", "step"] = "off"
    """model: compile the model, for training and evaluation; step: also compile the cropping, flipping, normalization
    and mixing of a batch of a small set, as one graph. The first steps then take a minute."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():  # equal recipes are equal texts: 1.0, as it is read, and not 1
            object.__setattr__(self, name, check_field(type(self), name, value, f"--{flag(name)}"))
        self._check_range("momentum", "ema_decay", "gamma", high=1)
        self._check_range("weight_decay", "warmup_epochs", "clip_grad_norm", "min_lr")
        self._check_range("epochs", "batch_size", "accumulate", "eval_every", low=1)
        self._check_range("lr", above=True)
        if any(not 0 <= m <= 1 for m in self.milestones):
            raise InputError(f"--milestones is {self.milestones}; expected shares of the epochs in [0, 1]")
        if self.ema_decay == 1:
            raise InputError("--ema-decay is 1, which would never learn; expected a number below 1")
        if not -(2**63) <= self.seed < 2**63:
            raise InputError(f"--seed is {self.seed}; expected a 64-bit integer")
        if self.nesterov and self.momentum == 0 and self.optimizer == "sgd":
            raise InputError("--nesterov needs momentum; give --no-nesterov or --momentum above 0")

    def _check_range(self, *fields: str, low: float = 0, high: float = math.inf, above: bool = False) -> None:
        """Check that fields are None or numbers from ``low``, or above it, to ``high``."""
        for field in fields:
            value = getattr(self, field)
            if value is None:
                continue
            if not low <= value <= high or (above and value == low):
                wanted = f"above {low}" if above else f"of at least {low}"
                wanted += "" if high == math.inf else f" and at most {high}"
                raise InputError(f"--{flag(field)} is {value}; expected a number {wanted}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "the recipe") -> Self:
        """Build a recipe from ``to_dict()``; missing fields have their defaults. ``where`` names them in errors."""
        return cls(**check_fields(cls, values, where))


@dataclass(frozen=True)
class Recipe(Training):
    """All fields that decide the result of training a classifier.

    Raises:
        InputError: If a field is out of its range.
    """

    name: Derived[str] = BY_DATA
    """Name of the run in its folder, its results and the report; by default data, model and mix."""
    data: str = "digits"
    """A folder of images or tar shards, a file of labels (.csv, .jsonl, .parquet), the name of a known set (digits,
    cifar-10, cifar-100, fashion-mnist, tiny-imagenet-200, imagenet, cub-200-2011), or hf:NAME of Hugging Face."""
    model: Derived[str] = BY_DATA
    """A model of the paper (resnet20, resnet110, resnet18_cifar, ...) or of timm; by default resnet50 for image
    files, resnet20 for small sets."""

    epochs: Derived[int] = BY_DATA
    """Passes over the training set; by default more for fewer image files and for random weights, 30 for small sets."""
    batch_size: Derived[int] = BY_DATA
    """Images in one optimizer step, over all processes; by default 8 to 64 for image files, depending on their
    number, 128 for small sets."""
    optimizer: Derived[Literal["sgd", "adamw"]] = BY_DATA
    """SGD with momentum, or AdamW; by default AdamW for image files, SGD for small sets."""
    lr: Derived[float] = BY_DATA
    """Highest learning rate; by default it follows from batch size, epochs and weights for image files, and is 0.1 for
    small sets."""
    weight_decay: Derived[float] = BY_DATA
    """Weight decay; by default 0.05 for image files, 0.0005 for small sets."""
    warmup_epochs: Derived[float] = BY_DATA
    """Epochs of linear warm-up; by default a tenth of the epochs for image files, 0 for small sets."""
    ema_decay: Derived[float] = BY_DATA
    """Largest decay of the moving average of the weights, which is evaluated and exported in their place; 0 keeps no
    average. By default 0.99 for image files, 0 for small sets."""

    val_fraction: float = 0.2
    """Share of each class to hold out where a folder has no validation split; 0 holds out nothing, and makes val/
    without test/ the test split."""
    split_seed: int = 0
    """Seed of the division into splits or folds, separate from the seed of training."""
    folds: int = 0
    """Cross-validate: divide a folder without splits into N folds and train N times, each time testing on another fold;
    0 trains once."""
    fold: int = 0
    """Train only the run that tests on this fold, counted from 1; 0 trains all folds in turn."""
    train_per_class: int | None = None
    """Train on N images of each class; a smaller subset is part of a larger one. By default all images."""
    train_error: bool = False
    """Evaluate the training images too, without augmentation or mixing."""
    channels: int = 3
    """Image files: channels that images are decoded to: 1 grey, 3 RGB, 4 RGB and opacity; up to 16 for files with as
    many bands. Pretrained weights are adapted, and the images normalized by statistics of the training images."""
    image_size: int | None = None
    """Side of the model's input in pixels; by default a small set's own size, and 224 for image files."""
    crop_padding: int = 4
    """Small sets: pixels of padding before the random crop; 0 does not crop."""
    padding_mode: Literal["constant", "reflect"] = "constant"
    """Small sets: pad with black (constant) or with the mirrored border (reflect)."""
    crop_scale: Derived[tuple[float, float]] = BY_DATA
    """Image files: minimum and maximum share of the image that a random crop covers; by default 0.3 1."""
    crop_fraction: float = 0.875
    """Image files: side of the centre crop for testing, as a share of the side of the resized image."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Image files: interpolation of the resize, for training and for testing."""
    decoder: Literal["exact", "fast"] = "fast"
    """Image files: decoder of JPEG. exact: Pillow at full resolution, as in torchvision; fast: libjpeg-turbo at the
    resolution that the crop needs."""
    squash: bool = False
    """Image files: resize to a square, ignoring the aspect ratio, and crop without resizing, as for localization."""
    flip: bool = True
    """Flip half of the training images horizontally."""
    auto_augment: str = "none"
    """Augment each training image with AutoAugment's policy for imagenet, cifar10 or svhn, with TrivialAugment
    (trivial), AugMix (augmix, without its consistency loss), or RandAugment in timm's syntax, such as
    rand-m9-mstd0.5-inc1; none has no effect."""
    repeated_augmentation: int = 1
    """Number of differently augmented copies of each training image in a batch; an epoch has that many times fewer
    images. 1 has no effect."""
    random_erasing: float = 0.0
    """Probability of replacing a rectangle of a training image with the mean colour."""
    color_jitter: float = 0.0
    """Maximum change of brightness, contrast and saturation, as a share; 0.4 in the paper's ImageNet code."""
    lighting: float = 0.0
    """Standard deviation of the noise along ImageNet's principal colours; 0.1 in the paper's ImageNet code."""

    pretrained: Derived[bool] = BY_DATA
    """Start from timm's pretrained weights; the default for image files unless --weights is given."""
    weights: str | None = None
    """Start from a file of weights; a head for another number of classes is replaced."""
    weights_ema: bool = False
    """Start from the moving average, where the file holds both the weights and their average."""
    new_head: bool = False
    """Set the head to zero, even if the weights hold a matching one."""
    freeze: int = 0
    """Train only the head for the first N epochs; with N equal to --epochs, this is a linear probe."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each layer to the layer below, for timm's models; 1 has no effect."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory, for models that support it."""
    patience: int = 0
    """Stop at the first evaluation after N epochs without improvement on the val split; 0 trains all epochs."""
    head_lr_factor: float = 1.0
    """Learning rate of the head, as a multiple of the learning rate of the other layers."""
    zero_init: bool = True
    """timm's ResNets: initialize residual branches to zero, which the paper's code does not."""
    stochastic_depth: float = 0.0
    """Probability of dropping the last block's residual branch for a sample; 0.25 in the paper."""
    shake_drop: float = 0.0
    """Probability of shaking the last block's residual branch; its authors use 0.5."""
    depth_decay: Literal["linear", "constant"] = "linear"
    """Stochastic depth and ShakeDrop: increase the probability linearly with depth, or use it in every block."""
    drop_block: float = 0.0
    """Share of the last stage's feature maps that DropBlock drops; 0.1 in the paper."""
    drop_block_size: int = 4
    """Side of DropBlock's squares in pixels of the feature map."""

    mix: Derived[str] = BY_DATA
    """Mixing method; by default none."""
    alpha: float = 1.0
    """α of the Beta distribution of CutMix and Mixup."""
    mixup_alpha: float | None = None
    """cutmix-or-mixup: α of Mixup; by default that of CutMix. DeiT uses 0.8."""
    mix_prob: Derived[float] = BY_DATA
    """Probability that a batch, or with --mix-per-sample a sample, is mixed; by default 0.5 for image files, 1 for
    small sets."""
    mix_per_sample: bool = False
    """Draw λ and the box for every sample instead of once a batch."""
    mix_layers: tuple[int, ...] = ALL_LAYERS
    """feature-cutmix and manifold-mixup: layers to mix at, one drawn for each batch; 0 image, 1 stem, 2 to 4 stages."""
    cutout: bool = False
    """Apply Cutout to every image before the mixing method."""
    cutout_size: Derived[int] = BY_DATA
    """Side of Cutout's square in pixels, and of the box of cutmix-fixed-size; by default half the side of the image, as
    in the paper."""

    label_smoothing: Derived[float] = BY_DATA
    """Share of the target that is spread over all classes; by default 0.1 for image files with one label each, 0 for
    small sets. With several labels per image, each target moves this share of the way to ½."""
    class_weights: str | None = None
    """Weight the loss of each class: balanced, by the inverse of its number of training images, or a CSV or JSON file
    of weights by class name. Weights are scaled to a mean of 1 over the training images. By default all are equal."""
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    """Order of the training images: shuffle, each image once per epoch; balanced, equally many images of each class."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("val_fraction", "mix_prob", "label_smoothing", "color_jitter", high=1)
        self._check_range("stochastic_depth", "shake_drop", "drop_block", "random_erasing", high=1)
        self._check_range("crop_fraction", "layer_decay", high=1, above=True)
        self._check_range("freeze", "patience", "crop_padding", "lighting")
        self._check_range("repeated_augmentation", "image_size", low=1)
        if self.layer_decay != 1 and (self.head_lr_factor != 1 or self.mix == "smmix"):
            raise InputError("--layer-decay sets the learning rates: give neither --head-lr-factor nor --mix smmix")
        self._check_range("channels", low=1, high=16)
        self._check_range("cutout_size", "drop_block_size", "train_per_class", low=1)
        self._check_range("alpha", "mixup_alpha", "head_lr_factor", above=True)
        if self.crop_scale and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise InputError(f"--crop-scale is {self.crop_scale}; expected two rising shares in (0, 1]")
        if self.pretrained and self.weights:
            raise InputError("--pretrained and --weights are both given; training starts from one of them")
        if not (self.folds == 0 == self.fold or 2 <= self.folds <= 100):
            raise InputError(f"--folds is {self.folds}; expected 0, or 2 to 100")
        if not 0 <= self.fold <= self.folds:
            raise InputError(f"--fold is {self.fold}; expected 0 to {self.folds}, the number of folds")
        check_policy(self.auto_augment, "--auto-augment")
        self._check_methods()

    def reading(self) -> dict[str, Any]:
        """Return the arguments of ``open_splits`` that decide how the data are divided and decoded."""
        division = {"val_fraction": self.val_fraction, "seed": self.split_seed, "channels": self.channels}
        return division | {"fold": (self.fold, self.folds) if self.folds else None}

    def _check_methods(self) -> None:
        """Check that no regularizer drops everything or is given twice, and that the layers exist."""
        for field in ("stochastic_depth", "shake_drop", "drop_block"):
            if getattr(self, field) == 1:
                raise InputError(f"--{flag(field)} is 1, which drops everything; expected a number below 1")
        if self.stochastic_depth and self.shake_drop:
            raise InputError("--stochastic-depth and --shake-drop are both given; ShakeDrop replaces stochastic depth")
        if not self.mix_layers or not set(self.mix_layers) <= set(ALL_LAYERS):
            raise InputError(
                f"--mix-layers is {self.mix_layers}; expected some of 0 (the image), 1 (the stem), 2, 3, 4 (the stages)"
            )
        if self.repeated_augmentation > 1 and self.sampler == "balanced":
            raise InputError("--repeated-augmentation and --sampler balanced are both given; each orders the images")
        if self.class_weights == self.sampler == "balanced":
            raise InputError(
                "--class-weights balanced and --sampler balanced are both given, which would balance twice; give one"
            )


_POLICIES = ("none", "imagenet", "cifar10", "svhn", "trivial", "augmix")
_RAND_AUGMENT = re.compile(
    r"rand(-m\d+|-n[1-9]\d*|-p(0|1|[01]\.\d+)|-mstd\d+(\.\d+)?|-mmax[1-9]\d*|-inc[01]|-t(weights|3aw?))*"
)


def check_policy(policy: str, name: str = "auto_augment") -> None:
    """Raise InputError unless a policy of AutoAugment is known, or is a RandAugment in timm's syntax."""
    if policy not in _POLICIES and not _RAND_AUGMENT.fullmatch(policy):
        raise InputError(
            f"{name} is '{policy}'; expected one of {', '.join(_POLICIES)}, or a RandAugment in timm's syntax, "
            "such as rand-m9-mstd0.5-inc1 (m, n, p, mstd, mmax, inc, t)"
        )


def flag(field: str) -> str:
    """Return a field's name as on the command line."""
    return field.replace("_", "-")


# A set of small images that is one tensor: ResNet-20, trained from scratch.
ARRAYS: dict[str, Any] = {
    "model": "resnet20", "pretrained": False, "epochs": 30, "batch_size": 128, "optimizer": "sgd", "lr": 0.1,
    "weight_decay": 5e-4, "warmup_epochs": 0.0, "ema_decay": 0.0, "crop_scale": (0.08, 1.0), "mix": "none",
    "mix_prob": 1.0, "cutout_size": 16, "label_smoothing": 0.0,
}  # fmt: skip


FEW_STEPS = 100
"""Steps below which trained weights get a higher rate: in 30 and 48 it helps, in 160 it does harm."""


def complete(
    recipe: Recipe, *, images: int, classes: int, files: bool, side: int = 32, multi_label: bool = False
) -> tuple[Recipe, list[str]]:
    """Replace every field that is None by the value that suits the data; return notes on the choices too.

    ``images`` and ``classes`` are the numbers of training images and of classes, ``side`` is that of the images where
    the recipe has none. Sets of small images, which are not ``files``, have no notes. Labels are not smoothed with
    ``multi_label``.
    """
    values = dict(ARRAYS)
    if files:
        trained = bool(recipe.weights) or recipe.pretrained is not False
        values = _for_files(recipe, images, trained) | {"pretrained": trained and not recipe.weights}
        values |= {"label_smoothing": 0.0} if multi_label else {}
    values["cutout_size"] = max((recipe.image_size or side) // 2, 1)
    missing = {name: value for name, value in values.items() if getattr(recipe, name) is None}
    filled = replace(recipe, **missing)
    if filled.name is None:
        stem = Path(filled.data).expanduser().resolve().name if Path(filled.data).exists() else filled.data
        filled = replace(filled, name=f"{stem}-{filled.model}-{filled.mix}".replace("/", "-"))
    return filled, _explain(filled, missing, images, classes) if files else []


def _for_files(recipe: Recipe, images: int, trained: bool) -> dict[str, Any]:
    """Return the defaults for a folder of images; results/defaults.log.jsonl holds the runs behind them.

    There is no mixing by default: those runs show no gain from CutMix at 0.5.
    """
    few = (300 / images) ** (1 / 3)  # three hundred images are the middle of the tried range
    enough = _clip(30 * few, 10, 60) if trained else _clip(120 * few, 60, 200)
    epochs = recipe.epochs or enough
    batch_size = recipe.batch_size or 2 ** _clip(math.log2(images / 12), 3, 6)
    power = 0.25 if trained and batch_size < 32 else 0.5
    lr = (5e-4 if trained else 1e-3) * (batch_size / 32) ** power
    if _of_few_classes(recipe.weights):
        lr = max(lr, 1e-3)  # such weights hold little, and have to move far
    short = FEW_STEPS / (epochs * math.ceil(images / batch_size)) if trained else enough / epochs
    if short > 1:  # a low rate would leave the weights where they were
        lr = max(lr, min(lr * short, 1.5e-3))
    return {
        "model": "resnet50", "epochs": epochs, "batch_size": batch_size, "optimizer": "adamw", "lr": float(f"{lr:.2g}"),
        "weight_decay": 0.05, "warmup_epochs": round(epochs / 10, 1), "ema_decay": 0.99, "crop_scale": (0.3, 1.0),
        "mix": "none", "mix_prob": 0.5, "label_smoothing": 0.1,
    }  # fmt: skip


def _of_few_classes(weights: str | None) -> bool:
    """Return whether the weights are of a run with fewer than 100 classes."""
    if not weights or not Path(weights).expanduser().is_file():
        return False
    from cutmix.runtime.checkpoint import read_header  # loads torch

    return 0 < len(read_header(Path(weights).expanduser()).classes or ()) < 100


def _clip(value: float, low: int, high: int) -> int:
    return min(max(round(value), low), high)


def _explain(recipe: Recipe, chosen: dict[str, Any], images: int, classes: int) -> list[str]:
    """Return a line for each group of chosen fields: the flags, and the reason."""
    start = "trained weights" if recipe.pretrained or recipe.weights else "random weights"
    seen, steps = recipe.epochs * images, recipe.epochs * math.ceil(images / recipe.batch_size)
    few = f", {steps} steps in all" if steps < FEW_STEPS else ""
    reasons = {
        ("model", "pretrained"): f"the model, with {start}",
        ("epochs", "batch_size"): f"for {images:,} training images and {start}: {seen:,} images over all epochs",
        ("optimizer", "lr", "weight_decay", "warmup_epochs"): f"for {start} and batches of {recipe.batch_size}{few}",
        ("crop_scale", "label_smoothing", "ema_decay"): f"against overfitting {classes} classes",
        ("mix",): "cutmix compare --mix none cutmix tells whether mixing helps on these images",
        ("mix_prob",): "half of the batches are mixed",
        ("cutout_size",): "half the side of the image",
    }
    read = {
        "mix_prob": recipe.mix != "none", "cutout_size": recipe.mix in ("cutout", "cutmix-fixed-size") or recipe.cutout,
        "crop_scale": not recipe.squash,
    }  # fmt: skip
    chosen = {name: value for name, value in chosen.items() if read.get(name, True)}
    lines = []
    for names, reason in reasons.items():
        flags = [f"--{flag(name)} {_say(chosen[name])}" for name in names if name in chosen]
        lines += [f"  {' '.join(flags)}: {reason}"] if flags else []
    return ["chosen by the data, where no flag is given:", *lines] if lines else []


def _say(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
