"""Boxes of Tiny-ImageNet-200, CUB-200-2011, ImageNet (VOC's XML) and wsolevaluation, also after resize and crop.

A box is x0, y0, x1, y1 in pixels from the image's upper left corner, x1 and y1 exclusive. Files that count pixels name
the last one inside (Tiny-ImageNet, ImageNet, wsolevaluation), so their x1 and y1 grow by one; CUB's have a width.
"""

import codecs
import logging
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, NoReturn

import numpy as np

from cutmix.data.decode import Header, read_header
from cutmix.data.formats import read_rows
from cutmix.data.sets import ArraySet, FileSet, ImageSet
from cutmix.data.sources import Paths
from cutmix.errors import InputError
from cutmix.runtime.files import regular

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class BoxSet:
    """The boxes of N images, in the order of a data set."""

    boxes: tuple[np.ndarray, ...]  # N arrays (B, 4) float64, in the pixels of the upright image
    sizes: np.ndarray  # width and height of each image, (N, 2) int64

    def __len__(self) -> int:
        return len(self.boxes)

    def after(self, *, resize: int, crop: int, squash: bool = False) -> list[np.ndarray]:
        """Return the boxes after the resize and crop of an evaluation; see ``boxes_after``."""
        pairs = zip(self.boxes, self.sizes.tolist(), strict=True)
        return [boxes_after(own, (w, h), resize=resize, crop=crop, squash=squash) for own, (w, h) in pairs]


def boxes_after(
    boxes: np.ndarray, size: tuple[int, int], *, resize: int, crop: int, squash: bool = False
) -> np.ndarray:
    """Return boxes (B, 4) after a resize and the central crop, cut at its edges, between 0 and ``crop``.

    The part of a box outside the crop is cut off, since the model does not see it; a box wholly outside becomes empty,
    and no prediction can match it. ``resize`` is the short side afterwards, or both sides with ``squash``, as in the
    paper's localization.

    Source: the integer arithmetic of torchvision's ``Resize`` and ``CenterCrop``.
    """
    short = min(size)
    resized = np.array([resize if squash or side == short else int(resize * side / short) for side in size])
    offset = np.array([round((side - crop) / 2) for side in resized.tolist()])
    moved = np.asarray(boxes, dtype=np.float64).reshape(-1, 2, 2) * (resized / size) - offset
    return moved.clip(0, crop).reshape(-1, 4)


def benchmark_boxes(boxes: BoxSet, side: int = 224) -> list[np.ndarray]:
    """Return the boxes as wsolevaluation scales them: images squashed to side×side, last pixels scaled and cut.

    The multiplication comes first, as in its ``resize_bbox``: where the quotient is whole, a rounded factor side /
    width would lose a pixel.
    """
    last, sizes = np.array([0, 0, 1, 1]), np.concatenate([boxes.sizes, boxes.sizes], axis=1)
    return [np.trunc((own - last) * side / size) + last for own, size in zip(boxes.boxes, sizes, strict=True)]


def read_boxes(folder: Path, data: ImageSet) -> BoxSet:
    """Read the boxes of a data set's images, in their order.

    The layout of the folder is recognized: ``val/val_annotations.txt`` (Tiny-ImageNet-200), ``bounding_boxes.txt``
    (CUB-200-2011), ``localization.txt`` (a split's folder of wsolevaluation's metadata), or files of XML, there or in
    ``val/`` (ImageNet). Boxes of an image that its EXIF orientation turns are turned with it; see ``turn_boxes``. A box
    may reach outside its image by one pixel, by which ways of counting differ.
    """
    if (folder / "val" / "val_annotations.txt").is_file():
        return _of_tiny_imagenet(folder / "val" / "val_annotations.txt", data)
    if (folder / "localization.txt").is_file():
        return _of_files(_of_metadata, folder, data)
    if (folder / "bounding_boxes.txt").is_file():
        return _of_files(_of_cub, folder, data)
    for place in (folder, folder / "val"):
        if next(place.glob("*.xml"), None):
            return _of_files(_of_xml, place, data)
    raise InputError(
        f"{folder} holds no boxes; expected val/val_annotations.txt, bounding_boxes.txt, localization.txt or XML files"
    )


Annotated = tuple[np.ndarray, tuple[int, int]]
"""Boxes (B, 4) of an image, and the width and height that they are in."""


Reader = Callable[[Path, Header], tuple[str, Annotated]]
"""Returns the name of an image's annotation, and its content."""


