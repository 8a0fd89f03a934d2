"""Attention maps of vision transformers against queries and keys that are multiplied by hand."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutmix import InputError, create_model
from cutmix.models.transformers import (
    PyramidVisionTransformer,
    WithTokenHead,
    find_attention,
    predict_and_attend,
    token_grid,
)


def vit(name: str = "vit_tiny_patch16_224", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    shape = {"img_size": (12, 16), "patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 2, "num_classes": 5}
    return timm.create_model(name, **shape | options)


def cait(**options: Any) -> nn.Module:
    net = vit("cait_xxs24_224", **options)
    for block in (*net.blocks, *net.blocks_token_only):  # layer scale starts at 1e-5: nothing would be mixed
        block.gamma_1.data.fill_(1)
    return net


def pvt() -> nn.Module:
    torch.manual_seed(0)
    return PyramidVisionTransformer((1, 1, 1, 2), 5, img_size=16, patch_size=1)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vit": vit,
    "deit-distilled": lambda: vit("deit_tiny_distilled_patch16_224"),
    "registers": lambda: vit("vit_small_patch14_reg4_dinov2"),
    "class token, pooled": lambda: vit(global_pool="avg"),
    "pooled": lambda: vit(global_pool="avg", class_token=False),
    "cait": cait,
    "pvt": pvt,
}
every_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)


def batch(net: nn.Module, n: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    height, width = (16, 16) if isinstance(net, PyramidVisionTransformer) else (12, 16)
    return torch.randn(n, 3, height, width, generator=generator)


@torch.no_grad()
def by_hand(net: nn.Module, images: Tensor) -> Tensor:
    """One head, query and key at a time, from what goes into the last attention."""
    attention, seen = find_attention(net), []
    with attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        net.eval()(images)
    (x,) = seen
    if hasattr(attention, "qkv"):
        q, k, _ = attention.qkv(x).chunk(3, dim=2)
    elif hasattr(attention, "kv"):
        q, k = attention.q(x), attention.kv(x).chunk(2, dim=2)[0]
    else:
        q, k = attention.q(x[:, :1]), attention.k(x)
    n, prefix, tokens, dim = len(x), net.num_prefix_tokens, x.shape[1], x.shape[2] // attention.num_heads
    queries = [0] if isinstance(net, timm.models.Cait) else range(prefix, tokens)
    total = torch.zeros(n, tokens)
    for i in range(n):
        for head in range(attention.num_heads):
            part = slice(head * dim, head * dim + dim)
            for query in queries:
                scores = [float(q[i, query, part] @ k[i, key, part]) / math.sqrt(dim) for key in range(tokens)]
                total[i] += torch.tensor(scores).softmax(0) / (attention.num_heads * len(queries))
    return total[:, prefix:].reshape(n, *token_grid(net, images))


@every_network
def test_map_is_that_of_queries_and_keys(make: Callable) -> None:
    net = make()
    images = batch(net)
    for name, weights in find_attention(net).named_parameters():
        if name.partition(".")[0] in ("q", "k", "qkv", "kv"):  # they start so small that all tokens weigh the same
            weights.data.mul_(10)
    logits, attention = predict_and_attend(net, images)
    assert attention.dtype == torch.float32
    assert bool((attention.amax((1, 2)) > 1.2 * attention.amin((1, 2))).all())
    torch.testing.assert_close(attention, by_hand(net, images))
    torch.testing.assert_close(logits, net.eval()(images))
    assert not logits.requires_grad
    assert not attention.requires_grad


def test_the_families_of_timm_by_their_names() -> None:
    for name in ("beit_base_patch16_224", "eva02_tiny_patch14_224", "deit3_small_patch16_224"):
        net = vit(name)
        _, attention = predict_and_attend(net, batch(net))
        assert attention.shape == (2, 3, 4)
        assert bool((attention.sum((1, 2)) < 1).all()), "the class token has a share"


@every_network
def test_the_network_is_as_before(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    net = make().train()
    frozen = next(module for module in net.modules() if isinstance(module, nn.LayerNorm)).eval()
    state, modes = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    fused, calls = F.scaled_dot_product_attention, []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **kw: calls.append(1) or fused(*a, **kw))
    net(batch(net))
    in_training = len(calls)
    calls.clear()
    predict_and_attend(net, batch(net))
    assert len(calls) == in_training - 1, "fused attention stays on in all blocks but one"
    assert [module.training for module in net.modules()] == modes
    assert not frozen.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert all(module.fused_attn for module in net.modules() if hasattr(module, "fused_attn"))


def test_it_is_without_dropout_even_after_an_error() -> None:
    net = vit(drop_path_rate=0.5, proj_drop_rate=0.5, attn_drop_rate=0.5).train()
    first, second = (predict_and_attend(net, batch(net)) for _ in range(2))
    assert all(map(torch.equal, first, second))
    with pytest.raises(AssertionError):
        predict_and_attend(net, torch.randn(2, 3, 16, 16))
    assert net.training
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert all(block.attn.fused_attn for block in net.blocks)


def test_autocast_keeps_no_weights_without_gradients() -> None:
    # Weights that were cast to bfloat16 in a pass without gradients must not be those of the training pass.
    net, other = vit(), vit()
    with torch.autocast("cpu", torch.bfloat16):
        logits, attention = predict_and_attend(net, batch(net))
        net(batch(net)).sum().backward()
        other(batch(other)).sum().backward()
    assert attention.dtype == torch.float32
    assert logits.dtype == torch.bfloat16
    for (name, ours), theirs in zip(net.named_parameters(), other.parameters(), strict=True):
        assert ours.grad is not None, name
        assert torch.equal(ours.grad, theirs.grad), name


# The second head.


def regions(net: nn.Module, images: Tensor) -> Tensor:
    height, width = token_grid(net, images)
    own = torch.ones(len(images), height * width, dtype=torch.bool)
    own[0, 2:5] = False
    own[1:, 1] = False
    return own


@every_network
def test_logits_of_regions_are_those_of_their_mean_tokens(make: Callable) -> None:
    head = WithTokenHead(make()).eval()
    images = batch(head.network)
    own = regions(head.network, images)
    logits, region_logits = head(images, own)
    torch.testing.assert_close(logits, head.network(images))
    tokens = head.network.forward_features(images)[:, head.network.num_prefix_tokens :]
    for i in range(2):
        for region, kept in enumerate((True, False)):
            mean = torch.stack([tokens[i, t] for t in range(tokens.shape[1]) if bool(own[i, t]) is kept]).mean(0)
            mean = head.network.fc_norm(mean) if hasattr(head.network, "fc_norm") else mean
            torch.testing.assert_close(region_logits[i, region], head.token_head(mean))
    assert region_logits.shape == (2, 2, 5)


@every_network
def test_every_parameter_has_a_gradient_even_of_an_empty_region(make: Callable) -> None:
    head = WithTokenHead(make())
    images = batch(head.network)
    logits, region_logits = head(images, torch.ones_like(regions(head.network, images)))
    if not hasattr(head.network, "fc_norm"):
        assert torch.equal(region_logits[:, 1], head.token_head.bias.expand(2, 5))
    (logits.sum() + 0 * region_logits.sum()).backward()
    assert not [name for name, p in head.named_parameters() if p.grad is None]
    assert not head.token_head.weight.grad.any()


def test_what_is_exported_is_the_network_alone() -> None:
    net = vit()
    names = set(net.state_dict())
    head = WithTokenHead(net)
    assert set(head.network.state_dict()) == names
    assert {name for name in head.state_dict() if not name.startswith("network.")} == {
        "token_head.weight", "token_head.bias",
    }  # fmt: skip
    assert head.token_head.weight.shape == net.head.weight.shape


@pytest.mark.parametrize("name", ["vit", "cait", "pvt"])
def test_compiles_as_one_graph(name: str, no_recompilation: None) -> None:
    head = WithTokenHead(NETWORKS[name]()).eval()
    images = batch(head.network)
    own = regions(head.network, images)
    compiled = torch.compile(head, backend="eager", fullgraph=True)
    expected = head(images, own)
    for _ in range(2):
        assert all(map(torch.equal, compiled(images, own), expected))
        head.attend(images)  # what it changes for a moment compiles nothing again


# What is refused.


@pytest.mark.parametrize("name", ["resnet20", "swin_tiny_patch4_window7_224", "pvt_v2_b0", "mixer_s32_224"])
def test_networks_without_attention_over_all_tokens(name: str) -> None:
    with torch.device("meta"), pytest.raises(InputError, match="has no attention over all tokens of an image"):
        WithTokenHead(create_model(name, 5))


def test_patches_that_do_not_divide_the_image() -> None:
    net = vit(img_size=14)  # of which the embedding ignores two rows and columns
    with pytest.raises(InputError, match=r"the images are 14×14 pixels, which tokens of 4×4 pixels do not divide"):
        predict_and_attend(net, torch.zeros(2, 3, 14, 14))


def test_patches_that_are_dropped() -> None:
    head = WithTokenHead(vit(patch_drop_rate=0.5)).train()
    with pytest.raises(InputError, match="makes 6 tokens of each image, but the regions have 12"):
        head(batch(head.network), torch.ones(2, 12, dtype=torch.bool))
