"""SMMix: the square of an image that the network looks at least gets the square that it looks at most in another one.

The drawn record, the three losses as functions, and ``SMMix``, which calls them for a training step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutmix.errors import InputError
from cutmix.mixing.draw import Draw, check_fits, check_writable
from cutmix.mixing.images import Mixup
from cutmix.mixing.sampling import RandomStream, draw_cycle
from cutmix.mixing.targets import mixed_cross_entropy
from cutmix.runtime.seeding import derive_seed


class Attentive(Protocol):
    """What SMMix asks of a network; ``cutmix.WithTokenHead`` is one."""

    def attend(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, K) and attention (N, h, w) of images, in evaluation mode and without gradients."""
        ...

    def token_grid(self, images: Tensor) -> tuple[int, int]:
        """Return h and w."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class AttentionDraw(Draw):
    """A square of tokens for each sample, and the square of its partner that goes there, at another place.

    ``partner``, ``lam`` = 1 − r² / (h w), the share of own tokens, and ``targets`` are what they are for every
    ``Draw``. What depends on the attention stays on its device, so that nothing waits for it.

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
            InputError: If the attention is no map for each partner, or the squares do not fit into it.
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
            torch.full((len(partner),), 1 - side**2 / (height * width), dtype=torch.float32),
            grid=(height, width),
            side=side,
            target=_corners(sums, sums.flatten(1).argmin(1)),
            source=most.index_select(0, partner.to(most.device, non_blocking=True)),
        )

    def apply(self, x: Tensor, inplace: bool = False) -> Tensor:
        """Paste the squares into a batch: images, segmentation masks, maps of tokens.

        Args:
            x: (N, ..., H, W) of any dtype, device and memory format; H and W are multiples of h and w.
            inplace: Write into ``x`` and return it.

        Raises:
            InputError: If tokens do not divide the images.
            ValueError: If ``x`` is another batch size than was drawn for, or is to be written into and elements of it
                share memory.
        """
        check_fits(x, len(self.partner), None)
        if inplace:
            check_writable(x)
        (height, width), (h, w) = x.shape[-2:], self.grid
        if x.ndim < 3 or height % h or width % w:
            raise InputError(f"x is {tuple(x.shape)}, which {h}×{w} tokens do not divide; expected multiples of them")
        scale = (height // h, width // w)
        own = torch.arange(len(x), device=x.device)
        partner = self.partner.to(x.device, non_blocking=True)
        pixels = x[self._pixels(partner, self.source, scale)]
        mixed = x if inplace else x.clone()
        mixed[self._pixels(own, self.target, scale)] = pixels
        return mixed

    def token_masks(self) -> tuple[Tensor, Tensor]:
        """Return which tokens are the own ones and which the partner's, both (N, h · w) bool; each is one or other."""
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
    region_logits: Tensor, labels: Tensor, partner: Tensor, *, label_smoothing: float = 0.1
) -> Tensor:
    """Cross entropy of each region with the label of the image that it is from: ½ (CE(t, y_A) + CE(s, y_B)).

    Args:
        region_logits: (N, 2, K) floating; of the own tokens, t, and of the pasted ones, s.
        labels: Class ids (N,), or soft labels (N, K).
        partner: (N,) int64, indices into the batch.
        label_smoothing: In [0, 1].

    Returns:
        A scalar.

    Source:
        Chen et al., SMMix, ICCV 2023; the authors' ``engine.py``.
    """
    own, pasted = region_logits.unbind(1)
    other = labels.index_select(0, partner.to(labels.device, non_blocking=True))
    losses = [mixed_cross_entropy(own, labels, label_smoothing=label_smoothing)]
    losses.append(mixed_cross_entropy(pasted, other, label_smoothing=label_smoothing))
    return (losses[0] + losses[1]) / 2


