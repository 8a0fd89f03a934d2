"""Detection data: a split of images with boxes, its augmentation and its batches."""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from cutmix.data.boxes import turn_boxes
from cutmix.data.decode import in_threads, read_header, read_image
from cutmix.data.folder import Split
from cutmix.data.image_files import draws_from
from cutmix.data.loaders import Job
from cutmix.data.transforms import IMAGENET_MEAN
from cutmix.errors import InputError, did_you_mean
from cutmix.runtime.seeding import derive_seed
from cutmix.transfer.average_precision import Objects


class BoxedImage(NamedTuple):
    """An image file and the objects in it."""

    path: Path
    size: tuple[int, int]  # width and height in pixels
    # (n, 4) float32: left, top, right, bottom in pixels, 0 ≤ left < right ≤ width; right - left is the width
    boxes: Tensor
    labels: Tensor  # class ids, (n,) int64
    difficult: Tensor  # (n,) bool: VOC's difficult objects or COCO's crowds, which are not counted in the evaluation
    areas: Tensor  # (n,) float64 square pixels: of the object's outline in COCO's files, otherwise of its box


@dataclass(frozen=True, eq=False)
class DetectionSet:
    """A split of a detection data set, whose labels are indices into ``classes``."""

    name: str
    split: Split
    classes: tuple[str, ...]
    images: tuple[BoxedImage, ...]
    crowds: bool = False  # whether ``difficult`` marks COCO's crowds, which are never trained on
    notes: tuple[str, ...] = ()  # on data left out and assumptions made, one sentence each

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def objects(self) -> Objects:
        """Return every object of the split, with images numbered by their order, as the metrics take them."""
        counts = [len(image.labels) for image in self.images]
        labels, boxes, difficult = (
            torch.cat([getattr(image, name) for image in self.images]).numpy()
            for name in ("labels", "boxes", "difficult")
        )
        return Objects(np.repeat(np.arange(len(self)), counts), labels, boxes, difficult)

    def areas(self) -> np.ndarray:
        """Return the area of every object in square pixels, in the order of ``objects``."""
        return torch.cat([image.areas for image in self.images]).numpy()

    def fingerprint(self) -> str:
        """Return a digest of the names of the files, their order, their boxes and labels."""
        digest = hashlib.blake2b(digest_size=16)
        for image in self.images:
            digest.update(os.fsencode(image.path.name))
            for column in (image.boxes, image.labels, image.difficult):
                digest.update(column.numpy().tobytes())
        return digest.hexdigest()


class RawImage(NamedTuple):
    """An annotated image as it was read, before its objects are checked; ``source`` names the annotation in errors."""

    path: Path
    size: tuple[int, int]
    boxes: list[tuple[float, float, float, float]]
    names: list[str]
    difficult: list[bool]
    areas: list[float]
    source: str


def detection_sets(
    root: Path,
    splits: Sequence[Sequence[RawImage]],
    classes: Sequence[str],
    notes: Sequence[Sequence[str]],
    *,
    crowds: bool,
) -> tuple[DetectionSet, DetectionSet]:
    """Return the training and the test split, with all annotations and their agreement with each other checked.

    ``notes`` are those of each split; ``crowds`` is whether ``difficult`` marks COCO's crowds.
    """
    repeated = [name for name, count in Counter(classes).items() if count > 1]
    if repeated:
        raise InputError(f"the class '{repeated[0]}' is given twice; expected each once")
    name, classes = root.resolve().name, tuple(classes)
    (own, turned), (other, turned_too) = (_upright([_boxed(raw, classes) for raw in split]) for split in splits)
    train = DetectionSet(name, "train", classes, own, crowds, (*notes[0], *turned))
    test = DetectionSet(name, "test", classes, other, crowds, (*notes[1], *turned_too))
    if shared := {image.path.resolve() for image in train.images} & {image.path.resolve() for image in test.images}:
        raise InputError(f"{min(shared)} is in the training split and in the test split; expected each image in one")
    counts = []
    for data, what in ((train, "training"), (test, "test")):
        found = data.objects()
        if found.difficult.all():
            marked = f" that are not {'crowds' if crowds else 'difficult'}" if len(found.labels) else ""
            raise InputError(f"the {what} images of {root} have no boxes{marked}; expected one or more")
        if found.boxes.max() <= 1:
            raise InputError(
                f"all boxes of the {what} images of {root} are within the first pixel; expected corners in "
                "pixels, not as shares of the sides"
            )
        counts.append(np.bincount(found.labels, minlength=len(classes)))
    train, test = _with_repeated(train), _with_repeated(test)
    untrained = [name for name, seen, asked in zip(classes, *counts, strict=True) if asked and not seen]
    if untrained:
        train = replace(
            train, notes=(*train.notes, f"classes of test images without a training image: {', '.join(untrained)}")
        )
    return train, test


