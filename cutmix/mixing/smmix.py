"""SMMix: the square with the least attention in an image gets the square with the most attention in its partner.

The drawn record, the three losses as functions, and ``SMMix``, which calls them for a training step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutmix.errors import InputError, counted
from cutmix.mixing.draw import Draw, RandomStream, draw_cycle
from cutmix.mixing.images import Mixup, probability
from cutmix.mixing.protocol import Mix, unwrapped
from cutmix.mixing.targets import Targets, mixed_cross_entropy, per_image
from cutmix.runtime.seeding import derive_seed


class Attentive(Protocol):
    """A network that returns its attention, such as ``cutmix.WithTokenHead``."""

    def attend(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, K) and attention (N, h, w) of images, in evaluation mode and without gradients."""

    def token_grid(self, images: Tensor) -> tuple[int, int]:
        """Return h and w, the height and width of the images in tokens."""


@dataclass(frozen=True, eq=False, kw_only=True)
class AttentionDraw(Draw):
    """A square of tokens of each sample, and the square of its partner, from another place, that replaces it.

    ``partner``, ``lam`` = 1 − r² / (h w), the share of own tokens, and ``targets`` are those of every ``Draw``. The
    positions stay on the device of the attention, so that nothing waits for them.

    Attributes:
        grid: Height and width of the images in tokens, h and w.
        side: Side of the squares in tokens, r.
        target: Row and column of the first token that is overwritten, (N, 2) int64.
        source: Row and column, in the partner, of the first token that goes there, (N, 2) int64.
    """

    grid: tuple[int, int]
    side: int
    target: Tensor
    source: Tensor

    @classmethod
    def from_attention(cls, attention: Tensor, partner: Tensor, side: int) -> "AttentionDraw":
        """Choose the squares with the least and the most attention; the first of equals.

        Args:
            attention: (N, h, w) floating, of each sample.
            partner: (N,) int64 on the CPU, indices into the batch.
            side: Side of the squares in tokens, from 1 to the smaller of h and w.

        Raises:
            InputError: If there is not one map for each partner, or the squares do not fit into it.
        """
        if attention.ndim != 3 or len(attention) != len(partner):
            raise InputError(
                f"attention is {tuple(attention.shape)} for {len(partner)} partners; expected ({len(partner)}, h, w)"
            )
        height, width = attention.shape[1:]
        if not 1 <= side <= min(height, width):
            raise InputError(
                f"side is {side}; expected 1 to {min(height, width)}, as there are {height}×{width} tokens"
            )
        sums = F.avg_pool2d(attention.float().unsqueeze(1), side, stride=1).squeeze(1)
        most = _corners(sums, sums.flatten(1).argmax(1))
        return cls(
            partner,
            torch.full((len(partner),), 1 - side**2 / (height * width), dtype=torch.float32, device="cpu"),
            grid=(height, width),
            side=side,
            target=_corners(sums, sums.flatten(1).argmin(1)),
            source=most.index_select(0, partner.to(most.device, non_blocking=True)),
        )

    def apply(self, x: Tensor, inplace: bool = False, *, nearest: bool | None = None) -> Tensor:
        """Paste the squares into a batch: images, segmentation masks, maps of tokens.

        Args:
            x: (N, ..., H, W) of any dtype, device and memory format; H and W are multiples of h and w.
            inplace: Write into ``x`` and return it.
            nearest: Ignored, as pixels move unchanged.

        Raises:
            InputError: If tokens do not divide the images; and see ``Draw.apply``.
        """
        return super().apply(x, inplace, nearest=nearest)

    def _mix(self, x: Tensor, inplace: bool, nearest: bool) -> Tensor:
        h, w = self.grid
        if x.ndim < 3 or x.shape[-2] % h or x.shape[-1] % w:
            raise InputError(f"x is {tuple(x.shape)}, which {h}×{w} tokens do not divide; expected multiples of them")
        scale = (x.shape[-2] // h, x.shape[-1] // w)
        own = torch.arange(len(x), device=x.device)
        pixels = x[self._pixels(self.on(x.device)[0], self.source, scale)]
        mixed = x if inplace else x.clone()
        mixed[self._pixels(own, self.target, scale)] = pixels
        return mixed

    @property
    def _averages(self) -> bool:
        return False

    def token_masks(self) -> tuple[Tensor, Tensor]:
        """Return masks of the own and of the partner's tokens, both (N, h · w) bool."""
        height, width = self.grid
        row, column = (corner[:, None, None] for corner in self.target.unbind(1))
        rows = torch.arange(height, device=row.device)[:, None]
        columns = torch.arange(width, device=row.device)
        pasted = (rows >= row) & (rows < row + self.side) & (columns >= column) & (columns < column + self.side)
        return ~pasted.flatten(1), pasted.flatten(1)

    def _pixels(self, sample: Tensor, corner: Tensor, scale: tuple[int, int]) -> tuple[Any, ...]:
        """Return the index of a square in each sample: (N, 1, 1), every channel, (N, rows, 1) and (N, 1, columns)."""
        first = corner.to(sample.device, non_blocking=True)
        rows, columns = (
            first[:, i, None] * scale[i] + torch.arange(self.side * scale[i], device=sample.device) for i in (0, 1)
        )
        return sample[:, None, None], ..., rows[:, :, None], columns[:, None, :]


def _corners(sums: Tensor, positions: Tensor) -> Tensor:
    """Return row and column, (N, 2) int64, of positions (N,) in flattened maps (N, rows, columns)."""
    columns = sums.shape[2]
    return torch.stack((positions // columns, positions % columns), dim=1)


def fine_grained_loss(
    region_logits: Tensor,
    labels: Tensor,
    partner: Tensor,
    *,
    label_smoothing: float = 0.1,
    weight: Tensor | None = None,
) -> Tensor:
    """Compute the cross-entropy of each region with the label of its source image: ½ (CE(t, y_A) + CE(s, y_B)).

    Args:
        region_logits: (N, 2, K) floating; of the own tokens, t, and of the pasted ones, s.
        labels: Class ids (N,), or soft labels (N, K).
        partner: (N,) integers, indices into the batch.
        label_smoothing: In [0, 1].
        weight: (K,) weight of each class, or None; the mean is over the N images, as with mixed targets.

    Returns:
        A scalar.

    Source:
        Chen et al., SMMix, ICCV 2023; the authors' ``engine.py``.
    """
    own, pasted = region_logits.unbind(1)
    other = labels.index_select(0, partner.to(labels.device, non_blocking=True))
    of_own = mixed_cross_entropy(own, per_image(labels), label_smoothing=label_smoothing, weight=weight)
    of_pasted = mixed_cross_entropy(pasted, per_image(other), label_smoothing=label_smoothing, weight=weight)
    return (of_own + of_pasted) / 2


def consistency_loss(logits: Tensor, predictions: Tensor, draw: Draw) -> Tensor:
    """Compute the divergence of predictions on mixed images from mixed predictions: KL(q ‖ softmax(logits)).

        q = softmax(λ P_A + (1 − λ) P_B)

    The logits P are mixed, not their probabilities, and get no gradient.

    Args:
        logits: (N, K) floating, of the mixed images.
        predictions: (N, K) floating, logits P of the images before they were mixed.
        draw: The mix.

    Returns:
        A scalar, the mean over the samples.

    Raises:
        InputError: If the shapes of the two differ.

    Source:
        Chen et al., SMMix, ICCV 2023, feature consistency; the authors' ``engine.py``, where P is called a
        distribution.
    """
    if logits.shape != predictions.shape:
        raise InputError(
            f"logits are {tuple(logits.shape)}, but predictions {tuple(predictions.shape)}; expected (N, K) of both"
        )
    own = predictions.detach().float()
    partner, lam, _ = draw.on(own.device)
    mixed = torch.lerp(own.index_select(0, partner), own, lam[:, None])
    predicted, q = F.log_softmax(logits.float(), dim=1), F.log_softmax(mixed, dim=1)
    return F.kl_div(predicted, q, reduction="batchmean", log_target=True)


def smmix_loss(
    logits: Tensor,
    region_logits: Tensor,
    predictions: Tensor,
    labels: Tensor,
    draw: AttentionDraw,
    *,
    label_smoothing: float = 0.1,
    weight: Tensor | None = None,
) -> Tensor:
    """Compute the sum of the three losses of SMMix, each with factor 1: CE(logits, ỹ), fine-grained, consistency.

    Args:
        logits: (N, K) floating, of the mixed images.
        region_logits: (N, 2, K) floating, of the own and of the pasted tokens; see ``fine_grained_loss``.
        predictions: (N, K) floating, of the images before they were mixed; see ``consistency_loss``.
        labels: Class ids (N,), or soft labels (N, K).
        draw: The mix.
        label_smoothing: In [0, 1], of both cross-entropies.
        weight: (K,) weight of each class in both cross-entropies, or None.

    Returns:
        A scalar.

    Source:
        Chen et al., SMMix, ICCV 2023; weights and smoothing of the authors' code.
    """
    targets, partner = draw.targets(labels), draw.on(labels.device)[0]
    classification = mixed_cross_entropy(logits, targets, label_smoothing=label_smoothing, weight=weight)
    fine = fine_grained_loss(region_logits, labels, partner, label_smoothing=label_smoothing, weight=weight)
    return classification + fine + consistency_loss(logits, predictions, draw)


class SMMix(Mix):
    """Mix batches by the network's attention, and train the network with SMMix's three losses.

    With probability ``prob`` a batch gets SMMix: a pass of the network in evaluation mode, without gradients, gives
    predictions and attention; a square of r × r tokens, r uniform from ¼ to ¾ of the map's side, is taken where the
    attention is highest in each sample's partner and pasted where it is lowest in the sample. The other batches get
    Mixup and its cross-entropy.

        smmix, network = SMMix(seed=0), WithTokenHead(vit)
        loss = smmix.loss(network, images, labels)

    The partners form one random cycle, as for ``CutMix``, so that a batch may have any size from two; the authors pair
    the batch with its reverse. The unmixed pass has the precision of the surrounding autocast; theirs has float32.

    With a ``seed``, every process of a run chooses the same batches for SMMix, as the choice follows from the seed and
    the number of the batch alone: no process waits for another's additional pass. Squares, partners and Mixup differ.
    With None, each process chooses for itself.

    Args:
        prob: Probability that a batch gets SMMix instead of Mixup; may be set at any time.
        mixup_alpha: α of Mixup in the other batches, above 0.
        inplace: Write into the images.
        seed: Seed of all draws; None takes fresh entropy.
        head: Adds the head on token regions in ``prepare``, e.g. ``WithTokenHead``; None leaves the network unchanged.

    Raises:
        InputError: If ``prob`` or ``mixup_alpha`` is out of range.

    Source:
        Chen et al., SMMix: Self-Motivated Image Mixing for Vision Transformers, ICCV 2023 (arXiv:2212.12977), as
        implemented in the authors' code ChenMnZ/SMMix.
    """

    uses_attention: ClassVar[bool] = True

    def __init__(
        self,
        prob: float = 0.5,
        *,
        mixup_alpha: float = 0.8,
        inplace: bool = False,
        seed: int | None = None,
        head: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        self.prob = prob
        self.inplace = inplace
        self.head = head
        self._seed = torch.Generator().seed() if seed is None else seed
        self._stream = RandomStream(self._seed, "smmix")
        self.mixup = Mixup(mixup_alpha, inplace=inplace, seed=derive_seed(self._seed, "mixup"))
        self._batches = 0

    @property
    def prob(self) -> float:
        """Probability that a batch gets SMMix instead of Mixup."""
        return self._prob

    @prob.setter
    def prob(self, prob: float) -> None:
        self._prob = probability(prob)

    def prepare(self, network: nn.Module, images: Tensor) -> nn.Module:
        """Return the network with the head, after a check of its attention on such images; see ``Mix.prepare``."""
        trained = self.head(network) if self.head else network
        _check_attention(find_attentive(trained).attend(images)[1])
        return trained

    def choose(self) -> bool:
        """Return whether the next batch gets SMMix, by the seed and the batch's number, alike in every process."""
        uniform = (derive_seed(self._seed, "smmix or mixup", self._batches) >> 10) / 2**53
        self._batches += 1
        return uniform < self._prob

    def draw(self, attention: Tensor) -> AttentionDraw:
        """Draw partners and a size for a batch, and find its squares.

        Args:
            attention: (N, h, w) floating, the network's attention; N and both sides at least 2.

        Raises:
            InputError: If the attention has another shape.
        """
        _check_attention(attention)
        low, high = side_range(attention.shape[1:])
        generator = self._stream.generator
        side = int(torch.randint(low, high + 1, (1,), generator=generator, device="cpu"))
        return AttentionDraw.from_attention(attention, draw_cycle(len(attention), generator), side)

    def loss(
        self,
        network: nn.Module,
        images: Tensor,
        targets: Targets,
        *,
        label_smoothing: float = 0.1,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Mix a batch, run the network on it, and return the loss, which gives every parameter a gradient.

        Args:
            network: A ``WithTokenHead``, also inside DistributedDataParallel or ``torch.compile``, where the unmixed
                pass runs on the wrapped network.
            images: (N, C, H, W), the network's input, not mixed yet; at least two.
            targets: Class ids (N,), or soft labels (N, K).
            label_smoothing: In [0, 1]; the authors use 0.1.
            weight: (K,) weight of each class, or None.

        Returns:
            A scalar.

        Raises:
            InputError: If there is only one image, or the network does not return its attention on such images.
        """
        attentive = find_attentive(network)
        _check_batch(len(images))
        options: dict[str, Any] = {"label_smoothing": label_smoothing, "weight": weight}
        if not self.choose():
            images, targets = self.mixup(images, targets)  # type: ignore[arg-type]
            height, width = attentive.token_grid(images)
            everything = torch.ones(len(images), height * width, dtype=torch.bool, device=images.device)
            logits, region_logits = network(images, everything)
            # a gradient of zero for the head, which other processes wait for
            return mixed_cross_entropy(logits, targets, **options) + 0 * region_logits.sum()
        predictions, attention = attentive.attend(images)
        draw = self.draw(attention)
        own_tokens, _ = draw.token_masks()
        logits, region_logits = network(draw.apply(images, inplace=self.inplace), own_tokens)
        return smmix_loss(logits, region_logits, predictions, targets, draw, **options)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """Return the random state; an SMMix with the same arguments continues alike from it."""
        return {
            "seed": self._seed,
            "batches": self._batches,
            "regions": self._stream.state_dict(),
            "mixup": self.mixup.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict()`` returned."""
        self._seed, self._batches = state["seed"], state["batches"]
        self._stream.load_state_dict(state["regions"])
        self.mixup.load_state_dict(state["mixup"])

    def __repr__(self) -> str:
        return f"SMMix(prob={self.prob}, mixup_alpha={self.mixup.alpha}, inplace={self.inplace})"


def side_range(grid: Sequence[int]) -> tuple[int, int]:
    """Return the smallest and the largest side of the squares: a quarter and three quarters of the map's smaller side.

    Rounded down, and at least 1: 3 to 10 of 14 tokens, 1 to 5 of 7.
    """
    side = min(grid)
    return max(side // 4, 1), max(3 * side // 4, 1)


def find_attentive(network: nn.Module) -> Attentive:
    """Return the network that returns its attention, without its wrappers for several processes or compilation."""
    inner: Any = unwrapped(network)
    if not hasattr(inner, "attend"):
        raise InputError(
            f"{type(network).__name__} does not return its attention; give SMMix a vision transformer in "
            "cutmix.WithTokenHead"
        )
    return inner


def _check_attention(attention: Tensor) -> None:
    if attention.ndim != 3 or min(attention.shape[1:]) < 2:
        raise InputError(
            f"attention is {tuple(attention.shape)}; expected (N, h, w) with at least 2×2 tokens, from smaller "
            "patches or larger images"
        )
    _check_batch(len(attention))


def _check_batch(n: int) -> None:
    if n < 2:
        raise InputError(f"the batch has {counted(n, 'image')}; SMMix pairs them, so at least 2 are expected")
