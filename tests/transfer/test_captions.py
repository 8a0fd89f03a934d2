"""The layouts of COCO captions and Flickr8k, made here as their authors have them, and everything wrong with them."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cutmix.errors import InputError
from cutmix.transfer.caption_data import CaptionSet, open_captions

NAMES = [f"{i}_ab.jpg" for i in range(10)]


def pictures(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for i, name in enumerate(names):
        Image.new("RGB", (8 + i, 9), (20 * i, 0, 0)).save(folder / name)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    for part, numbers in (("train2014", (3, 7)), ("val2014", (5,))):
        names = [f"COCO_{part}_{number:012}.jpg" for number in numbers]
        pictures(tmp_path / part, names)
        content = {
            "info": {},
            "images": [{"id": i, "file_name": name, "width": 8} for i, name in zip(numbers, names, strict=True)],
            "annotations": [
                {"id": 10 * i + k, "image_id": i, "caption": f"Picture {i}, text {k}.\n"}
                for k in range(2)
                for i in numbers
            ],
        }
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"captions_{part}.json").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def flickr(tmp_path: Path) -> Path:
    """The official archives: the folder's name is misspelt there, and one picture with captions is missing."""
    pictures(tmp_path / "Flicker8k_Dataset", NAMES)
    text = tmp_path / "Flickr8k_text"
    text.mkdir()
    lines = [f'{name}#{k}\tA dog, "{i}" , text {k} .' for i, name in enumerate(NAMES) for k in range(5)]
    lines += ["2258277193_586949ec62.jpg.1#0\tPeople waiting"]
    (text / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    for part, names in (("train", NAMES[:6]), ("dev", NAMES[6:8]), ("test", NAMES[8:])):
        (text / f"Flickr_8k.{part}Images.txt").write_text("\r\n".join(names) + "\r\n")
    return tmp_path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    pictures(tmp_path / "Images", NAMES)
    with open(tmp_path / "captions.txt", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        rows.writerows([name, f'A dog, "{i}", text {k} .'] for i, name in enumerate(NAMES) for k in range(5))
    return tmp_path


def test_coco(coco: Path) -> None:
    train, test = open_captions(coco, "train"), open_captions(str(coco), "test")
    assert [path.name for path in train.paths] == ["COCO_train2014_000000000003.jpg", "COCO_train2014_000000000007.jpg"]
    assert train.captions == tuple((f"Picture {i}, text 0.\n", f"Picture {i}, text 1.\n") for i in (3, 7))
    assert all(path.is_file() for path in (*train.paths, *test.paths))
    assert test.references == {"COCO_val2014_000000000005.jpg": ("Picture 5, text 0.\n", "Picture 5, text 1.\n")}
    assert (train.name, train.split, len(train), test.split) == (coco.name, "train", 2, "test")


@pytest.mark.parametrize("place", ["images/train2014", "images"])
def test_coco_with_its_pictures_elsewhere_and_captions_in_the_folder(coco: Path, place: str) -> None:
    wanted = open_captions(coco, "train").captions
    (coco / place).parent.mkdir(exist_ok=True)
    (coco / "train2014").rename(coco / place)
    (coco / "annotations" / "captions_train2014.json").rename(coco / "captions_train2014.json")
    train = open_captions(coco, "train")
    assert train.captions == wanted
    assert all(path.is_file() for path in train.paths)


def test_flickr8k_as_its_authors_pack_it(flickr: Path) -> None:
    train, test = open_captions(flickr, "train"), open_captions(flickr, "test")
    assert [path.name for path in train.paths] == NAMES[:6]
    assert [path.name for path in test.paths] == NAMES[8:]
    assert test.captions[1] == tuple(f'A dog, "9" , text {k} .' for k in range(5))
    assert all(path.is_file() for path in (*train.paths, *test.paths))


def test_flickr8k_as_a_table_is_split_by_hash(table: Path) -> None:
    def split(seed: int, fraction: float = 0.2) -> tuple[CaptionSet, CaptionSet]:
        return tuple(open_captions(table, part, seed=seed, val_fraction=fraction) for part in ("train", "test"))  # type: ignore

    train, test = split(0)
    assert (len(train), len(test)) == (8, 2)
    assert sorted(path.name for path in (*train.paths, *test.paths)) == NAMES
    assert test.captions[0] == tuple(f'A dog, "{test.paths[0].name[0]}", text {k} .' for k in range(5))
    assert len({tuple(split(seed)[1].paths) for seed in range(8)}) > 4
    assert split(0)[1].paths == test.paths
    assert set(split(0, 0.5)[1].paths) > set(test.paths)


def test_a_fingerprint_depends_on_pictures_and_captions(table: Path) -> None:
    train = open_captions(table, "train")
    assert (
        train.fingerprint() == open_captions(table, "train").fingerprint() != open_captions(table, "test").fingerprint()
    )
    text = (table / "captions.txt").read_text()
    (table / "captions.txt").write_text(text.replace("A dog", "A cat"))
    assert open_captions(table, "train").fingerprint() != train.fingerprint()


def change_coco(path: Path, change: Any) -> None:
    file = path / "annotations" / "captions_train2014.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["annotations"].append({"image_id": 99, "caption": "x"}),
            "a caption for the picture 99, which its",
        ),
        (lambda c: c["images"].append({"id": 4, "file_name": "no.jpg"}), "names the picture 'no.jpg', which is not in"),
        (lambda c: c["annotations"][1].update(caption=" .\n"), "has an empty caption for the picture 'COCO_train2014"),
        (lambda c: c.update(annotations=[]), "has no caption for the picture 'COCO_train2014_000000000003.jpg'"),
        (lambda c: c.pop("images"), r"not in the layout of COCO captions \(KeyError: 'images'\)"),
        (lambda c: c["images"][0].pop("file_name"), "not in the layout of COCO captions"),
        (lambda c: c.update(images=[], annotations=[]), "leaves no train pictures"),
    ],
)
def test_wrong_coco_files_are_named(coco: Path, change: Any, message: str) -> None:
    change_coco(coco, change)
    with pytest.raises(InputError, match=rf"captions_train2014\.json .*{message}"):
        open_captions(coco, "train")


