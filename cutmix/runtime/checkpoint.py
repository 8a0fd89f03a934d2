"""Files of tensors: verified, and read without running code from them.

A checkpoint holds the state of a run, and is written whole or not at all. The header of a file of weights names the
model, its training data and its preprocessing.
"""

import _codecs
import copy
import json
import math
import re
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from cutmix.errors import UNREADABLE, InputError
from cutmix.runtime.files import regular, write_atomic

# The pickled form of a NumPy number, under the names of NumPy 1 too; only dtypes of plain numbers, which cannot hold
# Python objects.
_NUMPY_NUMBERS: list[Any] = [
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")),
    np.dtype, _codecs.encode, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},
]  # fmt: skip

# Data types that training programs keep beside the weights. They are not needed and never called: an inert object takes
# their place.
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
    """Takes the place of any object of a foreign checkpoint."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...


_ALLOWED = [*_NUMPY_NUMBERS, defaultdict, *((_Inert, name) for name in _DATA)]


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Save the state of a run atomically: nested dictionaries, lists, tuples, tensors, numbers, strings and None."""
    write_atomic(path, lambda file: torch.save(state, file))


class Background:
    """Runs a job in a thread, such as writing a checkpoint, while the run continues; one at a time."""

    def __init__(self) -> None:
        self.job: Future[None] | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Start a job after the end of the one before."""
        self.wait()
        thread = ThreadPoolExecutor(1, "checkpoint")
        self.job = thread.submit(job)
        thread.shutdown(wait=False)

    def wait(self) -> None:
        """Wait until the job is done, and raise its error, if any."""
        job, self.job = self.job, None
        if job:
            job.result()


def copy_state(state: Any) -> Any:
    """Return a state whose tensors are copies on the CPU, which later steps do not change."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        copied = copy.copy(state)  # of its class and with its attributes, as a module's state has some
        copied.update((name, copy_state(value)) for name, value in state.items())
        return copied
    return type(state)(map(copy_state, state)) if type(state) in (list, tuple) else state


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a dictionary that ``torch.save`` wrote; every tensor is on the CPU.

    Code in the file is refused, never run, and every part is verified by its checksum. An object that is data but not a
    plain value, such as the arguments of a training program, is replaced by an empty object.
    """
    state = _unpickle(Path(path))
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}; a checkpoint is a dictionary")
    return state


def first_bytes(path: Path) -> bytes:
    """Return the first nine bytes of a file, by which its kind is recognized."""
    try:
        with open(regular(path), "rb") as file:
            first = file.read(9)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
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
            warnings.simplefilter("ignore")  # torch's remarks on foreign pickles precede the error
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything: RuntimeError, EOFError, KeyError, struct.error
        refused = re.search(r"GLOBAL (\S+)|Unsupported operand|allowlisted|TorchScript", str(error))
        if refused is None:
            raise InputError(f"{path} is damaged or incomplete and cannot be read") from error
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
        raise InputError(f"{path} is damaged or incomplete and cannot be read") from error
    if damaged:
        raise InputError(f"{path} is damaged: {damaged} does not match its checksum; copy it or train it again")


@dataclass(frozen=True)
class Header:
    """The header of a file of weights of this package; a field is None where the file does not give it."""

    model: str | None = None  # name of the model, as ``create_model`` takes it
    classes: tuple[str, ...] | None = None  # names of the classes, in the order of the outputs
    num_classes: int | None = None  # number of outputs
    in_chans: int | None = None  # channels of the images
    image_size: int | None = None  # side of the images in pixels
    mean: tuple[float, ...] | None = None  # of each channel, for pixels in [0, 1]
    std: tuple[float, ...] | None = None  # of each channel, for pixels in [0, 1]
    crop_fraction: float | None = None  # of image files: side of the crop as a share of the resized image
    squash: bool | None = None  # of image files: whether both sides are resized alike
    interpolation: Literal["bilinear", "bicubic"] | None = None  # of image files
    small: bool | None = None  # whether the training set is a set of small images, which are not cropped
    epoch: int | None = None  # epoch after which the weights were saved
    recipe: dict[str, Any] | None = None  # the fields of the recipe that trained the weights
    data: str | None = None  # fingerprint of the training set
    # whether an image can have several classes, so that each output is a yes-or-no answer
    multi_label: bool | None = None
    # probability from which on each class is predicted, where an image can have several
    thresholds: tuple[float, ...] | None = None


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file, also one whose name is not UTF-8, which its library does not take."""
    with ExitStack() as stack:
        name = str(path)
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            name = f"/dev/fd/{stack.enter_context(open(path, 'rb')).fileno()}"
        yield stack.enter_context(safe_open(name, framework="pt", device="cpu"))


