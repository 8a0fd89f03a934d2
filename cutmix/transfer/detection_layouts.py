"""The layouts of detection data sets: Pascal VOC's and COCO's."""

from collections import Counter
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from pathlib import Path

from cutmix.data.folder import count_suffixes, is_image, list_images, read_text
from cutmix.data.voc import read_annotation
from cutmix.errors import InputError
from cutmix.transfer.coco import (
    CocoFile,
    Entry,
    is_area,
    is_box,
    is_file_name,
    is_flag,
    is_id,
    is_side,
    is_text,
    read_coco,
)
from cutmix.transfer.detection_data import DetectionSet, RawImage, detection_sets
from cutmix.transfer.layouts import (
    check_apart,
    enumerated,
    find_image,
    image_folders,
    left_out,
    note_leaks,
    read_list,
    split_by_hash,
)

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def open_detection(
    path: str | Path, *, classes: Sequence[str] = (), test_fraction: float = 0.2, seed: int = 0
) -> tuple[DetectionSet, DetectionSet]:
    """Open a data set in COCO's layout, if it has annotations in COCO's JSON, or else in Pascal VOC's.

    COCO: ``annotations/instances_train*.json`` and ``instances_val*.json``, where ``val`` is the test split. The images
    are in ``train*/`` and ``val*/``, there or in ``images/``. Boxes without area are left out; crowds become
    ``difficult``. Categories of the two files are matched by name, whatever their ids are.

    Pascal VOC: a folder with ``JPEGImages/`` and ``Annotations/``, or one around ``VOC2007/``, ``VOC2012/`` or both.
    Training takes the lists ``trainval`` of ``ImageSets/Main/``, and testing the list ``test``; without a list ``test``
    these are ``train`` and ``val``. Without lists the images are split by the hash of their names. VOC counts pixels
    from 1 and includes the last one of a box, so that a box becomes (xmin - 1, ymin - 1, xmax, ymax).

    Args:
        path: The folder.
        classes: The class names, in the order of the labels. By default those of the training file's categories by
            their ids (COCO), VOC's 20 if the annotations have no others, or else the names in the annotations, sorted.
        test_fraction: In (0, 1): the test share of a folder without lists.
        seed: Seed of that split.

    Returns:
        The training and the test split, with the same classes.

    Raises:
        InputError: If the layout is another one; a file is missing, cannot be read or contradicts another one; an image
            is in both splits; a class is unknown, or only in the test split; or a box has no area or lies outside.
    """
    root = Path(path).expanduser()
    if not 0 < test_fraction < 1:
        raise InputError(f"test_fraction is {test_fraction}; expected a number between 0 and 1")
    coco = any((root / "annotations").glob("instances_*.json"))
    return _open_coco(root, classes) if coco else _open_voc(root, classes, test_fraction, seed)


