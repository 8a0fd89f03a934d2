"""Any folder of class folders, split into training and test images."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from cutmix.errors import InputError
from cutmix.runtime.seeding import derive_seed

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm")
_TEST_FOLDERS = ("val", "valid", "test")


def read_folder(
    root: Path, split: str, *, val_fraction: float, seed: int
) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """List the images of one split.

    With ``train/`` and ``val/`` (or ``valid/``, ``test/``) inside, these are the splits. Otherwise ``root`` holds the
    class folders, and ``val_fraction`` of each class becomes the test split: the files whose hash with ``seed`` is
    smallest, so that adding a file moves hardly any other.

    Args:
        root: The folder.
        split: "train" or "test"; "all" where the folder is not split.
        val_fraction: In (0, 1); of a class with two or more images at least one goes to each side.
        seed: Decides the split, and nothing else does.

    Returns:
        The files, sorted by class and name; their labels; the class names, sorted.

    Raises:
        InputError: No images, fewer than two classes, a class without images, a split without its counterpart, or
            splits with different classes.
    """
    train, test = _split_folders(root)
    if train and test:
        files = _images_by_class(train if split == "train" else test)
        _compare_classes(train, test)
    elif train or test:
        missing = "none of " + ", ".join(f"{name}/" for name in _TEST_FOLDERS) if train else "no train/"
        raise InputError(
            f"{root} has {(train or test or root).name}/ but {missing}: give both, or one folder of class folders"
        )
    else:
        files = {name: _share(paths, root, split, val_fraction, seed) for name, paths in _images_by_class(root).items()}
    if len(files) < 2:
        raise InputError(f"{root} holds one class only ('{next(iter(files))}'): a classifier needs two or more")
    paths = [path for group in files.values() for path in group]
    labels = [label for label, group in enumerate(files.values()) for _ in group]
    if not paths:
        raise InputError(f"{root} leaves no {split} images: every class needs two or more")
    return paths, labels, tuple(files)


def is_split(root: Path) -> bool:
    """Return whether a folder holds splits, or one of them, and not class folders."""
    return any(_split_folders(root))


def _split_folders(root: Path) -> tuple[Path | None, Path | None]:
    """Return the folders of the splits; ``train/`` alone may also be a class of that name, with images in it."""
    train = root / "train" if (root / "train").is_dir() else None
    test = next((root / name for name in _TEST_FOLDERS if (root / name).is_dir()), None)
    alone = train or test
    if not (train and test) and alone and any(_is_image(entry.name) for entry in alone.iterdir()):
        return None, None
    return train, test


def _class_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _images_by_class(folder: Path) -> dict[str, list[Path]]:
    names = _class_names(folder)
    if not names:
        what = "images but no class folders" if any(_is_image(x.name) for x in folder.iterdir()) else "no images"
        raise InputError(f"{folder} holds {what}: expected one folder a class with its images inside")
    files = {name: _images_below(folder / name) for name in names}
    if not any(files.values()):
        raise InputError(f"{folder} holds no images ({', '.join(EXTENSIONS)}) in its {len(names)} folders")
    empty = [name for name, paths in files.items() if not paths]
    if empty:
        raise InputError(f"the class folder {folder / empty[0]} holds no images: fill it or remove it")
    return files


def _images_below(folder: Path) -> list[Path]:
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if _is_image(name)]
    return sorted(found)


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def _compare_classes(train: Path, test: Path) -> None:
    differing = set(_class_names(train)) ^ set(_class_names(test))
    if differing:
        name = min(differing)
        has, lacks = (train, test) if (train / name).is_dir() else (test, train)
        raise InputError(f"the class '{name}' is in {has} but not in {lacks}: both need the same classes")


def _share(paths: list[Path], root: Path, split: str, val_fraction: float, seed: int) -> list[Path]:
    """Return one class's part of the split."""
    if split == "all":
        return paths
    count = min(max(round(val_fraction * len(paths)), 1), len(paths) - 1)
    ranked = sorted(paths, key=lambda path: derive_seed(seed, "split", path.relative_to(root).as_posix()))
    return sorted(ranked[:count] if split == "test" else ranked[count:])


# ---- split ----
# Which pictures are for training and which for testing: by two lists of names, or by the hash of each name.

Split = Literal["train", "test"]


def listed_names(file: Path, other: Path | None) -> list[str]:
    """Return the names in one split's list, the first word of each line that is not empty.

    Args:
        file: The split's list.
        other: The other split's, if there is one.

    Raises:
        InputError: A list is no text, a name is in it twice, or a name is in both.
    """
    names, others = ([line.split()[0] for line in read_text(x).splitlines() if line.strip()] if x else []
                     for x in (file, other))  # fmt: skip
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"{file} names the picture '{name}' {count} times: expected each once")
    if shared := set(names) & set(others):
        raise InputError(f"{file} and {other} both name the picture '{min(shared)}': expected each in one split")
    return names


def names_by_hash(names: Iterable[str], split: Split, test_fraction: float, seed: int) -> list[str]:
    """Return a split's part of names without lists: testing gets those whose hash with the seed is smallest.

    A new name then moves hardly any other. Both parts have one name or more where there are two.

    Args:
        names: All of them, each once.
        split: "train" or "test".
        test_fraction: In (0, 1): the test share.
        seed: Decides the split, and nothing else.

    Returns:
        The names, sorted.
    """
    ranked = sorted(names, key=lambda name: derive_seed(seed, "split", name))
    count = min(max(round(test_fraction * len(ranked)), 1), len(ranked) - 1)
    return sorted(ranked[:count] if split == "test" else ranked[count:])


def read_text(path: Path) -> str:
    """Return a file's text, with or without a byte-order mark.

    Raises:
        InputError: It cannot be read, or is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text: {error}") from None
