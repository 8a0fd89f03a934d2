import pytest
import torch
from torch import nn

from cutmix.models import CifarResNet, create_model


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


def test_initialisation_is_the_authors():
    torch.manual_seed(0)
    for name, module in create_model("resnet56", 10).named_modules():
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
