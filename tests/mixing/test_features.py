"""Mixing inside the network, against forward passes that are written by hand."""

import contextlib
import copy
import pickle
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cutmix import (
    CutMix,
    Draw,
    FeatureCutMix,
    FeatureMix,
    InputError,
    ManifoldMixup,
    Mix,
    MixedTargets,
    Mixup,
    OneHotCutMix,
    ScheduledCutMix,
    create_model,
    mixed_cross_entropy,
)

METHODS = {"feature-cutmix": FeatureCutMix, "manifold-mixup": ManifoldMixup}
every_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
# Channels, height and width where each layer is mixed, for images of 3×16×12.
SHAPES = {0: (3, 16, 12), 1: (16, 16, 12), 2: (16, 16, 12), 3: (32, 8, 6), 4: (64, 4, 3)}


def batch(n: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, 16, 12, generator=generator), torch.arange(n) % 4


def network(name: str = "resnet20") -> nn.Module:
    torch.manual_seed(1)
    return create_model(name, 4).train()


def by_hand(net: nn.Module, x: Tensor, layer: int, draw: Draw) -> Tensor:
    """The CIFAR ResNet, stage by stage, with the mix written where it belongs."""
    if layer == 0:
        x = draw.apply(x)
    x = net.bn1(net.conv1(x))
    if layer == 1:
        x = draw.apply(x)
    x = F.relu(x)
    for number, stage in enumerate((net.layer1, net.layer2, net.layer3), 2):
        x = stage(x)
        if layer == number:
            x = draw.apply(x)
    return net.fc(x.mean((2, 3)))


def hooks(net: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules())


def same(a: MixedTargets, b: MixedTargets) -> bool:
    return all(map(torch.equal, a, b))


# Where and what is mixed.