def read_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Return class names; a single name of a file stands for the names in it, one on each line.

    Raises:
        InputError: If the file cannot be read.
    """
    if len(classes) == 1 and Path(classes[0]).expanduser().is_file():
        lines = read_text(Path(classes[0]).expanduser()).split("\n")
        return tuple(line.strip() for line in lines if line.strip())
    return tuple(classes)


# ---- Pascal VOC ----


def _open_voc(root: Path, classes: Sequence[str], test_fraction: float, seed: int) -> tuple[DetectionSet, DetectionSet]:
    folders = _voc_folders(root)
    lists = _voc_lists(folders)
    splits: tuple[list[RawImage], list[RawImage]] = [], []
    notes: list[str] = []
    for folder in folders:
        images, remarks = _voc_images(folder)
        names: Sequence[list[str]] = [
            read_list(own[folder], images, folder / "JPEGImages") if folder in own else [] for own in lists
        ]
        if all(names):
            check_apart(names[0], lists[0][folder], names[1], lists[1][folder])
        if not any(lists):
            names, copies = split_by_hash(images, test_fraction, seed)
            remarks += copies + _without_image(folder, images)
        unlisted = [images[name] for name in images.keys() - {*names[0], *names[1]}]
        notes += remarks + left_out(f"images of {folder / 'JPEGImages'} in no list", unlisted)
        for split, own in zip(splits, names, strict=True):
            split += [_read_voc(folder / "Annotations" / f"{name}.xml", images[name]) for name in own]
    for split, name in zip(splits, ("train", "test"), strict=True):
        if not split:
            raise InputError(f"{root} has no {name} images; expected one or more in each split")
    if any(lists):
        notes += note_leaks(*([raw.path for raw in split] for split in splits))
    if not classes:
        classes, assumed = _voc_classes(*splits)
        notes += assumed
    return detection_sets(root, splits, classes, (notes, []), crowds=False)


def _voc_folders(root: Path) -> list[Path]:
    """Return the folders that hold JPEGImages and Annotations: one, or those of the years."""
    for base in (root, root / "VOCdevkit"):
        if years := [base / year for year in ("VOC2007", "VOC2012") if _is_voc(base / year)]:
            return years
    if _is_voc(root):
        return [root]
    what = "holds no detection data" if root.is_dir() else "is not a folder"
    raise InputError(
        f"{root} {what}; expected annotations/instances_*.json, VOC2007 or VOC2012, or JPEGImages with images and "
        "Annotations with XML files"
    )


def _is_voc(folder: Path) -> bool:
    return (folder / "JPEGImages").is_dir() and (folder / "Annotations").is_dir()


def _voc_lists(folders: list[Path]) -> tuple[dict[Path, Path], dict[Path, Path]]:
    """Return the training and the test list of each folder that has them; none where no folder has lists."""

    def found(name: str) -> dict[Path, Path]:
        return {x: file for x in folders if (file := x / "ImageSets" / "Main" / f"{name}.txt").is_file()}

    official = found("test")
    train, test = ("trainval", "test") if official and found("trainval") else ("train", "test" if official else "val")
    lists = found(train), found(test)
    for name, own in zip((train, test), lists, strict=True):
        if not own and any((folder / "ImageSets" / "Main").is_dir() for folder in folders):
            main = folders[0] / "ImageSets" / "Main"
            raise InputError(f"{main} has no {name}.txt; expected trainval.txt and test.txt, or train.txt and val.txt")
    return lists


def _voc_images(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the images by their names, which are paths below JPEGImages without suffixes, and what was left out."""
    place = folder / "JPEGImages"
    listing = list_images(place)
    images: dict[str, Path] = {}
    for file in [file.path for file in listing.files] + [path for path in listing.repeated if is_image(path.name)]:
        name = file.relative_to(place).with_suffix("").as_posix()
        if name in images:
            raise InputError(f"{images[name]} and {file} belong to the same annotation; expected one image for each")
        images[name] = file
    kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in count_suffixes(listing.others).items())
    return images, [f"files of {place} that are not images: {len(listing.others):,} ({kinds})"] if kinds else []


def _without_image(folder: Path, images: Collection[str]) -> list[str]:
    place = folder / "Annotations"
    files = [file for file in list_images(place).others if file.suffix.lower() == ".xml"]
    alone = [file for file in files if file.relative_to(place).with_suffix("").as_posix() not in images]
    return left_out(f"annotations of {place} without an image", alone)


def _read_voc(file: Path, image: Path) -> RawImage:
    if not file.is_file():
        raise InputError(f"{image} has no annotation; expected {file}")
    size, objects = read_annotation(file)
    for number, item in enumerate(objects, 1):
        if not item.name:
            raise InputError(f"object {number} of {file} has no class; expected a name")
    boxes = [(left - 1, top - 1, right, bottom) for left, top, right, bottom in (item.corners for item in objects)]
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in boxes]
    names, difficult = [item.name for item in objects], [item.difficult for item in objects]
    return RawImage(image, size, boxes, names, difficult, areas, str(file))


def _voc_classes(train: Sequence[RawImage], test: Sequence[RawImage]) -> tuple[tuple[str, ...], list[str]]:
    """Return VOC's classes, or those of the annotations with a sentence that says so.

    Raises:
        InputError: If a class seems to be misspelled, or is in the test split only.
    """
    where = {name: raw.source for raw in (*test, *train) for name in raw.names}
    if where.keys() <= {*VOC_CLASSES}:
        return VOC_CLASSES, []
    plain: dict[str, str] = {}
    for name in sorted(where):
        like = plain.setdefault("".join(filter(str.isalnum, name.casefold())), name)
        like = like if like != name or name in VOC_CLASSES else _similar(name, [x for x in VOC_CLASSES if x in where])
        if like != name:
            raise InputError(
                f"{where[name]} has an object of class '{name}', and {where[like]} one of class '{like}'; expected one "
                "spelling, or the names of all classes with --classes"
            )
    if unseen := where.keys() - {name for raw in train for name in raw.names}:
        raise InputError(
            f"no training image has an object of class '{min(unseen)}', which {where[min(unseen)]} in the test split "
            "has; expected the same classes in both, or the names of all classes with --classes"
        )
    classes = tuple(sorted(where))
    return classes, [f"classes taken from the annotations: {len(classes)} ({enumerated(classes)})"]


