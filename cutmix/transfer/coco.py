"""COCO's layout of pictures with boxes."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from cutmix.errors import InputError
from cutmix.transfer.detection_data import DetectionSet, check_files, make_picture
from cutmix.transfer.split import Split, read_text
from cutmix.transfer.voc import open_voc


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
