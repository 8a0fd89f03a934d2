"""What a run learns: how a batch becomes a loss and how the network is measured. The loop knows no more of it."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cutmix.config.recipe import Recipe
from cutmix.config.recipes import RECIPES
from cutmix.data import ArraySet, ImageSet
from cutmix.data.loaders import Loader
from cutmix.evaluation.classification import (
    Predictions,
    classification_error,
    error_records,
    mean_loss,
    predict,
    predictions_arrays,
)
from cutmix.mixing.targets import Targets
from cutmix.preview import attention_picture, pick_samples, preview_grid
from cutmix.runs.record import Record
from cutmix.runtime.distributed import World, send_buffers
from cutmix.training.mixes import image_mixing
from cutmix.training.state import State


class Evaluation(NamedTuple):
    """What a measurement of the test set found.

    Attributes:
        figures: Numbers for the log.
        arrays: What came out for each sample, from which every record can be computed.
    """

    figures: dict[str, float]
    arrays: dict[str, np.ndarray]


class Task(Protocol):
    """What the loop asks for.

    Attributes:
        key: Which of the figures says that an epoch is the best one.
        less_is_better: Of that figure.
        title: What it is called.
        test_batches: What ``measure`` goes through.
        unit: What follows its number.
        command: The words that start such a run.
    """

    key: ClassVar[str]
    less_is_better: ClassVar[bool]
    title: ClassVar[str]
    test_batches: Loader
    unit: ClassVar[str]
    command: ClassVar[str]

    def split(self, images: Any, targets: Any, progress: float) -> Sequence[tuple[Any, Any]]:
        """Make of a batch the parts that go through the network one by one; ``progress`` is the share of all steps."""

    def loss(self, network: nn.Module, images: Any, targets: Any) -> Tensor:
        """Return the mean loss of a part."""

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Measure the network on the test set; every process takes part, and each gets the whole."""

    def records(self, arrays: dict[str, np.ndarray]) -> list[Record]:
        """Return the records of what ``measure`` found."""

    def opening(self) -> str:
        """Return what is said of method and data before the first step."""

    def notes(self) -> Sequence[str]:
        """Return what was left out or assumed when the data were read, one sentence each."""

    def circumstances(self) -> dict[str, Any]:
        """Return the fields of a record that depend on the task."""

    def fingerprint(self) -> str:
        """Return a digest of the training samples, by which a resumed run knows them."""

    def about(self, epoch: int) -> dict[str, str]:
        """Return what a file of weights says of itself."""

    def samples(self) -> bytes | None:
        """Return a PNG of what the network is shown, or None."""

    def pictures(self, arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
        """Return PNGs of what ``measure`` found after the last epoch, by their names."""


@dataclass
class Classification:
    """Classes of images, with whatever is mixed.

    Attributes:
        recipe: What is run.
        state: Network and transforms.
        world: This process among all.
        train_set: Images to train on.
        test_set: Images to measure on.
        test_batches: Of this process.
        autocast: Context of the forward pass.
        train_batches: The training images, neither augmented nor mixed, where they are evaluated too.
    """

    recipe: Recipe
    state: State
    world: World
    train_set: ImageSet
    test_set: ImageSet
    test_batches: Loader
    autocast: contextlib.AbstractContextManager[Any]
    train_batches: Loader | None = None

    key: ClassVar[str] = "top1_err"
    less_is_better: ClassVar[bool] = True
    title: ClassVar[str] = "top-1 error"
    unit: ClassVar[str] = " %"
    command: ClassVar[str] = "cutmix train"

    def split(self, images: Tensor, labels: Tensor, progress: float) -> list[tuple[Tensor, Any]]:
        """Mix a batch as a whole, so that the number of parts changes nothing, and divide it."""
        state = self.state
        parts = max(min(self.recipe.accumulate, len(images) // 2), 1)  # batch normalisation needs two images
        if state.cutout:
            images, _ = state.cutout(images, labels)
        images, targets = state.mix.mix(images, labels, progress)
        return list(zip(images.tensor_split(parts), _divide(targets, parts), strict=True))

    def loss(self, network: nn.Module, images: Tensor, targets: Any) -> Tensor:
        """Return the loss of a part, which the mixing method defines."""
        with self.autocast:
            return self.state.mix.loss(network, images, targets, label_smoothing=self.recipe.label_smoothing)

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Return the errors and the loss, and the logits of every test image."""
        send_buffers(model, self.world)
        predictions = predict(model, self.test_batches.epoch(), self.world, autocast=self.autocast)
        errors = {name: error.value for name, error in classification_error(predictions).items()}
        if self.train_batches:
            seen = predict(model, self.train_batches.epoch(), self.world, autocast=self.autocast)
            errors["train_err"] = classification_error(seen)["top1_err"].value
        return Evaluation({"test_loss": mean_loss(predictions), **errors}, predictions_arrays(predictions))

    def records(self, arrays: dict[str, np.ndarray]) -> list[Record]:
        """Return the errors with their intervals."""
        return error_records(Predictions(*(torch.from_numpy(arrays[name]) for name in Predictions._fields)))

    def opening(self) -> str:
        """Return the set's name and sizes, and whether it is another one than the recipe's."""
        data, skipped = self.train_set, len(self.train_set.skipped) + len(self.test_set.skipped)
        named = RECIPES.get(self.recipe.name)
        other = f" (not {named.data}, which the recipe is for)" if named and named.data not in ("", data.name) else ""
        return (
            f"mix {self.recipe.mix}; {data.name}{other}: {len(data):,} images to train on, {len(self.test_set):,} to "
            f"test, {data.num_classes} classes" + (f", {skipped} unreadable ones left out" if skipped else "")
        )

    def notes(self) -> Sequence[str]:
        """Return nothing."""
        return ()

    def circumstances(self) -> dict[str, Any]:
        """Return the mix, the size of the images, and the numbers of classes and of test images."""
        counts = {"classes": self.test_set.num_classes, "test_images": len(self.test_set)}
        return {"mix": self.recipe.mix, "image_size": self._image_size(), **counts}

    def fingerprint(self) -> str:
        """Return the training set's."""
        return self.train_set.fingerprint()

    def about(self, epoch: int) -> dict[str, str]:
        """Return enough to use the weights and to measure them."""
        recipe, data = self.recipe, self.train_set
        about: dict[str, Any] = {
            "model": recipe.model, "num_classes": data.num_classes, "in_chans": data.in_chans, "classes": data.classes,
            "mean": data.mean, "std": data.std, "small": isinstance(data, ArraySet),
            "recipe": recipe.to_dict(), "epoch": epoch, "data": data.fingerprint(),
            "image_size": self._image_size(),
        }  # fmt: skip
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}

    def _image_size(self) -> int:
        data = self.train_set
        return self.recipe.image_size or (data.images.shape[-1] if isinstance(data, ArraySet) else 224)

    def samples(self) -> bytes:
        """Return training images, and the same mixed."""
        if self.state.mix.uses_attention:
            return self._attention()
        mixing = image_mixing(self.recipe)
        rows = {"original": None} | ({self.recipe.mix: mixing} if mixing else {})
        return preview_grid(self.train_set, rows, image_size=self.recipe.image_size, count=8)

    def pictures(self, arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
        """Return where a network trained with SMMix looks; of others, the suites of ``cutmix evaluate`` draw."""
        return {"attention": self._attention()} if self.state.mix.uses_attention else {}

    def _attention(self) -> bytes:
        """Draw where the network looks now, and what SMMix makes of it."""
        data = self.train_set
        images, labels = pick_samples(data, self.recipe.image_size, 8, 0)
        images = images.to(self.world.device)
        return attention_picture(
            self.state.exported, images, labels, classes=data.classes, mean=data.mean, std=data.std
        )


def _divide(targets: Targets, parts: int) -> Sequence[Any]:
    """Divide targets as their images."""
    if isinstance(targets, Tensor):
        return targets.tensor_split(parts)
    return [type(targets)(*fields) for fields in zip(*(column.tensor_split(parts) for column in targets), strict=True)]
