"""Vision transformers: PVT, the attention of a model to its tokens, and the second head that SMMix trains.

PVT is the first version of the Pyramid Vision Transformer (Wang et al., ICCV 2021, table 1). Checked against the
authors' ``pvt.py``, whose names of parameters are kept so that their checkpoints load. timm has version 2 only.

Reading the attention changes nothing of a model. For one pass the last attention is computed without the fused kernel,
so that its weights can be read; all other blocks keep theirs. It works for timm's ViTs, DeiTs, BEiTs, EVAs and CaiTs,
for the PVTs here, and for any model with timm's conventions: ``forward_features`` returns (N, prefix + tokens, C), the
attention has the modules ``fused_attn`` and ``attn_drop``.
"""

import contextlib
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp, PatchEmbed, resample_abs_pos_embed, trunc_normal_, use_fused_attn
from torch import Tensor, nn

from cutmix.errors import InputError

# ---- PVT ----

_DEPTHS = {"pvt_tiny": (2, 2, 2, 2), "pvt_small": (3, 4, 6, 3), "pvt_medium": (3, 4, 18, 3), "pvt_large": (3, 8, 27, 3)}
# The four stages of all of them: channels, heads, ratio of the MLP, and the reduction of the keys.
_STAGES = ((64, 1, 8, 8), (128, 2, 8, 4), (320, 5, 4, 2), (512, 8, 4, 1))


def create_pvt(name: str, num_classes: int, in_chans: int = 3) -> "PyramidVisionTransformer":
    """Create a PVT from its name.

    Names are ``pvt_tiny``, ``pvt_small``, ``pvt_medium`` and ``pvt_large``, for images of 224×224; or with the first
    patch and the image's side in the name: ``pvt_tiny_patch1_32``, ``pvt_tiny_patch2_64``.
    """
    found = re.fullmatch(r"(pvt_[a-z]+)(?:_patch([1-9]\d*)_([1-9]\d*))?", name)
    if not found or found[1] not in _DEPTHS:
        raise InputError(f"no PVT is called {name!r}; known are {', '.join(_DEPTHS)}, also as pvt_tiny_patch1_32")
    patch, side = (int(found[2]), int(found[3])) if found[2] else (4, 224)
    return PyramidVisionTransformer(_DEPTHS[found[1]], num_classes, in_chans, img_size=side, patch_size=patch)


