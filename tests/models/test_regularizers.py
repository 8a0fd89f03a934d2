import copy

import numpy as np
import pytest
import scipy.stats
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from cutmix.errors import InputError
from cutmix.models import PyramidNet, create_model
from cutmix.models.regularizers import (
    DropBlock,
    ShakeDrop,
    StochasticDepth,
    drop_block,
    regularize,
    shake_drop,
    stochastic_depth,
)

REGULARIZERS = [stochastic_depth, drop_block, shake_drop]


def seeded(function, *arguments, seed=0):
    torch.manual_seed(seed)
    return function(*arguments)


@pytest.mark.parametrize("regularizer", REGULARIZERS)
class TestAll:
    def test_p_of_zero_is_the_identity(self, regularizer):
        x = torch.randn(2, 3, 8, 8)
        assert torch.equal(regularizer(x, 0.0), x)
        assert torch.equal(regularizer(x, 0.0, training=False), x)

    def test_a_training_step_has_the_expectation_of_evaluation(self, regularizer):
        torch.manual_seed(0)
        x = torch.ones(4, 3, 8, 8)
        draws = torch.stack([regularizer(x, 0.3).mean() for _ in range(10_000)])
        error = 5 * draws.std().item() / len(draws) ** 0.5 + 1e-6
        assert draws.mean().item() == pytest.approx(regularizer(x, 0.3, training=False).mean().item(), abs=error)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_dtype_and_layout_stay(self, regularizer, dtype, memory_format):
        torch.manual_seed(0)
        x = torch.randn(4, 6, 8, 8, dtype=dtype).to(memory_format=memory_format).requires_grad_()
        y = regularizer(x, 0.5)
        y.sum().backward()
        for tensor in (y, x.grad):
            assert tensor.dtype == dtype
            assert tensor.shape == x.shape
            assert tensor.is_contiguous(memory_format=memory_format)

    def test_draws_follow_the_global_generator(self, regularizer):
        x = torch.randn(8, 3, 8, 8)
        first, second = (seeded(lambda: [regularizer(x, 0.5) for _ in range(5)]) for _ in range(2))
        other = seeded(lambda: [regularizer(x, 0.5) for _ in range(5)], seed=1)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("regularizer", [stochastic_depth, drop_block])
def test_evaluation_is_the_identity(regularizer):
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(regularizer(x, 0.5, training=False), x)


@pytest.mark.parametrize("shape", [(16, 3, 4, 5), (16, 7)])
def test_stochastic_depth_is_torchvisions(shape):
    x = torch.randn(shape)
    expected = seeded(torchvision.ops.stochastic_depth, x, 0.25, "row")
    assert torch.equal(seeded(stochastic_depth, x, 0.25), expected)


