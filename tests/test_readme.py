"""Every Python block of the README runs as it stands, given the names that a reader would have."""

import re
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import cutmix

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
LIBRARIES = ("lightning", "accelerate", "timm")


def library(block):
    return next((name for name in LIBRARIES if re.search(rf"^(import|from) {name}\b", block, re.MULTILINE)), "torch")


@pytest.fixture
def names():
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(16, 3, 32, 32, generator=generator), torch.randint(0, 10, (16,), generator=generator)
    dataset = TensorDataset(images, labels)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    return {
        "dataset": dataset,
        "loader": DataLoader(dataset, batch_size=8),
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "images": images,
        "labels": labels,
        "vit": cutmix.create_model("deit_tiny_patch8_32", 10),
        "masks": torch.randint(0, 5, (16, 32, 32), generator=generator),
    }


def test_the_readme_shows_every_loop_it_promises():
    assert {library(block) for block in BLOCKS} == {"torch", *LIBRARIES}
    assert any("collate_fn" in block for block in BLOCKS)


@pytest.mark.parametrize("block", BLOCKS, ids=[f"{number}-{library(block)}" for number, block in enumerate(BLOCKS)])
def test_block_runs(block, names, tmp_path, monkeypatch):
    if find_spec(library(block)) is None:
        pytest.skip(f"{library(block)} is not installed")
    monkeypatch.chdir(tmp_path)
    before = [p.clone() for p in names["model"].parameters()]
    model = names["model"]
    with warnings.catch_warnings():
        if library(block) in ("lightning", "accelerate"):
            warnings.simplefilter("ignore")  # theirs, about their own surroundings
        exec(compile(block, "README.md", "exec"), names)
    if "loss" in names:
        assert torch.isfinite(names["loss"])
    if "step()" in block or "fit(" in block:
        assert any(not torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_every_picture_and_page_that_is_linked_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    missing = [link for link in links if "://" not in link and not (Path(__file__).parent.parent / link).exists()]
    assert not missing
