"""The attention of a vision transformer to the tokens of an image, and the second head that SMMix trains.

Reading the attention changes nothing of a model. For one pass the last attention is computed without the fused kernel,
so that its weights can be read; all other blocks keep theirs. It works for timm's ViTs, DeiTs, BEiTs, EVAs and CaiTs,
for the PVTs here, and for any model with timm's conventions: ``forward_features`` returns (N, prefix + tokens, C), the
attention has the modules ``fused_attn`` and ``attn_drop``.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cutmix.errors import InputError


def predict_and_attend(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of images and the attention that the model pays to their tokens, without gradients.

        a_t = mean over heads and queries q of softmax_t(q · k_t / √d)

    The queries are the image's tokens in the last block; the class token, and whatever else is no part of the image, is
    left out both as a query and as a key, and rows are not normalised again. A ViT that pools its tokens instead of
    having a class token has the same map: there was nothing to leave out. In CaiT the last block with attention is the
    last of its class-attention layers, whose one query is the class token: its map is that query's, averaged over
    heads. In PVT the last stage reduces no keys, so that every token of its map has a weight.

    The arithmetic is that of the surrounding autocast, the weights are averaged in float32.

    Args:
        network: A vision transformer, not wrapped; its modes of training are left as they were.
        images: (N, C, H, W), as the network takes them.

    Returns:
        Logits (N, K), and attention (N, h, w) float32, h × w being the tokens of the image.

    Raises:
        InputError: If the network has no attention over all tokens of an image, or its patches do not divide it.

    Source:
        Chen et al., SMMix, ICCV 2023, whose code does so for DeiT and PVT in float32; it has no CaiT. Checked against
        attention that is computed by hand from the queries and keys of each family.
    """
    attention = find_attention(network)
    grid = token_grid(network, images)
    vit: Any = network
    shown: list[Tensor] = []

    def show(module: nn.Module, inputs: Any) -> None:
        shown.append(inputs[0])

    device = images.device.type
    # The cache of autocast would hand weights that were cast without gradients to the training pass.
    uncached = torch.autocast(
        device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device), cache_enabled=False
    )
    with torch.no_grad(), uncached, _evaluating(network), _unfused(attention):
        with attention.attn_drop.register_forward_pre_hook(show):
            features = vit.forward_features(images)
        logits = vit.forward_head(features)
    prefix = vit.num_prefix_tokens
    if len(shown) != 1 or shown[0].ndim != 4 or shown[0].shape[3] != prefix + grid[0] * grid[1]:
        raise _shows_nothing(network)
    weights = shown[0][..., prefix:]  # (N, heads, queries, tokens)
    if weights.shape[2] > 1:
        weights = weights[:, :, prefix:]
    return logits, weights.mean((1, 2), dtype=torch.float32).unflatten(1, grid)


def find_attention(network: nn.Module) -> Any:
    """Return the last attention of a vision transformer.

    Raises:
        InputError: If the network is no vision transformer of timm's conventions.
    """
    found = [module for module in network.modules() if hasattr(module, "fused_attn") and hasattr(module, "attn_drop")]
    needed = ("forward_features", "forward_head", "num_prefix_tokens", "num_features", "feature_info")
    if not found or not all(hasattr(network, name) for name in needed):
        raise _shows_nothing(network)
    return found[-1]


def token_grid(network: nn.Module, images: Tensor) -> tuple[int, int]:
    """Return how many tokens high and wide images (N, C, H, W) are for the network.

    Raises:
        InputError: If its patches do not divide them.
    """
    vit: Any = network
    (height, width), patch = images.shape[-2:], vit.feature_info[-1]["reduction"]
    if height % patch or width % patch:
        raise InputError(
            f"the images are {height}×{width} pixels, which tokens of {patch}×{patch} pixels do not divide; give "
            "another image size or another patch"
        )
    return height // patch, width // patch


class WithTokenHead(nn.Module):
    """A vision transformer with a second linear head, on the mean of its tokens in two regions.

    What SMMix trains, and what goes into the optimizer, DistributedDataParallel and ``torch.compile``. Only ``network``
    is evaluated, averaged and exported: the second head serves its loss and is thrown away with this wrapper.

    Args:
        network: A vision transformer, as ``predict_and_attend`` describes it.

    Raises:
        InputError: If the network has no attention over all tokens of an image.

    Source:
        Chen et al., SMMix, ICCV 2023, fine-grained labels; ``token_head`` of the authors' ``deit.py``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        find_attention(network)
        vit: Any = network
        self.network = vit
        self.token_head = nn.Linear(vit.num_features, vit.num_classes)
        nn.init.trunc_normal_(self.token_head.weight, std=0.02)  # as the heads of these networks start
        nn.init.zeros_(self.token_head.bias)

    def forward(self, images: Tensor, own_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's logits, and those of two regions of each image.

        Every parameter has a gradient whatever the regions are, so that DistributedDataParallel need not look for
        unused ones.

        Args:
            images: (N, C, H, W).
            own_tokens: (N, T) bool, True for the tokens of the first region; the others are the second one.

        Returns:
            Logits (N, K), and logits (N, 2, K) of the regions; those of an empty region are the head's bias.

        Raises:
            InputError: If the network has another number of tokens.
        """
        features = self.network.forward_features(images)
        tokens = features[:, self.network.num_prefix_tokens :]
        if tokens.shape[:2] != own_tokens.shape:
            raise InputError(
                f"the network makes {tokens.shape[1]} tokens of each image, but the regions have "
                f"{own_tokens.shape[1]}; patches must not be dropped"
            )
        regions = torch.stack((own_tokens, ~own_tokens), dim=1)
        sums = torch.bmm(regions.to(tokens.dtype), tokens)
        means = sums / regions.sum(2, keepdim=True).clamp(min=1)
        if hasattr(self.network, "fc_norm"):  # where tokens are pooled, they are normalised only after it
            means = self.network.fc_norm(means)
        return self.network.forward_head(features), self.token_head(means)

    def attend(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's logits and attention, as ``predict_and_attend`` does."""
        return predict_and_attend(self.network, images)

    def token_grid(self, images: Tensor) -> tuple[int, int]:
        """Return how many tokens high and wide the images are; see the function ``token_grid``."""
        return token_grid(self.network, images)


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and afterwards every module into its own."""
    trained = [module for module in network.modules() if module.training]
    for module in trained:
        module.training = False
    try:
        yield
    finally:
        for module in trained:
            module.training = True


@contextlib.contextmanager
def _unfused(attention: Any) -> Iterator[None]:
    """Compute one attention in the open."""
    fused = attention.fused_attn
    attention.fused_attn = False
    try:
        yield
    finally:
        attention.fused_attn = fused


def _shows_nothing(network: nn.Module) -> InputError:
    return InputError(
        f"{type(network).__name__} has no attention over all tokens of an image, which SMMix goes by; expected a ViT, "
        "DeiT or CaiT of timm, or a PVT"
    )
