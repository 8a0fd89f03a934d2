"""A set of pictures with boxes, whatever layout it was read from."""

import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from cutmix.data.decode import image_size, read_image
from cutmix.data.folder import Split, listed_names, names_by_hash, read_text
from cutmix.data.voc import read_annotation
from cutmix.errors import InputError
from cutmix.runtime.seeding import derive_seed
from cutmix.transfer.average_precision import Objects


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


# ---- voc ----
# Pascal VOC's layout of pictures with boxes.

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


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
        InputError: The layout is another one, a list names a picture twice or one of the other split, a picture or
            annotation is missing, one of them cannot be read, they differ about the size, or an annotation names an
            unknown class or has a box of no area or more than a pixel outside its picture.
    """
    if not 0 < test_fraction < 1:
        raise InputError(f"test_fraction is {test_fraction}: expected a share between 0 and 1")
    root = Path(path).expanduser()
    folders = _folders(root)
    lists, others = _lists(folders, split)
    pictures = []
    for folder in folders:
        listed = lists.get(folder)
        if lists and not listed:
            continue
        files = {file.stem: file for file in (folder / "JPEGImages").iterdir() if _is_picture(file)}
        ids = listed_names(listed, others.get(folder)) if listed else names_by_hash(files, split, test_fraction, seed)
        for number in ids:
            if number not in files:
                raise InputError(f"{listed} names '{number}', but {folder / 'JPEGImages' / number}.jpg is missing")
            pictures.append(_read_picture(folder / "Annotations" / f"{number}.xml", files[number], tuple(classes)))
    if not pictures:
        raise InputError(f"{root} has no {split} pictures")
    check_files(pictures)
    return DetectionSet(root.resolve().name, split, tuple(classes), tuple(pictures))


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


def _lists(folders: list[Path], split: Split) -> tuple[dict[Path, Path], dict[Path, Path]]:
    """Return each folder's list of the split's pictures, none at all where no folder has any; and of the other's."""

    def found(name: str) -> dict[Path, Path]:
        return {x: file for x in folders if (file := x / "ImageSets" / "Main" / f"{name}.txt").is_file()}

    official = found("test")
    names = ("trainval", "test") if official and found("trainval") else ("train", "test" if official else "val")
    name, other = names if split == "train" else names[::-1]
    lists = found(name)
    if not lists and any((folder / "ImageSets" / "Main").is_dir() for folder in folders):
        main = folders[0] / "ImageSets" / "Main"
        raise InputError(f"{main} has no {name}.txt: expected trainval.txt and test.txt, or train.txt and val.txt")
    return lists, found(other)


# ---- one annotation ----


def _read_picture(file: Path, picture: Path, classes: tuple[str, ...]) -> Picture:
    if not file.is_file():
        raise InputError(f"{picture} has no annotation: {file} is missing")
    annotation = read_annotation(file)
    labels = [class_index(x.name, classes, f"object {i} of {file}") for i, x in enumerate(annotation.objects, 1)]
    boxes = [(left - 1, top - 1, right, bottom) for _, (left, top, right, bottom), _ in annotation.objects]
    difficult = [each.difficult for each in annotation.objects]
    return make_picture(picture, annotation.size, boxes, labels, difficult, str(file))


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


# ---- coco ----
# COCO's layout of pictures with boxes.


def open_detection(path: str | Path, split: Split, *, test_fraction: float = 0.2, seed: int = 0) -> DetectionSet:
    """Open one split of data in COCO's layout, if its annotations are there, or else in Pascal VOC's.

    Args:
        path: The folder; see ``open_coco`` and ``open_voc``.
        split: "train" or "test".
        test_fraction: In (0, 1): the test share of a folder without official splits.
        seed: Decides that split, and nothing else.

    Raises:
        InputError: As they do.
    """
    root = Path(path).expanduser()
    if any((root / "annotations").glob("instances_*.json")):
        return open_coco(root, split)
    return open_voc(root, split, test_fraction=test_fraction, seed=seed)


