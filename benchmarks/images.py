"""Small images to train on: a set by its name, or random ones in CIFAR-100's official layout."""

import pickle
from pathlib import Path

import numpy as np

from cutmix.data import ArraySet, open_data
from cutmix.errors import InputError


def find_data(data: str, scratch: Path) -> tuple[str, str]:
    """Return the path and the name of a data set; of random images where CIFAR-100 is not there."""
    try:
        open_images(data, "test")
        return data, data
    except InputError as error:
        if data != "cifar-100":
            raise SystemExit(str(error)) from None
        return str(write_cifar(scratch / "random", train=50_000, test=10_000)), "random images, as CIFAR-100 is absent"


def open_images(data: str, split: str) -> ArraySet:
    images = open_data(data, "train" if split == "train" else "test")
    if not isinstance(images, ArraySet):
        raise SystemExit(f"{data} holds image files: expected a set of small images")
    return images


def write_cifar(parent: Path, train: int, test: int) -> Path:
    """Write random images in CIFAR-100's official layout."""
    folder = parent / "cifar-100-python"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    contents: dict[str, dict[str, object]] = {"meta": {"fine_label_names": [f"class {i}" for i in range(100)]}}
    for split, n in (("train", train), ("test", test)):
        pixels = rng.integers(0, 256, (n, 3072), np.uint8)
        contents[split] = {"data": pixels, "fine_labels": [i % 100 for i in range(n)]}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=4))
    return folder
