"""``cutmix explain``: the image, the heat map of a class, and the training images that are nearest in feature space."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from cutmix.config.recipe import Recipe
from cutmix.data import ArraySet, ImageSet, open_data
from cutmix.data.decode import Decoded
from cutmix.data.sets import keep_per_class, random_subset, take
from cutmix.data.sources import Source
from cutmix.data.transforms import denormalize, drawable
from cutmix.errors import InputError, did_you_mean, missing_extra
from cutmix.evaluation.localization import class_activation_map, normalize_maps, overlaid, resize_maps
from cutmix.models.create import find_head
from cutmix.models.transformers import find_attention, token_grid
from cutmix.runtime.files import png_of
from cutmix.runtime.seeding import derive_seed

_MOST_TRAINING_IMAGES = 5000
_MOST_MAPS = 4  # of an image with several labels


class Neighbours(NamedTuple):
    """Training images with their features."""

    inputs: Tensor  # normalized images, (N, C, H, W) float32
    labels: Tensor  # class ids, (N,) int64, or (N, K) uint8
    features: Tensor  # inputs of the linear classifier, of length 1, (N, D) float32


class Classifier(Protocol):
    """The explained classifier: ``cutmix.inference.model.Model``."""

    network: nn.Module
    classes: tuple[str, ...]
    thresholds: tuple[float, ...] | None
    preprocessing: Any
    recipe: Recipe

    @property
    def device(self) -> torch.device:
        """The device of the weights."""

    def probabilities(self, inputs: Tensor) -> Tensor:
        """Return the class probabilities of normalized images."""

    def label_thresholds(self) -> Tensor:
        """Return the thresholds of the labels, where an image can have several."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """The evidence for a prediction; a notebook shows it as an image.

    Classes with a heat map are the predicted one, or the labels above their thresholds, at most four and at least the
    most probable one; then the requested class.
    """

    probabilities: Tensor  # of each class, (K,) float32
    class_ids: tuple[int, ...]  # classes with a heat map
    maps: Tensor = field(repr=False)  # (len(class_ids), H, W) float32 in [0, 1]
    pixels: np.ndarray = field(repr=False)  # input of the model, (H, W, 3) float in [0, 1]
    png: bytes = field(default=b"", repr=False)  # image, heat maps and nearest training images side by side

    def _repr_png_(self) -> bytes:
        return self.png

    def overlay(self) -> np.ndarray:
        """Return the input in grey under the heat map of the predicted class, (H, W, 3) uint8."""
        return np.asarray(255 * overlaid(self.pixels, self.maps[0].numpy()), dtype=np.uint8)


def explain_image(
    model: Classifier, image: Source | Decoded, *, explainer: "HeatMaps | None" = None, class_id: int | None = None,
    known: "Neighbours | None" = None, neighbours: int = 4, drawn: bool = False,
) -> Explanation:  # fmt: skip
    """Explain the prediction of an image: a file, RGB, or the result of ``read_channels`` for the model's channels.

    ``explainer``, from ``heat_maps``, serves many images; ``class_id`` is a further class with a heat map; ``known`` is
    the result of ``training_images``. The PNG is drawn on request.
    """
    inputs = model.preprocessing(image)[None]
    probabilities = model.probabilities(inputs)[0]
    chosen = [int(probabilities.argmax())]
    if model.thresholds is not None:
        above = (probabilities >= model.label_thresholds()).nonzero().flatten().tolist()
        chosen = sorted(above, key=lambda label: -float(probabilities[label]))[:_MOST_MAPS] or chosen
    if class_id is not None and class_id not in chosen:
        chosen.append(class_id)
    explainer = explainer or heat_maps(model)
    maps = torch.cat([explainer(inputs, torch.tensor([each])) for each in chosen])
    nearest = find_nearest(model, inputs, known, neighbours) if known else []
    png = draw(model, inputs[0], probabilities, chosen, maps, known, nearest) if drawn else b""
    return Explanation(probabilities, tuple(chosen), maps, _pixels(model, inputs[0]), png)


class HeatMaps:
    """Class activation maps where the logits are their mean; otherwise Grad-CAM, which needs the grad-cam library."""

    def __init__(self, network: nn.Module, input_shape: Sequence[int]) -> None:
        self.network = network
        try:
            self._head = find_head(network, input_shape)
            self.name = "class activation map"
        except InputError:
            self.name = "Grad-CAM"
            self._cam = _grad_cam(network, input_shape)

    def __call__(self, inputs: Tensor, class_ids: Tensor) -> Tensor:
        """Return the maps of inputs (N, C, H, W) for classes (N,), in [0, 1], (N, H, W) float32 on the CPU."""
        device = next(self.network.parameters()).device
        if self.name == "Grad-CAM":
            from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

            targets = [ClassifierOutputTarget(int(each)) for each in class_ids]
            with torch.enable_grad():
                return torch.from_numpy(self._cam(inputs.to(device), targets))
        with torch.no_grad():
            features = self._head.features(inputs.to(device)).float()
        maps = class_activation_map(features, self._head.classifier.weight.detach().float(), class_ids.to(device))
        return normalize_maps(resize_maps(maps, (inputs.shape[-2], inputs.shape[-1]))).cpu()


def heat_maps(model: Classifier) -> HeatMaps:
    """Return the heat maps of a model."""
    p = model.preprocessing
    return HeatMaps(model.network, (p.in_chans, p.image_size, p.image_size))


def _grad_cam(network: nn.Module, input_shape: Sequence[int]) -> Any:
    """Return the library's Grad-CAM on the last spatial features of a network."""
    try:
        from pytorch_grad_cam import GradCAM
    except ImportError:
        raise missing_extra(f"Grad-CAM, as {type(network).__name__} has no class activation maps,", "explain") from None
    for parameter in network.parameters():
        parameter.requires_grad_(True)  # the library asks for gradients of activations
    try:
        find_attention(network)
    except InputError:
        return GradCAM(network, [_last_map(network, input_shape)], reshape_transform=_channels_first)
    vit: Any = network
    grid = token_grid(vit, torch.zeros(1, *input_shape))
    # the input of the last block that the patches still influence: after it only the class token counts
    names = [name for name, _ in network.named_modules() if name.endswith(".norm1") and "token_only" not in name]
    layer = network.get_submodule(names[-1])

    def to_map(tokens: Tensor) -> Tensor:
        return tokens[:, -grid[0] * grid[1] :].unflatten(1, grid).permute(0, 3, 1, 2)

    return GradCAM(network, [layer], reshape_transform=to_map)


