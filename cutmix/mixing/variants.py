"""Variants of CutMix: the paper's ablations, and mixing inside the network (Feature CutMix, Manifold Mixup).

The ablations have another box, label weight or probability, or mix more images: Table 8 and §4 of Yun et al., CutMix,
ICCV 2019 (arXiv:1905.04899v2); none is in the authors' published code. All of them take ``prob``, ``per_sample``,
``inplace`` and ``seed`` as ``CutMix`` does, draw their partners in one random cycle, and return targets that follow
from the pixels unless their docstring says otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from cutmix.errors import InputError
from cutmix.mixing.draw import Draw, RandomStream, check_labels, draw_cycle
from cutmix.mixing.images import BoxMixer, CutMix, MixOptions, Mixup, positive, spatial, whole_pixels
from cutmix.mixing.paste import inside_boxes
from cutmix.mixing.protocol import BatchTransform, Drawn, ImageMix, Mix, unwrapped
from cutmix.mixing.targets import MultiTargets, Targets
from cutmix.runtime.seeding import derive_seed


class CenterGaussianCutMix(CutMix):
    """CutMix with the box near the image's centre: (r_x, r_y) ~ N((W/2, H/2), (σW, σH)²) instead of uniform.

    The paper does not give σ, and does not say how centres outside the image are handled. Here σ is a quarter of the
    side, so that the image spans two deviations to each side, and the distribution is truncated to the image: σ → 0 is
    the centre itself, σ → ∞ is CutMix.

    Args:
        alpha: α of the Beta distribution, above 0.
        sigma: σ as a share of the image's width and height, above 0.
        **options: See ``CutMix``.

    Source:
        Table 8, "Center Gaussian CutMix".
    """

    def __init__(self, alpha: float = 1.0, sigma: float = 0.25, **options: Unpack[MixOptions]) -> None:
        super().__init__(alpha, **options)
        self.sigma = positive("sigma", sigma)

    def draw_centres(self, n: int, size: np.ndarray) -> np.ndarray:
        """Draw centres by the inverse of the truncated Gaussian's distribution function."""
        edge = torch.special.ndtr(torch.tensor(-0.5 / self.sigma, dtype=torch.float64, device="cpu"))
        uniform = torch.rand((2, n), generator=self._stream.generator, dtype=torch.float64, device="cpu")
        deviation = torch.special.ndtri(torch.lerp(edge, 1 - edge, uniform))
        return np.clip(np.floor((0.5 + self.sigma * deviation.numpy()) * size), 0, size - 1)


class FixedSizeCutMix(BoxMixer):
    """CutMix with a square box of one size; clipped at the border like every box.

    The paper says that λ is then always 0.75, which holds for the 28 % of 16×16 boxes on 32×32 pixels that are not
    clipped; here it is the share of pixels that stay, 0.81 on average.

    Args:
        size: Side of the square in pixels, above 0; the paper uses 16 on CIFAR.
        **options: See ``CutMix``.

    Raises:
        InputError: If ``size`` or an option is out of range.

    Source:
        Table 8, "Fixed-size CutMix".
    """

    def __init__(self, size: int = 16, **options: Unpack[MixOptions]) -> None:
        self.size = whole_pixels("size", size)
        super().__init__(**options)

    def draw_sides(self, n: int, size: np.ndarray) -> np.ndarray:
        """Return the fixed size."""
        return np.full((2, n), self.size, dtype=np.float64)


class OneHotCutMix(CutMix):
    """CutMix whose label is the class with the larger area: ỹ = y_A where λ ≥ ½, y_B elsewhere.

    The paper does not define the case λ = ½; here the own label stays.

    Source:
        Table 8, "One-hot CutMix".
    """

    def weigh(self, kept: Tensor) -> Tensor:
        """Round λ to 1 or 0."""
        return (kept >= 0.5).float()


class CompleteLabelCutMix(CutMix):
    """CutMix whose label does not depend on λ: ỹ = ½ y_A + ½ y_B.

    This holds for every sample that is mixed, including the one in 250 whose box happens to be empty (at 32×32
    pixels); a sample that ``prob`` leaves unmixed keeps its label.

    Source:
        Table 8, "Complete-label CutMix" (second version of the paper only).
    """

    def weigh(self, kept: Tensor) -> Tensor:
        """Return ½."""
        return torch.full_like(kept, 0.5)


