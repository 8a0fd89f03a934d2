"""Fields of a recipe that follow from the data: small arrays, or files whose number decides. No torch here."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from cutmix.config.recipe import Recipe, flag

# A set of small images that is one tensor: ResNet-20, trained from scratch.
ARRAYS: dict[str, Any] = {
    "model": "resnet20", "pretrained": False, "epochs": 30, "batch_size": 128, "optimizer": "sgd", "lr": 0.1,
    "weight_decay": 5e-4, "warmup_epochs": 0.0, "ema_decay": 0.0, "crop_scale": (0.08, 1.0), "mix": "none",
    "mix_prob": 1.0, "label_smoothing": 0.0,
}  # fmt: skip


def complete(recipe: Recipe, *, images: int, classes: int, files: bool) -> tuple[Recipe, list[str]]:
    """Replace every field that is None by the value that suits the data.

    Args:
        recipe: Fields that are given stay as they are.
        images: Number of training images.
        classes: Number of classes.
        files: Whether the images are files of any size, which ``image_size`` pixels are cropped from.

    Returns:
        The complete recipe, and lines that say what was chosen and why; none for sets of small images.
    """
    values = dict(ARRAYS)
    if files:
        trained = bool(recipe.weights) or recipe.pretrained is not False
        values = _for_files(recipe, images, trained) | {"pretrained": trained and not recipe.weights}
    missing = {name: value for name, value in values.items() if getattr(recipe, name) is None}
    filled = replace(recipe, **missing)
    if filled.name is None:
        stem = Path(filled.data).expanduser().resolve().name if Path(filled.data).exists() else filled.data
        filled = replace(filled, name=f"{stem}-{filled.model}-{filled.mix}".replace("/", "-"))
    return filled, _explain(filled, missing, images, classes) if files else []


def _for_files(recipe: Recipe, images: int, trained: bool) -> dict[str, Any]:
    """Return the defaults for a folder of images; results/defaults.log.jsonl holds the runs made so far."""
    few = (300 / images) ** (1 / 3)  # three hundred images are the middle of what was tried
    epochs = recipe.epochs or (_clip(30 * few, 10, 60) if trained else _clip(120 * few, 60, 200))
    batch_size = recipe.batch_size or 2 ** _clip(math.log2(images / 12), 3, 6)
    lr = (5e-4 if trained else 1e-3) * math.sqrt(batch_size / 32)
    return {
        "model": "resnet50", "epochs": epochs, "batch_size": batch_size, "optimizer": "adamw", "lr": float(f"{lr:.2g}"),
        "weight_decay": 0.05, "warmup_epochs": round(epochs / 10, 1), "ema_decay": 0.99, "crop_scale": (0.3, 1.0),
        "mix": "cutmix", "mix_prob": 0.5, "label_smoothing": 0.1,
    }  # fmt: skip


def _clip(value: float, low: int, high: int) -> int:
    return min(max(round(value), low), high)


def _explain(recipe: Recipe, chosen: dict[str, Any], images: int, classes: int) -> list[str]:
    """Return a line for each group of chosen fields: the flags, and the reason."""
    start = "trained weights" if recipe.pretrained or recipe.weights else "random weights"
    seen = recipe.epochs * images
    reasons = {
        ("model", "pretrained"): f"the model, with {start}",
        ("epochs", "batch_size"): f"{images:,} training images, {start}: {seen:,} are seen, fewer images more often",
        ("optimizer", "lr", "weight_decay", "warmup_epochs"): f"for {start} and batches of {recipe.batch_size}",
        ("mix", "mix_prob", "label_smoothing", "crop_scale", "ema_decay"): f"against overfitting {classes} classes",
    }
    lines = []
    for names, reason in reasons.items():
        flags = [f"--{flag(name)} {_say(chosen[name])}" for name in names if name in chosen]
        lines += [f"  {' '.join(flags)}: {reason}"] if flags else []
    return ["chosen by the data, where no flag is given:", *lines] if lines else []


def _say(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
