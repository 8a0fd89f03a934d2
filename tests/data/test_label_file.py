"""A file of labels lists the same data set as class folders do."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cutmix.cli import main
from cutmix.data import FileSet, open_splits
from cutmix.data.command import describe_splits
from cutmix.data.folder import read_class_folders
from cutmix.data.tables import read_label_file
from cutmix.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of each of two classes, in class folders."""
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(6):
            pixels = generator.integers(0, 255, (10, 12, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    return tmp_path


def write(folder: Path, text: str, name: str = "labels.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def rows(folder: Path) -> list[tuple[str, str]]:
    return [(str(path.relative_to(folder)), path.parent.name) for path in sorted(folder.glob("*/*.png"))]


@pytest.mark.parametrize("kind", ["csv", "no header", "semicolons", "tsv", "jsonl", "parquet"])
def test_every_format_lists_what_the_folders_hold(kind: str, folder: Path) -> None:
    expected = read_class_folders(folder)
    listed, name = rows(folder), "labels.csv"
    text = "path,label\n" + "".join(f"{path},{label}\n" for path, label in listed)
    if kind == "no header":
        text = text.partition("\n")[2]
    elif kind == "semicolons":
        text = "\ufeff" + text.replace(",", ";").replace("path;label", "Filename;Class")
    elif kind == "tsv":
        text, name = text.replace(",", "\t"), "labels.tsv"
    elif kind == "jsonl":
        name = "labels.jsonl"
        text = "\n".join(json.dumps({"file_name": path, "label": [label]}) for path, label in listed)
    file = write(folder, text, name)
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
        parquet = pytest.importorskip("pyarrow.parquet")
        file = folder / "labels.parquet"
        parquet.write_table(
            pyarrow.table({"path": [row[0] for row in listed], "label": [row[1] for row in listed]}), file
        )
    found = read_label_file(file)
    assert found.classes == expected.classes
    assert found.parts == expected.parts


def test_splits_are_those_of_the_file_and_a_run_trains_on_it(folder: Path, tmp_path: Path) -> None:
    split = {"0": "Training", "1": "train", "2": "train", "3": "train", "4": "validation", "5": "test"}
    text = "split,path,label\n" + "".join(f"{split[Path(p).stem]},{p},{label}\n" for p, label in rows(folder))
    file = write(folder, text)
    splits = open_splits(str(file))
    sizes = [len(part) for part in (splits.train, splits.val, splits.test) if part]
    assert sizes == [8, 2, 2]
    assert splits.origin["test"] == "test of labels.csv"
    words = ["--image-size", "16", "--epochs", "1", "--device", "cpu", "--model", "resnet20", "--no-pretrained"]
    main(["train", "--data", str(file), *words, "--out", str(tmp_path / "run")])
    assert (tmp_path / "run/results.jsonl").is_file()
    main(["data", str(file)])


def test_without_splits_it_is_divided_as_the_folders_are(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "cat/0.png", folder / "cat/copy.png")
    ids = [(path.removesuffix(".png"), label) for path, label in rows(folder)]
    listed = write(folder, "image_id,label\n" + "".join(f"{path},{label}\n" for path, label in ids))
    ours, theirs = open_splits(str(listed)), open_splits(str(folder))
    for one, other in ((ours.train, theirs.train), (ours.val, theirs.val)):
        assert isinstance(one, FileSet)
        assert isinstance(other, FileSet)
        assert [path.relative_to(folder) for path in one.paths] == [path.relative_to(folder) for path in other.paths]
    assert describe_splits(ours).copies == describe_splits(theirs).copies == [["cat/0.png", "cat/copy.png"]]


def test_an_id_of_two_files_is_refused(folder: Path) -> None:
    """The first of them by the order of the suffixes was taken."""
    Image.open(folder / "cat/0.png").save(folder / "cat/0.bmp")
    ids = "".join(f"{path.removesuffix('.png')},{label}\n" for path, label in rows(folder))
    listed = write(folder, f"image_id,label\n{ids}")
    row = [path for path, _ in rows(folder)].index("cat/0.png") + 2
    with pytest.raises(
        InputError, match=rf"row {row}: cat/0 can be 0.bmp and 0.png; expected names with their suffixes"
    ):
        open_splits(str(listed))


def test_images_may_lie_outside_the_folder_of_the_file(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "cat/0.png", folder / "cat/copy.png")
    aside = tmp_path.with_name(f"{tmp_path.name}-aside")
    aside.mkdir()
    listed = write(aside, "path,label\n" + "".join(f"{folder / path},{label}\n" for path, label in rows(folder)))
    copies = [f"../{tmp_path.name}/cat/{name}.png" for name in (0, "copy")]
    assert describe_splits(open_splits(str(listed))).copies == [copies]


def test_numbers_are_sorted_by_value(folder: Path) -> None:
    text = "".join(f"{path},{number + 1}\n" for number, (path, _) in enumerate(rows(folder)))
    assert read_label_file(write(folder, text)).classes == tuple(map(str, range(1, 13)))


def test_unicode_neither_ends_a_line_nor_makes_a_second_class(folder: Path) -> None:
    first, *others = [path for path, _ in rows(folder)]
    names = ["a\u2028b", "cafe\u0301", "caf\u00e9", "two\nlines", "\ud800"]
    listed = list(zip(others, names, strict=False))
    text = "path,label\n" + "".join(f'{path},"{name}"\n' for path, name in [(first, "a"), *listed[:-1]])
    classes = [name.encode("unicode_escape").decode() for name in read_label_file(write(folder, text)).classes]
    assert classes == ["a", "a\\\\u2028b", "caf\\xe9", "two\\\\nlines"]
    lines = [json.dumps({"path": path, "label": name}, ensure_ascii=name == "\ud800") for path, name in listed]
    found = read_label_file(write(folder, "\n".join(lines), "labels.jsonl"))
    assert [len(own) for own in found.parts["all"]] == [1, 1, 2, 1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lists no images"),
        ("path,label\ncat/0.png,cat\ncat/9.png,dog\n", "row 3: there is no "),
        ("path,label\ncat/0.png,cat\n~nobody-has-this-name/9.png,dog\n", "row 3: there is no "),
        ("path,label\ncat/0.png,cat\ncat/0.png,dog\n", "row 3 lists cat/0.png again, after row 2"),
        ("path,label\ncat/0.png,cat\ncat/1.png,cat\n", "one class only"),
        ("path,label\ncat/0.png,cat|dog\ncat/0.png,cat\n", "row 3 lists cat/0.png again"),
        ("path,name\ncat/0.png,cat\n", "row 2 has no label in columns path, name; expected a column named label"),
        ("path,label,split\ncat/0.png,cat,train\ndog/0.png,dog,\n", "a split in some rows only"),
        ("path,label,split\ncat/0.png,cat,my\ndog/0.png,dog,\n", "the split is 'my'; expected train, val or test"),
        ("path,label,split\ncat/0.png,cat,test\ndog/0.png,dog,test\n", "has no train split"),
        (
            "path,label,split\ncat/0.png,cat,train\ndog/0.png,dog,train\ncat/1.png,cat,val\n",
            "no val images",
        ),
        # two classes that would be one, if the cells after the second were not read
        (
            "path,label\ncat/0.png,bird, red\ncat/1.png,bird, blue\ndog/0.png,dog\n",
            r"row 2 has 3 cells; expected 2 \(path, label\), and quotes",
        ),
        ("cat/0.png,cat\ncat/1.png,cat,brown\ndog/0.png,dog\n", "row 2 has 3 cells; expected 2"),
        ('path,label\ncat/0.png,cat\ndog/0.png,"dog\ndog/1.png,dog\n', "cannot be read as a row of a table"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(text: str, said: str, folder: Path) -> None:
    with pytest.raises(InputError, match=said.replace("|", r"\|")):
        read_label_file(write(folder, text))


def test_a_quoted_cell_may_follow_a_blank(folder: Path) -> None:
    file = write(folder, 'path, label\ncat/0.png, "cat, black"\ndog/0.png, dog\n')
    assert read_label_file(file).classes == ("cat, black", "dog")


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_absent_and_nested_values_are_no_classes(kind: str, folder: Path) -> None:
    paths = [path for path, _ in rows(folder)][:3]

    def classes(labels: list) -> tuple[str, ...]:
        file = folder / f"labels.{kind}"
        if kind == "jsonl":
            lines = [json.dumps({"path": path, "label": label}) for path, label in zip(paths, labels, strict=True)]
            return read_label_file(write(folder, "\n".join(lines), file.name)).classes
        pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table({"path": paths, "label": labels}), file)
        return read_label_file(file).classes

    assert classes([["a", None], ["b"], ["c", "a"]]) == ("a", "b", "c")
    assert classes([["a", None], ["b"], ["a"]]) == ("a", "b")
    for missing in (None, float("nan")) if kind == "parquet" else (None,):
        with pytest.raises(InputError, match="row 2 has no label"):
            classes([1.0, missing, 2.0])
    with pytest.raises(InputError, match=r"row 1: the label is \{'name': 'a'\}; expected a text or a number"):
        classes([{"name": "a"}, {"name": "b"}, {"name": "b"}])
    if kind == "parquet":
        assert classes([b"a", b"b", "ü".encode()]) == ("a", "b", "ü")


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.jsonl", "{"), ("a.jsonl", "[1]"), ("a.parquet", "none"), ("a.csv", f"path,label\n{'x' * 200_000},cat\n")],
)
def test_damaged_files_are_refused(name: str, text: str, folder: Path) -> None:
    with pytest.raises(InputError, match=r"is not JSON|is not an object|Parquet|row 2 cannot be read as a row"):
        read_label_file(write(folder, text, name))


def test_numbers_too_long_for_python_are_names(folder: Path) -> None:
    text = f"path,label\ncat/0.png,{'9' * 5000}\ncat/1.png,1\n"
    assert read_label_file(write(folder, text)).classes == ("1", "9" * 5000)


@pytest.mark.parametrize("kind", ["text", "date"])
def test_values_that_python_cannot_hold_are_refused(folder: Path, kind: str) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the package pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    labels = pyarrow.array([2**62, 1], pyarrow.timestamp("us"))
    if kind == "text":
        parts = [None, pyarrow.py_buffer(np.arange(3, dtype=np.int32).tobytes()), pyarrow.py_buffer(b"\xff\xff")]
        labels = pyarrow.Array.from_buffers(pyarrow.string(), 2, parts)
    parquet.write_table(pyarrow.table({"path": ["cat/0.png", "cat/1.png"], "label": labels}), folder / "a.parquet")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read_label_file(folder / "a.parquet")


def test_a_parquet_file_that_announces_more_than_the_memory_is_refused(tmp_path: Path, monkeypatch) -> None:
    """A column of one repeated text is small in the file."""
    pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "labels.parquet"
    parquet.write_table(pyarrow.table({"path": ["a" * 1000] * 5000, "label": ["x"] * 5000}), path)
    assert path.stat().st_size < 20_000
    monkeypatch.setattr("cutmix.data.tables._MOST_BYTES", 1 << 20)
    with pytest.raises(InputError, match=r"labels.parquet holds more than 1 MiB of paths and labels$"):
        read_label_file(path)
