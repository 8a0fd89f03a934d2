"""Folders of class folders: torchvision's ImageFolder lists the same; every other layout is one clear sentence."""

import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

import cutmix
from cutmix.data.folder import find_parts, printable_name, read_class_folders
from cutmix.data.opening import open_data, open_splits, refuse_inside
from cutmix.data.sets import FileSet
from cutmix.errors import InputError


def fill(folder: Path, count: int = 5, suffix: str = "png") -> None:
    """Write images, each another one."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(list(os.fsencode(folder)))
    for k in range(count):
        Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(folder / f"{k}.{suffix}")


def write_classes(root: Path, names: tuple[str, ...] = ("ant", "bee", "cat"), count: int = 5) -> Path:
    for name in names:
        fill(root / name, count)
    return root


def samples(data: FileSet) -> list[tuple[str, int]]:
    return [(str(path), label) for path, label in zip(data.paths, data.labels.tolist(), strict=True)]


NAMES = [
    ("train", "val", "test"), ("Training", "Validation", "Testing"), ("TRAIN", "Valid", "TEST"),
    ("train_set", "val_set", "test_set"), ("training-set", "dev", "test images"), ("Train Data", "eval", "TestData"),
]  # fmt: skip


@pytest.mark.parametrize("names", NAMES)
def test_folders_of_splits_are_recognized_by_their_usual_names(tmp_path: Path, names: tuple[str, str, str]) -> None:
    for name, count in zip(names, (4, 3, 2), strict=True):
        write_classes(tmp_path / name, count=count)
    splits = open_splits(str(tmp_path))
    for data, name in zip((splits.train, splits.val, splits.test), names, strict=True):
        assert isinstance(data, FileSet)
        oracle = datasets.ImageFolder(tmp_path / name)
        assert list(data.classes) == oracle.classes
        assert samples(data) == oracle.samples
        assert data.name == tmp_path.name
        assert splits.origin[data.split] == f"{name}/"


def test_classes_are_sorted_as_torchvision_sorts_them(tmp_path: Path) -> None:
    write_classes(tmp_path, ("0", "10", "2", "A", "a", "é", "z"), count=2)
    (tmp_path / "README.md").write_text("no class")
    data = open_data(str(tmp_path), "all")
    assert list(data.classes) == datasets.ImageFolder(tmp_path).classes
    assert samples(data) == datasets.ImageFolder(tmp_path).samples  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["train", "Test", "val", "dev"])
def test_a_class_may_be_called_like_a_split(tmp_path: Path, name: str) -> None:
    write_classes(tmp_path, names=("bus", name))
    assert find_parts(tmp_path) == {}
    assert set(read_class_folders(tmp_path).classes) == {"bus", name}


def test_what_lies_beside_is_counted(tmp_path: Path) -> None:
    write_classes(tmp_path / "Train")
    write_classes(tmp_path / "Test")
    fill(tmp_path / "unlabelled")
    fill(tmp_path / "Train", 1)
    (tmp_path / "Train" / "ant" / "a.heic").write_bytes(b"x")
    (tmp_path / "Train" / "bee" / "deep").mkdir()
    (tmp_path / "Train" / "bee" / "deep" / "Thumbs.db").write_bytes(b"x")
    found = read_class_folders(tmp_path)
    assert found.beside == [tmp_path / "unlabelled", tmp_path / "Train" / "0.png"]
    assert sorted(path.name for listing in found.listings for path in listing.others) == ["Thumbs.db", "a.heic"]


def test_names_that_are_not_utf_8_become_printable(tmp_path: Path) -> None:
    write_classes(tmp_path / os.fsdecode(b"photos\xff"), (os.fsdecode(b"caf\xe9"), "cafe\u0301", "line\nbreak"))
    data = open_data(str(tmp_path / os.fsdecode(b"photos\xff")), "all")
    assert data.classes == ("café", "caf\\xe9", "line\\nbreak")
    assert data.name == "photos\\xff"
    assert all(name.isprintable() for name in data.classes)
    assert len(data.fingerprint()) == 32
    assert printable_name("日本語") == "日本語"


def test_splits_whose_names_are_composed_in_other_ways_number_the_classes_alike(tmp_path: Path) -> None:
    """As folders from Linux and from a Mac: é comes behind f if it is one character, and before it if it is two."""
    for split, form in (("train", "NFC"), ("test", "NFD")):
        write_classes(tmp_path / split, tuple(unicodedata.normalize(form, name) for name in ("école", "fa")))
    splits = open_splits(str(tmp_path))
    for data in (splits.train, splits.test):
        assert isinstance(data, FileSet)
        named = [unicodedata.normalize("NFC", path.parent.name) for path in data.paths]
        assert [data.classes[label] for label in data.labels] == named


def nothing(root: Path) -> None:
    root.joinpath("a").mkdir()
    root.joinpath("b").mkdir()


def flat(root: Path) -> None:
    fill(root)


def one_class(root: Path) -> None:
    fill(root / "only")


def empty_class(root: Path) -> None:
    write_classes(root)
    (root / "dog").mkdir()


def class_of_other_files(root: Path) -> None:
    write_classes(root)
    (root / "dog").mkdir()
    for k in range(3):
        (root / "dog" / f"{k}.heic").write_bytes(b"x")


def splits_beside_others(root: Path) -> None:
    """A repository: the data set, and a folder of charts."""
    write_classes(root / "dataset" / "training_set")
    write_classes(root / "dataset" / "test_set")
    fill(root / "charts" / "resnet")


def flat_with_labels(root: Path) -> None:
    fill(root / "train")
    fill(root / "test")
    (root / "labels.csv").write_text("id,breed")


def val_alone(root: Path) -> None:
    write_classes(root / "Val")


def twice(root: Path) -> None:
    write_classes(root / "train")
    write_classes(root / "Training")


def beside_train(root: Path) -> None:
    write_classes(root / "train")
    write_classes(root, ("bus", "car"))


def extra_test_class(root: Path) -> None:
    write_classes(root / "train")
    write_classes(root / "val", names=("ant", "bee", "cat", "dog"))


def lacking_test_class(root: Path) -> None:
    write_classes(root / "train")
    write_classes(root / "val", names=("ant", "bee"))


def flat_test(root: Path) -> None:
    write_classes(root / "train")
    fill(root / "test")


def flat_test_beside_others(root: Path) -> None:
    flat_test(root)
    (root / "docs").mkdir()


def empty_train_class(root: Path) -> None:
    write_classes(root / "train")
    write_classes(root / "val")
    shutil.rmtree(root / "train" / "cat")
    (root / "train" / "cat").mkdir()


def too_deep(root: Path) -> None:
    write_classes(root / "archive" / "data")
    (root / "__MACOSX").mkdir()


def train_too_deep(root: Path) -> None:
    write_classes(root / "train" / "images")
    write_classes(root / "val" / "images")


def splits_in_classes(root: Path) -> None:
    for name in ("cat", "dog"):
        write_classes(root / name, ("train", "test"))


def unknown_splits(root: Path) -> None:
    for name in ("Lernen", "Prüfen"):
        write_classes(root / name)


def nested_splits(root: Path) -> None:
    for name in ("seg_train", "seg_test"):  # as Intel's scenes on Kaggle lie
        write_classes(root / name / name)
    fill(root / "seg_pred" / "seg_pred")


def nested_folders(root: Path) -> None:
    for name in ("Lernen", "Prüfen"):
        write_classes(root / name / name)


def same_reading(root: Path) -> None:
    write_classes(root, ("cafe\u0301", "caf\u00e9"))


def linked_twice(root: Path) -> None:
    write_classes(root)
    (root / "bee" / "own.png").symlink_to(root / "ant" / "1.png")


def linked_class(root: Path) -> None:
    write_classes(root)
    (root / "dog").symlink_to("cat")


def linked_parent(root: Path) -> None:
    write_classes(root)
    (root / "bee" / "all").symlink_to("..")


@pytest.mark.parametrize("split", [False, True])
def test_a_run_may_not_become_a_class(tmp_path: Path, split: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "photos"
    for folder in (root / "train", root / "val") if split else (root,):
        fill(folder / "cat")
        fill(folder / "dog")
    monkeypatch.chdir(root)
    for out, refused in (("runs/a", not split), (root / "runs", not split), ("train/runs", True), (".runs/a", False)):
        if not refused:  # beside the splits, or hidden
            refuse_inside(Path(out), ".")
            continue
        with pytest.raises(InputError, match=f"{out} is inside .*, and would be a class of it"):
            refuse_inside(Path(out), ".")
    for out in ("../runs/a", tmp_path / "photos-2"):
        refuse_inside(Path(out), str(root))
    few = {"model": "resnet20", "pretrained": False, "device": "cpu", "val_fraction": 0.4}
    for command, more in ((cutmix.train, {} if split else {"folds": 2}), (cutmix.compare, {}), (cutmix.train, {})):
        with pytest.raises(InputError, match="would be a class"):
            command(root, **few, **more, out=root / "train/runs")
    assert not list(root.rglob("runs"))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda root: None, r"holds no images; expected one folder a class"),
        (nothing, r"holds no images in its 2 folders$"),
        (flat, "images but no class folders; expected one folder a class with its images inside$"),
        (one_class, "one class only \\('only'\\)"),
        (empty_class, "class folder .*dog holds no images; fill or remove"),
        (class_of_other_files, r"class folder .*dog holds no images, only 3 \.heic; fill or remove"),
        (val_alone, r"has Val/ but no train/; give both, or one folder of class folders such as .*Val"),
        (twice, r"has Training/ and train/, which both stand for the train split"),
        (beside_train, r"has train/ beside bus, car, which hold images too; expected class folders only, or"),
        (extra_test_class, "'dog' is in .*val but not in .*train"),
        (lacking_test_class, "'cat' is in .*train but not in .*val"),
        (
            flat_test,
            "test holds images but no class folders; .*; if its images have no labels, move the folder elsewhere",
        ),
        (flat_test_beside_others, "test holds images but no class folders"),
        (empty_train_class, "class folder .*cat holds no images"),
        (too_deep, r"holds one folder only; the class folders are in .*archive/data: give that path"),
        (train_too_deep, r"train holds one folder only; the class folders are in .*images: move them into .*train"),
        (splits_in_classes, r"cat, dog in .* all hold the same folders, test, train: if they are splits, name them"),
        (
            splits_beside_others,
            r"dataset beside charts holds the splits test_set, training_set: give .*dataset",
        ),
        (
            flat_with_labels,
            r"holds images but no class folders; .*a file of labels, such as .*labels\.csv$",
        ),
        (unknown_splits, r"Lernen, Prüfen in .* all hold the same folders, ant, bee, cat: if they are splits"),
        (nested_splits, r"seg_test, seg_train in .* read like splits and hold folders, no images: move those folders"),
        (nested_folders, r"Lernen, Prüfen in .* all hold the same folders, ant, bee, cat: if they are splits"),
        (same_reading, "has two folders whose names both read 'café'"),
        (linked_twice, r"ant/1\.png and .*bee/own\.png are links to one file, in two classes; remove one"),
        (linked_class, r"cat/0\.png and .*dog/0\.png are links to one file, in two classes"),
        (linked_parent, r"bee/all is a link to .*, a folder around it; remove the link"),
    ],
)
@pytest.mark.parametrize("split", ["train", "all"])
def test_another_layout_is_one_sentence(tmp_path: Path, make, split: str, sentence: str) -> None:
    make(tmp_path)
    with pytest.raises(InputError, match=sentence) as caught:
        open_data(str(tmp_path), split)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_class_with_one_folder_of_its_own_is_no_mistake(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        fill(tmp_path / name / "images")
    assert read_class_folders(tmp_path).classes == ("ant", "bee")


def test_classes_that_end_in_the_same_word_may_hold_folders(tmp_path: Path) -> None:
    for name, inside in (("bullet_train", ("jp", "fr")), ("steam_train", ("de", "us"))):
        write_classes(tmp_path / name, inside)
    assert read_class_folders(tmp_path).classes == ("bullet_train", "steam_train")