def _with_repeated(data: DetectionSet) -> DetectionSet:
    """Return a split with a note on the objects that are there twice: a detector can find them once only."""
    found = data.objects()
    rows = np.column_stack([found.images, found.labels, found.boxes])
    if not (repeated := len(rows) - len(np.unique(rows, axis=0))):
        return data
    return replace(data, notes=(*data.notes, f"objects with class and box of another one: {repeated:,}"))


def _boxed(raw: RawImage, classes: tuple[str, ...]) -> BoxedImage:
    """Check the objects of an image, and clip boxes that are up to one pixel outside it.

    Programs that count from 0 where the format counts from 1, and rounding, put boxes one pixel outside.
    """
    for number, name in enumerate(raw.names, 1):
        if name not in classes:
            hint = did_you_mean(name, classes, f"expected one of {', '.join(classes)}")
            raise InputError(f"object {number} of {raw.source} is of class '{name}'; {hint}")
    width, height = raw.size
    for number, (left, top, right, bottom) in enumerate(raw.boxes, 1):
        where = f"object {number} of {raw.source}: its box ({left:g}, {top:g}, {right:g}, {bottom:g})"
        if not all(map(math.isfinite, (left, top, right, bottom))) or right <= left or bottom <= top:
            raise InputError(f"{where} has no area; expected left < right and top < bottom")
        if left < -1 or top < -1 or right > width + 1 or bottom > height + 1:
            raise InputError(f"{where} lies outside the image of {width}×{height} pixels")
    corners = torch.tensor(raw.boxes, dtype=torch.float32).reshape(-1, 4)
    corners = corners.clamp(min=0).minimum(torch.tensor([width, height, width, height], dtype=torch.float32))
    ids = torch.tensor([classes.index(name) for name in raw.names], dtype=torch.int64)
    difficult = torch.tensor(raw.difficult, dtype=torch.bool)
    return BoxedImage(raw.path, raw.size, corners, ids, difficult, torch.tensor(raw.areas, dtype=torch.float64))


def _upright(images: Sequence[BoxedImage]) -> tuple[tuple[BoxedImage, ...], list[str]]:
    """Turn boxes with images that EXIF turns, and check the sizes in the annotations by the headers of the files."""
    headers = in_threads(lambda image: read_header(image.path), images)
    given = [(x.path, (x.boxes.numpy(), x.size), header) for x, header in zip(images, headers, strict=True)]
    turned, notes = turn_boxes(given)
    images = tuple(
        x._replace(boxes=torch.from_numpy(boxes), size=size) for x, (boxes, size) in zip(images, turned, strict=True)
    )
    for image, header in zip(images, headers, strict=True):
        _check_size(image, header.size)
    return images, notes


def _check_size(image: BoxedImage, size: tuple[int, int]) -> None:
    """Check that an image has the size, width and height, that its annotation gives."""
    if size != image.size:
        (width, height), expected = size, image.size
        raise InputError(
            f"{image.path} is {width}×{height} pixels; expected {expected[0]}×{expected[1]} by its annotation"
        )


# ---- augmentation and batches ----

