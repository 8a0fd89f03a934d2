"""The layouts of captioning sets, made here as their authors publish them, and damage to each."""

import csv
import json
import os
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cutmix.errors import InputError
from cutmix.transfer.caption_data import CaptionSet
from cutmix.transfer.caption_layouts import open_captions

NAMES = [f"{i}_ab.jpg" for i in range(10)]


def images(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for i, name in enumerate(names):
        color = (20 * i, zlib.crc32(os.fsencode(folder / name)) % 256, 0)
        Image.new("RGB", (8 + i, 9), color).save(folder / name)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    for part, numbers in (("train2014", (3, 7)), ("val2014", (5,))):
        names = [f"COCO_{part}_{number:012}.jpg" for number in numbers]
        images(tmp_path / part, names)
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
    """The official archives: the folder's name is misspelt there, and one image with captions is missing."""
    images(tmp_path / "Flicker8k_Dataset", NAMES)
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
    images(tmp_path / "Images", NAMES)
    with open(tmp_path / "captions.txt", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        rows.writerows([name, f'A dog, "{i}", text {k} .'] for i, name in enumerate(NAMES) for k in range(5))
    return tmp_path


def test_coco(coco: Path) -> None:
    train, test = open_captions(coco)
    assert [path.name for path in train.paths] == ["COCO_train2014_000000000003.jpg", "COCO_train2014_000000000007.jpg"]
    assert train.captions == tuple((f"Picture {i}, text 0.\n", f"Picture {i}, text 1.\n") for i in (3, 7))
    assert all(path.is_file() for path in (*train.paths, *test.paths))
    assert test.references == {"COCO_val2014_000000000005.jpg": ("Picture 5, text 0.\n", "Picture 5, text 1.\n")}
    assert (train.name, train.split, len(train), test.split) == (coco.name, "train", 2, "test")
    assert train.notes == test.notes == ()


@pytest.mark.parametrize("place", ["images/train2014", "images"])
def test_coco_with_its_images_elsewhere_and_captions_in_the_folder(coco: Path, place: str) -> None:
    wanted = open_captions(coco)[0].captions
    (coco / place).parent.mkdir(exist_ok=True)
    (coco / "train2014").rename(coco / place)
    (coco / "annotations" / "captions_train2014.json").rename(coco / "captions_train2014.json")
    train = open_captions(coco)[0]
    assert train.captions == wanted
    assert all(path.is_file() for path in train.paths)


def test_flickr8k_as_its_authors_pack_it(flickr: Path) -> None:
    (flickr / "Flickr8k_text" / "Flickr8k.lemma.token.txt").write_text("x")  # the archive has it too
    train, test = open_captions(flickr)
    assert [path.name for path in train.paths] == NAMES[:6]
    assert [path.name for path in test.paths] == NAMES[8:]
    assert test.captions[1] == tuple(f'A dog, "9" , text {k} .' for k in range(5))
    assert all(path.is_file() for path in (*train.paths, *test.paths))
    assert train.notes == (f"images of {flickr}/Flicker8k_Dataset in neither split: 2 (6_ab.jpg, 7_ab.jpg)",)


def test_flickr8k_as_a_table_is_split_by_hash(table: Path) -> None:
    def split(seed: int, fraction: float = 0.2) -> tuple[CaptionSet, CaptionSet]:
        return open_captions(table, seed=seed, test_fraction=fraction)

    train, test = split(0)
    assert (len(train), len(test)) == (8, 2)
    assert sorted(path.name for path in (*train.paths, *test.paths)) == NAMES
    assert test.captions[0] == tuple(f'A dog, "{test.paths[0].name[0]}", text {k} .' for k in range(5))
    assert len({tuple(split(seed)[1].paths) for seed in range(8)}) > 4
    assert split(0)[1].paths == test.paths
    assert set(split(0, 0.5)[1].paths) > set(test.paths)


def test_a_fingerprint_depends_on_images_and_captions(table: Path) -> None:
    train, test = open_captions(table)
    assert train.fingerprint() == open_captions(table)[0].fingerprint() != test.fingerprint()
    text = (table / "captions.txt").read_text()
    (table / "captions.txt").write_text(text.replace("A dog", "A cat"))
    assert open_captions(table)[0].fingerprint() != train.fingerprint()


# ---- tables and token files as they are published ----

TABLES = {
    "flickr8k": ("captions.txt", "image,caption", '{},"A ""dog"", {} .\u2028and a cat"'),
    "flickr30k": ("results.csv", "image_name| comment_number| comment", '{}| 0| A "dog", {} .\u2028and a cat'),
    "flickr30k as commas": (
        "captions.txt",
        "image_name,comment_number,comment",
        '{},0,"A ""dog"", {} .\u2028and a cat"',
    ),
    "tabs": ("captions.tsv", "filename\tcaption", '{}\tA "dog", {} .\u2028and a cat'),
    "semicolons": ("captions.csv", "caption;image", '"A ""dog"", {1} .\u2028and a cat";{0}'),
    "no header": ("captions.txt", None, '{},"A ""dog"", {} .\u2028and a cat"'),
    "no header, numbered": ("captions.csv", None, '{}\t0\tA "dog", {} .\u2028and a cat'),
    "quoted header": ("captions.csv", '"Image","Caption"', '"{}","A ""dog"", {} .\u2028and a cat"'),
    "commas without quotes": ("captions.txt", "image,caption", "{},A dog, {} .\u2028and a cat"),
    "tokens": ("Flickr8k.token.txt", None, '{}#0\tA "dog", {} .\u2028and a cat'),
    "flickr30k tokens": ("results_20130124.token", None, '{}#0\tA "dog", {} .\u2028and a cat'),
}


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_published_table_is_read(tmp_path: Path, kind: str, end: str) -> None:
    file, header, row = TABLES[kind]
    images(tmp_path / "images", NAMES)
    rows = [row.format(name, i) for i, name in enumerate(NAMES)]
    lines = ["", *([header] if header else []), rows[0], " ", *rows[1:], "", ""]
    (tmp_path / file).write_bytes(("\ufeff" + end.join(lines)).encode())
    train, test = open_captions(tmp_path)
    assert sorted(train.names + test.names) == NAMES
    texts = dict(zip(train.names + test.names, train.captions + test.captions, strict=True))
    quotes = "" if kind == "commas without quotes" else '"'
    assert texts == {name: (f"A {quotes}dog{quotes}, {i} .\u2028and a cat",) for i, name in enumerate(NAMES)}


def test_the_known_line_of_flickr30k_without_its_second_bar(tmp_path: Path) -> None:
    images(tmp_path / "flickr30k_images" / "flickr30k_images", NAMES[:3])
    rows = [f"{NAMES[0]}| 4   A dog runs .", f"{NAMES[1]}| 0| A cat .", f"{NAMES[2]}| 0| 2 cats ."]
    (tmp_path / "results.csv").write_text("\n".join(["image_name| comment_number| comment", *rows]))
    train, test = open_captions(tmp_path, test_fraction=0.4)
    assert sorted(train.captions + test.captions) == [("2 cats .",), ("A cat .",), ("A dog runs .",)]


@pytest.mark.parametrize("name", ["a dog 1.jpg", "a,b.jpg", "sub/x.jpg", os.fsdecode(b"caf\xe9.jpg"), "b\u2028c.jpg"])
def test_odd_names_of_images(tmp_path: Path, name: str) -> None:
    folder = (tmp_path / "images" / name).parent
    try:
        images(folder, [Path(name).name])
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    images(tmp_path / "Images", NAMES[:2])
    lines = [f"{one}#0\tA dog" for one in (*NAMES[:2], name)]
    (tmp_path / "x.token.txt").write_bytes(os.fsencode("\n".join(lines)))
    parts = open_captions(tmp_path)
    assert sorted(part_name for part in parts for part_name in part.names) == sorted([*NAMES[:2], name])
    assert all(path.is_file() for part in parts for path in part.paths)
    assert all(len(part.fingerprint()) == 32 for part in parts)


def test_copies_of_an_image_are_in_one_split(table: Path) -> None:
    for name in NAMES[1:4]:
        (table / "Images" / name).write_bytes((table / "Images" / NAMES[0]).read_bytes())
    for seed in range(5):
        train, test = open_captions(table, seed=seed)
        assert {*NAMES[:4]} <= {*train.names} or {*NAMES[:4]} <= {*test.names}
        assert train.notes == ("copies of other images, in the same split: 3 (1_ab.jpg, 2_ab.jpg, 3_ab.jpg)",)
        assert test.notes == ()


def test_images_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        images(tmp_path / "images" / folder, ["x.jpg"])
    (tmp_path / "captions.txt").write_text("image,caption\na/x.jpg,A dog\nb/x.jpg,A cat\n")
    train, test = open_captions(tmp_path)
    assert {*train.references, *test.references} == {"a/x.jpg", "b/x.jpg"}


def change_coco(path: Path, change: Any) -> None:
    file = path / "annotations" / "captions_train2014.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"].append({"image_id": 99, "caption": "x"}), "is 99; expected the id of one of its"),
        (lambda c: c["images"].append({"id": 4, "file_name": "no.jpg"}), "names the image 'no.jpg', which is not in"),
        (lambda c: c["annotations"][1].update(caption=" .\n"), "has an empty caption for the image 'COCO_train2014"),
        (lambda c: c["annotations"][1].update(caption="a \udcff"), "has a caption of .* with half a character"),
        (lambda c: c["annotations"][1].update(caption=7), "caption is 7; expected a text"),
        (lambda c: c.update(annotations=[]), "has no caption for the image 'COCO_train2014_000000000003.jpg'"),
        (lambda c: c.pop("images"), "is null; expected a list"),
        (lambda c: c["images"][0].pop("file_name"), "has no field 'file_name'; expected a text"),
        (lambda c: c["images"][1].update(id=3), "is 3, as that of number 0; expected each once"),
        (
            lambda c: c["images"][1].update(file_name=c["images"][0]["file_name"]),
            "as that of number 0; expected each once",
        ),
        (
            lambda c: c["images"][1].update(file_name="x/" + c["images"][0]["file_name"]),
            "has the image .* as .* and as",
        ),
        (lambda c: c.update(images=[], annotations=[]), "leaves no train images"),
    ],
)
def test_wrong_coco_files_are_named(coco: Path, change: Any, message: str) -> None:
    change_coco(coco, change)
    with pytest.raises(InputError, match=rf"captions_train2014\.json.*{message}"):
        open_captions(coco)