def test_stochastic_depth_drops_whole_samples():
    torch.manual_seed(0)
    y = stochastic_depth(torch.ones(10_000, 2, 2), 0.25).flatten(1)
    assert (y == y[:, :1]).all()
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (y[:, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("block_size", [1, 3, 7])
def test_drop_block_is_torchvisions_where_that_works(block_size):
    x = torch.randn(4, 5, 9, 7)
    expected = seeded(torchvision.ops.drop_block2d, x, 0.2, block_size)
    torch.testing.assert_close(seeded(drop_block, x, 0.2, block_size), expected)


@pytest.mark.parametrize(("block_size", "height", "width"), [(4, 8, 8), (4, 9, 6), (4, 4, 4), (2, 5, 5), (3, 7, 8)])
def test_dropped_cells_are_whole_blocks(block_size, height, width):
    torch.manual_seed(0)
    dropped = (drop_block(torch.ones(50, 8, height, width), 0.3, block_size) == 0).float()
    whole = -F.max_pool2d(-dropped, block_size, stride=1)  # 1 where a block starts that is dropped entirely
    again = F.max_pool2d(F.pad(whole, [block_size - 1] * 4), block_size, stride=1)
    assert 0 < dropped.mean() < 1
    assert torch.equal(again, dropped)


@pytest.mark.parametrize(("block_size", "size"), [(4, 8), (4, 16), (3, 5), (4, 4)])
def test_share_that_is_dropped(block_size, size):
    torch.manual_seed(0)
    p, starts = 0.1, size - block_size + 1
    dropped = drop_block(torch.ones(100, 100, size, size), p, block_size) == 0
    # A cell is kept if none of the blocks that would cover it starts; along one side these are min(...) many.
    covers = torch.tensor([min(i, starts - 1) - max(0, i - block_size + 1) + 1 for i in range(size)])
    gamma = p * size**2 / (block_size**2 * starts**2)
    expected = 1 - (1 - gamma) ** torch.outer(covers, covers)
    torch.testing.assert_close(dropped.float().mean((0, 1)), expected, rtol=0, atol=0.02)
    assert dropped.float().mean().item() == pytest.approx(p, abs=0.015)


def test_drop_block_keeps_the_mean_and_the_masks_apart():
    torch.manual_seed(0)
    y = drop_block(torch.ones(4, 3, 8, 8), 0.3)
    assert y.mean().item() == pytest.approx(1)
    assert y.unique().numel() == 2
    masks = (y == 0).flatten(0, 1).flatten(1)
    assert len(masks.unique(dim=0)) > 6  # of 12; one or two may drop nothing


def test_drop_block_of_everything_is_zero():
    torch.manual_seed(0)
    assert any((drop_block(torch.ones(1, 1, 4, 4), 0.9) == 0).all() for _ in range(20))


@pytest.mark.parametrize(("height", "width"), [(3, 8), (8, 3), (2, 2)])
def test_a_map_smaller_than_the_block(height, width):
    with pytest.raises(InputError, match=rf"block of 4×4 is larger than the feature map of {height}×{width}; give"):
        drop_block(torch.ones(1, 1, height, width), 0.1)


def factors(n, p, function=shake_drop):
    """What shake_drop multiplies samples and their gradients by, one column a pixel."""
    x = torch.full((n, 2, 1, 1), 2.0, requires_grad=True)
    y = function(x, p)
    y.sum().backward()
    return y.detach().flatten(1) / 2, x.grad.flatten(1)


@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_shake_drop_shakes_forward_by_alpha_and_backward_by_beta(backend):
    torch.manual_seed(0)
    compiled = torch.compile(shake_drop, backend=backend, fullgraph=True) if backend else shake_drop
    forward, backward = factors(10_000, 1 - 1e-9, compiled)
    assert (forward == forward[:, :1]).all()
    assert (backward == backward[:, :1]).all()
    alpha, beta = forward[:, 0].numpy(), backward[:, 0].numpy()
    assert scipy.stats.kstest(alpha, "uniform", (-1, 2)).pvalue > 0.001
    assert scipy.stats.kstest(beta, "uniform", (0, 1)).pvalue > 0.001
    assert abs(scipy.stats.pearsonr(alpha, beta).statistic) < 0.05


def test_shake_drop_passes_a_whole_batch_through_or_none_of_it():
    torch.manual_seed(0)
    through = []
    for _ in range(1000):
        forward, backward = factors(4, 0.3)
        through.append(bool((forward == 1).all()))
        assert through[-1] or not (forward == 1).any()
        assert through[-1] == bool((backward == 1).all())
    assert sum(through) / len(through) == pytest.approx(0.7, abs=0.06)


def test_shake_drop_evaluates_to_the_expectation_with_its_gradient():
    x = torch.randn(3, 2, 4, 4, requires_grad=True)
    y = shake_drop(x, 0.3, training=False)
    y.sum().backward()
    torch.testing.assert_close(y, 0.7 * x)
    torch.testing.assert_close(x.grad, torch.full_like(x, 0.7))


NETWORKS = {
    "resnet20": lambda: create_model("resnet20", 5),
    "resnet110": lambda: create_model("resnet110", 5),
    "pyramidnet": lambda: PyramidNet(2, 12, 5),
    "resnet18_cifar": lambda: create_model("resnet18_cifar", 5),
    "seresnet18": lambda: create_model("seresnet18", 5),
    "resnet26t": lambda: create_model("resnet26t", 5),
}


def regularizers_of(model, kind):
    return {name: module.p for name, module in model.named_modules() if isinstance(module, kind)}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_the_residual_branch_is_dropped_and_the_shortcut_stays(make):
    torch.manual_seed(0)
    model = regularize(make(), stochastic_depth=1 - 1e-9, decay="constant")
    block = model.layer2[0]
    x = torch.randn(2, block.conv1.in_channels, 8, 8)
    y, shortcut = block(x), block.downsample(x)
    if isinstance(model, PyramidNet):
        channels = shortcut.shape[1]
        assert torch.equal(y[:, :channels], shortcut)
        assert (y[:, channels:] == 0).all()
    else:
        assert torch.equal(y, shortcut.relu())


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_weights_and_evaluation_are_those_of_the_plain_network(make):
    torch.manual_seed(0)
    plain = make()
    model = regularize(copy.deepcopy(plain), stochastic_depth=0.25, drop_block=0.1, block_size=2)
    assert list(model.state_dict()) == list(plain.state_dict())
    model.load_state_dict(plain.state_dict(), strict=True)
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(model.eval()(images), plain.eval()(images))
    torch.manual_seed(0)
    loss = model.train()(images).square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("option", "kind"), [("stochastic_depth", StochasticDepth), ("shake_drop", ShakeDrop)])
def test_drop_grows_linearly_with_depth_or_is_constant(option, kind):
    linear = list(regularizers_of(regularize(create_model("resnet20", 5), **{option: 0.5}), kind).values())
    assert linear == pytest.approx([0.5 * block / 9 for block in range(1, 10)])
    constant = regularize(create_model("resnet18_cifar", 5), decay="constant", **{option: 0.5})
    assert list(regularizers_of(constant, kind).values()) == [0.5] * 8


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "cait_xxs24_224"])
def test_transformers_drop_as_timms_do(name):
    with torch.device("meta"):
        theirs = timm.create_model(name, drop_path_rate=0.1)
        ours = create_model(name, 5)
    regularize(ours, stochastic_depth=0.1, decay="constant" if "cait" in name else "linear")
    expected = {key: layer.drop_prob for key, layer in theirs.named_modules() if hasattr(layer, "drop_prob")}
    layers = ours.named_modules(remove_duplicate=False)
    found = {key.removesuffix(".0"): layer.p for key, layer in layers if isinstance(layer, StochasticDepth) and layer.p}
    assert found == pytest.approx(expected)
    assert not any("token_only" in key for key in regularizers_of(ours, StochasticDepth))