def _of_files(layout: Callable[[Path], Reader], folder: Path, data: ImageSet) -> BoxSet:
    """Read the boxes of every image, in the axes of the upright image."""
    if not isinstance(data, FileSet) or not isinstance(data.paths, Paths):
        raise InputError(f"{folder} has the boxes of image files, but {data.name} is not a set of files")
    read, found = layout(folder), list[tuple[Path, Annotated, Header]]()
    images: dict[str, Path] = {}
    for path in data.paths:
        header = read_header(path)
        name, (own, size) = read(path, header)
        if name in images:
            raise InputError(
                f"{images[name]} and {path} both belong to the annotation {name} of {folder}; expected one image for "
                "each annotation"
            )
        images[name] = path
        found.append((path, (own, size), header))
    if max(own.max() for _, (own, _), _ in found) <= 2:  # a file that counts pixels was given one more
        raise InputError(
            f"all boxes of {folder} are within the first pixel; expected corners in pixels, not as shares of the sides"
        )
    turned, notes = turn_boxes(found, sized=layout is not _of_cub)
    for note in notes:
        _log.warning(note)
    boxes, sizes = zip(*turned, strict=True)
    return BoxSet(tuple(boxes), np.array(sizes))


def turn_boxes(
    images: Sequence[tuple[Path, Annotated, Header]], *, sized: bool = True
) -> tuple[list[Annotated], list[str]]:
    """Turn boxes with their images where they were drawn on the pixels as stored.

    The size in the annotation tells the axes of an image that is stored on its side. For orientations 2 to 4 and for
    squares it does not: the axes are then those of most other turned images, and of the upright image without any.
    Without ``sized``, as for CUB, the sizes are those of the images. The second result is a note that names the images
    whose axes are not certain.
    """
    stored = [_is_stored(size, header) if sized else None for _, (_, size), header in images]
    assumed = stored.count(True) > stored.count(False)
    turned = [
        _turn(boxes, size, header.orientation) if (assumed if own is None else own) else (boxes, size)
        for own, (_, (boxes, size), header) in zip(stored, images, strict=True)
    ]
    unsure = [
        path
        for own, (path, (boxes, _), header) in zip(stored, images, strict=True)
        if own is None and header.orientation > 1 and len(boxes)
    ]
    more = f" and {len(unsure) - 1:,} more" if unsure[1:] else ""
    read = "of the stored image, like most boxes with known axes" if assumed else "of the upright image"
    note = (
        f"EXIF turns {{}}{more}, and the annotation does not say whether boxes were drawn before or after; they are "
        f"read as boxes {read}"
    )
    return turned, [note.format(unsure[0])] if unsure else []


def _is_stored(size: tuple[int, int], header: Header) -> bool | None:
    """Return whether an annotation of this size is in the axes of the stored image; None if the size does not tell."""
    own, upright = (math.log(width / height) for width, height in (size, header.size))
    if header.orientation < 5 or own * upright == 0:
        return None
    return own * upright < 0


def _turn(boxes: np.ndarray, size: tuple[int, int], orientation: int) -> Annotated:
    """Return the boxes of an image that is stored with an orientation in the axes of the upright image."""
    (width, height), (x0, y0, x1, y1) = size, np.asarray(boxes).T
    if orientation in (2, 3, 7, 8):
        x0, x1 = width - x1, width - x0
    if orientation in (3, 4, 6, 7):
        y0, y1 = height - y1, height - y0
    if orientation < 5:
        return np.stack([x0, y0, x1, y1], axis=1), size
    return np.stack([y0, x0, y1, x1], axis=1), (height, width)


# ---- layouts ----


def _of_tiny_imagenet(file: Path, data: ImageSet) -> BoxSet:
    skipped = {path.name for path in data.skipped}
    boxes = []
    for number, (name, _, *corners) in read_rows(file, "\t", 6):
        if name not in skipped:
            where = f"{file}, line {number}"
            x0, y0, x1, y1 = _numbers(corners, where)
            boxes.append(_inside([x0, y0, x1 + 1, y1 + 1], (64, 64), where)[None])
    if not isinstance(data, ArraySet) or data.name != "tiny-imagenet-200" or len(boxes) != len(data):
        raise InputError(f"{file} has {len(boxes)} boxes, which are not those of the {len(data)} images of {data.name}")
    return BoxSet(tuple(boxes), np.full((len(boxes), 2), 64))


def _of_cub(folder: Path) -> Reader:
    file = folder / "bounding_boxes.txt"
    name_of = {number: name for _, (number, name) in read_rows(folder / "images.txt", " ", 2)}
    rows = {name_of.get(row[0], ""): (line, row[1:]) for line, row in read_rows(file, " ", 5)}

    def read(path: Path, header: Header) -> tuple[str, Annotated]:
        name = "/".join(path.parts[-2:])
        line, values = rows.get(name) or _refuse_without(file, path)
        where = f"{file}, line {line}"
        x, y, width, height = _numbers(values, where)
        return name, (_inside([x, y, x + width, y + height], header.size, where)[None], header.size)

    return read


