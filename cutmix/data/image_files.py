"""Make the square that a model takes of an image file: draw the crop, decode its part, resize, flip."""

import contextlib
import math
import random
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor
from torch.overrides import TorchFunctionMode

from cutmix.data.decode import Decoded, read_channels, read_jpeg, size_of
from cutmix.data.sources import Source
from cutmix.data.transforms import Augment, Interpolation
from cutmix.errors import InputError
from cutmix.runtime.seeding import derive_seed

Decoder = Literal["exact", "fast"]

_LOG_RATIO = math.log(4 / 3)  # of width to height, at most


class Window(NamedTuple):
    """The part of an image that becomes the square: a rectangle in pixels, resized and cropped."""

    top: int
    left: int
    height: int
    width: int
    to: tuple[int, int]  # height and width to which it is resized
    at: tuple[int, int] = (0, 0)  # top and left of the square in the result


# ---- training ----


class TrainTransform:
    """Random resized crop, flip and AutoAugment, with the draws of torchvision's transforms in their order."""

    def __init__(self, augment: Augment, decoder: Decoder, channels: int = 3) -> None:
        assert augment.image_size is not None
        self.channels = channels
        self.augment, self.size, self.decoder = augment, augment.image_size, decoder
        named = augment.auto_augment != "none"
        self.policy = auto_augment(augment.auto_augment, augment.interpolation) if named else None

    def plan(self, seed: int) -> Callable[[Any], Any] | None:
        """Return the policy for one image; RandAugment draws now, in the thread of the loop."""
        return self.policy.draw(seed) if isinstance(self.policy, RandAugment) else self.policy

    def __call__(self, path: Source, generator: Generator, policy: Callable[[Any], Any] | None) -> np.ndarray:
        """Make (image_size, image_size, channels) uint8 of a file; ``policy`` is the result of ``plan``."""
        square = cut_square(
            path, lambda size: self._draw(*size, generator), self.size, self.augment.interpolation, self.decoder,
            self.channels,
        )  # fmt: skip
        if float(torch.rand(1, generator=generator)) < (0.5 if self.augment.flip else 0.0):
            square = torch.from_numpy(square).flip(1).numpy()  # five times faster than NumPy's copy of a reversed view
        if policy:
            with draws_from(generator):
                square = np.asarray(policy(Image.fromarray(np.ascontiguousarray(square))))
        return _grey(square) if self.channels == 1 else square

    def _draw(self, width: int, height: int, generator: Generator) -> Window:
        size = self.size
        if self.augment.squash:
            side = round(size / self.augment.crop_fraction)
            at = [_integer(side - size + 1, generator) if side > size else 0 for _ in range(2)]
            return Window(0, 0, height, width, (side, side), (at[0], at[1]))
        least_area, most_area = self.augment.crop_scale
        for _ in range(10):
            area, ratio = torch.rand(2, generator=generator).tolist()
            area = width * height * (least_area + area * (most_area - least_area))
            ratio = math.exp((2 * ratio - 1) * _LOG_RATIO)
            own_width, own_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < own_width <= width and 0 < own_height <= height:
                top = _integer(height - own_height + 1, generator)
                return Window(top, _integer(width - own_width + 1, generator), own_height, own_width, (size, size))
        least, most = 3 / 4, 4 / 3
        own_width, own_height = width, height
        if width / height < least:
            own_height = round(width / least)
        elif width / height > most:
            own_width = round(height * most)
        return Window((height - own_height) // 2, (width - own_width) // 2, own_height, own_width, (size, size))


def _integer(end: int, generator: Generator) -> int:
    return int(torch.randint(0, end, (1,), generator=generator))


# ---- testing ----


class ResizeAndCrop:
    """The deterministic transform: resize the short side to image_size / crop_fraction, cut the central square.

    With ``squash``, both sides are resized to image_size / crop_fraction. Where the resized image would be enormous (a
    line of 1 × 12,000 pixels), only the part in the square is resized.
    """

    def __init__(
        self, image_size: int, crop_fraction: float, squash: bool, interpolation: Interpolation, channels: int = 3
    ) -> None:
        self.image_size, self.side, self.squash = image_size, round(image_size / crop_fraction), squash
        self.channels = channels
        self.interpolation: Interpolation = interpolation

    def __call__(self, image: Decoded) -> Tensor:
        """Make (channels, image_size, image_size) uint8 of an RGB image, or of the result of ``read_channels``."""
        square = _cut(image, self._window(size_of(image)), self.image_size, self.interpolation)
        square = _grey(square) if self.channels == 1 else square
        return torch.from_numpy(square.copy()).permute(2, 0, 1)

    def read(self, path: Source, decoder: Decoder, *, skippable: bool = True) -> np.ndarray:
        """Make (image_size, image_size, channels) uint8 of a file."""
        square = cut_square(
            path, self._window, self.image_size, self.interpolation, decoder, self.channels, skippable=skippable
        )
        return _grey(square) if self.channels == 1 else square

    def _window(self, size: tuple[int, int]) -> Window:
        """Return torchvision's resize and centre crop of an image of this width and height."""
        (width, height), side = size, self.side
        to = (side, side)
        if not self.squash:
            to = (int(side * height / width), side) if width <= height else (side, int(side * width / height))
        at = [round((length - self.image_size) / 2) for length in to]
        return Window(0, 0, height, width, to, (at[0], at[1]))


# ---- a square of a file ----


def cut_square(
    path: Source, choose: Callable[[tuple[int, int]], Window], size: int, interpolation: Interpolation,
    decoder: Decoder, channels: int = 3, *, skippable: bool = True,
) -> np.ndarray:  # fmt: skip
    """Decode the part of an image file that a square needs, resize it, and cut the square.

    ``choose`` returns the window of an image of some width and height. The decoder "exact" has Pillow decode the whole
    file and resize, as torchvision's transforms do; "fast" decodes a plain JPEG with libjpeg-turbo, at a half, a
    quarter or an eighth of its size where the window is still as large as its resized form, and resizes uint8 with
    PyTorch; it treats other files as "exact" does. The result is (size, size, 3) uint8 RGB, which the caller turns grey
    for one channel; for other channels than 1 and 3, the result of ``read_channels`` is resized with PyTorch.
    """
    if channels not in (1, 3):
        image = read_channels(path, channels, skippable=skippable)
        return _cut(image, choose(size_of(image)), size, interpolation)
    jpeg = read_jpeg(path) if decoder == "fast" else None
    if jpeg and not _is_enormous((window := choose(jpeg.size)).to, size):
        reduce = max(k for k in (1, 2, 4, 8) if k == 1 or _fits(window, k))
        pixels = jpeg.decode(reduce, window.top + window.height)
        if pixels is not None:
            return _cut_pixels(pixels, jpeg.size, window, size, interpolation, reduce)
    image = read_channels(path, 3, skippable=skippable)
    return _cut(image, window if jpeg else choose(size_of(image)), size, interpolation)


def _grey(square: np.ndarray) -> np.ndarray:
    """Return the luminance of an RGB square, (size, size, 1) uint8."""
    return np.array(Image.fromarray(np.ascontiguousarray(square)).convert("L"))[..., None]


def _fits(window: Window, reduce: int) -> bool:
    return window.height >= reduce * window.to[0] and window.width >= reduce * window.to[1]


def _is_enormous(to: tuple[int, int], size: int) -> bool:
    return to[0] * to[1] > max(2**24, 16 * size**2)


def _cut_pixels(
    pixels: np.ndarray, full: tuple[int, int], window: Window, size: int, interpolation: Interpolation, reduce: int = 1
) -> np.ndarray:
    """Cut a square out of pixels (H, W, C) uint8: the upper rows at least of an image of a width and height.

    They were decoded at a ``reduce``-th of the full width and height, rounded up.
    """
    width, height = (-(-side // reduce) for side in full)
    rows = [round(row * height / full[1]) for row in (window.top, window.top + window.height)]
    columns = [round(column * width / full[0]) for column in (window.left, window.left + window.width)]
    pixels = pixels[rows[0] : rows[1], columns[0] : columns[1]]
    if pixels.shape[:2] == window.to:
        pixels = pixels.copy()
    else:
        if min(pixels.strides) < 0:
            pixels = np.ascontiguousarray(pixels)
        planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        resized = F.interpolate(planes, window.to, mode=interpolation, antialias=True, align_corners=False)
        pixels = resized[0].permute(1, 2, 0).numpy()
    return pixels[window.at[0] : window.at[0] + size, window.at[1] : window.at[1] + size]


def _cut(image: Decoded, window: Window, size: int, interpolation: Interpolation) -> np.ndarray:
    """Cut a square out of an RGB image or of pixels with other channels."""
    if isinstance(image, Image.Image):
        return _cut_image(image.convert("RGB"), window, size, interpolation)
    if _is_enormous(window.to, size):
        raise InputError(
            f"an image of {image.shape[1]}×{image.shape[0]} pixels is too long for --channels other than 3"
        )
    return _cut_pixels(image, size_of(image), window, size, interpolation)


def _cut_image(image: Image.Image, window: Window, size: int, interpolation: Interpolation) -> np.ndarray:
    """Cut a square out of a Pillow image, as torchvision does."""
    resample = Image.Resampling[interpolation.upper()]
    top, left, height, width, to, at = window
    if not _is_enormous(to, size):
        if (width, height) != image.size:
            image = image.crop((left, top, left + width, top + height))
        resized = np.array(image.resize(to[::-1], resample))
        return resized[at[0] : at[0] + size, at[1] : at[1] + size]
    half = [size * own / new / 2 for own, new in zip((width, height), to[::-1], strict=True)]
    x, y = left + width / 2, top + height / 2
    box = (max(x - half[0], 0), max(y - half[1], 0), min(x + half[0], image.width), min(y + half[1], image.height))
    return np.array(image.resize((size, size), resample, box))


# ---- AutoAugment and RandAugment ----

_DRAWS = {
    torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal, torch.bernoulli, torch.multinomial,
    torch._sample_dirichlet,
    Tensor.uniform_, Tensor.normal_, Tensor.random_, Tensor.bernoulli_, Tensor.exponential_,
}  # fmt: skip


class _Draws(TorchFunctionMode):
    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {"generator": self.generator} if func in _DRAWS else {}
        return func(*args, **(given | (kwargs or {})))


@contextlib.contextmanager
def draws_from(generator: Generator) -> Iterator[None]:
    """Redirect draws from PyTorch's global generator to this generator, in this thread alone."""
    with _Draws(generator):
        yield


def auto_augment(policy: str, interpolation: Interpolation | None = None) -> Callable[[Any], Any]:
    """Return torchvision's AutoAugment, TrivialAugment or AugMix, or timm's RandAugment.

    It takes one RGB image or one (C, H, W) uint8 tensor.

    It draws from PyTorch's global generator. RandAugment rotates and shifts an image file with this interpolation,
    filled up with ImageNet's mean, as timm trains; None draws the interpolation each time and fills up with grey.

    Source: Cubuk et al. 2019 and 2020; Müller and Hutter 2021; Hendrycks et al. 2020, without its loss.
    """
    from torchvision.transforms import v2  # slow to import

    if policy.startswith("rand"):
        return RandAugment(policy, interpolation)
    if policy == "trivial":
        return v2.TrivialAugmentWide()
    if policy == "augmix":
        mix = v2.AugMix()  # its weights, all of concentration 1, are drawn on the CPU, also for images on a GPU
        mix._sample_dirichlet = lambda alphas: torch._sample_dirichlet(torch.ones(alphas.shape)).to(alphas.device)
        return mix
    return v2.AutoAugment(v2.AutoAugmentPolicy(policy))


class RandAugment:
    """timm's RandAugment, which DeiT trains with; its draws follow from a seed."""

    def __init__(self, policy: str, interpolation: Interpolation | None) -> None:
        from timm.data.auto_augment import rand_augment_transform

        settings: dict[str, Any] = {}
        if interpolation:
            settings = {"interpolation": Image.Resampling[interpolation.upper()], "img_mean": (124, 116, 104)}
        self.augment = rand_augment_transform(policy, settings)
        for op in self.augment.ops:
            # timm may ask for no bits at all, which Pillow 12 refuses
            function = _posterize if op.name.startswith("Posterize") else op.aug_fn
            op.aug_fn = _Recorded(function, resamples=op.name.startswith(("Shear", "Translate", "Rotate")))

    def __call__(self, image: Any) -> Any:
        """Augment one RGB image, or one (1 or 3, H, W) uint8 tensor, by draws from PyTorch's global generator."""
        return self.plan()(image)

    def plan(self) -> Callable[[Any], Any]:
        """Draw from PyTorch's global generator, and return a function that augments one image, in any thread."""
        from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

        change = self.draw(int(torch.randint(2**31, ())))

        def augment(image: Any) -> Any:
            if not isinstance(image, Tensor):
                return change(image)
            # a grey image stays grey as RGB, which some of timm's operations need
            return pil_to_tensor(change(to_pil_image(image.expand(3, -1, -1))))[: len(image)]

        return augment

    def draw(self, seed: int) -> Callable[[Image.Image], Image.Image]:
        """Return the augmentation that the seed draws; not for threads, as timm uses the generators of the process."""
        before, numpy_before = random.getstate(), np.random.get_state()  # noqa: NPY002 - timm draws from both
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            return _Calls(self.augment(()))
        finally:
            random.setstate(before)
            np.random.set_state(numpy_before)  # noqa: NPY002


class _Recorded:
    """An operation of timm that is recorded with its drawn arguments, after the earlier ones, instead of applied."""

    def __init__(self, function: Callable[..., Image.Image], resamples: bool) -> None:
        self.function, self.resamples = function, resamples

    def __call__(self, calls: tuple[Any, ...], *args: Any, **options: Any) -> tuple[Any, ...]:
        if self.resamples and isinstance(options["resample"], (list, tuple)):
            options["resample"] = random.choice(options["resample"])  # as timm does on applying it
        return (*calls, (self.function, args, options))


class _Calls(tuple[Any, ...]):
    """Operations to apply one after another."""

    def __call__(self, image: Image.Image) -> Image.Image:
        for function, args, options in self:
            image = function(image, *args, **options)
        return image


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep the highest bits of each value, from none (black) to all eight."""
    return image.point(lambda value: value & ~(2 ** (8 - min(max(bits, 0), 8)) - 1))


class Policy:
    """A policy for batches of tensors on the CPU, image by image.

    It is seeded by the epoch and the position of an image in its order.
    """

    def __init__(self, policy: str, seed: int) -> None:
        self.augment, self.seed = auto_augment(policy), seed

    def plan(self, images: Tensor, epoch: int, first: int) -> Callable[[], Tensor]:
        """Return a function that augments the images, in place and in any thread."""
        changes = [self._change(derive_seed(self.seed, "policy", epoch, first + i)) for i in range(len(images))]

        def augment() -> Tensor:
            for i, change in enumerate(changes):
                images[i] = change(images[i])
            return images

        return augment

    def _change(self, seed: int) -> Callable[[Tensor], Tensor]:
        generator = torch.Generator().manual_seed(seed)
        if isinstance(self.augment, RandAugment):
            with draws_from(generator):
                return self.augment.plan()

        def change(image: Tensor) -> Tensor:
            with draws_from(generator):
                return self.augment(image)

        return change
