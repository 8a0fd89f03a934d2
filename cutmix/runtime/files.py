"""Files: replaced whole or not at all, never written through a link; JSON, JSON lines, arrays, figures. No torch."""

import errno
import glob
import io
import json
import math
import os
import re
import secrets
import shutil
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Union, get_args, get_origin, get_type_hints
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np

from cutmix.errors import UNREADABLE, InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_atomic(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that ``path`` always is either the old file or the whole new file.

    The bytes go to a hidden temporary file in the same folder, are flushed to the disk, and the temporary file is
    renamed to ``path``; a symbolic link at ``path`` is replaced, not followed. Temporary files of killed processes are
    removed first. Of several processes that write a ``path``, the last one's file stays; it may not be a device or a
    pipe.
    """
    path = Path(path)
    with _refused_writes(path):
        _check_replaceable(path)
        for other in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            with suppress(OSError), open(other, "rb") as file:
                if _lock(file):  # a process that still writes it, such as another shard, holds it
                    other.unlink()
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with open(temporary, "xb") as file:
                _lock(file)
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    with suppress(OSError):  # some file systems cannot sync a folder; the new file is complete either way
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _lock(file: BinaryIO) -> bool:
    """Lock an open file until it is closed; return whether no other process has it locked, as far as can be known."""
    with suppress(ImportError, OSError):  # no POSIX system, or one whose files cannot be locked
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files become those of the new or empty ``folder``; an error removes it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty; expected a new folder")
    with _refused_writes(folder):
        place = folder.resolve()
        place.parent.mkdir(parents=True, exist_ok=True)
        for stale in place.parent.glob(f".{glob.escape(place.name)}.*.tmp"):
            shutil.rmtree(stale)
        temporary = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
        temporary.mkdir()
        try:
            yield temporary
            if place.exists():
                for part in sorted(temporary.iterdir()):
                    os.replace(part, place / part.name)
            else:
                os.rename(temporary, place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, unless they exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
        raise InputError(f"{folder} could not be made: {reason}; expected a folder, or the name of a new one") from None


@contextmanager
def _refused_writes(path: Path) -> Iterator[None]:
    """Turn a refusal of the system to write into an InputError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save reports a failed write as a RuntimeError about positions in the archive.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        unchanged = f"; the previous {path.name} is unchanged" if os.path.exists(path) else ""
        raise InputError(f"{path} could not be written: {cause.strerror or cause}{unchanged}") from error


def _check_replaceable(path: Path) -> None:
    """Refuse a device or a pipe, also behind a link such as /dev/stdout, as a file would replace it."""
    with suppress(OSError):  # nothing is there, or a link to nothing
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or path.parent == Path("/dev"):
            raise InputError(f"{path} is a device or a pipe; expected the name of a file")


def open_no_link(path: str, flags: int) -> int:
    """Open a file without following a symbolic link or waiting for a pipe; the ``opener`` of ``open``."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def regular(path: Path) -> Path:
    """Return the path of a file to read; an OSError refuses a pipe or a device, which could keep the reader waiting."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is a pipe or a device", str(path))
    return path


def truncate(path: Path, size: int) -> None:
    """Truncate a file, which must not be a symbolic link, to ``size`` bytes."""
    with open(path, "r+b", opener=open_no_link) as file:
        file.truncate(size)


def why_not_written(error: OSError) -> str:
    """Return the reason of a refused write, as a clause for a message."""
    return "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror or str(error)


