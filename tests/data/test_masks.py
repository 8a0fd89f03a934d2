"""Masks from files written here in the benchmark's format."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cutmix.data import FileSet
from cutmix.data.boxes import read_masks
from cutmix.errors import InputError


def save(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 255).astype(np.uint8)).save(file)


def file_set(*names: str) -> FileSet:
    labels = torch.zeros(len(names), dtype=torch.int64)
    return FileSet("some", "test", ("a", "b"), labels, (0.5,) * 3, (0.5,) * 3, tuple(Path("images") / n for n in names))


def test_masks_are_joined_and_the_region_gives_way(tmp_path: Path) -> None:
    first, second, ignored = np.zeros((3, 8, 12), dtype=bool)
    first[2:4, 3:9], second[6, 0], ignored[0:3] = True, True, True
    for name, mask in (("first", first), ("second", second), ("ignored", ignored)):
        save(tmp_path / "masks" / f"{name}.png", mask)
    lines = "val/b.jpg,second.png,ignored.png\nval/a.jpg,first.png,ignored.png\nval/a.jpg,second.png,"
    (tmp_path / "localization.txt").write_text(lines)
    masks = read_masks(tmp_path, tmp_path / "masks", file_set("val/a.jpg", "val/b.jpg"), side=24)
    expected = np.where(first | second, 1, np.where(ignored, 255, 0)).repeat(3, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(masks[0], expected)
    assert sorted(np.unique(masks[1])) == [0, 1, 255]
    with pytest.raises(InputError, match=r"localization\.txt has no mask for c\.jpg"):
        read_masks(tmp_path, tmp_path / "masks", file_set("val/c.jpg"))


@pytest.mark.parametrize("shape", [(37, 50), (300, 224), (224, 224)])
def test_pixels_are_picked_as_opencv_does(tmp_path: Path, shape: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2")
    mask = np.random.default_rng(0).random(shape) < 0.5
    save(tmp_path / "mask.png", mask)
    (tmp_path / "localization.txt").write_text("a.jpg,mask.png,")
    expected = cv2.resize(mask.astype(np.uint8), (224, 224), interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(read_masks(tmp_path, tmp_path, file_set("a.jpg"))[0], expected)
