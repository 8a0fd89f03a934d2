"""Weakly supervised localization: class activation maps and their figures, top-1 Loc, GT-known Loc, MaxBoxAcc.

There are two protocols. The paper takes a box from the map at 15 % of its maximum and counts it with the right class
and an IoU above 0.5. The later benchmark, wsolevaluation, takes maps of the true class, normalized to [0, 1], at the
threshold that is best for the data set.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from cutmix.data.sets import random_subset
from cutmix.data.transforms import drawable
from cutmix.errors import InputError, shorten
from cutmix.evaluation.boxes import (
    THRESHOLD,
    MaxBoxAccuracy,
    best_iou,
    best_thresholds,
    box_from_map,
    center_iou,
    level_iou,
    padded_boxes,
)
from cutmix.evaluation.classification import Proportion, mean_interval, wilson_interval
from cutmix.evaluation.classifier import Classifier, SuiteResult, as_numpy
from cutmix.mixing import Draw
from cutmix.models.create import Head, find_head
from cutmix.runs.record import Record
from cutmix.runtime.files import outline, png_of
from cutmix.runtime.seeding import derive_seed

_V2_IOU = (0.3, 0.5, 0.7)


def class_activation_map(features: Tensor, weight: Tensor, class_ids: Tensor) -> Tensor:
    """Return M_n(y, x) = Σ_c weight[k_n, c] · features[n, c, y, x], whose mean and bias are the logit of class k_n.

    Args:
        features: Input of the global average pooling, (N, C, h, w).
        weight: Weight of the linear layer after it, (K, C), of the features' dtype.
        class_ids: k, (N,) integers in [0, K).

    Returns:
        (N, h, w), of any sign.

    Raises:
        InputError: If the shapes or dtypes do not fit or a class does not exist.

    Source: Zhou et al. 2016, eq. 2; equal to ``torchcam`` and, up to the number of channels, to wsolevaluation.
    """
    if features.ndim != 4 or weight.ndim != 2 or features.shape[1] != weight.shape[1]:
        raise InputError(
            f"features are {tuple(features.shape)} and the weight is {tuple(weight.shape)}; "
            "expected (N, C, h, w) and (K, C)"
        )
    if features.dtype != weight.dtype:
        raise InputError(f"features are {features.dtype} and the weight is {weight.dtype}; expected the same")
    if class_ids.shape != features.shape[:1]:
        raise InputError(f"class_ids is {tuple(class_ids.shape)}; expected one for each of the {len(features)} images")
    if class_ids.dtype == torch.bool or class_ids.is_floating_point() or class_ids.is_complex():
        raise InputError(f"class_ids are {class_ids.dtype}; expected integers")
    if len(class_ids) and not 0 <= int(class_ids.min()) <= int(class_ids.max()) < len(weight):
        raise InputError(
            f"class_ids go from {int(class_ids.min())} to {int(class_ids.max())}; expected 0 to {len(weight) - 1}"
        )
    return torch.einsum("nchw,nc->nhw", features, weight[class_ids.long()])  # as an index, uint8 would be a mask


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps (N, h, w) to (N, height, width), bicubic as OpenCV's INTER_CUBIC.

    The paper does not name its interpolation; this is the benchmark's, so that one map serves both protocols.
    """
    if maps.shape[1:] == (1, 1):  # interpolation would keep a constant only up to rounding
        return maps.expand(-1, *size)
    return F.interpolate(maps[:, None], size, mode="bicubic", align_corners=False)[:, 0]


def normalize_maps(maps: Tensor) -> Tensor:
    """Return (M − min M) / max(M − min M) of each map, in [0, 1]; a constant or undefined map becomes zeros.

    The benchmark normalizes after the resize.

    Args:
        maps: (N, h, w).
    """
    maps = maps - maps.amin((1, 2), keepdim=True)
    maps = maps / maps.amax((1, 2), keepdim=True)
    return torch.where(maps.isfinite().all(2).all(1)[:, None, None], maps, 0.0)