def test_other_wrong_coco_layouts(coco: Path) -> None:
    file = coco / "annotations" / "captions_train2014.json"
    (coco / "annotations" / "captions_train2017.json").write_text(file.read_text())
    with pytest.raises(InputError, match=r"holds both captions_train2014.json and captions_train2017.json"):
        open_captions(coco, "train")
    (coco / "annotations" / "captions_train2017.json").unlink()
    file.write_text(file.read_text()[:40])
    with pytest.raises(InputError, match=r"captions_train2014.json is not in the layout .*JSONDecodeError"):
        open_captions(coco, "train")
    (coco / "val2014").rename(coco / "elsewhere")
    with pytest.raises(InputError, match=r"captions_val2014.json has no pictures: expected them in .*val2014 or "):
        open_captions(coco, "test")
    file.unlink()
    with pytest.raises(InputError, match=r"holds no captions: expected one captions_train\*.json"):
        open_captions(coco, "train")


def rewrite(file: Path, old: str, new: str) -> None:
    text = file.read_bytes().decode()
    assert old in text
    file.write_bytes(text.replace(old, new, 1).encode())


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "Flickr_8k.trainImages.txt",
            NAMES[0],
            "no.jpg",
            r"trainImages.txt names the picture 'no.jpg', for which .*token",
        ),
        (
            "Flickr_8k.trainImages.txt",
            NAMES[0],
            "2258277193_586949ec62.jpg.1",
            r"trainImages.txt names .* which is not in",
        ),
        ("Flickr_8k.trainImages.txt", NAMES[0], NAMES[9], rf"trainImages.txt and .*both name the picture '{NAMES[9]}'"),
        ("Flickr8k.token.txt", "#1\tA dog", " A dog", r"line 2 of .*Flickr8k.token.txt is '0_ab.jpg A dog"),
        ("Flickr8k.token.txt", 'A dog, "0" , text 1 .', " ", r"an empty caption for the picture '0_ab.jpg'"),
    ],
)
def test_wrong_flickr_files_are_named(flickr: Path, file: str, old: str, new: str, message: str) -> None:
    rewrite(flickr / "Flickr8k_text" / file, old, new)
    with pytest.raises(InputError, match=message):
        open_captions(flickr, "train")


def test_a_split_file_without_its_counterpart(flickr: Path) -> None:
    (flickr / "Flickr8k_text" / "Flickr_8k.testImages.txt").unlink()
    with pytest.raises(InputError, match=r"trainImages.txt has no counterpart: expected a \*.testImages.txt"):
        open_captions(flickr, "train")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("image,caption", "image,comment", "captions.txt does not start with 'image,caption'"),
        (NAMES[0], "no.jpg", "captions.txt names the picture 'no.jpg', which is not in .*Images"),
        (f"{NAMES[0]},", f"{NAMES[0]},a,", "line 2 of .*captions.txt has 3 fields"),
        (f'{NAMES[0]},"A dog', f'{NAMES[0]},"A" dog', "line 2 of .*captions.txt is no row of a table"),
    ],
)
def test_wrong_tables_are_named(table: Path, old: str, new: str, message: str) -> None:
    rewrite(table / "captions.txt", old, new)
    with pytest.raises(InputError, match=message):
        _ = [open_captions(table, split) for split in ("train", "test")]  # type: ignore[arg-type]


def test_wrong_arguments(table: Path) -> None:
    with pytest.raises(InputError, match="split is 'val': expected 'train' or 'test'"):
        open_captions(table, "val")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"val_fraction is 1.0: expected a share between 0 and 1"):
        open_captions(table, "train", val_fraction=1.0)
    with pytest.raises(InputError, match=r"captions.txt is not a folder"):
        open_captions(table / "captions.txt", "train")
    assert len(open_captions(table, "test", val_fraction=0.01)) == 1
    (table / "captions.txt").write_text(f"image,caption\n{NAMES[0]},A dog\n")
    with pytest.raises(InputError, match=r"captions.txt leaves no test pictures"):
        open_captions(table, "test")
    (table / "captions.txt").write_bytes(b"image,caption\n\xff\xfe")
    with pytest.raises(InputError, match=r"captions.txt cannot be read as text"):
        open_captions(table, "train")


@pytest.mark.data
def test_a_thousand_pictures_of_flickr8k() -> None:
    root = Path(os.environ.get("CUTMIX_DATA", ""), "flickr8k-1000")
    if not os.environ.get("CUTMIX_DATA") or not root.is_dir():
        pytest.skip("needs $CUTMIX_DATA/flickr8k-1000")
    train, test = open_captions(root, "train"), open_captions(root, "test")
    assert (len(train), len(test), len({*train.paths, *test.paths})) == (800, 200, 1000)
    assert {len(captions) for captions in train.captions + test.captions} == {5}