Target = dict[str, Tensor]
Sample = tuple[Tensor, Target]
Batch = tuple[list[Tensor], list[Target]]


def ssd_transform(image_size: int = 300, fill: Sequence[float] = IMAGENET_MEAN) -> Callable[[Any], Any]:
    """Return SSD's augmentation: color distortion, zoom out, a crop around objects, a flip, and a resize.

    Brightness, contrast, saturation, hue and the order of the channels change with probability 1/2 each. Half of the
    images are placed on a canvas of up to four times the side, of the color ``fill`` in [0, 1]. A crop of 0.3 to 1 of
    each side keeps an object with an IoU of at least 0, 0.1, 0.3, 0.5, 0.7 or 0.9, or the image is not cropped; objects
    whose center is outside the crop are dropped.

    Source: Liu et al. 2016, data augmentation, in torchvision's implementation.
    """
    return v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut([255 * value for value in fill]),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(0.5),
            v2.Resize((image_size, image_size), antialias=False),  # as the model resizes test images
            v2.ClampBoundingBoxes(),
            v2.SanitizeBoundingBoxes(labels_getter=_labels),
        ]
    )


def _labels(inputs: tuple[Any, Target]) -> Tensor:
    return inputs[1]["labels"]


def faster_rcnn_transform() -> Callable[[Any], Any]:
    """Return Faster R-CNN's augmentation: a horizontal flip with probability 1/2; the model resizes.

    Source: Ren et al. 2015 and the paper's code base, which adds the flipped images to the set.
    """
    return v2.RandomHorizontalFlip(0.5)


class DetectionSamples:
    """Decoded and augmented images, indexed by (epoch, index); the same key always gives the same sample.

    The transform, None for testing, draws from PyTorch's generator, seeded for each sample. Of the paper's code bases,
    SSD drops difficult objects from the targets, and Faster R-CNN trains on them (``keep_difficult``). COCO's crowds
    are marked in the same way and are never trained on.
    """

    def __init__(
        self,
        data: DetectionSet,
        transform: Callable[[Any], Any] | None = None,
        *,
        seed: int = 0,
        keep_difficult: bool = False,
    ) -> None:
        self.data, self.transform, self.seed, self.keep_difficult = data, transform, seed, keep_difficult

    def __len__(self) -> int:
        return len(self.data)

    def begin(self, epoch: int, indices: list[int]) -> tuple[list[Job], Callable[[], Batch]]:
        """Return jobs that make the samples, and a function that lists them, as the sizes of images differ."""
        samples: dict[int, Sample] = {}

        def make(place: int, index: int) -> None:
            samples[place] = self[epoch, index]

        jobs: list[Job] = [partial(make, place, index) for place, index in enumerate(indices)]
        ordered = range(len(indices))
        return jobs, lambda: ([samples[place][0] for place in ordered], [samples[place][1] for place in ordered])

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Return the image, (3, H, W) uint8, and its ``boxes`` (n, 4) float32 and ``labels`` (n,) int64."""
        epoch, index = key
        item = self.data.images[index]
        image = load_image(item)
        kept = torch.ones_like(item.difficult) if self.keep_difficult else ~item.difficult
        boxes, labels = item.boxes[kept], item.labels[kept]
        if self.transform is None:
            return image, {"boxes": boxes, "labels": labels}
        sides = (image.shape[1], image.shape[2])
        wrapped = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=sides)
        with draws_from(torch.Generator().manual_seed(derive_seed(self.seed, "augment", epoch, index))):
            image, target = self.transform((tv_tensors.Image(image), {"boxes": wrapped, "labels": labels}))
        return image.as_subclass(Tensor), {"boxes": target["boxes"].as_subclass(Tensor), "labels": target["labels"]}


def load_image(image: BoxedImage) -> Tensor:
    """Decode an image to (3, H, W) uint8, RGB, and check that it has the size that its annotation gives."""
    decoded = read_image(image.path)
    _check_size(image, decoded.size)
    return v2.functional.pil_to_tensor(decoded)
