"""Tiny-ImageNet-200's layout: torchvision's ImageFolder is the oracle for the training images."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from cutmix.data.opening import open_data
from cutmix.errors import InputError

IDS = ["n02", "n01", "n03"]  # the official list is not sorted either


def write_tiny(root: Path, *, words: bool = True) -> Path:
    folder = root / "tiny-imagenet-200"
    rng = np.random.default_rng(0)
    (folder / "val" / "images").mkdir(parents=True)
    lines = []
    for k, wnid in enumerate(IDS):
        (folder / "train" / wnid / "images").mkdir(parents=True)
        for i in range(2):
            mode = "L" if (k, i) == (0, 0) else "RGB"
            shape = (64, 64) if mode == "L" else (64, 64, 3)
            image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
            image.save(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG")
        image.save(folder / "val" / "images" / f"val_{k}.JPEG")
        lines.append(f"val_{k}.JPEG\t{wnid}\t0\t0\t10\t10")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (folder / "wnids.txt").write_text("\n".join(IDS))
    if words:
        (folder / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tfrog\nn99\tother\n")
    return folder


def test_equals_image_folder(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path)
    data = open_data(str(tmp_path), "train")
    oracle = datasets.ImageFolder(folder / "train")
    assert data.name == "tiny-imagenet-200"
    assert data.labels.tolist() == oracle.targets
    expected = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image, _ in oracle]
    assert torch.equal(data.images, torch.stack(expected))
    assert data.classes == ("goldfish", "frog", "n03")


def test_validation_labels_come_from_the_annotations(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path, words=False)
    data = open_data(str(folder), "test")
    assert data.classes == ("n01", "n02", "n03")
    assert data.labels.tolist() == [1, 0, 2]
    first = np.array(Image.open(folder / "val" / "images" / "val_0.JPEG"))
    assert torch.equal(data.images[0].permute(1, 2, 0), torch.from_numpy(first))


def test_unreadable_file_stops_or_is_skipped(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path)
    bad = folder / "train" / "n03" / "images" / "n03_1.JPEG"
    bad.write_bytes(bad.read_bytes()[:300])
    with pytest.raises(InputError, match=r"n03_1\.JPEG cannot be read"):
        open_data(str(folder), "train")
    data = open_data(str(folder), "train", skip_unreadable=True)
    assert data.skipped == (bad,)
    assert data.labels.tolist() == [0, 0, 1, 1, 2]


def test_faults(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path)
    annotations = folder / "val" / "val_annotations.txt"
    text = annotations.read_text()
    annotations.write_text(text.replace("n03", "n77"))
    with pytest.raises(InputError, match=r"'n77' of 'val_2\.JPEG' is none of the 3"):
        open_data(str(folder), "test")
    annotations.write_text("\n".join(text.splitlines()[:2]))
    with pytest.raises(InputError, match="class n03 has no test images"):
        open_data(str(folder), "test")
    annotations.unlink()
    with pytest.raises(InputError, match=r"not a complete tiny-imagenet-200.*val_annotations"):
        open_data(str(folder), "test")
    Image.new("RGB", (32, 64)).save(folder / "train" / "n01" / "images" / "n01_0.JPEG")
    with pytest.raises(InputError, match=r"n01_0\.JPEG is 32×64 pixels.*64×64"):
        open_data(str(folder), "train")


@pytest.mark.data
def test_real_validation_set() -> None:
    root = Path(os.environ.get("CUTMIX_DATA", ""))
    if not os.environ.get("CUTMIX_DATA") or not (root / "tiny-imagenet-200").is_dir():
        pytest.skip("needs $CUTMIX_DATA/tiny-imagenet-200")
    data = open_data("tiny-imagenet-200", "test")
    assert data.images.shape == (10_000, 3, 64, 64)
    assert data.labels.bincount().tolist() == [50] * 200
