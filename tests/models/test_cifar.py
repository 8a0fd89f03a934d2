"""ResNet and PyramidNet for CIFAR: the paper's shapes, the authors' arithmetic, every layout and compiler."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutmix.models import CifarResNet, PyramidNet, create_model
from cutmix.models.cifar import PooledClassifier
from cutmix.models.create import find_head


@pytest.mark.parametrize(("name", "channels"), [("resnet20", 64), ("resnet110", 256)])
def test_stages_have_the_papers_shapes(name, channels):
    model = create_model(name, 10)
    assert isinstance(model, CifarResNet)
    x, expansion = model.stem(torch.rand(1, 3, 32, 32)), channels // 64
    assert x.shape == (1, 16, 32, 32)
    for stage, width, size in ((model.layer1, 16, 32), (model.layer2, 32, 16), (model.layer3, 64, 8)):
        x = stage(x)
        assert x.shape == (1, width * expansion, size, size)
    assert model.num_features == channels
    assert model.get_classifier().in_features == channels


@pytest.mark.parametrize("name", ["resnet20", "resnet110"])
def test_features_and_head_make_the_logits(name):
    model = create_model(name, 10).eval()
    images = torch.rand(2, 3, 20, 28)
    features = model.forward_features(images)
    assert features.shape == (2, model.num_features, 5, 7)
    assert torch.equal(model.forward_head(features), model(images))


@pytest.mark.parametrize("network", ["resnet56", "pyramidnet110"])
def test_initialization_is_the_authors(network):
    torch.manual_seed(0)
    for name, module in create_model(network, 10).named_modules():
        if isinstance(module, nn.Conv2d):
            std = (2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5
            assert module.bias is None
            # Six standard errors of a standard deviation, of a mean.
            assert module.weight.std().item() == pytest.approx(std, abs=6 * std / (2 * module.weight.numel()) ** 0.5)
            assert module.weight.mean().item() == pytest.approx(0, abs=6 * std / module.weight.numel() ** 0.5), name
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


@pytest.mark.parametrize("name", ["resnet20", "resnet110"])
def test_a_silent_residual_branch_is_the_identity(name):
    block = create_model(name, 10).layer2[1]
    block.residual = torch.zeros_like
    x = torch.rand(2, 32 * block.expansion, 8, 8)
    assert torch.equal(block(x), x)


def test_layouts_and_compilers_give_the_same_logits():
    model = create_model("resnet20", 10).eval()
    images = torch.rand(2, 3, 32, 32)
    expected = model(images)
    traced = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(traced(images), expected)
    last = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)


# PyramidNet


class ReferenceBlock(nn.Module):
    """The authors' bottleneck, shortcut by concatenation."""

    def __init__(self, channels, width, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, width, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn3, self.conv3 = nn.BatchNorm2d(width), nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn4 = nn.BatchNorm2d(4 * width)
        self.stride = stride

    def forward(self, x):
        out = self.conv2(self.bn2(self.conv1(self.bn1(x))).relu())
        out = self.bn4(self.conv3(self.bn3(out).relu()))
        shortcut = x if self.stride == 1 else F.avg_pool2d(x, 2, 2, ceil_mode=True)
        zeros = torch.zeros(len(out), out.shape[1] - shortcut.shape[1], *out.shape[2:])
        return out + torch.cat((shortcut, zeros), 1)


class Reference(nn.Module):
    """PyramidNet for CIFAR as Han et al. describe it: the width is a running sum that is rounded for each block."""

    def __init__(self, blocks, alpha, num_classes):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        channels, width = 16, 16.0
        for stage in (1, 2, 3):
            layers = []
            for index in range(blocks):
                width += alpha / (3 * blocks)
                layers.append(ReferenceBlock(channels, round(width), 2 if stage > 1 and index == 0 else 1))
                channels = 4 * round(width)
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.bn_final, self.fc = nn.BatchNorm2d(channels), nn.Linear(channels, num_classes)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)))))
        return self.fc(F.avg_pool2d(self.bn_final(x).relu(), 8).flatten(1))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_logits_and_gradients_are_the_references(memory_format):
    torch.manual_seed(0)
    reference, model = Reference(2, 30, 7), PyramidNet(2, 30, 7)
    model.load_state_dict(reference.state_dict(), strict=True)
    model = model.to(memory_format=memory_format)
    images = torch.rand(4, 3, 32, 32)
    expected, logits = reference(images), model(images.to(memory_format=memory_format))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    expected.square().sum().backward()
    logits.square().sum().backward()
    for (name, weight), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        scale = other.grad.abs().max().item()
        torch.testing.assert_close(weight.grad, other.grad, rtol=1e-3, atol=1e-4 * scale + 1e-6, msg=name)


@pytest.mark.parametrize(("name", "blocks", "alpha"), [("pyramidnet110", 12, 64), ("pyramidnet200", 22, 240)])
def test_the_authors_checkpoints_fit(name, blocks, alpha):
    with torch.device("meta"):
        shapes = [
            {key: tensor.shape for key, tensor in model.state_dict().items()}
            for model in (create_model(name, 100), Reference(blocks, alpha, 100))
        ]
    assert shapes[0] == shapes[1]


def test_stages_have_the_papers_shapes_pyramidnet():
    model = create_model("pyramidnet110", 10)
    x = model.stem(torch.rand(1, 3, 32, 32))
    assert (x < 0).any()  # no ReLU after the stem
    # 16 + 64 · k / 36 is 37.3, 58.7 and 80 at the stages' ends.
    for stage, width, size in ((model.layer1, 37, 32), (model.layer2, 59, 16), (model.layer3, 80, 8)):
        x = stage(x)
        assert x.shape == (1, 4 * width, size, size)
    assert model.num_features == model.get_classifier().in_features == 320


def test_features_and_head_make_the_logits_pyramidnet():
    model = PyramidNet(1, 12, 10).eval()
    images = torch.rand(2, 3, 21, 28)
    features = model.forward_features(images)
    assert features.shape == (2, model.num_features, 6, 7)
    assert (features >= 0).all()
    assert torch.equal(model.forward_head(features), model(images))


def test_bfloat16_autocast_stays_near_float32():
    torch.manual_seed(0)
    model = PyramidNet(2, 30, 10)
    images = torch.rand(4, 3, 32, 32)
    expected = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
        logits.float().logsumexp(1).sum().backward()
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, rtol=0.05, atol=0.05)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_it_compiles_into_one_graph(training, no_recompilation):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    model = PyramidNet(2, 30, 10).train(training)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    images = torch.rand(2, 3, 16, 16)
    gradients = []
    for network in (model, compiled):
        model.zero_grad()
        network(images).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert len(graphs) == 1
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


# Pooled classifiers


class Network(PooledClassifier):
    def __init__(self) -> None:
        super().__init__()
        self.num_features, self.conv = 4, nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 5)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


def test_logits_are_the_mean_of_the_linear_layer_over_positions():
    network, images = Network().eval(), torch.rand(2, 3, 9, 7)
    maps = torch.einsum("nchw,kc->nkhw", network.forward_features(images), network.get_classifier().weight)
    torch.testing.assert_close(network(images), maps.mean((2, 3)) + network.fc.bias)
    assert torch.equal(network(images), network.forward_head(network.forward_features(images)))


def test_its_class_activation_maps_are_found():
    network = Network()
    assert find_head(network, (3, 9, 7)).classifier is network.fc


def test_feature_maps_are_the_networks_own():
    with pytest.raises(NotImplementedError):
        PooledClassifier()(torch.rand(1, 3, 8, 8))
