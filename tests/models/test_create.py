import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from cutmix import create_model
from cutmix.errors import InputError


class Reference(nn.Module):
    """A CIFAR ResNet from torchvision's blocks, with the fixed 8×8 pooling of the authors' network."""

    def __init__(self, block, blocks, num_classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        channels = 16
        for stage, width in enumerate((16, 32, 64), start=1):
            layers = []
            for index in range(blocks):
                stride = 2 if stage > 1 and index == 0 else 1
                out, shortcut = width * block.expansion, None
                if stride > 1 or channels != out:
                    shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
                layers.append(block(channels, width, stride, shortcut))
                channels = out
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(nn.functional.avg_pool2d(x, 8).flatten(1))


def randomized(model):
    """No two channels alike, so that an equal output means an equal computation."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.25 * ("bias" not in name))
    return model.eval()


def same_function(first, second, size=32):
    first.load_state_dict(second.state_dict(), strict=True)
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(first.eval()(images), second.eval()(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        # kuangliu/pytorch-cifar's ResNet18 and ResNet50, of the same layers, count 11,173,962 and 23,520,842 for
        # 10 classes; 90 classes more are 90 · (512 + 1) and 90 · (2,048 + 1).
        ("resnet18_cifar", 10, 11_173_962),
        ("resnet18_cifar", 100, 11_220_132),
        ("resnet50_cifar", 10, 23_520_842),
        ("resnet50_cifar", 100, 23_705_252),
        # The authors' resnet.py with depth=110, bottleneck=True.
        ("resnet110", 100, 1_170_868),
        # The authors' pyramidnet.py with bottleneck=True.
        ("pyramidnet110", 100, 1_725_300),
        ("pyramidnet200", 100, 26_844_952),
        ("pyramidnet200", 10, 26_752_702),
        # torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["num_params"] and so on.
        ("resnet50", 1000, 25_557_032),
        ("resnet101", 1000, 44_549_160),
        ("resnet152", 1000, 60_192_808),
        ("resnext101_32x4d", 1000, 44_177_704),  # timm's table of results: 44.18
    ],
)
def test_published_parameter_counts(name, classes, parameters):
    assert count(name, classes) == parameters


@pytest.mark.parametrize(
    ("name", "plain", "blocks", "millions"),
    [
        ("seresnet50", "resnet50", (3, 4, 6, 3), 28.1),
        ("seresnet101", "resnet101", (3, 4, 23, 3), 49.4),
        ("geresnet50", "resnet50", (3, 4, 6, 3), 33.7),
        ("geresnet101", "resnet101", (3, 4, 23, 3), 58.4),
    ],
)
def test_parameter_counts_of_squeeze_and_gather_excite(name, plain, blocks, millions):
    added = 0
    for n, channels, size in zip(blocks, (256, 512, 1024, 2048), (56, 28, 14, 7), strict=True):
        excite = 2 * channels * channels // 16 + channels // 16 + channels
        gather = channels * size**2 + 2 * channels
        added += n * (excite + (gather if name.startswith("ge") else 0))
    assert count(name, 1000) == count(plain, 1000) + added
    assert count(name, 1000) / 1e6 == pytest.approx(millions, abs=0.1)  # as the CutMix paper's table 3 prints them


def count(name, classes):
    with torch.device("meta"):
        return sum(p.numel() for p in create_model(name, classes).parameters())


def test_gather_excite_weighs_channels_and_wants_its_size():
    model = create_model("geresnet50", 5).eval()
    attention = model.layer4[0].se
    x = torch.rand(2, 2048, 7, 7)
    gathered = (x * attention.gather.weight[:, 0]).sum((2, 3), keepdim=True) / (1 + attention.bn.eps) ** 0.5
    weights = torch.sigmoid(attention.fc2(torch.relu(attention.fc1(gathered))))
    torch.testing.assert_close(attention(x), x * weights)
    with pytest.raises(InputError, match=r"is 16×16 where Gather-Excite expects 56×56; .* images of 224×224"):
        model(torch.rand(1, 3, 64, 64))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("pyramidnet200", 32), ("resnet101", 64), ("resnet152", 64), ("resnext101_32x4d", 64), ("seresnet50", 64),
        ("seresnet101", 64), ("geresnet50", 224), ("geresnet101", 224),
    ],
)  # fmt: skip
def test_large_networks_run(name, size):
    with torch.no_grad():
        assert create_model(name, 7)(torch.rand(2, 3, size, size)).shape == (2, 7)


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_parameter_counts_of_he_et_al(depth, millions):
    # He et al. 2016, table 6, has parameter-free shortcuts; ours have 1×1 convolutions with BN: 2,752 more.
    parameters = sum(p.numel() for p in create_model(f"resnet{depth}", 10).parameters())
    assert (parameters - (16 * 32 + 2 * 32 + 32 * 64 + 2 * 64)) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(
    ("name", "block", "blocks"),
    [("resnet20", BasicBlock, 3), ("resnet56", BasicBlock, 9), ("resnet110", Bottleneck, 12)],
)
def test_cifar_resnets_compute_what_torchvisions_blocks_do(name, block, blocks):
    same_function(create_model(name, 7), randomized(Reference(block, blocks, 7)))


@pytest.mark.parametrize("depth", [18, 50])
def test_cifar_stem_computes_what_torchvisions_network_with_that_stem_does(depth):
    reference = torchvision.models.get_model(f"resnet{depth}", num_classes=7)
    reference.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    reference.maxpool = nn.Identity()
    same_function(create_model(f"resnet{depth}_cifar", 7), randomized(reference))


def test_the_new_stem_is_initialized_as_the_rest():
    std = create_model("resnet18_cifar", 10).conv1.weight.std().item()
    assert std == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.1)


def test_timm_names_are_timms():
    same_function(create_model("resnet10t", 7), randomized(timm.create_model("resnet10t", num_classes=7)), 64)
    assert create_model("resnet10t.c3_in1k", 7, in_chans=1)(torch.rand(2, 1, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("name", ["resnet20", "resnet110", "pyramidnet110", "resnet18_cifar"])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (1, 28, 28), (3, 33, 17), (3, 64, 64)])
def test_any_size_and_channels_train(name, channels, height, width):
    model = create_model(name, 5, in_chans=channels)
    logits = model(torch.rand(2, channels, height, width))
    assert logits.shape == (2, 5)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("classes", "channels", "message"), [(0, 3, "num_classes is 0"), (5, 0, "in_chans is 0")])
def test_counts_below_one_are_refused(classes, channels, message):
    with pytest.raises(InputError, match=f"{message}; expected at least 1"):
        create_model("resnet20", classes, in_chans=channels)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet_20", r"there is no model 'resnet_20'; did you mean .*'resnet20'"),
        ("ResNet18", r"did you mean .*resnet18"),
        ("resnet18_cfar", r"did you mean .*resnet18_cifar"),
        ("zzzzzz", r"expected resnet20, .* or a model of timm"),
        ("", r"expected resnet20"),
        ("zzzzzz_cifar", r"expected resnet20"),
        ("resnet50d_cifar", r"plain 7×7 stem"),
        ("vit_tiny_patch16_224_cifar", r"plain 7×7 stem"),
        ("pyramidnet272", r"did you mean .*pyramidnet200"),
        ("resnet10t.nothing", r"'resnet10t' has no weights 'nothing'; known are c3_in1k"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(InputError, match=message):
        create_model(name, 5)


@pytest.mark.parametrize("name", ["resnet20", "pyramidnet110", "resnet18_cifar", "geresnet50", "seresnet18"])
def test_weights_that_nobody_published(name):
    with pytest.raises(InputError, match=f"no pretrained weights are published for '{name}'"):
        create_model(name, 10, pretrained=True)


def test_weights_that_cannot_be_downloaded(monkeypatch, tmp_path):
    asked = []

    class Session:
        def head(self, url, timeout):
            asked.append((url, timeout))
            raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.utils.get_session", Session)
    said = r"weights of 'resnet10t' could not be downloaded \(no route to host\); copy {} from .* \(--weights FILE,"
    with pytest.raises(InputError, match=said.format(tmp_path / "models--timm--resnet10t.c3_in1k")):
        create_model("resnet10t", 10, pretrained=True)
    assert asked == [("https://huggingface.co/timm/resnet10t.c3_in1k/resolve/main/model.safetensors", 5)]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        create_model("resnet10t", 10, pretrained=True)
    assert len(asked) == 1


@pytest.mark.parametrize("classes", [7, 10])
@pytest.mark.parametrize("name", ["resnet20", "resnet10t", "convnext_atto", "test_vit", "efficientvit_m0"])
def test_pretrained_from_a_file(tmp_path, name, classes):
    source = create_model(name, 7)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    torch.manual_seed(0)
    fresh = create_model(name, classes).state_dict()
    torch.manual_seed(0)
    model = create_model(name, classes, pretrained=tmp_path / "weights.pth").state_dict()
    new = {key for key in fresh if not torch.equal(model[key], source.state_dict().get(key))}
    assert bool(new) == (classes != 7)
    assert all(torch.equal(model[key], fresh[key]) or not model[key].any() for key in new)
    assert all(key.startswith(("fc.", "head.")) for key in new)


def test_the_authors_checkpoint_loads(tmp_path):
    # What their train.py saves: DataParallel, a NumPy number or a float as the best error, the optimizer; PyTorch 1.0.
    reference = randomized(Reference(Bottleneck, 12, 100))
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.25, momentum=0.9, nesterov=True)
    checkpoint = {
        "epoch": 299,
        "arch": "resnet",
        "state_dict": nn.DataParallel(reference).state_dict(),
        "best_err1": np.float64(19.72),
        "best_err5": 4.97,
        "optimizer": optimizer.state_dict(),
    }
    torch.save(checkpoint, tmp_path / "model_best.pth.tar", _use_new_zipfile_serialization=False)
    model = create_model("resnet110", 100, pretrained=str(tmp_path / "model_best.pth.tar"))
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in reference.state_dict().items())


def test_wrong_files_are_refused(tmp_path):
    safetensors.torch.save_file(create_model("resnet20", 5, in_chans=1).state_dict(), tmp_path / "grey.safetensors")
    with pytest.raises(InputError, match=r"1 tensor is of another shape \('conv1.weight' is 16×1×3×3"):
        create_model("resnet20", 5, pretrained=tmp_path / "grey.safetensors")
    with pytest.raises(InputError, match=r"missing\.pth cannot be read: No such file"):
        create_model("resnet20", 5, pretrained=str(tmp_path / "missing.pth"))


def test_timm_is_imported_only_when_a_name_is_its():
    code = "import sys, cutmix; cutmix.create_model('resnet20', 10); sys.exit('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- heads ----

FAMILIES = (
    "resnet18", "resnet50_wsol", "tf_efficientnet_lite0", "efficientnet_b0", "mobilenetv2_050", "mobilenetv3_small_050",
    "mobilenetv4_conv_small_050", "mixnet_s", "rexnet_100", "mnasnet_050", "fbnetc_100", "tinynet_e", "lcnet_050",
    "dla34", "regnetx_002", "convnext_atto", "densenet121", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224",
    "levit_128s", "crossvit_9_240", "mixer_s32_224",
)  # fmt: skip


def first_loss(model, size):
    """The cross entropy of twenty random images of five classes, in training mode."""
    images = torch.randn(20, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model.train()(images)
    logits = logits[0] if isinstance(logits, tuple) else logits  # distilled: class token and distillation token
    return float(nn.functional.cross_entropy(logits, torch.arange(20) % 5))


def input_size(name):
    fixed = ("vit", "deit", "levit", "mixer", "crossvit")
    return (240 if name.startswith("crossvit") else 224) if name.startswith(fixed) else 64


@pytest.mark.parametrize("name", [*FAMILIES, "resnet20", "resnet18_cifar", "vgg16_gap"])
def test_the_first_loss_of_a_random_model_is_near_chance(name):
    torch.manual_seed(0)
    assert first_loss(create_model(name, 5), 32 if name == "vgg16_gap" else input_size(name)) == pytest.approx(
        np.log(5), abs=0.3
    )


@pytest.mark.parametrize(
    ("name", "way"), [*((name, "file") for name in FAMILIES), *((name, "download") for name in FAMILIES[::4])]
)
def test_the_first_loss_of_a_replaced_head_is_chance(name, way, tmp_path, monkeypatch):
    with torch.device("meta"):
        shapes = create_model(name, 1000 if way == "download" else 7)
    generator = torch.Generator().manual_seed(0)
    weights = {
        key: torch.randn(x.shape, generator=generator) if x.is_floating_point() else torch.zeros_like(x, device="cpu")
        for key, x in shapes.state_dict().items()
    }  # features of any scale: the head alone decides
    weights = {key: x.abs() if key.endswith("running_var") else x for key, x in weights.items()}
    torch.save(weights, tmp_path / "w.pth")
    original = timm.create_model
    if way == "download":
        local = {"pretrained_cfg_overlay": {"file": str(tmp_path / "w.pth")}}
        monkeypatch.setattr(timm, "create_model", lambda *a, **k: original(*a, **k, **local))
        monkeypatch.setattr(timm, "list_pretrained", lambda _: [f"{name}.some"])
        monkeypatch.setattr("cutmix.models.create._find_on_hub", lambda _: None)
    model = create_model(name, 5, pretrained=True if way == "download" else tmp_path / "w.pth")
    first = next(iter(weights))
    assert torch.equal(model.state_dict()[first], weights[first])
    assert first_loss(model, input_size(name)) == pytest.approx(np.log(5), abs=1e-5)


def test_a_head_that_fits_is_kept(tmp_path):
    torch.save(create_model("mobilenetv3_small_050", 5).state_dict(), tmp_path / "w.pth")
    weights = torch.load(tmp_path / "w.pth", weights_only=True)["classifier.weight"]
    assert torch.equal(
        create_model("mobilenetv3_small_050", 5, pretrained=tmp_path / "w.pth").classifier.weight, weights
    )
