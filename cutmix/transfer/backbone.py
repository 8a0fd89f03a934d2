"""The backbone of a transfer run: a network with the weights of a run, of a file, of timm, or none."""

import json
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from cutmix.config.transfer import Transfer
from cutmix.errors import InputError
from cutmix.models import create_model, pretrained_normalization
from cutmix.runtime.weights import read_weights
from cutmix.training.state import start_branches_at_one

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Backbone:
    """A classifier whose features are to be used.

    Attributes:
        network: With a head that nobody needs.
        model: Its name.
        mean: What its weights were trained with: of each channel of RGB pixels in [0, 1].
        std: The same.
        source: Where its weights come from: none for random ones, pretrained, or a file.
        recipe: Name of the recipe that they were trained by; None where they do not say.
    """

    network: nn.Module
    model: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    recipe: str | None = None

    @property
    def title(self) -> str:
        """What a sentence calls it."""
        known = {"none": f"{self.model} of random weights", "pretrained": f"timm's pretrained {self.model}"}
        return known.get(self.source, f"{self.model} of {self.source}")


def load_backbone(recipe: Transfer) -> Backbone:
    """Make the backbone of a recipe; the preprocessing of its weights goes with it.

    A file of this package says its network and its normalisation. Another file is for ``recipe.model``, with timm's
    normalisation of that name, or ImageNet's.

    Raises:
        InputError: If the weights are not there, do not fit, or are for images that are not RGB.
    """
    source, model = recipe.backbone, recipe.model
    if source in ("none", "pretrained"):
        network = create_model(model, 1000, pretrained=source == "pretrained")
        if source == "none":
            start_branches_at_one(network)  # or what is never trained would be its shortcuts alone
        mean, std = (pretrained_normalization(model) if source == "pretrained" else None) or _IMAGENET
        return Backbone(network, model, mean, std, source)
    path = Path(source).expanduser()
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.exists():
        raise InputError(f"{path} is not there; expected none, pretrained, the folder of a finished run, or a file")
    about = read_weights(path)[1]
    model = about.get("model", model)
    if int(about.get("in_chans", 3)) != 3:
        raise InputError(f"{path} is for images of {about['in_chans']} channels; a backbone takes RGB")
    network = create_model(model, int(about.get("num_classes", 1000)), pretrained=path)
    trained_by = json.loads(about["recipe"])["name"] if "recipe" in about else None
    if "mean" in about:
        mean, std = tuple(json.loads(about["mean"])), tuple(json.loads(about["std"]))
    else:
        mean, std = pretrained_normalization(model) or _IMAGENET
    return Backbone(network, model, mean, std, str(path), trained_by)
