"""CutMix, Mixup, Cutout, and a choice among them, as transforms of a batch."""

import math
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from cutmix.errors import InputError
from cutmix.mixing.draw import CutoutDraw, Draw, RandomStream, check_images, draw_beta, draw_cycle, is_tv_tensor
from cutmix.mixing.protocol import BatchTransform, Drawn, ImageMix
from cutmix.mixing.targets import Targets


class MixOptions(TypedDict, total=False):
    """Keyword arguments of every transform that mixes samples; see ``CutMix``."""

    prob: float
    per_sample: bool
    inplace: bool
    seed: int | None


class _Mixer(ImageMix):
    """The shared part of the transforms: probability, granularity, random state, and the call."""

    _stream_name: str

    def __init__(
        self, prob: float = 1.0, per_sample: bool = False, inplace: bool = False, seed: int | None = None
    ) -> None:
        self.prob = prob
        self.per_sample = per_sample
        self.inplace = inplace
        self._stream = RandomStream(seed, self._stream_name)

    @property
    def prob(self) -> float:
        """Probability that a batch (``per_sample``: a sample) is mixed; may be set at any time, 0 is off."""
        return self._prob

    @prob.setter
    def prob(self, prob: float) -> None:
        self._prob = probability(prob)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Targets]:
        """Mix a batch.

        Args:
            images: (N, ..., H, W), any floating or integer dtype, device and memory format; torchvision's ``Image`` and
                ``Video`` keep their type. Mixup takes floating or uint8 images.
            labels: Class ids (N,) of an integer dtype, or multi-label targets (N, K) in [0, 1].

        Returns:
            The images (the same tensor with ``inplace``) and their targets, see ``Draw.targets``; the type of the
            targets does not depend on whether this batch was mixed.

        Raises:
            InputError: If types, shapes or dtypes do not fit; the images are then unchanged.
        """
        check_images(images)
        draw = self.draw(images.shape)
        targets = draw.targets(labels)
        rounded = (images.dtype == torch.uint8 or isinstance(draw, CutoutDraw)) and not is_tv_tensor(images, "Mask")
        return draw.apply(images, inplace=self.inplace, nearest=False if rounded else None), targets

    def state_dict(self) -> dict[str, Any]:
        """Return the random state; transforms with the same arguments continue alike from it."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict()`` returned."""
        self._stream.load_state_dict(state)

    def _mixed(self, n: int, generator: torch.Generator) -> Tensor | bool:
        """Draw whether to mix: a bool for the batch, or (n,) bool."""
        if self._prob == 1:
            return True
        count = n if self.per_sample else 1
        chosen = torch.rand(count, generator=generator, dtype=torch.float32, device="cpu") < self._prob
        return chosen if self.per_sample else bool(chosen)

    def __repr__(self) -> str:
        shown = {k: v for k, v in self.__dict__.items() if k[0] != "_"} | {"prob": self.prob}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"


class BoxMixer(_Mixer):
    """Paste a box of every sample's partner: the shared part of CutMix and the paper's ablations of it.

    They differ in the box's sides, in its centre, or in the label weight; each is one method.
    """

    _stream_name = "cutmix"

    def draw(self, shape: Sequence[int]) -> Draw:
        """Draw partners and boxes for a batch of shape (N, ..., H, W)."""
        n, height, width = spatial(shape)
        mixed = self._mixed(n, self._stream.generator)
        if mixed is False or n < 2:
            return _unmixed(n, (height, width))
        boxes, kept = self.draw_boxes(n, height, width, mixed)
        lam = self.weigh(kept)
        if mixed is not True:
            lam = torch.where(mixed, lam, 1.0)
        partner = draw_cycle(n, self._stream.generator)
        return Draw(partner, lam.expand(n).contiguous(), boxes=boxes, size=(height, width))

    def draw_boxes(self, n: int, height: int, width: int, mixed: Tensor | bool) -> tuple[Tensor, Tensor]:
        """Draw one box, or n with ``per_sample``, empty where unmixed; see ``clip_boxes``."""
        size = np.array([[width], [height]], dtype=np.float64)
        side = self.draw_sides(n if self.per_sample else 1, size)
        if mixed is not True:
            side = side * np.asarray(mixed)
        return clip_boxes(self.draw_centres(side.shape[1], size), side, size)

    def draw_sides(self, n: int, size: np.ndarray) -> np.ndarray:
        """Draw widths and heights in whole pixels, (2, n) float64, for images of width and height ``size`` (2, 1)."""
        raise NotImplementedError

    def draw_centres(self, n: int, size: np.ndarray) -> np.ndarray:
        """Draw centres uniform over the pixels, (2, n) float64."""
        return draw_pixels(n, size, self._stream.generator)

    def weigh(self, kept: Tensor) -> Tensor:
        """Return the weight of the own label from the share of own pixels, both (1,) or (N,) float32."""
        return kept


