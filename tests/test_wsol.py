"""Localization from the command line: the recipes trained and measured on small sets in the official layouts."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from cutmix.cli import main
from cutmix.runs.read import read_arrays
from cutmix.runs.record import read_records

CLASSES = ("Black_footed_Albatross", "Laysan_Albatross", "Sooty_Albatross")
COLOURS = ((220, 30, 30), (30, 200, 30), (40, 40, 220))
BRIEFLY = ("--epochs", "1", "--batch-size", "6", "--image-size", "64", "--no-pretrained", "--workers", "0")


def rectangles(count: int) -> Iterator[tuple[int, Image.Image, tuple[int, int, int, int]]]:
    """Yield a class, an image of a rectangle in its colour, and the box: x0, y0, x1, y1, exclusive."""
    random = np.random.default_rng(0)
    for number in range(count):
        label = number % len(CLASSES)
        width, height = (int(side) for side in random.integers(70, 110, 2))
        x, y = (int(value) for value in random.integers(0, 30, 2))
        w, h = (int(value) for value in random.integers(20, 40, 2))
        image = Image.fromarray(random.integers(90, 160, (height, width, 3), dtype=np.uint8))
        ImageDraw.Draw(image).rectangle((x, y, x + w - 1, y + h - 1), fill=COLOURS[label])
        yield label, image, (x, y, x + w, y + h)


@pytest.fixture(scope="module")
def cub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CUB-200-2011's layout with 24 images, half of them for the test, and wsolevaluation's metadata of that half."""
    root = tmp_path_factory.mktemp("cub") / "CUB_200_2011"
    tables: dict[str, list[str]] = {name: [] for name in ("images", "image_class_labels", "train_test_split",
                                                          "bounding_boxes", "localization", "image_sizes")}  # fmt: skip
    for number, (label, image, (x0, y0, x1, y1)) in enumerate(rectangles(24), start=1):
        name = f"{label + 1:03}.{CLASSES[label]}/{CLASSES[label]}_{number:04}.jpg"
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / "images" / name)
        train = number % 2
        tables["images"].append(f"{number} {name}")
        tables["image_class_labels"].append(f"{number} {label + 1}")
        tables["train_test_split"].append(f"{number} {train}")
        tables["bounding_boxes"].append(f"{number} {x0:.1f} {y0:.1f} {x1 - x0:.1f} {y1 - y0:.1f}")
        if not train:
            tables["localization"].append(f"{name},{x0},{y0},{x1 - 1},{y1 - 1}")
            tables["image_sizes"].append(f"{name},{image.width},{image.height}")
    tables["classes"] = [f"{label + 1} {label + 1:03}.{name}" for label, name in enumerate(CLASSES)]
    metadata = root.parent / "metadata"
    metadata.mkdir()
    for name, rows in tables.items():
        folder = metadata if name in ("localization", "image_sizes") else root
        (folder / f"{name}.txt").write_text("\n".join(rows))  # the last line is not ended, as in both sources
    return root


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet's layout: class folders, and an XML file a test image under Annotations/CLS-LOC/val."""
    root = tmp_path_factory.mktemp("imagenet")
    annotations = root / "Annotations/CLS-LOC/val"
    annotations.mkdir(parents=True)
    for number, (label, image, (x0, y0, x1, y1)) in enumerate(rectangles(24), start=1):
        split, wnid = ("val", "train")[number % 2], f"n0144076{label}"
        stem = f"ILSVRC2012_val_{number:08}" if split == "val" else f"{wnid}_{number}"
        (root / split / wnid).mkdir(parents=True, exist_ok=True)
        image.save(root / split / wnid / f"{stem}.JPEG", "JPEG")
        if split == "val":
            corners = zip(("xmin", "ymin", "xmax", "ymax"), (x0, y0, x1 - 1, y1 - 1), strict=True)
            box = "".join(f"<{name}>{value}</{name}>" for name, value in corners)
            (annotations / f"{stem}.xml").write_text(
                f"<annotation><size><width>{image.width}</width><height>{image.height}</height></size>"
                f"<object><name>{wnid}</name><bndbox>{box}</bndbox></object></annotation>"
            )
    return root


def localized(run: Path, *words: str) -> dict[str, float]:
    """Evaluate a run, and return what was measured."""
    before = len(read_records(run / "results.jsonl"))
    main(["evaluate", str(run), "--suite", "localization", "--device", "cpu", "--workers", "0", *words])
    records = read_records(run / "results.jsonl")[before:]
    assert {record.suite for record in records} == {"localization"}
    assert {record.n for record in records} == {12}
    return {record.metric: record.value for record in records}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cub-resnet50-wsol", "cub-resnet50-wsol-cutmix", "cub-vgg16-wsol-cutmix"])
def test_birds_are_trained_on_and_found(name: str, cub: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    main(["train", name, "--data", str(cub), "--out", str(run), "--device", "cpu", *BRIEFLY])
    found = localized(run)
    assert found["top1_loc"] <= min(found["top1_cls"], found["gt_known_loc"])
    top1_err = next(r.value for r in read_records(run / "results.jsonl") if r.metric == "top1_err")
    assert found["top1_cls"] == pytest.approx(100 - top1_err)
    boxes = read_arrays(run / "predictions/localization-last.npz")["true_boxes"]
    assert boxes.shape == (12, 1, 4)
    assert localized(run, "--boxes", str(cub.parent / "metadata")) == found
    same = read_arrays(run / "predictions/localization-last.npz")["true_boxes"]
    assert bool((boxes == same).all())
    assert len(list((run / "figures").glob("localization-last-*.png"))) == 2
    main(["report", str(run), "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    assert "GT-known localization accuracy" in page
    assert "MaxBoxAccV2" in page


@pytest.mark.slow
def test_imagenets_annotations_are_found(imagenet: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--data", str(imagenet), "--out", str(run), "--device", "cpu", *BRIEFLY]
    main(["train", "imagenet-resnet50-wsol-cutmix", *words])
    found = localized(run, "--boxes", str(imagenet / "Annotations/CLS-LOC"))
    assert found["top1_loc"] <= min(found["top1_cls"], found["gt_known_loc"])
    assert found["center_max_box_acc_v2"] > 0
