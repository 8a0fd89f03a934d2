"""The layouts of captioning data sets: COCO's JSON, Flickr's token files, and tables of images and captions."""

import csv
import io
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cutmix.data.folder import EXTENSIONS, Split, list_images
from cutmix.errors import InputError
from cutmix.runtime.files import read_lenient_text
from cutmix.transfer.caption_data import CaptionSet
from cutmix.transfer.layouts import (
    Caption,
    check_apart,
    find_image,
    image_folders,
    is_unicode,
    left_out,
    note_leaks,
    read_coco,
    read_list,
    split_by_hash,
)

_SPLITS: tuple[Split, Split] = ("train", "test")
_TABLES = ("captions.txt", "captions.csv", "captions.tsv", "results.csv")
_TOKENS = ("*.token.txt", "*.token")
_FOLDERS = (  # the first one is Flickr8k's official name
    "Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images", "flickr30k-images", "flickr30k_images",
    "flickr30k_images/flickr30k_images",
)  # fmt: skip
_IMAGE_HEADERS = ("image", "image_name", "image_id", "filename", "file_name", "file", "img", "path")
_CAPTION_HEADERS = ("caption", "comment", "captions", "text", "description", "sentence")
Captions = Mapping[str, list[str]]


def open_captions(path: str | Path, *, test_fraction: float = 0.2, seed: int = 0) -> tuple[CaptionSet, CaptionSet]:
    """Open the training and the test split of a data set of images with captions.

    COCO: ``captions_train*.json`` and ``captions_val*.json``, there or in ``annotations/``, where ``val`` is the test
    split. The images are in ``train*/`` and ``val*/``, there or in ``images/``.

    Flickr8k and Flickr30k: a ``*.token.txt`` or ``*.token`` with lines ``NAME#NUMBER<tab>CAPTION``, in the folder or in
    one folder below. Or a table ``captions.txt``, ``captions.csv``, ``captions.tsv`` or ``results.csv``, separated by
    commas, tabs, bars or semicolons, whose header names the column of the images and that of the captions; without a
    header these are the first and the last column. The images are in ``Flicker8k_Dataset/``, ``Images/``,
    ``flickr30k_images/`` and the like, or in the folder itself. The splits are the lists ``*.trainImages.txt`` and
    ``*.testImages.txt`` beside the captions. Without lists, the hash of the names selects ``test_fraction`` of the
    images for testing.

    Source: the file formats of the data sets' authors. The code base of CutMix's table A2 trains on train2014 and tests
    on val2014.
    """
    root = Path(path).expanduser()
    if not 0 < test_fraction < 1:
        raise InputError(f"test_fraction is {test_fraction}; expected a number between 0 and 1")
    if not root.is_dir():
        raise InputError(f"{path} is not a folder; expected one in COCO's or Flickr8k's layout of captions")
    source = _caption_file(root)
    if source:
        train, test = _open_flickr(root, source, test_fraction, seed)
    else:
        train, test = (_coco_split(root, part) for part in ("train", "val"))
    if shared := {path.resolve() for path in train.paths} & {path.resolve() for path in test.paths}:
        raise InputError(f"{min(shared)} is in the training split and in the test split; expected each image in one")
    return train, replace(test, notes=(*test.notes, *note_leaks(train.paths, test.paths)))


def _caption_file(root: Path) -> Path | None:
    """Return the token file or the table of a folder, if there is one."""
    tokens = [
        file
        for place in (root, *sorted(root.glob("*/")))
        for pattern in _TOKENS
        for file in sorted(place.glob(pattern))
        if ".lemma." not in file.name
    ]
    tables = [file for name in _TABLES if (file := root / name).is_file()]
    if len(tokens) > 1 or len(tables) > 1:
        first, second = (tokens if len(tokens) > 1 else tables)[:2]
        raise InputError(f"{root} holds both {first.name} and {second.name}; expected one file of captions")
    return next(iter(tokens + tables), None)


def _caption_set(root: Path, split: Split, source: Path, folders: Sequence[Path], captions: Captions) -> CaptionSet:
    """Find the files of a split, and check that every image has captions with words."""
    if not captions:
        raise InputError(f"{source} leaves no {split} images; expected one or more with captions")
    names: dict[Path, str] = {}
    for name, texts in captions.items():
        file = _image_file(name, source, folders)
        if file in names:
            raise InputError(f"{source} has the image {file} as '{names[file]}' and as '{name}'; expected one name")
        names[file] = name
        if not texts:
            raise InputError(f"{source} has no caption for the image '{name}'; expected one or more")
        if not all(map(is_unicode, texts)):
            raise InputError(f"{source} has a caption of '{name}' with half a character; expected text in Unicode")
        if not all(any(letter.isalnum() for letter in text) for text in texts):
            raise InputError(f"{source} has an empty caption for the image '{name}'; expected words")
    every = tuple(map(tuple, captions.values()))
    return CaptionSet(root.resolve().name, split, tuple(names), tuple(names.values()), every)


def _image_file(name: str, source: Path, folders: Sequence[Path]) -> Path:
    file = find_image(name, folders)
    if file is None:
        raise InputError(f"{source} names the image '{name}', which is not in {folders[0]}")
    return file


def _with_unused(data: CaptionSet, folder: Path, used: Collection[Path]) -> CaptionSet:
    """Return a split with a note on the images of a folder that no split uses."""
    unused = [file.path for file in list_images(folder).files if file.path not in used]
    return replace(data, notes=(*data.notes, *left_out(f"images of {folder} in neither split", unused)))


# ---- COCO ----


