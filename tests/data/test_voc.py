"""Annotations in Pascal VOC's XML: encodings, marks and parts as published data sets have them."""

from pathlib import Path

import pytest

from cutmix.data.boxes import Annotation, VocObject, read_annotation
from cutmix.errors import InputError

BOX = "<bndbox><xmin>1</xmin><ymin>2.5</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"


def annotation(objects: str, size: str = "<size><width>60</width><height>40</height></size>") -> str:
    return f"<annotation>{size}{objects}</annotation>"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "iso-8859-1", "windows-1252", "gb2312", "euc-jp"])
def test_every_encoding_that_is_declared_is_read(tmp_path: Path, encoding: str) -> None:
    name = {"gb2312": "自行车", "euc-jp": "自転車"}.get(encoding, "vélo")
    declared = encoding.removesuffix("-sig")
    text = f'<?xml version="1.0" encoding="{declared}"?>\n' + annotation(f"<object><name>{name}</name>{BOX}</object>")
    (tmp_path / "a.xml").write_bytes(text.encode(encoding))
    assert read_annotation(tmp_path / "a.xml") == Annotation((60, 40), (VocObject(name, (1, 2.5, 30, 40), False),))


@pytest.mark.parametrize(
    ("mark", "difficult"),
    [
        ("1", True), ("True", True), ("yes", True), ("1.0", True), ("0", False), ("False", False), ("no", False),
        ("0.0", False), ("Unspecified", False), ("", False), (" 0\n", False),
    ],
)  # fmt: skip
def test_marks_as_programs_write_them(tmp_path: Path, mark: str, difficult: bool) -> None:
    (tmp_path / "a.xml").write_text(
        annotation(f"<object><name>dog</name><difficult>{mark}</difficult>{BOX}</object>"), encoding="utf-8"
    )
    assert read_annotation(tmp_path / "a.xml").objects[0].difficult == difficult


def test_parts_of_an_object_are_not_objects_and_sizes_may_be_floats(tmp_path: Path) -> None:
    part = f"<part><name>head</name>{BOX}</part>"
    size = "<size><width>60.0</width><height>4e1</height></size>"
    text = annotation(f"<object><name> a\n dog </name>{part}{BOX}</object>", size)
    (tmp_path / "a.xml").write_text(text)
    assert read_annotation(tmp_path / "a.xml") == Annotation((60, 40), (VocObject("a dog", (1, 2.5, 30, 40), False),))


ENTITIES = "<!DOCTYPE a [" + "".join(
    f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "x" * 100}">' for i in range(9)
)  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as XML"),
        (b"<annotation>", "cannot be read as XML"),
        (b'<?xml version="1.0" encoding="klingon"?><a/>', r"cannot be read as XML \(unknown encoding: klingon"),
        (b'<?xml version="1.0" encoding="utf-8"?><a>\xff</a>', "cannot be read as XML"),
        ((ENTITIES + "]><a>&e8;</a>").encode(), "cannot be read as XML"),
        (b"<a><size><width>0</width><height>9</height></size></a>", "its image a size of 0×9"),
        (
            annotation(f"<object><name>a</name><difficult>maybe</difficult>{BOX}</object>").encode(),
            "object 1 of .* has 'maybe' as its difficult; expected a number",
        ),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.xml").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_annotation(tmp_path / "a.xml")
    assert "a.xml" in str(caught.value)
