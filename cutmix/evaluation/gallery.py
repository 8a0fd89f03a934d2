"""Figures of class activation maps: boxes on images (the paper's figure 4), and maps of mixed inputs (figure 1).

Lines differ in their dashes, not only in colour, and have a dark edge, so that they are visible on any image and in a
grey print.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import patheffects
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from cutmix.data.sets import random_subset
from cutmix.errors import InputError
from cutmix.evaluation.boxes import best_iou, box_from_map, padded_boxes
from cutmix.evaluation.classifier import Classifier
from cutmix.evaluation.localization import class_maps, keep_features, normalize_maps
from cutmix.mixing import Draw
from cutmix.runtime.files import png_of
from cutmix.runtime.seeding import derive_seed


def box_gallery(
    classifier: Classifier, boxes: Sequence[np.ndarray], *, count: int = 12, threshold: float = 0.15, seed: int = 0
) -> bytes:
    """Draw images with their true boxes, the boxes from their maps, and the positive part of the maps.

    The images are chosen at random, not by their results. Below each stand its class, the IoU, and the predicted class
    if it is wrong.

    Args:
        classifier: As for ``localization_suite``.
        boxes: N arrays (B, 4) in the pixels of ``classifier.images``.
        count: Number of images, at least 1.
        threshold: Share of the map's maximum, in [0, 1).
        seed: Seed of the choice of images.

    Returns:
        A PNG file.

    Raises:
        InputError: If the boxes are not of as many images, the count is below 1, or the network has no class
            activation maps.
    """
    if count < 1:
        raise InputError(f"count is {count}; expected at least one image")
    padded_boxes(len(classifier), boxes, "images")
    chosen = random_subset(len(classifier), count, derive_seed(seed, "gallery"))
    maps, logits = class_maps(keep_features(classifier), classifier.pixels(chosen), classifier.labels[chosen])
    cams, predicted = maps.cpu().numpy(), logits.argmax(1).tolist()
    found = np.stack([box_from_map(cam, threshold) for cam in cams])
    true = [np.asarray(boxes[i]).reshape(-1, 4) for i in chosen.tolist()]
    fits = best_iou(found, true)
    shown, labels = _pixels(classifier.images[chosen]), classifier.labels.tolist()
    columns = min(len(chosen), 6)
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(1.9 * columns, 2.4 * rows + 0.4), dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(chosen) :]:
        axis.set_axis_off()
    for k, axis in enumerate(axes[: len(chosen)]):
        positive = cams[k].clip(min=0)
        _overlay(axis, shown[k], positive / max(positive.max(), np.finfo(np.float32).tiny))
        for box in true[k]:
            _outline(axis, box, "red", "solid")
        _outline(axis, found[k], "lime", (0, (3, 2)))
        label = labels[int(chosen[k])]
        wrong = "" if predicted[k] == label else f"\n(predicted: {_short(classifier.classes[predicted[k]])})"
        text = f"{_short(classifier.classes[label])}, IoU {fits[k]:.2f}{wrong}"
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        axis.set_xlabel(text, fontsize=8, labelpad=6, parse_math=False)
    keys = [
        Rectangle((0, 0), 1, 1, fill=False, edgecolor="red", linewidth=2, label="true box"),
        Rectangle((0, 0), 1, 1, fill=False, edgecolor="lime", linewidth=2, linestyle=(0, (3, 2)), label="from the map"),
    ]
    figure.legend(handles=keys, loc="outside upper center", ncols=2, fontsize=8, facecolor="0.6", handlelength=3)
    return png_of(figure)


def example_pictures(classifier: Classifier, index: Sequence[int], predicted: Sequence[int]) -> dict[str, bytes]:
    """Draw images, each beside the map of its predicted class where the model has class activation maps.

    Args:
        classifier: Model and images.
        index: Name of each image, its place in the test set.
        predicted: Predicted class id of each image.

    Returns:
        PNG files by the name ``example-INDEX``, 160 pixels high and, with a map, twice as wide.
    """
    if not index:
        return {}
    pixels = classifier.pixels(slice(None))
    shown, maps = _pixels(classifier.images), None
    with contextlib.suppress(InputError):
        cams, _ = class_maps(keep_features(classifier), pixels, torch.tensor(predicted, device=pixels.device))
        maps = normalize_maps(cams).cpu().numpy()
    drawn = {}
    for k, number in enumerate(index):
        columns = 1 if maps is None else 2
        figure = Figure(figsize=(1.6 * columns, 1.6), dpi=100)
        axes = [figure.add_axes((c / columns, 0, 1 / columns, 1)) for c in range(columns)]
        axes[0].imshow(shown[k], interpolation="nearest", aspect="auto")
        if maps is not None:
            _overlay(axes[1], shown[k], maps[k])
            axes[1].set_aspect("auto")
        for axis in axes:
            axis.set_axis_off()
        drawn[f"example-{number}"] = png_of(figure)
    return drawn


def mixed_maps(classifier: Classifier, first: int, second: int) -> bytes:
    """Draw a pair of images, their Mixup, Cutout and CutMix, and the maps of both classes for each of the five.

    Mixup takes half of each image; Cutout's hole, in the mean colour, and CutMix's patch of the second image cover the
    same quarter in the middle. All maps share one colour scale from zero to their maximum, so that they can be
    compared; negative values are not shown.

    Args:
        classifier: As for ``localization_suite``.
        first: Index of the image that is mixed into.
        second: Index of the image that is mixed in, of another class.

    Returns:
        A PNG file.

    Raises:
        InputError: If an image does not exist, the classes are the same, or the network has no class activation maps.
    """
    for index in (first, second):
        if not 0 <= index < len(classifier):
            raise InputError(f"the image is {index}; expected 0 to {len(classifier) - 1}")
    pair = torch.tensor([first, second], device=classifier.labels.device)
    labels = classifier.labels[pair].tolist()
    if labels[0] == labels[1]:
        raise InputError(
            f"images {first} and {second} are both of {classifier.classes[labels[0]]}; expected two classes"
        )
    inputs, model = _mixed(classifier, classifier.pixels(pair)), keep_features(classifier)
    pixels = torch.stack(list(inputs.values()))
    maps = [
        class_maps(model, pixels, torch.full((len(pixels),), label, device=pixels.device))[0].clamp(min=0).cpu()
        for label in labels
    ]
    greatest = max(float(torch.stack(maps).max()), torch.finfo(torch.float32).tiny)
    figure = Figure(figsize=(1.8 * len(inputs) + 0.9, 6.0), dpi=120, layout="constrained")
    axes = figure.subplots(3, len(inputs), squeeze=False)
    shown = _pixels(pixels)
    for column, name in enumerate(inputs):
        axes[0, column].imshow(shown[column])
        axes[0, column].set_title(name, fontsize=9)
        for row, cams in enumerate(maps, 1):
            _overlay(axes[row, column], shown[column], cams[column].numpy() / greatest)
    for axis in axes.ravel():
        axis.set(xticks=[], yticks=[])
    axes[0, 0].set_ylabel("input", fontsize=9)
    for row, label in enumerate(labels, 1):
        axes[row, 0].set_ylabel(f"map of\n{_short(classifier.classes[label])}", fontsize=9, parse_math=False)
    return png_of(figure)


def _mixed(classifier: Classifier, pair: Tensor) -> dict[str, Tensor]:
    """Return the two images and their Mixup, Cutout and CutMix by name, each (C, H, W)."""
    height, width = pair.shape[-2:]
    box = (width // 4, height // 4, width // 4 + width // 2, height // 4 + height // 2)
    other = torch.tensor([1, 0])
    hole = pair[0].clone()
    mean = torch.tensor(classifier.mean, device=pair.device)
    hole[:, box[1] : box[3], box[0] : box[2]] = mean[:, None, None]
    return {
        "first": pair[0],
        "second": pair[1],
        "Mixup": Draw.from_lam(other, 0.5).apply(pair)[0],
        "Cutout": hole,
        "CutMix": Draw.from_boxes(other, box, (height, width)).apply(pair)[0],
    }


def _pixels(images: Tensor) -> np.ndarray:
    """Return images (n, C, H, W), bytes or shares, as (n, H, W, 3) in [0, 1]."""
    shares = images.float() / 255 if images.dtype == torch.uint8 else images
    shares = shares[:, :3] if shares.shape[1] > 2 else shares[:, :1].expand(-1, 3, -1, -1)
    return shares.clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()


def _overlay(axis: Any, image: np.ndarray, cam: np.ndarray) -> None:
    """Show the image in grey under the map in colour, the more opaque the higher the map."""
    extent = (0, image.shape[1], image.shape[0], 0)  # a box's edges are the pixels' edges
    grey = image @ np.array([0.299, 0.587, 0.114])
    axis.imshow(grey, cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="nearest")
    axis.imshow(cam, cmap="inferno", vmin=0, vmax=1, alpha=0.65 * cam.clip(0, 1) ** 0.5, extent=extent)


def _outline(axis: Any, box: np.ndarray, color: str, style: Any) -> None:
    x0, y0, x1, y1 = (float(value) for value in box)
    frame = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, linewidth=2, linestyle=style)
    frame.set_path_effects([patheffects.Stroke(linewidth=3.5, foreground="black"), patheffects.Normal()])
    frame.set_clip_on(False)
    axis.add_patch(frame)


def _short(name: str, length: int = 20) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
