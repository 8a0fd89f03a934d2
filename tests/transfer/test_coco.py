"""COCO's layout: against pycocotools' reader, two files whose ids differ, odd names, and hostile JSON."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cutmix.errors import InputError
from cutmix.transfer.average_precision import Detections, inclusive, voc_average_precision
from cutmix.transfer.detection_layouts import open_detection

TRAIN: dict[str, Any] = {
    "images": [
        {"id": 7, "file_name": "b.jpg", "width": 60, "height": 40},
        {"id": 3, "file_name": "a.jpg", "width": 50, "height": 30},
        {"id": 9, "file_name": "c.jpg", "width": 50, "height": 30},
    ],
    "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 18, "bbox": [1.5, 2, 30, 20.25], "iscrowd": 0, "area": 600.5},
        {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 60, 40], "iscrowd": 1, "area": 2400},
        {"id": 3, "image_id": 3, "category_id": 1, "bbox": [5, 5, 10, 10]},
        {"id": 4, "image_id": 3, "category_id": 1, "bbox": [5, 5, 10, 0], "iscrowd": 0, "area": 0},
    ],
}
VAL: dict[str, Any] = {
    "images": [{"id": "x", "file_name": "d.jpg", "width": 50, "height": 30}],
    "categories": [{"id": 0, "name": "person"}, {"id": 1, "name": "dog"}],
    "annotations": [
        {"image_id": "x", "category_id": 0, "bbox": [5, 5, 10, 10]},
        {"image_id": "x", "category_id": 1, "bbox": [20, 5, 10, 10], "iscrowd": None, "area": None},
    ],
}


def write(root: Path, train: Any = TRAIN, val: Any = VAL, images: str = "{}2017") -> Path:
    (root / "annotations").mkdir(exist_ok=True)
    for part, content, intact in (("train", train, TRAIN), ("val", val, VAL)):
        folder = root / images.format(part)
        folder.mkdir(parents=True, exist_ok=True)
        for item in intact["images"]:
            color = (ord(item["file_name"][0]) * 50 % 256, 0, 0)
            Image.new("RGB", (item["width"], item["height"]), color).save(folder / item["file_name"])
        text = content if isinstance(content, str) else json.dumps(content)
        (root / "annotations" / f"instances_{part}2017.json").write_text(text)
    return root


def changed(content: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    copy = json.loads(json.dumps(content))
    change(copy)
    return copy


@pytest.mark.parametrize("images", ["{}2017", "images/{}2017", "images"])
def test_boxes_classes_crowds_and_areas(tmp_path: Path, images: str) -> None:
    data = open_detection(write(tmp_path, images=images))[0]
    assert data.classes == ("person", "dog")  # by id, which has gaps in COCO
    assert [image.path.name for image in data.images] == ["a.jpg", "b.jpg", "c.jpg"]
    a, b, c = data.images
    assert a.boxes.tolist() == [[5, 5, 15, 15]]  # the box without height is left out
    assert b.boxes.tolist() == [[1.5, 2, 31.5, 22.25], [0, 0, 60, 40]]
    assert (b.labels.tolist(), b.difficult.tolist(), b.size) == ([1, 0], [False, True], (60, 40))
    assert data.crowds
    assert c.boxes.shape == (0, 4)
    assert data.objects().images.tolist() == [0, 1, 1]
    assert data.areas().tolist() == [100, 600.5, 2400]
    assert data.notes == ("boxes of instances_train2017.json without area: 1",)


def test_equals_pycocotools(tmp_path: Path) -> None:
    module = pytest.importorskip("pycocotools.coco")
    data = open_detection(write(tmp_path))[0]
    oracle = module.COCO(tmp_path / "annotations" / "instances_train2017.json")
    for number, image in zip(sorted(oracle.imgs), data.images, strict=True):
        assert oracle.imgs[number]["file_name"] == image.path.name
        records = [item for item in oracle.imgToAnns[number] if item["bbox"][3]]
        assert [oracle.cats[item["category_id"]]["name"] for item in records] == [
            data.classes[label] for label in image.labels
        ]
        sides = image.boxes.clone()
        sides[:, 2:] -= sides[:, :2]
        assert sides.tolist() == [item["bbox"] for item in records]


def test_the_layout_is_recognized(tmp_path: Path) -> None:
    assert [len(part) for part in open_detection(write(tmp_path))] == [3, 1]
    (tmp_path / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(InputError, match=r"holds none; expected one file instances_val\*\.json"):
        open_detection(tmp_path)


# ---- two files ----


def test_categories_are_matched_by_name_whatever_their_ids_are(tmp_path: Path) -> None:
    train, test = open_detection(write(tmp_path))
    assert train.classes == test.classes == ("person", "dog")
    assert test.images[0].labels.tolist() == [0, 1]
    # a perfect detector, whose labels are those of training, scores 1
    objects = test.objects()
    labels = np.array([train.classes.index(name) for name in ("person", "dog")])
    found = Detections(objects.images, labels, np.ones(2), objects.boxes)
    assert voc_average_precision(inclusive(found), inclusive(objects), train.num_classes).mean == pytest.approx(1)


@pytest.mark.parametrize("fewer", ["person", "dog"])
def test_fewer_categories_in_the_test_file_are_noted(tmp_path: Path, fewer: str) -> None:
    def without(content: dict[str, Any]) -> None:
        number = next(item["id"] for item in content["categories"] if item["name"] == fewer)
        content["categories"] = [item for item in content["categories"] if item["name"] != fewer]
        content["annotations"] = [item for item in content["annotations"] if item["category_id"] != number]

    train, test = open_detection(write(tmp_path, val=changed(VAL, without)))
    assert test.classes == train.classes == ("person", "dog")
    assert len(test.images[0].labels) == 1
    assert train.notes[-1] == f"instances_train2017.json and instances_val2017.json differ in the categories {fewer}"


def test_a_category_of_the_test_file_only_is_refused(tmp_path: Path) -> None:
    write(tmp_path, val=changed(VAL, lambda c: c["categories"][1].update(name="dogs")))
    with pytest.raises(InputError, match=r"object 2 of d\.jpg in .*is of class 'dogs'; did you mean 'dog'\?"):
        open_detection(tmp_path)


def test_given_classes_decide_the_labels(tmp_path: Path) -> None:
    train, test = open_detection(write(tmp_path), classes=("dog", "person"))
    assert train.classes == test.classes == ("dog", "person")
    assert test.images[0].labels.tolist() == [1, 0]
    with pytest.raises(InputError, match=r"is of class 'dog'; expected one of person, cat"):
        open_detection(tmp_path, classes=("person", "cat"))


def test_an_image_in_both_splits_is_refused(tmp_path: Path) -> None:
    def same(content: dict[str, Any]) -> None:
        content["images"][0].update(file_name="a.jpg")

    write(tmp_path, val=changed(VAL, same), images="images")
    with pytest.raises(InputError, match=r"a\.jpg is in the training split and in the test split; expected each image"):
        open_detection(tmp_path)


# ---- names ----


@pytest.mark.parametrize(
    "name",
    ["train2017/b.jpg", "./b.jpg", "/home/me/coco/train2017/b.jpg", "C:\\coco\\b.jpg", "../../b.jpg", "sub/b.jpg"],
)
def test_a_file_name_with_folders_is_found(tmp_path: Path, name: str) -> None:
    write(tmp_path, changed(TRAIN, lambda c: c["images"][0].update(file_name=name)))
    if name.startswith("sub"):
        (tmp_path / "train2017/sub").mkdir()
        (tmp_path / "train2017/b.jpg").rename(tmp_path / "train2017/sub/b.jpg")
    path = open_detection(tmp_path)[0].images[1].path
    assert path.name == "b.jpg"
    assert path.is_file()
    assert path.resolve().is_relative_to(tmp_path.resolve())


def test_images_that_are_not_listed_are_counted(tmp_path: Path) -> None:
    write(tmp_path)
    for name in ("x.jpg", "y.jpg", "z.txt", "w.jpg", "v.png"):
        (tmp_path / "val2017" / name).write_text("x")
    assert open_detection(tmp_path)[1].notes == (
        f"images of {tmp_path}/val2017 that are not in the annotations: 4 (v.png, w.jpg, x.jpg and 1 more)",
        f"{tmp_path}/val2017: 1 file is not an image: 1 .txt",
    )


# ---- damage ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].update(category_id=5), r"annotations\[0\]\.category_id of .* is 5; expected t"),
        (lambda c: c["annotations"][0].update(image_id=5), r"annotations\[0\]\.image_id of .* is 5; expected the id "),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 80, 5]), r"of b\.jpg in .*box \(1, 2, 81, 7\) lies outside"),
        (lambda c: c["annotations"][0].update(bbox=[9, 2, -5, 5]), r"\[0\]\.bbox of .* is \[9\.0, .*; expected left"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2]), r"annotations\[0\] of .*: bbox is a list; expected"),
        (lambda c: c["annotations"][0].update(bbox="1 2 3 4"), r"annotations\[0\] of .*: bbox is \"1 2 3 4\"; ex"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, "3", 4]), r"annotations\[0\] of .*: bbox is a list"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 10**400, 4]), r"annotations\[0\] of .*: bbox is a list"),
        (lambda c: c["annotations"][0].update(iscrowd="no"), r"annotations\[0\] of .*: iscrowd is \"no\"; expected"),
        (lambda c: c["annotations"][1].update(id=1), r"annotations\[1\]\.id of .* is 1, as that of number 0; expec"),
        (lambda c: c["images"][1].update(id=7), r"images\[1\]\.id of .* is 7, as that of number 0; expected each once"),
        (lambda c: c["images"][1].update(file_name="b.jpg"), r"images\[1\]\.file_name of .* is \"b\.jpg\", as that of"),
        (lambda c: c["images"][1].update(file_name="./b.jpg"), r"2 images of .* are the file .*b\.jpg; expected each"),
        (lambda c: c["categories"][1].update(name="dog"), r"categories\[1\]\.name of .* is \"dog\", as that of num"),
        (lambda c: c["categories"][1].update(id=18), r"categories\[1\]\.id of .* is 18, as that of number 0"),
        (lambda c: c["categories"][1].update(name=5), r"categories\[1\] of .*: name is 5; expected a text"),
        (lambda c: c["categories"][1].update(name="\ud83d"), r"json|categories\[1\]\.name"),
        (lambda c: c["categories"][1].update(name=" "), r"categories\[1\] of .*: name is \" \"; expected a text in"),
        (lambda c: c["categories"][1].update(name="\udcff"), r"categories\[1\] of .*: name is .*; expected a text in"),
        (lambda c: c["images"][0].update(width=0.5), r"images\[0\] of .*: width is 0.5; expected a whole number of"),
        (lambda c: c["images"][0].update(width=61), r"b\.jpg is 60×40 pixels; expected 61×40 by its annotation"),
        (lambda c: c["images"][2].update(width="50"), r"images\[2\] of .*: width is \"50\"; expected a numb"),
        (lambda c: c["images"][2].pop("height"), r"images\[2\] of .*: height is 0; expected a whole num"),
        (lambda c: c["images"][0].update(file_name="d.jpg"), r"names 'd\.jpg', which is missing; expected it in .*20"),
        (lambda c: c["images"][0].update(file_name="x" * 5000), r"names 'xxx.*', which is missing"),
        (lambda c: c["images"][0].update(file_name="a\0b"), r"images\[0\] of .*: file_name is \"a.*; expected the"),
        (lambda c: c["images"].insert(0, "b.jpg"), r"images\[0\] of .* is \"b\.jpg\"; expected an object with id and"),
        (lambda c: c.update(images=[], annotations=[]), "'images' of .* is an empty list; expected one or more"),
        (lambda c: c.update(images={}), r"'images' of .* is an object; expected a list"),
        (lambda c: c.pop("categories"), r"'categories' of .* is null; expected a list"),
        (lambda c: c.update(annotations=[]), "the training images of .* have no boxes"),
    ],
)  # fmt: skip
def test_damage_is_named(tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_detection(write(tmp_path, changed(TRAIN, change)))
    assert len(str(caught.value)) < 5400


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iscrowd": 1}, "the test images of .* have no boxes that are not crowds; expected one or more"),
        (
            {"bbox": [0.1, 0.2, 0.5, 0.5]},
            "all boxes of the test images of .* are within the first pixel; expected corn",
        ),
        ({"area": -1}, r"annotations\[0\]\.area of .* is -1; expected square pixels, at least 0"),
        (None, "the test images of .* have no boxes; expected one or more"),
    ],
)
def test_a_test_split_that_gives_no_result_is_refused(
    tmp_path: Path, change: dict[str, Any] | None, message: str
) -> None:
    found = [] if change is None else [entry | change for entry in VAL["annotations"]]
    with pytest.raises(InputError, match=message):
        open_detection(write(tmp_path, TRAIN, VAL | {"annotations": found}))


def test_objects_that_are_there_twice_are_counted(tmp_path: Path) -> None:
    entries = VAL["annotations"]
    shifted = entries[0] | {"bbox": [5, 6, 10, 10]}
    _, test = open_detection(write(tmp_path, TRAIN, VAL | {"annotations": [*entries, shifted, entries[0]]}))
    assert test.notes == ("objects with class and box of another one: 1",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "train2017.json"),
        ("[]", "train2017.json is a list.*; expected"),
        ("3", "train2017.json is 3; expected"),
        ("[" * 200_000 + "]" * 200_000, "train2017.json.*nested too deeply"),
        ('{"images": NaN}', "train2017.json"),
        ('{"images": ' + "9" * 5000 + "}", "train2017.json"),
        (json.dumps(TRAIN).replace('"dog"', '"\\ud83d"'), "train2017.json"),
    ],
    ids=["cut", "list", "number", "bomb", "nan", "digits", "surrogate"],
)
def test_hostile_json_is_one_sentence(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_detection(write(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    assert len(open_detection(write(tmp_path, "\ufeff" + json.dumps(TRAIN)))[0]) == 3


def test_the_folder_of_the_images_has_to_exist(tmp_path: Path) -> None:
    write(tmp_path, images="{}2014")
    with pytest.raises(
        InputError, match=r"no images for instances_train2017\.json; expected them in train2017, images/tra"
    ):
        open_detection(tmp_path)


def test_a_detection_set_is_named_by_its_folder(tmp_path: Path) -> None:
    train, _ = open_detection(write(tmp_path))
    assert train.name == tmp_path.name
    assert replace(train, notes=()).fingerprint() == train.fingerprint()
