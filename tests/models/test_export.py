"""Every network of this package leaves it: torch.export with a dynamic batch, ONNX, and tracing give its logits."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from cutmix.models import CifarResNet, PyramidNet, create_model
from cutmix.models.cifar import BasicBlock, Bottleneck
from cutmix.models.regularizers import regularize
from cutmix.models.transformers import PyramidVisionTransformer

# A small member of each family, and the side of its images.
FAMILIES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet20": (lambda: CifarResNet(BasicBlock, 1, 5), 21),
    "resnet110": (lambda: CifarResNet(Bottleneck, 1, 5), 32),
    "pyramidnet": (lambda: PyramidNet(1, 12, 5), 21),
    "pyramidnet, ShakeDrop": (lambda: regularize(PyramidNet(1, 12, 5), shake_drop=0.5), 32),
    "resnet18_cifar": (lambda: create_model("resnet18_cifar", 5), 32),
    "vgg16_gap": (lambda: create_model("vgg16_gap", 5), 32),
    "pvt": (lambda: PyramidVisionTransformer((1, 1, 1, 1), 5, img_size=32, patch_size=1), 32),
    "pvt, other images": (lambda: PyramidVisionTransformer((1, 1, 1, 1), 5, img_size=32, patch_size=1), 64),
}  # fmt: skip
WHOLE = {"geresnet50": 224, "resnet50_wsol": 64, "deit_tiny_patch4_32": 32, "cait_xxs24_patch4_32": 32,
         "pyramidnet110": 32, "pvt_tiny": 224}  # fmt: skip


def check(network: nn.Module, side: int, path: Path) -> None:
    network.eval()
    two, five = (torch.rand(count, 3, side, side) for count in (2, 5))
    with torch.no_grad():
        expected = network(five)
    exported = torch.export.export(network, (two,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with torch.no_grad():
        assert torch.equal(exported.module()(five), expected)
    onnxruntime = pytest.importorskip("onnxruntime")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(exported, (two,), str(path), verbose=False)
        traced = torch.jit.trace(network, two)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: five.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(traced(five), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_exported(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, side = FAMILIES[family]
    check(make(), side, tmp_path / "network.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_whole_networks_are_exported(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    check(create_model(name, 5), WHOLE[name], tmp_path / "network.onnx")