def test_pvt_drops_as_its_authors_code_does():
    with torch.device("meta"):
        model = regularize(create_model("pvt_small", 5), stochastic_depth=0.1)
    rates = list(regularizers_of(model, StochasticDepth).values())
    assert rates == pytest.approx(np.linspace(0, 0.1, 3 + 4 + 6 + 3))


def test_drop_block_is_in_the_last_two_stages():
    for name, stages in (("resnet20", {"layer2": 3, "layer3": 3}), ("resnet18_cifar", {"layer3": 2, "layer4": 2})):
        found = regularizers_of(regularize(create_model(name, 5), drop_block=0.1), DropBlock)
        first, last = stages
        expected = {f"{first}.{i}.drop_path.0": 0.1 / 4 for i in range(stages[first])}
        expected |= {f"{last}.{i}.drop_path.0": 0.1 for i in range(stages[last])}
        assert found == expected


def test_a_second_call_replaces_the_first():
    model = regularize(regularize(create_model("resnet20", 5), stochastic_depth=0.25), shake_drop=0.5)
    assert not regularizers_of(model, StochasticDepth)
    assert len(regularizers_of(model, ShakeDrop)) == 9


def test_nothing_to_do_leaves_any_network_alone():
    model = nn.Linear(2, 2)
    assert regularize(model) is model


@pytest.mark.parametrize("options", [{"shake_drop": 0.5}, {"stochastic_depth": 0.25, "drop_block": 0.1}])
def test_regularized_networks_compile_into_one_graph(options, no_recompilation):
    model = regularize(PyramidNet(2, 12, 5), block_size=2, **options)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    images = torch.rand(4, 3, 16, 16)
    for seed in range(3):
        results = []
        for network in (model, compiled):
            model.zero_grad()
            logits = seeded(network, images, seed=seed)
            logits.square().sum().backward()
            results.append((logits, *(p.grad for p in model.parameters())))
        for eager, graph in zip(*results, strict=True):
            assert torch.equal(eager, graph)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stochastic_depth": 1.0}, r"stochastic_depth is 1\.0; expected a probability of dropping in \[0, 1\)"),
        ({"shake_drop": -0.5}, r"shake_drop is -0\.5; expected"),
        ({"stochastic_depth": float("nan")}, r"stochastic_depth is nan; expected"),
        ({"drop_block": 2}, r"drop_block is 2; expected"),
        ({"drop_block": 0.1, "block_size": 0}, "block_size is 0; expected a number of pixels"),
        ({"shake_drop": 0.5, "decay": "cosine"}, "decay is 'cosine'; expected one of linear, constant"),
        ({"stochastic_depth": 0.25, "shake_drop": 0.5}, "stochastic_depth and shake_drop are both given"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(InputError, match=message):
        regularize(create_model("resnet20", 5), **options)


def test_a_network_without_residual_blocks():
    with pytest.raises(InputError, match=r"VGG has no residual blocks .*; expected a ResNet, PyramidNet"):
        regularize(create_model("vgg11", 5), stochastic_depth=0.25)
