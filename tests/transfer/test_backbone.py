"""Weights of a run, of a file and none: the same features, the right normalization, and what does not fit."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from cutmix.config.tasks import Detection
from cutmix.errors import InputError
from cutmix.models import create_model
from cutmix.runtime.weights import save_weights
from cutmix.transfer.backbone import load_backbone

SMALL = "test_resnet"  # timm's ResNet of half a million parameters


def write(path: Path, network: nn.Module, **about: object) -> Path:
    save_weights(path, network.state_dict(), {k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()})
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run: a CIFAR network of 7 classes, with a normalization of its own."""
    network = create_model("resnet20", 7)
    write(
        tmp_path / "model.safetensors", network, model="resnet20", num_classes=7, in_chans=3, mean=[0.1, 0.2, 0.3],
        std=[0.4, 0.5, 0.6],
    )  # fmt: skip
    return tmp_path


@pytest.mark.parametrize("source", ["", "model.safetensors"])
def test_a_run_brings_its_network_and_its_normalization(run: Path, source: str) -> None:
    found = load_backbone(Detection(backbone=str(run / source), model="resnet50"))
    assert (found.model, found.mean, found.std) == ("resnet20", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert found.title == f"resnet20 with the weights of {run / 'model.safetensors'}"
    other = create_model("resnet20", 7, pretrained=run / "model.safetensors").eval()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(found.network.eval()(images), other(images))


def test_weights_that_need_shake_drop_are_refused(run: Path) -> None:
    network = create_model("resnet20", 7)
    path = write(run / "shaken.safetensors", network, model="resnet20", num_classes=7, recipe={"shake_drop": 0.5})
    with pytest.raises(InputError, match="was trained with --shake-drop"):
        load_backbone(Detection(backbone=str(path), model="resnet20"))


def test_a_foreign_file_is_for_the_named_network(tmp_path: Path) -> None:
    network = timm.create_model(SMALL, num_classes=11).eval()  # another head than ImageNet's is left out
    torch.save(network.state_dict(), tmp_path / "w.pth")
    found = load_backbone(Detection(backbone=str(tmp_path / "w.pth"), model=SMALL))
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(found.network.eval().forward_features(images), network.forward_features(images))  # type: ignore[operator]
    configuration = timm.get_pretrained_cfg(SMALL)
    assert (found.mean, found.std) == (configuration.mean, configuration.std)


def test_no_weights_are_random_ones_that_do_something_in_every_block() -> None:
    found = load_backbone(Detection(backbone="none", model=SMALL))
    scales = [module.weight for module in found.network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(bool(scale.all()) for scale in scales)
    zeroed = [m.weight for m in timm.create_model(SMALL).modules() if isinstance(m, nn.BatchNorm2d)]
    assert not all(bool(scale.all()) for scale in zeroed)  # which is timm's own start
    assert found.title == f"{SMALL} with random weights"
    assert found.mean == (0.485, 0.456, 0.406)


def test_a_file_of_another_network_is_refused_by_its_name(tmp_path: Path) -> None:
    path = write(tmp_path / "other.safetensors", create_model("resnet32", 10))
    with pytest.raises(InputError, match=r"other\.safetensors is a checkpoint of another model"):
        load_backbone(Detection(backbone=str(path), model="resnet20"))


def test_grey_images_are_refused(tmp_path: Path) -> None:
    network = create_model("resnet20", 10, in_chans=1)
    path = write(tmp_path / "grey.safetensors", network, model="resnet20", num_classes=10, in_chans=1)
    with pytest.raises(InputError, match=r"grey\.safetensors is for images of 1 channels; expected 3, for RGB"):
        load_backbone(Detection(backbone=str(path)))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"nowhere does not exist; expected none, pretrained, the folder of a finished"
    ):
        load_backbone(Detection(backbone=str(tmp_path / "nowhere")))
    with pytest.raises(InputError, match=r"model\.safetensors does not exist"):  # a run that is not finished
        load_backbone(Detection(backbone=str(tmp_path)))
    (tmp_path / "broken.pth").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match=r"broken\.pth is damaged"):
        load_backbone(Detection(backbone=str(tmp_path / "broken.pth"), model=SMALL))


def test_weights_that_cannot_be_downloaded_name_the_flags_of_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(
        InputError,
        match=r"of a backbone --backbone FILE\), or start from random weights \(--no-pretrained, --backbone none\)",
    ):
        load_backbone(Detection(data="voc", backbone="pretrained", model="resnet18"))