class CutMix(BoxMixer):
    """Paste a random box of every sample's partner, and mix the labels by the pixels that stay.

        x̃ = M ⊙ x_A + (1 − M) ⊙ x_B,   ỹ = λ y_A + (1 − λ) y_B,   λ₀ ~ Beta(α, α)

    M is 0 inside a box with the image's aspect ratio and sides W√(1 − λ₀), H√(1 − λ₀), whose half sizes are rounded
    down, whose centre is uniform over the pixels, and which is clipped at the border. λ is the share of pixels that
    M keeps: not λ₀, and on average 0.70 at 32×32 pixels for α = 1.

    The partners form one random cycle through the batch: no sample is its own partner, and each is a partner once. The
    paper takes a random permutation, which pairs one sample a batch with itself on average. A batch of one cannot be
    mixed and is returned unchanged, with λ = 1.

    Args:
        alpha: α of the Beta distribution, above 0; 1 in all of the paper's experiments.
        prob: Probability of mixing a batch (``per_sample``: a sample); the authors use 0.5 on CIFAR and 1 elsewhere.
        per_sample: Draw λ and the box for every sample; the paper draws one of each for the batch.
        inplace: Write into the images, with one spare image of memory on the CPU.
        seed: Seed of the transform's own generator; None takes fresh entropy.

    Raises:
        InputError: If ``alpha`` or ``prob`` is out of range.

    Source:
        Yun et al., CutMix, ICCV 2019, §3.1 and Algorithm A1 (arXiv:1905.04899v2). The box was checked against
        ``rand_bbox`` of clovaai/CutMix-PyTorch, the pixels against torchvision's ``CutMix`` for given boxes.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        prob: float = 1.0,
        per_sample: bool = False,
        inplace: bool = False,
        seed: int | None = None,
    ) -> None:
        self.alpha = positive("alpha", alpha)
        super().__init__(prob, per_sample, inplace, seed)

    def draw_sides(self, n: int, size: np.ndarray) -> np.ndarray:
        """Draw W√(1 − λ₀) and H√(1 − λ₀), rounded down to even numbers."""
        cut = np.sqrt(1 - draw_beta(self.alpha, n, self._stream.generator).numpy())
        return np.floor(cut * (size / 2)) * 2


class Mixup(_Mixer):
    """Blend every sample with its partner: x̃ = λ x_A + (1 − λ) x_B, ỹ = λ y_A + (1 − λ) y_B, λ ~ Beta(α, α).

    Partners are drawn as for ``CutMix``. Half-precision images are blended in float32, uint8 images are rounded to the
    nearest value. Other integers and torchvision's ``Mask`` are refused, as blended class ids are other classes; see
    ``Draw.apply``.

    Args:
        alpha: α of the Beta distribution, above 0.
        prob: Probability of mixing a batch (``per_sample``: a sample).
        per_sample: Draw λ for every sample instead of one for the batch.
        inplace: Write into the images, with one spare image of memory on the CPU.
        seed: Seed of the transform's own generator; None takes fresh entropy.

    Raises:
        InputError: If ``alpha`` or ``prob`` is out of range.

    Source:
        Zhang et al., mixup, ICLR 2018, eq. 1; checked against torchvision's ``MixUp`` for given λ.
    """

    _stream_name = "mixup"

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        prob: float = 1.0,
        per_sample: bool = False,
        inplace: bool = False,
        seed: int | None = None,
    ) -> None:
        self.alpha = positive("alpha", alpha)
        super().__init__(prob, per_sample, inplace, seed)

    def draw(self, shape: Sequence[int]) -> Draw:
        """Draw partners and weights for a batch of shape (N, ...)."""
        if len(shape) < 2:
            raise InputError(f"the batch is {tuple(shape)}; expected (N, ...)")
        n, generator = shape[0], self._stream.generator
        mixed = self._mixed(n, generator)
        if mixed is False or n < 2:
            return _unmixed(n, None)
        lam = draw_beta(self.alpha, n if self.per_sample else 1, generator).float()
        if mixed is not True:
            lam[~mixed] = 1
        return Draw(draw_cycle(n, generator), lam.expand(n).contiguous())


class Cutout(_Mixer):
    """Set a square of every image to zero; labels are unchanged.

    The centre is uniform over the pixels and the square is clipped at the border, so that it is smaller there. Zero
    is the mean colour of normalized images: apply it after normalization, as the paper does.

    Args:
        size: Side of the square in pixels, above 0; the paper uses 16 on CIFAR and 112 on ImageNet.
        prob: Probability of cutting a sample (``per_sample=False``: the batch).
        per_sample: Draw a square for every sample, as the paper does, instead of one for the batch.
        inplace: Write into the images.
        seed: Seed of the transform's own generator; None takes fresh entropy.

    Raises:
        InputError: If ``size`` or ``prob`` is out of range.

    Source:
        DeVries and Taylor, Cutout, arXiv:1708.04552, §3.2; checked against uoguelph-mlrg/Cutout for even sizes
        (odd ones lose a pixel there).
    """

    _stream_name = "cutout"

    def __init__(
        self,
        size: int,
        *,
        prob: float = 1.0,
        per_sample: bool = True,
        inplace: bool = False,
        seed: int | None = None,
    ) -> None:
        self.size = whole_pixels("size", size)
        super().__init__(prob, per_sample, inplace, seed)

    def draw(self, shape: Sequence[int]) -> CutoutDraw:
        """Draw holes for a batch of shape (N, ..., H, W)."""
        n, height, width = spatial(shape)
        generator = self._stream.generator
        mixed = np.asarray(self._mixed(n, generator))
        side = np.full((2, n if self.per_sample else 1), self.size, dtype=np.float64) * mixed
        size = np.array([[width], [height]], dtype=np.float64)
        boxes, _ = clip_boxes(draw_pixels(side.shape[1], size, generator), side, size)
        return CutoutDraw(*_themselves(n), boxes=boxes, size=(height, width))


class RandomChoice(ImageMix):
    """Apply one of several transforms to each batch.

    Args:
        transforms: CutMix, Mixup, Cutout, or anything with their interface.
        weights: Frequency of each, relative to the others; None is equal frequency.
        seed: Seed of the choice; each transform has its own.

    Raises:
        InputError: If no transform is given, or the weights do not fit them.
    """

    def __init__(
        self,
        transforms: Sequence[BatchTransform],
        weights: Sequence[float] | None = None,
        *,
        seed: int | None = None,
    ) -> None:
        self.transforms = tuple(transforms)
        self.weights = tuple(weights) if weights is not None else (1.0,) * len(self.transforms)
        if not self.transforms:
            raise InputError("no transform is given; expected one or more to choose from")
        if len(self.weights) != len(self.transforms):
            raise InputError(f"there are {len(self.weights)} weights for {len(self.transforms)} transforms")
        if min(self.weights) < 0 or not 0 < sum(self.weights) < math.inf:
            raise InputError(f"weights are {self.weights}; expected numbers of at least 0, one of them above")
        self._stream = RandomStream(seed, "choice")

    @property
    def prob(self) -> float:
        """Probability that a batch is mixed, Σ wᵢ pᵢ / Σ wᵢ; setting it sets that of every transform, 0 is off."""
        pairs = zip(self.weights, self.transforms, strict=True)
        return sum(weight * transform.prob for weight, transform in pairs) / sum(self.weights)

    @prob.setter
    def prob(self, prob: float) -> None:
        for transform in self.transforms:
            transform.prob = prob

    def advance(self, progress: float) -> None:
        """Set the share of the training that is done in every transform."""
        for transform in self.transforms:
            if isinstance(transform, ImageMix):
                transform.advance(progress)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Targets]:
        """Choose, then mix; see the chosen transform."""
        return self._choose()(images, labels)

    def draw(self, shape: Sequence[int]) -> Drawn:
        """Choose, then draw for a batch of this shape."""
        return self._choose().draw(shape)

    def state_dict(self) -> dict[str, Any]:
        """Return the random state of the choice and of every transform."""
        children = [transform.state_dict() for transform in self.transforms]
        return self._stream.state_dict() | {"transforms": children}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict()`` returned."""
        self._stream.load_state_dict(state)
        for transform, child in zip(self.transforms, state["transforms"], strict=True):
            transform.load_state_dict(child)

    def _choose(self) -> BatchTransform:
        weights = torch.tensor(self.weights, dtype=torch.float64, device="cpu")
        return self.transforms[int(torch.multinomial(weights, 1, generator=self._stream.generator))]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.transforms)!r}, weights={self.weights})"


