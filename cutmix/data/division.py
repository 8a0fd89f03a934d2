"""The division of a folder's images into train, val and test: stratified, seeded, and no image in two of them."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from cutmix.data.decode import Pixels, digest_pixels, in_threads
from cutmix.data.folder import ClassFolders, File, held_share, hold_out
from cutmix.data.shards import Catalogue
from cutmix.errors import InputError
from cutmix.runtime.seeding import derive_seed

MOST_BYTES = 2 << 30
"""Images are decoded to find copies if their files take no more than this; else only equal files are found."""

MOST_NEAR = 20_000
"""Images of a folder up to which nearly equal ones are searched."""

MIN_SPLIT = 50
"""The smallest second split: fewer images are not divided into val and test, nor held out for val beside ``test/``."""

Classes = list[list[File]]


@dataclass(frozen=True)
class Copies:
    """Duplicate images of a data set, and the unreadable files and sizes found while decoding."""

    compared: str = "nothing"  # "pixels", or "files" where the images are too many to decode, or "nothing"
    groups: list[list[File]] = field(default_factory=list)  # files of the same image, two or more each
    conflicts: list[list[File]] = field(default_factory=list)  # those groups whose files are in different classes
    # files that cannot be decoded, and the error; empty unless pixels were compared
    unreadable: dict[Path, InputError] = field(default_factory=dict)
    sizes: dict[Path, tuple[int, int]] = field(default_factory=dict)  # width and height of the images that were decoded
    near: list[list[File]] | None = None  # files of nearly equal images, including equal ones; None without a search


@dataclass(frozen=True)
class Division:
    """The images of each split."""

    parts: dict[str, Classes]  # the images of each class, by split: "train" and, if they exist, "val" and "test"
    origin: dict[str, str]  # origin of each split, as a phrase
    # by "train" and "val": the files left out there, since a later split has the same image
    leaks: dict[str, list[File]] = field(default_factory=dict)


# ---- copies ----


def find_copies(folders: ClassFolders, most_bytes: int | None = MOST_BYTES, *, channels: int = 3) -> Copies:
    """Find equal images, whatever their names, classes and formats.

    Pixels are compared if the files have at most ``most_bytes`` together, else whole files; None always compares
    pixels.
    """
    files = [file for classes in folders.parts.values() for own in classes for file in own]
    if most_bytes is not None and sum(file.size for file in files) > most_bytes:
        groups, found = _equal(files, _contents(files)), Copies("files")
    else:
        paths = [file.path for file in files]
        decoded = dict(zip(paths, in_threads(partial(digest_pixels, channels=channels), paths), strict=True))
        unreadable = {path: each for path, each in decoded.items() if isinstance(each, InputError)}
        pixels = {path: each for path, each in decoded.items() if isinstance(each, Pixels)}
        groups = _equal(files, {path: each.digest for path, each in pixels.items()})
        found = Copies("pixels", unreadable=unreadable, sizes={path: each.size for path, each in pixels.items()})
    found.groups.extend(groups)
    found.conflicts.extend(of_several_classes(groups, folders))
    return found


def of_several_classes(groups: Iterable[list[File]], folders: ClassFolders) -> list[list[File]]:
    """Return the groups of files that are in different classes, or have different labels."""
    label_of: dict[Path, object] = {
        file.path: label for classes in folders.parts.values() for label, own in enumerate(classes) for file in own
    }
    label_of |= folders.labels or {}
    return [group for group in groups if len({label_of[file.path] for file in group}) > 1]


def find_shared(files: Iterable[Path], others: Iterable[Path]) -> set[Path]:
    """Return the files whose bytes one of the others has too; none where more than ``MOST_BYTES`` are to be read."""
    sizes = [{path: os.path.getsize(path) for path in paths if path.is_file()} for paths in (files, others)]
    both = set(sizes[0].values()) & set(sizes[1].values())
    alike, known = ([path for path, size in own.items() if size in both] for own in sizes)
    if sum(sizes[0][path] for path in alike) + sum(sizes[1][path] for path in known) > MOST_BYTES:
        return set()
    digests = set(in_threads(_content, known)) - {None}
    return {path for path, digest in zip(alike, in_threads(_content, alike), strict=True) if digest in digests}


def find_near(folders: ClassFolders, channels: int = 3) -> list[list[File]]:
    """Find nearly equal images: thumbnails of 16×16 pixels that differ by 3 of 255 levels or less (RMS).

    These are copies in another format, quality or size, and not shots of the same thing from another place.
    """
    files = [file for classes in folders.parts.values() for own in classes for file in own]
    found = in_threads(partial(digest_pixels, channels=channels), [file.path for file in files])
    known = [(file, each.thumbnail) for file, each in zip(files, found, strict=True) if isinstance(each, Pixels)]
    thumbnails = np.array([np.frombuffer(thumbnail, np.uint8) for _, thumbnail in known], np.float32).reshape(-1, 256)
    squares = (thumbnails**2).sum(1)
    group = list(range(len(known)))

    def root(i: int) -> int:
        while group[i] != i:
            i = group[i] = group[group[i]]
        return i

    for start in range(0, len(known), 1024):
        block = slice(start, start + 1024)
        distance = squares[block, None] + squares - 2 * thumbnails[block] @ thumbnails.T
        for i, j in zip(*(distance <= _NEAR**2 * 256 + 0.5).nonzero(), strict=True):
            if start + i < j:
                group[root(int(j))] = root(start + int(i))
    groups: dict[int, list[File]] = defaultdict(list)
    for i, (file, _) in enumerate(known):
        groups[root(i)].append(file)
    return [near for near in groups.values() if len(near) > 1]


_NEAR = 3.0  # levels of 255


def _equal(files: list[File], keys: dict[Path, bytes]) -> list[list[File]]:
    groups: dict[bytes, list[File]] = defaultdict(list)
    for file in files:
        if file.path in keys:
            groups[keys[file.path]].append(file)
    return [group for group in groups.values() if len(group) > 1]


def _contents(files: list[File]) -> dict[Path, bytes]:
    """Return the digests of the files whose size another file has too."""
    sizes = Counter(file.size for file in files)
    alike = [file.path for file in files if sizes[file.size] > 1]
    return {path: digest for path, digest in zip(alike, in_threads(_content, alike), strict=True) if digest}


def _content(path: Path) -> bytes | None:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError:
        return None  # refused when it is decoded


# ---- division ----


def divide(folders: ClassFolders, copies: Copies, val_fraction: float, seed: int) -> Division:
    """Divide the images of a folder.

    ``train/``, ``val/`` and ``test/`` are the splits, as far as they exist. Without ``val/``, ``val_fraction`` of each
    class of the training images is held out for validation, at least one of two or more images; beside ``test/``, only
    if that share is ``MIN_SPLIT`` images. Without ``test/``, half of the images held out, or of ``val/``, become the
    test split if that gives it ``MIN_SPLIT`` images. With a fraction of 0 nothing is held out, and a ``val/`` without
    ``test/`` is the test split. The choice depends on ``seed`` alone.

    Equal and nearly equal images are in one split. If the folders have the same image in several splits, it is left out
    of ``train`` first, then of ``val``.
    """
    parts = {part: [list(own) for own in classes] for part, classes in folders.parts.items()}
    origin = {
        part: f"{part} of {folder.name}" if folder.is_file() else f"{folder.name}/"
        for part, folder in folders.folders.items()
    }
    if "all" in parts:
        parts["train"], origin = parts.pop("all"), {"train": "all images"}
    if not val_fraction and "val" in parts and "test" not in parts:
        parts["test"], origin["test"] = parts.pop("val"), origin.pop("val")
    leaks = _drop_leaks(parts, folders, copies)
    if not val_fraction:
        return Division(parts, origin, leaks)
    held = f"{val_fraction:.0%} of each class" + (f" of {origin['train']}" if "all" not in folders.parts else "")
    if "val" not in parts:
        train, val = _hold_out(parts["train"], folders, copies, val_fraction, seed)
        if "test" not in parts or sum(map(len, val)) >= MIN_SPLIT:
            parts["train"], parts["val"] = train, val
            of = "" if "all" in folders.parts else f" of {folders.folders['train'].name}/"
            origin |= {"train": f"the images that are not held out{of}", "val": held}
        else:
            origin["train"] += f"; {val_fraction:.0%} of it is fewer than {MIN_SPLIT} images, so none validate"
    if "test" not in parts:
        val, test = _hold_out(parts["val"], folders, copies, 0.5, seed)
        if sum(map(len, test)) >= MIN_SPLIT:
            parts["val"], parts["test"] = val, test
            origin |= {"val": f"half of {origin['val']}", "test": f"the other half of {origin['val']}"}
    return Division(parts, origin, leaks)


def divide_folds(folders: ClassFolders, copies: Copies, fold: int, folds: int, seed: int) -> Division:
    """Divide the images of one folder for cross-validation: a fold to test on, and the others to train on.

    Each class is dealt out to the folds in the order of the hashes of its names with ``seed``, nearly equal images
    together, in the first class that has them. ``fold`` is counted from 1.
    """
    if "all" not in folders.parts:
        raise InputError(
            f"{folders.root} has {', '.join(folders.parts)} already; --folds divides a folder without splits"
        )
    group_of = _groups_of(folders.parts["all"], copies, folds)
    fold_of: dict[object, int] = {}
    sizes = [0] * folds
    kept, held = [], []
    for label, files in enumerate(folders.parts["all"]):
        groups: dict[object, list[File]] = defaultdict(list)
        for file in files:
            groups[group_of.get(file.path, file.path)].append(file)
        if len(groups) < 2 and folders.labels is None:
            raise InputError(
                f"the class '{folders.classes[label]}' has 1 image; --folds needs two or more of each class"
            )
        own = [0] * folds
        first = {group: min(folders.name_of(file.path) for file in members) for group, members in groups.items()}
        for group in sorted(groups, key=lambda group: derive_seed(seed, "fold", first[group])):
            if group not in fold_of:
                fold_of[group] = min(range(folds), key=lambda k: (own[k], sizes[k], k))
            own[fold_of[group]] += len(groups[group])
            sizes[fold_of[group]] += len(groups[group])
        sides = [fold_of[group_of.get(file.path, file.path)] == fold - 1 for file in files]
        kept.append([file for file, tested in zip(files, sides, strict=True) if not tested])
        held.append([file for file, tested in zip(files, sides, strict=True) if tested])
        if max(own) == len(files) and folders.labels is None:
            whole = own.index(len(files)) + 1
            raise InputError(
                f"every image of the class '{folders.classes[label]}' is in fold {whole}; expected other images too"
            )
    if 0 in sizes:  # whichever fold is asked for: a later one would end the training of all folds
        raise InputError(f"fold {sizes.index(0) + 1} of {folds} has no test images; expected fewer folds")
    others = "the other fold" if folds == 2 else f"the other {folds - 1} folds"
    origin = {"train": others, "test": f"fold {fold} of {folds}"}
    return Division({"train": kept, "test": held}, origin)


def _groups_of(classes: Classes, copies: Copies, sides: int = 2) -> dict[Path, int]:
    """Return the group of each file that has copies.

    Nearly equal files are copies too, unless that leaves a class fewer groups than sides, or more than half of it in
    one group.
    """
    same = {file.path: number for number, group in enumerate(copies.groups) for file in group}
    near = {file.path: number for number, group in enumerate(copies.near or (), len(same)) for file in group}
    coarse: set[int] = set()
    for files in classes:
        alike = Counter(near.get(file.path, file.path) for file in files)
        exact = {same.get(file.path, file.path) for file in files}
        if len(alike) < min(len(exact), sides) or max(alike.values(), default=0) > max(2, len(files) / 2):
            coarse |= {near[file.path] for file in files if file.path in near}
    return same | {path: number for path, number in near.items() if number not in coarse}


def _hold_out(
    classes: Classes, folders: ClassFolders, copies: Copies, fraction: float, seed: int
) -> tuple[Classes, Classes]:
    """Divide each class by its names' hashes, equal images together, in the first class that has them."""
    group_of = _groups_of(classes, copies)
    side: dict[object, bool] = {}
    kept, held = [], []
    for files in classes:
        names = {folders.name_of(file.path): group_of.get(file.path, file.path) for file in files}
        groups: dict[object, list[str]] = defaultdict(list)
        for name, group in names.items():
            if group not in side:
                groups[group].append(name)
        count = held_share(len(files), fraction) - sum(side.get(group, False) for group in names.values())
        out = {name for group in hold_out(groups.values(), count, seed) for name in group}
        side |= {group: own[0] in out for group, own in groups.items()}
        sides = [side[group] for group in names.values()]
        kept.append([file for file, is_held in zip(files, sides, strict=True) if not is_held])
        held.append([file for file, is_held in zip(files, sides, strict=True) if is_held])
    return kept, held


