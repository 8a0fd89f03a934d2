"""Learning rate, optimizer and moving average against PyTorch's own and a hand-written loop."""

import copy
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR, SequentialLR

from cutmix.config.options import TrainOptions
from cutmix.config.recipes import RECIPES, SMALL
from cutmix.errors import InputError
from cutmix.models import create_model
from cutmix.training.loop import run_training
from cutmix.training.state import (
    WeightAverage,
    find_classifier,
    freeze_backbone,
    learning_rate,
    make_average,
    make_optimizer,
    set_learning_rate,
)

EPOCHS, STEPS = 12, 5
small = partial(replace, SMALL)


def by_torch(make: object, warmup: int = 0) -> list[float]:
    """Return a scheduler's learning rate of each step, after a linear warm-up."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    main: LRScheduler = make(optimizer)  # type: ignore[operator]
    if warmup:
        rising = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
        main = SequentialLR(optimizer, [rising, main], [warmup])
    rates = []
    for _ in range(EPOCHS * STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        main.step()
    return rates


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # SequentialLR's own call
@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
def test_learning_rate_is_that_of_torchs_schedulers(schedule: str, warmup: int) -> None:
    recipe = small(
        schedule=schedule,  # type: ignore[arg-type]
        lr=0.4, epochs=EPOCHS, warmup_epochs=warmup, milestones=(0.5, 0.75), gamma=0.2,
    )  # fmt: skip
    steps = warmup * STEPS
    torchs = {
        "step": lambda o: MultiStepLR(o, [6 * STEPS - steps, 9 * STEPS - steps], gamma=0.2),
        "cosine": lambda o: CosineAnnealingLR(o, EPOCHS * STEPS - steps),
        "constant": lambda o: ConstantLR(o, factor=1, total_iters=0),
    }
    ours = [learning_rate(recipe, step, STEPS) for step in range(EPOCHS * STEPS)]
    assert ours == pytest.approx(by_torch(torchs[schedule], steps), rel=1e-9, abs=1e-12)


def test_the_papers_schedule_falls_at_epochs_150_and_225() -> None:
    recipe = RECIPES["cifar100-resnet110"]
    rates = {epoch: learning_rate(recipe, epoch * 782, 782) for epoch in (0, 149, 150, 224, 225, 299)}
    assert rates == pytest.approx({0: 0.25, 149: 0.25, 150: 0.025, 224: 0.025, 225: 0.0025, 299: 0.0025})
    assert learning_rate(recipe, 150 * 782 - 1, 782) == 0.25


@pytest.mark.parametrize("epochs", range(1, 101))
def test_a_milestone_is_the_first_epoch_that_begins_after_it(epochs: int) -> None:
    for epoch in range(epochs):  # epoch / epochs times epochs is a little more or less than epoch in floating point
        recipe = small(schedule="step", milestones=(epoch / epochs,), gamma=0.1, epochs=epochs, lr=1)
        assert learning_rate(recipe, epoch * 3, 3) == pytest.approx(0.1)
        if epoch:
            assert learning_rate(recipe, epoch * 3 - 1, 3) == 1


def test_learning_rate_is_set_in_every_group() -> None:
    optimizer = make_optimizer(small(decay_all=False), nn.Linear(2, 2))
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


def test_optimizers_are_torchs_with_the_recipes_numbers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[0].weight.requires_grad_(False)
    sgd = make_optimizer(small(momentum=0.8, nesterov=True, weight_decay=0.1), model)
    assert isinstance(sgd, torch.optim.SGD)
    (group,) = sgd.param_groups
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.8, True, 0.1)
    assert len(group["params"]) == 3  # without the one that is not trained
    adamw = make_optimizer(small(optimizer="adamw", weight_decay=0.1, decay_all=False), nn.Linear(2, 2))
    assert isinstance(adamw, torch.optim.AdamW)
    assert [(g["weight_decay"], [p.ndim for p in g["params"]]) for g in adamw.param_groups] == [(0.1, [2]), (0.0, [1])]


@pytest.mark.parametrize("decay", [0.15, 0.9999])
def test_the_average_is_that_of_a_hand_written_loop(decay: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    average = make_average(small(ema_decay=decay), model)
    assert average
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for t in range(5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(8, 3))  # moves the running statistics
        d = min(decay, (1 + t) / (10 + t))
        for name, value in model.state_dict().items():
            expected[name] = d * expected[name] + (1 - d) * value if value.is_floating_point() else value.clone()
        average.update(model)
    average.copy_counters(model)
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_an_update_of_the_average_is_one_operation() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    average = WeightAverage(model, 0.9)
    with torch.profiler.profile() as profile:
        average.update(model)
    calls = {event.key: event.count for event in profile.key_averages() if event.key.startswith("aten::")}
    assert calls.pop("aten::_foreach_lerp_") == 1
    assert not {name for name in calls if name in ("aten::copy_", "aten::item", "aten::_local_scalar_dense")}


@pytest.mark.parametrize("decay", [0.99, 0.9999])
def test_the_average_of_a_short_run_is_no_worse_than_the_model(decay: float, tmp_path: Path) -> None:
    recipe = replace(RECIPES["digits-resnet20"], epochs=6, eval_every=6, ema_decay=decay, precision="float32")
    run = run_training(recipe, TrainOptions(out=tmp_path / "run", device="cpu", workers=0))
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert last["top1_err"] <= last["model_top1_err"] + 1 < 30  # the plain average at 0.9999 is above 80 %


def test_no_decay_keeps_no_average() -> None:
    assert make_average(small(ema_decay=0.0), nn.Linear(1, 1)) is None


def test_layer_decay_is_that_of_timm() -> None:
    model = timm.create_model("test_vit", num_classes=3)
    optimizer = make_optimizer(small(optimizer="adamw", decay_all=False, lr=1e-3), model, layer_decay=0.5)
    set_learning_rate(optimizer, 1e-3)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    expected = param_groups_layer_decay(model, layer_decay=0.5)
    assert {id(p): 1e-3 * g["lr_scale"] for g in expected for p in g["params"]} == pytest.approx(rates)
    assert rates[id(model.head.weight)] == 1e-3
    assert rates[id(model.blocks[0].mlp.fc1.weight)] < rates[id(model.blocks[-1].mlp.fc1.weight)] < 1e-3
    with pytest.raises(InputError, match="--layer-decay needs; expected a model of timm"):
        make_optimizer(SMALL, create_model(SMALL.model, 3), layer_decay=0.5)


def test_a_frozen_backbone_keeps_its_weights_and_its_statistics() -> None:
    model = create_model("resnet20", 3).train()
    fixed = model.get_parameter("conv1.weight").requires_grad_(False)
    optimizer, before = make_optimizer(small(lr=0.1), model), copy.deepcopy(model.state_dict())
    freeze_backbone(model, optimizer, frozen=True)
    model(torch.randn(4, 3, 16, 16)).sum().backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    head = find_classifier(model)
    assert changed == {name for name, p in model.named_parameters() if any(p is q for q in head.parameters())}
    freeze_backbone(model.train(), optimizer, frozen=False)
    assert [p for p in model.parameters() if not p.requires_grad] == [fixed]
    assert model.training