@every_method
@pytest.mark.parametrize("layer", range(5))
@pytest.mark.parametrize("per_sample", [False, True])
def test_as_by_hand(make: Callable, layer: int, per_sample: bool) -> None:
    images, labels = batch()
    net = network()
    other = copy.deepcopy(net)
    mix = make(layer, per_sample=per_sample, seed=2)
    draw = copy.deepcopy(mix).transform.draw((6, *SHAPES[layer]))
    logits, targets = mix.forward(net, images, labels)
    expected = by_hand(other, images, layer, draw)
    assert torch.equal(logits, expected)
    assert same(targets, draw.targets(labels))
    mixed_cross_entropy(logits, targets).backward()
    mixed_cross_entropy(expected, targets).backward()
    for (name, ours), theirs in zip(net.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    for ours, theirs in zip(net.buffers(), other.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    assert hooks(net) == 0


@pytest.mark.parametrize("name", ["resnet10t", "resnet18"])
@every_method
def test_networks_of_timm(make: Callable, name: str) -> None:
    torch.manual_seed(3)
    net = timm.create_model(name, num_classes=4).eval()
    images, labels = torch.randn(4, 3, 64, 64), torch.arange(4)
    stem = net.bn1(net.conv1(images))
    first = net.maxpool(net.act1(stem.clone()))
    for layer, features in ((1, stem), (2, net.layer1(first)), (3, net.layer2(net.layer1(first)))):
        mix = make(layer, seed=4)
        draw = copy.deepcopy(mix).transform.draw(features.shape)
        x = draw.apply(features)
        for module in {1: [net.act1, net.maxpool, net.layer1, net.layer2], 2: [net.layer2], 3: []}[layer]:
            x = module(x)
        logits, targets = mix.forward(net, images, labels)
        assert torch.equal(logits, net.forward_head(net.layer4(net.layer3(x))))
        assert same(targets, draw.targets(labels))


def test_lambda_is_the_share_of_own_features(numbered: Callable) -> None:
    class Stages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn1, self.layer1, self.layer2, self.layer3 = (nn.AvgPool2d(k) for k in (1, 1, 2, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer3(self.layer2(self.layer1(self.bn1(x))))

    mix = FeatureCutMix(4, seed=5)
    for _ in range(20):
        features, targets = mix.forward(Stages(), numbered(5, 3, 20, 28), torch.arange(5))
        own = features == torch.arange(5).view(5, 1, 1, 1)
        assert features.shape == (5, 3, 5, 7)
        torch.testing.assert_close(targets.lam, own.float().mean((1, 2, 3)))


def test_any_transform_can_be_inside() -> None:
    images, labels = batch()
    mix = FeatureMix(OneHotCutMix(seed=6), layers=(2, 3), seed=6)
    _, targets = mix.forward(network(), images, labels)
    assert set(targets.lam.tolist()) <= {0.0, 1.0}
    assert repr(mix) == "FeatureMix(OneHotCutMix(alpha=1.0, per_sample=False, inplace=False, prob=1.0), layers=(2, 3))"


# The choice.


def choices(mix: FeatureMix, batches: int) -> list[int]:
    """The layer of each batch, seen in a network of which each stage has a size of its own."""
    sizes = {(16, 12): 0, (16, 11): 1, (15, 11): 2, (8, 6): 3, (4, 3): 4}
    seen: list[int] = []
    draw = mix.transform.draw
    mix.transform.draw = lambda shape: seen.append(sizes[tuple(shape[-2:])]) or draw(shape)
    net = nn.Identity()
    net.bn1, net.layer1 = nn.AvgPool2d((1, 2), (1, 1)), nn.AvgPool2d((2, 1), (1, 1))
    net.layer2, net.layer3 = (nn.AvgPool2d(2, ceil_mode=True) for _ in range(2))
    net.forward = lambda x: net.layer3(net.layer2(net.layer1(net.bn1(x))))
    for _ in range(batches):
        mix.forward(net, torch.zeros(2, 1, 16, 12), torch.arange(2))
    del mix.transform.draw
    return seen


@every_method
def test_layers_are_chosen_equally_often(make: Callable) -> None:
    seen = Counter(choices(make(seed=7), 1500))
    assert sorted(seen) == [0, 1, 2, 3, 4]
    assert stats.chisquare(list(seen.values())).pvalue > 1e-4
    assert set(choices(make((1, 3), seed=7), 30)) == {1, 3}
    assert set(choices(make(2, seed=7), 10)) == {2}


@every_method
def test_goes_on_from_its_state(make: Callable) -> None:
    net, (images, labels) = network().eval(), batch()

    def run(mix: FeatureMix, batches: int) -> list[list[float]]:
        return [mix.forward(net, images, labels)[0].flatten().tolist() for _ in range(batches)]

    through = run(make(prob=0.7, seed=8), 12)
    first = make(prob=0.7, seed=8)
    assert run(first, 5) == through[:5]
    copies = [make(prob=0.7, seed=99), copy.deepcopy(first), pickle.loads(pickle.dumps(first))]
    copies[0].load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    assert [run(mix, 7) for mix in copies] == [through[5:]] * 3
    assert run(make(prob=0.7, seed=9), 12) != through


def test_global_generator_is_not_moved() -> None:
    net, (images, labels) = network(), batch()
    before = torch.get_rng_state()
    FeatureCutMix(seed=0).forward(net, images, labels)
    ManifoldMixup().forward(net, images, labels)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("layer", [0, 3])
def test_prob(layer: int) -> None:
    net, (images, labels) = network().eval(), batch()
    plain = net(images)
    never = FeatureCutMix(layer, prob=0.0).forward(net, images, labels)
    assert torch.equal(never[0], plain)
    assert never[1].lam.tolist() == [1.0] * 6
    some = FeatureCutMix(layer, prob=0.3, seed=10)
    changed = sum(not torch.equal(some.forward(net, images, labels)[1].lam, torch.ones(6)) for _ in range(200))
    assert changed / 200 == pytest.approx(0.3, abs=0.14)
    some.prob = 0  # switches any method off
    assert some.prob == 0
    assert all(torch.equal(some.forward(net, images, labels)[0], plain) for _ in range(20))


# Around the network.


@contextlib.contextmanager
def one_process(tmp_path: str) -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.FileStore(f"{tmp_path}/store", 1), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@every_method
def test_through_wrappers(make: Callable, tmp_path: str) -> None:
    images, labels = batch()
    compiled = 0

    def backend(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        nonlocal compiled
        compiled += 1
        return graph

    def gradients(wrap: Callable) -> list[tuple[Tensor, Tensor]]:
        net, mix, results = network(), make(seed=11), []
        wrapped = wrap(net)
        wrapped(images)  # compiled before the first hook
        for _ in range(6):
            net.zero_grad()
            logits, targets = mix.forward(wrapped, images, labels)
            mixed_cross_entropy(logits, targets).backward()
            results.append((logits.detach(), net.conv1.weight.grad.clone()))
        assert hooks(wrapped) == 0
        return results

    expected = gradients(lambda net: net)
    with one_process(tmp_path):
        wrappers = (
            DistributedDataParallel,
            lambda net: torch.compile(net, backend=backend),
            lambda net: torch.compile(DistributedDataParallel(net), backend=backend),
        )
        for wrap in wrappers:
            for ours, plain in zip(gradients(wrap), expected, strict=True):
                torch.testing.assert_close(ours, plain)
    assert compiled  # The wrappers do compile what has no hook.


@every_method
@pytest.mark.parametrize("layer", range(5))
def test_autocast_and_channels_last(make: Callable, layer: int) -> None:
    images, labels = batch()
    net = network().to(memory_format=torch.channels_last)
    layouts = []
    following = (net.conv1, net.conv1, net.layer2, net.layer3, net.fc)[layer]
    images = images.contiguous(memory_format=torch.channels_last)
    with following.register_forward_pre_hook(lambda _, x: layouts.append(x[0])), torch.autocast("cpu", torch.bfloat16):
        logits, targets = make(layer, seed=12).forward(net, images, labels)
    if layer in (0, 2, 3):
        assert layouts[0].is_contiguous(memory_format=torch.channels_last)
    assert logits.dtype == torch.bfloat16
    assert targets.lam.dtype == torch.float32
    mixed_cross_entropy(logits, targets).backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters())
    exact, same_targets = make(layer, seed=12).forward(network(), images, labels)
    assert same(targets, same_targets)
    torch.testing.assert_close(logits.float(), exact, rtol=0.05, atol=0.1)


# The protocol of the training loop.


def test_every_kind_of_mixing_trains_by_one_protocol() -> None:
    net, (images, labels) = network().eval(), batch()
    weight = torch.tensor([0.5, 2.0, 1.0, 3.0])
    options = {"label_smoothing": 0.1, "weight": weight}

    def loss(mix: Mix) -> Tensor:
        assert mix.prepare(net, images) is net
        return mix.loss(net, *mix.mix(images, labels, 0.5), **options)

    total = F.cross_entropy(net(images), labels, reduction="sum", **options)  # type: ignore[arg-type]
    torch.testing.assert_close(loss(Mix()), total / len(labels))  # not over the weights, so that parts add up
    for make in (CutMix, Mixup):
        mixed, targets = make(seed=13)(images, labels)
        assert torch.equal(loss(make(seed=13)), mixed_cross_entropy(net(mixed), targets, **options))
    assert torch.equal(
        loss(FeatureCutMix(3, seed=13)),
        mixed_cross_entropy(*FeatureCutMix(3, seed=13).forward(net, images, labels), **options),
    )
    scheduled = ScheduledCutMix(seed=13)
    loss(scheduled)
    assert (scheduled.progress, scheduled.prob) == (0.5, 0.5)


def test_inplace_concerns_images_only() -> None:
    net, (images, labels) = network().eval(), batch()
    before = images.clone()
    ours = FeatureCutMix(3, inplace=True, seed=13).forward(net, images, labels)
    assert torch.equal(images, before)
    assert torch.equal(ours[0], FeatureCutMix(3, seed=13).forward(net, images, labels)[0])
    FeatureCutMix(0, inplace=True, seed=13).forward(net, images, labels)
    assert not torch.equal(images, before)


def test_previews_show_what_happens_to_images() -> None:
    cutmix, inside = CutMix(), FeatureCutMix((1, 2))
    assert cutmix.on_images() is cutmix
    assert inside.on_images() is None
    both = FeatureCutMix((0, 1))
    assert both.on_images() is both.transform
    assert Mix().on_images() is None


def test_accumulated_gradients() -> None:
    net, (images, labels) = network().eval(), batch()
    other = copy.deepcopy(net)
    mix = ManifoldMixup(3, seed=14)
    twin = copy.deepcopy(mix)
    for x, y in zip(images.chunk(2), labels.chunk(2), strict=True):
        (mix.loss(net, *mix.mix(x, y)) / 2).backward()
        draw = twin.transform.draw((3, *SHAPES[3]))
        (mixed_cross_entropy(by_hand(other, x, 3, draw), draw.targets(y)) / 2).backward()
    torch.testing.assert_close(net.conv1.weight.grad, other.conv1.weight.grad)


# Wrong input.


@pytest.mark.parametrize("layers", [5, -1, (), (0, 7), ("layer1",)])
@every_method
def test_no_such_layer(make: Callable, layers: object) -> None:
    with pytest.raises(InputError, match=r"expected some of 0 \(the image\), 1 \(the stem\), 2, 3, 4 \(the stages\)"):
        make(layers)


def test_a_network_without_the_layer() -> None:
    net = timm.create_model("efficientnet_b0", num_classes=4)
    images, labels = torch.randn(2, 3, 32, 32), torch.arange(2)
    for _ in range(5):  # whichever layer is chosen
        with pytest.raises(InputError, match="EfficientNet has no module layer1, so layer 2 cannot be mixed; expected"):
            FeatureCutMix().forward(net, images, labels)
    FeatureCutMix((0, 1)).forward(net, images, labels)
    FeatureCutMix(0).forward(nn.Flatten(), images, labels)


def test_a_layer_that_the_forward_pass_leaves_out() -> None:
    net, (images, labels) = network(), batch()
    net.forward = lambda x: net.fc(net.layer3(net.layer2(net.layer1(net.stem(net.stem(x)[:, :3])))).mean((2, 3)))
    with pytest.raises(InputError, match="a forward pass of CifarResNet goes 2 times through bn1; expected once"):
        FeatureCutMix(1).forward(net, images, labels)
    net.forward = lambda x: x
    with pytest.raises(InputError, match="a forward pass of CifarResNet goes 0 times through layer2; expected once"):
        FeatureCutMix(3).forward(net, images, labels)
    assert hooks(net) == 0


def test_no_hook_is_left_after_an_error() -> None:
    net, (images, labels) = network(), batch()
    with pytest.raises(RuntimeError):
        FeatureCutMix(2).forward(net, images[:, :2], labels)
    with pytest.raises(ValueError, match="there are 3 labels for 6 images"):
        FeatureCutMix(2).forward(net, images, labels[:3])
    net.fc = None
    with pytest.raises(TypeError):
        ManifoldMixup(4).forward(net, images, labels)
    assert hooks(net) == 0
    stance = torch.compile(lambda x: torch.compiler.is_compiling(), backend="eager")
    assert stance(images)  # and what is compiled runs compiled again
