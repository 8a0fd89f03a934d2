"""Images for out-of-distribution detection: the seven sets of the paper's Table 12, and any other.

Source: the sets are those of ODIN (Liang et al. 2018): patches of 32×32 pixels cropped at random from Tiny-ImageNet and
LSUN, images of both and of iSUN scaled down, and two kinds of noise. The noise is drawn as in ODIN's ``calData.py``.
Tiny-ImageNet is cropped and scaled here, from its labelled validation images; ODIN took the test images, and its crops
are known from its archive alone.
"""

import hashlib
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from cutmix.data.decode import read_image, read_same_size
from cutmix.data.folder import is_hidden, is_image, list_images
from cutmix.data.opening import data_roots, is_small, open_data
from cutmix.data.sets import ArraySet, random_subset
from cutmix.data.sources import Source
from cutmix.errors import InputError, did_you_mean
from cutmix.runtime.files import regular
from cutmix.runtime.seeding import derive_seed

SEVEN = ("tiny-imagenet-crop", "tiny-imagenet-resize", "lsun-crop", "lsun-resize", "isun", "uniform", "gaussian")

Shape = tuple[int, int, int]

_ARCHIVES = {  # ODIN's names, and the MD5 of its archives
    "lsun-crop": ("LSUN", "458a0a0ab8e5f1cb4516d7400568e460"),
    "lsun-resize": ("LSUN_resize", "278b7b31c8cb7e804a1465a8ce03a2dc"),
    "isun": ("iSUN", "be77b0f2c26fda898afac5f99645ee70"),
}
_ARTEFACTS = (
    "ODIN scaled these images down without antialiasing, and the artefacts alone give them away: on LSUN an AUROC of "
    "91.7 was 88.1 once they were scaled properly"
)
_NOTES = {
    "tiny-imagenet-crop": "cropped here, at random, from the validation images; ODIN's archive has other crops, of the "
    "test images",
    "tiny-imagenet-resize": "scaled down here with antialiasing; in ODIN's archive artefacts of scaling give the "
    "images away, so published figures are higher",
    "lsun-resize": _ARTEFACTS,
    "isun": _ARTEFACTS,
}
_CHUNK = 256


@dataclass(frozen=True, eq=False)
class Outliers:
    """Images from outside the distribution of a classifier's training images.

    Attributes:
        name: The name or folder.
        count: Number of images.
        draw: Returns the images from a first to before a last as (n, C, H, W) float32 in [0, 1]; always the same ones.
        note: A remark that belongs to every result on these images, or None.
    """

    name: str
    count: int
    draw: Callable[[int, int], Tensor]
    note: str | None = None

    def __len__(self) -> int:
        return self.count

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield all images, ``size`` at a time."""
        for start in range(0, self.count, size):
            yield self.draw(start, min(start + size, self.count))


def open_outliers(name: str, shape: Shape, *, count: int, seed: int = 0) -> Outliers:
    """Open out-of-distribution images in the input shape of a classifier.

    Image files are scaled to cover the shape (bilinear, antialiased) and cropped in the centre, which is the test
    transform with ``crop_fraction`` 1; images of a known small set are scaled as a whole; a set of crops is cropped,
    never scaled down. Grey images are repeated for three channels; colours are weighted by 0.299, 0.587 and 0.114 for
    one channel. Images are kept as uint8; noise is drawn on demand, each image from its own stream, and not rounded.

    Args:
        name: "tiny-imagenet-crop", "tiny-imagenet-resize", "lsun-crop", "lsun-resize", "isun", "uniform",
            "gaussian"; a data set as ``open_data`` takes it, whose test images are used; or a folder of images, at
            any depth. ODIN's archives, or the folders unpacked from them, are looked up in ``$CUTMIX_DATA``, then in
            ``./data``, and are never downloaded.
        shape: Channels, height and width, in pixels.
        count: Maximum number of images; of a larger set a random subset, in its order.
        seed: Of the noise, the crops and that subset.

    Raises:
        InputError: Nothing usable is there, an archive is not ODIN's, or the images do not fit.
    """
    if count < 1 or shape[0] not in (1, 3):
        raise InputError(f"count is {count} and channels {shape[0]}; expected at least one image, with 1 or 3 channels")
    if name in ("uniform", "gaussian"):
        return Outliers(name, count, lambda first, last: _noise(name, shape, first, last, seed))
    if name in _ARCHIVES:
        images = _read_archive(name, shape, count, seed)
    elif name in ("tiny-imagenet-crop", "tiny-imagenet-resize"):
        images = _tiny_imagenet(name, shape, count, seed)
    else:
        images = _open_other(name, shape, count, seed)
    return Outliers(name, len(images), lambda first, last: images[first:last].float() / 255, _NOTES.get(name))


def _noise(name: str, shape: Shape, first: int, last: int, seed: int) -> Tensor:
    """Draw ODIN's noise: U[0, 1), or N(0.5, 1) clipped to [0, 1], independent for every pixel and channel."""
    images = torch.empty((last - first, *shape))
    generator = torch.Generator()
    for index, image in enumerate(images, first):
        generator.manual_seed(derive_seed(seed, name, index))
        if name == "uniform":
            image.uniform_(generator=generator)
        else:
            image.normal_(0.5, 1.0, generator=generator).clamp_(0, 1)
    return images


