"""Mixing inside the network: Feature CutMix and Manifold Mixup, and one forward pass for every kind of mixing."""

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from cutmix.errors import InputError
from cutmix.mixing.images import BatchTransform, CutMix, Drawn, MixOptions, Mixup
from cutmix.mixing.sampling import RandomStream
from cutmix.mixing.targets import Targets
from cutmix.runtime.seeding import derive_seed

# The paper's indices: what is mixed is the output of this module; layer 0 is the image.
_MODULES = ("", "bn1", "layer1", "layer2", "layer3")


class FeatureMix:
    """Mix at one layer of the network, chosen at random for each batch.

    Layer 0 is the image, 1 the output of the first convolution and its batch normalisation (before the activation),
    2 to 4 the outputs of the stages layer1 to layer3. The mix is drawn at the shape that the features have there, so
    that a box is made of their pixels and λ is exact in them; everything after the layer, and the gradient, sees mixed
    features. Every network whose modules are called bn1 and layer1 to layer3 will do: the CIFAR ResNets, PyramidNet,
    the ResNets of timm and torchvision. They are reached by a forward hook that lasts for one forward pass.

    Under ``torch.compile`` the passes that mix at layer 1 to 4 run uncompiled, since compiled code ignores hooks that
    come later; under DistributedDataParallel every process chooses its own layer. Activation checkpointing does not
    go together with it, as it runs the layer a second time without the hook.

    Args:
        transform: What is drawn and applied, e.g. ``CutMix()``; its ``inplace`` concerns only images.
        layers: The layers to choose from, equally often; one number for a fixed layer.
        seed: Seed of the choice; None takes fresh entropy.

    Raises:
        InputError: If there is no such layer.

    Source:
        Yun et al., CutMix, ICCV 2019, §4.1 (a layer at random for each batch) and Figure 3 (one fixed layer). Which
        layers are chosen from is not said; here they are the five of Figure 3 unless others are given.
    """

    def __init__(
        self, transform: BatchTransform, layers: Sequence[int] | int = (0, 1, 2, 3, 4), *, seed: int | None = None
    ) -> None:
        self.transform = transform
        self.layers = (layers,) if isinstance(layers, int) else tuple(layers)
        if not self.layers or any(layer not in range(len(_MODULES)) for layer in self.layers):
            raise InputError(f"layers are {layers}; expected some of 0 (the image), 1 (the stem), 2, 3, 4 (the stages)")
        self._stream = RandomStream(seed, "layer")

    def forward(self, network: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Targets]:
        """Choose a layer, and run the network with the batch mixed there.

        Args:
            network: The network, also inside DistributedDataParallel or ``torch.compile``.
            images: (N, C, H, W), as the network takes them.
            labels: Class ids (N,), or multi-label targets (N, K).

        Returns:
            What the network returns, and the targets that follow from the draw.

        Raises:
            InputError: If the network lacks one of the layers, or its forward pass does not go through it.
        """
        modules = find_layers(network, self.layers)
        layer = self.layers[int(torch.randint(len(self.layers), (1,), generator=self._stream.generator))]
        module = modules.get(layer)
        if module is None:
            mixed, targets = self.transform(images, labels)
            return network(mixed), targets
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
        return logits, draws[0].targets(labels)

    def state_dict(self) -> dict[str, Any]:
        """Return the random state of the choice and of the transform."""
        return self._stream.state_dict() | {"transform": self.transform.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict()``."""
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


def mixed_forward(
    network: nn.Module, images: Tensor, labels: Tensor, mix: BatchTransform | FeatureMix | None
) -> tuple[Tensor, Targets]:
    """Run the network on a batch that is mixed as images, inside the network, or not at all.

    Args:
        network: The network, also inside DistributedDataParallel or ``torch.compile``.
        images: (N, C, H, W).
        labels: Class ids (N,), or multi-label targets (N, K).
        mix: A transform of images, a ``FeatureMix``, or None.

    Returns:
        What the network returns, and the targets for its loss.
    """
    if isinstance(mix, FeatureMix):
        return mix.forward(network, images, labels)
    mixed, targets = mix(images, labels) if mix is not None else (images, labels)
    return network(mixed), targets


def find_layers(network: nn.Module, layers: Sequence[int]) -> dict[int, nn.Module]:
    """Return the module after which each layer is mixed; the image, layer 0, has none.

    Raises:
        InputError: If the network lacks one of them.
    """
    while isinstance(inner := getattr(network, "_orig_mod", getattr(network, "module", None)), nn.Module):
        network = inner  # torch.compile's wrapper, DistributedDataParallel, a moving average
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
    """Return a seed for the choice that is unrelated to the transform's."""
    seed = options.get("seed")
    return None if seed is None else derive_seed(seed, "layer")
