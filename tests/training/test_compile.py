"""``--compile``: the same bits by another way, and no graph more than the sizes of the batches need."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cutmix.training.state
from cutmix.config.options import TrainOptions
from cutmix.config.recipe import Recipe
from cutmix.data import open_data
from cutmix.data.loaders import RawBatch, train_loader
from cutmix.data.transforms import Augment
from cutmix.runs.read import read_log
from cutmix.runtime.weights import read_weights
from cutmix.training.loop import run_training

RECIPE = Recipe(
    name="r", data="digits", mix="cutmix", epochs=2, batch_size=300, lr=0.01, precision="float32",
    ema_decay=0.9, crop_padding=1, train_per_class=64,
)  # fmt: skip


def create_small(name: str, num_classes: int, *, in_chans: int = 3, pretrained: Any = False) -> nn.Module:
    features = nn.Sequential(nn.Conv2d(in_chans, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
    return nn.Sequential(features, nn.Flatten(), nn.Linear(32, num_classes))


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the graphs that are made, and run them as they are."""
    found: Counter[str] = Counter()
    original = torch.compile

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        found["network" if any("conv" in str(node.target) for node in graph.graph.nodes) else "batch"] += 1
        return graph.forward

    monkeypatch.setattr(cutmix.training.state, "create_model", create_small)
    monkeypatch.setattr(torch, "compile", lambda model, **how: original(model, backend=count, **how))
    torch._dynamo.reset()
    return found


def train(out: Path, **changes: Any) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    run = run_training(replace(RECIPE, **changes), TrainOptions(out=out, device="cpu", workers=0))
    clock = ("seconds", "images_per_second")
    log = [{k: v for k, v in line.items() if k not in clock} for line in map(dict, read_log(run / "log.jsonl"))]
    return read_weights(run / "model.safetensors").tensors, log


@pytest.mark.parametrize(
    "mix",
    ["cutmix-scheduled", pytest.param("mixup", marks=pytest.mark.slow), pytest.param("none", marks=pytest.mark.slow)],
)
def test_a_compiled_run_has_the_bits_of_the_same_run_without(mix: str, graphs: Counter[str], tmp_path: Path) -> None:
    (plain, log), (ours, same) = train(tmp_path / "off", mix=mix), train(tmp_path / "step", mix=mix, compile="step")
    assert log == same
    assert all(torch.equal(ours[name], plain[name]) for name in plain)
    # steps have two sizes, batches of the evaluation too, and one graph is for any weights
    assert graphs == {"network": 2 + 2, "batch": 2}


def test_the_model_alone_is_compiled(graphs: Counter[str], tmp_path: Path) -> None:
    train(tmp_path / "model", compile="model", epochs=1, ema_decay=0.0)
    assert graphs == {"network": 2 + 2}


def test_a_raw_batch_is_what_the_loader_yields_otherwise() -> None:
    data = open_data("digits", "train")
    shared: dict[str, Any] = {"batch_size": 100, "seed": 0, "device": "cpu", "workers": 0, "channels_last": True}
    for augment in (Augment(crop_padding=1, flip=True), Augment()):
        loaders = (train_loader(data, augment, raw=raw, **shared) for raw in (True, False))
        for (raw, labels), (images, same) in zip(*(loader.epoch(1) for loader in loaders), strict=True):
            assert isinstance(raw, RawBatch)
            assert torch.equal(raw.finished(), images)
            assert torch.equal(labels, same)
    other = train_loader(data, Augment(crop_padding=1, random_erasing=0.5), raw=True, **shared)
    assert isinstance(next(other.epoch())[0], Tensor)  # erased rectangles are drawn as the batch is made
