"""PVT, against its authors' figures and PyTorch's own attention."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cutmix import InputError
from cutmix.models.transformers import Attention, PyramidVisionTransformer, create_pvt


def small(side: int = 16) -> PyramidVisionTransformer:
    """One block a stage; maps of 16, 8, 4 and 2 tokens' side."""
    torch.manual_seed(0)
    return PyramidVisionTransformer((1, 1, 1, 1), 5, img_size=side, patch_size=side // 16)


@pytest.mark.parametrize(
    ("name", "millions"), [("pvt_tiny", 13.2), ("pvt_small", 24.5), ("pvt_medium", 44.2), ("pvt_large", 61.4)]
)
def test_parameters_are_the_papers(name: str, millions: float) -> None:
    with torch.device("meta"):
        network = create_pvt(name, 1000)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == millions


def test_names_and_shapes_are_those_of_the_authors_files() -> None:
    with torch.device("meta"):
        found = {name: tuple(value.shape) for name, value in create_pvt("pvt_small", 1000).state_dict().items()}
    expected = {
        "patch_embed1.proj.weight": (64, 3, 4, 4), "patch_embed1.norm.bias": (64,), "pos_embed1": (1, 3136, 64),
        "patch_embed4.proj.weight": (512, 320, 2, 2), "pos_embed3": (1, 196, 320), "pos_embed4": (1, 50, 512),
        "block1.0.attn.sr.weight": (64, 64, 8, 8), "block3.5.attn.norm.weight": (320,), "cls_token": (1, 1, 512),
        "block2.3.attn.q.bias": (128,), "block2.3.attn.kv.weight": (256, 128), "block4.2.attn.proj.weight": (512, 512),
        "block1.2.mlp.fc1.weight": (512, 64), "block4.0.mlp.fc2.weight": (512, 2048), "block4.0.norm2.weight": (512,),
        "norm.weight": (512,), "head.weight": (1000, 512),
    }  # fmt: skip
    assert expected.items() <= found.items()
    assert not any(name.startswith("block4") and ".sr" in name for name in found)
    assert sum(name.endswith("attn.sr.weight") for name in found) == 3 + 4 + 6


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("reduction", [1, 2])
def test_attention_is_pytorchs(reduction: int, fused: bool) -> None:
    torch.manual_seed(1)
    attention = Attention(24, 3, reduction)
    attention.fused_attn = fused
    x = torch.randn(2, 4 * 6, 24)
    oracle = nn.MultiheadAttention(24, 3, batch_first=True)
    oracle.in_proj_weight.data = torch.cat((attention.q.weight, attention.kv.weight))
    oracle.in_proj_bias.data = torch.cat((attention.q.bias, attention.kv.bias))
    oracle.out_proj.load_state_dict(attention.proj.state_dict())
    keys = x
    if reduction > 1:
        image = torch.stack([x[:, row * 6 : row * 6 + 6] for row in range(4)], dim=1).permute(0, 3, 1, 2)
        keys = attention.norm(attention.sr(image).flatten(2).transpose(1, 2))
        assert keys.shape == (2, 2 * 3, 24)
    torch.testing.assert_close(attention(x, (4, 6)), oracle(x, keys, keys, need_weights=False)[0])


def test_the_stages_are_maps_of_eight_four_two_and_one_patches() -> None:
    network = small(32).eval()
    grids = []
    for i in (1, 2, 3, 4):
        getattr(network, f"block{i}")[0].register_forward_pre_hook(lambda _, inputs: grids.append(inputs[1]))
    features = network.forward_features(torch.randn(2, 3, 32, 48))
    assert grids == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert features.shape == (2, 1 + 6, 512)
    assert [info["reduction"] for info in network.feature_info] == [2, 4, 8, 16]
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(network(images), network.head(network.forward_features(images)[:, 0]))


def test_positions_are_interpolated_for_other_sizes_only() -> None:
    network = small().eval()
    seen = []
    network.block4[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    positions = torch.randn(1, 1 + 4, 512)
    network.pos_embed4.data = positions
    network(torch.zeros(1, 3, 16, 16))
    network(torch.zeros(1, 3, 8, 32))
    assert torch.equal(seen[0], positions)
    assert torch.equal(seen[1][:, 0], positions[:, 0])
    grid = positions[:, 1:].transpose(1, 2).reshape(1, 512, 2, 2)
    other = F.interpolate(grid, (1, 4), mode="bilinear")
    torch.testing.assert_close(seen[1][:, 1:], other.flatten(2).transpose(1, 2))


def test_every_parameter_has_a_gradient() -> None:
    network = small()
    F.cross_entropy(network(torch.randn(2, 3, 16, 16)), torch.arange(2)).backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_half_precision_and_channels_last() -> None:
    network, images = small().eval(), torch.randn(2, 3, 16, 16)
    plain = network(images)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(network(images).float(), plain, atol=0.02, rtol=0.02)
    network = network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(images.to(memory_format=torch.channels_last)), plain, atol=1e-4, rtol=1e-4)


def test_compiles_as_one_graph(no_recompilation: None) -> None:
    network, images = small().eval(), torch.randn(2, 3, 16, 16)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    for _ in range(2):
        assert torch.equal(compiled(images), network(images))


@pytest.mark.slow
def test_compiles_with_the_default_compiler() -> None:
    network, images = small(), torch.randn(2, 3, 16, 16)
    compiled = torch.compile(network, fullgraph=True)
    torch.testing.assert_close(compiled(images), network(images), atol=1e-4, rtol=1e-4)
    compiled(images).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_what_it_refuses() -> None:
    with pytest.raises(InputError, match="no PVT is called 'pvt_huge'; known are pvt_tiny"):
        create_pvt("pvt_huge", 10)
    with pytest.raises(InputError, match="no PVT is called 'pvt_tiny_patch0_32'"):
        create_pvt("pvt_tiny_patch0_32", 10)
    with pytest.raises(InputError, match="the images are 100×100 pixels; this PVT expects multiples of 32"):
        create_pvt("pvt_tiny_patch4_100", 10)
    with pytest.raises(InputError, match="the images are 16×20 pixels; this PVT expects multiples of 8"):
        small()(torch.zeros(1, 3, 16, 20))
