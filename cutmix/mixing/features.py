"""Mixing inside the network: Feature CutMix and Manifold Mixup."""

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from cutmix.errors import InputError
from cutmix.mixing.draw import RandomStream
from cutmix.mixing.images import CutMix, MixOptions, Mixup
from cutmix.mixing.protocol import BatchTransform, Drawn, Mix, unwrapped
from cutmix.mixing.targets import Targets
from cutmix.runtime.seeding import derive_seed

# The paper's indices: the output of this module is mixed; layer 0 is the image.
_MODULES = ("", "bn1", "layer1", "layer2", "layer3")


class FeatureMix(Mix):
    """Mix at one layer of the network, chosen at random for each batch.

    Layer 0 is the image, 1 the output of the first convolution and its batch normalisation (before the activation),
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
        InputError: If there is no such layer.

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

    def prepare(self, network: nn.Module, images: Tensor) -> nn.Module:
        """Return the network, if it has the layers."""
        find_layers(network, self.layers)
        return network

    def on_images(self) -> BatchTransform | None:
        """Return the transform, if the image is one of the layers."""
        return self.transform if 0 in self.layers else None

    def forward(self, network: nn.Module, images: Tensor, targets: Targets) -> tuple[Tensor, Targets]:
        """Choose a layer, and run the network with the batch mixed there.

        Args:
            network: The network, also inside DistributedDataParallel or ``torch.compile``.
            images: (N, C, H, W), as the network takes them.
            targets: Class ids (N,), or multi-label targets (N, K): what ``mix`` leaves as it is.

        Returns:
            The output of the network, and the targets that follow from the draw.

        Raises:
            InputError: If the network lacks one of the layers, or its forward pass does not go through it.
        """
        assert isinstance(targets, Tensor)
        modules = find_layers(network, self.layers)
        layer = self.layers[int(torch.randint(len(self.layers), (1,), generator=self._stream.generator))]
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
    """Return the module whose output each layer is; the image, layer 0, has none.

    Raises:
        InputError: If the network lacks one of them.
    """
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
