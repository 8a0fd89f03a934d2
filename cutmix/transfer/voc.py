"""Pictures with boxes, and Pascal VOC's layout of them."""

import hashlib
import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cutmix.errors import InputError
from cutmix.seeding import derive_seed
from cutmix.transfer.matching import Objects

Split = Literal["train", "test"]

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


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
    """

    name: str
    split: Split
    classes: tuple[str, ...]
    pictures: tuple[Picture, ...]

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


def open_voc(
    path: str | Path, split: Split, *, classes: Sequence[str] = VOC_CLASSES, test_fraction: float = 0.2, seed: int = 0
) -> DetectionSet:
    """Open one split of data in Pascal VOC's layout.

    Training takes the trainval lists of VOC2007 and VOC2012, as far as they are there, and testing the list ``test``;
    where there is none, ``train`` and ``val`` are the splits. A folder without lists (``ImageSets/Main``) is split by
    the hash of each picture's name.

    Args:
        path: A VOCdevkit (or the folder around it) with VOC2007, VOC2012 or both; or a folder with ``JPEGImages/`` and
            ``Annotations/``.
        split: "train" or "test".
        classes: The class names; others are refused.
        test_fraction: In (0, 1): the test share of a folder without lists.
        seed: Decides that split, and nothing else.

    Returns:
        The pictures in the lists' order. VOC counts pixels from 1 and includes the last one of a box, so that a box
        here is (xmin - 1, ymin - 1, xmax, ymax).

    Raises:
        InputError: The layout is another one, a listed picture or annotation is missing, an annotation cannot be read,
            names an unknown class, or has a box of no area or more than a pixel outside its picture.
    """
    if not 0 < test_fraction < 1:
        raise InputError(f"test_fraction is {test_fraction}: expected a share between 0 and 1")
    root = Path(path).expanduser()
    folders = _folders(root)
    lists = _lists(folders, split)
    pictures = []
    for folder in folders:
        listed = lists.get(folder)
        if lists and not listed:
            continue
        files = {file.stem: file for file in (folder / "JPEGImages").iterdir() if _is_picture(file)}
        ids = _read_list(listed) if listed else _share(sorted(files), split, test_fraction, seed)
        for number in ids:
            if number not in files:
                raise InputError(f"{listed} names '{number}', but {folder / 'JPEGImages' / number}.jpg is missing")
            pictures.append(_read_picture(folder / "Annotations" / f"{number}.xml", files[number], tuple(classes)))
    if not pictures:
        raise InputError(f"{root} has no {split} pictures")
    return DetectionSet(root.resolve().name, split, tuple(classes), tuple(pictures))


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
    corners = corners.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
    return Picture(
        path, size, corners, torch.tensor(labels, dtype=torch.int64), torch.tensor(difficult, dtype=torch.bool)
    )


# ---- where it lies ----


def _folders(root: Path) -> list[Path]:
    """Return the folders that hold JPEGImages and Annotations: one, or those of the years."""
    for base in (root, root / "VOCdevkit"):
        if years := [base / year for year in ("VOC2007", "VOC2012") if _is_voc(base / year)]:
            return years
    if _is_voc(root):
        return [root]
    what = "holds no such data" if root.is_dir() else "is no folder"
    raise InputError(
        f"{root} {what}: expected VOC2007 or VOC2012 in it, or JPEGImages with pictures and Annotations with XML files"
    )


def _is_voc(folder: Path) -> bool:
    return (folder / "JPEGImages").is_dir() and (folder / "Annotations").is_dir()


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in (".jpg", ".jpeg", ".png") and not file.name.startswith(".")


def _lists(folders: list[Path], split: Split) -> dict[Path, Path]:
    """Return each folder's list of the split's pictures; none at all where no folder has any."""

    def found(name: str) -> dict[Path, Path]:
        return {x: file for x in folders if (file := x / "ImageSets" / "Main" / f"{name}.txt").is_file()}

    official = found("test")
    names = ("trainval", "test") if official and found("trainval") else ("train", "test" if official else "val")
    lists = found(names[split == "test"])
    if not lists and any((folder / "ImageSets" / "Main").is_dir() for folder in folders):
        main = folders[0] / "ImageSets" / "Main"
        raise InputError(
            f"{main} has no {names[split == 'test']}.txt: expected trainval.txt and test.txt, or train.txt and val.txt"
        )
    return lists


def _read_list(file: Path) -> list[str]:
    return [line.split()[0] for line in file.read_text().splitlines() if line.strip()]


def _share(ids: list[str], split: Split, test_fraction: float, seed: int) -> list[str]:
    """Return a folder's part of the split: testing gets those whose hash with the seed is smallest."""
    count = min(max(round(test_fraction * len(ids)), 1), len(ids) - 1)
    ranked = sorted(ids, key=lambda number: derive_seed(seed, "split", number))
    return sorted(ranked[:count] if split == "test" else ranked[count:])


# ---- one annotation ----


def _read_picture(file: Path, picture: Path, classes: tuple[str, ...]) -> Picture:
    if not file.is_file():
        raise InputError(f"{picture} has no annotation: {file} is missing")
    try:
        tree = ET.parse(file).getroot()
    except (ET.ParseError, UnicodeDecodeError, LookupError) as error:
        raise InputError(f"{file} cannot be read as XML ({error})") from None
    width, height = (round(_number(tree, f"size/{side}", str(file))) for side in ("width", "height"))
    if min(width, height) < 1:
        raise InputError(f"{file} gives its picture a size of {width}×{height} pixels: expected 1 or more")
    boxes, labels, difficult = [], [], []
    for number, item in enumerate(tree.findall("object"), 1):
        where = f"object {number} of {file}"
        labels.append(class_index((item.findtext("name") or "").strip(), classes, where))
        left, top, right, bottom = (_number(item, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax"))
        boxes.append((left - 1, top - 1, right, bottom))
        difficult.append((item.findtext("difficult") or "0").strip() not in ("0", ""))
    return make_picture(picture, (width, height), boxes, labels, difficult, str(file))


def _number(element: ET.Element, tag: str, where: str) -> float:
    text = element.findtext(tag)
    try:
        return float(text or "")
    except ValueError:
        raise InputError(f"{where} has '{text or ''}' as its {tag}: expected a number") from None


def class_index(name: str, classes: tuple[str, ...], where: str) -> int:
    """Return the index of a class name.

    Raises:
        InputError: There is no such class.
    """
    if name in classes:
        return classes.index(name)
    close = get_close_matches(name, classes, n=1)
    hint = f"did they mean '{close[0]}'?" if close else f"expected one of {', '.join(classes)}"
    raise InputError(f"{where} is of class '{name}', which is not known: {hint}")
