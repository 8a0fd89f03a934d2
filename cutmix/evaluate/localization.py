"""Weakly supervised localization: class activation maps, top-1 Loc, GT-known Loc, MaxBoxAcc and PxAP.

Two protocols that are not one another. The paper's: a box from the map at 15 % of its maximum, right with the class
and an IoU above 0.5. The later benchmark's, wsolevaluation: maps of the true class between 0 and 1, at the threshold
that is best for the set.
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
from cutmix.evaluate.boxes import best_iou, box_from_map, check_thresholds, padded_boxes
from cutmix.evaluate.classification import Proportion, wilson_interval
from cutmix.evaluate.classifier import Classifier, Suite
from cutmix.evaluate.logits import as_numpy
from cutmix.evaluate.max_box import MaxBoxAccuracy, best_thresholds, center_iou, level_iou
from cutmix.models.localization import find_head
from cutmix.runs.record import Record

_V2_IOU = (0.3, 0.5, 0.7)
_BINS = np.append(np.arange(0, 1, 0.001), [1.0, 2.0, 3.0])


def class_activation_map(features: Tensor, weight: Tensor, class_ids: Tensor) -> Tensor:
    """Return M_n(y, x) = Σ_c weight[k_n, c] · features[n, c, y, x], whose mean and bias are the logit of class k_n.

    Args:
        features: What the global average pooling sees, (N, C, h, w).
        weight: Of the linear layer behind it, (K, C), of the features' dtype.
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
    """Resize maps (N, h, w) to (N, height, width): bicubic, as OpenCV's INTER_CUBIC.

    The paper does not say how it enlarges its maps; this is the benchmark's way, so that one map serves both.
    """
    return F.interpolate(maps[:, None], size, mode="bicubic", align_corners=False)[:, 0]


def normalize_maps(maps: Tensor) -> Tensor:
    """Return (M − min M) / max(M − min M) of each map, in [0, 1]; a constant or undefined map becomes zeros.

    The benchmark does so after the enlargement.

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

    An image is located if its box and one of its true boxes have more than this IoU; top-1 Loc asks for the right class
    too, so it is at most the lesser of the other two.

    Args:
        predicted: Boxes from the maps of the true classes, (N, 4): where the predicted class is right, it is that.
        boxes: N arrays (B, 4) of true boxes.
        right: Whether the predicted class is the true one, (N,) bool.
        iou: In [0, 1); the box has to fit better.
        confidence: Of the intervals, in (0, 1).

    Raises:
        InputError: If counts or ranges are wrong.

    Source: Yun et al. 2019, appendix B: IoU > 0.5. The benchmark has ≥ 0.5.
    """
    if not 0 <= iou < 1:
        raise InputError(f"iou is {iou}; expected a number in [0, 1)")
    right = as_numpy(right)
    if right.ndim != 1 or right.dtype != np.bool_:
        raise InputError(
            f"right is {right.dtype} of shape {right.shape}; expected whether each predicted class is the true one, "
            "(N,) bool"
        )
    if len(right) != len(predicted) or not len(right):
        raise InputError(f"there are {len(predicted)} boxes and {len(right)} answers; expected as many, and some")
    located = best_iou(predicted, boxes) > iou
    return {
        name: wilson_interval(int(hits.sum()), len(right), confidence)
        for name, hits in (("top1_loc", located & right), ("gt_known_loc", located), ("top1_cls", right))
    }


def pixel_average_precision(maps: np.ndarray, masks: np.ndarray) -> float:
    """Return PxAP, the area under precision over recall of all pixels together, in per cent.

    AP = Σ_t precision(t) · (recall(t) − recall(t−1)) over thresholds of 0, 0.001, …, 0.999, 1.

    Args:
        maps: (N, h, w) in [0, 1].
        masks: (N, h, w) integers: 1 the object, 0 the rest; anything else is left out.

    Raises:
        InputError: If the shapes differ, a map is out of range, or no pixel is of an object.

    Source: Choe et al. 2020; equal to ``MaskEvaluator`` of clovaai/wsolevaluation.
    """
    maps, masks = np.asarray(maps), np.asarray(masks)
    if maps.shape != masks.shape:
        raise InputError(f"the maps are {maps.shape} and the masks {masks.shape}; expected one mask for each map")
    if not (maps.min(initial=0) >= 0 and maps.max(initial=0) <= 1):
        raise InputError("the maps are not numbers in [0, 1]; normalise each by its least and greatest value")
    inside, outside = np.zeros(len(_BINS) - 1), np.zeros(len(_BINS) - 1)
    for cam, mask in zip(maps, masks, strict=True):
        inside += np.histogram(cam[mask == 1], _BINS)[0]
        outside += np.histogram(cam[mask == 0], _BINS)[0]
    if not inside.sum():
        raise InputError("no pixel of the masks is 1; expected the pixels of an object in some image")
    true, false = inside[::-1].cumsum(), outside[::-1].cumsum()
    precision = np.divide(true, true + false, out=np.zeros_like(true), where=true + false > 0)
    return float(100 * (precision[1:] * np.diff(true / true[-1])).sum())


