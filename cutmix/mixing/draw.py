"""The drawn record of a mix (partners, moved pixels, the resulting label weight), and its random draws."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.utils.data import get_worker_info

from cutmix.errors import InputError
from cutmix.mixing.paste import blend, compose, fill_boxes, paste_boxes
from cutmix.mixing.targets import MixedTargets, Targets, check_soft
from cutmix.runtime.seeding import derive_seed


@dataclass(frozen=True, eq=False)
class Draw:
    """A mix drawn for one batch. Applying it is deterministic, and can be repeated on anything of the same batch.

    Transforms draw it; ``from_boxes``, ``from_lam`` and ``from_mask`` build it by hand. Its tensors are small and live
    on the CPU; those that another device needs go there in one copy, without waiting.

    Attributes:
        partner: Index of the sample that each sample is mixed with, (N,) int64.
        lam: Weight of the own label, (N,) float32 in [0, 1]; computed from the pixels that stay.
        boxes: Half-open x1, y1, x2, y2 in pixels, (1, 4) or (N, 4) int64, where the partner's pixels go; or None.
        mask: (H, W) or (N, H, W), bool or floating, 1 where the own pixels stay; or None.
        size: Height and width that boxes or mask were drawn for; None for a blend, which fits any shape.
    """

    partner: Tensor
    lam: Tensor
    boxes: Tensor | None = None
    mask: Tensor | None = None
    size: tuple[int, int] | None = None
    _copies: dict[torch.device, Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def from_boxes(cls, partner: Tensor, boxes: Tensor | Sequence, size: Sequence[int]) -> "Draw":
        """Build a CutMix draw from known boxes.

        Args:
            partner: (N,) integer indices into the batch; any indices, not only a permutation.
            boxes: (4,), (1, 4) or (N, 4) integers, half-open x1, y1, x2, y2.
            size: Height and width of the images.

        Raises:
            InputError: If a partner is not in the batch, or a box is not inside the image.
        """
        partner, (height, width) = _partners(partner), size
        boxes = torch.as_tensor(boxes, device="cpu")
        if boxes.is_floating_point() or boxes.shape not in ((4,), (1, 4), (len(partner), 4)):
            raise InputError(
                f"boxes are {boxes.dtype} {tuple(boxes.shape)}; expected integers of shape (1, 4) or "
                f"({len(partner)}, 4)"
            )
        boxes = boxes.long().reshape(-1, 4)
        x1, y1, x2, y2 = boxes.unbind(1)
        if not bool(((x1 >= 0) & (x1 <= x2) & (x2 <= width) & (y1 >= 0) & (y1 <= y2) & (y2 <= height)).all()):
            raise InputError(f"a box of {boxes.tolist()} is not inside {height}×{width} pixels as x1, y1, x2, y2")
        return cls(partner, kept_share(boxes, height, width, len(partner)), boxes=boxes, size=(height, width))

    @classmethod
    def from_lam(cls, partner: Tensor, lam: Tensor | float) -> "Draw":
        """Build a Mixup draw from known weights.

        Args:
            partner: (N,) integer indices into the batch.
            lam: Weight of the own sample, one number or (N,), in [0, 1].

        Raises:
            InputError: If a partner is not in the batch, or a weight not in [0, 1].
        """
        partner = _partners(partner)
        lam = torch.as_tensor(lam, dtype=torch.float32, device="cpu")
        if lam.shape not in ((), (1,), partner.shape) or not bool(((lam >= 0) & (lam <= 1)).all()):
            raise InputError(f"lam is {lam.tolist()}; expected one number or {len(partner)} numbers in [0, 1]")
        return cls(partner, lam.expand(len(partner)).contiguous())

    @classmethod
    def from_mask(cls, partner: Tensor, mask: Tensor) -> "Draw":
        """Build a draw from a mask of any form.

        Args:
            partner: (N,) integer indices into the batch.
            mask: (H, W) or (N, H, W), bool or floating in [0, 1]; 1 where the own pixels stay.

        Raises:
            InputError: If a partner is not in the batch, or the mask has another shape, dtype or range.
        """
        partner, mask = _partners(partner), mask.cpu()
        if mask.ndim not in (2, 3) or (mask.ndim == 3 and len(mask) not in (1, len(partner))):
            raise InputError(f"mask is {tuple(mask.shape)}; expected (H, W) or ({len(partner)}, H, W)")
        if mask.dtype != torch.bool and not (mask.is_floating_point() and bool(((mask >= 0) & (mask <= 1)).all())):
            raise InputError("mask must be bool, or floating with values in [0, 1]")
        share = mask.double().mean((-2, -1)).float().reshape(-1)
        height, width = mask.shape[-2:]
        return cls(partner, share.expand(len(partner)).contiguous(), mask=mask, size=(height, width))

    def apply(self, x: Tensor, inplace: bool = False, *, nearest: bool | None = None) -> Tensor:
        """Mix a batch: images, feature maps, segmentation masks, video.

        Boxes and bool masks move pixels of any dtype unchanged. A blend, or a floating mask, averages pixels, which
        makes other classes of class ids: an integer ``x`` then needs ``nearest``.

        Args:
            x: (N, ..., H, W) of any dtype, device and memory format; the last two dimensions are the ones that were
                drawn for (a blend takes any (N, ...)). The type of torchvision's ``Image``, ``Video`` and ``Mask`` is
                kept.
            inplace: Write into ``x`` and return it, using one spare image of memory on the CPU.
            nearest: Of a blend: True takes each pixel from the sample with the larger weight (class ids), False
                averages and rounds integers to the nearest value (uint8 images), None averages floating ``x`` and
                refuses integers.

        Raises:
            InputError: If ``x`` is another batch size or spatial size than was drawn for, holds boxes or key points,
                or is an integer blend without ``nearest``; or if it is to be written into and elements of it share
                memory, as after ``expand``.
        """
        plain = check_batch(x, len(self.partner), self.size, inplace)
        if nearest is None and self._averages and (not x.is_floating_point() or is_tv_tensor(x, "Mask")):
            raise InputError(
                f"x is {x.dtype}, which a blend would average; give nearest=True for class ids, nearest=False for "
                "images"
            )
        mixed = self._mix(plain, inplace, bool(nearest))
        return x if inplace else mixed if plain is x else mixed.as_subclass(type(x))

    def _mix(self, x: Tensor, inplace: bool, nearest: bool) -> Tensor:
        """Mix a plain tensor."""
        partner, lam, boxes = self.on(x.device)
        if boxes is not None and self.boxes is not None:
            return paste_boxes(x, partner, boxes, corners=self.boxes, inplace=inplace)
        if self.mask is not None:
            own = self.mask.to(x.device, non_blocking=True).reshape(-1, *[1] * (x.ndim - 3), *self.mask.shape[-2:])
        else:
            own = lam.reshape(-1, *[1] * (x.ndim - 1))
        if nearest or own.dtype == torch.bool:
            return compose(x, partner, own if own.dtype == torch.bool else own >= 0.5, inplace=inplace)
        return (blend if self.mask is None else compose)(x, partner, own, inplace=inplace)

    @property
    def _averages(self) -> bool:
        return self.boxes is None and (self.mask is None or self.mask.dtype != torch.bool)

    def targets(self, labels: Tensor) -> Targets:
        """Mix labels as the pixels were mixed.

        Args:
            labels: Class ids (N,) of an integer dtype; or multi-label or soft targets (N, K) in [0, 1], of any dtype.

        Returns:
            ``MixedTargets`` for class ids; (N, K) floating for (N, K).

        Raises:
            InputError: If there is not one label a sample, class ids are not integers, or targets are not in [0, 1].
        """
        labels = check_labels(labels, len(self.partner))
        partner, lam, _ = self.on(labels.device)
        if labels.ndim == 1:
            return MixedTargets(labels, labels.index_select(0, partner), lam)
        return torch.lerp(labels.index_select(0, partner), labels, lam[:, None].to(labels.dtype))

    def on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return partners, weights and boxes on a device, sent there in one copy that does not wait."""
        small = (self.partner, self.lam, self.boxes)
        if device.type == "cpu":
            return small
        if torch.compiler.is_compiling():
            partner, lam, boxes = (part if part is None else part.to(device, non_blocking=True) for part in small)
            return partner, lam, boxes  # type: ignore[return-value]
        if device not in self._copies:
            parts = [self.partner.int(), self.lam.float().view(torch.int32)]
            parts += [] if self.boxes is None else [self.boxes.int().flatten()]
            sent = torch.cat(parts).to(device, non_blocking=True).split([len(part) for part in parts])
            boxes = sent[2].view(-1, 4) if len(sent) > 2 else None
            self._copies[device] = (sent[0], sent[1].view(torch.float32), boxes)
        return self._copies[device]