class PyramidVisionTransformer(nn.Module):
    """Four stages, each with its own patches and position embeddings, and a class token that joins the last.

    A stage halves the map of the one before, 56, 28, 14 and 7 tokens wide for images of 224×224; its queries are all
    tokens, its keys those of a map that a convolution has reduced 8, 4, 2 and 1 times. The position embeddings, made
    for images of ``img_size`` pixels, are interpolated for another size. ``patch_size`` is that of the first stage; the
    others have patches of 2×2 tokens. The last stage's tokens, of 8 patches' width, have to divide the images.
    ``forward_features``, ``forward_head``, ``get_classifier``, ``num_prefix_tokens`` and ``feature_info`` are those of
    timm's models; ``cutmix.models.regularizers`` fills each block's ``drop_path``.
    """

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        num_classes: int,
        in_chans: int = 3,
        *,
        img_size: int = 224,
        patch_size: int = 4,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans = num_classes, in_chans
        self.num_features, self.num_prefix_tokens = _STAGES[-1][0], 1
        self.feature_info = [
            {"num_chs": stage[0], "reduction": patch_size << i, "module": f"block{i + 1}"}
            for i, stage in enumerate(_STAGES)
        ]
        self.stride = 8 * patch_size
        self._check_size(img_size, img_size)
        channels, side = in_chans, img_size
        for i, (dim, heads, mlp_ratio, reduction) in enumerate(_STAGES, 1):
            patch = patch_size if i == 1 else 2
            embed = PatchEmbed(side, patch, channels, dim, norm_layer=nn.LayerNorm, strict_img_size=False)
            side, channels = side // patch, dim
            prefix = self.num_prefix_tokens if i == len(_STAGES) else 0
            setattr(self, f"patch_embed{i}", embed)
            setattr(self, f"pos_embed{i}", nn.Parameter(torch.empty(1, prefix + side**2, dim)))
            blocks = nn.ModuleList(Block(dim, heads, mlp_ratio, reduction) for _ in range(depths[i - 1]))
            setattr(self, f"block{i}", blocks)
        self.cls_token = nn.Parameter(torch.empty(1, 1, channels))
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.head = nn.Linear(channels, num_classes)
        for parameter in self.parameters(recurse=False):  # positions and the class token
            trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to the class token and the last stage's tokens, (N, 1 + H/32 · W/32, 512)."""
        self._check_size(*x.shape[-2:])
        for i in range(1, len(_STAGES) + 1):
            embed, positions = getattr(self, f"patch_embed{i}"), getattr(self, f"pos_embed{i}")
            grid = embed.dynamic_feat_size(x.shape[-2:])
            x = embed(x)
            prefix = self.num_prefix_tokens if i == len(_STAGES) else 0
            if prefix:
                x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
            x = x + resample_abs_pos_embed(positions, grid, embed.grid_size, prefix, "bilinear", antialias=False)
            for block in getattr(self, f"block{i}"):
                x = block(x, grid)
            if not prefix:
                x = x.transpose(1, 2).unflatten(2, grid)
        return self.norm(x)

    def forward_head(self, x: Tensor) -> Tensor:
        """(N, 1 + tokens, 512) -> logits (N, num_classes), from the class token."""
        return self.head(x[:, 0])

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Linear:
        """The layer that depends on the number of classes."""
        return self.head

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed, beside biases and normalization; the authors decay positions."""
        return {"cls_token"}

    def _check_size(self, height: int, width: int) -> None:
        if height % self.stride or width % self.stride or not height * width:
            raise InputError(f"the images are {height}×{width} pixels; this PVT expects multiples of {self.stride}")


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); ``cutmix.models.regularizers`` fills ``drop_path``."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int, reduction: int) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.norm1 = norm(dim)
        self.attn = Attention(dim, num_heads, reduction)
        self.drop_path: nn.Module = nn.Identity()
        self.norm2 = norm(dim)
        self.mlp = Mlp(dim, dim * mlp_ratio)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Map tokens (N, T, dim) of a grid of height and width to the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x), grid))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    """Attention of all tokens to those of a map that is ``reduction`` times smaller in both directions.

    It is fused where timm's layers are. ``attn_drop`` receives the weights where it is not; it drops nothing.
    """

    def __init__(self, dim: int, num_heads: int, reduction: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.fused_attn = bool(use_fused_attn())
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.attn_drop = nn.Identity()
        self.proj = nn.Linear(dim, dim)
        self.sr = nn.Conv2d(dim, dim, reduction, reduction) if reduction > 1 else None
        if self.sr is not None:
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Map tokens (N, T, dim) of a grid of height and width to the same shape."""
        reduced = x
        if self.sr is not None:
            reduced = self.norm(self.sr(x.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2))
        q = self.q(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(reduced).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if self.fused_attn:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = self.attn_drop((q * self.scale @ k.transpose(2, 3)).softmax(3)) @ v
        return self.proj(x.transpose(1, 2).flatten(2))


# ---- attention ----


def predict_and_attend(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits (N, K) of images and the attention of the model to their h × w tokens, (N, h, w) float32.

    a_t = mean over heads and queries q of softmax_t(q · k_t / √d), without gradients

    The queries are the image's tokens in the last block; the class token and other tokens that are not part of the
    image are left out both as queries and as keys, and rows are not normalized again. A ViT that pools its tokens has
    no class token to leave out. In CaiT the last block with attention is the last of its class-attention layers, whose
    one query is the class token: its map is that query's, averaged over heads. In PVT the last stage reduces no keys,
    so that every token of its map has a weight.

    The arithmetic is that of the surrounding autocast; the weights are averaged in float32. The network is not wrapped;
    its training modes are restored.

    Source: Chen et al., SMMix, ICCV 2023, whose code does so for DeiT and PVT in float32; it has no CaiT. Checked
    against attention that is computed by hand from the queries and keys of each family.
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
    """Return the last attention of a vision transformer that follows timm's conventions."""
    found = [module for module in network.modules() if hasattr(module, "fused_attn") and hasattr(module, "attn_drop")]
    needed = ("forward_features", "forward_head", "num_prefix_tokens", "num_features", "feature_info")
    if not found or not all(hasattr(network, name) for name in needed):
        raise _shows_nothing(network)
    return found[-1]


def token_grid(network: nn.Module, images: Tensor) -> tuple[int, int]:
    """Return the height and width in tokens of images (N, C, H, W) for the network."""
    vit: Any = network
    (height, width), patch = images.shape[-2:], vit.feature_info[-1]["reduction"]
    if height % patch or width % patch:
        raise InputError(
            f"the images are {height}×{width} pixels, which tokens of {patch}×{patch} pixels do not divide; give "
            "another image size or another patch"
        )
    return height // patch, width // patch


# ---- the second head of SMMix ----


class WithTokenHead(nn.Module):
    """A vision transformer with a second linear head, on the mean of its tokens in two regions.

    SMMix trains it: it goes into the optimizer, DistributedDataParallel and ``torch.compile``. Only ``network`` is
    evaluated, averaged and exported: the second head serves its loss and is discarded with this wrapper.

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

        Every parameter has a gradient for all regions, so that DistributedDataParallel need not look for
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
        if hasattr(self.network, "fc_norm"):  # where tokens are pooled, they are normalized only after it
            means = self.network.fc_norm(means)
        return self.network.forward_head(features), self.token_head(means)

    def attend(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's logits and attention, as ``predict_and_attend`` does."""
        return predict_and_attend(self.network, images)

    def token_grid(self, images: Tensor) -> tuple[int, int]:
        """Return the height and width of the images in tokens; see the function ``token_grid``."""
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
    """Compute one attention without the fused kernel."""
    fused = attention.fused_attn
    attention.fused_attn = False
    try:
        yield
    finally:
        attention.fused_attn = fused


def _shows_nothing(network: nn.Module) -> InputError:
    return InputError(
        f"{type(network).__name__} has no attention over all tokens of an image, which SMMix needs; expected a ViT, "
        "DeiT or CaiT of timm, or a PVT"
    )