class ScheduledCutMix(CutMix):
    """CutMix whose probability grows with training: ``prob`` · ``progress``, linearly from 0.

    ``mix`` sets ``progress``; a loop that calls the transform sets it before each batch, e.g. to step / steps. It is a
    function of the step alone, so that a resumed run has the same probability; ``state_dict()`` holds it too.

    Args:
        alpha: α of the Beta distribution, above 0.
        **options: See ``CutMix``; ``prob`` is the probability at the end, 1 in the paper.

    Source:
        Table 8, "Scheduled CutMix"; the paper does not say whether it grows by the step or by the epoch.
    """

    def __init__(self, alpha: float = 1.0, **options: Unpack[MixOptions]) -> None:
        super().__init__(alpha, **options)
        self._last_prob = self.prob
        self.progress = 0.0

    @property
    def progress(self) -> float:
        """Share of the training that is done, in [0, 1]; setting it sets ``prob``."""
        return self._progress

    @progress.setter
    def progress(self, progress: float) -> None:
        if not 0 <= progress <= 1:
            raise InputError(f"progress is {progress}; expected a share of the training in [0, 1]")
        self._progress = progress
        self.prob = self._last_prob * progress

    def advance(self, progress: float) -> None:
        """Set ``progress``."""
        self.progress = progress

    def state_dict(self) -> dict[str, Any]:
        """Return the random state and the progress."""
        return super().state_dict() | {"progress": self.progress}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict()`` returned."""
        super().load_state_dict(state)
        self.progress = state["progress"]


class MultiCutMix(CutMix):
    """CutMix of three or more images: boxes of several partners, one pasted over the other.

        x̃ = Σⱼ Mⱼ ⊙ xⱼ,   ỹ = Σⱼ wⱼ yⱼ

    x₀ is the own image and M₀ is 1 outside all boxes; Mⱼ is 1 in box j where no later box covers it; wⱼ is the share of
    pixels where Mⱼ is 1. The partners are the first, second and third successors in one random cycle: different
    samples, if the batch is that large.

    Args:
        alpha: α of the Beta distribution that each box's size follows, above 0.
        num_images: Images in each sample: 2, which is CutMix, or 3 or 4, as the authors tried.
        **options: See ``CutMix``; a batch or a sample gets all of its boxes or none.

    Raises:
        InputError: If an argument is out of range.

    Source:
        The authors' ICCV talk, which gives no details. ildoonet/cutmix (``num_mix``) draws the images independently,
        and its labels are wrong where boxes overlap.
    """

    def __init__(self, alpha: float = 1.0, num_images: int = 3, **options: Unpack[MixOptions]) -> None:
        if num_images not in (2, 3, 4):
            raise InputError(f"num_images is {num_images}; expected 2, 3 or 4")
        super().__init__(alpha, **options)
        self.num_images = int(num_images)

    def draw(self, shape: Sequence[int]) -> "MultiDraw":
        """Draw partners and boxes for a batch of shape (N, ..., H, W)."""
        n, height, width = spatial(shape)
        mixed = self._mixed(n, self._stream.generator) if n > 1 else False
        pastes = [self.draw_boxes(n, height, width, mixed) for _ in range(self.num_images - 1)]
        cycle = partner = draw_cycle(n, self._stream.generator)
        draws = []
        for boxes, kept in pastes:
            draws.append(Draw(partner, kept.expand(n).contiguous(), boxes=boxes, size=(height, width)))
            partner = cycle[partner]
        return MultiDraw.from_draws(draws)


@dataclass(frozen=True, eq=False)
class MultiDraw(Draw):
    """Several boxes drawn for one batch, all of them filled from the unmixed images.

    ``partner`` and ``boxes`` are those of the first paste, ``lam`` is the share of own pixels at the end.

    Attributes:
        on_top: The pastes that follow, in order.
    """

    on_top: tuple[Draw, ...] = ()

    @classmethod
    def from_draws(cls, draws: Sequence[Draw]) -> "MultiDraw":
        """Put one to three draws of boxes, for one batch and size, on top of one another.

        Raises:
            InputError: If there are more draws, one of them has no boxes, or they are for other batches or sizes.
        """
        drawn_for = {(len(draw.partner), draw.size) for draw in draws}
        if len(draws) not in (1, 2, 3) or len(drawn_for) > 1 or any(draw.boxes is None for draw in draws):
            raise InputError(
                f"there are {len(draws)} draws; expected one to three, all of boxes, for one batch and one size"
            )
        first, *rest = draws
        bottom = cls(first.partner, first.lam, boxes=first.boxes, size=first.size, on_top=tuple(rest))
        return replace(bottom, lam=bottom.weights()[:, 0].contiguous())

    def weights(self) -> Tensor:
        """Return the share of pixels of the own image and of each partner's, (N, 1 + pastes) float32."""
        boxes = [draw.boxes for draw in (self, *self.on_top) if draw.boxes is not None]
        assert self.size is not None  # as there are boxes
        seen = torch.stack([_uncovered(box, boxes[j + 1 :]) for j, box in enumerate(boxes)], dim=1)
        pixels = self.size[0] * self.size[1]
        shares = torch.cat((pixels - seen.sum(1, keepdim=True), seen), dim=1).double() / max(pixels, 1)
        return shares.float().expand(len(self.partner), -1)

    def _mix(self, x: Tensor, inplace: bool, nearest: bool) -> Tensor:
        """Paste all boxes; ``inplace`` saves no memory here."""
        mixed = super()._mix(x, False, nearest)
        for draw in self.on_top:
            partner, _, boxes = draw.on(x.device)
            assert boxes is not None
            other = x.index_select(0, partner)
            mixed.copy_(torch.where(inside_boxes(x, boxes), other, mixed))  # in the layout of the images
        return x.copy_(mixed) if inplace else mixed

    def targets(self, labels: Tensor) -> MultiTargets | Tensor:
        """Return ``MultiTargets`` for class ids (N,), (N, K) floating for (N, K); see ``Draw.targets``."""
        labels = check_labels(labels, len(self.partner))
        partners = torch.stack([draw.partner for draw in (self, *self.on_top)]).to(labels.device, non_blocking=True)
        weights = self.weights().to(labels.device, non_blocking=True)
        of_all = torch.cat((labels[None], labels[partners]))
        if labels.ndim == 1:
            return MultiTargets(of_all.T.contiguous(), weights.contiguous())
        return torch.einsum("nm,mnk->nk", weights.to(labels.dtype), of_all)


