"""A set of pictures with boxes, whatever layout it was read from."""

import hashlib
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cutmix.data.decode import image_size
from cutmix.errors import InputError
from cutmix.transfer.matching import Objects
from cutmix.transfer.split import Split


class Picture(NamedTuple):
    """One picture and what is in it.

    Attributes:
        path: Its file.
        size: Width and height in pixels.
        boxes: (n, 4) float32: left, top, right, bottom in pixels, 0 ≤ left < right ≤ width; right - left is the width.
        labels: Class ids, (n,) int64.
        difficult: (n,) bool: VOC's difficult objects, COCO's crowds; they are not asked for when detections are judged.
    """

    path: Path
    size: tuple[int, int]
    boxes: Tensor
    labels: Tensor
    difficult: Tensor


@dataclass(frozen=True, eq=False)
class DetectionSet:
    """A split of pictures with boxes.

    Args:
        name: The folder's, or of the data set.
        split: "train" or "test".
        classes: The class names; a label is an index into them.
        pictures: In their order.
        crowds: Whether ``difficult`` marks COCO's crowds, which belong to no training.
    """

    name: str
    split: Split
    classes: tuple[str, ...]
    pictures: tuple[Picture, ...]
    crowds: bool = False

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def num_classes(self) -> int:
        """Classes that a label can name."""
        return len(self.classes)

    def objects(self) -> Objects:
        """Return every object of the split, pictures numbered by their order, as the measures take them."""
        counts = [len(picture.labels) for picture in self.pictures]
        labels, boxes, difficult = (
            torch.cat([getattr(picture, name) for picture in self.pictures]).numpy()
            for name in ("labels", "boxes", "difficult")
        )
        return Objects(np.repeat(np.arange(len(self)), counts), labels, boxes, difficult)

    def fingerprint(self) -> str:
        """Return a digest of which pictures these are, in which order, with which boxes and labels."""
        digest = hashlib.blake2b(digest_size=16)
        for picture in self.pictures:
            digest.update(picture.path.name.encode())
            for column in (picture.boxes, picture.labels, picture.difficult):
                digest.update(column.numpy().tobytes())
        return digest.hexdigest()


def make_picture(
    path: Path,
    size: tuple[int, int],
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    difficult: Sequence[bool],
    source: str,
) -> Picture:
    """Check boxes against their picture, clip what is up to one pixel outside, and make the record.

    Programs that count from 0 where the format counts from 1, and rounding, put boxes one pixel outside.

    Args:
        path: The picture.
        size: Width and height.
        boxes: (n, 4) numbers: left, top, right, bottom.
        labels: (n,).
        difficult: (n,).
        source: The annotation's file, which an error names.

    Raises:
        InputError: A box has no area or lies outside.
    """
    width, height = size
    for number, (left, top, right, bottom) in enumerate(boxes, 1):
        where = f"object {number} of {source}: its box ({left:g}, {top:g}, {right:g}, {bottom:g})"
        if not all(map(math.isfinite, (left, top, right, bottom))) or right <= left or bottom <= top:
            raise InputError(f"{where} has no area: expected left < right and top < bottom")
        if left < -1 or top < -1 or right > width + 1 or bottom > height + 1:
            raise InputError(f"{where} lies outside the picture of {width}×{height} pixels")
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    corners = corners.clamp(min=0).minimum(torch.tensor([width, height, width, height], dtype=torch.float32))
    return Picture(
        path, size, corners, torch.tensor(labels, dtype=torch.int64), torch.tensor(difficult, dtype=torch.bool)
    )


def check_files(pictures: Sequence[Picture]) -> None:
    """See by the headers of the files, in threads, that each is a picture of the size that its annotation says.

    Raises:
        InputError: One cannot be read or has another size; what is damaged behind the header is found when it is read.
    """
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(lambda picture: check_size(picture, image_size(picture.path)), pictures):
            pass


def check_size(picture: Picture, size: tuple[int, int]) -> None:
    """See that a picture has the size of its annotation.

    Args:
        picture: What the annotation says.
        size: Width and height that the file has.

    Raises:
        InputError: It has another one.
    """
    if size != picture.size:
        (width, height), said = size, picture.size
        raise InputError(f"{picture.path} is {width}×{height} pixels, but its annotation says {said[0]}×{said[1]}")