@dataclass(frozen=True, eq=False)
class CutoutDraw(Draw):
    """Holes drawn for one batch; labels are unchanged.

    ``partner`` is every sample's own index and ``lam`` is 1; ``boxes`` are the holes.
    """

    def apply(self, x: Tensor, inplace: bool = False, *, nearest: bool | None = None) -> Tensor:
        """Set the holes of a batch (N, ..., H, W) to zero, or leave class ids as they are.

        Args:
            x: As in ``Draw.apply``; torchvision's ``Mask`` is left unchanged, as by torchvision's ``RandomErasing``.
            inplace: Write into ``x`` and return it.
            nearest: True leaves class ids unchanged, False sets the holes of images to zero, None does so for floating
                ``x`` and refuses integers, whose holes would become class 0.

        Raises:
            InputError: As ``Draw.apply``.
        """
        nearest = True if nearest is None and is_tv_tensor(x, "Mask") else nearest
        if nearest is None and not x.is_floating_point():
            raise InputError(
                f"x is {x.dtype}, whose holes would become class 0; give nearest=True to leave class ids as they are, "
                "nearest=False for images"
            )
        if nearest:
            check_batch(x, len(self.partner), self.size, inplace)
            return x if inplace else x.clone()
        return super().apply(x, inplace, nearest=nearest)

    def _mix(self, x: Tensor, inplace: bool, nearest: bool) -> Tensor:
        _, _, boxes = self.on(x.device)
        assert boxes is not None and self.boxes is not None  # noqa: PT018
        return fill_boxes(x, boxes, corners=self.boxes, inplace=inplace)

    def targets(self, labels: Tensor) -> Tensor:
        """Check the labels and return them."""
        check_labels(labels, len(self.partner))
        return labels


