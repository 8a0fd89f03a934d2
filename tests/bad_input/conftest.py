"""A folder with everything that the commands read."""

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from cutmix.cli import main
from cutmix.evaluation.occlusion import CORRUPTIONS

TRAIN = "--device cpu --workers 0 --epochs 1 --batch-size 4 --precision float32"
MODEL = "--model test_resnet --no-pretrained --image-size 32"
RANDOM = np.random.default_rng(0)


def image(path: Path, side: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)


def write_photos(folder: Path) -> None:
    """Write class folders, files that list the same images, and boxes of the test images."""
    for split, count in (("train", 5), ("test", 3)):
        for name in "ab":
            for number in range(count):
                stem = f"{name}{number}" if split == "test" else str(number)  # boxes belong to a name
                image(folder / f"photos/{split}/{name}/{stem}.{'jpg' if number == 1 else 'png'}")
    rows = [(str(path.relative_to(folder)), path.parent.name) for path in sorted(folder.glob("photos/*/*/*"))]
    (folder / "labels.csv").write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in rows))
    several = [(path, f"{label}|all") if number else (path, "") for number, (path, label) in enumerate(rows)]
    (folder / "several.csv").write_text("path,labels\n" + "".join(f"{path},{labels}\n" for path, labels in several))
    (folder / "labels.jsonl").write_text(
        "".join(json.dumps({"path": path, "label": label, "split": path.split("/")[1]}) + "\n" for path, label in rows)
    )
    (folder / "weights.csv").write_text("a,1\nb,2.5\n")
    (folder / "settings.yaml").write_text(
        "model: test_resnet\npretrained: false\nimage-size: 32\nepochs: 1\nbatch-size: 4\nprecision: float32\n"
    )
    (folder / "boxes").mkdir()
    for path in (folder / "photos/test").glob("*/*"):
        (folder / f"boxes/{path.stem}.xml").write_text(
            "<annotation><size><width>40</width><height>40</height></size><object><name>a</name><bndbox>"
            "<xmin>5</xmin><ymin>5</ymin><xmax>20</xmax><ymax>20</ymax></bndbox></object></annotation>"
        )


def write_known_sets(folder: Path) -> None:
    """Write small sets in the layouts of MNIST, CUB-200-2011, Tiny-ImageNet-200, CIFAR-100 and CIFAR-10-C."""
    (folder / "mnist").mkdir()
    for part in ("train", "t10k"):
        pixels = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (20, 28, 28)) + RANDOM.bytes(20 * 784)
        (folder / f"mnist/{part}-images-idx3-ubyte").write_bytes(pixels)
        labels = b"\0\0\x08\x01" + (20).to_bytes(4, "big") + bytes(range(10)) * 2
        (folder / f"mnist/{part}-labels-idx1-ubyte").write_bytes(labels)
    names = [f"00{n % 2 + 1}.{'AB'[n % 2]}/x_{n}.jpg" for n in range(8)]
    tables = {
        "images": names, "image_class_labels": [n % 2 + 1 for n in range(8)], "classes": ["001.A", "002.B"],
        "train_test_split": [int(n < 4) for n in range(8)], "bounding_boxes": ["5.0 5.0 20.0 20.0"] * 8,
    }  # fmt: skip
    for name in names:
        image(folder / "CUB_200_2011/images" / name)
    for table, values in tables.items():
        lines = "".join(f"{number} {value}\n" for number, value in enumerate(values, 1))
        (folder / f"CUB_200_2011/{table}.txt").write_text(lines)
    for number, wnid in enumerate(("n01", "n02")):
        for each in range(2):
            image(folder / f"tiny-imagenet-200/train/{wnid}/images/{wnid}_{each}.JPEG", 64)
        image(folder / f"tiny-imagenet-200/val/images/val_{number}.JPEG", 64)
    (folder / "tiny-imagenet-200/val/val_annotations.txt").write_text(
        "".join(f"val_{number}.JPEG\tn0{number + 1}\t0\t0\t10\t10\n" for number in range(2))
    )
    (folder / "tiny-imagenet-200/wnids.txt").write_text("n01\nn02\n")
    (folder / "tiny-imagenet-200/words.txt").write_text("n01\tgoldfish\nn02\tfrog\n")
    (folder / "cifar-100-python").mkdir()
    for part in ("train", "test"):
        data = RANDOM.integers(0, 256, (120, 3072), dtype=np.uint8)
        write_pickle(folder / "cifar-100-python" / part, {b"data": data, b"fine_labels": [i % 100 for i in range(120)]})
    write_pickle(folder / "cifar-100-python/meta", {b"fine_label_names": [b"n%d" % i for i in range(100)]})
    (folder / "corrupted").mkdir()
    for name in CORRUPTIONS:
        np.save(folder / f"corrupted/{name}.npy", RANDOM.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8))
    np.save(folder / "corrupted/labels.npy", np.arange(30) % 2)


def write_coco(folder: Path) -> None:
    """Write boxes and captions in COCO's layout."""
    for part in ("train", "val"):
        for number in range(4):
            image(folder / f"coco/{part}/{number}.png", 64)
        texts = [
            {"id": n, "image_id": n // 2, "caption": f"a {('red', 'blue')[n % 2]} dog number {n}"} for n in range(8)
        ]
        content = {
            "images": [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 64} for n in range(4)],
            "annotations": [
                {"id": n + 1, "image_id": n, "category_id": n % 2 + 1, "bbox": [5, 5, 30, 30], "area": 900}
                for n in range(4)
            ],
            "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
        }  # fmt: skip
        (folder / "coco/annotations").mkdir(exist_ok=True)
        (folder / f"coco/annotations/instances_{part}.json").write_text(json.dumps(content))
        captions = {"images": content["images"], "annotations": texts}
        (folder / f"coco/annotations/captions_{part}.json").write_text(json.dumps(captions))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, voc_folder: Path, caption_folder: Path) -> Iterator[Path]:
    """A folder with everything that the commands read, and a run."""
    folder = tmp_path_factory.mktemp("world")
    for write in (write_photos, write_known_sets, write_coco):
        write(folder)
    shutil.copytree(voc_folder, folder / "voc")
    shutil.copytree(caption_folder, folder / "captions")
    (folder / "classes.json").write_text('["a", "b"]')
    (folder / "file").write_text("text")
    (folder / "victim").write_text("precious")
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")

    torch.save(timm.create_model("test_resnet", num_classes=2).state_dict(), folder / "w.pth")
    before = Path.cwd()
    os.chdir(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    main(f"train --data photos {MODEL} {TRAIN} --out run".split())
    shutil.copy("run/results.jsonl", "results.jsonl")
    yield folder
    torch.set_num_threads(threads)
    os.chdir(before)


def write_pickle(path: Path, content: Any) -> None:

    path.write_bytes(pickle.dumps(content, protocol=3))