def test_a_lone_surrogate_in_a_caption_is_refused(coco: Path) -> None:
    file = coco / "annotations" / "captions_train2014.json"
    file.write_text(file.read_text().replace("Picture 7", "\\ud83d", 1))
    with pytest.raises(InputError, match=r"captions_train2014\.json"):
        open_captions(coco)


def test_other_wrong_coco_layouts(coco: Path) -> None:
    file = coco / "annotations" / "captions_train2014.json"
    (coco / "annotations" / "captions_train2017.json").write_text(file.read_text())
    with pytest.raises(InputError, match=r"holds both captions_train2014.json and captions_train2017.json"):
        open_captions(coco)
    (coco / "annotations" / "captions_train2017.json").unlink()
    (coco / "val2014").rename(coco / "elsewhere")
    with pytest.raises(
        InputError, match=r"has no images for captions_val2014\.json; expected them in val2014, images/val"
    ):
        open_captions(coco)
    file.write_text(file.read_text()[:40])
    with pytest.raises(InputError, match=r"captions_train2014\.json .*JSON"):
        open_captions(coco)
    file.unlink()
    with pytest.raises(InputError, match=r"holds no captions; expected one captions_train\*.json"):
        open_captions(coco)


def test_an_image_of_both_splits_is_refused(coco: Path) -> None:
    (coco / "train2014").rename(coco / "images")
    change_coco(coco, lambda c: None)
    text = (coco / "annotations" / "captions_train2014.json").read_text()
    (coco / "annotations" / "captions_val2014.json").write_text(text)
    with pytest.raises(InputError, match=r"0003\.jpg is in the training split and in the test split"):
        open_captions(coco)