def to_json(value: Any, indent: int | None = None) -> bytes:
    """Encode a value as JSON in UTF-8, ended by a newline.

    A lone surrogate, which Python makes of a byte of a file name that is not UTF-8, is written as its JSON escape, so
    that every string is read back unchanged.
    """
    return (json.dumps(value, indent=indent, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line, whole or not at all; raises as ``append_lines``."""
    append_lines(path, [record])


def append_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Append a JSON line for each record, all of them or none; the file may not be a symbolic link."""
    lines = b"".join(map(to_json, records))
    size: int | None = None  # as long as it is not known, nothing is cut
    try:
        if path.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        size = _end_last_line(path) if path.exists() else 0
        with open(path, "ab", buffering=0, opener=open_no_link) as file:
            left = memoryview(lines)
            while left:  # a short write does not report its reason; the next write does
                written = file.write(left)
                if not written:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                left = left[written:]
    except OSError as error:
        with suppress(OSError):
            if size is not None:
                truncate(path, size)
        raise InputError(f"{path} could not be written: {why_not_written(error)}; nothing was changed") from None


def read_object(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file."""
    return parse_object(read_bytes(path), str(path))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file; none if the file does not exist.

    A last line without its newline was cut off while it was written, and is left out if it cannot be parsed.
    """
    if not path.exists():
        return []
    *lines, unended = read_bytes(path).split(b"\n")
    records = [parse_object(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]
    with suppress(InputError):
        records.append(parse_object(unended, str(path)))
    return records


def read_bytes(path: Path) -> bytes:
    """Return the content of a file; an InputError gives the reason if it cannot be read."""
    try:
        return regular(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def read_lenient_text(path: Path) -> str:
    """Return the text of a UTF-8 file, decoded as names of files are: other bytes become surrogates."""
    return read_bytes(path).decode("utf-8-sig", "surrogateescape")


def _end_last_line(path: Path) -> int:
    """Drop a last line that was cut short, complete a last line that only lacks its newline; return the size."""
    content = regular(path).read_bytes()
    last = content[content.rfind(b"\n") + 1 :]
    if last:
        try:
            json.loads(last)
        except (ValueError, RecursionError):
            if not last.startswith(b"{"):
                raise InputError(f"{path} does not hold JSON lines; choose another file") from None
            truncate(path, len(content) - len(last))
        else:
            with open(path, "ab", opener=open_no_link) as file:
                file.write(b"\n")
    return path.stat().st_size


def png_of(figure: "Figure") -> bytes:
    """Return a figure as a PNG file."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")  # a text in a script that the font lacks
        figure.savefig(file, format="png")
    return file.getvalue()


def outline(axis: Any, box: Iterable[float], color: str, style: Any = "solid") -> None:
    """Draw the frame of a box (left, top, right, bottom), with a black edge: visible on any image."""
    from matplotlib.patches import Rectangle  # slow to import
    from matplotlib.patheffects import Normal, Stroke

    left, top, right, bottom = map(float, box)
    frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color, linewidth=2, clip_on=False)
    frame.set(linestyle=style, path_effects=[Stroke(linewidth=3.5, foreground="black"), Normal()])
    axis.add_patch(frame)


_HALF_PAIR = re.compile("[\ud800-\udc7f\udd00-\udfff]")

Check = Callable[[Any], Any]  # return the value to store, or raise TypeError


def parse_json(text: bytes, where: str) -> Any:
    """Return the value of a JSON text in UTF-8; ``where`` names the file, and the line if there are several.

    Deep nesting, NaN, infinity and half a surrogate pair are refused, except Python's for a byte of a file name.
    """
    try:
        value = json.loads(text.decode(), parse_constant=_refuse_constant)
        if b"\\ud" not in text.lower() or not _HALF_PAIR.search(json.dumps(value, ensure_ascii=False)):
            return value
        reason = "has half a surrogate pair in a string"
    except RecursionError:
        reason = "is nested too deeply"
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError among them
        reason = f"is not JSON in UTF-8 ({error})"
    raise InputError(f"{where} {reason}; expected JSON") from None


def parse_object(text: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object of a text; raises as ``parse_json``, and for any other JSON value."""
    value = parse_json(text, where)
    if not isinstance(value, dict):
        raise InputError(f"{where} is {kind_of(value)}; expected one JSON object")
    return value


def check_fields(kind: type, values: Mapping[str, Any], where: str, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return values as arguments of a dataclass: lists become tuples, whole numbers floats where a float is meant.

    Values are those of JSON, NumPy's numbers, and paths, also for a text. Fields are numbers, texts, booleans, paths,
    ``Literal``, None, tuples of these, or mappings; one that is missing, unknown or of another type is refused.
    """
    missing = [name for name in required if name not in values]
    if missing:
        raise InputError(f"{where} has no field {missing[0]!r}; expected {_described(kind, missing[0])}")
    found = {}
    for name, value in values.items():
        if name not in _checks(kind):
            raise InputError(f"{where} has an unknown field {name!r}; expected the fields of {kind.__name__}")
        found[name] = check_field(kind, name, value, f"{where}: {name}")
    return found


def check_field(kind: type, name: str, value: Any, what: str) -> Any:
    """Return a value as ``check_fields`` does; ``what`` names it in errors."""
    try:
        return _checks(kind)[name](value)
    except TypeError:
        raise InputError(f"{what} is {kind_of(value)}; expected {_described(kind, name)}") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


@cache
def _checks(kind: type) -> dict[str, Check]:
    return {name: _check(hint) for name, hint in get_type_hints(kind).items()}


def _check(hint: Any) -> Check:
    """Return a function that converts a JSON value to a type, or raises TypeError."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _first_of([_check(one) for one in arguments])
    if origin is Literal:
        return lambda value: value if isinstance(value, str) and value in arguments else _refuse()
    if origin is tuple:
        return _tuple([_check(one) for one in arguments if one is not Ellipsis], ragged=Ellipsis in arguments)
    if hint is float:
        return _float
    if hint is int:  # NumPy's too, of a sweep
        return lambda value: int(value) if isinstance(value, Integral) and type(value) is not bool else _refuse()
    if hint is str:
        return lambda value: str(os.fspath(value)) if isinstance(value, str | os.PathLike) else _refuse()
    if hint is NoneType:
        return lambda value: value if value is None else _refuse()
    if hint is Path:
        return lambda value: Path(value) if isinstance(value, str | os.PathLike) else _refuse()
    wanted = dict if origin is not None else hint  # Mapping[str, Any]
    return lambda value: value if type(value) is wanted else _refuse()


def _first_of(checks: list[Check]) -> Check:
    def convert(value: Any) -> Any:
        for check in checks:
            try:
                return check(value)
            except TypeError:
                continue
        return _refuse()

    return convert


def _tuple(checks: list[Check], *, ragged: bool) -> Check:
    def convert(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or not (ragged or len(value) == len(checks)):
            _refuse()
        return tuple(check(one) for check, one in zip(checks * len(value) if ragged else checks, value, strict=True))

    return convert


def _float(value: Any) -> float:
    if type(value) is bool or not isinstance(value, Real):
        _refuse()
    try:
        number = float(value)
    except OverflowError:
        return _refuse()
    return number if math.isfinite(number) else _refuse()


def _refuse() -> Any:
    raise TypeError


def _described(kind: type, name: str) -> str:
    return _words(get_type_hints(kind)[name])


def _words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(_words, arguments))
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin is tuple:
        return f"a list of {_words(arguments[0]).removeprefix('a ')}s"
    words = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}
    words |= {Path: "a path"}
    return words.get(hint, "an object")


def kind_of(value: Any) -> str:
    """Return a JSON value in words, short enough for a sentence."""
    if value is None:
        return "null"
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = json.dumps(value, default=str)  # YAML has dates, bytes and sets
    return text if len(text) <= 60 else f"{text[:57]}..."


# ---- arrays ----


def read_arrays(path: Path, leave_out: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file that this package wrote, without pickled objects."""
    try:
        with open(regular(path), "rb") as file, ZipFile(file) as archive:
            file.seek(-22, os.SEEK_END)
            if int.from_bytes(file.read()[10:12], "little") != len(archive.infolist()):  # which zipfile ignores
                raise ValueError("its list of arrays is damaged")
            for member in archive.infolist():
                _check_announced(archive, member)
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files if name not in leave_out}
    except UNREADABLE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{path} cannot be read as arrays: {reason}; expected a file that cutmix wrote") from None


def _check_announced(archive: ZipFile, member: ZipInfo) -> None:
    """Compare the size in an array's header with the bytes that follow, before memory is allocated."""
    if member.compress_type != ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = read(file)
        announced, there = math.prod(shape) * kind.itemsize, member.file_size - file.tell()
    if announced > there and not kind.hasobject:
        raise ValueError(f"{member.filename} announces {announced:,} bytes and holds {there:,}")