def _similar(name: str, names: Sequence[str]) -> str:
    return next(iter(get_close_matches(name, names, n=1)), name)


# ---- COCO ----

_COCO = {
    "images": {"id": is_id, "file_name": is_file_name, "width": is_side, "height": is_side},
    "categories": {"id": is_id, "name": is_text},
    "annotations": {"image_id": is_id, "category_id": is_id, "bbox": is_box, "iscrowd": is_flag, "area": is_area},
}


def _open_coco(root: Path, classes: Sequence[str]) -> tuple[DetectionSet, DetectionSet]:
    files = [_coco_file(root, part) for part in ("train", "val")]
    splits, notes, used = [], [], set()
    for file in files:
        folders = image_folders(root, file.path.stem.removeprefix("instances_"), file.path)
        split, remarks = _coco_images(file, folders)
        if not split:
            raise InputError(f"'images' of {file.path} is an empty list; expected one or more")
        splits.append(split)
        notes.append(remarks)
        used |= {raw.path for raw in split}
    for file, remarks in zip(files, notes, strict=True):
        folder = image_folders(root, file.path.stem.removeprefix("instances_"), file.path)[0]
        unlisted = [file.path for file in list_images(folder).files if file.path not in used]
        remarks += left_out(f"images of {folder} that are not in the annotations", unlisted)
    names = [[item["name"] for item in sorted(file.lists["categories"], key=_by_id)] for file in files]
    if differing := {*names[0]} ^ {*names[1]}:
        notes[0].append(
            f"{files[0].path.name} and {files[1].path.name} differ in the categories {enumerated(differing)}"
        )
    notes[1] += note_leaks(*([raw.path for raw in split] for split in splits))
    return detection_sets(root, splits, classes or names[0], notes, crowds=True)


def _coco_file(root: Path, part: str) -> CocoFile:
    files = sorted((root / "annotations").glob(f"instances_{part}*.json"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise InputError(f"{root / 'annotations'} holds {found}; expected one file instances_{part}*.json")
    return read_coco(files[0], _COCO)


def _by_id(entry: Entry) -> tuple[bool, int | str]:
    return isinstance(entry["id"], str), entry["id"]


def _coco_images(file: CocoFile, folders: Sequence[Path]) -> tuple[list[RawImage], list[str]]:
    """Return the images by their ids, and what was left out."""
    names = {item["id"]: item["name"] for item in file.lists["categories"]}
    for number, item in enumerate(file.lists["annotations"]):
        if item["category_id"] not in names:
            raise InputError(
                f"annotations[{number}].category_id of {file.path} is {item['category_id']}; expected the id of one of "
                "its categories"
            )
    objects, split, empty = file.by_image(), [], 0
    for item in sorted(file.images, key=_by_id):
        path = find_image(item["file_name"], folders)
        if path is None:
            raise InputError(f"{file.path} names '{item['file_name']}', which is missing; expected it in {folders[0]}")
        own = [entry for entry in objects[item["id"]] if entry["bbox"][2] and entry["bbox"][3]]
        empty += len(objects[item["id"]]) - len(own)
        boxes = [(left, top, left + width, top + height) for left, top, width, height in (x["bbox"] for x in own)]
        areas = [float(x["bbox"][2] * x["bbox"][3] if x.get("area") is None else x["area"]) for x in own]
        crowds = [bool(x.get("iscrowd")) for x in own]
        size, source = (int(item["width"]), int(item["height"])), f"{path.name} in {file.path}"
        split.append(RawImage(path, size, boxes, [names[x["category_id"]] for x in own], crowds, areas, source))
    for path, count in Counter(raw.path for raw in split).items():
        if count > 1:
            raise InputError(f"{count} images of {file.path} are the file {path}; expected each file once")
    return split, [f"boxes of {file.path.name} without area: {empty:,}"] if empty else []