def rewrite(file: Path, old: str, new: str) -> None:
    text = file.read_bytes().decode()
    assert old in text
    file.write_bytes(text.replace(old, new, 1).encode())


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("Flickr_8k.trainImages.txt", NAMES[0], "no.jpg", r"line 1 of .*trainImages.txt is 'no.jpg'; expected"),
        ("Flickr_8k.trainImages.txt", NAMES[0], "2258277193_586949ec62.jpg.1", r"names .* which is not in"),
        ("Flickr_8k.trainImages.txt", NAMES[0], NAMES[9], rf"trainImages.txt and .*both name '{NAMES[9]}'"),
        ("Flickr8k.token.txt", "#1\tA dog", " A dog", r"line 2 of .*Flickr8k.token.txt is '0_ab.jpg A dog"),
        ("Flickr8k.token.txt", 'A dog, "0" , text 1 .', " ", r"an empty caption for the image '0_ab.jpg'"),
    ],
)  # fmt: skip
def test_wrong_flickr_files_are_named(flickr: Path, file: str, old: str, new: str, message: str) -> None:
    rewrite(flickr / "Flickr8k_text" / file, old, new)
    with pytest.raises(InputError, match=message):
        open_captions(flickr)


def test_a_split_file_without_its_counterpart(flickr: Path) -> None:
    (flickr / "Flickr8k_text" / "Flickr_8k.testImages.txt").unlink()
    with pytest.raises(InputError, match=r"trainImages.txt is there without a list \*.testImages.txt; expected both"):
        open_captions(flickr)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "image,caption",
            "image,number",
            "captions.txt begins with 'image,number'; expected a header such as 'image,cap",
        ),
        (NAMES[0], "no.jpg", "captions.txt names the image 'no.jpg', which is not in .*Images"),
        (f'{NAMES[0]},"A', f'"{NAMES[0]}, A', "line 2 of .*captions.txt has 1 fields; expected 2"),
        (f'{NAMES[0]},"A dog', f'{NAMES[0]},"A" dog', "line 2 of .*captions.txt is not a row of a table"),
        (f'{NAMES[1]},"A dog, ""1"", text 0 ."', NAMES[1], "line 7 of .*captions.txt has 1 fields; expected 2"),
    ],
)
def test_wrong_tables_are_named(table: Path, old: str, new: str, message: str) -> None:
    rewrite(table / "captions.txt", old, new)
    with pytest.raises(InputError, match=message):
        open_captions(table)


