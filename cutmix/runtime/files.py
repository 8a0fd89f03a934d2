"""JSON lines: appended whole or not at all, read up to a line that was cut short. No torch here."""

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cutmix.errors import InputError


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line, whole or not at all; raises as ``append_lines``."""
    append_lines(path, [record])


def append_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Append a JSON line for each record, all of them or none.

    Raises:
        InputError: If they could not be written, as on a full disk; the file is then as it was.
    """
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    size: int | None = None  # until it is known, nothing is cut
    try:
        size = _end_last_line(path) if path.exists() else 0
        with open(path, "ab", buffering=0) as file:
            left = memoryview(lines)
            while left:  # a write that is cut short does not say why; the next one does
                written = file.write(left)
                if not written:
                    raise OSError(28, "No space left on device")
                left = left[written:]
    except OSError as error:
        with suppress(OSError):
            if size is not None:
                os.truncate(path, size)
        raise InputError(f"{path} could not be written: {error.strerror}; nothing was changed") from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file, none when the file is absent.

    A last line without its newline was cut off while it was written, and is left out when it cannot be read.

    Raises:
        InputError: If another line is damaged or holds no object.
    """
    if not path.exists():
        return []
    *lines, unended = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError:
            raise InputError(f"{path}, line {number} is damaged; expected one JSON object a line") from None
    with suppress(ValueError):
        records.append(json.loads(unended))
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {number} is no JSON object; expected one a line")
    return records


def _end_last_line(path: Path) -> int:
    """Drop a last line that was cut short, end one that only lacks its newline, and return the size."""
    content = path.read_bytes()
    last = content[content.rfind(b"\n") + 1 :]
    if last:
        try:
            json.loads(last)
        except ValueError:
            if not last.startswith(b"{"):
                raise InputError(f"{path} holds something else than JSON lines; give another file") from None
            os.truncate(path, len(content) - len(last))
        else:
            with open(path, "ab") as file:
                file.write(b"\n")
    return path.stat().st_size
