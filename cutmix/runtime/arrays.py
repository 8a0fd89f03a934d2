"""Files of arrays, which are checked before memory is asked for. No torch here."""

import math
import os
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np

from cutmix.errors import UNREADABLE, InputError
from cutmix.runtime.files import regular


def read_arrays(path: Path, leave_out: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file that this package wrote.

    Args:
        path: The file.
        leave_out: Arrays that are not read.

    Raises:
        InputError: If the file is missing or damaged, holds pickled objects, or announces more than it holds.
    """
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
    """Compare the size in an array's header with the bytes that follow, before memory is asked for."""
    if member.compress_type != ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = read(file)
        announced, there = math.prod(shape) * kind.itemsize, member.file_size - file.tell()
    if announced > there and not kind.hasobject:
        raise ValueError(f"{member.filename} announces {announced:,} bytes and holds {there:,}")
