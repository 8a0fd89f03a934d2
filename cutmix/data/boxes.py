"""Annotated boxes: of Tiny-ImageNet-200, CUB-200-2011, ImageNet and wsolevaluation; and where resize and crop put them.

A box is x0, y0, x1, y1 in pixels from the image's upper left corner, x1 and y1 exclusive. Files that count pixels name
the last one inside (Tiny-ImageNet, ImageNet, wsolevaluation), so their x1 and y1 grow by one; CUB's have a width.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

import numpy as np
from PIL import Image

from cutmix.data.formats import read_rows
from cutmix.data.sets import ArraySet, FileSet, ImageSet
from cutmix.errors import InputError


@dataclass(frozen=True, eq=False)
class BoxSet:
    """The boxes of N images, in the order of a data set.

    Args:
        boxes: N arrays (B, 4) float64, in the pixels of the image as it is stored.
        sizes: Width and height of each image, (N, 2) int64.
    """

    boxes: tuple[np.ndarray, ...]
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    def after(self, *, resize: int, crop: int, squash: bool = False) -> list[np.ndarray]:
        """Return the boxes where the test's resize and crop put them; see ``boxes_after``."""
        pairs = zip(self.boxes, self.sizes.tolist(), strict=True)
        return [boxes_after(own, (w, h), resize=resize, crop=crop, squash=squash) for own, (w, h) in pairs]


def boxes_after(
    boxes: np.ndarray, size: tuple[int, int], *, resize: int, crop: int, squash: bool = False
) -> np.ndarray:
    """Return where boxes are after a resize and the central crop, cut at its edges.

    What lies outside the crop is not seen, so it is not asked for; a box wholly outside becomes an empty one, which
    nothing can fit.

    Args:
        boxes: (B, 4), in the pixels of an image of this size.
        size: Width and height.
        resize: The short side afterwards, or both with ``squash``.
        crop: Side of the central square.
        squash: Whether width and height both become ``resize``, as the paper's localization has it.

    Returns:
        (B, 4) float64, between 0 and ``crop``.

    Source: the integer arithmetic of torchvision's ``Resize`` and ``CenterCrop``.
    """
    short = min(size)
    resized = np.array([resize if squash or side == short else int(resize * side / short) for side in size])
    offset = np.array([round((side - crop) / 2) for side in resized.tolist()])
    moved = np.asarray(boxes, dtype=np.float64).reshape(-1, 2, 2) * (resized / size) - offset
    return moved.clip(0, crop).reshape(-1, 4)


def benchmark_boxes(boxes: BoxSet, side: int = 224) -> list[np.ndarray]:
    """Return the boxes as wsolevaluation scales them: images squashed to side×side, last pixels scaled and cut.

    The multiplication comes first, as in its ``resize_bbox``: where the quotient is whole, a factor side / width that
    was rounded before would lose a pixel.
    """
    last, sizes = np.array([0, 0, 1, 1]), np.concatenate([boxes.sizes, boxes.sizes], axis=1)
    return [np.trunc((own - last) * side / size) + last for own, size in zip(boxes.boxes, sizes, strict=True)]


def read_boxes(folder: Path, data: ImageSet) -> BoxSet:
    """Read the boxes of a data set's images.

    Args:
        folder: What lies there is recognised: ``val/val_annotations.txt`` (Tiny-ImageNet-200), ``bounding_boxes.txt``
            (CUB-200-2011), ``localization.txt`` (a split's folder of wsolevaluation's metadata), or files of XML, there
            or in ``val/`` (ImageNet).
        data: The opened test images, whose order the boxes get.

    Raises:
        InputError: The folder holds no boxes, an image has none, or a box is none or reaches outside its image by more
            than the one pixel by which ways of counting differ; the sentence says file and line.
    """
    if (folder / "val" / "val_annotations.txt").is_file():
        return _of_tiny_imagenet(folder / "val" / "val_annotations.txt", data)
    if (folder / "localization.txt").is_file():
        return _of_metadata(folder, _paths(folder, data))
    if (folder / "bounding_boxes.txt").is_file():
        return _of_cub(folder, _paths(folder, data))
    for place in (folder, folder / "val"):
        if next(place.glob("*.xml"), None):
            return _of_xml(place, _paths(folder, data))
    raise InputError(
        f"{folder} holds no boxes: expected val/val_annotations.txt, bounding_boxes.txt, localization.txt or XML files"
    )


def _paths(folder: Path, data: ImageSet) -> tuple[Path, ...]:
    if isinstance(data, FileSet):
        return data.paths
    raise InputError(f"{folder} has the boxes of image files, but {data.name} is not a set of files")


# ---- one reader a layout ----