def consistency_loss(logits: Tensor, predictions: Tensor, draw: Draw) -> Tensor:
    """Divergence of what is said of the mixed images from what was said of them unmixed: KL(q ‖ softmax(logits)).

        q = softmax(λ P_A + (1 − λ) P_B)

    The logits P are mixed, not their probabilities, and get no gradient.

    Args:
        logits: (N, K) floating, of the mixed images.
        predictions: (N, K) floating, logits P of the images before they were mixed.
        draw: How they were mixed.

    Returns:
        A scalar, the mean over the samples.

    Raises:
        InputError: If the two have other shapes.

    Source:
        Chen et al., SMMix, ICCV 2023, feature consistency; the authors' ``engine.py``, where P is called a
        distribution.
    """
    if logits.shape != predictions.shape:
        raise InputError(
            f"logits are {tuple(logits.shape)}, but predictions {tuple(predictions.shape)}; expected (N, K) of both"
        )
    own = predictions.detach().float()
    partner, lam = (part.to(own.device, non_blocking=True) for part in (draw.partner, draw.lam))
    mixed = torch.lerp(own.index_select(0, partner), own, lam[:, None])
    said, meant = F.log_softmax(logits.float(), dim=1), F.log_softmax(mixed, dim=1)
    return F.kl_div(said, meant, reduction="batchmean", log_target=True)


def smmix_loss(
    logits: Tensor,
    region_logits: Tensor,
    predictions: Tensor,
    labels: Tensor,
    draw: AttentionDraw,
    *,
    label_smoothing: float = 0.1,
) -> Tensor:
    """Sum of the three losses of SMMix, each with weight 1: CE(logits, ỹ) + fine-grained labels + consistency.

    Args:
        logits: (N, K) floating, of the mixed images.
        region_logits: (N, 2, K) floating, of the own and of the pasted tokens; see ``fine_grained_loss``.
        predictions: (N, K) floating, of the images before they were mixed; see ``consistency_loss``.
        labels: Class ids (N,), or soft labels (N, K).
        draw: How they were mixed.
        label_smoothing: In [0, 1], of both cross entropies.

    Returns:
        A scalar.

    Source:
        Chen et al., SMMix, ICCV 2023; weights and smoothing of the authors' code.
    """
    classification = mixed_cross_entropy(logits, draw.targets(labels), label_smoothing=label_smoothing)
    fine = fine_grained_loss(region_logits, labels, draw.partner, label_smoothing=label_smoothing)
    return classification + fine + consistency_loss(logits, predictions, draw)