def kept_share(boxes: Tensor, height: int, width: int, n: int) -> Tensor:
    """Return λ = 1 − (x2 − x1)(y2 − y1) / (H W), the share of own pixels, (n,) float32."""
    x1, y1, x2, y2 = boxes.unbind(1)
    area = ((x2 - x1) * (y2 - y1)).double()
    return (1 - area / max(height * width, 1)).float().expand(n).contiguous()


def is_tv_tensor(x: Tensor, *names: str) -> bool:
    """Return whether ``x`` is one of torchvision's tensor types, of these names if any; torchvision is not imported."""
    types = sys.modules.get("torchvision.tv_tensors")
    if type(x) is Tensor or types is None:
        return False
    return isinstance(x, tuple(getattr(types, name) for name in names or ("TVTensor",)))


def check_images(x: Any) -> None:
    """Raise InputError unless ``x`` is a tensor of pixels or features."""
    if not isinstance(x, Tensor):
        raise InputError(
            f"images are of type {type(x).__name__}; expected a tensor (N, ..., H, W); torchvision's v2.ToImage makes "
            "tensors of PIL images"
        )
    if is_tv_tensor(x, "BoundingBoxes", "KeyPoints"):
        raise InputError(
            f"images are of type {type(x).__name__}, without pixels to mix; expected images, masks or video"
        )


def check_batch(x: Tensor, n: int, size: tuple[int, int] | None, inplace: bool) -> Tensor:
    """Return ``x`` without torchvision's type; raise InputError unless it is the batch that was drawn for."""
    check_images(x)
    if x.ndim == 0 or len(x) != n:
        raise InputError(f"the draw is for a batch of {n}, but x is {tuple(x.shape)}")
    if size is not None and (x.ndim < 3 or tuple(x.shape[-2:]) != size):
        raise InputError(f"the draw is for {size[0]}×{size[1]} pixels, but x is {tuple(x.shape)}")
    if inplace:
        _check_writable(x)
    return x.as_subclass(Tensor) if is_tv_tensor(x) else x


def _check_writable(x: Tensor) -> None:
    """Raise InputError if two elements of ``x`` may share memory: writing one would change the other."""
    if x.is_contiguous():
        return
    end = 0  # the last element that the dimensions of smaller strides reach
    for stride, length in sorted(zip(x.stride(), x.shape, strict=True)):
        if length > 1:
            if stride <= end:
                raise InputError(f"x has strides {x.stride()}, so elements share memory; clone it to mix in place")
            end += stride * (length - 1)


def check_labels(labels: Tensor, n: int) -> Tensor:
    """Return class ids as int64, or targets (N, K) as floating; raise InputError unless they fit ``n`` samples."""
    if not isinstance(labels, Tensor):
        raise InputError(
            f"labels are of type {type(labels).__name__}; expected a tensor of class ids (N,) or of targets (N, K)"
        )
    if labels.ndim not in (1, 2):
        raise InputError(
            f"labels are {tuple(labels.shape)}; expected class ids (N,) or multi-label targets (N, K); "
            "segmentation masks are mixed by draw.apply"
        )
    if len(labels) != n:
        raise InputError(f"there are {len(labels)} labels for {n} images; expected one a sample")
    if labels.ndim == 1:
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise InputError(f"class ids are {labels.dtype}; expected an integer dtype, or targets of shape (N, K)")
        return labels.long()
    labels = labels if labels.dtype == torch.float64 else labels.float()
    check_soft(labels)
    return labels