def _uncovered(box: Tensor, later: Sequence[Tensor]) -> Tensor:
    """Return the number of pixels of boxes (n, 4) that none of the later boxes, two at most, covers: (n,) int64."""
    area = _common_area(box)
    for other in later:
        area = area - _common_area(box, other)
    return area + _common_area(box, *later) if len(later) == 2 else area


def _common_area(*boxes: Tensor) -> Tensor:
    """Return the number of pixels that all of the boxes (n, 4) cover, (n,) int64."""
    group = torch.stack(boxes)
    return (group[..., 2:].amin(0) - group[..., :2].amax(0)).clamp(min=0).prod(-1)


# ---- mixing inside the network ----

# The paper's indices: the output of this module is mixed; layer 0 is the image.
_MODULES = ("", "bn1", "layer1", "layer2", "layer3")


class FeatureMix(Mix):
    """Mix at one layer of the network, chosen at random for each batch.

    Layer 0 is the image, 1 the output of the first convolution and its batch normalization (before the activation),
    2 to 4 the outputs of the stages layer1 to layer3. The mix is drawn at the shape of the features there, so that λ
    is exact in their pixels; everything after the layer, and the gradient, is of mixed features. The network must have
    modules named bn1 and layer1 to layer3, as the CIFAR ResNets, PyramidNet and the ResNets of timm and torchvision
    have. A forward hook that lasts for one forward pass mixes there.

    Under ``torch.compile`` the passes that mix at layer 1 to 4 run uncompiled, since compiled code ignores hooks that
    are added later; under DistributedDataParallel every process chooses its own layer. Activation checkpointing is not
    supported, as it runs the layer a second time without the hook.

    Args:
        transform: The transform to draw from, e.g. ``CutMix()``; its ``inplace`` concerns only images.
        layers: The layers to choose from, equally often; one number for a fixed layer.
        seed: Seed of the choice; None takes fresh entropy.

    Raises:
        InputError: If a layer does not exist.

    Source:
        Yun et al., CutMix, ICCV 2019, §4.1 (a layer at random for each batch) and Figure 3 (one fixed layer). The paper
        does not say which layers are chosen from; the default is the five of Figure 3.
    """

    def __init__(
        self, transform: BatchTransform, layers: Sequence[int] | int = (0, 1, 2, 3, 4), *, seed: int | None = None
    ) -> None:
        self.transform = transform
        self.layers = (layers,) if isinstance(layers, int) else tuple(layers)
        if not self.layers or any(layer not in range(len(_MODULES)) for layer in self.layers):
            raise InputError(f"layers are {layers}; expected some of 0 (the image), 1 (the stem), 2, 3, 4 (the stages)")
        self._stream = RandomStream(seed, "layer")

    @property
    def prob(self) -> float:
        """Probability that a batch, or a sample, is mixed, which is the transform's; may be set at any time."""
        return self.transform.prob

    @prob.setter
    def prob(self, prob: float) -> None:
        self.transform.prob = prob

    def prepare(self, network: nn.Module, images: Tensor) -> nn.Module:
        """Return the network, if it has the layers."""
        find_layers(network, self.layers)
        return network

    def mix(self, images: Tensor, labels: Tensor, progress: float = 0.0) -> tuple[Tensor, Targets]:
        """Return the batch unmixed, and tell the transform the share of the training."""
        if isinstance(self.transform, ImageMix):
            self.transform.advance(progress)
        return images, labels

    def on_images(self) -> BatchTransform | None:
        """Return the transform, if the image is one of the layers."""
        return self.transform if 0 in self.layers else None

    def forward(self, network: nn.Module, images: Tensor, targets: Targets) -> tuple[Tensor, Targets]:
        """Choose a layer, and run the network with the batch mixed there.

        Args:
            network: The network, also inside DistributedDataParallel or ``torch.compile``.
            images: (N, C, H, W), the network's input.
            targets: Class ids (N,), or multi-label targets (N, K), unmixed.

        Returns:
            The output of the network, and the targets that follow from the draw.

        Raises:
            InputError: If the network lacks one of the layers, or its forward pass does not go through it.
        """
        assert isinstance(targets, Tensor)
        modules = find_layers(network, self.layers)
        generator = self._stream.generator
        layer = self.layers[int(torch.randint(len(self.layers), (1,), generator=generator, device="cpu"))]
        module = modules.get(layer)
        if module is None:
            mixed, mixed_targets = self.transform(images, targets)
            return network(mixed), mixed_targets
        draws: list[Drawn] = []

        def mix(module: nn.Module, inputs: Any, features: Tensor) -> Tensor:
            draws.append(self.transform.draw(features.shape))
            return draws[-1].apply(features)

        with module.register_forward_hook(mix), torch.compiler.set_stance("force_eager"):
            logits = network(images)
        if len(draws) != 1:
            raise InputError(
                f"a forward pass of {type(network).__name__} goes {len(draws)} times through {_MODULES[layer]}; "
                "expected once, to mix the batch there"
            )
        return logits, draws[0].targets(targets)

    def state_dict(self) -> dict[str, Any]:
        """Return the random state of the choice and of the transform."""
        return self._stream.state_dict() | {"transform": self.transform.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict()`` returned."""
        self._stream.load_state_dict(state)
        self.transform.load_state_dict(state["transform"])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.transform!r}, layers={self.layers})"


class FeatureCutMix(FeatureMix):
    """CutMix at a random or a fixed layer; see ``FeatureMix``.

    Args:
        layers: The layers to choose from, 0 to 4; one number for a fixed layer.
        alpha: α of the Beta distribution, above 0.
        **options: See ``CutMix``.

    Source:
        Yun et al., CutMix, ICCV 2019, Table 3 and Figure 3.
    """

    def __init__(
        self, layers: Sequence[int] | int = (0, 1, 2, 3, 4), alpha: float = 1.0, **options: Unpack[MixOptions]
    ) -> None:
        super().__init__(CutMix(alpha, **options), layers, seed=_layer_seed(options))


class ManifoldMixup(FeatureMix):
    """Mixup at a random or a fixed layer; see ``FeatureMix``.

    Args:
        layers: The layers to choose from, 0 to 4; one number for a fixed layer.
        alpha: α of the Beta distribution, above 0; 1 in the CutMix paper.
        **options: See ``Mixup``.

    Source:
        Verma et al., Manifold Mixup, ICML 2019, §2, where the layers are the image and the first two stages.
    """

    def __init__(
        self, layers: Sequence[int] | int = (0, 1, 2, 3, 4), alpha: float = 1.0, **options: Unpack[MixOptions]
    ) -> None:
        super().__init__(Mixup(alpha, **options), layers, seed=_layer_seed(options))


def find_layers(network: nn.Module, layers: Sequence[int]) -> dict[int, nn.Module]:
    """Return the module of each layer, whose output is mixed; the image, layer 0, has none."""
    network = unwrapped(network)
    found: dict[int, nn.Module] = {}
    for layer in layers:
        module = getattr(network, _MODULES[layer], None) if layer else None
        if isinstance(module, nn.Module):
            found[layer] = module
        elif layer:
            raise InputError(
                f"{type(network).__name__} has no module {_MODULES[layer]}, so layer {layer} cannot be mixed; expected "
                "a network with bn1 and layer1 to layer3, such as a ResNet or a PyramidNet, or other layers"
            )
    return found


def _layer_seed(options: MixOptions) -> int | None:
    """Return a seed for the choice of layers, unrelated to the transform's."""
    seed = options.get("seed")
    return None if seed is None else derive_seed(seed, "layer")
