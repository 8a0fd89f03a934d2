"""Two splits share no picture, whichever way they are made."""

from pathlib import Path

import pytest

from cutmix.data.folder import listed_names, names_by_hash
from cutmix.errors import InputError


@pytest.mark.parametrize(("count", "fraction", "tests"), [(50, 0.2, 10), (2, 0.2, 1), (3, 0.01, 1), (3, 0.99, 2)])
def test_a_hash_shares_out_every_name_and_leaves_no_split_empty(count: int, fraction: float, tests: int) -> None:
    names = [f"{i}.jpg" for i in range(count)]
    train, test = (names_by_hash(names[::-1], split, fraction, 3) for split in ("train", "test"))
    assert sorted(train + test) == sorted(names)
    assert (len(test), train, test) == (tests, sorted(train), sorted(test))


def test_the_seed_decides_and_a_new_name_moves_hardly_any_other() -> None:
    names = [f"{i}.jpg" for i in range(1000)]
    first = names_by_hash(names, "test", 0.2, 0)
    assert 10 < len(set(first) & set(names_by_hash(names, "test", 0.2, 1))) < 80  # 40 of two independent fifths
    assert len(set(first) - set(names_by_hash([*names, "new"], "test", 0.2, 0))) <= 1


def test_lists_are_read_by_their_first_words(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("﻿one  1\n\n two -1\r\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("three\nthree\n")  # whose faults are told when it is opened
    assert listed_names(tmp_path / "a.txt", tmp_path / "b.txt") == listed_names(tmp_path / "a.txt", None)
    assert listed_names(tmp_path / "a.txt", None) == ["one", "two"]


@pytest.mark.parametrize(
    ("own", "other", "message"),
    [
        (b"a\nb\na\na\n", b"", r"own\.txt names the picture 'a' 3 times: expected each once"),
        (b"a\nb\n", b"c\nb\n", r"own\.txt and .*other\.txt both name the picture 'b': expected each in one split"),
        (b"a\nb\n", b"\xff", r"other\.txt cannot be read as text"),
    ],
)
def test_what_is_wrong_with_a_list_is_one_sentence(tmp_path: Path, own: bytes, other: bytes, message: str) -> None:
    (tmp_path / "own.txt").write_bytes(own)
    (tmp_path / "other.txt").write_bytes(other)
    with pytest.raises(InputError, match=message):
        listed_names(tmp_path / "own.txt", tmp_path / "other.txt")
