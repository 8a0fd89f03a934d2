"""The layouts of detection data sets: Pascal VOC's and COCO's."""

from collections import Counter
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from pathlib import Path

from cutmix.data.boxes import read_annotation
from cutmix.data.folder import Listing, count_suffixes, is_image, list_images, say_others
from cutmix.errors import InputError, a_few
from cutmix.transfer.detection_data import DetectionSet, RawImage, detection_sets
from cutmix.transfer.layouts import (
    Box,
    CocoFile,
    check_apart,
    find_image,
    image_folders,
    left_out,
    note_leaks,
    read_coco,
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
    """Open the splits of a data set in COCO's layout, if it has annotations in COCO's JSON, or else in Pascal VOC's.

    COCO: ``annotations/instances_train*.json`` and ``instances_val*.json``, where ``val`` is the test split. The images
    are in ``train*/`` and ``val*/``, there or in ``images/``. Boxes without area are left out; crowds become
    ``difficult``. Categories of the two files are matched by name, whatever their ids are.

    Pascal VOC: a folder with ``JPEGImages/`` and ``Annotations/``, or one around ``VOC2007/``, ``VOC2012/`` or both.
    Training takes the lists ``trainval`` of ``ImageSets/Main/``, and testing the list ``test``; without a list ``test``
    these are ``train`` and ``val``. Without lists, the hash of the names selects ``test_fraction`` of the images for
    testing. VOC counts pixels from 1 and includes the last one of a box, so that a box becomes (xmin - 1, ymin - 1,
    xmax, ymax).

    The classes, in the order of the labels, default to those of the training file's categories by their ids (COCO),
    VOC's 20 if the annotations have no others, or else the names in the annotations, sorted.
    """
    root = Path(path).expanduser()
    if not 0 < test_fraction < 1:
        raise InputError(f"test_fraction is {test_fraction}; expected a number between 0 and 1")
    coco = any((root / "annotations").glob("instances_*.json"))
    return _open_coco(root, classes) if coco else _open_voc(root, classes, test_fraction, seed)


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
    """Return the images by their names, which are paths below JPEGImages without suffixes, and notes."""
    place = folder / "JPEGImages"
    listing = list_images(place)
    images: dict[str, Path] = {}
    for file in [file.path for file in listing.files] + [path for path in listing.repeated if is_image(path.name)]:
        name = file.relative_to(place).with_suffix("").as_posix()
        if name in images:
            raise InputError(f"{images[name]} and {file} belong to the same annotation; expected one image for each")
        images[name] = file
    return images, _no_images(place, listing)


def _no_images(place: Path, listing: Listing) -> list[str]:
    return [f"{place}: {say_others(count_suffixes(listing.others))}"] if listing.others else []


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
    """Return VOC's classes, or those of the annotations with a note, checked for misspellings and untrained classes."""
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
    return classes, [f"classes taken from the annotations: {len(classes)} ({a_few(classes, 10)})"]


def _similar(name: str, names: Sequence[str]) -> str:
    return next(iter(get_close_matches(name, names, n=1)), name)


# ---- COCO ----


def _open_coco(root: Path, classes: Sequence[str]) -> tuple[DetectionSet, DetectionSet]:
    files = [_coco_file(root, part) for part in ("train", "val")]
    folders = [image_folders(root, file.path.stem.removeprefix("instances_"), file.path) for file in files]
    splits = [_coco_images(file, places) for file, places in zip(files, folders, strict=True)]
    used = {raw.path for split in splits for raw in split}
    notes = []
    for file, (place, *_) in zip(files, folders, strict=True):
        empty = sum(not _has_area(box) for boxes in file.annotations.values() for box in boxes)
        listing = list_images(place)
        unlisted = [image.path for image in listing.files if image.path not in used]
        notes.append(
            ([f"boxes of {file.path.name} without area: {empty:,}"] if empty else [])
            + left_out(f"images of {place} that are not in the annotations", unlisted)
            + _no_images(place, listing)
        )
    names = [[category.name for category in file.categories] for file in files]
    if differing := {*names[0]} ^ {*names[1]}:
        notes[0].append(
            f"{files[0].path.name} and {files[1].path.name} differ in the categories {a_few(sorted(differing), 10)}"
        )
    notes[1] += note_leaks(*([raw.path for raw in split] for split in splits))
    return detection_sets(root, splits, classes or names[0], notes, crowds=True)


def _coco_file(root: Path, part: str) -> CocoFile[Box]:
    files = sorted((root / "annotations").glob(f"instances_{part}*.json"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise InputError(f"{root / 'annotations'} holds {found}; expected one file instances_{part}*.json")
    return read_coco(files[0], Box)


def _has_area(box: Box) -> bool:
    return box.bbox[2] > 0 and box.bbox[3] > 0


def _coco_images(file: CocoFile[Box], folders: Sequence[Path]) -> list[RawImage]:
    names = {category.id: category.name for category in file.categories}
    split: list[RawImage] = []
    for image in file.images:
        path = find_image(image.file_name, folders)
        if path is None:
            raise InputError(f"{file.path} names '{image.file_name}', which is missing; expected it in {folders[0]}")
        boxes = [box for box in file.annotations[image.id] if _has_area(box)]
        split.append(
            RawImage(
                path,
                (int(image.width), int(image.height)),
                [(x, y, x + width, y + height) for x, y, width, height in (box.bbox for box in boxes)],
                [names[box.category_id] for box in boxes],
                [bool(box.iscrowd) for box in boxes],
                [box.bbox[2] * box.bbox[3] if box.area is None else box.area for box in boxes],
                f"{path.name} in {file.path}",
            )
        )
    for path, count in Counter(raw.path for raw in split).items():
        if count > 1:
            raise InputError(f"{count} images of {file.path} are the file {path}; expected each file once")
    if not split:
        raise InputError(f"'images' of {file.path} is an empty list; expected one or more")
    return split
