"""The classification task: the loss of a batch and the evaluation. ``Task`` is its interface to the loop."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cutmix.config.recipe import Recipe
from cutmix.config.recipes import RECIPES
from cutmix.data import ArraySet, ImageSet
from cutmix.data.loaders import Loader, RawBatch
from cutmix.data.sets import side_of, take
from cutmix.evaluation.classification import (
    LabelledLogits,
    average_precisions,
    best_thresholds,
    classification_error,
    error_records,
    label_records,
    mean_loss,
    predict,
    predictions_arrays,
)
from cutmix.evaluation.classifier import Classifier, decode
from cutmix.evaluation.localization import example_figures
from cutmix.mixing.protocol import Drawn, ImageMix
from cutmix.mixing.targets import Targets, mixed_binary_cross_entropy
from cutmix.preview import attention_figure, pick_samples, preview_grid
from cutmix.runs.outcomes import examples
from cutmix.runs.record import Record
from cutmix.runtime.device import World, from_first, send_buffers
from cutmix.training.mixes import image_mixing
from cutmix.training.state import State


class Evaluation(NamedTuple):
    """The results of an evaluation."""

    metrics: dict[str, float]  # numbers for the log
    arrays: dict[str, np.ndarray]  # outputs for each sample, from which every record can be computed


class Task(Protocol):
    """The interface of a task to the loop."""

    key: ClassVar[str]  # metric that decides which epoch is the best one
    less_is_better: ClassVar[bool]  # whether a smaller value of it is better
    title: ClassVar[str]  # its name in a sentence
    unit: ClassVar[str]  # its unit
    command: ClassVar[str]  # the words that start such a run

    @property
    def val_batches(self) -> Loader | None:
        """Batches of ``chosen_on``; None where that is ``reported_on`` or does not exist."""

    @property
    def test_batches(self) -> Loader | None:
        """Batches of ``reported_on``; None without it."""

    @property
    def chosen_on(self) -> str | None:
        """Split that is evaluated after each epoch to choose the best one; None chooses none."""

    @property
    def reported_on(self) -> str | None:
        """Split of the results; None where no image is evaluated."""

    def split(self, images: Any, targets: Any, progress: float) -> Sequence[tuple[Any, Any]]:
        """Divide a batch into parts for separate forward passes; ``progress`` is the share of the steps done."""

    def loss(self, network: nn.Module, images: Any, targets: Any) -> Tensor:
        """Return the mean loss of a part."""

    def evaluate(self, model: nn.Module, split: str) -> Evaluation:
        """Evaluate a model on a split in all processes; each returns the metrics, and the first one the arrays."""

    def records(self, arrays: dict[str, np.ndarray]) -> list[Record]:
        """Return the records of the arrays that ``evaluate`` returned for ``reported_on``."""

    def opening(self) -> str:
        """Return the description of method and data that is printed before the first step."""

    def notes(self) -> Sequence[str]:
        """Return the data left out and the assumptions made when reading, one sentence each."""

    def circumstances(self) -> dict[str, Any]:
        """Return the fields of a record that depend on the task."""

    def fingerprint(self) -> str:
        """Return a digest of the samples, by which a resumed run checks its data at any path."""

    def about(self, epoch: int) -> dict[str, str]:
        """Return the header of a file of weights."""

    def samples(self) -> bytes | None:
        """Return a PNG of training images, or None."""

    def figures(self, arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
        """Return PNGs, by name, of the arrays that ``evaluate`` returned after the last epoch."""


@dataclass
class Classification:
    """Image classification with any mixing method."""

    recipe: Recipe
    state: State
    world: World
    train_set: ImageSet
    autocast: contextlib.AbstractContextManager[Any]
    test_set: ImageSet | None = None  # images of the results
    test_batches: Loader | None = None  # batches of the test images of this process
    val_set: ImageSet | None = None  # images that choose the best epoch, possibly ``test_set``; None chooses none
    # batches of the validation images of this process, unless they are the test images
    val_batches: Loader | None = None
    train_batches: Loader | None = None  # training images, neither augmented nor mixed, where they are evaluated too
    class_weights: Tensor | None = None  # (K,) weights of the classes in the loss, on the device

    key: ClassVar[str] = "top1_err"
    less_is_better: ClassVar[bool] = True
    title: ClassVar[str] = "top-1 error"
    unit: ClassVar[str] = " %"
    command: ClassVar[str] = "cutmix train"

    @property
    def chosen_on(self) -> str | None:
        """The split that is evaluated after each epoch."""
        return self.val_set.split if self.val_set else None

    @property
    def reported_on(self) -> str | None:
        """The split that results are reported on."""
        return self.test_set.split if self.test_set else None

    @property
    def skipped(self) -> int:
        """Number of unreadable images that were left out."""
        return sum(len(part.skipped) for part in {self.train_set, self.val_set, self.test_set} if part)

    def split(self, images: Tensor | RawBatch, labels: Tensor, progress: float) -> list[tuple[Tensor, Any]]:
        """Mix a batch as a whole, so that the number of parts does not change the result, and divide it."""
        state = self.state
        targets: Targets = labels
        parts = max(min(self.recipe.accumulate, len(images) // 2), 1)  # batch normalization needs two images
        if isinstance(images, RawBatch):
            shape = images.images.shape
            holes = state.cutout.draw(shape) if state.cutout else None
            draw = state.mix.draw_at(shape, progress) if isinstance(state.mix, ImageMix) else None
            images = self._prepare(images, holes, draw)
            targets = draw.targets(labels) if draw else labels
        else:
            if state.cutout:
                images, _ = state.cutout(images, labels)
            images, targets = state.mix.mix(images, labels, progress)
        return list(zip(images.tensor_split(parts), _divide(targets, parts), strict=True))

    @cached_property
    def _prepare(self) -> Callable[..., Tensor]:
        return torch.compile(finish_and_mix, dynamic=False, fullgraph=True)

    def loss(self, network: nn.Module, images: Tensor, targets: Any) -> Tensor:
        """Return the loss of a part, as the mixing method defines it."""
        with self.autocast:
            smoothing = self.recipe.label_smoothing
            return self.state.mix.loss(network, images, targets, label_smoothing=smoothing, weight=self.class_weights)

    def evaluate(self, model: nn.Module, split: str) -> Evaluation:
        """Return the errors and the loss, and the logits of every image of a split."""
        predictions = self._predictions(model, split)
        data = self.val_set if split == self.chosen_on else self.test_set
        assert data is not None
        seen = None
        if self.train_batches:
            seen = predict(model, self.train_batches.epoch(), self.world, autocast=self.autocast)
        metrics = from_first(lambda: self._metrics(split, predictions, seen), self.world)
        return Evaluation(metrics, predictions_arrays(predictions, data) if predictions else {})

    def _metrics(self, split: str, predictions: LabelledLogits | None, seen: LabelledLogits | None) -> dict[str, float]:
        """Return the loss and the errors on a split, and the error on the training images where they are evaluated."""
        assert predictions is not None
        metrics = {f"{split}_loss": mean_loss(predictions)}
        metrics |= {name: error.value for name, error in classification_error(predictions).items()}
        return metrics | ({"train_err": classification_error(seen)["top1_err"].value} if seen else {})

    def _predictions(self, model: nn.Module, split: str) -> LabelledLogits | None:
        """Return the predictions of a model on ``chosen_on`` or ``reported_on``, in the first process."""
        send_buffers(model, self.world)
        batches = self.val_batches if self.val_batches and split == self.chosen_on else self.test_batches
        assert batches is not None
        return predict(model, batches.epoch(), self.world, autocast=self.autocast)

    def records(self, arrays: dict[str, np.ndarray]) -> list[Record]:
        """Return the errors with their intervals."""
        return error_records(LabelledLogits(*(torch.from_numpy(arrays[name]) for name in LabelledLogits._fields)))

    def opening(self) -> str:
        """Return the name and sizes of the data set, and a note if it is not that of the recipe."""
        data, test = self.train_set, f"{len(self.test_set):,} to test" if self.test_set else "none to evaluate on"
        if self.val_batches and self.val_set:
            test = f"{len(self.val_set):,} to validate, {test}"
        elif self.chosen_on == "val":
            test = f"{len(self.val_set or ()):,} to validate and to report on"
        named = RECIPES.get(self.recipe.name)
        other = f" (not {named.data}, the data of the recipe)" if named and named.data not in ("", data.name) else ""
        return (
            f"mix {self.recipe.mix}; {data.name}{other}: {len(data):,} images to train on, {test}, "
            f"{data.num_classes} classes" + (f", unreadable images left out: {self.skipped}" if self.skipped else "")
        )

    def notes(self) -> Sequence[str]:
        """Return the epochs of a step schedule, the split that chooses the best epoch, and the split of the results."""
        return [*self._decays(), self._choice()]

    def _decays(self) -> Sequence[str]:
        recipe = self.recipe
        if recipe.schedule != "step":
            return ()
        epochs = ", ".join(f"{milestone * recipe.epochs:g}" for milestone in recipe.milestones)
        return (f"the learning rate is multiplied by {recipe.gamma:g} after these of {recipe.epochs} epochs: {epochs}",)

    def _choice(self) -> str:
        if self.test_set is None:
            return "no images to evaluate on: the weights after the last epoch are kept, and there is no test result"
        if self.chosen_on is None:
            return "no validation images: no best epoch is chosen, and test is evaluated after the last one only"
        if self.val_batches:
            return "val chooses the best epoch; the results are of test, which is evaluated after the last epoch only"
        which = "the test images" if self.chosen_on == "test" else "the same validation images"
        return (
            f"the best epoch is chosen and reported on {which}, so its error is optimistic, and the last epoch's is not"
        )

    def circumstances(self) -> dict[str, Any]:
        """Return the mix, size and decoder of the images, and the numbers of classes and of test images."""
        counts = {"classes": self.train_set.num_classes, "test_images": len(self.test_set or ())}
        decoder = None if isinstance(self.train_set, ArraySet) else self.recipe.decoder
        return {"mix": self.recipe.mix, "image_size": self._image_size(), "decoder": decoder, **counts}

    def fingerprint(self) -> str:
        """Return a digest of the images of all splits, and of the class weights."""
        parts = [part.fingerprint() for part in (self.train_set, self.val_set, self.test_set) if part]
        weights = [] if self.class_weights is None else self.class_weights.tolist()
        return hashlib.blake2b(json.dumps([parts, weights]).encode(), digest_size=16).hexdigest()

    def about(self, epoch: int) -> dict[str, str]:
        """Return the header of the weights: the fields needed to use and to evaluate them."""
        recipe, data = self.recipe, self.train_set
        about: dict[str, Any] = {
            "model": recipe.model, "num_classes": data.num_classes, "in_chans": data.in_chans, "classes": data.classes,
            "mean": data.mean, "std": data.std, "small": isinstance(data, ArraySet),
            "recipe": recipe.to_dict(), "epoch": epoch, "data": data.fingerprint(),
            "image_size": self._image_size(),
        }  # fmt: skip
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}

    def _image_size(self) -> int:
        return self.recipe.image_size or side_of(self.train_set)

    def samples(self) -> bytes:
        """Draw training images, unmixed and mixed."""
        if self.state.mix.uses_attention:
            return self._attention()
        mixing = image_mixing(self.recipe)
        rows = {"original": None} | ({self.recipe.mix: mixing} if mixing else {})
        return preview_grid(self.train_set, rows, image_size=self.recipe.image_size, count=8)

    def figures(self, arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
        """Return the test images that a report shows and, of a model trained with SMMix, its attention."""
        assert self.test_set is not None
        shown, recipe = examples(arrays), self.recipe
        few = decode(
            take(self.test_set, torch.tensor([*shown], dtype=torch.int64)), recipe.image_size, recipe.crop_fraction,
            recipe.squash, recipe.interpolation, recipe.decoder,
        )  # fmt: skip
        size = recipe.image_size if isinstance(self.test_set, ArraySet) else None
        classifier = Classifier(
            self.state.exported.eval(), few.mean, few.std, few.images, few.labels, few.classes, few.name,
            self.autocast, image_size=size,
        )  # fmt: skip
        drawn = example_figures(classifier, shown)
        return drawn | ({"attention": self._attention()} if self.state.mix.uses_attention else {})

    def _attention(self) -> bytes:
        """Draw the attention of the model, and the images that SMMix mixes by it."""
        data = self.train_set
        images, labels = pick_samples(data, self.recipe.image_size, 8, 0)
        images = images.to(self.world.device)
        return attention_figure(self.state.exported, images, labels, classes=data.classes, mean=data.mean, std=data.std)


@dataclass
class MultiLabel(Classification):
    """Classification with several labels per image: binary cross-entropy, and a threshold for each label."""

    # probability from which each label is predicted, (K,), for the model that was evaluated last
    thresholds: np.ndarray | None = None

    key: ClassVar[str] = "label_map"
    less_is_better: ClassVar[bool] = False
    title: ClassVar[str] = "mAP"

    def split(self, images: Tensor | RawBatch, labels: Tensor, progress: float) -> list[tuple[Tensor, Any]]:
        """Mix a batch and its labels, which are smoothed towards ½."""
        smoothing = self.recipe.label_smoothing
        return super().split(images, labels.float() * (1 - smoothing) + smoothing / 2, progress)

    def loss(self, network: nn.Module, images: Tensor, targets: Any) -> Tensor:
        """Return the mean binary cross-entropy of every label."""
        with self.autocast:
            return mixed_binary_cross_entropy(*self.state.mix.forward(network, images, targets))

    def evaluate(self, model: nn.Module, split: str) -> Evaluation:
        """Return mAP and loss, and the logits of every image of a split; choose the thresholds on the val split."""
        metrics, arrays = super().evaluate(model, split)
        if self.chosen_on is None:
            self.thresholds = np.full(self.train_set.num_classes, 0.5)
        else:
            chosen = arrays
            if split != self.chosen_on and (predictions := self._predictions(model, self.chosen_on)):
                chosen = {name: values.numpy() for name, values in predictions._asdict().items()}
            self.thresholds = from_first(lambda: best_thresholds(chosen["logits"], chosen["labels"]), self.world)
        return Evaluation(metrics, arrays | {"thresholds": self.thresholds} if arrays else {})

    def records(self, arrays: dict[str, np.ndarray]) -> list[Record]:
        """Return mAP, F1 and the thresholds, with their intervals."""
        return label_records(
            arrays["logits"], arrays["labels"], self.train_set.classes, arrays["thresholds"], chosen_on=self.chosen_on,
            split=str(self.reported_on),
        )  # fmt: skip

    def about(self, epoch: int) -> dict[str, str]:
        """Return the header of the weights, with the thresholds of the labels."""
        thresholds = np.full(self.train_set.num_classes, 0.5) if self.thresholds is None else self.thresholds
        own = {"multi_label": True, "thresholds": thresholds.tolist()}
        return super().about(epoch) | {name: json.dumps(value) for name, value in own.items()}

    def _metrics(self, split: str, predictions: LabelledLogits | None, seen: LabelledLogits | None) -> dict[str, float]:
        assert predictions is not None
        metrics = {f"{split}_loss": mean_loss(predictions), "label_map": _mean_precision(predictions)}
        return metrics | ({"train_label_map": _mean_precision(seen)} if seen else {})


def _mean_precision(predictions: LabelledLogits) -> float:
    """Return mAP over the labels that have images, in per cent; 0 where none has."""
    found = average_precisions(predictions.logits.numpy(), predictions.labels.numpy())
    return 100 * float(np.nanmean(found)) if not np.isnan(found).all() else 0.0


def finish_and_mix(batch: RawBatch, *draws: Drawn | None) -> Tensor:
    """Return the images of a batch, cropped, flipped, normalized and mixed: the graph of ``--compile step``."""
    images = batch.finished()
    for draw in draws:
        images = draw.apply(images) if draw else images
    return images


def _divide(targets: Targets, parts: int) -> Sequence[Any]:
    """Divide targets as their images."""
    if isinstance(targets, Tensor):
        return targets.tensor_split(parts)
    return [type(targets)(*fields) for fields in zip(*(column.tensor_split(parts) for column in targets), strict=True)]
