"""The record of a picture with boxes, and that files are what their annotations say."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from cutmix.errors import InputError
from cutmix.transfer.detection_data import DetectionSet, Picture, check_files, make_picture


def picture(path: Path, size: tuple[int, int] = (60, 40), difficult: bool = False) -> Picture:
    return make_picture(path, size, [(1, 2, 30, 20)], [1], [difficult], "here")


def test_objects_are_numbered_by_picture_and_the_fingerprint_sees_each_part(tmp_path: Path) -> None:
    some = picture(tmp_path / "a.png"), picture(tmp_path / "b.png", difficult=True)
    data = DetectionSet("x", "train", ("cat", "dog"), some)
    objects = data.objects()
    assert (objects.images.tolist(), objects.labels.tolist()) == ([0, 1], [1, 1])
    assert objects.difficult.tolist() == [False, True]
    first, second = some
    changes = {"difficult": first.difficult, "boxes": second.boxes + 1, "labels": second.labels - 1}
    others = [(second, first), (first,), *((first, second._replace(**{k: v})) for k, v in changes.items())]
    prints = {replace(data, pictures=pictures).fingerprint() for pictures in (some, *others)}
    assert len(prints) == 6


def test_sizes_are_those_of_the_upright_pictures(tmp_path: Path) -> None:
    turned = Image.new("RGB", (40, 60)).getexif()
    turned[0x0112] = 6  # to be turned by 90°
    Image.new("RGB", (40, 60)).save(tmp_path / "a.jpg", exif=turned)
    Image.new("RGB", (60, 40)).save(tmp_path / "b.png")
    both = [picture(tmp_path / name) for name in ("a.jpg", "b.png")]
    check_files(both)
    with pytest.raises(InputError, match=r"b\.png is 60×40 pixels, but its annotation says 40×60"):
        check_files([both[0], picture(tmp_path / "b.png", (40, 60))])


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"a\.jpg cannot be read as an image .*: repair or remove it$"):
        check_files([picture(tmp_path / "a.jpg")])
