"""Pascal VOC's layout of pictures with boxes."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from cutmix.errors import InputError
from cutmix.transfer.detection_data import DetectionSet, Picture, check_files, make_picture
from cutmix.transfer.split import Split, listed_names, names_by_hash

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
    try:
        tree = ET.parse(file).getroot()
    except (ET.ParseError, ValueError, LookupError, OSError) as error:
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
    with suppress(ValueError):
        if math.isfinite(number := float(text or "")):
            return number
    raise InputError(f"{where} has '{text or ''}' as its {tag}: expected a number")


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
