import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cutmix.models import PyramidNet, create_model


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


def test_stages_have_the_papers_shapes():
    model = create_model("pyramidnet110", 10)
    x = model.stem(torch.rand(1, 3, 32, 32))
    assert (x < 0).any()  # no ReLU after the stem
    # 16 + 64 · k / 36 is 37.3, 58.7 and 80 at the stages' ends.
    for stage, width, size in ((model.layer1, 37, 32), (model.layer2, 59, 16), (model.layer3, 80, 8)):
        x = stage(x)
        assert x.shape == (1, 4 * width, size, size)
    assert model.num_features == model.get_classifier().in_features == 320


def test_features_and_head_make_the_logits():
    model = PyramidNet(1, 12, 10).eval()
    images = torch.rand(2, 3, 21, 28)
    features = model.forward_features(images)
    assert features.shape == (2, model.num_features, 6, 7)
    assert (features >= 0).all()
    assert torch.equal(model.forward_head(features), model(images))


def test_initialisation_is_the_authors():
    torch.manual_seed(0)
    for name, module in create_model("pyramidnet110", 10).named_modules():
        if isinstance(module, nn.Conv2d):
            std = (2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5
            assert module.weight.std().item() == pytest.approx(std, abs=6 * std / (2 * module.weight.numel()) ** 0.5)
            assert module.weight.mean().item() == pytest.approx(0, abs=6 * std / module.weight.numel() ** 0.5), name
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


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
