"""The description of a data set: everything that was understood or left out is counted and named."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cutmix.api import data as describe_data
from cutmix.cli import main
from cutmix.data.command import describe_splits, draw_classes
from cutmix.data.opening import open_data, open_splits
from cutmix.errors import InputError


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """Return folders of splits in which much is wrong."""
    root, random = tmp_path / "messy", np.random.default_rng(0)
    for part, counts in (("Training", {"ant": 12, "bee": 40}), ("Testing", {"ant": 4, "bee": 4})):
        for name, count in counts.items():
            (root / part / name).mkdir(parents=True)
            for k in range(count):
                pixels = random.integers(0, 256, (8 + k % 3, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{k}.png")
    ant, bee = root / "Training" / "ant", root / "Training" / "bee"
    for k in range(5):
        (ant / f"{k}.HEIC").write_bytes(b"x")
    for name in ("a.txt", "b.txt", ".DS_Store"):
        (ant / name).write_bytes(b"x")
    (ant / "link.png").symlink_to("3.png")
    (bee / "broken.jpg").write_bytes(b"no image")
    shutil.copy(bee / "1.png", bee / "copy.png")
    Image.open(root / "Testing" / "bee" / "0.png").save(bee / "leak.bmp")
    shutil.copy(bee / "2.png", ant / os.fsdecode(b"also a bee \xff.png"))
    Image.new("RGB", (4, 4)).save(root / "Training" / "stray.png")
    return root


def test_everything_is_counted_and_named(messy: Path) -> None:
    found = describe_data(str(messy), val_fraction=0)
    assert (found.classes, found.splits) == (("ant", "bee"), {"train": [13, 41], "test": [4, 4]})
    assert found.origin == {"train": "Training/", "test": "Testing/"}
    assert found.sizes == {"width": [10, 10, 10], "height": [8, 9, 10]}
    assert (found.others, found.hidden) == ({".heic": 5, ".txt": 2}, 1)
    assert found.beside == ["Training/stray.png"]
    assert found.links == ["Training/ant/link.png"]
    assert list(found.unreadable) == ["Training/bee/broken.jpg"]
    assert "cannot be read as an image" in found.unreadable["Training/bee/broken.jpg"]
    assert found.leaks == {"train": ["Training/bee/leak.bmp"]}
    assert found.conflicts == [["Training/ant/also a bee \\udcff.png", "Training/bee/2.png"]]
    assert sorted(map(len, found.copies)) == [2, 2, 2]
    assert found.warnings() == [
        "7 files are not images: 5 .heic, 2 .txt",
        "1 hidden file or folder is left out",
        "left out, beside the class folders: Training/stray.png",
        "1 link repeats a file: Training/ant/link.png",
        "1 image cannot be read: Training/bee/broken.jpg",
        "3 images are there several times (the same pixels, 3 copies); copies are never in two splits",
        "1 image of train is in a later split too and left out of train: Training/bee/leak.bmp",
        "1 image is in two classes: Training/ant/also a bee \\udcff.png = Training/bee/2.png",
        "classes are unbalanced: from 13 (ant) to 41 (bee) training images; always predicting bee is right for 76% of "
        "them",
    ]


def test_flags_that_divide_a_folder_are_refused_for_a_set_with_its_own_splits(tmp_path: Path) -> None:
    for given, flags in (
        ({"val_fraction": 0.3}, "--val-fraction"),
        ({"seed": 1, "val_fraction": 0}, "--val-fraction and no --seed"),
    ):
        with pytest.raises(InputError, match=f"digits has its own splits; expected no {flags}$"):
            describe_data("digits", **given)
    with pytest.raises(InputError, match="--channels is 4; digits has 1 already"):
        describe_data("digits", channels=4)
    assert describe_data("digits", channels=1) == describe_data("digits")


def labelled(folder: Path, labels: Sequence[str]) -> Path:
    """Write an image for each label, and a file of the labels."""
    rows, random = ["path,label"], np.random.default_rng(0)
    for number, label in enumerate(labels):
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        rows.append(f'{number}.png,"{label}"')
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder / "labels.csv"


@pytest.mark.parametrize(
    ("labels", "notes"),
    [
        (("0.5", "1.25", "-3"), ["the labels are numbers (-3, 0.5, 1.25): each is a class, without order or distance"]),
        (("1.0", "2.0", "10"), []),
        (("1.5", "2", "large"), []),
        (
            ("cat", "dog", "cat, dog", "dog, small"),
            ["1 class reads like several labels: cat, dog; a file of labels separates those of an image by |"],
        ),
    ],
)
def test_labels_that_are_no_classes_are_noted(tmp_path: Path, labels: tuple[str, ...], notes: list[str]) -> None:
    assert describe_data(str(labelled(tmp_path, labels * 2)), val_fraction=0.5).warnings() == notes


def test_folders_inside_class_folders_are_named(messy: Path) -> None:
    for part in ("Training", "Testing"):
        (messy / part / "ant").rename(messy / part / "inner")
        (messy / part / "ant").mkdir()
        (messy / part / "inner").rename(messy / part / "ant" / "inner")
    found = describe_data(str(messy), val_fraction=0)
    assert found.deeper == {"Testing/ant/inner/": 4, "Training/ant/inner/": 13}
    said = "17 images are in folders inside the class folders and taken too: Testing/ant/inner/, Training/ant/inner/"
    assert said in found.warnings()


def test_the_lines_of_opened_splits_are_those_of_the_description(messy: Path) -> None:
    lines = describe_splits(open_splits(str(messy), skip_unreadable=True)).lines()
    assert lines == describe_data(str(messy)).lines()
    assert lines[:4] == [
        "messy: 62 images of 2 classes (ant, bee)",
        "train: 54 images (Training/; 20% of it is fewer than 50 images, so none validate)",
        "test: 8 images (Testing/)",
        "pixels: 10 to 10 wide (median 10), 8 to 10 high (median 9)",
    ]


def test_copies_are_searched_by_pixels_even_where_training_compares_files(
    messy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cutmix.data.division.find_copies.__defaults__", (0,))
    assert open_splits(str(messy), skip_unreadable=True).copies.compared == "files"
    assert describe_data(str(messy)).compared == "pixels"


def test_the_command_prints_a_table_or_json(messy: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["data", str(messy), "--val-fraction", "0"])
    said = capsys.readouterr().out
    assert "Testing/" in said
    assert "7 files are not images: 5 .heic, 2 .txt" in said
    main(["data", str(messy), "--val-fraction", "0", "--json", "--out", str(tmp_path / "few.png")])
    found = json.loads(capsys.readouterr().out)
    assert found["classes"] == [{"name": "ant", "train": 13, "test": 4}, {"name": "bee", "train": 41, "test": 4}]
    assert found["splits"]["test"] == {"images": 8, "origin": "Testing/"}
    assert found["leaks"] == {"train": ["Training/bee/leak.bmp"]}
    assert len(found["warnings"]) == 9
    with Image.open(tmp_path / "few.png") as image:
        assert image.size == (804, 240)


def test_a_known_set_and_many_classes(tmp_path: Path) -> None:
    digits = describe_data("digits")
    assert (sum(digits.splits["train"]), sum(digits.splits["test"]), "val" in digits.splits) == (1000, 797, False)
    assert digits.lines()[-1] == "pixels: 8×8"
    assert digits.table(most=4).row_count == 6
    for k in range(50):
        (tmp_path / f"[{k:02}]").mkdir()
        Image.new("RGB", (k + 1, 3)).save(tmp_path / f"[{k:02}]" / "a.png")
    found = describe_data(str(tmp_path))
    assert found.table().row_count == 32
    assert "there are no images to evaluate on" in found.warnings()
    assert draw_classes(open_data("digits", "train")).size == (4 + 8 * (96 + 4), 10 * (20 + 96 + 4))
