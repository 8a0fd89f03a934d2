"""Listing a folder: links, special files and names of every kind; and the division of names by their hashes."""

import os
from pathlib import Path

import pytest
from PIL import Image

from cutmix.data.folder import (
    EXTENSIONS,
    count_suffixes,
    held_share,
    hold_out,
    is_image,
    list_images,
)
from cutmix.data.sources import Paths, known_formats
from cutmix.errors import InputError


def test_paths_are_a_sequence_of_paths() -> None:
    names = [Path("a/b.jpg"), Path("ä/\udcff.png"), Path("c"), Path("/d e/f")]
    paths = Paths(names)
    assert (list(paths), len(paths), paths[-1], paths[1:3]) == (names, 4, names[-1], tuple(names[1:3]))
    assert paths == tuple(names)
    assert names[2] in paths
    assert list(Paths([])) == []
    with pytest.raises(IndexError):
        paths[4]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names(folder: Path) -> list[str]:
    return [file.path.relative_to(folder).as_posix() for file in list_images(folder).files]


def test_the_extensions_are_those_of_the_formats_that_are_decoded() -> None:
    Image.init()
    formats = (*known_formats(), "TGA", "MPO")
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in formats}
    assert set(EXTENSIONS) - known <= {".avif", ".avifs", ".jp2", ".j2c", ".j2k", ".jpc", ".jpf", ".jpx"}
    assert known <= set(EXTENSIONS)


def test_images_at_any_depth_are_listed_and_everything_else_is_kept_apart(tmp_path: Path) -> None:
    images = ["a.JPG", "b.jfif", "deeper/c.pgm", "deeper/still/d.avif", "e.TIFF"]
    others = ["notes.txt", "deeper/f.heic", "g", "h.HEIC"]
    hidden = [".DS_Store", "._a.JPG", ".thumbnails/a.jpg", "__MACOSX/a.jpg", "deeper/.cache/x.png"]
    touch(*(tmp_path / name for name in images + others + hidden))
    found = list_images(tmp_path)
    assert names(tmp_path) == sorted(images, key=Path)
    assert count_suffixes(found.others) == {".heic": 2, ".txt": 1, "g": 1}
    assert len(found.hidden) == len(hidden)
    assert not found.repeated
    assert not is_image(".a.jpg")


def test_a_special_file_is_no_image(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg")
    os.mkfifo(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").symlink_to("nothing")  # listed, and refused when it is decoded
    (tmp_path / "d.jpg").symlink_to("d.jpg")
    found = list_images(tmp_path)
    assert names(tmp_path) == ["a.jpg", "c.jpg", "d.jpg"]
    assert found.others == [tmp_path / "b.jpg"]


def test_a_file_is_listed_once_whatever_points_to_it(tmp_path: Path) -> None:
    touch(tmp_path / "one" / "a.jpg")
    (tmp_path / "one" / "b.jpg").symlink_to("a.jpg")
    os.link(tmp_path / "one" / "a.jpg", tmp_path / "one" / "c.jpg")
    (tmp_path / "two").symlink_to("one")
    found = list_images(tmp_path)
    assert names(tmp_path) == ["one/a.jpg"]
    assert found.repeated == [tmp_path / "two", tmp_path / "one" / "b.jpg", tmp_path / "one" / "c.jpg"]


def test_links_that_double_at_every_level_are_followed_once(tmp_path: Path) -> None:
    for level in range(60):
        (tmp_path / f"level{level}").mkdir()
        for name in ("left", "right"):
            (tmp_path / f"level{level}" / name).symlink_to(tmp_path / f"level{level + 1}")
    touch(tmp_path / "level60" / "a.jpg")
    assert len(list_images(tmp_path).files) == 1


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_link_to_a_folder_around_it_is_refused_with_its_path(tmp_path: Path, target: str) -> None:
    touch(tmp_path / "data" / "cat" / "a.jpg")
    (tmp_path / "data" / "cat" / "again").symlink_to(target)
    around = tmp_path if target == "../.." else tmp_path / "data"
    with pytest.raises(InputError, match=r"again.* is a link to .*, a folder around it; remove the link"):
        list_images(around)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "closed" / "a.jpg")
    (tmp_path / "closed").chmod(0)
    with pytest.raises(InputError, match="closed cannot be read: Permission denied"):
        list_images(tmp_path)
    (tmp_path / "closed").chmod(0o700)


# ---- division by hash ----


@pytest.mark.parametrize(("count", "fraction", "tests"), [(50, 0.2, 10), (2, 0.2, 1), (3, 0.01, 1), (3, 0.99, 2)])
def test_a_share_is_held_out_whatever_the_order_and_no_split_is_empty(count: int, fraction: float, tests: int) -> None:
    every = [(f"{i}.jpg",) for i in range(count)]
    held = hold_out(every, held_share(count, fraction), 3)
    assert set(held) < set(every)
    assert len(held) == tests
    assert hold_out(every[::-1], held_share(count, fraction), 3) == held


def test_the_seed_decides_and_a_new_name_moves_hardly_any_other() -> None:
    every = [(f"{i}.jpg",) for i in range(1000)]
    first = set(hold_out(every, 200, 0))
    assert 10 < len(first & set(hold_out(every, 200, 1))) < 80  # 40 of two independent fifths
    assert len(first - set(hold_out([*every, ("new",)], 200, 0))) <= 1


def test_groups_are_held_out_whole_and_never_all() -> None:
    groups = [("a", "b", "c"), ("d",), ("e", "f")]
    for seed in range(10):
        held = hold_out(groups, 2, seed)
        assert set(held) < set(groups)
        assert 2 <= sum(map(len, held)) <= 4 or len(held) == 2
    assert hold_out(groups, 0, 0) == []
    assert len(hold_out(groups, 100, 0)) == 2
    assert [held_share(n, 0.2) for n in (0, 1, 2, 3, 10)] == [0, 0, 1, 1, 2]
    assert held_share(10, 0) == 0
