"""``cutmix shards``: write a data set as tar shards; an interrupted run continues."""

from pathlib import Path
from typing import Any

import torch

from cutmix.config.options import ShardsOptions
from cutmix.data.describe import describe_splits
from cutmix.data.folder import is_hidden
from cutmix.data.opening import is_small, open_splits
from cutmix.data.sets import FileSet
from cutmix.data.shards import find_shards, read_shards
from cutmix.data.sources import CLASSES, plan_shards, write_shard
from cutmix.errors import InputError
from cutmix.runtime.files import read_object, to_json, write_atomic
from cutmix.runtime.seeding import derive_seed
from cutmix.runtime.terminal import say

PLAN = "shards.json"


def write_shards(options: ShardsOptions) -> Path:
    """Write the splits of a data set as shards, those of the training images in a random order; return the folder.

    Raises:
        InputError: The data cannot be read or are small images, or the folder holds something else.
    """
    if is_small(options.data):
        raise InputError(f"{options.data} is a set of small images, held in memory; expected a folder of images")
    if Path(options.data).is_dir() and options.out.resolve().is_relative_to(Path(options.data).resolve()):
        raise InputError(f"{options.out} is inside {options.data}, and would be a class of it; expected another folder")
    splits = open_splits(
        options.data, val_fraction=options.val_fraction, seed=options.seed, skip_unreadable=options.skip_unreadable
    )
    if splits.train.labels.ndim > 1:
        raise InputError(f"{options.data} has several labels an image; cutmix shards writes one for each")
    say("\n".join(describe_splits(splits).lines()))
    sets: dict[str, Any] = {split: part for split in ("train", "val", "test") if (part := getattr(splits, split))}
    plan = {
        "shard_size": options.shard_size, "seed": options.seed,
        "data": {split: data.fingerprint() for split, data in sets.items()},
    }  # fmt: skip
    _start(options.out, plan)
    written = kept = 0
    for split, data in sets.items():
        new, old = _write_split(options, split, data)
        written, kept = written + new, kept + old
    found = read_shards(options.out, find_shards(options.out))
    for split, data in sets.items():
        if len(found.parts[split][0]) != len(data):
            raise InputError(f"{options.out} has {len(found.parts[split][0])} {split} images; expected {len(data)}")
    there = f" ({kept} were there)" if kept else ""
    say(f"wrote {written} shards to {options.out}{there}; cutmix train --data {options.out} trains on them")
    return options.out


def _start(folder: Path, plan: dict[str, Any]) -> None:
    """Make the folder, or check that it was begun with the same images and flags."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; expected a folder for the shards")
    if (folder / PLAN).exists():
        if read_object(folder / PLAN) != plan:
            raise InputError(f"{folder} holds shards of other images or flags; choose another folder with --out")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} could not be made: {error.strerror}") from None
    if any(not is_hidden(path.name) for path in folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds no shards; choose another folder with --out")
    write_atomic(folder / PLAN, lambda file: file.write(to_json(plan, indent=1)))


def _write_split(options: ShardsOptions, split: str, data: FileSet) -> tuple[int, int]:
    """Write the shards of a split that are not there; return how many were written, and how many were there."""
    names, labels = data.paths.names(), data.labels.tolist()
    sizes = [int(identity.rpartition(b"/")[2]) for identity in data.paths.identities()]
    order = torch.arange(len(data))
    if split == "train":
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(derive_seed(options.seed, "shards")))
    shards = plan_shards(sizes, order.tolist(), options.shard_size * 1_000_000)
    write_atomic(options.out / CLASSES, lambda file: file.write("\n".join(data.classes).encode() + b"\n"))
    written = 0
    for number, indices in enumerate(shards):
        path = options.out / f"{split}-{number:06d}.tar"
        if not path.exists():
            write_shard(path, indices, data.paths, names, labels, data.classes)
            written += 1
    return written, len(shards) - written
