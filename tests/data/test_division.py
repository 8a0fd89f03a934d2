"""Splits of a folder: stratified, seeded, independent of the order of the files; no image is in two of them."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cutmix.api import data as describe_data
from cutmix.data import division
from cutmix.data.division import MIN_SPLIT, find_copies
from cutmix.data.folder import read_class_folders
from cutmix.data.opening import open_data, open_splits
from cutmix.data.sets import FileSet, Splits
from cutmix.errors import InputError


def sample_image(seed: object, size: tuple[int, int] = (6, 5)) -> Image.Image:
    random = np.random.default_rng(list(hashlib.sha256(repr(seed).encode()).digest()))
    return Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8))


def write(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            sample_image((str(root / name), k)).save(root / name / f"{k}.png")
    return root


def names(data: object, root: Path) -> set[str]:
    assert isinstance(data, FileSet)
    return {path.relative_to(root).as_posix() for path in data.paths}


def sizes(splits: Splits) -> list[int]:
    return [len(part) if part else 0 for part in (splits.train, splits.val, splits.test)]


def counts(data: object) -> list[int]:
    assert isinstance(data, FileSet)
    return data.labels.bincount(minlength=data.num_classes).tolist()


# ---- shares ----


def test_a_small_folder_gets_a_validation_split_stratified_by_class(tmp_path: Path) -> None:
    root = write(tmp_path / "pets", {"ant": 10, "bee": 20, "cat": 3})
    splits = open_splits(str(root), val_fraction=0.3)
    assert (counts(splits.train), counts(splits.val), splits.test) == ([7, 14, 2], [3, 6, 1], None)
    assert names(splits.train, root) | names(splits.val, root) == {
        path.relative_to(root).as_posix() for path in root.rglob("*.png")
    }
    assert not names(splits.train, root) & names(splits.val, root)
    assert splits.origin == {"train": "the images that are not held out", "val": "30% of each class"}
    for split, data in (("train", splits.train), ("val", splits.val)):
        assert open_data(str(root), split, val_fraction=0.3).fingerprint() == data.fingerprint()  # type: ignore
    with pytest.raises(InputError, match="pets has no test split; it has train, val"):
        open_data(str(root), "test")


def test_a_larger_folder_gets_a_test_split_from_the_images_held_out(tmp_path: Path) -> None:
    root = write(tmp_path, {"ant": 250, "bee": 250})
    splits = open_splits(str(root))
    assert [counts(part) for part in (splits.train, splits.val, splits.test)] == [[200] * 2, [25] * 2, [25] * 2]
    parts = [names(part, root) for part in (splits.train, splits.val, splits.test)]
    assert len(set.union(*parts)) == 500
    assert MIN_SPLIT == 50
    shutil.rmtree(root / "bee")
    write(root, {"bee": 240})
    assert sizes(open_splits(str(root))) == [392, 98, 0]
    assert splits.origin["test"] == "the other half of 20% of each class"


def test_the_seed_decides_and_neither_place_nor_order_nor_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(tmp_path / "pets", {"ant": 20, "bee": 20})
    val = names(open_splits(str(root)).val, root)
    assert names(open_splits(str(root), seed=1).val, root) != val
    shutil.copytree(root, tmp_path / "elsewhere")
    assert names(open_splits(str(tmp_path / "elsewhere")).val, tmp_path / "elsewhere") == val
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: list(scandir(path))[::-1])
    assert names(open_splits(str(root)).val, root) == val
    monkeypatch.undo()
    sample_image("another").save(root / "ant" / "another.png")
    assert len(val - names(open_splits(str(root)).val, root)) <= 1


@pytest.mark.parametrize(("count", "fraction", "expected"), [(1, 0.5, 0), (2, 0.01, 1), (2, 0.99, 1), (9, 0.01, 1)])
def test_small_classes_keep_an_image_on_each_side(tmp_path: Path, count: int, fraction: float, expected: int) -> None:
    splits = open_splits(str(write(tmp_path, {"few": count, "many": 10})), val_fraction=fraction)
    assert (counts(splits.val)[0], counts(splits.train)[0]) == (expected, count - expected)
    assert splits.train.classes == ("few", "many")


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_that_is_none_is_refused(tmp_path: Path, fraction: float) -> None:
    for opened in (
        lambda: open_splits("digits", val_fraction=fraction),
        lambda: open_data("digits", "train", val_fraction=fraction),
    ):
        with pytest.raises(InputError, match=r"val_fraction is .*; expected a share of at least 0 and below 1"):
            opened()


def test_without_a_validation_split_every_image_trains(tmp_path: Path) -> None:
    root = write(tmp_path, {"ant": 10, "bee": 10})
    splits = open_splits(str(root), val_fraction=0)
    assert (sizes(splits), splits.origin) == ([20, 0, 0], {"train": "all images"})
    with pytest.raises(InputError, match=r"has no val split; it has train \(val_fraction is 0\)"):
        open_data(str(root), "val", val_fraction=0)
    assert sizes(open_splits("digits")) == [1000, 0, 797]


def test_there_may_be_nothing_to_hold_out(tmp_path: Path) -> None:
    splits = open_splits(str(write(tmp_path, {"ant": 1, "bee": 1})))
    assert (sizes(splits), list(splits.origin)) == ([2, 0, 0], ["train"])


# ---- folders of splits ----


def test_train_val_and_test_folders_are_the_splits(tmp_path: Path) -> None:
    for part, count in (("train", 5), ("val", 3), ("test", 2)):
        write(tmp_path / part, {"ant": count, "bee": count})
    for fraction in (0.0, 0.2):
        assert sizes(open_splits(str(tmp_path), val_fraction=fraction)) == [10, 6, 4]
    assert len(open_data(str(tmp_path), "all")) == 4


def test_without_val_a_share_of_train_is_held_out_and_test_is_untouched(tmp_path: Path) -> None:
    for part, count in (("train", 125), ("test", 2)):
        write(tmp_path / part, {"ant": count, "bee": count})
    splits = open_splits(str(tmp_path))
    assert sizes(splits) == [200, 50, 4]
    assert splits.origin == {
        "train": "the images that are not held out of train/", "val": "20% of each class of train/", "test": "test/"
    }  # fmt: skip
    assert sizes(open_splits(str(tmp_path), val_fraction=0)) == [250, 0, 4]


def test_too_few_images_to_choose_by_all_train_beside_a_test_split(tmp_path: Path) -> None:
    for part, count in (("train", 124), ("test", 2)):
        write(tmp_path / part, {"ant": count, "bee": count})
    splits = open_splits(str(tmp_path), val_fraction=0.197)
    assert sizes(splits) == [248, 0, 4]
    assert splits.origin["train"] == "train/; 20% of it is fewer than 50 images, so none validate"
    assert (splits.chooses, splits.reported) == (None, splits.test)


def test_the_test_images_of_a_known_set_choose_too_and_val_wherever_it_is(tmp_path: Path) -> None:
    digits = open_splits("digits")
    assert digits.chooses is digits.reported is digits.test
    held_out = open_splits(str(write(tmp_path, {"ant": 10, "bee": 10})))
    assert held_out.chooses is held_out.reported is held_out.val
    write(tmp_path, {"ant": 250, "bee": 250})
    divided = open_splits(str(tmp_path))
    assert (divided.chooses, divided.reported) == (divided.val, divided.test)


@pytest.mark.parametrize(("count", "expected"), [(10, [10, 20, 0]), (50, [10, 50, 50])])
def test_without_test_a_large_val_is_halved_and_train_is_untouched(
    tmp_path: Path, count: int, expected: list[int]
) -> None:
    for part, number in (("train", 5), ("val", count)):
        write(tmp_path / part, {"ant": number, "bee": number})
    splits = open_splits(str(tmp_path))
    assert sizes(splits) == expected
    assert len(open_data(str(tmp_path), "all")) == 2 * count
    whole = open_splits(str(tmp_path), val_fraction=0)
    assert (sizes(whole), whole.origin["test"]) == ([10, 0, 2 * count], "val/")


def test_train_alone_is_divided(tmp_path: Path) -> None:
    write(tmp_path / "train", {"ant": 10, "bee": 10})
    assert sizes(open_splits(str(tmp_path))) == [16, 4, 0]
    assert len(open_data(str(tmp_path), "all")) == 20


# ---- copies ----


def test_the_same_pixels_are_never_on_both_sides(tmp_path: Path) -> None:
    root = write(tmp_path, {"ant": 40, "bee": 40})
    for k in range(0, 40, 2):
        image = Image.open(root / "ant" / f"{k}.png")
        shutil.copy(root / "ant" / f"{k}.png", root / "ant" / f"copy {k}.png")  # the same file
        image.save(root / "ant" / f"other {k}.bmp")  # the same pixels
        image.save(root / "ant" / f"loud {k}.webp", lossless=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0")
    splits = open_splits(str(root))
    group = {path: path.stem.split()[-1] for path in root.glob("ant/*")}
    held = {group[path] for path in splits.val.paths if path.parent.name == "ant"}  # type: ignore[union-attr]
    trained = {group[path] for path in splits.train.paths if path.parent.name == "ant"}  # type: ignore[union-attr]
    assert held
    assert not held & trained
    assert (len(splits.copies.groups), splits.copies.compared) == (20, "pixels")
    assert {len(own) for own in splits.copies.groups} == {4}
    assert 18 <= counts(splits.val)[0] <= 23  # a fifth of 100, and what belongs to it
    assert not splits.copies.conflicts


def test_equal_files_are_found_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path, {"ant": 20, "bee": 20})
    shutil.copy(root / "ant" / "3.png", root / "ant" / "4 again.png")
    monkeypatch.setattr(division, "digest_pixels", lambda path: pytest.fail(f"{path} was decoded"))
    found = find_copies(read_class_folders(root), most_bytes=0)
    assert found.compared == "files"
    assert [[file.path.name for file in group] for group in found.groups] == [["3.png", "4 again.png"]]


def test_an_image_in_two_classes_is_on_one_side_and_reported(tmp_path: Path) -> None:
    root = write(tmp_path, {"ant": 40, "bee": 40})
    for k in range(10):
        shutil.copy(root / "ant" / f"{k}.png", root / "bee" / f"ant {k}.png")
    splits = open_splits(str(root))
    assert len(splits.copies.conflicts) == 10
    for k in range(10):
        assert ("ant" + f"/{k}.png" in names(splits.val, root)) == (f"bee/ant {k}.png" in names(splits.val, root))
    assert counts(splits.val) == [8, 10]


def test_a_nearly_equal_image_in_two_classes_is_reported(tmp_path: Path) -> None:
    """One of half the size in another class; equal copies are named as such, and those of one class are no conflict."""
    root = write(tmp_path, {"ant": 20, "bee": 20})
    for k, (kept, smaller) in enumerate([("ant/a.png", "bee/small a.png"), ("ant/b.png", "ant/small b.png")]):
        image = Image.fromarray(np.linspace(0, 60 * (k + 2), 64 * 64).reshape(64, 64).astype(np.uint8))
        image.save(root / kept)
        image.resize((32, 32)).save(root / smaller)
    shutil.copy(root / "ant" / "2.png", root / "bee" / "equal.png")
    found = describe_data(str(root))
    assert found.near_conflicts == [["ant/a.png", "bee/small a.png"]]
    assert "1 image is nearly the same in two classes: ant/a.png = bee/small a.png" in found.warnings()


def test_an_image_in_two_folders_of_splits_is_left_out_of_the_earlier(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        write(tmp_path / part, {"ant": 5, "bee": 5})
    shutil.copy(tmp_path / "test" / "ant" / "0.png", tmp_path / "val" / "ant" / "leak.png")
    Image.open(tmp_path / "test" / "ant" / "1.png").save(tmp_path / "train" / "bee" / "leak.bmp")
    (tmp_path / "train" / "ant" / "link.png").symlink_to(tmp_path / "val" / "ant" / "2.png")
    splits = open_splits(str(tmp_path))
    assert sizes(splits) == [10, 10, 10]
    left_out = {part: [file.path.name for file in files] for part, files in splits.leaks.items()}
    assert left_out == {"val": ["leak.png"], "train": ["link.png", "leak.bmp"]}


def test_a_class_may_not_leak_away(tmp_path: Path) -> None:
    write(tmp_path / "train", {"ant": 5, "bee": 5})
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    with pytest.raises(InputError, match=r"every image of class 'ant' in .*train is in another split too"):
        open_splits(str(tmp_path))


# ---- unreadable files ----


def test_unreadable_files_are_refused_or_left_out_and_recorded(tmp_path: Path) -> None:
    root = write(tmp_path, {"ant": 10, "bee": 10})
    before = open_splits(str(root))
    assert isinstance(before.train, FileSet)
    assert isinstance(before.val, FileSet)
    for path in (*before.train.paths[:2], before.val.paths[0]):
        path.write_bytes(b"broken")
    for split, more in (("train", r" \(2 train images cannot be read\)$"), ("val", "")):
        with pytest.raises(InputError, match=r"png cannot be read as an image .* --skip-unreadable .*" + more):
            open_data(str(root), split)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cannot be read as an image"):
        open_splits(str(root))
    after = open_splits(str(root), skip_unreadable=True)
    for whole, data, count in ((before.train, after.train, 2), (before.val, after.val, 1)):
        assert isinstance(data, FileSet)
        assert (data.skipped, data.paths) == (whole.paths[:count], whole.paths[count:])
        assert data.labels.tolist() == whole.labels.tolist()[count:]
    for data in (open_data(str(root), "all", skip_unreadable=True),):
        assert (len(data), len(data.skipped)) == (17, 3)


def test_unreadable_files_are_found_where_pixels_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(tmp_path, {"ant": 10, "bee": 10})
    (root / "ant" / "3.png").write_bytes(b"broken")
    monkeypatch.setattr(division, "MOST_BYTES", 0)
    monkeypatch.setattr(find_copies, "__defaults__", (0,))
    splits = open_splits(str(root), skip_unreadable=True)
    assert splits.copies.compared == "files"
    assert sum(len(part.skipped) for part in (splits.train, splits.val) if part) == 1


def test_skipping_may_empty_a_class_of_the_images_held_out_alone(tmp_path: Path) -> None:
    write(tmp_path / "train", {"ant": 5, "bee": 5})
    write(tmp_path / "val", {"ant": 1, "bee": 1})
    (tmp_path / "val" / "bee" / "0.png").write_bytes(b"")
    splits = open_splits(str(tmp_path), skip_unreadable=True)
    assert splits.val is not None
    assert (splits.val.counts().tolist(), len(splits.val.skipped)) == ([1, 0], 1)
    (tmp_path / "val" / "ant" / "0.png").write_bytes(b"")
    with pytest.raises(InputError, match="none of the val images can be read"):
        open_data(str(tmp_path), "val", skip_unreadable=True)
    for number in range(5):
        (tmp_path / "train" / "bee" / f"{number}.png").write_bytes(b"")
    with pytest.raises(InputError, match="none of the train images of class 'bee' can be read"):
        open_data(str(tmp_path), "train", skip_unreadable=True)


def test_a_class_that_is_whole_in_one_fold_is_refused_with_every_fold(tmp_path: Path) -> None:
    """Copies are in one fold: of the pairs of four images in two folds, two are together and four are not."""
    refused = []
    for pair in ((i, j) for j in range(4) for i in range(j)):
        root = write(tmp_path / "-".join(map(str, pair)), {"ant": 4})
        (root / "bee").mkdir()
        for k in pair:
            shutil.copy(root / "ant" / f"{k}.png", root / "bee" / f"{k}.png")
        said = set()
        for fold in (1, 2):
            try:
                open_splits(str(root), fold=(fold, 2))
            except InputError as error:
                said.add(str(error))
            else:
                said.add("")
        assert len(said) == 1, "whichever fold is asked for"
        refused += [pair] * any("every image of the class 'bee' is in fold" in each for each in said)
    assert len(refused) == 2
    assert not {*refused[0]} & {*refused[1]}
