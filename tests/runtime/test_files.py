"""JSON lines: whole or not at all, and nothing through a link."""

import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import pytest

import cutmix.runtime.files
from cutmix.errors import InputError
from cutmix.runtime.files import append_line, folder_written_whole, make_folder, read_lines, truncate, write_atomic


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert read_lines(path) == []
    not_utf8 = os.fsdecode(b"caf\xe9.jpg")
    records = [{"loss": 0.1, "name": "λ 猫 \n"}, {"loss": None}, {"path": not_utf8}]
    for record in records:
        append_line(path, record)
    assert read_lines(path) == records
    assert path.read_bytes().count(b"\n") == 3
    assert path.read_bytes().decode("utf-8")


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\n{"b": ')
    assert read_lines(path) == [{"a": 1}]
    path.write_text('{"a": 1}\n{"b": 2}')
    assert read_lines(path) == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize("damaged", ['{"a": 1}\n{"b": \n{"c": 3}\n', '{"a": 1}\n[2]\n', "\n\n", "[" * 200_000 + "\n"])
def test_a_damaged_line_is_named(tmp_path: Path, damaged: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(damaged)
    with pytest.raises(InputError, match=r"log\.jsonl, line [12] is"):
        read_lines(path)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.jsonl"
    append_line(path, {"a": 1})

    def nearly_full(*arguments: Any, **named: Any) -> Any:
        file = open(*arguments, **named)  # noqa: SIM115
        return HalfWritten(file) if arguments[1] == "ab" else file

    class HalfWritten:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> "HalfWritten":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> int:
            return int(self.file.write(data[: len(data) // 2]))

    monkeypatch.setattr(cutmix.runtime.files, "open", nearly_full, raising=False)
    with pytest.raises(InputError, match="could not be written: No space left on device; nothing was changed"):
        append_line(path, {"b": 2})
    assert path.read_text() == '{"a": 1}\n'


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not be written: No such file or directory"):
        append_line(tmp_path / "absent/log.jsonl", {})


def test_a_line_that_was_cut_short_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": 2')
    append_line(path, {"c": 3})
    assert read_lines(path) == [{"a": 1}, {"c": 3}]
    path.write_bytes(b'{"a": 1}\n{"b": 2}')
    append_line(path, {"c": 3})
    assert read_lines(path) == [{"a": 1}, {"b": 2}, {"c": 3}]


def test_a_folder_is_no_file_of_lines(tmp_path: Path) -> None:
    for use in (read_lines, lambda path: append_line(path, {})):
        with pytest.raises(InputError, match="Is a directory"):
            use(tmp_path)


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    target = tmp_path / "theirs.txt"
    for content in (b'{"a": 1}\n', b'{"a": 1}\n{"b"', b'{"a": 1}'):
        target.write_bytes(content)
        link = tmp_path / "results.jsonl"
        link.symlink_to(target)
        with pytest.raises(InputError, match=r"results\.jsonl could not be written: it is a symbolic link"):
            append_line(link, {"c": 3})
        with pytest.raises(OSError, match=r"symbolic link"):
            truncate(link, 0)
        write_atomic(link, lambda file: file.write(b"ours"))
        assert (link.is_symlink(), link.read_bytes(), target.read_bytes()) == (False, b"ours", content)
        link.unlink()


def test_two_processes_may_write_a_file_and_what_a_killed_one_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".report.html.0000.tmp").write_bytes(b"of a killed process")

    def write_while_another_does(file: BinaryIO) -> None:
        file.write(b"first")
        write_atomic(tmp_path / "report.html", lambda other: other.write(b"second"))
        assert (tmp_path / "report.html").read_bytes() == b"second"

    write_atomic(tmp_path / "report.html", write_while_another_does)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_bytes() == b"first"


def test_a_device_or_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/null"), Path("/dev/stdout")):
        with pytest.raises(InputError, match="is a device or a pipe; expected the name of a file"):
            write_atomic(path, lambda file: file.write(b"ours"))
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), None])
def test_a_folder_is_written_whole_or_not_at_all(
    existing: bool, error: BaseException | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".new.0a1b2c3d.tmp").mkdir()  # of a killed process
    folder = tmp_path / "new"
    if existing:
        folder.mkdir()
        monkeypatch.chdir(folder)

    def write() -> None:
        with folder_written_whole(Path() if existing else folder) as temporary:
            (temporary / "a").write_text("a")
            (temporary / "b").mkdir()
            if error:
                raise error
            (temporary / "b" / "c").write_text("c")

    if error is None:
        write()
    else:
        kind = InputError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(kind, match=r"could not be written: No space|^$"):
            write()
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == (["new", "new/a", "new/b", "new/b/c"] if error is None else ["new"] * existing)
    if error is None:
        with pytest.raises(InputError, match="exists and is not empty"):
            write()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path, reason in ((tmp_path / "file", "it is a file"), (tmp_path / "file/x", "Not a directory"),
                         (tmp_path / ("x" * 300), "File name too long")):  # fmt: skip
        with pytest.raises(InputError, match=f"could not be made: {reason}"):
            make_folder(path)