def localization_accuracy(
    predicted: np.ndarray,
    boxes: Sequence[np.ndarray],
    right: np.ndarray,
    iou: float = 0.5,
    confidence: float = 0.95,
) -> dict[str, Proportion]:
    """Return ``top1_loc``, ``gt_known_loc`` and ``top1_cls`` in per cent.

    An image is located if its box overlaps one of its true boxes with an IoU above ``iou``. Top-1 Loc requires the
    right class too, so it is at most the lesser of the other two.

    Args:
        predicted: Boxes from the maps of the true classes, (N, 4); for right predictions they are those of the
            predicted classes too.
        boxes: N arrays (B, 4) of true boxes.
        right: Whether the predicted class is the true one, (N,) bool.
        iou: IoU that a box has to exceed, in [0, 1).
        confidence: Confidence of the intervals, in (0, 1).

    Raises:
        InputError: If counts or ranges are wrong.

    Source: Yun et al. 2019, appendix B: IoU > 0.5. The benchmark counts IoU ≥ 0.5.
    """
    if not 0 <= iou < 1:
        raise InputError(f"iou is {iou}; expected a number in [0, 1)")
    right = as_numpy(right)
    if right.ndim != 1 or right.dtype != np.bool_:
        raise InputError(
            f"right is {right.dtype} of shape {right.shape}; expected (N,) bool: whether each prediction is right"
        )
    if len(right) != len(predicted) or not len(right):
        raise InputError(f"there are {len(predicted)} boxes and {len(right)} predictions; expected as many, above 0")
    located = best_iou(predicted, boxes) > iou
    return {
        name: wilson_interval(int(hits.sum()), len(right), confidence)
        for name, hits in (("top1_loc", located & right), ("gt_known_loc", located), ("top1_cls", right))
    }


class _KeepsFeatures(nn.Module):
    """A network that keeps the feature maps of its last forward pass."""

    features: Tensor

    def __init__(self, network: nn.Module, head: Head) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, images: Tensor) -> Tensor:
        self.features = self.head.features(images)
        return self.network.forward_head(self.features)  # type: ignore[operator]


def keep_features(classifier: Classifier) -> Classifier:
    """Return the classifier with a network that keeps its feature maps, as :func:`class_maps` needs it.

    Raises:
        InputError: If the network has no class activation maps.
    """
    channels, *size = classifier.images.shape[1:]
    side = classifier.image_size
    head = find_head(classifier.network, (channels, side, side) if side else (channels, *size))
    return replace(classifier, network=_KeepsFeatures(classifier.network, head))


