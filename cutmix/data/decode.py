"""From an image file to upright RGB pixels."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from cutmix.errors import InputError


def read_image(path: Path, *, skippable: bool = False) -> Image.Image:
    """Decode one image file.

    The EXIF orientation is applied. Transparent pixels are laid on white, the page that such pictures are drawn for;
    the colours stored beneath the transparency are arbitrary and would differ from what a person sees. 16-bit grey
    is scaled to 8 bits. Of an animation the first frame is taken.

    Args:
        path: The file.
        skippable: Whether who reads it could leave it out by --skip-unreadable, which an error then offers.

    Returns:
        An RGB image.

    Raises:
        InputError: The file is missing, empty, truncated, damaged, too large to be a photograph, or no image at all.
    """
    with _opened(path, skippable) as image:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))


def image_size(path: Path) -> tuple[int, int]:
    """Return the width and height of the image that :func:`read_image` makes, from the file's header.

    Raises:
        InputError: The file is missing, empty, or has no such header.
    """
    with _opened(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return (image.height, image.width) if turned else image.size


@contextlib.contextmanager
def _opened(path: Path, skippable: bool = False) -> Iterator[Image.Image]:
    """Open an image file; whatever goes wrong with it is an ``InputError`` with its name."""
    try:
        if path.stat().st_size == 0:
            raise InputError("the file is empty")
        with Image.open(path) as image:
            yield image
    except Exception as error:  # damaged files make the decoders raise almost anything
        reason = " ".join(str(error).replace(repr(str(path)), "").split()) or type(error).__name__
        skip = ", or leave such files out with --skip-unreadable (skip_unreadable=True)" if skippable else ""
        raise InputError(f"{path} cannot be read as an image ({reason}): repair or remove it{skip}") from None


def read_same_size(
    paths: Sequence[Path], height: int, width: int, transform: Callable[[Image.Image], Tensor] | None = None
) -> Tensor:
    """Decode many images, in threads, into one tensor.

    Args:
        paths: The files.
        height: Of every image.
        width: Of every image.
        transform: Makes (3, height, width) uint8 of an image; without it each must have that size.

    Returns:
        (N, 3, height, width) uint8.

    Raises:
        InputError: A file cannot be read or has another size.
    """
    images = torch.empty((len(paths), 3, height, width), dtype=torch.uint8)
    pixels = images.numpy()

    def read(index: int) -> None:
        image = read_image(paths[index], skippable=True)
        if transform:
            pixels[index] = transform(image).numpy()
            return
        if image.size != (width, height):
            raise InputError(
                f"{paths[index]} is {image.width}×{image.height} pixels, where every image of this data set is "
                f"{width}×{height}"
            )
        pixels[index] = np.asarray(image).transpose(2, 0, 1)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(read, range(len(paths))):
            pass
    return images


def find_unreadable(paths: Sequence[Path]) -> set[Path]:
    """Decode every file, in threads, and return those that :func:`read_image` refuses."""

    def fails(path: Path) -> bool:
        try:
            read_image(path)
        except InputError:
            return True
        return False

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return {path for path, failed in zip(paths, threads.map(fails, paths), strict=True) if failed}


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise InputError("floating-point pixels have no defined range")
    if image.mode.startswith("I"):  # 16 bits a pixel, which PIL would clip to 8 instead of scaling
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise InputError("grey values outside 16 bits")
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        page = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(page, image).convert("RGB")
    return image.convert("RGB")
