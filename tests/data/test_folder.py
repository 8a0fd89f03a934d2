"""Folders of class folders: torchvision's ImageFolder lists the same; every fault is one clear sentence."""

import shutil
from pathlib import Path

import pytest
from PIL import Image
from torchvision import datasets

from cutmix.data.sets import FileSet, open_data
from cutmix.errors import InputError


def fill(folder: Path, count: int = 5, suffix: str = "png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        Image.new("RGB", (6, 6), (k, 0, 0)).save(folder / f"{k}.{suffix}")


def write_classes(root: Path, names: tuple[str, ...] = ("ant", "bee", "cat"), count: int = 5) -> Path:
    for name in names:
        fill(root / name, count)
    return root


def open_both(root: Path, **options) -> tuple[FileSet, FileSet]:
    return open_data(str(root), "train", **options), open_data(str(root), "test", **options)  # type: ignore


@pytest.mark.parametrize("test_folder", ["val", "valid", "test"])
def test_train_and_test_folders_equal_image_folder(tmp_path: Path, test_folder: str) -> None:
    write_classes(tmp_path / "train", count=4)
    write_classes(tmp_path / test_folder, count=2)
    for data, folder in zip(open_both(tmp_path), ("train", test_folder), strict=True):
        oracle = datasets.ImageFolder(tmp_path / folder)
        assert list(data.classes) == oracle.classes
        assert [(str(path), label) for path, label in zip(data.paths, data.labels.tolist(), strict=True)] == (
            oracle.samples
        )
    assert data.num_classes == data.in_chans == 3
    assert data.name == tmp_path.name


def test_one_folder_is_split_by_class_and_seed_alone(tmp_path: Path) -> None:
    write_classes(tmp_path / "pets", count=10)
    train, test = open_both(tmp_path / "pets", val_fraction=0.3)
    assert train.labels.bincount().tolist() == [7, 7, 7]
    assert test.labels.bincount().tolist() == [3, 3, 3]
    assert set(train.paths) | set(test.paths) == set((tmp_path / "pets").rglob("*.png"))
    assert not set(train.paths) & set(test.paths)
    assert open_both(tmp_path / "pets", val_fraction=0.3)[1].paths == test.paths
    assert open_both(tmp_path / "pets", val_fraction=0.3, seed=1)[1].paths != test.paths
    shutil.copytree(tmp_path / "pets", tmp_path / "elsewhere")
    moved = open_both(tmp_path / "elsewhere", val_fraction=0.3)[1].paths
    names = [path.relative_to(tmp_path / "elsewhere") for path in moved]
    assert names == [path.relative_to(tmp_path / "pets") for path in test.paths]


@pytest.mark.parametrize(("count", "fraction", "expected"), [(1, 0.5, 0), (2, 0.01, 1), (2, 0.99, 1), (9, 0.01, 1)])
def test_small_classes_keep_an_image_on_each_side(tmp_path: Path, count: int, fraction: float, expected: int) -> None:
    write_classes(tmp_path, names=("few", "many"), count=10)
    for path in sorted((tmp_path / "few").iterdir())[count:]:
        path.unlink()
    train, test = open_both(tmp_path, val_fraction=fraction)
    assert test.labels.bincount(minlength=2)[0] == expected
    assert train.labels.bincount(minlength=2)[0] == count - expected
    assert test.classes == train.classes == ("few", "many")


def test_extensions_hidden_files_and_nesting(tmp_path: Path) -> None:
    write_classes(tmp_path, names=("a", "b"), count=2)
    for suffix in ("JPG", "jpeg", "Bmp", "webp", "gif", "tif", "TIFF", "ppm"):
        fill(tmp_path / "a" / "deeper" / "still", 1, suffix)
        (tmp_path / "a" / "deeper" / "still" / f"0.{suffix}").rename(tmp_path / "a" / "deeper" / f"{suffix}.{suffix}")
    for hidden in (".cache", "a/.thumbnails"):
        fill(tmp_path / hidden)
    (tmp_path / "a" / "._0.png").write_bytes(b"resource fork")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "README.md").write_text("no class")
    train, test = open_both(tmp_path)
    assert train.classes == ("a", "b")
    assert len(train) + len(test) == 2 + 8 + 2


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    train, _ = open_both(write_classes(tmp_path, names=("bus", "train")))
    assert train.classes == ("bus", "train")


def test_skip_unreadable_leaves_out_and_records(tmp_path: Path) -> None:
    write_classes(tmp_path, count=10)
    before = open_both(tmp_path)
    for data in before:
        data.paths[0].write_bytes(b"broken")
    assert [data.paths for data in open_both(tmp_path)] == [data.paths for data in before]
    for data, whole in zip(open_both(tmp_path, skip_unreadable=True), before, strict=True):
        assert data.skipped == whole.paths[:1]
        assert data.paths == whole.paths[1:]
        assert data.labels.tolist() == whole.labels.tolist()[1:]


def test_skipping_may_not_empty_a_class(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "val", count=1)
    (tmp_path / "val" / "bee" / "0.png").write_bytes(b"")
    with pytest.raises(InputError, match="none of the test images of class 'bee' can be read"):
        open_data(str(tmp_path), "test", skip_unreadable=True)


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


def train_alone(root: Path) -> None:
    write_classes(root / "train")


def val_alone(root: Path) -> None:
    write_classes(root / "val")


def extra_test_class(root: Path) -> None:
    write_classes(root / "train")
    write_classes(root / "val", names=("ant", "bee", "cat", "dog"))


def lacking_test_class(root: Path) -> None:
    write_classes(root / "train")
    write_classes(root / "val", names=("ant", "bee"))


def flat_val(root: Path) -> None:
    write_classes(root / "train")
    fill(root / "val")


def empty_train_class(root: Path) -> None:
    write_classes(root / "train")
    write_classes(root / "val")
    shutil.rmtree(root / "train" / "cat")
    (root / "train" / "cat").mkdir()


@pytest.mark.parametrize(
    ("make", "split", "sentence"),
    [
        (lambda root: None, "train", r"holds no images: expected one folder a class"),
        (nothing, "train", r"holds no images \(\.jpg.*\) in its 2 folders"),
        (flat, "train", "images but no class folders"),
        (one_class, "train", "one class only \\('only'\\)"),
        (empty_class, "test", "class folder .*dog holds no images"),
        (train_alone, "train", r"has train/ but none of val/, valid/, test/"),
        (val_alone, "train", r"has val/ but no train/"),
        (extra_test_class, "train", "'dog' is in .*val but not in .*train"),
        (lacking_test_class, "test", "'cat' is in .*train but not in .*val"),
        (flat_val, "test", "val holds images but no class folders"),
        (empty_train_class, "train", "class folder .*cat holds no images"),
    ],
)
def test_faults(tmp_path: Path, make, split: str, sentence: str) -> None:
    make(tmp_path)
    with pytest.raises(InputError, match=sentence) as caught:
        open_data(str(tmp_path), split)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