def open_coco(path: str | Path, split: Split) -> DetectionSet:
    """Open one split of data in COCO's layout: ``annotations/instances_train2017.json`` and ``…_val2017.json``.

    Args:
        path: The folder; the pictures are in its ``train2017/``, or in ``images/train2017/``, and likewise for other
            years.
        split: "train" or "test"; ``val`` is the test split.

    Returns:
        The pictures by their id; classes by theirs. Boxes of no width or height are left out, as the official file has
        two of them; crowds are marked ``difficult``, and the set says so.

    Raises:
        InputError: A file is missing or no JSON of this kind, a picture is missing, cannot be read or has
            another size, or a box lies outside its picture.
    """
    root, part = Path(path).expanduser(), "train" if split == "train" else "val"
    files = sorted((root / "annotations").glob(f"instances_{part}*.json"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise InputError(f"{root / 'annotations'} holds {found}: expected one file instances_{part}*.json")
    file = files[0]
    folder = _picture_folder(root, file.stem.removeprefix("instances_"))
    try:
        content = json.loads(read_text(file))
        categories = sorted((item["id"], item["name"]) for item in content["categories"])
        images = sorted(content["images"], key=lambda item: item["id"])
        objects = _by_image(content["annotations"], [number for number, _ in categories])
        pictures = [_picture(item, folder, objects.pop(item["id"], []), file) for item in images]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{file} cannot be read as COCO's annotations ({reason})") from None
    if objects:
        raise InputError(f"{file} has boxes for picture {next(iter(objects))}, which it does not list")
    if not pictures:
        raise InputError(f"{file} lists no pictures")
    check_files(pictures)
    classes = tuple(name for _, name in categories)
    return DetectionSet(root.resolve().name, split, classes, tuple(pictures), crowds=True)


def _picture_folder(root: Path, name: str) -> Path:
    for folder in (root / name, root / "images" / name):
        if folder.is_dir():
            return folder
    raise InputError(f"{root} has no folder {name} (nor images/{name}) with the pictures")


def _by_image(
    annotations: list[dict[str, Any]], categories: list[int]
) -> dict[int, list[tuple[list[float], int, bool]]]:
    """Return box, label and crowd of each object with an area, by the picture's id."""
    labels = {number: label for label, number in enumerate(categories)}
    objects: dict[int, list[tuple[list[float], int, bool]]] = defaultdict(list)
    for item in annotations:
        left, top, width, height = item["bbox"]
        if item["category_id"] not in labels:
            raise ValueError(f"annotation {item.get('id')} is of category {item['category_id']}, which is not listed")
        if width and height:
            box = [left, top, left + width, top + height]
            objects[item["image_id"]].append((box, labels[item["category_id"]], bool(item.get("iscrowd", 0))))
    return objects


def _picture(item: dict[str, Any], folder: Path, objects: list[tuple[list[float], int, bool]], file: Path) -> Any:
    path = folder / item["file_name"]
    if not path.is_file():
        raise InputError(f"{file} names '{item['file_name']}', but {path} is missing")
    boxes, labels, crowd = zip(*objects, strict=True) if objects else ((), (), ())
    return make_picture(path, (item["width"], item["height"]), boxes, labels, crowd, f"{path.name} in {file}")


# ---- detection transforms ----
# From a picture and its boxes to what a detector trains on: SSD's augmentation, Faster R-CNN's, and batches.

Target = dict[str, Tensor]
Sample = tuple[Tensor, Target]


def ssd_transform(image_size: int = 300, fill: Sequence[float] = (0.485, 0.456, 0.406)) -> Callable[[Any], Any]:
    """Return SSD's augmentation: colours, a larger canvas, a crop that keeps objects, a flip, and the network's size.

    Brightness, contrast, saturation, hue and the order of the channels change in half of the cases each; half of the
    pictures go on a canvas of up to four times the side; then a crop of 0.3 to 1 of each side keeps an object by an
    IoU of at least 0, 0.1, 0.3, 0.5, 0.7 or 0.9 (or nothing is cropped) and loses objects whose centre is outside.

    Args:
        image_size: Side in pixels of what comes out.
        fill: Colour of the canvas, 0 to 1: the mean of the backbone's weights.

    Source: Liu et al. 2016, data augmentation, as torchvision's transforms have it.
    """
    return v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut([255 * value for value in fill]),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(0.5),
            v2.Resize((image_size, image_size), antialias=False),  # as the network resizes in tests
            v2.ClampBoundingBoxes(),
            v2.SanitizeBoundingBoxes(labels_getter=lambda inputs: inputs[1]["labels"]),
        ]
    )


def faster_rcnn_transform() -> Callable[[Any], Any]:
    """Return Faster R-CNN's augmentation: a flip in half of the cases; the network resizes.

    Source: Ren et al. 2015 and the paper's code base, which doubles the set by its flipped pictures.
    """
    return v2.RandomHorizontalFlip(0.5)


class DetectionSamples(Dataset[Any]):
    """Decodes and augments one picture; asked for by (epoch, index), and always the same one.

    Args:
        data: The split.
        transform: Of training; it draws from PyTorch's global generator, which is seeded for each sample by the seed,
            the epoch and the index, and left as it was. None for tests.
        seed: Of the augmentation.
        keep_difficult: Whether difficult objects are among the targets. The paper's code bases differ: SSD leaves them
            out, Faster R-CNN learns them. COCO's crowds are marked in the same way and belong to no training.
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

    def __getitem__(self, key: tuple[int, int]) -> Sample | InputError:
        """Return the image, (3, H, W) uint8, and its ``boxes`` (n, 4) float32 and ``labels`` (n,) int64."""
        epoch, index = key
        picture = self.data.pictures[index]
        try:
            image = load_picture(picture)
        except InputError as error:
            return error  # as a value: raised in a worker, it would reach the user as a traceback in a sentence
        kept = torch.ones_like(picture.difficult) if self.keep_difficult else ~picture.difficult
        boxes, labels = picture.boxes[kept], picture.labels[kept]
        if self.transform is None:
            return image, {"boxes": boxes, "labels": labels}
        sides = (image.shape[1], image.shape[2])
        wrapped = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=sides)
        with torch.random.fork_rng(devices=[]):  # of the CPU alone: nothing here draws on a GPU
            torch.default_generator.manual_seed(derive_seed(self.seed, "augment", epoch, index))
            image, target = self.transform((tv_tensors.Image(image), {"boxes": wrapped, "labels": labels}))
        return image.as_subclass(Tensor), {"boxes": target["boxes"].as_subclass(Tensor), "labels": target["labels"]}


def load_picture(picture: Picture) -> Tensor:
    """Decode a picture, (3, H, W) uint8, RGB.

    Raises:
        InputError: It cannot be read or has another size than its annotation says.
    """
    image = read_image(picture.path)
    check_size(picture, image.size)
    return v2.functional.pil_to_tensor(image)


def collate(samples: Sequence[Any]) -> tuple[list[Tensor], list[Target]] | InputError:
    """Return images and targets as two lists, as images differ in size; or the first error among the samples."""
    error = next((sample for sample in samples if isinstance(sample, InputError)), None)
    return error or ([image for image, _ in samples], [target for _, target in samples])
