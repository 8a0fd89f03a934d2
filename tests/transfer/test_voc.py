"""Pascal VOC's layout against torchvision's reader, its splits, and every kind of damage."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision import datasets

from cutmix.errors import InputError
from cutmix.transfer.detection_data import VOC_CLASSES, open_voc

OBJECT = (
    "<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
    "<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
)


def write(
    folder: Path, number: str, *objects: tuple[str, tuple[Any, ...], int], size: tuple[int, int] = (60, 40)
) -> None:
    (folder / "JPEGImages").mkdir(parents=True, exist_ok=True)
    (folder / "Annotations").mkdir(exist_ok=True)
    Image.new("RGB", size).save(folder / "JPEGImages" / f"{number}.jpg")
    text = "".join(OBJECT.format(name=name, box=box, difficult=hard) for name, box, hard in objects)
    head = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    (folder / "Annotations" / f"{number}.xml").write_text(f"<annotation>{head}{text}</annotation>")


def write_list(folder: Path, name: str, *numbers: str) -> None:
    main = folder / "ImageSets" / "Main"
    main.mkdir(parents=True, exist_ok=True)
    (main / f"{name}.txt").write_text("\n".join(numbers) + "\n")


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """A VOCdevkit with two pictures of each list."""
    for year, lists in (("VOC2007", ("trainval", "test")), ("VOC2012", ("trainval",))):
        for name in lists:
            numbers = [f"{year[3:]}_{name}_{i}" for i in range(2)]
            for number in numbers:
                write(tmp_path / "VOCdevkit" / year, number, ("dog", (1, 2, 30, 40), 0), ("cat", (5, 5, 9, 9), 1))
            write_list(tmp_path / "VOCdevkit" / year, name, *numbers)
    return tmp_path


@pytest.mark.parametrize("below", ["", "VOCdevkit"])
def test_07_and_12_are_merged_and_tested_on_07(devkit: Path, below: str) -> None:
    train, test = (open_voc(devkit / below, split) for split in ("train", "test"))
    names = [picture.path.stem for picture in train.pictures]
    assert names == ["2007_trainval_0", "2007_trainval_1", "2012_trainval_0", "2012_trainval_1"]
    assert [picture.path.stem for picture in test.pictures] == ["2007_test_0", "2007_test_1"]
    assert train.classes == test.classes == VOC_CLASSES
    assert train.fingerprint() != test.fingerprint()
    assert train.fingerprint() == open_voc(devkit, "train").fingerprint()


def test_one_year_alone(devkit: Path) -> None:
    assert len(open_voc(devkit / "VOCdevkit" / "VOC2007", "train")) == 2
    twelve = devkit / "VOCdevkit" / "VOC2012"
    with pytest.raises(InputError, match=r"has no train\.txt: expected trainval\.txt and test\.txt, or"):
        open_voc(twelve, "train")  # there is nothing official to test on, and trainval is both halves
    write_list(twelve, "train", "2012_trainval_0")
    write_list(twelve, "val", "2012_trainval_1")
    assert [open_voc(twelve, split).pictures[0].path.stem[-1] for split in ("train", "test")] == ["0", "1"]


def test_boxes_are_those_of_the_file_as_edges(devkit: Path) -> None:
    data = open_voc(devkit, "test")
    picture = data.pictures[0]
    # pixels 1 to 30 of 60 across, 2 to 40 of 40 down, counted from 1: the left 30 columns, all rows but the first
    assert picture.boxes.tolist() == [[0, 1, 30, 40], [4, 4, 9, 9]]
    assert picture.labels.tolist() == [VOC_CLASSES.index("dog"), VOC_CLASSES.index("cat")]
    assert picture.difficult.tolist() == [False, True]
    assert picture.size == (60, 40)
    objects = data.objects()
    assert objects.images.tolist() == [0, 0, 1, 1]
    assert objects.boxes.tolist() == [*picture.boxes.tolist()] * 2
    assert objects.difficult.tolist() == [False, True] * 2


def test_a_folder_without_lists_is_split_by_its_seed(tmp_path: Path) -> None:
    for i in range(50):
        write(tmp_path, f"{i:03}", ("dog", (1, 1, 9, 9), 0))
    train, test = (open_voc(tmp_path, split) for split in ("train", "test"))
    names = [{picture.path.stem for picture in part.pictures} for part in (train, test)]
    assert [len(part) for part in names] == [40, 10]
    assert not names[0] & names[1]
    assert open_voc(tmp_path, "test").fingerprint() == test.fingerprint()
    assert open_voc(tmp_path, "test", seed=1).fingerprint() != test.fingerprint()
    write(tmp_path, "new", ("dog", (1, 1, 9, 9), 0))  # one more picture moves hardly any other
    assert len({picture.path.stem for picture in open_voc(tmp_path, "test").pictures} - names[1]) <= 1


def test_a_picture_without_objects_and_own_classes(tmp_path: Path) -> None:
    write(tmp_path, "a")
    write(tmp_path, "b", ("wheel", (1, 1, 60, 40), 0))
    data = [open_voc(tmp_path, split, classes=("wheel",), test_fraction=0.5) for split in ("train", "test")]
    shapes = {tuple(picture.boxes.shape) for part in data for picture in part.pictures}
    assert shapes == {(0, 4), (1, 4)}
    assert sum(len(part.objects().labels) for part in data) == 1


def test_one_pixel_outside_is_clipped(tmp_path: Path) -> None:
    for number in ("a", "b"):
        write(tmp_path, number, ("dog", (0, 0.5, 61, 40.4), 0))  # a program that counts from 0, and rounding
    assert open_voc(tmp_path, "train").pictures[0].boxes.tolist() == [[0, 0, 60, pytest.approx(40)]]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (("dgo", (1, 1, 9, 9), 0), r"object 1 of .*a\.xml is of class 'dgo', which is not known: did they mean 'dog'"),
        (("xyz", (1, 1, 9, 9), 0), r"a\.xml is of class 'xyz', which is not known: expected one of aeroplane, bicycle"),
        (("dog", (9, 1, 8, 9), 0), r"object 1 of .*a\.xml: its box \(8, 0, 8, 9\) has no area"),
        (("dog", (1, 9, 9, 3), 0), r"object 1 of .*a\.xml: its box \(0, 8, 9, 3\) has no area"),
        (("dog", (1, 1, "nan", 9), 0), r"object 1 of .*a\.xml has 'nan' as its bndbox/xmax; expected a number"),
        (("dog", (1, 1, 90, 9), 0), r"a\.xml: its box \(0, 0, 90, 9\) lies outside the picture of 60×40 pixels"),
        (("dog", (-5, 1, 9, 9), 0), r"a\.xml: its box \(-6, 0, 9, 9\) lies outside the picture"),
        (("dog", (1, 1, "x", 9), 0), r"object 1 of .*a\.xml has 'x' as its bndbox/xmax; expected a number"),
    ],
)
def test_a_damaged_object_is_named(tmp_path: Path, damage: Any, message: str) -> None:
    write(tmp_path, "a", damage)
    write_list(tmp_path, "train", "a")
    write_list(tmp_path, "val")
    with pytest.raises(InputError, match=message):
        open_voc(tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation><size>", r"a\.xml cannot be read as XML \(no element found"),
        ("", r"a\.xml cannot be read as XML"),
        ("<annotation/>", r"a\.xml has '' as its size/width; expected a number"),
        ("<a><size><width>0</width><height>9</height></size></a>", r"a\.xml gives its image a size of 0×9 pixels"),
        ("<a><size><width>nan</width><height>9</height></size></a>", r"a\.xml has 'nan' as its size/width; expected a"),
        ("<a><size><width>9</width><height>-inf</height></size></a>", r"a\.xml has '-inf' as its size/height"),
        ("<a><size><width>1e30</width><height>9</height></size></a>", r"a\.jpg is 60×40 pixels, but its annotation"),
        ("<a><size><width>60</width><height>41</height></size></a>", r"a\.jpg is 60×40 pixels, but .* says 60×41"),
    ],
)
def test_a_damaged_annotation_is_named(tmp_path: Path, content: str, message: str) -> None:
    write(tmp_path, "a")
    write_list(tmp_path, "train", "a")
    write_list(tmp_path, "val")
    (tmp_path / "Annotations" / "a.xml").write_text(content)
    with pytest.raises(InputError, match=message):
        open_voc(tmp_path, "train")


def test_what_a_list_names_has_to_be_there(devkit: Path) -> None:
    seven = devkit / "VOCdevkit" / "VOC2007"
    write_list(seven, "test", "2007_test_0", "", "000123")
    with pytest.raises(InputError, match=r"test\.txt names '000123', but .*000123\.jpg is missing"):
        open_voc(devkit, "test")
    (seven / "Annotations" / "2007_trainval_1.xml").unlink()
    with pytest.raises(InputError, match=r"2007_trainval_1\.jpg has no annotation: .*2007_trainval_1\.xml is missing"):
        open_voc(devkit, "train")


def test_a_picture_is_in_one_split_and_once(devkit: Path) -> None:
    seven = devkit / "VOCdevkit" / "VOC2007"
    write_list(seven, "test", "2007_test_0", "2007_test_1", "2007_test_0")
    assert len(open_voc(devkit, "train")) == 4
    with pytest.raises(InputError, match=r"test\.txt names the picture '2007_test_0' 2 times: expected each once"):
        open_voc(devkit, "test")
    write_list(seven, "test", "2007_test_0", "2007_trainval_1")
    for split, first, second in (("train", "trainval", "test"), ("test", "test", "trainval")):
        with pytest.raises(InputError, match=rf"{first}\.txt and .*{second}\.txt both name .*'2007_trainval_1'"):
            open_voc(devkit, split)  # type: ignore[arg-type]


def test_a_list_that_is_no_text_is_named(devkit: Path) -> None:
    file = devkit / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "test.txt"
    file.write_bytes(b"2007_test_0\n\xff\xfe\n")
    for split in ("train", "test"):
        with pytest.raises(InputError, match=r"test\.txt cannot be read as text: 'utf-8' codec"):
            open_voc(devkit, split)  # type: ignore[arg-type]


def test_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no such data: expected VOC2007 or VOC2012"):
        open_voc(tmp_path, "train")
    with pytest.raises(InputError, match="is no folder"):
        open_voc(tmp_path / "absent", "train")
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "Annotations").mkdir()
    with pytest.raises(InputError, match="has no train pictures"):
        open_voc(tmp_path, "train")
    with pytest.raises(InputError, match="test_fraction is 1"):
        open_voc(tmp_path, "train", test_fraction=1)


@pytest.mark.data
def test_real_pictures_equal_torchvisions_reader(tmp_path: Path) -> None:
    root = Path(os.environ.get("CUTMIX_DATA", "")) / "voc-100"
    if not os.environ.get("CUTMIX_DATA") or not root.is_dir():
        pytest.skip("needs $CUTMIX_DATA/voc-100")
    parts = [open_voc(root, split) for split in ("train", "test")]
    assert [len(part) for part in parts] == [80, 20]
    ours = {picture.path.stem: picture for part in parts for picture in part.pictures}
    twelve = tmp_path / "VOCdevkit" / "VOC2012"
    write_list(twelve, "trainval", *sorted(ours))
    for name in ("JPEGImages", "Annotations"):
        (twelve / name).symlink_to(root.resolve() / name)
    oracle = datasets.VOCDetection(tmp_path, year="2012", image_set="trainval")
    for stem, (image, target) in zip(sorted(ours), oracle, strict=True):
        picture, objects = ours[stem], target["annotation"]["object"]
        assert image.size == picture.size
        corners = [[int(item["bndbox"][side]) for side in ("xmin", "ymin", "xmax", "ymax")] for item in objects]
        assert torch.equal(picture.boxes, torch.tensor(corners) - torch.tensor([1.0, 1.0, 0.0, 0.0]))
        assert [VOC_CLASSES[label] for label in picture.labels] == [item["name"] for item in objects]
        assert picture.difficult.tolist() == [item["difficult"] == "1" for item in objects]