def _drop_leaks(parts: dict[str, Classes], folders: ClassFolders, copies: Copies) -> dict[str, list[File]]:
    """Remove from train, then from val, the images that a later split has too."""
    group_of = {file.path: number for number, group in enumerate(copies.groups) for file in group}
    leaks: dict[str, list[File]] = {}
    later: set[int] = set()
    for part in ("test", "val", "train"):
        if part not in parts:
            continue
        before = {group_of[file.path] for file in _files(parts[part]) if file.path in group_of}
        dropped = [file for file in _files(parts[part]) if group_of.get(file.path) in later]
        if dropped:
            leaks[part], paths = dropped, {file.path for file in dropped}
            parts[part] = [[file for file in own if file.path not in paths] for own in parts[part]]
            if [] in parts[part] and folders.labels is None:
                name = folders.classes[parts[part].index([])]
                raise InputError(
                    f"every image of class '{name}' in {folders.folders[part]} is in another split too; expected "
                    "different images in each"
                )
        later |= before
    return leaks


def _files(classes: Classes) -> Iterable[File]:
    return (file for own in classes for file in own)


# ---- images inside larger files ----

Part = tuple[str, np.ndarray | None]
"""A part of a catalogue, and the indices of its samples, rising; None for all."""


def divide_stored(
    found: Catalogue, root: Path, val_fraction: float, seed: int
) -> tuple[dict[str, Part], dict[str, str]]:
    """Divide a catalogue as ``divide`` divides a folder, by the names of its samples.

    The results are the part and the indices of each split, and the origin of each split, as a phrase.
    """
    parts = set(found.parts)
    if {"train", "val", "test"} <= parts:
        return {part: (part, None) for part in found.parts}, dict(found.places)
    divided = "val" if "val" in parts else "train" if "train" in parts else "all"  # the others are unchanged
    empty: Classes = [[] for _ in found.classes]
    listed = {part: _as_files(found, part, root) if part == divided and val_fraction else empty for part in found.parts}
    folders = ClassFolders(root, found.classes, listed, {part: root / part for part in listed})
    division = divide(folders, Copies(), val_fraction, seed)
    splits: dict[str, Part] = {}
    for split, classes in division.parts.items():
        index = np.sort(np.array([file.identity[1] for file in _files(classes)], np.int64))
        splits[split] = (divided, index) if len(index) else (split if split in parts else divided, None)
    return splits, {split: division.origin[split] for split in splits}


def _as_files(found: Catalogue, part: str, root: Path) -> Classes:
    """Return the samples of a part by class, as ``divide`` takes them: paths that are names, numbered."""
    labels, images = found.parts[part]
    names = [name.lstrip("/") for name in images.names()]
    if len(set(names)) < len(names):
        names = [f"{i}/{name}" for i, name in enumerate(names)]
    classes: Classes = [[] for _ in found.classes]
    for i, (label, name) in enumerate(zip(labels.tolist(), names, strict=True)):
        classes[label].append(File(root / name, (0, i), 0))
    return classes
