"""PVT, the Pyramid Vision Transformer, in its first version: four stages of attention over fewer and fewer tokens.

Source: Wang et al., Pyramid Vision Transformer, ICCV 2021, table 1. Checked against the authors' ``pvt.py``, whose
names of parameters are kept so that their checkpoints load. timm has the second version only.
"""

import re
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import Mlp, PatchEmbed, resample_abs_pos_embed, trunc_normal_, use_fused_attn
from torch import Tensor, nn

from cutmix.errors import InputError

_DEPTHS = {"pvt_tiny": (2, 2, 2, 2), "pvt_small": (3, 4, 6, 3), "pvt_medium": (3, 4, 18, 3), "pvt_large": (3, 8, 27, 3)}
# What the four stages of all of them have: channels, heads, ratio of the MLP, and by how much keys are reduced.
_STAGES = ((64, 1, 8, 8), (128, 2, 8, 4), (320, 5, 4, 2), (512, 8, 4, 1))


def create_pvt(name: str, num_classes: int, in_chans: int = 3) -> "PyramidVisionTransformer":
    """Create a PVT from its name.

    Args:
        name: ``pvt_tiny``, ``pvt_small``, ``pvt_medium`` or ``pvt_large``, for images of 224×224; or the same for other
            ones, with the first patch and the image's side in the name: ``pvt_tiny_patch1_32``, ``pvt_tiny_patch2_64``.
        num_classes: Outputs.
        in_chans: Channels of the images.

    Raises:
        InputError: If there is no such PVT, or its patches do not divide its images.
    """
    found = re.fullmatch(r"(pvt_[a-z]+)(?:_patch([1-9]\d*)_([1-9]\d*))?", name)
    if not found or found[1] not in _DEPTHS:
        raise InputError(f"no PVT is called {name!r}; known are {', '.join(_DEPTHS)}, also as pvt_tiny_patch1_32")
    patch, side = (int(found[2]), int(found[3])) if found[2] else (4, 224)
    return PyramidVisionTransformer(_DEPTHS[found[1]], num_classes, in_chans, img_size=side, patch_size=patch)


class PyramidVisionTransformer(nn.Module):
    """Four stages, each with its own patches and position embeddings, and a class token that joins the last.

    A stage halves the map of the one before, 56, 28, 14 and 7 tokens wide for images of 224×224; its queries are all
    tokens, its keys those of a map that a convolution has reduced 8, 4, 2 and 1 times. Images of another size get
    interpolated position embeddings. ``forward_features``, ``forward_head``, ``get_classifier``, ``num_prefix_tokens``
    and ``feature_info`` are what timm's models have under these names; ``cutmix.models.regularizers`` fills each
    block's ``drop_path``.

    Args:
        depths: Blocks in each stage.
        num_classes: Outputs.
        in_chans: Channels of the images.
        img_size: Side of the images that the position embeddings are for, in pixels.
        patch_size: Side of the first stage's patches, in pixels; those of the others are 2×2 tokens.

    Raises:
        InputError: If the last stage's tokens, of 8 patches' width, do not divide the images.
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
        """Map images (N, in_chans, H, W) to the class token and the last stage's tokens, (N, 1 + H/32 · W/32, 512).

        Raises:
            InputError: If the last stage's tokens do not divide the image.
        """
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
        """Names of parameters that are not decayed, beside biases and normalisation; the authors decay positions."""
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

    Fused where timm's layers are. ``attn_drop`` sees the weights where it is not; it drops nothing.
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
