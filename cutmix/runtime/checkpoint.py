"""The state of a run in a file: written whole or not at all, verified, and read without running code from it."""

import _codecs
import re
import warnings
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cutmix.errors import UNREADABLE, InputError
from cutmix.runtime.files import regular, write_atomic

# What a NumPy number is pickled as, under the names of NumPy 1 too; only dtypes of plain numbers, so that no Python
# object can come with one.
_NUMPY_NUMBERS: list[Any] = [
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")),
    np.dtype, _codecs.encode, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},
]  # fmt: skip

# Types that training programs keep beside the weights, and that are data. Nothing of them is needed and nothing of
# them is called: an inert object takes their place.
_DATA = (
    "argparse.Namespace", "types.SimpleNamespace", "collections.Counter", "builtins.slice",
    "builtins.range", "builtins.frozenset", "builtins.complex", "datetime.datetime", "datetime.date",
    "datetime.timedelta", "uuid.UUID", "decimal.Decimal", "fractions.Fraction",
    *(f"pathlib{module}.{name}" for module in ("", "._local") for name in (
        "Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")),
    *(f"numpy{core}.multiarray._reconstruct" for core in (".core", "._core")), "numpy.ndarray",
    *(f"omegaconf.{name}" for name in (
        "dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata", "base.Metadata", "nodes.AnyNode")),
    "typing.Any", "easydict.EasyDict", "yacs.config.CfgNode", "addict.addict.Dict",
)  # fmt: skip


class _Inert:
    """Takes the place of an object of a foreign checkpoint, whatever it is made of."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...


_ALLOWED = [*_NUMPY_NUMBERS, defaultdict, *((_Inert, name) for name in _DATA)]


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Save the state of a run atomically.

    Args:
        path: The file to write.
        state: Nested dictionaries, lists, tuples, tensors, numbers, strings and None: what ``load_checkpoint`` reads.

    Raises:
        InputError: The system refused to write; the previous file is unchanged.
    """
    write_atomic(path, lambda file: torch.save(state, file))


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a dictionary that ``torch.save`` wrote; every tensor is on the CPU.

    Code in the file is refused, never run, and every part is verified by its checksum. An object that is data but no
    plain value, such as the arguments of a training program, is replaced by an empty object.

    Raises:
        InputError: The file is missing, damaged, not a checkpoint, or holds Python objects other than plain data.
    """
    state = _unpickle(Path(path))
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}; a checkpoint is a dictionary")
    return state


def first_bytes(path: Path) -> bytes:
    """Return the first nine bytes of a file, by which its kind is recognised."""
    try:
        with open(regular(path), "rb") as file:
            first = file.read(9)
    except OSError as error:
        raise InputError(f"{path} could not be read: {error.strerror or error}") from error
    if not first:
        raise InputError(f"{path} is empty; a file of weights or a checkpoint is expected")
    return first


def _unpickle(path: Path) -> Any:
    first = first_bytes(path)
    if not first.startswith((b"PK\x03\x04", b"\x80")):  # a zip, or the pickle of PyTorch before 1.6
        raise InputError(f"{path} is not a checkpoint: expected a file written by torch.save or safetensors")
    if first.startswith(b"PK"):
        _verify(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_ALLOWED):
            warnings.simplefilter("ignore")  # torch's remarks on foreign pickles precede the error that says it
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything: RuntimeError, EOFError, KeyError, struct.error
        refused = re.search(r"GLOBAL (\S+)|Unsupported operand|allowlisted|TorchScript", str(error))
        if refused is None:
            raise InputError(f"{path} is damaged or incomplete and could not be read") from error
        raise InputError(
            f"{path} holds Python objects ({refused[1] or 'of an unknown kind'}), which could run code, and was not"
            " loaded: expected tensors and plain data, as torch.save(model.state_dict(), path) writes"
        ) from error


def _verify(path: Path) -> None:
    """Compare the parts of a zip with their checksums, which PyTorch does not do; those of 0 were not computed."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            if sum(part.file_size for part in parts) > 2 * path.stat().st_size + (1 << 26):
                raise InputError(f"{path} is damaged or compressed: its parts announce more than the file holds")
            damaged = archive.testzip() if any(part.CRC for part in parts) else None
    except InputError:
        raise
    except (*UNREADABLE, NotImplementedError) as error:
        raise InputError(f"{path} is damaged or incomplete and could not be read") from error
    if damaged:
        raise InputError(f"{path} is damaged: {damaged} does not match its checksum; copy it or train it again")