def _of_metadata(folder: Path) -> Reader:
    file, sizes_file = folder / "localization.txt", folder / "image_sizes.txt"
    rows: dict[str, list[tuple[int, list[str]]]] = {}
    for line, (name, *corners) in read_rows(file, ",", 5):
        rows.setdefault(name, []).append((line, corners))
    sizes = {
        name: _numbers(size, f"{sizes_file}, line {line}") for line, (name, *size) in read_rows(sizes_file, ",", 3)
    }
    depth = {len(PurePosixPath(name).parts) for name in rows}

    def read(path: Path, header: Header) -> tuple[str, Annotated]:
        names = ("/".join(path.parts[-parts:]) for parts in depth)
        name = next((name for name in names if name in rows), None) or _refuse_without(file, path)
        width, height = (int(side) for side in sizes.get(name) or _refuse_without(sizes_file, path))
        found = []
        for line, corners in rows[name]:
            where = f"{file}, line {line}"
            x0, y0, x1, y1 = _numbers(corners, where)
            found.append(_inside([x0, y0, x1 + 1, y1 + 1], (width, height), where))
        return name, (np.stack(found), (width, height))

    return read


def _of_xml(folder: Path) -> Reader:
    def read(path: Path, header: Header) -> tuple[str, Annotated]:
        file = folder / f"{path.stem}.xml"
        if not file.is_file():
            _refuse_without(folder, path)
        size, objects = read_annotation(file)
        if not objects:
            _refuse_without(file, path)
        boxes = []
        for number, each in enumerate(objects, 1):
            x0, y0, x1, y1 = each.corners
            boxes.append(_inside([x0, y0, x1 + 1, y1 + 1], size, f"object {number} of {file}"))
        return file.name, (np.stack(boxes), size)

    return read


# ---- numbers ----


def _numbers(parts: Iterable[str], where: str) -> list[float]:
    parts = list(parts)
    try:
        return [float(part) for part in parts]
    except ValueError:
        raise InputError(f"{where}: '{' '.join(parts)}' are not numbers") from None


def _inside(box: list[float], size: tuple[int, int], where: str) -> np.ndarray:
    """Return a box inside its image, or refuse it."""
    (x0, y0, x1, y1), (width, height) = box, size
    inside = np.array([max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)])
    if not np.abs(inside - box).max() <= 1 or not (inside[:2] < inside[2:]).all():
        raise InputError(
            f"{where}: the box from {x0:g}, {y0:g} to {x1:g}, {y1:g} is not inside its image of {width}×{height}"
        )
    return inside


def _refuse_without(file: Path, path: Path) -> NoReturn:
    raise InputError(f"{file} has no box for {path.name}; expected at least one for each image")


_YES, _NO = ("1", "true", "yes", "y"), ("0", "false", "no", "n", "unspecified", "")


# ---- Pascal VOC's XML, for localization and for detection ----


class VocObject(NamedTuple):
    """One annotated object."""

    name: str
    # xmin, ymin, xmax, ymax in pixels, the last one inside; VOC counts from 1, ImageNet from 0
    corners: tuple[float, float, float, float]
    difficult: bool  # whether it is marked as hard to recognize


class Annotation(NamedTuple):
    """The annotation of one image."""

    size: tuple[int, int]  # width and height in pixels
    objects: tuple[VocObject, ...]  # in the file's order, without parts of objects (``<part>``)


def read_annotation(file: Path) -> Annotation:
    """Read one annotation in any encoding that Python knows."""
    root = _parse(file)
    width, height = (round(_number(root, f"size/{side}", str(file))) for side in ("width", "height"))
    if min(width, height) < 1:
        raise InputError(f"{file} gives its image a size of {width}×{height} pixels; expected 1 or more")
    objects = tuple(_object(item, f"object {i} of {file}") for i, item in enumerate(root.findall("object"), 1))
    return Annotation((width, height), objects)


def _parse(file: Path) -> ET.Element:
    try:
        content = regular(file).read_bytes()
        declared = re.match(rb"""(?:\xef\xbb\xbf)?\s*<\?xml[^>]*encoding\s*=\s*["']([\w.-]+)""", content)
        if declared and not content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            # decoded here, since expat knows four encodings only
            text = content.decode("utf-8-sig" if declared[1].lower() == b"utf-8" else declared[1].decode())
            return ET.fromstring(re.sub(r"^\s*<\?xml.*?\?>", "", text, flags=re.DOTALL))
        return ET.fromstring(content)
    except (ET.ParseError, ValueError, LookupError, OSError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as XML ({error})") from None


def _object(item: ET.Element, where: str) -> VocObject:
    left, top, right, bottom = (_number(item, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax"))
    name = " ".join((item.findtext("name") or "").split())
    return VocObject(name, (left, top, right, bottom), _mark(item, "difficult", where))


def _number(element: ET.Element, tag: str, where: str) -> float:
    text = element.findtext(tag)
    with suppress(ValueError):
        if math.isfinite(number := float(text or "")):
            return number
    raise InputError(f"{where} has '{text or ''}' as its {tag}; expected a number")


def _mark(element: ET.Element, tag: str, where: str) -> bool:
    """Read a mark, which programs write as 0, 0.0, no, False or Unspecified and the like, or leave out."""
    text = (element.findtext(tag) or "").strip().lower()
    if text in _YES or text in _NO:
        return text in _YES
    return _number(element, tag, where) != 0