def test_wrong_arguments(table: Path) -> None:
    with pytest.raises(InputError, match=r"test_fraction is 1.0; expected a number between 0 and 1"):
        open_captions(table, test_fraction=1.0)
    with pytest.raises(InputError, match=r"captions.txt is not a folder"):
        open_captions(table / "captions.txt")
    assert len(open_captions(table, test_fraction=0.01)[1]) == 1
    (table / "captions.csv").write_text("x")
    with pytest.raises(InputError, match=r"holds both captions.txt and captions.csv; expected one file of captions"):
        open_captions(table)
    (table / "captions.csv").unlink()
    (table / "captions.txt").write_text(f"image,caption\n{NAMES[0]},A dog\n")
    with pytest.raises(InputError, match=r"captions.txt leaves no test images"):
        open_captions(table)
    (table / "captions.txt").write_bytes(b"image,caption\n0_ab.jpg,\xff\xfe")
    with pytest.raises(InputError, match=r"line 2 of .*captions.txt has a caption that is not UTF-8; expected text"):
        open_captions(table)
    (table / "captions.txt").write_bytes(b"")
    with pytest.raises(InputError, match=r"captions.txt begins with ''; expected a header such as"):
        open_captions(table)


@pytest.mark.data
def test_a_thousand_images_of_flickr8k() -> None:
    root = Path(os.environ.get("CUTMIX_DATA", ""), "flickr8k-1000")
    if not os.environ.get("CUTMIX_DATA") or not root.is_dir():
        pytest.skip("needs $CUTMIX_DATA/flickr8k-1000")
    train, test = open_captions(root)
    assert (len(train), len(test), len({*train.paths, *test.paths})) == (800, 200, 1000)
    assert {len(captions) for captions in train.captions + test.captions} == {5}