def _last_map(network: nn.Module, input_shape: Sequence[int]) -> nn.Module:
    """Return the last module whose output is a map with more than one position."""
    found: list[nn.Module] = []

    def look(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[1:]) > 1:
            found.append(module)

    leaves = [module for module in network.modules() if not any(module.children())]
    hooks = [module.register_forward_hook(look) for module in leaves]
    try:
        with torch.no_grad():
            network(torch.zeros(1, *input_shape, device=next(network.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise InputError(f"{type(network).__name__} has no maps of features to draw")
    return found[-1]


def _channels_first(maps: Tensor) -> Tensor:
    """Return maps (N, C, h, w); timm's Swin has (N, h, w, C)."""
    return maps.permute(0, 3, 1, 2) if maps.shape[1] == maps.shape[2] != maps.shape[3] else maps


@contextmanager
def _seeing_features(network: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the inputs of the linear classifier."""
    classifier: Any = getattr(network, "get_classifier", lambda: None)()
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    layer = classifier if isinstance(classifier, nn.Module) else layers[-1]
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().flatten(1).float().cpu()))
    try:
        yield seen
    finally:
        hook.remove()


def features_of(model: Classifier, inputs: Tensor) -> Tensor:
    """Return the inputs of the linear classifier, each of length 1, (N, D) float32 on the CPU."""
    with _seeing_features(model.network) as seen:
        model.probabilities(inputs)
    return nn.functional.normalize(seen[-1], dim=1)


def training_images(model: Classifier, count: int) -> tuple[Neighbours | None, str]:
    """Return training images with their features, at most 5,000 drawn at random; or None, and the reason."""
    if count < 0:
        raise InputError(f"neighbours is {count}; expected at least 0")
    if not count:
        return None, "no neighbours requested"
    try:
        data = open_training_set(model)
    except InputError as error:
        return None, f"no neighbours: {error}"
    if len(data) > _MOST_TRAINING_IMAGES:
        data = take(data, random_subset(len(data), _MOST_TRAINING_IMAGES, derive_seed(0, "neighbours")))
    parts = [(chunk, features_of(model, chunk)) for chunk in read_inputs(model, data)]
    inputs, features = (torch.cat(part) for part in zip(*parts, strict=True))
    return Neighbours(inputs, data.labels, features), ""


def open_training_set(model: Classifier) -> ImageSet:
    """Return the readable training images of the model's run."""
    data = open_data(model.recipe.data, "train", **model.recipe.reading(), skip_unreadable=True)
    count = model.recipe.train_per_class
    return data if count is None else keep_per_class(data, count)


def read_inputs(model: Classifier, data: ImageSet) -> Iterator[Tensor]:
    """Yield the normalized inputs of a set in batches."""
    for start in range(0, len(data), 64):
        part = range(start, min(start + 64, len(data)))
        if isinstance(data, ArraySet):
            arrays = (data.images[i].permute(1, 2, 0).squeeze(2).numpy() for i in part)
            yield torch.stack([model.preprocessing(Image.fromarray(array).convert("RGB")) for array in arrays])
        else:
            yield torch.stack([model.preprocessing(data.paths[i]) for i in part])


def find_nearest(model: Classifier, inputs: Tensor, known: Neighbours, count: int) -> list[int]:
    """Return the indices of the training images with the largest cosine similarity to an image, (1, C, H, W)."""
    similarity = (known.features @ features_of(model, inputs).T)[:, 0]
    return similarity.topk(min(count, len(similarity))).indices.tolist()


def draw(
    model: Classifier, image: Tensor, probabilities: Tensor, chosen: Sequence[int], maps: Tensor,
    known: Neighbours | None, nearest: Sequence[int],
) -> bytes:  # fmt: skip
    """Return a PNG of the image, its heat maps and its neighbours side by side."""
    count = 1 + len(chosen) + len(nearest)
    figure = Figure(figsize=(2.1 * count, 2.7), dpi=120, layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    pixels = _pixels(model, image)
    top = probabilities.topk(min(3, len(probabilities)))
    text = "\n".join(f"{p:.2f} {model.classes[i][:24]}" for p, i in zip(*map(Tensor.tolist, top), strict=True))
    axes[0].imshow(pixels)
    axes[0].set_title("image", fontsize=8)
    axes[0].set_xlabel(text, fontsize=8, parse_math=False)
    for axis, class_id, heat in zip(axes[1:], chosen, maps, strict=False):
        axis.imshow(overlaid(pixels, heat.numpy()), interpolation="nearest")
        axis.set_title("heat map" if heat.any() else "heat map: no evidence", fontsize=8)  # nothing positive
        name = f"{probabilities[class_id]:.2f} {model.classes[class_id][:24]}"
        axis.set_xlabel(name, fontsize=8, parse_math=False)
    for axis, index in zip(axes[1 + len(chosen) :], nearest, strict=True):
        assert known is not None
        axis.imshow(_pixels(model, known.inputs[index]))
        axis.set_title("near in training", fontsize=8)
        label = known.labels[index]
        ids = label.nonzero().flatten().tolist() if label.ndim else [int(label)]
        axis.set_xlabel(", ".join(model.classes[i] for i in ids)[:24], fontsize=8, parse_math=False)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    return png_of(figure)


def _pixels(model: Classifier, image: Tensor) -> np.ndarray:
    """Return a normalized image as (H, W, 3) in [0, 1]."""
    return drawable(denormalize(image[None], model.preprocessing.mean, model.preprocessing.std))[0]


def find_class(model: Classifier, name: str | None) -> int | None:
    """Return the id of a class by its name, None without a name; an unknown one is an ``InputError``."""
    if name is None:
        return None
    if name not in model.classes:
        hint = did_you_mean(name, model.classes, f"there are {', '.join(model.classes[:3])}")
        raise InputError(f'--class is "{name}"; expected a class of the model: {hint}')
    return model.classes.index(name)