def class_maps(classifier: Classifier, pixels: Tensor, class_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return class activation maps (n, H, W) in the size of the images, and the logits (n, K) of the same forward pass.

    ``classifier`` is the result of :func:`keep_features`. Maps and logits are float32 on the device.
    """
    network = classifier.network
    assert isinstance(network, _KeepsFeatures)
    logits = classifier.logits(pixels)
    weight = network.head.classifier.weight.detach().float()
    cams = class_activation_map(network.features.float(), weight, class_ids.to(weight.device))
    return resize_maps(cams, (pixels.shape[-2], pixels.shape[-1])), logits


def localization_suite(classifier: Classifier, boxes: Sequence[np.ndarray]) -> SuiteResult:
    """Evaluate boxes from the class activation maps of a classifier against true boxes.

    Args:
        classifier: Images with labels, and a network that ends in global average pooling and one linear layer.
        boxes: N arrays (B, 4) of true boxes in the pixels of ``classifier.images``.

    Returns:
        Records of ``top1_loc``, ``gt_known_loc``, ``top1_cls``, ``max_box_acc``, ``max_box_acc_v2`` and their floors
        ``center_max_box_acc`` and ``center_max_box_acc_v2``, in per cent; arrays ``predicted_boxes`` (N, 4) float32,
        ``true_boxes`` (N, B, 4) float32, ``iou`` (N,) float64, ``right`` (N,) bool, ``max_box_hits`` (N,) bool and
        ``max_box_v2_hits`` (3, N) bool.

    Raises:
        InputError: If the network has no class activation maps or its logits are not finite, or the boxes do not fit
            the images.
    """
    true = padded_boxes(len(classifier), boxes, "images")
    classifier = keep_features(classifier)
    height, width = classifier.images.shape[2:]
    predicted, right = np.zeros((len(classifier), 4), dtype=np.float32), np.zeros(len(classifier), dtype=bool)
    tables, peaks = {kind: np.zeros((len(classifier), 255)) for kind in ("largest", "all")}, np.zeros(0, dtype=np.int64)
    for start in range(0, len(classifier), classifier.batch_size):
        part = slice(start, start + classifier.batch_size)
        maps, logits = class_maps(classifier, classifier.pixels(part), classifier.labels[part])
        classifier.check()
        right[part] = (logits.argmax(1).cpu() == classifier.labels[part].cpu()).numpy()
        predicted[part] = [box_from_map(cam) for cam in maps.cpu().numpy()]
        found, tops = level_iou(normalize_maps(maps).cpu().numpy(), boxes[part])
        peaks = np.append(peaks, tops)
        for kind, table in found.items():
            tables[kind][part] = table
    accuracies = localization_accuracy(predicted, boxes, right)
    best = best_thresholds(tables["largest"], peaks, (0.5,))
    version2 = best_thresholds(tables["all"], peaks, _V2_IOU)
    center = center_iou(boxes, (height, width))
    records = [
        *(_record(name, accuracies[name], at=THRESHOLD, note=note) for name, note in _NOTES.items()),
        _record("top1_cls", accuracies["top1_cls"]),
        _max_box_record("max_box_acc", best, "largest component; the threshold is the best of 1,000 on these images"),
        _max_box_record("max_box_acc_v2", version2, "all contours; the best threshold for each IoU on these images"),
        _max_box_record("center_max_box_acc", best_thresholds(*center, (0.5,)), _CENTER),
        _max_box_record("center_max_box_acc_v2", best_thresholds(*center, _V2_IOU), _CENTER),
    ]
    arrays = {
        "predicted_boxes": predicted, "true_boxes": true.astype(np.float32), "iou": best_iou(predicted, boxes),
        "right": right, "max_box_hits": best.hits[0], "max_box_v2_hits": version2.hits,
    }  # fmt: skip
    return SuiteResult(records, arrays)


_NOTES = {
    "top1_loc": "the class is right and the IoU above 0.5; the map is not normalized, resized bicubically",
    "gt_known_loc": "the IoU is above 0.5 with the box from the map of the true class",
}
_CENTER = "a Gaussian in the centre in place of every map: a floor that depends on no image"


def _record(name: str, share: Proportion, **more: Any) -> Record:
    return Record(metric=name, **share._asdict(), suite="localization", **more)


def _max_box_record(name: str, found: MaxBoxAccuracy, note: str) -> Record:
    """Return the record of an accuracy at the best threshold; the mean of several has an interval over the images."""
    n = found.hits.shape[1]
    shared: dict[str, Any] = {"suite": "localization", "chosen_on": "test", "note": note}
    if len(found.hits) == 1:
        share = wilson_interval(int(found.hits.sum()), n)
        return Record(metric=name, **share._asdict(), at=found.thresholds[0], **shared)
    ends = mean_interval(100 * found.hits.mean(0))
    return Record(metric=name, value=found.value, **ends._asdict(), n=n, **shared)


# ---- figures ----


def box_gallery(classifier: Classifier, boxes: Sequence[np.ndarray]) -> bytes:
    """Draw a dozen images with their true boxes, the boxes from their maps, and the positive part of the maps.

    The images are chosen at random, not by their results. The caption of each gives its class, the IoU, and the
    predicted class if it is wrong.

    Args:
        classifier: As for ``localization_suite``.
        boxes: N arrays (B, 4) in the pixels of ``classifier.images``.

    Returns:
        A PNG file.

    Raises:
        InputError: If the boxes are not of as many images, or the network has no class activation maps.
    """
    padded_boxes(len(classifier), boxes, "images")
    chosen = random_subset(len(classifier), 12, derive_seed(0, "gallery"))
    maps, logits = class_maps(keep_features(classifier), classifier.pixels(chosen), classifier.labels[chosen])
    cams, predicted = maps.cpu().numpy(), logits.argmax(1).tolist()
    found = np.stack([box_from_map(cam) for cam in cams])
    true = [np.asarray(boxes[i]).reshape(-1, 4) for i in chosen.tolist()]
    fits = best_iou(found, true)
    shown, labels = drawable(classifier.images[chosen].float() / 255), classifier.labels.tolist()
    columns = min(len(chosen), 6)
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(1.9 * columns, 2.4 * rows + 0.4), dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(chosen) :]:
        axis.set_axis_off()
    for k, axis in enumerate(axes[: len(chosen)]):
        positive = cams[k].clip(min=0)
        scaled = positive / max(positive.max(), np.finfo(np.float32).tiny)
        extent = (0, shown.shape[2], shown.shape[1], 0)  # a box's edges are the pixels' edges
        axis.imshow(overlaid(shown[k], scaled), extent=extent, interpolation="nearest")
        for box in true[k]:
            outline(axis, box, "red")
        outline(axis, found[k], "lime", (0, (3, 2)))
        label = labels[int(chosen[k])]
        wrong = "" if predicted[k] == label else f"\n(predicted: {shorten(classifier.classes[predicted[k]], 20)})"
        text = f"{shorten(classifier.classes[label], 20)}, IoU {fits[k]:.2f}{wrong}"
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        axis.set_xlabel(text, fontsize=8, labelpad=6, parse_math=False)
    keys = [
        Rectangle((0, 0), 1, 1, fill=False, edgecolor="red", linewidth=2, label="true box"),
        Rectangle((0, 0), 1, 1, fill=False, edgecolor="lime", linewidth=2, linestyle=(0, (3, 2)), label="from the map"),
    ]
    figure.legend(handles=keys, loc="outside upper center", ncols=2, fontsize=8, facecolor="0.6", handlelength=3)
    return png_of(figure)


def example_figures(classifier: Classifier, shown: dict[int, int]) -> dict[str, bytes]:
    """Draw images, each beside the map of a class where the model has class activation maps.

    Args:
        classifier: Model and images.
        shown: Place of each image in the test set, which names it, and the class id of its map.

    Returns:
        PNG files by the name ``example-INDEX``, 160 pixels high and, with a map, twice as wide.
    """
    if not shown:
        return {}
    pixels = classifier.pixels(slice(None))
    images, maps = drawable(classifier.images.float() / 255), None
    with contextlib.suppress(InputError):
        cams, _ = class_maps(keep_features(classifier), pixels, torch.tensor([*shown.values()], device=pixels.device))
        maps = normalize_maps(cams).cpu().numpy()
    drawn = {}
    for k, number in enumerate(shown):
        columns = 1 if maps is None else 2
        figure = Figure(figsize=(1.6 * columns, 1.6), dpi=100)
        axes = [figure.add_axes((c / columns, 0, 1 / columns, 1)) for c in range(columns)]
        axes[0].imshow(images[k], interpolation="nearest", aspect="auto")
        if maps is not None:
            axes[1].imshow(overlaid(images[k], maps[k]), interpolation="nearest", aspect="auto")
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
    shown = drawable(pixels)
    for column, name in enumerate(inputs):
        axes[0, column].imshow(shown[column])
        axes[0, column].set_title(name, fontsize=9)
        for row, cams in enumerate(maps, 1):
            axes[row, column].imshow(overlaid(shown[column], cams[column].numpy() / greatest), interpolation="nearest")
    for axis in axes.ravel():
        axis.set(xticks=[], yticks=[])
    axes[0, 0].set_ylabel("input", fontsize=9)
    for row, label in enumerate(labels, 1):
        axes[row, 0].set_ylabel(f"map of\n{shorten(classifier.classes[label], 20)}", fontsize=9, parse_math=False)
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


def overlaid(image: np.ndarray, cam: np.ndarray) -> np.ndarray:
    """Return an image (H, W, 3) in grey under a map (H, W) in colour, the more opaque the higher the map."""
    grey, heat = (image @ np.array([0.299, 0.587, 0.114]))[..., None], cam.clip(0, 1)
    alpha = 0.65 * np.sqrt(heat)[..., None]
    return (1 - alpha) * grey + alpha * colormaps["inferno"](heat)[..., :3]
