"""Names and paths: what is found, and what is said when nothing is."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision import datasets

from cutmix.data.opening import open_data, open_splits
from cutmix.data.sets import ArraySet, FileSet, keep_per_class, random_subset, take
from cutmix.errors import InputError


def write_imagenet(folder: Path) -> Path:
    for number, split in enumerate(("train", "val")):
        for wnid in ("n01", "n02"):
            (folder / split / wnid).mkdir(parents=True)
            Image.new("RGB", (6, 6), (number * 200, int(wnid[1:]) * 50, 0)).save(folder / split / wnid / "a.JPEG")
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUTMIX_DATA", raising=False)


def test_name_is_looked_up_in_the_variable_then_in_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_imagenet(tmp_path / "data" / "imagenet")
    here = open_data("imagenet", "train")
    assert here.paths[0].resolve() == tmp_path / "data" / "imagenet" / "train" / "n01" / "a.JPEG"  # type: ignore
    write_imagenet(tmp_path / "other" / "imagenet")
    monkeypatch.setenv("CUTMIX_DATA", str(tmp_path / "other"))
    assert open_data("imagenet", "train").paths[0].is_relative_to(tmp_path / "other")  # type: ignore


def test_imagenet_is_recognized_by_its_thousand_class_folders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for number in range(1000):
            folder = tmp_path / "ilsvrc" / split / f"n{number:08}"
            folder.mkdir(parents=True)
            (folder / "a.JPEG").write_bytes(b"x")
    splits = open_splits(str(tmp_path / "ilsvrc"))
    assert (splits.train.name, splits.val, splits.copies.compared) == ("imagenet", None, "nothing")
    assert splits.origin == {"train": "train/", "test": "val/"}
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (1000, 1000)


def test_a_path_that_exists_wins_over_a_name(tmp_path: Path) -> None:
    write_imagenet(tmp_path / "digits")
    assert open_data("digits", "train").classes == ("n01", "n02")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("cifar100", "did you mean 'cifar-100'"),
        ("CIFAR-10", "did you mean 'cifar-10'"),
        ("fashion_mnist", "did you mean 'fashion-mnist'"),
        ("/no/such/folder", "expected a folder or one of digits, cifar-10"),
    ],
)
def test_unknown_name(given: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        open_data(given, "train")


def test_absent_set_says_where_it_looked_and_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError, match=r"cifar-100 was not found in data \(\$CUTMIX_DATA is not set\).*cutmix train --download"
    ):
        open_data("cifar-100", "train")
    monkeypatch.setenv("CUTMIX_DATA", str(tmp_path / "there"))
    with pytest.raises(InputError, match=r"not found in .*there and data: prepare its train/ and val/"):
        open_data("imagenet", "train", download=True)


def test_some_of_a_set_are_taken_in_their_order(tmp_path: Path) -> None:
    digits, index = open_data("digits", "test"), torch.tensor([5, 2])
    some = take(digits, index)
    assert isinstance(digits, ArraySet)
    assert isinstance(some, ArraySet)
    assert torch.equal(some.images, digits.images[index])
    assert torch.equal(some.labels, digits.labels[index])
    paths = tuple(tmp_path / str(i) for i in range(3))
    files = FileSet("f", "test", ("a", "b", "c"), torch.arange(3), (0.5,) * 3, (0.5,) * 3, paths)
    taken = take(files, torch.tensor([2, 0]))
    assert isinstance(taken, FileSet)
    assert (taken.paths, taken.labels.tolist()) == ((paths[2], paths[0]), [2, 0])


def test_download_failure_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(datasets, "CIFAR100", offline)
    with pytest.raises(InputError, match="cifar-100 could not be downloaded into data: no route to host"):
        open_data("cifar-100", "train", download=True)


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"set\.zip is a file; expected a folder"):
        open_data(str(tmp_path / "set.zip"), "train")


def test_two_known_sets_in_one_folder(tmp_path: Path) -> None:
    (tmp_path / "both" / "cifar-10-batches-py").mkdir(parents=True)
    (tmp_path / "both" / "cifar-100-python").mkdir()
    with pytest.raises(InputError, match="holds cifar-10 and cifar-100"):
        open_data(str(tmp_path / "both"), "train")


def test_wrong_arguments() -> None:
    with pytest.raises(InputError, match="split is 'dev'; expected 'train', 'val', 'test' or 'all'"):
        open_data("digits", "dev")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="digits has no val split; expected 'train' or 'test'"):
        open_data("digits", "val")


def test_a_random_subset_is_sorted_and_part_of_a_larger_one() -> None:
    few, many = random_subset(100, 10, 3).tolist(), random_subset(100, 40, 3).tolist()
    assert (len(few), few) == (10, sorted(set(few)))
    assert set(few) < set(many)
    assert random_subset(5, 10, 0).tolist() == [0, 1, 2, 3, 4]
    assert few != random_subset(100, 10, 4).tolist()


@pytest.mark.parametrize("labels", [[0, 2], [-1, 0]])
def test_labels_out_of_range(labels: list[int]) -> None:
    with pytest.raises(InputError, match="expected 0 to 1 for its 2 classes"):
        ArraySet(
            "mine",
            "train",
            ("a", "b"),
            torch.tensor(labels),
            (0.5,),
            (0.5,),
            torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
        )


def test_subsets_hold_so_many_of_each_class_and_are_nested():
    data = open_data("digits", "train")
    small, large = keep_per_class(data, 7), keep_per_class(data, 30)
    assert small.labels.bincount().tolist() == [7] * 10
    assert large.labels.bincount().tolist() == [30] * 10
    of_large = {image.numpy().tobytes() for image in large.images}
    assert all(image.numpy().tobytes() in of_large for image in small.images)
    with pytest.raises(InputError, match="expected at least 5000"):
        keep_per_class(data, 5000)