def class_maps(classifier: Classifier, index: Tensor | slice, class_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return class activation maps in the size of the images, and the logits of the same forward pass.

    Args:
        classifier: With a network that ``find_head`` accepts.
        index: Which images.
        class_ids: Of which class each map is, (n,); of the true ones by default.

    Returns:
        Maps (n, H, W) and logits (n, K), both float32 on the device.
    """
    return maps_of(classifier, classifier.pixels(index), classifier.labels[index] if class_ids is None else class_ids)


def maps_of(classifier: Classifier, pixels: Tensor, class_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Do the same for pixels (n, C, H, W) in [0, 1], as of mixed images."""
    split = _Split(classifier.network)
    logits = replace(classifier, network=split).logits(pixels)
    weight = split.network.get_classifier().weight.detach().float()  # type: ignore[operator]
    cams = class_activation_map(split.features.float(), weight, class_ids.to(weight.device))
    return resize_maps(cams, (pixels.shape[-2], pixels.shape[-1])), logits


class _Split(nn.Module):
    """The network, which keeps the feature maps of its last forward pass."""

    features: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        self.features = self.network.forward_features(images)  # type: ignore[operator]
        return self.network.forward_head(self.features)  # type: ignore[operator]


def localization_suite(classifier: Classifier, boxes: Sequence[np.ndarray], *, threshold: float = 0.15) -> Suite:
    """Measure where a classifier looks, against true boxes.

    Args:
        classifier: A network with global average pooling and one linear layer at the end, and images with labels.
        boxes: N arrays (B, 4) of true boxes in the pixels of ``classifier.images``.
        threshold: Of top-1 Loc and GT-known Loc, as a share of the map's maximum, in [0, 1).

    Raises:
        InputError: If the network has no class activation maps, or gives no finite logits; or the boxes do not fit the
            images.
    """
    check_thresholds([threshold])
    true = padded_boxes(len(classifier), boxes, "images")
    channels, *size = classifier.images.shape[1:]
    side = classifier.image_size
    find_head(classifier.network, (channels, side, side) if side else (channels, *size))
    predicted, right = np.zeros((len(classifier), 4), dtype=np.float32), np.zeros(len(classifier), dtype=bool)
    tables, peaks = {kind: np.zeros((len(classifier), 255)) for kind in ("largest", "all")}, np.zeros(0, dtype=np.int64)
    for start in range(0, len(classifier), classifier.batch_size):
        part = slice(start, start + classifier.batch_size)
        maps, logits = class_maps(classifier, part)
        right[part] = (logits.argmax(1).cpu() == classifier.labels[part].cpu()).numpy()
        predicted[part] = [box_from_map(cam, threshold) for cam in maps.cpu().numpy()]
        found, tops = level_iou(normalize_maps(maps).cpu().numpy(), boxes[part])
        peaks = np.append(peaks, tops)
        for kind, table in found.items():
            tables[kind][part] = table
    accuracies = localization_accuracy(predicted, boxes, right)
    best = best_thresholds(tables["largest"], peaks, (0.5,))
    version2 = best_thresholds(tables["all"], peaks, _V2_IOU)
    center = center_iou(boxes, (size[0], size[1]))
    records = [
        *(_record(name, accuracies[name], at=threshold, note=note) for name, note in _NOTES.items()),
        _record("top1_cls", accuracies["top1_cls"]),
        _max_box_record("max_box_acc", best, "the box of most pixels; the threshold is the best of 1,000 on this set"),
        _max_box_record("max_box_acc_v2", version2, "all contours; each IoU has its own best threshold on this set"),
        _max_box_record("center_max_box_acc", best_thresholds(*center, (0.5,)), _CENTER),
        _max_box_record("center_max_box_acc_v2", best_thresholds(*center, _V2_IOU), _CENTER),
    ]
    arrays = {
        "predicted_boxes": predicted, "true_boxes": true.astype(np.float32), "iou": best_iou(predicted, boxes),
        "right": right, "max_box_hits": best.hits[0], "max_box_v2_hits": version2.hits,
    }  # fmt: skip
    return Suite(records, arrays)


_NOTES = {
    "top1_loc": "the class is right and the IoU above 0.5; the map is not normalised, enlarged bicubically",
    "gt_known_loc": "the IoU is above 0.5 with the box from the map of the true class",
}
_CENTER = "a Gaussian in the centre in place of every map: what can be had without looking at the image"


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
    return _record(name, share, **more, chosen_on="test", note=note)
