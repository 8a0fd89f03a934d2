"""Tiny-ImageNet-200 in its official layout, decoded once into one tensor."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from cutmix.data.decode import find_unreadable, read_same_size
from cutmix.errors import InputError

_FOLDER = "tiny-imagenet-200"


def find_tiny_imagenet(root: Path) -> Path | None:
    """Return the folder that holds ``train/`` and ``val/``: ``root`` itself or a folder in it, else None."""
    for folder in (root, root / _FOLDER):
        if folder.is_dir() and (folder.name == _FOLDER or (folder / "val" / "val_annotations.txt").is_file()):
            return folder
    return None


def read_tiny_imagenet(
    folder: Path, split: str, *, skip_unreadable: bool
) -> tuple[Tensor, Tensor, tuple[str, ...], tuple[Path, ...]]:
    """Read one split; "test" is the validation set, since the labels of the test set were never published.

    The classes are ordered by WordNet id and named by the first word that ``words.txt`` gives for them, or by the
    id where there is no such file. A reduced copy, with fewer images a class, is read as well.

    Returns:
        images (N, 3, 64, 64) uint8, labels (N,) int64, the class names, the files left out.

    Raises:
        InputError: A split is missing, a class has no images, or a file cannot be read.
    """
    train = folder / "train"
    ids = sorted(entry.name for entry in train.iterdir() if entry.is_dir()) if train.is_dir() else []
    if not ids:
        raise InputError(f"{folder} is not a complete {_FOLDER}: train/ is missing or empty; unpack it again")
    pairs = list(_train_files(train, ids) if split == "train" else _val_files(folder / "val", ids))
    skipped = find_unreadable([path for path, _ in pairs]) if skip_unreadable else set()
    kept = [(path, label) for path, label in pairs if path not in skipped]
    without = set(range(len(ids))) - {label for _, label in kept}
    if without:
        raise InputError(f"{folder}: the class {ids[min(without)]} has no {split} images; unpack it again")
    images = read_same_size([path for path, _ in kept], 64, 64)
    labels = torch.tensor([label for _, label in kept])
    return images, labels, _names(folder, ids), tuple(sorted(skipped))


def _train_files(train: Path, ids: list[str]) -> Iterator[tuple[Path, int]]:
    for label, wnid in enumerate(ids):
        for path in sorted((train / wnid / "images").glob("[!.]*.JPEG")):
            yield path, label


def _val_files(val: Path, ids: list[str]) -> Iterator[tuple[Path, int]]:
    annotations, label_of = val / "val_annotations.txt", {wnid: label for label, wnid in enumerate(ids)}
    if not annotations.is_file():
        raise InputError(f"{val.parent} is not a complete {_FOLDER}: {annotations} is missing; unpack it again")
    for line in annotations.read_text().splitlines():
        name, wnid, *_ = [*line.split("\t"), ""]
        if wnid not in label_of:
            raise InputError(f"{annotations}: the class '{wnid}' of '{name}' is none of the {len(ids)} in train/")
        yield val / "images" / name, label_of[wnid]


def _names(folder: Path, ids: list[str]) -> tuple[str, ...]:
    words: dict[str, str] = {}
    if (folder / "words.txt").is_file():
        for line in (folder / "words.txt").read_text(encoding="utf-8").splitlines():
            wnid, _, text = line.partition("\t")
            words[wnid] = text.split(",")[0].strip()
    return tuple(words.get(wnid) or wnid for wnid in ids)
