"""Pascal VOC's layout: against torchvision's reader, its splits and classes, odd names, and damage."""

import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision import datasets

from cutmix.errors import InputError
from cutmix.transfer.detection_data import DetectionSet
from cutmix.transfer.detection_layouts import VOC_CLASSES, open_detection

OBJECT = (
    "<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
    "<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
)
DOG = ("dog", (1, 1, 9, 9), 0)


def write(
    folder: Path, name: str, *objects: tuple[str, tuple[Any, ...], Any], size: tuple[int, int] = (60, 40)
) -> None:
    image, annotation = folder / "JPEGImages" / f"{name}.jpg", folder / "Annotations" / f"{name}.xml"
    for file in (image, annotation):
        file.parent.mkdir(parents=True, exist_ok=True)
    color = zlib.crc32(os.fsencode(name)).to_bytes(4)[:3]
    Image.new("RGB", size, tuple(color)).save(image)
    text = "".join(OBJECT.format(name=kind, box=box, difficult=difficult) for kind, box, difficult in objects)
    head = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    annotation.write_text(f"<annotation>{head}{text}</annotation>", encoding="utf-8")


def write_list(folder: Path, name: str, *lines: str) -> None:
    main = folder / "ImageSets" / "Main"
    main.mkdir(parents=True, exist_ok=True)
    (main / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def stems(data: DetectionSet) -> list[str]:
    return [image.path.stem for image in data.images]


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """A VOCdevkit with two images in each list."""
    for year, lists in (("VOC2007", ("trainval", "test")), ("VOC2012", ("trainval",))):
        for name in lists:
            numbers = [f"{year[3:]}_{name}_{i}" for i in range(2)]
            for number in numbers:
                write(tmp_path / "VOCdevkit" / year, number, ("dog", (1, 2, 30, 40), 0), ("cat", (5, 5, 9, 9), 1))
            write_list(tmp_path / "VOCdevkit" / year, name, *numbers)
    return tmp_path


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A folder with one training image, a, and one test image, b."""
    write(tmp_path, "a", DOG)
    write(tmp_path, "b", DOG)
    write_list(tmp_path, "train", "a")
    write_list(tmp_path, "val", "b")
    return tmp_path


@pytest.mark.parametrize("below", ["", "VOCdevkit"])
def test_both_years_are_trained_on_and_2007_is_tested(devkit: Path, below: str) -> None:
    train, test = open_detection(devkit / below)
    assert stems(train) == ["2007_trainval_0", "2007_trainval_1", "2012_trainval_0", "2012_trainval_1"]
    assert stems(test) == ["2007_test_0", "2007_test_1"]
    assert train.classes == test.classes == VOC_CLASSES
    assert train.fingerprint() != test.fingerprint()
    assert train.fingerprint() == open_detection(devkit)[0].fingerprint()
    assert train.notes == test.notes == ()


def test_one_year_alone(devkit: Path) -> None:
    assert len(open_detection(devkit / "VOCdevkit" / "VOC2007")[0]) == 2
    twelve = devkit / "VOCdevkit" / "VOC2012"
    with pytest.raises(InputError, match=r"has no train\.txt; expected trainval\.txt and test\.txt, or"):
        open_detection(twelve)  # there is no official test list, and trainval holds both halves
    write_list(twelve, "train", "2012_trainval_0")
    write_list(twelve, "val", "2012_trainval_1")
    assert [stems(part)[0][-1] for part in open_detection(twelve)] == ["0", "1"]


def test_boxes_are_those_of_the_file_as_edges(devkit: Path) -> None:
    data = open_detection(devkit)[1]
    image = data.images[0]
    # pixels 1 to 30 of 60 across, 2 to 40 of 40 down, counted from 1: the left 30 columns, all rows but the first
    assert image.boxes.tolist() == [[0, 1, 30, 40], [4, 4, 9, 9]]
    assert image.labels.tolist() == [VOC_CLASSES.index("dog"), VOC_CLASSES.index("cat")]
    assert image.difficult.tolist() == [False, True]
    assert image.size == (60, 40)
    assert data.areas().tolist() == [30 * 39, 25] * 2
    objects = data.objects()
    assert objects.images.tolist() == [0, 0, 1, 1]
    assert objects.boxes.tolist() == [*image.boxes.tolist()] * 2
    assert objects.difficult.tolist() == [False, True] * 2


def test_a_folder_without_lists_is_split_by_its_seed(tmp_path: Path) -> None:
    for i in range(50):
        write(tmp_path, f"{i:03}", DOG)
    parts = open_detection(tmp_path)
    train, test = (set(stems(part)) for part in parts)
    assert (len(train), len(test), len(train & test)) == (40, 10, 0)
    assert open_detection(tmp_path)[1].fingerprint() == parts[1].fingerprint()
    assert open_detection(tmp_path, seed=1)[1].fingerprint() != parts[1].fingerprint()
    write(tmp_path, "new", DOG)  # one more image moves hardly any other
    assert len({*stems(open_detection(tmp_path)[1])} - test) <= 1


def test_one_pixel_outside_is_clipped(pair: Path) -> None:
    write(pair, "a", ("dog", (0, 0.5, 61, 40.4), 0))  # a program that counts from 0, and rounding
    assert open_detection(pair)[0].images[0].boxes.tolist() == [[0, 0, 60, pytest.approx(40)]]


@pytest.mark.parametrize("mark", ["False", "no", "0.0", "Unspecified", ""])
def test_marks_that_mean_no_are_not_difficult(pair: Path, mark: str) -> None:
    write(pair, "a", ("dog", (1, 1, 9, 9), mark), ("dog", (1, 1, 9, 9), "1"))
    assert open_detection(pair)[0].images[0].difficult.tolist() == [False, True]


# ---- classes ----


def test_own_classes_are_taken_from_the_annotations(pair: Path) -> None:
    for name in ("a", "b"):
        write(pair, name, ("wheel", (1, 1, 60, 40), 0), ("dog", (1, 1, 9, 9), 0), ("axle", (1, 1, 60, 40), 0))
    train, test = open_detection(pair)
    assert train.classes == test.classes == ("axle", "dog", "wheel")
    assert test.images[0].labels.tolist() == [2, 1, 0]
    assert train.notes == ("classes taken from the annotations: 3 (axle, dog, wheel)",)


def test_classes_can_be_given(pair: Path) -> None:
    write(pair, "a", ("wheel", (1, 1, 60, 40), 0), ("Wheel", (1, 1, 60, 40), 0), ("dog", (1, 1, 9, 9), 0))
    given = ("wheel", "dog", "Wheel", "never seen")
    train, test = open_detection(pair, classes=given)
    assert train.classes == given
    assert [image.labels.tolist() for part in (train, test) for image in part.images] == [[0, 2, 1], [1]]
    with pytest.raises(InputError, match="the class 'wheel' is given twice; expected each once"):
        open_detection(pair, classes=("wheel", "wheel"))
    with pytest.raises(InputError, match=r"object 2 of .*a\.xml is of class 'Wheel'; did you mean 'wheel'\?"):
        open_detection(pair, classes=("wheel", "dog"))


@pytest.mark.parametrize(("odd", "like"), [("dgo", "dog"), ("Dog", "dog"), ("dogs", "dog"), ("d o-g", "dog")])
def test_a_class_that_seems_misspelled_is_refused(pair: Path, odd: str, like: str) -> None:
    write(pair, "a", DOG, (odd, (1, 1, 9, 9), 0))
    with pytest.raises(
        InputError, match=rf"a\.xml has an object of class '{odd}', and .* one of class '{like}'; expec"
    ):
        open_detection(pair)


def test_own_classes_that_differ_in_case_only_are_refused(pair: Path) -> None:
    for name, kind in (("a", "stop_sign"), ("b", "Stop sign")):
        write(pair, name, (kind, (1, 1, 9, 9), 0))
    with pytest.raises(InputError, match=r"of class 'stop_sign', and .*b\.xml one of class 'Stop sign'; expected one"):
        open_detection(pair)


def test_a_class_of_the_test_split_only_is_refused_or_noted(pair: Path) -> None:
    write(pair, "b", ("wheel", (1, 1, 9, 9), 0))
    with pytest.raises(
        InputError, match=r"no training image has an object of class 'wheel', which .*b\.xml in the test"
    ):
        open_detection(pair)
    expected = "classes of test images without a training image: wheel"
    assert open_detection(pair, classes=("dog", "wheel"))[0].notes == (expected,)
    write(pair, "b", ("cat", (1, 1, 9, 9), 0))
    assert open_detection(pair)[0].notes == ("classes of test images without a training image: cat",)


def test_training_images_without_any_box_are_refused(pair: Path) -> None:
    write(pair, "a")
    with pytest.raises(InputError, match=r"the training images of .* have no boxes; expected one or more"):
        open_detection(pair)
    write(pair, "c", DOG)
    write_list(pair, "train", "a", "c")
    assert [tuple(image.boxes.shape) for image in open_detection(pair)[0].images] == [(0, 4), (1, 4)]


# ---- names ----


@pytest.mark.parametrize(
    "line",
    [
        "my dog 1", "my dog 1.jpg", "my dog 1.JPG", "my dog 1.xml", "JPEGImages/my dog 1.jpg", "C:\\voc\\my dog 1.jpg",
        "/home/x/JPEGImages/my dog 1.jpg", "./my dog 1", "  my dog 1\t", "my dog 1  -1", "my dog 1 1",
    ],
)  # fmt: skip
def test_lists_with_spaces_suffixes_folders_and_flags(pair: Path, line: str) -> None:
    write(pair, "my dog 1", DOG)
    write_list(pair, "train", line)
    assert stems(open_detection(pair)[0]) == ["my dog 1"]


def test_lists_of_pairs_and_images_in_folders(pair: Path) -> None:
    write(pair, "cam1/0001", DOG)
    write(pair, "cam2/0001", DOG)
    write_list(pair, "train", "cam2/0001", "JPEGImages/cam1/0001.jpg Annotations/cam1/0001.xml")
    train = open_detection(pair)[0]
    assert [image.path.relative_to(pair).as_posix() for image in train.images] == [
        "JPEGImages/cam2/0001.jpg", "JPEGImages/cam1/0001.jpg",
    ]  # fmt: skip


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    names = [os.fsdecode(b"caf\xe9"), "b\u2028c", "d\x85"]
    try:
        for name in names:
            write(tmp_path, name, DOG)
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    main = tmp_path / "ImageSets" / "Main"
    main.mkdir(parents=True)
    (main / "train.txt").write_bytes(b"caf\xe9.jpg\n" + f"{names[1]}\n".encode())
    (main / "val.txt").write_bytes(names[2].encode())
    train, test = open_detection(tmp_path)
    assert (stems(train), stems(test)) == (names[:2], names[2:])
    assert len(train.fingerprint()) == 32


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    for i in range(6):
        write(tmp_path, f"{i}", DOG)
    for name in ("x.heic", "y.heic", "z.txt", "README", ".hidden"):
        (tmp_path / "JPEGImages" / name).write_text("x")
    for name in ("gone.xml", "lost.xml"):
        (tmp_path / "Annotations" / name).write_text("x")
    assert open_detection(tmp_path)[0].notes == (
        f"{tmp_path}/JPEGImages: 4 files are not images: 2 .heic, 1 .txt, 1 README",
        f"annotations of {tmp_path}/Annotations without an image: 2 (gone.xml, lost.xml)",
    )
    write_list(tmp_path, "train", "0")
    write_list(tmp_path, "val", "1")
    assert open_detection(tmp_path)[0].notes[1:] == (
        f"images of {tmp_path}/JPEGImages in no list: 4 (2.jpg, 3.jpg, 4.jpg and 1 more)",
    )


def test_copies_of_an_image_are_in_one_split(tmp_path: Path) -> None:
    for i in range(10):
        write(tmp_path, f"{i}", DOG)
    for name in ("a", "b", "c"):
        write(tmp_path, name, DOG)
        shutil.copy(tmp_path / "JPEGImages" / "3.jpg", tmp_path / "JPEGImages" / f"{name}.jpg")
    for seed in range(6):
        train, test = (set(stems(part)) for part in open_detection(tmp_path, seed=seed))
        assert {"3", "a", "b", "c"} <= train or {"3", "a", "b", "c"} <= test
    assert open_detection(tmp_path)[0].notes == ("copies of other images, in the same split: 3 (a.jpg, b.jpg, c.jpg)",)


def test_listed_copies_across_the_splits_are_counted(pair: Path) -> None:
    shutil.copy(pair / "JPEGImages" / "a.jpg", pair / "JPEGImages" / "b.jpg")
    assert open_detection(pair)[0].notes == ("test images that are copies of training images: 1 (b.jpg)",)


def test_images_of_every_suffix_are_found(tmp_path: Path) -> None:
    for name, suffix in (("a", ".webp"), ("b", ".BMP")):
        write(tmp_path, name, DOG)
        with Image.open(tmp_path / "JPEGImages" / f"{name}.jpg") as image:
            image.save(tmp_path / "JPEGImages" / f"{name}{suffix}")
        (tmp_path / "JPEGImages" / f"{name}.jpg").unlink()
    assert sorted(stems(part)[0] for part in open_detection(tmp_path)) == ["a", "b"]


def test_two_images_of_one_annotation_are_refused(pair: Path) -> None:
    Image.new("RGB", (60, 40)).save(pair / "JPEGImages" / "a.png")
    with pytest.raises(InputError, match=r"a\.jpg and .*a\.png belong to the same annotation; expected one image"):
        open_detection(pair)


# ---- damage ----


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (("", (1, 1, 9, 9), 0), r"object 1 of .*a\.xml has no class; expected a name"),
        (("dog", (9, 1, 8, 9), 0), r"object 1 of .*a\.xml: its box \(8, 0, 8, 9\) has no area"),
        (("dog", (1, 9, 9, 3), 0), r"object 1 of .*a\.xml: its box \(0, 8, 9, 3\) has no area"),
        (("dog", (1, 1, "nan", 9), 0), r"object 1 of .*a\.xml has 'nan' as its bndbox/xmax; expected a number"),
        (("dog", (1, 1, 90, 9), 0), r"a\.xml: its box \(0, 0, 90, 9\) lies outside the image of 60×40 pixels"),
        (("dog", (-5, 1, 9, 9), 0), r"a\.xml: its box \(-6, 0, 9, 9\) lies outside the image"),
        (("dog", (1, 1, "x", 9), 0), r"object 1 of .*a\.xml has 'x' as its bndbox/xmax; expected a number"),
    ],
)
def test_a_damaged_object_is_named(pair: Path, damage: Any, message: str) -> None:
    write(pair, "a", damage)
    with pytest.raises(InputError, match=message):
        open_detection(pair)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation><size>", r"a\.xml cannot be read as XML \(no element found"),
        ("", r"a\.xml cannot be read as XML"),
        ("<annotation/>", r"a\.xml has '' as its size/width; expected a number"),
        ("<a><size><width>0</width><height>9</height></size></a>", r"a\.xml gives its image a size of 0×9 pixels"),
        ("<a><size><width>nan</width><height>9</height></size></a>", r"a\.xml has 'nan' as its size/width; expected a"),
        ("<a><size><width>1e30</width><height>9</height></size></a>", r"a\.jpg is 60×40 pixels; expected 100000"),
        ("<a><size><width>60</width><height>41</height></size></a>", r"a\.jpg is 60×40 pixels; expected 60×41 by its"),
    ],
)
def test_a_damaged_annotation_is_named(pair: Path, content: str, message: str) -> None:
    (pair / "Annotations" / "a.xml").write_text(content)
    with pytest.raises(InputError, match=message):
        open_detection(pair)


def test_images_of_a_list_have_to_exist(devkit: Path) -> None:
    seven = devkit / "VOCdevkit" / "VOC2007"
    write_list(seven, "test", "2007_test_0", "", "000123")
    with pytest.raises(
        InputError, match=r"line 3 of .*test\.txt is '000123'; expected the name of an image in .*Images"
    ):
        open_detection(devkit)
    write_list(seven, "test", "2007_test_0")
    (seven / "Annotations" / "2007_trainval_1.xml").unlink()
    with pytest.raises(InputError, match=r"2007_trainval_1\.jpg has no annotation; expected .*2007_trainval_1\.xml"):
        open_detection(devkit)


def test_an_image_is_in_one_split_and_once(devkit: Path) -> None:
    seven = devkit / "VOCdevkit" / "VOC2007"
    write_list(seven, "test", "2007_test_0", "2007_test_1", "2007_test_0.jpg")
    with pytest.raises(InputError, match=r"lines 1 and 3 of .*test\.txt both name '2007_test_0'; expected each once"):
        open_detection(devkit)
    write_list(seven, "test", "2007_test_0", "JPEGImages/2007_trainval_1.jpg")
    with pytest.raises(InputError, match=r"trainval\.txt and .*test\.txt both name '2007_trainval_1'"):
        open_detection(devkit)


def test_a_file_in_both_splits_under_two_names_is_refused(pair: Path) -> None:
    (pair / "JPEGImages" / "b.jpg").unlink()
    (pair / "JPEGImages" / "b.jpg").symlink_to(pair / "JPEGImages" / "a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg is in the training split and in the test split; expected each image"):
        open_detection(pair)


def test_a_list_without_names_is_refused(pair: Path) -> None:
    write_list(pair, "val", "", " ")
    with pytest.raises(InputError, match=r"val\.txt names no image; expected one on each line"):
        open_detection(pair)


def test_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"holds no detection data; expected annotations/instances_\*\.json, VOC2007 or"
    ):
        open_detection(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        open_detection(tmp_path / "absent")
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "Annotations").mkdir()
    with pytest.raises(InputError, match="has no train images; expected one or more in each split"):
        open_detection(tmp_path)
    with pytest.raises(InputError, match="test_fraction is 1; expected a number between 0 and 1"):
        open_detection(tmp_path, test_fraction=1)


@pytest.mark.data
def test_real_images_equal_torchvisions_reader(tmp_path: Path) -> None:
    root = Path(os.environ.get("CUTMIX_DATA", "")) / "voc-100"
    if not os.environ.get("CUTMIX_DATA") or not root.is_dir():
        pytest.skip("needs $CUTMIX_DATA/voc-100")
    parts = open_detection(root)
    assert [len(part) for part in parts] == [80, 20]
    ours = {image.path.stem: image for part in parts for image in part.images}
    twelve = tmp_path / "VOCdevkit" / "VOC2012"
    write_list(twelve, "trainval", *sorted(ours))
    for name in ("JPEGImages", "Annotations"):
        (twelve / name).symlink_to(root.resolve() / name)
    oracle = datasets.VOCDetection(tmp_path, year="2012", image_set="trainval")
    for stem, (decoded, target) in zip(sorted(ours), oracle, strict=True):
        image, objects = ours[stem], target["annotation"]["object"]
        assert decoded.size == image.size
        corners = [[int(item["bndbox"][side]) for side in ("xmin", "ymin", "xmax", "ymax")] for item in objects]
        assert torch.equal(image.boxes, torch.tensor(corners) - torch.tensor([1.0, 1.0, 0.0, 0.0]))
        assert [VOC_CLASSES[label] for label in image.labels] == [item["name"] for item in objects]
        assert image.difficult.tolist() == [item["difficult"] == "1" for item in objects]
