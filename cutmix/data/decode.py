"""Decode image files to upright RGB pixels."""

import contextlib
import hashlib
import io
import logging
import math
import re
import stat
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from cutmix.config.options import CORES
from cutmix.data.sources import Source, Stored, known_formats
from cutmix.errors import InputError, missing_extra
from cutmix.runtime.files import regular
from cutmix.runtime.terminal import warnings_of

try:
    import simplejpeg
except ImportError:  # no wheel for this platform: Pillow decodes everything
    simplejpeg = None

FAST_JPEG = simplejpeg is not None
"""Whether ``read_jpeg`` reads anything."""

_log = logging.getLogger(__name__)

_TGA = (".tga", ".icb", ".vda", ".vst")  # any bytes may seem to be of this format, so that the name decides

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_image(path: Source, *, skippable: bool = False) -> Image.Image:
    """Decode one image file to RGB.

    The EXIF orientation is applied if it can be read. Transparent pixels are laid on white, the page that such images
    are drawn for; the colours stored beneath the transparency are arbitrary. 16-bit grey is scaled to 8 bits. Of an
    animation the first frame is taken. Images of more than Pillow's limit of 179 million pixels are refused. With
    ``skippable``, an error suggests --skip-unreadable.
    """
    with _opened(path, skippable) as image:
        image.load()
        return to_rgb(image)


Decoded = Image.Image | np.ndarray
"""A grey or RGB image, or (H, W, C) uint8 of another number of channels."""

_ALPHA = {2: "LA", 4: "RGBA"}


def read_channels(path: Source, channels: int, *, skippable: bool = False) -> Decoded:
    """Decode one image file to 1 to 16 channels.

    One channel is the luminance and three are RGB, both of the result of ``read_image``. A file with exactly as many
    bands is not converted; its 16-bit values are scaled to 8 bits. Of any other file, two channels are luminance and
    opacity, four are RGB and opacity. TIFF files whose bands Pillow does not know are read by tifffile.
    """
    if channels in (1, 3):
        image = read_image(path, skippable=skippable)
        return image.convert("L") if channels == 1 else image
    try:
        if path.suffix.lower() in (".tif", ".tiff") and (bands := _read_bands(path)).shape[2] == channels:
            return bands
        with _opened(path, skippable) as image:
            image.load()
            image = _of_8_bits(image if (turn := _TURNS.get(_orientation(image))) is None else image.transpose(turn))
            if (len(image.getbands()) != channels or image.mode == "P") and channels in _ALPHA:
                image = image.convert(_ALPHA[channels])
            if len(image.getbands()) == channels:
                return np.array(image)
            raise InputError(f"it has {len(image.getbands())} channels; expected {channels}, the value of --channels")
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError(f"{path} cannot be read as an image ({error}): repair or remove it") from None


MOST_PIXELS = 178_956_970
"""Pillow's limit for an image, which a TIFF file of several bands has for each of 16."""


