"""Heads against the identity that makes a map a class activation map; wide maps by their sizes and their weights."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from cutmix.errors import InputError
from cutmix.models import create_model
from cutmix.models.create import VggGap, find_head, widen_last_stage


@pytest.mark.parametrize("name", ["resnet20", "resnet10t"])
def test_heads_that_are_found(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, 7).train()
    features, classifier = find_head(model, (3, 64, 64))
    assert model.training
    model.eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        maps = features(images)
        activation = torch.einsum("nchw,kc->nkhw", maps, classifier.weight)
        torch.testing.assert_close(activation.mean((2, 3)) + classifier.bias, model(images), rtol=1e-4, atol=1e-4)


def test_the_small_pyramidnet_and_one_channel() -> None:
    from cutmix.models import PyramidNet

    assert find_head(PyramidNet(1, 8, 5, in_chans=1), (1, 17, 23)).classifier.out_features == 5
    assert find_head(create_model("resnet20", 10, in_chans=1), (1, 32, 32)).classifier.in_features == 64


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inception_v3", "densenet121", "efficientnet_b0", "seresnet50", "regnety_002"])
def test_large_heads_that_are_found(name: str) -> None:
    features, _ = find_head(create_model(name, 7), (3, 224, 224))
    assert features(torch.randn(1, 3, 224, 224)).shape[2] == {"inception_v3": 5}.get(name, 7)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {"depth": 1, "img_size": 64, "embed_dim": 24, "num_heads": 2}),  # a class token
        ("mobilenetv3_small_050", {}),  # a convolution behind the pooling
        ("convnext_atto", {}),  # a normalization behind the pooling
        ("resnet10t", {"global_pool": "max"}),
    ],
)
def test_heads_that_are_none(name: str, options: dict[str, object]) -> None:
    model = timm.create_model(name, num_classes=5, **options)
    with pytest.raises(InputError, match="has no class activation map, which needs global average pooling"):
        find_head(model, (3, 64, 64))


def test_a_map_of_one_position_is_refused() -> None:
    """Five halvings leave 1×1 of 32×32 pixels, where the map of every image would be empty, and 2×2 of 64×64."""
    model = timm.create_model("resnet10t", num_classes=5)
    with pytest.raises(InputError, match=r"no class activation map on images of \(3, 32, 32\): its features are 1×1"):
        find_head(model, (3, 32, 32))
    assert find_head(model, (3, 64, 64)).features(torch.zeros(1, 3, 64, 64)).shape[2:] == (2, 2)


def test_networks_without_these_parts_are_refused() -> None:
    from timm.models.vgg import VGG

    with pytest.raises(InputError, match=r"its logits are not|its features are"):
        find_head(VGG([8, "M"], num_classes=5, mlp_ratio=0.01), (3, 16, 16))
    with pytest.raises(InputError, match=r"found no forward_features\(\)"):
        find_head(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), (3, 32, 32))
    with pytest.raises(InputError, match="found Identity"):
        find_head(timm.create_model("resnet10t", num_classes=0), (3, 64, 64))
    broken = create_model("resnet20", 5)
    nn.init.constant_(broken.fc.weight, float("nan"))
    with pytest.raises(InputError, match="gives logits that are NaN or infinite, so nothing can be evaluated"):
        find_head(broken, (3, 32, 32))
    with pytest.raises(InputError, match="cannot be tried on images"):
        find_head(create_model("resnet20", 5), (1, 32, 32))


def test_the_wide_resnet_keeps_its_names_and_has_maps_twice_as_wide() -> None:
    torch.manual_seed(0)
    plain = timm.create_model("resnet26", num_classes=5).eval()
    wide = widen_last_stage(timm.create_model("resnet26", num_classes=5)).eval()
    wide.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert wide.forward_features(images).shape == (1, 2048, 4, 4)
        assert plain.forward_features(images).shape == (1, 2048, 2, 2)
        before = [m.dilation for m in plain.modules() if isinstance(m, nn.Conv2d)]
        assert [m.dilation for m in wide.modules() if isinstance(m, nn.Conv2d)] == before
        # a stage that does not stride sees what the plain one sees, where positions 2i meet
        x = wide.layer3(wide.layer2(wide.layer1(wide.maxpool(wide.act1(wide.bn1(wide.conv1(images)))))))
        torch.testing.assert_close(wide.layer4[0](x)[..., ::2, ::2], plain.layer4[0](x))
    assert find_head(wide, (3, 32, 32)).classifier is wide.fc
    with pytest.raises(InputError, match="no stage layer4"):
        widen_last_stage(wide)
    with pytest.raises(InputError, match="no stage layer4"):
        widen_last_stage(create_model("resnet20", 5))


def test_vgg_gap_is_torchvisions_vgg_up_to_its_last_pooling() -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        hidden = torchvision.models.vgg16()
    vgg = hidden.features.to_empty(device="cpu")
    for parameter in vgg.parameters():
        nn.init.normal_(parameter, std=0.05)
    model = VggGap(6).eval()
    model.load_backbone(
        {f"features.{key}": w for key, w in vgg.state_dict().items()} | {"classifier.0.bias": vgg[0].bias}
    )
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.features(images), vgg[:-1](images))
    features, classifier = find_head(model, (3, 32, 32))
    assert features(torch.randn(1, 3, 96, 64)).shape == (1, 1024, 6, 4)
    assert classifier is model.fc
    # thirteen convolutions, conv6 with its bias, fc
    convolutions = sum(w.numel() for w in vgg.parameters())
    assert sum(w.numel() for w in model.parameters()) == convolutions + 512 * 1024 * 9 + 1024 + 1024 * 6 + 6
    with pytest.raises(InputError, match="not those of a VGG-16: expected 26 tensors"):
        model.load_backbone({"features.0.weight": torch.zeros(64, 3, 3, 3)})