def _tiny_imagenet(name: str, shape: Shape, count: int, seed: int) -> Tensor:
    data = open_data("tiny-imagenet-200", "test")
    assert isinstance(data, ArraySet)
    images = data.images[_part(len(data), count, seed)]
    if name == "tiny-imagenet-resize":
        return _fit_tensor(images, shape)
    (n, _, *size), (_, height, width) = images.shape, shape
    if height > size[0] or width > size[1]:
        raise InputError(
            f"{name} cannot be cropped to {height}×{width}: its images have {size[0]}×{size[1]} pixels; take "
            "tiny-imagenet-resize"
        )
    generator = torch.Generator().manual_seed(derive_seed(seed, name, "crop"))
    top = torch.randint(size[0] - height + 1, (n, 1, 1, 1), generator=generator)
    left = torch.randint(size[1] - width + 1, (n, 1, 1, 1), generator=generator)
    rows, columns = top + torch.arange(height).view(-1, 1), left + torch.arange(width)
    crops = images[torch.arange(n).view(-1, 1, 1, 1), torch.arange(3).view(-1, 1, 1), rows, columns]
    return _fit_tensor(crops, shape)


def _open_other(name: str, shape: Shape, count: int, seed: int) -> Tensor:
    """Open a known set, or any folder of images."""
    paths: Sequence[Source]
    folder = Path(name).expanduser()
    if folder.is_dir() and not is_small(name):
        paths = _images(folder)
        if not paths:
            raise InputError(f"{name} holds no images; expected some, at any depth")
    else:
        hint = "" if folder.exists() else did_you_mean(name.lower(), SEVEN, cutoff=0.85)
        if hint:  # closer than any data set's name is to it
            raise InputError(f"'{name}' is not a set of outliers: {hint}")
        data = open_data(name, "test")
        if isinstance(data, ArraySet):
            return _fit_tensor(data.images[_part(len(data), count, seed)], shape)
        paths = data.paths
    chosen = [paths[index] for index in _part(len(paths), count, seed)]
    return _fit_tensor(
        read_same_size(chosen, *shape[1:], lambda path: _fit_image(read_image(path, skippable=True), shape)), shape
    )


def _part(n: int, count: int, seed: int) -> Tensor:
    """Return the sorted indices of the chosen ones of n images."""
    return random_subset(n, count, derive_seed(seed, "outliers", "part")) if n > count else torch.arange(n)


# ---- ODIN's archives ----


def _read_archive(name: str, shape: Shape, count: int, seed: int) -> Tensor:
    stem, md5 = _ARCHIVES[name]
    roots, where = data_roots()
    places = [place for root in roots for place in (root, root / stem)]
    archive = next((file for place in places if (file := place / f"{stem}.tar.gz").is_file()), None)
    crop = name.endswith("-crop")
    if archive:
        return _read_tar(archive, md5, name, shape, count, seed)
    paths = next((found for root in roots if (root / stem).is_dir() and (found := _images(root / stem))), [])
    if not paths:
        raise InputError(
            f"{name} was not found in {where}: put ODIN's {stem}.tar.gz there, or the folder {stem} unpacked from it"
        )
    chosen = [paths[index] for index in _part(len(paths), count, seed)]
    images = read_same_size(chosen, *shape[1:], lambda path: _fit_image(read_image(path, skippable=True), shape, crop))
    return _fit_tensor(images, shape)


def _read_tar(archive: Path, md5: str, name: str, shape: Shape, count: int, seed: int) -> Tensor:
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise InputError(f"{archive} has the MD5 {found}, and ODIN's has {md5}: fetch it again")
    crop = name.endswith("-crop")
    try:
        with tarfile.open(regular(archive), "r:gz") as tar:
            members = {m.name: m for m in tar if m.isfile() and _is_visible_image(m.name)}
            names = sorted(members)
            chosen = [members[names[index]] for index in _part(len(names), count, seed)]
            images = torch.empty((len(chosen), 3, *shape[1:]), dtype=torch.uint8)
            for index in sorted(range(len(chosen)), key=lambda i: chosen[i].offset):  # a stream is read forwards
                with tar.extractfile(chosen[index]) as stream:  # type: ignore[union-attr]
                    image = Image.open(io.BytesIO(stream.read()), formats=("PNG", "JPEG"))
                images[index] = torch.from_numpy(_fit_image(image.convert("RGB"), shape, crop)).permute(2, 0, 1)
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError) as error:
        raise InputError(f"{archive} is damaged ({error}): fetch it again") from None
    if not len(images):
        raise InputError(f"{archive} holds no images: fetch it again")
    return _fit_tensor(images, shape)


def _images(folder: Path) -> list[Path]:
    return [file.path for file in list_images(folder).files]


def _is_visible_image(name: str) -> bool:
    *folders, file = PurePosixPath(name).parts
    return is_image(file) and not any(map(is_hidden, folders))


# ---- to the classifier's shape ----


def _fit_image(image: Image.Image, shape: Shape, crop: bool = False) -> np.ndarray:
    """Make (H, W, 3) uint8 of an RGB image; with ``crop``, cut out the centre of one that is larger."""
    _, height, width = shape
    if crop and image.height >= height and image.width >= width:
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    return np.array(image)


def _fit_tensor(images: Tensor, shape: Shape) -> Tensor:
    """Make (n, C, H, W) uint8 of uint8 images with one or three channels; the same object if it fits."""
    if images.shape[1:] == shape:
        return images
    fitted = torch.empty((len(images), *shape), dtype=torch.uint8)
    for start in range(0, len(images), _CHUNK):
        part = images[start : start + _CHUNK].float()
        if shape[0] == 1 and images.shape[1] == 3:
            part = (part * torch.tensor([0.299, 0.587, 0.114]).view(-1, 1, 1)).sum(1, keepdim=True)
        if part.shape[2:] != shape[1:]:
            part = F.interpolate(part, shape[1:], mode="bilinear", antialias=True, align_corners=False)
        fitted[start : start + _CHUNK] = part.round().clamp(0, 255)  # one channel is repeated for three
    return fitted
