"""The backbone of a transfer run, with the weights of a run, of a file, of timm, or random ones; the task on it."""

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import nn

from cutmix.config.tasks import Transfer
from cutmix.data.loaders import Loader
from cutmix.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from cutmix.errors import InputError
from cutmix.models import create_model
from cutmix.models.create import check_shake_drop, pretrained_normalization, weights_normalization
from cutmix.runs.folder import find_weights
from cutmix.runtime.checkpoint import read_header, timm_config
from cutmix.runtime.device import World, from_first, gather_samples, send_buffers
from cutmix.training.classification import Evaluation
from cutmix.training.state import State, start_branches_at_one


@dataclass(frozen=True)
class Backbone:
    """A classifier whose features are used."""

    network: nn.Module  # the classifier, with its head
    model: str  # name of the model
    mean: tuple[float, ...]  # of each RGB channel, which the weights were trained with, for pixels in [0, 1]
    std: tuple[float, ...]
    source: str  # of the weights: "none" for random ones, "pretrained", or a file
    recipe: str | None = None  # name of the recipe that trained the weights; None if the file does not name one

    @property
    def title(self) -> str:
        """The backbone in words."""
        known = {"none": f"{self.model} with random weights", "pretrained": f"timm's pretrained {self.model}"}
        return known.get(self.source, f"{self.model} with the weights of {self.source}")


def load_backbone(recipe: Transfer) -> Backbone:
    """Return the backbone of a recipe, with the normalization of its weights.

    A file written by this package names its model and its normalization. Any other file is taken to hold weights of
    ``recipe.model`` with timm's normalization of that model, or else ImageNet's.
    """
    source, model = recipe.backbone, recipe.model
    if source in ("none", "pretrained"):
        network = create_model(model, 1000, pretrained=source == "pretrained")
        if source == "none":
            start_branches_at_one(network)  # a frozen encoder would otherwise consist of its shortcuts
        known = pretrained_normalization(model) if source == "pretrained" else None
        mean, std = known or (IMAGENET_MEAN, IMAGENET_STD)
        return Backbone(network, model, mean, std, source)
    path = Path(source).expanduser()
    if path.is_dir() and timm_config(path):
        path = find_weights(path, "last")
    elif path.is_dir():
        path = path / "model.safetensors"
    if not path.exists():
        raise InputError(
            f"--backbone is {source}, but {path} does not exist; expected none, pretrained, the folder of a finished "
            "run, or a file"
        )
    header = read_header(path)
    model = header.model or model
    check_shake_drop(path, header)
    if header.in_chans not in (None, 3):
        raise InputError(f"{path} is for images of {header.in_chans} channels; expected 3, for RGB")
    network = create_model(model, header.num_classes or 1000, pretrained=path)
    mean, std = weights_normalization(model, header, 3) or (IMAGENET_MEAN, IMAGENET_STD)
    return Backbone(network, model, mean, std, str(path), (header.recipe or {}).get("name"))


class TransferSet(Protocol):
    """A split of a data set for detection or captioning."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out or assumed when the split was read."""

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """Return a digest of images and annotations."""


R = TypeVar("R", bound=Transfer)
S = TypeVar("S", bound=TransferSet)


@dataclass
class TransferTask(Generic[R, S]):
    """The part of a task of the training loop that detection and captioning share."""

    recipe: R
    state: State
    world: World
    train_set: S
    test_set: S
    test_batches: Loader
    autocast: contextlib.AbstractContextManager[Any]
    backbone: Backbone
    val_batches: Loader | None = None  # the test split chooses the best epoch too, as in the published results

    less_is_better: ClassVar[bool] = False
    chosen_on: ClassVar[str] = "test"
    reported_on: ClassVar[str] = "test"

    def evaluate(self, model: nn.Module, split: str = "test") -> Evaluation:
        """Return the metrics on the test images and, in the first process, the outputs for each of them."""
        send_buffers(model, self.world)
        training = model.training
        model.eval()
        with torch.inference_mode(), self.autocast:
            own = self._outputs(model)
        model.train(training)
        outputs = gather_samples(own, self.world)
        metrics, arrays = self._score(outputs) if outputs is not None else Evaluation({}, {})
        return Evaluation(from_first(lambda: metrics, self.world), arrays)

    def _outputs(self, model: nn.Module) -> list[Any]:
        """Return a model's output for each test image of this process."""
        raise NotImplementedError

    def _score(self, outputs: list[Any]) -> Evaluation:
        """Return the metrics and the arrays of the outputs for all test images."""
        raise NotImplementedError

    def notes(self) -> list[str]:
        """Return notes on the data left out and the assumptions made."""
        return [*self.train_set.notes, *self.test_set.notes]

    def fingerprint(self) -> str:
        """Return a digest of both splits."""
        both = self.train_set.fingerprint() + self.test_set.fingerprint()
        return hashlib.blake2b(both.encode(), digest_size=16).hexdigest()

    def circumstances(self) -> dict[str, Any]:
        """Return the source of the backbone and the number of training images."""
        return {
            "backbone": self.backbone.source, "backbone_recipe": self.backbone.recipe,
            "training_images": len(self.train_set),
        }  # fmt: skip

    def about(self, epoch: int) -> dict[str, str]:
        """Return the header of the weights."""
        about = {"recipe": self.recipe.to_dict(), "epoch": epoch, "mean": self.backbone.mean, "std": self.backbone.std}
        return {"model": self.backbone.model} | {name: json.dumps(value) for name, value in about.items()}

    def samples(self) -> None:
        """Return no figure: images are drawn with their predictions after training."""