def _of_tiny_imagenet(file: Path, data: ImageSet) -> BoxSet:
    skipped = {path.name for path in data.skipped}
    boxes = []
    for number, (name, _, *corners) in read_rows(file, "\t", 6):
        if name not in skipped:
            x0, y0, x1, y1 = _numbers(corners, file, number)
            boxes.append(_checked([x0, y0, x1 + 1, y1 + 1], (64, 64), file, number)[None])
    if not isinstance(data, ArraySet) or data.name != "tiny-imagenet-200" or len(boxes) != len(data):
        raise InputError(f"{file} has {len(boxes)} boxes, which are not those of the {len(data)} images of {data.name}")
    return BoxSet(tuple(boxes), np.full((len(boxes), 2), 64))


def _of_cub(folder: Path, paths: Iterable[Path]) -> BoxSet:
    file = folder / "bounding_boxes.txt"
    name_of = {number: name for _, (number, name) in read_rows(folder / "images.txt", " ", 2)}
    rows = {name_of.get(row[0], ""): (line, row[1:]) for line, row in read_rows(file, " ", 5)}

    def boxes_of(path: Path) -> tuple[np.ndarray, tuple[int, int]]:
        line, values = rows.get("/".join(path.parts[-2:])) or _refuse_without(file, path)
        x, y, width, height = _numbers(values, file, line)
        with Image.open(path) as image:
            size = image.size
        return _checked([x, y, x + width, y + height], size, file, line)[None], size

    return _collected(paths, boxes_of)


def _of_metadata(folder: Path, paths: Iterable[Path]) -> BoxSet:
    file, sizes_file = folder / "localization.txt", folder / "image_sizes.txt"
    rows: dict[str, list[tuple[int, list[str]]]] = {}
    for line, (name, *corners) in read_rows(file, ",", 5):
        rows.setdefault(name, []).append((line, corners))
    sizes = {name: _numbers(size, sizes_file, line) for line, (name, *size) in read_rows(sizes_file, ",", 3)}
    depth = {len(PurePosixPath(name).parts) for name in rows}

    def boxes_of(path: Path) -> tuple[np.ndarray, tuple[int, int]]:
        names = ("/".join(path.parts[-parts:]) for parts in depth)
        name = next((name for name in names if name in rows), None) or _refuse_without(file, path)
        width, height = (int(side) for side in sizes.get(name) or _refuse_without(sizes_file, path))
        found = []
        for line, corners in rows[name]:
            x0, y0, x1, y1 = _numbers(corners, file, line)
            found.append(_checked([x0, y0, x1 + 1, y1 + 1], (width, height), file, line))
        return np.stack(found), (width, height)

    return _collected(paths, boxes_of)


def _of_xml(folder: Path, paths: Iterable[Path]) -> BoxSet:
    def boxes_of(path: Path) -> tuple[np.ndarray, tuple[int, int]]:
        file = folder / f"{path.stem}.xml"
        if not file.is_file():
            _refuse_without(folder, path)
        text = file.read_text()
        try:
            root = ElementTree.fromstring(text)
            width, height = (int(root.findtext(f"size/{side}", "")) for side in ("width", "height"))
            corners = [[b.findtext(c, "") for c in ("xmin", "ymin", "xmax", "ymax")] for b in root.iter("bndbox")]
        except (ElementTree.ParseError, ValueError) as error:
            raise InputError(f"{file} is no annotation of an image ({error})") from error
        if not corners:
            _refuse_without(file, path)
        found, position = [], 0
        for each in corners:
            position = text.index("<bndbox", position + 1)
            line = text.count("\n", 0, position) + 1
            x0, y0, x1, y1 = _numbers(each, file, line)
            found.append(_checked([x0, y0, x1 + 1, y1 + 1], (width, height), file, line))
        return np.stack(found), (width, height)

    return _collected(paths, boxes_of)


def _collected(paths: Iterable[Path], boxes_of: Callable[[Path], tuple[np.ndarray, tuple[int, int]]]) -> BoxSet:
    boxes, sizes = zip(*map(boxes_of, paths), strict=True)
    return BoxSet(tuple(boxes), np.array(sizes))


# ---- lines and boxes ----


def _numbers(parts: Iterable[str], file: Path, line: int) -> list[float]:
    parts = list(parts)
    try:
        return [float(part) for part in parts]
    except ValueError:
        raise InputError(f"{file}, line {line}: '{' '.join(parts)}' are not numbers") from None


def _checked(box: list[float], size: tuple[int, int], file: Path, line: int) -> np.ndarray:
    """Return a box inside its image, or refuse it."""
    (x0, y0, x1, y1), (width, height) = box, size
    inside = np.array([max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)])
    if np.abs(inside - box).max() > 1 or not (inside[:2] < inside[2:]).all():
        raise InputError(
            f"{file}, line {line}: the box from {x0:g}, {y0:g} to {x1:g}, {y1:g} is not inside its image of "
            f"{width}×{height}"
        )
    return inside


def _refuse_without(file: Path, path: Path) -> NoReturn:
    raise InputError(f"{file} has no box for {path.name}; expected at least one for each image")