def read_header(path: str | Path) -> Header:
    """Read the header of a file of weights, without its tensors.

    The header of another program's file is empty, or comes from timm's ``config.json`` beside the file.
    """
    path = Path(path)
    if first_bytes(path)[8:9] != b"{":
        return _timm_header(path)
    try:
        with open_safetensors(path) as file:
            strings = file.metadata() or {}
    except SafetensorError as error:
        raise InputError(f"{path} is damaged or incomplete ({error})") from error
    if "digest" not in strings:
        return _timm_header(path)
    values: dict[str, Any] = {}
    for name in {field.name for field in fields(Header)} & strings.keys():
        value, (fits, expected) = strings[name], _HEADER[name]
        with suppress(ValueError, RecursionError):
            value = value if name in ("model", "data") else json.loads(value)
        if not fits(value):
            raise InputError(f"{path} has {name} {str(value)[:80]} in its header; expected {expected}")
        values[name] = value
    return _header(path, values)


def timm_config(folder: Path) -> dict[str, Any] | None:
    """Return the description of a model that timm saved or published in a folder; None without one."""
    try:
        config = json.loads(regular(folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) and isinstance(config.get("architecture"), str) else None


def _timm_header(path: Path) -> Header:
    """Return the valid fields of timm's description of the model beside its weights."""
    config = timm_config(path.parent)
    if config is None or path.stem not in TIMM_NAMES:
        return Header()
    images = config.get("pretrained_cfg")
    images = images if isinstance(images, dict) else {}
    size = images.get("input_size") or (None,)
    told = {
        "model": config["architecture"], "num_classes": config.get("num_classes"), "in_chans": size[0],
        "image_size": size[-1], "mean": images.get("mean"), "std": images.get("std"),
        "crop_fraction": _rounded_down(size[-1], images.get("crop_pct")), "squash": images.get("crop_mode") == "squash",
        "interpolation": images.get("interpolation"),
        "classes": config.get("label_names") or images.get("label_names"),
    }  # fmt: skip
    return _header(path, {name: value for name, value in told.items() if _HEADER[name][0](value)})


def _rounded_down(size: Any, crop_pct: Any) -> Any:
    """Return timm's share of a crop with the side of the resized image rounded down, as timm does."""
    if type(size) is int and type(crop_pct) in (int, float) and 0 < crop_pct <= 1 <= size:
        return size / math.floor(size / crop_pct)
    return None


TIMM_NAMES = ("model", "pytorch_model", "open_clip_model")
"""Names of the files of weights beside timm's description."""


def _header(path: Path, values: dict[str, Any]) -> Header:
    """Return the header with these values, which must agree."""
    fixed: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in values.items()}
    header = Header(**fixed)
    channels = {len(numbers) for numbers in (header.mean, header.std) if numbers} | ({header.in_chans} - {None})
    outputs = {len(header.classes or ()), len(header.thresholds or ())} - {0} | ({header.num_classes} - {None})
    if len(channels) > 1 or len(outputs) > 1:
        raise InputError(f"{path} has a header that contradicts itself: numbers of classes or of channels differ")
    return header


def _whole(low: int, high: int) -> tuple[Callable[[Any], bool], str]:
    return lambda v: type(v) is int and low <= v <= high, f"a whole number from {low} to {high}"


def _numbers(low: float) -> tuple[Callable[[Any], bool], str]:
    def fits(value: Any) -> bool:
        return isinstance(value, list) and all(type(v) in (int, float) and low < v < 1e6 for v in value) and bool(value)

    return fits, f"a number above {low:g} for each channel"


# For each field of the header: whether a value fits, and what is expected.
_HEADER: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": (lambda v: isinstance(v, str) and 0 < len(v) < 200, "the name of a model"),
    "classes": (
        lambda v: isinstance(v, list) and bool(v) and all(isinstance(name, str) for name in v),
        "a list of names",
    ),
    "num_classes": _whole(1, 10_000_000), "in_chans": _whole(1, 10_000), "image_size": _whole(1, 16_384),
    "epoch": _whole(0, 1 << 40), "mean": _numbers(-1e6), "std": _numbers(0),
    "thresholds": (
        lambda v: isinstance(v, list) and bool(v) and all(type(t) is float and 0 < t < 1 for t in v),
        "a probability in (0, 1) for each class",
    ),
    "multi_label": (lambda v: isinstance(v, bool), "true or false"),
    "small": (lambda v: isinstance(v, bool), "true or false"),
    "squash": (lambda v: isinstance(v, bool), "true or false"),
    "crop_fraction": (lambda v: type(v) in (int, float) and 0 < v <= 1, "a share above 0, at most 1"),
    "interpolation": (lambda v: v in ("bilinear", "bicubic"), "bilinear or bicubic"),
    "recipe": (lambda v: isinstance(v, dict), "the fields of a recipe"),
    "data": (lambda v: len(v) < 200, "a fingerprint"),
}  # fmt: skip