def _read_bands(path: Source) -> np.ndarray:
    """Return the bands of a TIFF file, (H, W, C) uint8, whether they are samples of a page or pages."""
    try:
        import tifffile
    except ImportError:
        raise missing_extra(f"{path}: TIFF files of several bands", "tiff") from None
    try:
        with tifffile.TiffFile(io.BytesIO(path.read_bytes()) if isinstance(path, Stored) else regular(path)) as file:
            series = file.series[0]
            if math.prod(series.shape) > MOST_PIXELS * 16:
                raise InputError(
                    f"it announces {math.prod(series.shape):,} values; expected at most {MOST_PIXELS * 16:,}"
                )
            if not {"Y", "X"} <= set(series.axes):
                raise InputError(f"its axes are {series.axes}; expected Y and X among them")
            pixels, axes = series.asarray(), series.axes
    except Exception as error:  # damaged files make the decoder raise almost anything
        raise InputError(" ".join(str(error).split()) or type(error).__name__) from None
    rows, columns = axes.index("Y"), axes.index("X")
    pixels = np.moveaxis(pixels, (rows, columns), (0, 1)).reshape(pixels.shape[rows], pixels.shape[columns], -1)
    if pixels.dtype == np.uint16:
        _note_depth(path)
        pixels = ((pixels.astype(np.int32) + 128) // 257).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise InputError(f"its values are {pixels.dtype}; expected 8 or 16 bits without a sign")
    return pixels


def displayed(image: Decoded) -> Image.Image:
    """Return an image for display: of more than two channels the first three as RGB, of two the first as grey."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    return Image.fromarray(image[..., :3] if image.shape[2] > 2 else image[..., 0]).convert("RGB")


class Header(NamedTuple):
    """The header of an image file."""

    size: tuple[int, int]  # width and height of the upright image
    orientation: int  # EXIF's, 1 to 8; from 5 on, width and height are exchanged in the file


def read_header(path: Source) -> Header:
    """Read the header of an image file."""
    with _opened(path) as image:
        orientation, (width, height) = _orientation(image), image.size
        if image.format == "TIFF":  # whose size newer releases of Pillow turn, whether the pixels are turned yet or not
            width, height = (image.tag_v2[tag] for tag in (256, 257))  # type: ignore[attr-defined]
        return Header((height, width) if orientation >= 5 else (width, height), orientation)


@contextlib.contextmanager
def _opened(path: Source, skippable: bool = False) -> Iterator[Image.Image]:
    """Open an image file; every error becomes an ``InputError`` with its name."""
    file: Path | io.BytesIO
    try:
        if isinstance(path, Stored):
            content = path.read_bytes()
            file, size = io.BytesIO(content), len(content)
        else:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
                raise InputError("it is not a regular file")
            file, size = path, status.st_size
        if not size:
            raise InputError("the file is empty")
        known = known_formats()
        formats = [*known, "TGA"] if path.suffix.lower() in _TGA else known
        with warnings_of(str(path)), Image.open(file, formats=formats) as image:
            if any(";16" in str(tile[3]) for tile in image.tile):
                _note_depth(path)
            yield image
    except Exception as error:  # damaged files make the decoders raise almost anything
        told = error.strerror if isinstance(error, OSError) else None
        reason = told or " ".join(str(error).replace(repr(str(path)), "").split()) or type(error).__name__
        skip = ", or leave such files out with --skip-unreadable (skip_unreadable=True)" if skippable else ""
        raise InputError(f"{path} cannot be read as an image ({reason}): repair or remove it{skip}") from None


_DEEP: list[Source] = []  # the first image of 16 bits a channel in this process


def _note_depth(path: Source) -> None:
    """Log once that images of 16 bits a channel become images of 8."""
    if not _DEEP:
        _DEEP.append(path)
        _log.warning("%s has 16 bits a channel; of such images, 0 to 65535 become 0 to 255", path)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where it is missing, damaged or of a wrong type."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        number = int(value[0] if isinstance(value, tuple) else value)
    except Exception:  # the pixels decide whether the image is good
        return 1
    return number if number in _TURNS else 1


# ---- plain JPEG files ----

_TURNED = {  # of an orientation: whether rows are columns, and which of them run backwards in the file
    1: (False, 1, 1), 2: (False, 1, -1), 3: (False, -1, -1), 4: (False, -1, 1),
    5: (True, 1, 1), 6: (True, -1, 1), 7: (True, -1, -1), 8: (True, 1, -1),
}  # fmt: skip


_REUSED = 16 << 20
"""Bytes of pixels up to which a thread keeps the memory: new memory costs a quarter of the time of decoding."""

_THREAD = threading.local()

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")  # of a JPEG's end, or of another scan


class Jpeg(NamedTuple):
    """A plain JPEG file: baseline or progressive, 8 bits, grey or three components."""

    content: bytes  # the whole file
    size: tuple[int, int]  # width and height of the upright image
    orientation: int  # EXIF's, 1 to 8
    frame: int  # offset of the height in the file
    scan: int  # offset at which the header ends

    def decode(self, reduce: int = 1, rows: int | None = None) -> np.ndarray | None:
        """Return the upright pixels, (H, W, 3) uint8; None for a damaged file, which ``read_image`` judges.

        They are valid until this thread decodes another file. Both sides are divided by ``reduce``, 1, 2, 4 or 8,
        rounding up: the decoder computes fewer pixels. Pixels below the first ``rows`` of the image may be missing.
        """
        width, height = self.size if self.orientation < 5 else self.size[::-1]
        content, whole = self.content, True
        needed = height if rows is None or self.orientation > 2 else rows + 4 * reduce  # some to interpolate with
        if needed < height and self._is_plain():
            # the decoder then warns of data behind the last row, as it would of damage
            height, whole = needed, False
            content = b"".join((content[: self.frame], struct.pack(">H", height), content[self.frame + 2 :]))
        least = {"min_height": -(-height // reduce), "min_width": -(-width // reduce)} if reduce > 1 else {}
        memory = None
        if (taken := 3 * -(-width // reduce) * -(-height // reduce)) <= _REUSED:
            memory = getattr(_THREAD, "memory", None)
            if memory is None or memory.size < taken:
                memory = _THREAD.memory = np.empty(taken, np.uint8)
        try:
            pixels = simplejpeg.decode_jpeg(content, "RGB", buffer=memory, strict=whole, **least)
        except ValueError:
            return None
        exchanged, down, across = _TURNED[self.orientation]
        turned = pixels[::down, ::across]
        return turned.swapaxes(0, 1) if exchanged else turned

    def _is_plain(self) -> bool:
        """Return whether the pixels are one scan without a stray marker, for which Pillow would refuse the file."""
        marker = _MARKER.search(self.content, self.scan + 2)
        return marker is not None and self.content[marker.start() :] == b"\xff\xd9"


def read_jpeg(path: Source) -> Jpeg | None:
    """Read a plain JPEG file without decoding it; None for any other file, which ``read_image`` decodes or refuses."""
    if simplejpeg is None:
        return None
    try:
        if isinstance(path, Path) and not stat.S_ISREG(path.stat().st_mode):
            return None
        content = path.read_bytes()
        size, described, frame, scan = _scan_header(content)
        if not size or size[0] * size[1] > (Image.MAX_IMAGE_PIXELS or math.inf):
            return None
        if not described:
            return Jpeg(content, size, 1, frame, scan)
        with warnings_of(str(path)), Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            orientation = _orientation(image)
    except (OSError, struct.error, IndexError, SyntaxError, ValueError):
        return None
    return Jpeg(content, size if orientation < 5 else size[::-1], orientation, frame, scan)


def _scan_header(content: bytes) -> tuple[tuple[int, int] | None, bool, int, int]:
    """Return a plain JPEG's width and height, or None, whether a segment may hold an orientation, and two offsets.

    These are the offsets of the height and of the end of the header.
    """
    size, described, frame, at = None, False, 0, 2
    if content[:2] != b"\xff\xd8":
        return None, False, 0, 0
    while content[at] == 0xFF and (marker := content[at + 1]) != 0xDA:  # until the pixels start
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, components = struct.unpack_from(">BHHB", content, at + 4)
            if marker > 0xC2 or bits != 8 or components not in (1, 3) or not width * height:
                return None, False, 0, 0
            size, frame = (width, height), at + 5
        described |= marker == 0xE1
        at += 2 + struct.unpack_from(">H", content, at + 2)[0]
    return size, described, frame, at


def read_same_size(
    paths: Sequence[Source],
    height: int,
    width: int,
    read: Callable[[Source], np.ndarray] | None = None,
    channels: int = 3,
) -> Tensor:
    """Decode many images of one size, in threads, into one tensor (N, channels, height, width) uint8.

    ``read`` makes (height, width, channels) uint8 of a file; without it each image must have that size.
    """
    images = torch.empty((len(paths), channels, height, width), dtype=torch.uint8)
    pixels = images.numpy()

    def read_into(index: int) -> None:
        if read:
            pixels[index] = read(paths[index]).transpose(2, 0, 1)
            return
        image = read_image(paths[index], skippable=True)
        if image.size != (width, height):
            raise InputError(
                f"{paths[index]} is {image.width}×{image.height} pixels; expected {width}×{height} as every image of "
                "this data set has"
            )
        pixels[index] = np.asarray(image).transpose(2, 0, 1)

    in_threads(read_into, range(len(paths)))
    return images


class Pixels(NamedTuple):
    """The size and the digest of a decoded image file."""

    size: tuple[int, int]  # width and height, upright
    digest: bytes  # of size and pixels: equal for the same image in another file or format
    thumbnail: bytes  # its luminance at 16×16 pixels, row by row


_DIGESTS: dict[tuple[Path, int, int, int], Pixels | InputError] = {}  # of unchanged files that this process has decoded


def digest_pixels(path: Source, channels: int = 3) -> Pixels | InputError:
    """Decode an image file; return its size and digest, or the error that refuses it."""
    if isinstance(path, Stored):
        return _digest_pixels(path, channels)
    try:
        status = path.stat()
    except OSError:
        return _digest_pixels(path, channels)
    key = (path, status.st_size, status.st_mtime_ns, channels)
    if key not in _DIGESTS:
        _DIGESTS[key] = _digest_pixels(path, channels)
    return _DIGESTS[key]


def _digest_pixels(path: Source, channels: int) -> Pixels | InputError:
    try:
        image = read_channels(path, channels, skippable=True)
    except InputError as error:
        return error
    size = size_of(image)
    digest = hashlib.blake2b(repr(size).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    thumbnail = displayed(image).convert("L").resize((16, 16), Image.Resampling.HAMMING)
    return Pixels(size, digest.digest(), thumbnail.tobytes())


def size_of(image: Decoded) -> tuple[int, int]:
    """Return the width and height of an image."""
    return image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])


def find_unreadable(paths: Sequence[Path], channels: int = 3) -> set[Path]:
    """Decode every file, in threads, and return those that :func:`read_channels` refuses."""
    found = in_threads(partial(digest_pixels, channels=channels), paths)
    return {path for path, each in zip(paths, found, strict=True) if isinstance(each, InputError)}


def decoding_threads(number: int | None = None) -> ThreadPoolExecutor:
    """Return as many threads as given or as this process has cores; none starts PyTorch's own to resize."""
    count, others = number or CORES, torch.get_num_threads()
    started = threading.Barrier(count + 1)

    def start() -> None:
        torch.set_num_threads(1)  # of this thread, and of every thread that asks for the first time
        torch.get_num_threads()
        started.wait()

    threads = ThreadPoolExecutor(count, "decode", start)
    try:
        for _ in range(count):
            threads.submit(int)
        started.wait()
    except RuntimeError as error:  # of the system, which starts no more threads
        started.abort()
        raise InputError(f"{count} decoding threads cannot be started; expected fewer --workers") from error
    finally:
        torch.set_num_threads(others)
    return threads


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return a function's results for all items, computed in threads; the first error ends the work."""
    threads = decoding_threads()
    try:
        return list(threads.map(function, items))
    finally:
        threads.shutdown(cancel_futures=True)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the upright RGB image of a decoded one."""
    image = _of_8_bits(image if (turn := _TURNS.get(_orientation(image))) is None else image.transpose(turn))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        page = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(page, image).convert("RGB")
    return image.convert("RGB")


def _of_8_bits(image: Image.Image) -> Image.Image:
    """Return an image with grey of 16 bits scaled to 8, which Pillow would clip; refuse floating-point pixels."""
    if image.mode == "F":
        raise InputError("floating-point pixels have no defined range")
    if not image.mode.startswith("I"):
        return image
    grey = np.asarray(image).astype(np.int32)
    if grey.min() < 0 or grey.max() > 65535:
        raise InputError("grey values outside 16 bits")
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8))