def _coco_split(root: Path, part: str) -> CaptionSet:
    pattern = f"captions_{part}*.json"
    found = sorted([*root.glob(pattern), *root.glob(f"annotations/{pattern}")])
    if len(found) != 1:
        what = f"both {found[0].name} and {found[1].name}" if found else "no captions"
        raise InputError(
            f"{root} holds {what}; expected one {pattern}, there or in annotations/, or a table of captions such as "
            "captions.txt, or Flickr8k.token.txt"
        )
    folders = image_folders(root, found[0].stem.removeprefix("captions_"), found[0])
    file = read_coco(found[0], Caption)
    captions = {image.file_name: [each.caption for each in file.annotations[image.id]] for image in file.images}
    data = _caption_set(root, "train" if part == "train" else "test", found[0], folders, captions)
    return _with_unused(data, folders[0], set(data.paths)) if folders[0].name != "images" else data


# ---- Flickr8k, Flickr30k and tables ----


def _open_flickr(root: Path, source: Path, test_fraction: float, seed: int) -> tuple[CaptionSet, CaptionSet]:
    folders = [folder for name in _FOLDERS if (folder := root / name).is_dir()] + [root]
    captions: dict[str, list[str]] = {}
    read = _token_lines if source.name.endswith((".token", ".token.txt")) else _table
    for number, name, caption in read(source):
        if not is_unicode(caption):
            raise InputError(f"line {number} of {source} has a caption that is not UTF-8; expected text in UTF-8")
        captions.setdefault(name, []).append(caption)
    lists, notes = _lists(source.parent), list[str]()
    if lists:
        parts: Sequence[list[str]] = [read_list(file, captions, source) for file in lists]
        check_apart(parts[0], lists[0], parts[1], lists[1])
    else:
        images = {name: _image_file(name, source, folders) for name in captions}
        parts, notes = split_by_hash(images, test_fraction, seed)
    train, test = (
        _caption_set(root, split, origin, folders, {name: captions[name] for name in names})
        for split, origin, names in zip(_SPLITS, lists or (source, source), parts, strict=True)
    )
    train = _with_unused(train, train.paths[0].parent, {*train.paths, *test.paths})
    return replace(train, notes=(*notes, *train.notes)), test


def _lists(folder: Path) -> list[Path]:
    """Return the lists of the training and of the test images, or none."""
    found = [next(iter(sorted(folder.glob(f"*.{part}Images.txt"))), None) for part in _SPLITS]
    if found[0] and found[1]:
        return [found[0], found[1]]
    if alone := found[0] or found[1]:
        lacking = "test" if found[0] else "train"
        raise InputError(f"{alone} is there without a list *.{lacking}Images.txt; expected both or neither")
    return []


def _token_lines(source: Path) -> Iterator[tuple[int, str, str]]:
    # not splitlines(): captions may contain the line separators of Unicode
    for number, line in enumerate(read_lenient_text(source).split("\n"), 1):
        if not line.strip():
            continue
        name, tab, caption = line.rstrip("\r").partition("\t")
        if not tab or "#" not in name:
            raise InputError(f"line {number} of {source} is '{line[:60]}'; expected NAME#NUMBER, a tab and a caption")
        yield number, name.rpartition("#")[0].strip(), caption


def _table(source: Path) -> Iterator[tuple[int, str, str]]:
    text = read_lenient_text(source)
    first = next((line for line in text.split("\n") if line.strip()), "").rstrip("\r")
    separator, columns, image, caption = _columns(first, source)
    rows = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, strict=True,
        quoting=csv.QUOTE_MINIMAL if separator in ",;" else csv.QUOTE_NONE,  # beside tabs and bars, quotes are text
    )  # fmt: skip
    began = False
    try:
        for row in rows:
            if not any(map(str.strip, row)):
                continue
            if not began and _is_header(row):
                began = True
                continue
            began = True
            row = _repaired(row, columns, caption, separator)
            if len(row) != columns:
                raise InputError(f"line {rows.line_num} of {source} has {len(row)} fields; expected {columns}")
            yield rows.line_num, row[image].strip(), row[caption].lstrip(" ")
    except csv.Error as error:
        raise InputError(f"line {rows.line_num} of {source} is not a row of a table: {error}") from None


def _repaired(row: list[str], columns: int, caption: int, separator: str) -> list[str]:
    """Join a last column that contains separators without quotes, and split one known line of Flickr30k's table."""
    if len(row) > columns and caption == columns - 1:
        return [*row[:caption], separator.join(row[caption:])]
    if len(row) == 2 and columns == 3 and (number := re.match(r"\s*\d+\s+(?=\S)", row[1])):
        return [row[0], number[0], row[1][number.end() :]]
    return row


def _columns(first: str, source: Path) -> tuple[str, int, int, int]:
    """Return the separator, the number of columns, and those of the image and of the caption, by the first line."""
    for separator in "|\t;,":
        names = [_plain(field) for field in first.split(separator)]
        if _is_header(names):
            image, caption = (
                next(names.index(header) for header in headers if header in names)
                for headers in (_IMAGE_HEADERS, _CAPTION_HEADERS)
            )
            return separator, len(names), image, caption
        if len(names) > 1 and names[0].endswith(EXTENSIONS):
            numbered = len(names) > 2 and names[1].isdecimal()
            return separator, 3 if numbered else 2, 0, 2 if numbered else 1
    raise InputError(
        f"{source} begins with '{first[:60]}'; expected a header such as 'image,caption', or an image and its caption "
        "separated by a comma, a tab, a bar or a semicolon"
    )


def _plain(field: str) -> str:
    return field.strip().strip('"').casefold()


def _is_header(fields: Iterable[str]) -> bool:
    names = {_plain(field) for field in fields}
    return bool(names & {*_IMAGE_HEADERS} and names & {*_CAPTION_HEADERS})