def draw_pixels(n: int, size: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """Draw positions uniform over the pixels of images of width and height ``size`` (2, 1): (2, n) float64."""
    return np.floor(torch.rand((2, n), generator=generator, dtype=torch.float64, device="cpu").numpy() * size)


def clip_boxes(centre: np.ndarray, side: np.ndarray, size: np.ndarray) -> tuple[Tensor, Tensor]:
    """Clip boxes at the border, and return half-open x1, y1, x2, y2, (n, 4) int64, and λ, (n,) float32.

    Centres (columns and rows) and sides (whole pixels) are (2, n), the image's width and height (2, 1). An odd side has
    its extra pixel at the right or the bottom; λ is the share of pixels outside the box. The arithmetic is in float64,
    which holds every pixel position exactly, and in NumPy, whose calls on a few numbers take half the time of torch's:
    for small images, drawing is half of the work.
    """
    low = centre - side // 2
    high = np.minimum(low + side, size)
    low = np.maximum(low, 0)
    across, down = (high - low) / size
    boxes = np.concatenate((low, high)).T.astype(np.int64, order="C")
    return torch.from_numpy(boxes), torch.from_numpy((1 - across * down).astype(np.float32))


def _unmixed(n: int, size: tuple[int, int] | None) -> Draw:
    boxes = None if size is None else torch.zeros(1, 4, dtype=torch.int64, device="cpu")
    return Draw(*_themselves(n), boxes=boxes, size=size)


def _themselves(n: int) -> tuple[Tensor, Tensor]:
    """Return the partners and weights of samples that are not mixed, (n,) int64 and (n,) float32."""
    return torch.arange(n, device="cpu"), torch.ones(n, dtype=torch.float32, device="cpu")


def spatial(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return N, H and W of a batch of shape (N, ..., H, W)."""
    if len(shape) < 3:
        raise InputError(f"the batch is {tuple(shape)}, without spatial dimensions; expected (N, ..., H, W)")
    return shape[0], shape[-2], shape[-1]


def positive(name: str, value: float) -> float:
    """Return a finite number above 0, or raise InputError."""
    if not 0 < value < math.inf:
        raise InputError(f"{name} is {value}; expected a number above 0")
    return float(value)


def whole_pixels(name: str, value: float) -> int:
    """Return a whole number above 0, or raise InputError."""
    if not 1 <= value < math.inf or value != int(value):
        raise InputError(f"{name} is {value}; expected a whole number of pixels above 0")
    return int(value)


def probability(value: float) -> float:
    """Return a number in [0, 1], or raise InputError."""
    if not 0 <= value <= 1:
        raise InputError(f"prob is {value}; expected a probability in [0, 1]")
    return value
