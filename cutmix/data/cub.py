"""CUB-200-2011 in its official layout: the images of a split, their labels and the names of the birds."""

from collections.abc import Iterator
from pathlib import Path

from cutmix.errors import InputError

_FOLDER = "CUB_200_2011"


def find_cub(root: Path) -> Path | None:
    """Return the folder that holds ``images.txt`` and ``images/``: ``root`` itself or a folder in it, else None."""
    for folder in (root, root / _FOLDER):
        if (folder / "images.txt").is_file() and (folder / "train_test_split.txt").is_file():
            return folder
    return None


def read_cub(folder: Path, split: str) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """List the images of one split, in the order of ``images.txt``.

    Args:
        folder: Holds ``images/``, ``images.txt``, ``classes.txt``, ``image_class_labels.txt`` and
            ``train_test_split.txt``.
        split: "train" or "test"; the whole set has 5,994 and 5,794 images.

    Returns:
        The files; their labels, from 0; the class names, e.g. "Black footed Albatross".

    Raises:
        InputError: A file is missing or does not belong to the others, or the split has no images.
    """
    classes = [(number, name) for _, (number, name) in read_rows(folder / "classes.txt", " ", 2)]
    label_of = {number: label for label, (number, _) in enumerate(classes)}
    tables = {
        name: dict(row for _, row in read_rows(folder / f"{name}.txt", " ", 2))
        for name in ("images", "image_class_labels", "train_test_split")
    }
    wanted = "1" if split == "train" else "0"
    paths, labels = [], []
    for number, name in tables["images"].items():
        number_of_class = tables["image_class_labels"].get(number)
        if number_of_class not in label_of or number not in tables["train_test_split"]:
            raise InputError(f"{folder}: image {number} ({name}) has no class or is in no split; unpack the set again")
        if tables["train_test_split"][number] == wanted:
            paths.append(folder / "images" / name)
            labels.append(label_of[number_of_class])
    if not paths:
        raise InputError(f"{folder} has no {split} images; unpack the set again")
    names = tuple(name.partition(".")[2].replace("_", " ") or name for _, name in classes)
    return paths, labels, names


def read_rows(file: Path, separator: str, columns: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of each line of a table, from 1, and its columns.

    Raises:
        InputError: The file is missing or a line has another number of columns.
    """
    if not file.is_file():
        raise InputError(f"{file} is missing; expected it with the other annotations")
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        parts = line.split(separator)
        if len(parts) != columns:
            raise InputError(f"{file}, line {number}: {len(parts)} columns; expected {columns}")
        yield number, parts
