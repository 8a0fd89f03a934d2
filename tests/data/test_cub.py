"""CUB-200-2011 from files written here in its official layout."""

from pathlib import Path

import pytest

from cutmix.data import FileSet, open_splits
from cutmix.data.formats import find_cub, read_cub, read_rows
from cutmix.errors import InputError

TABLES = {
    "images": "1 001.Black_footed_Albatross/a_1.jpg\n2 001.Black_footed_Albatross/a_2.jpg\n3 002.Ani/b_1.jpg\n",
    "classes": "1 001.Black_footed_Albatross\n2 002.Ani\n",
    "image_class_labels": "1 1\n2 1\n3 2\n",
    "train_test_split": "1 0\n2 1\n3 0\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "CUB_200_2011"
    folder.mkdir()
    for name, text in TABLES.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_the_splits(folder: Path) -> None:
    paths, labels, classes = read_cub(folder, "test")
    images = folder / "images"
    assert paths == [images / "001.Black_footed_Albatross" / "a_1.jpg", images / "002.Ani" / "b_1.jpg"]
    assert (labels, classes) == ([0, 1], ("Black footed Albatross", "Ani"))
    paths, labels, _ = read_cub(folder, "train")
    assert (paths, labels) == ([images / "001.Black_footed_Albatross" / "a_2.jpg"], [0])


def test_it_is_found_by_its_folder_or_its_parent(folder: Path) -> None:
    assert find_cub(folder) == find_cub(folder.parent) == folder
    assert find_cub(folder.parent / "elsewhere") is None


def test_images_are_decoded_to_the_channels(folder: Path) -> None:
    splits = open_splits(str(folder), channels=1)
    assert isinstance(splits.train, FileSet)
    assert isinstance(splits.test, FileSet)
    assert (splits.train.in_chans, splits.test.in_chans, len(splits.train.mean)) == (1, 1, 1)


def test_what_is_incomplete_is_refused(folder: Path) -> None:
    (folder / "train_test_split.txt").write_text("1 0\n2 0\n")
    with pytest.raises(InputError, match=r"image 3 \(002\.Ani/b_1\.jpg\) has no class or is in no split"):
        read_cub(folder, "test")
    (folder / "train_test_split.txt").write_text("1 0\n2 0\n3 0\n")
    with pytest.raises(InputError, match="has no train images"):
        read_cub(folder, "train")
    (folder / "classes.txt").unlink()
    with pytest.raises(InputError, match=r"classes\.txt is missing"):
        read_cub(folder, "test")


def test_a_line_with_other_columns_is_named(tmp_path: Path) -> None:
    (tmp_path / "table.txt").write_text("a,1\nb\n")
    with pytest.raises(InputError, match=r"table\.txt, line 2: 1 columns; expected 2"):
        list(read_rows(tmp_path / "table.txt", ",", 2))