class SMMix:
    """Mix batches where the network looks, and train it on them with SMMix's three losses.

    With probability ``prob`` a batch gets SMMix: the network itself, in evaluation mode and without gradients, says
    what it predicts and where it looks; a square of r × r tokens, r uniform from ¼ to ¾ of the map's side, is taken
    where it looks most in each sample's partner and pasted where it looks least in the sample. The other batches get
    Mixup and its cross entropy.

        smmix, network = SMMix(seed=0), WithTokenHead(vit)
        loss = smmix.loss(network, images, labels)

    The partners form one random cycle, as for ``CutMix``, so that any batch of two or more will do; the authors take
    the batch in reverse. The unmixed pass is in the arithmetic of the surrounding autocast, where they have float32.

    Every process of a run chooses the same batches for SMMix, as the choice follows from the seed and the number of the
    batch alone: none waits for another that has an additional pass to do. Squares, partners and Mixup are its own. That
    needs a ``seed``: with None, each process chooses for itself.

    Args:
        prob: Probability that a batch gets SMMix rather than Mixup; may be set at any time.
        mixup_alpha: α of Mixup in the other batches, above 0.
        inplace: Write into the images.
        seed: Seed of everything drawn; None takes fresh entropy.

    Raises:
        ValueError: If ``prob`` or ``mixup_alpha`` is out of range.

    Source:
        Chen et al., SMMix: Self-Motivated Image Mixing for Vision Transformers, ICCV 2023 (arXiv:2212.12977), as its
        authors' code ChenMnZ/SMMix has it.
    """

    def __init__(
        self, prob: float = 0.5, *, mixup_alpha: float = 0.8, inplace: bool = False, seed: int | None = None
    ) -> None:
        self.prob = prob
        self.inplace = inplace
        self._seed = torch.Generator().seed() if seed is None else seed
        self._stream = RandomStream(self._seed, "smmix")
        self.mixup = Mixup(mixup_alpha, inplace=inplace, seed=derive_seed(self._seed, "mixup"))
        self._batches = 0

    @property
    def prob(self) -> float:
        """Probability that a batch gets SMMix rather than Mixup."""
        return self._prob

    @prob.setter
    def prob(self, prob: float) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"prob is {prob}; expected a probability in [0, 1]")
        self._prob = prob

    def choose(self) -> bool:
        """Decide whether the next batch gets SMMix: by the seed and the batch's number, alike in every process."""
        uniform = (derive_seed(self._seed, "smmix or mixup", self._batches) >> 10) / 2**53
        self._batches += 1
        return uniform < self._prob

    def draw(self, attention: Tensor) -> AttentionDraw:
        """Draw partners and a size for a batch, and find its squares.

        Args:
            attention: (N, h, w) floating, where the network looks; N and both sides at least 2.

        Raises:
            InputError: If the attention has another shape.
        """
        if attention.ndim != 3 or min(attention.shape[1:]) < 2:
            raise InputError(
                f"attention is {tuple(attention.shape)}; expected (N, h, w) with at least 2×2 tokens, from smaller "
                "patches or larger images"
            )
        _check_batch(len(attention))
        low, high = side_range(attention.shape[1:])
        generator = self._stream.generator
        side = int(torch.randint(low, high + 1, (1,), generator=generator))
        return AttentionDraw.from_attention(attention, draw_cycle(len(attention), generator), side)

    def loss(self, network: nn.Module, images: Tensor, labels: Tensor, *, label_smoothing: float = 0.1) -> Tensor:
        """Mix a batch, run the network on it, and return its loss, in which every parameter has a part.

        Args:
            network: A ``WithTokenHead``, also inside DistributedDataParallel or ``torch.compile``, where the unmixed
                pass runs on what they wrap.
            images: (N, C, H, W), as the network takes them, not mixed yet; at least two.
            labels: Class ids (N,), or soft labels (N, K).
            label_smoothing: In [0, 1]; the specification has 0.1.

        Returns:
            A scalar to call ``backward`` of.

        Raises:
            InputError: If there is one image only, or the network does not show its attention or not for such images.
        """
        attentive = find_attentive(network)
        _check_batch(len(images))
        if not self.choose():
            images, targets = self.mixup(images, labels)
            height, width = attentive.token_grid(images)
            everything = torch.ones(len(images), height * width, dtype=torch.bool, device=images.device)
            logits, region_logits = network(images, everything)
            loss = mixed_cross_entropy(logits, targets, label_smoothing=label_smoothing)
            return loss + 0 * region_logits.sum()  # a gradient of zero, which other processes can wait for
        predictions, attention = attentive.attend(images)
        draw = self.draw(attention)
        own_tokens, _ = draw.token_masks()
        logits, region_logits = network(draw.apply(images, inplace=self.inplace), own_tokens)
        return smmix_loss(logits, region_logits, predictions, labels, draw, label_smoothing=label_smoothing)

    def state_dict(self) -> dict[str, Any]:
        """Return the random state; an SMMix with the same arguments goes on alike from it."""
        return {"batches": self._batches, "regions": self._stream.state_dict(), "mixup": self.mixup.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict()``."""
        self._batches = state["batches"]
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
    """Return the network that shows its attention, out of what wraps it for several processes or compilation.

    Raises:
        InputError: If there is none.
    """
    inner: Any = network
    while not hasattr(inner, "attend"):
        inner = getattr(inner, "_orig_mod", getattr(inner, "module", None))
        if not isinstance(inner, nn.Module):
            raise InputError(
                f"{type(network).__name__} does not show its attention; give SMMix a vision transformer in "
                "cutmix.WithTokenHead"
            )
    return inner


def _check_batch(n: int) -> None:
    if n < 2:
        raise InputError(f"the batch has {n} image{'s' * (n != 1)}; SMMix pairs them, so at least 2 are expected")