def _partners(partner: Tensor | Sequence[int]) -> Tensor:
    partner = torch.as_tensor(partner, device="cpu")
    if partner.ndim != 1 or partner.is_floating_point() or partner.dtype == torch.bool:
        raise InputError(f"partner is {partner.dtype} {tuple(partner.shape)}; expected integers of shape (N,)")
    if partner.numel() and not 0 <= int(partner.min()) <= int(partner.max()) < len(partner):
        raise InputError(f"partner is {partner.tolist()}; expected indices from 0 to {len(partner) - 1}")
    return partner.long()


# ---- randomness ----


class RandomStream:
    """A private CPU generator, independent of the global ones.

    The stream follows from (seed, name, rank), so that two transforms with one seed are unrelated; None takes fresh
    entropy. The rank is that in the process group or, before there is one, the launcher's, so that the processes of one
    run draw differently. In a worker of a DataLoader the stream follows from the worker's seed too: otherwise every
    worker would hold a copy of the same generator, and repeat its draws each epoch.
    """

    def __init__(self, seed: int | None, name: str) -> None:
        self._generator = torch.Generator()
        self._seed = self._generator.seed() if seed is None else seed
        self._name, self._rank = name, process_rank()
        self._worker_seed: int | None = None
        self._generator.manual_seed(derive_seed(self._seed, name, self._rank))

    @property
    def generator(self) -> torch.Generator:
        """The generator of this process."""
        worker = get_worker_info()
        if worker is not None and worker.seed != self._worker_seed:
            self._worker_seed = worker.seed
            self._generator.manual_seed(derive_seed(self._seed, self._name, self._rank, worker.seed))
        return self._generator

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generator and the rank of its process."""
        return {"generator": self.generator.get_state(), "rank": self._rank}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; if it is another process's, derive a stream from it and from this process's rank.

        Frameworks save the first process's state and load it in all of them, which would then all draw the same.
        """
        self.generator.set_state(state["generator"])
        if state.get("rank", self._rank) != self._rank:
            number = int(torch.randint(2**62, (), generator=self._generator, device="cpu"))
            self._generator.manual_seed(derive_seed(number, self._name, self._rank))

    def __getstate__(self) -> dict[str, Any]:
        # bytes: a temporary tensor would be in shared memory that is gone before a spawned worker opens it
        return self.__dict__ | {"_generator": self._generator.get_state().numpy().tobytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._generator = torch.Generator()
        self._generator.set_state(torch.frombuffer(bytearray(state["_generator"]), dtype=torch.uint8))


def process_rank() -> int:
    """Return the rank of this process: in its process group, else as its launcher says in the environment, else 0."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank()
    return next((int(os.environ[name]) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if os.environ.get(name)), 0)


def draw_cycle(n: int, generator: torch.Generator) -> Tensor:
    """Draw one cycle through n ≥ 2 samples, uniform over all of them: partner (n,) int64.

    Each sample's partner is its successor in a random order. Each cycle comes from exactly n orders, so that the
    distribution is that of Sattolo's algorithm, without its loop.
    """
    order = torch.randperm(n, generator=generator, device="cpu").numpy()
    partner = np.empty_like(order)
    partner[order[:-1]] = order[1:]
    partner[order[-1:]] = order[:1]  # also of an empty batch
    return torch.from_numpy(partner)


# Below this α, both Gamma variates of λ may be too small for float64 (a chance of e^-1416α), and torch's sampler then
# returns ½.
_SMALL_ALPHA = 0.02


def draw_beta(alpha: float, n: int, generator: torch.Generator) -> Tensor:
    """Draw λ ~ Beta(α, α), (n,) float64.

    As ``torch.distributions.Beta`` does, with the given generator; for a tiny α in log space, as NumPy does:
    λ = G₁ / (G₁ + G₂) with log G(α) = log G(α + 1) + (log U) / α.
    """
    if alpha >= _SMALL_ALPHA:
        concentration = torch.full((n, 2), alpha, dtype=torch.float64, device="cpu")
        return torch._sample_dirichlet(concentration, generator=generator)[:, 0]
    shape = torch.full((2, n), alpha + 1, dtype=torch.float64, device="cpu")
    gamma = torch._standard_gamma(shape, generator=generator).log()
    uniform = (1 - torch.rand((2, n), generator=generator, dtype=torch.float64, device="cpu")).log()  # of (0, 1]
    return torch.sigmoid(gamma[0] - gamma[1] + (uniform[0] - uniform[1]) / alpha)
