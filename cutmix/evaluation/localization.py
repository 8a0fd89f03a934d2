"""Weakly supervised localization: class activation maps, top-1 Loc, GT-known Loc and MaxBoxAcc.

There are two protocols. The paper takes a box from the map at 15 % of its maximum and counts it with the right class
and an IoU above 0.5. The later benchmark, wsolevaluation, takes maps of the true class, normalized to [0, 1], at the
threshold that is best for the data set.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutmix.errors import InputError
from cutmix.evaluation.boxes import (
    MaxBoxAccuracy,
    best_iou,
    best_thresholds,
    box_from_map,
    center_iou,
    check_thresholds,
    level_iou,
    padded_boxes,
)
from cutmix.evaluation.classification import Proportion, wilson_interval
from cutmix.evaluation.classifier import Classifier, SuiteResult, as_numpy
from cutmix.models.localization import find_head
from cutmix.runs.record import Record
from cutmix.statistics import too_narrow

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

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        self.features = self.network.forward_features(images)  # type: ignore[operator]
        return self.network.forward_head(self.features)  # type: ignore[operator]


def keep_features(classifier: Classifier) -> Classifier:
    """Return the classifier with a network that keeps its feature maps, as :func:`class_maps` needs it.

    Raises:
        InputError: If the network has no class activation maps.
    """
    channels, *size = classifier.images.shape[1:]
    side = classifier.image_size
    find_head(classifier.network, (channels, side, side) if side else (channels, *size))
    return replace(classifier, network=_KeepsFeatures(classifier.network))


def class_maps(classifier: Classifier, pixels: Tensor, class_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return class activation maps in the size of the images, and the logits of the same forward pass.

    Args:
        classifier: What :func:`keep_features` returns.
        pixels: Images (n, C, H, W) in [0, 1].
        class_ids: Class of each map, (n,) integers.

    Returns:
        Maps (n, H, W) and logits (n, K), both float32 on the device.
    """
    network = classifier.network
    assert isinstance(network, _KeepsFeatures)
    logits = classifier.logits(pixels)
    weight = network.network.get_classifier().weight.detach().float()  # type: ignore[operator]
    cams = class_activation_map(network.features.float(), weight, class_ids.to(weight.device))
    return resize_maps(cams, (pixels.shape[-2], pixels.shape[-1])), logits


def localization_suite(classifier: Classifier, boxes: Sequence[np.ndarray], *, threshold: float = 0.15) -> SuiteResult:
    """Evaluate boxes from the class activation maps of a classifier against true boxes.

    Args:
        classifier: Images with labels, and a network that ends in global average pooling and one linear layer.
        boxes: N arrays (B, 4) of true boxes in the pixels of ``classifier.images``.
        threshold: Threshold of top-1 Loc and GT-known Loc, as a share of the map's maximum, in [0, 1).

    Returns:
        Records of ``top1_loc``, ``gt_known_loc``, ``top1_cls``, ``max_box_acc``, ``max_box_acc_v2`` and their floors
        ``center_max_box_acc`` and ``center_max_box_acc_v2``, in per cent; arrays ``predicted_boxes`` (N, 4) float32,
        ``true_boxes`` (N, B, 4) float32, ``iou`` (N,) float64, ``right`` (N,) bool, ``max_box_hits`` (N,) bool and
        ``max_box_v2_hits`` (3, N) bool.

    Raises:
        InputError: If the network has no class activation maps or its logits are not finite, or the boxes do not fit
            the images.
    """
    check_thresholds([threshold])
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
        predicted[part] = [box_from_map(cam, threshold) for cam in maps.cpu().numpy()]
        found, tops = level_iou(normalize_maps(maps).cpu().numpy(), boxes[part])
        peaks = np.append(peaks, tops)
        for kind, table in found.items():
            tables[kind][part] = table
    accuracies = localization_accuracy(predicted, boxes, right)
    best = best_thresholds(tables["largest"], peaks, (0.5,))
    version2 = best_thresholds(tables["all"], peaks, _V2_IOU)
    center = center_iou(boxes, (height, width))
    records = [
        *(_record(name, accuracies[name], at=threshold, note=note) for name, note in _NOTES.items()),
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
    share = wilson_interval(int(found.hits[0].sum()), n)
    more: dict[str, Any] = {"at": found.thresholds[0]} if len(found.hits) == 1 else {}
    if len(found.hits) > 1:
        half = 1.959964 * 100 * float(found.hits.mean(0).std()) / math.sqrt(n)
        share = Proportion(found.value, max(found.value - half, 0.0), min(found.value + half, 100.0), n)
        more["few"] = too_narrow(share.value, share.low, share.high, n, 0.0, 100.0)
    return _record(name, share, **more, chosen_on="test", note=note)
