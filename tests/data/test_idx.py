"""The MNIST layout: torchvision is the oracle."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from cutmix.data.opening import locate, open_data
from cutmix.errors import InputError

LABELS = [0, 9, 4, 4, 7]


def write_idx(folder: Path, *, compressed: bool, labels: list[int] = LABELS) -> None:
    folder.mkdir(parents=True)
    for prefix, seed in (("train", 0), ("t10k", 1)):
        pixels = np.random.default_rng(seed).integers(0, 256, (5, 28, 28), dtype=np.uint8)
        sizes = b"".join(n.to_bytes(4, "big") for n in pixels.shape)
        contents = {
            f"{prefix}-images-idx3-ubyte": b"\0\0\x08\x03" + sizes + pixels.tobytes(),
            f"{prefix}-labels-idx1-ubyte": b"\0\0\x08\x01" + len(labels).to_bytes(4, "big") + bytes(labels),
        }
        for name, content in contents.items():
            if compressed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)


@pytest.mark.parametrize("split", ["train", "test"])
def test_equals_torchvision(tmp_path: Path, split: str) -> None:
    write_idx(tmp_path / "FashionMNIST" / "raw", compressed=False)
    oracle = datasets.FashionMNIST(tmp_path, train=split == "train")
    data = open_data(str(tmp_path), split)
    assert data.name == "fashion-mnist"
    assert torch.equal(data.images, oracle.data.unsqueeze(1))
    assert torch.equal(data.labels, oracle.targets)
    assert list(data.classes) == oracle.classes
    assert data.in_chans == 1


def test_gzip_equals_plain_and_bare_mnist_has_digit_names(tmp_path: Path) -> None:
    write_idx(tmp_path / "mnist", compressed=True)
    write_idx(tmp_path / "fashion", compressed=False)
    packed, plain = open_data(str(tmp_path / "mnist"), "train"), open_data(str(tmp_path / "fashion"), "train")
    assert torch.equal(packed.images, plain.images)
    assert packed.name == "mnist"
    assert packed.classes == tuple("0123456789")
    assert plain.classes[9] == "Ankle boot"


@pytest.mark.parametrize("compressed", [False, True])
def test_the_first_labels_tell_the_set_whatever_the_path(tmp_path: Path, compressed: bool) -> None:
    """The first labels are those of the official files, http://yann.lecun.com/exdb/mnist and zalandoresearch."""
    write_idx(tmp_path / "fashion" / "a", compressed=compressed, labels=[5, 0, 4, 1, 9, 2, 1, 3, 1, 4])
    write_idx(tmp_path / "b", compressed=compressed, labels=[9, 0, 0, 3, 0, 2, 7, 2, 5, 5])
    assert locate(str(tmp_path / "fashion" / "a"))[0] == "mnist"
    assert locate(str(tmp_path / "b"))[0] == "fashion-mnist"


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("part", [0, 2, 100, -3])
def test_truncated_file_is_named(tmp_path: Path, compressed: bool, part: int) -> None:
    write_idx(tmp_path / "mnist", compressed=compressed)
    file = tmp_path / "mnist" / ("train-images-idx3-ubyte" + (".gz" if compressed else ""))
    file.write_bytes(file.read_bytes()[:part])
    with pytest.raises(InputError, match="train-images"):
        open_data(str(tmp_path / "mnist"), "train")


@pytest.mark.parametrize("compressed", [False, True])
def test_an_announcement_of_terabytes_is_compared_with_the_file(tmp_path: Path, compressed: bool) -> None:
    write_idx(tmp_path / "mnist", compressed=compressed)
    file = tmp_path / "mnist" / ("train-images-idx3-ubyte" + (".gz" if compressed else ""))
    content = bytes((0, 0, 8, 3)) + (100_000).to_bytes(4, "big") * 3 + bytes(100)
    file.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(InputError, match="does not hold the 1000000000000000 values that it announces"):
        open_data(str(tmp_path / "mnist"), "train")


def test_bytes_too_many(tmp_path: Path) -> None:
    write_idx(tmp_path / "mnist", compressed=False)
    with (tmp_path / "mnist" / "train-labels-idx1-ubyte").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="does not hold the 5 values"):
        open_data(str(tmp_path / "mnist"), "train")


def test_missing_file_and_differing_numbers(tmp_path: Path) -> None:
    write_idx(tmp_path / "a", compressed=False)
    (tmp_path / "a" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="t10k-labels-idx1-ubyte"):
        open_data(str(tmp_path / "a"), "test")
    write_idx(tmp_path / "b", compressed=False, labels=[1, 2])
    with pytest.raises(InputError, match="5 train images and 2 labels"):
        open_data(str(tmp_path / "b"), "train")


def test_labels_out_of_range(tmp_path: Path) -> None:
    write_idx(tmp_path / "mnist", compressed=False, labels=[0, 1, 2, 3, 10])
    with pytest.raises(InputError, match="run from 0 to 10; expected 0 to 9"):
        open_data(str(tmp_path / "mnist"), "train")
