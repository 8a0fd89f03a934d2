"""COCO's layout against pycocotools' reader, and every kind of damage."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cutmix.errors import InputError
from cutmix.transfer.detection_data import open_coco, open_detection

CONTENT: dict[str, Any] = {
    "images": [
        {"id": 7, "file_name": "b.jpg", "width": 60, "height": 40},
        {"id": 3, "file_name": "a.jpg", "width": 50, "height": 30},
        {"id": 9, "file_name": "c.jpg", "width": 50, "height": 30},
    ],
    "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 18, "bbox": [1.5, 2, 30, 20.25], "iscrowd": 0, "area": 600},
        {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 60, 40], "iscrowd": 1, "area": 2400},
        {"id": 3, "image_id": 3, "category_id": 1, "bbox": [5, 5, 10, 10], "iscrowd": 0, "area": 100},
        {"id": 4, "image_id": 3, "category_id": 1, "bbox": [5, 5, 10, 0], "iscrowd": 0, "area": 0},
    ],
}


def write(root: Path, content: dict[str, Any] | str = CONTENT, pictures: str = "train2017") -> Path:
    (root / "annotations").mkdir(exist_ok=True)
    (root / pictures).mkdir(parents=True, exist_ok=True)
    for item in CONTENT["images"]:
        Image.new("RGB", (item["width"], item["height"])).save(root / pictures / item["file_name"])
    text = content if isinstance(content, str) else json.dumps(content)
    (root / "annotations" / "instances_train2017.json").write_text(text)
    return root


@pytest.mark.parametrize("pictures", ["train2017", "images/train2017"])
def test_boxes_classes_and_crowds(tmp_path: Path, pictures: str) -> None:
    data = open_coco(write(tmp_path, pictures=pictures), "train")
    assert data.classes == ("person", "dog")  # by id, which has gaps in COCO
    assert [picture.path.name for picture in data.pictures] == ["a.jpg", "b.jpg", "c.jpg"]
    a, b, c = data.pictures
    assert a.boxes.tolist() == [[5, 5, 15, 15]]  # the one of no height is left out
    assert b.boxes.tolist() == [[1.5, 2, 31.5, 22.25], [0, 0, 60, 40]]
    assert (b.labels.tolist(), b.difficult.tolist(), b.size) == ([1, 0], [False, True], (60, 40))
    assert data.crowds
    assert c.boxes.shape == (0, 4)
    assert data.objects().images.tolist() == [0, 1, 1]


def test_equals_pycocotools(tmp_path: Path) -> None:
    module = pytest.importorskip("pycocotools.coco")
    data = open_coco(write(tmp_path), "train")
    oracle = module.COCO(tmp_path / "annotations" / "instances_train2017.json")
    for number, picture in zip(sorted(oracle.imgs), data.pictures, strict=True):
        assert oracle.imgs[number]["file_name"] == picture.path.name
        records = [item for item in oracle.imgToAnns[number] if item["area"]]
        assert [oracle.cats[item["category_id"]]["name"] for item in records] == [
            data.classes[label] for label in picture.labels
        ]
        sides = picture.boxes.clone()
        sides[:, 2:] -= sides[:, :2]
        assert sides.tolist() == [item["bbox"] for item in records]


def test_the_layout_is_recognised(tmp_path: Path) -> None:
    assert len(open_detection(write(tmp_path), "train")) == 3
    with pytest.raises(InputError, match=r"holds none: expected one file instances_val\*\.json"):
        open_detection(tmp_path, "test")
    with pytest.raises(InputError, match="expected VOC2007 or VOC2012 in it"):
        open_detection(tmp_path / "train2017", "train")


def changed(part: str, index: int, **fields: Any) -> dict[str, Any]:
    content = json.loads(json.dumps(CONTENT))
    content[part][index] |= fields
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"instances_train2017\.json cannot be read as COCO's annotations \(Expecting property name"),
        ("[]", r"cannot be read as COCO's annotations \(list indices must be integers"),
        ("{}", r"cannot be read as COCO's annotations \(no 'categories'\)"),
        (changed("annotations", 0, category_id=5), r"annotation 1 is of category 5, which is not listed"),
        (changed("annotations", 0, image_id=5), r"has boxes for picture 5, which it does not list"),
        (changed("annotations", 0, bbox=[1, 2, 80, 5]), r"of b\.jpg in .*its box \(1, 2, 81, 7\) lies outside"),
        (changed("annotations", 0, bbox=[9, 2, -5, 5]), r"of b\.jpg in .*its box \(9, 2, 4, 7\) has no area"),
        (changed("annotations", 0, bbox=[1, 2]), r"cannot be read as COCO's annotations \(not enough values"),
        (changed("images", 0, width=61), r"b\.jpg is 60×40 pixels, but its annotation says 61×40"),
        (changed("images", 2, width=math.nan), r"c\.jpg is 50×30 pixels, but its annotation says nan×30"),
        (changed("images", 0, file_name="d.jpg"), r"instances_train2017\.json names 'd\.jpg', but .*d\.jpg is missing"),
        (CONTENT | {"images": [], "annotations": []}, "lists no pictures"),
    ],
)
def test_damage_is_named(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_coco(write(tmp_path, content), "train")


def test_pictures_have_to_be_there(tmp_path: Path) -> None:
    write(tmp_path, pictures="train2014")
    with pytest.raises(InputError, match=r"has no folder train2017 \(nor images/train2017\)"):
        open_coco(tmp_path, "train")
