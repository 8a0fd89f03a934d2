"""The optimizer, the learning rate of a step, and the moving average of the weights."""

import copy
import math
from typing import Any

import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from cutmix.config.recipe import Training
from cutmix.errors import InputError

FUSED = ("cuda",)
"""Types of devices on which one launch updates all parameters."""


def make_optimizer(
    recipe: Training, model: nn.Module, *, head_lr_factor: float = 1.0, layer_decay: float = 1.0
) -> torch.optim.Optimizer:
    """Return the recipe's optimizer.

    Without ``decay_all``, weight decay leaves out vectors (biases, normalisation) and the parameters in the
    ``no_weight_decay`` of a timm model (position embeddings, class tokens). With a ``head_lr_factor`` other than 1,
    the parameters of the classifier are in groups of their own, with the factor as "lr_factor".
    """
    if layer_decay != 1:
        return _optimizer(recipe, _decayed_layers(recipe, model, layer_decay))
    head = {id(p) for p in find_classifier(model).parameters()} if head_lr_factor != 1 else set()
    not_decayed = _not_decayed(model)
    spared = {id(p) for name, p in model.named_parameters() if name.removeprefix("network.") in not_decayed}
    sorted_out: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            key = id(parameter) in head, recipe.decay_all or (parameter.ndim > 1 and id(parameter) not in spared)
            sorted_out.setdefault(key, []).append(parameter)
    groups = [
        {"params": sorted_out[key], "weight_decay": recipe.weight_decay if key[1] else 0.0,
         "lr_factor": head_lr_factor if key[0] else 1.0}
        for key in sorted(sorted_out, key=lambda key: (key[0], not key[1]))
    ]  # fmt: skip
    return _optimizer(recipe, groups)


def _optimizer(recipe: Training, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    # one launch for all parameters and, with a gradient scaler, no wait for whether a gradient overflowed
    fused = groups[0]["params"][0].device.type in FUSED or None
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, fused=fused)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=fused)


def _decayed_layers(recipe: Training, model: nn.Module, layer_decay: float) -> list[dict[str, Any]]:
    """Return timm's groups of parameters by layer."""
    if not hasattr(model, "group_matcher"):
        raise InputError(
            f"{recipe.model} does not name its layers, which --layer-decay needs; expected a model of timm"
        )
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        model, recipe.weight_decay, sorted(_not_decayed(model)), layer_decay=layer_decay,
        weight_decay_exclude_1d=not recipe.decay_all,
    )  # fmt: skip
    return [
        {"params": g["params"], "weight_decay": recipe.weight_decay if recipe.decay_all else g["weight_decay"],
         "lr_factor": g["lr_scale"]}
        for g in groups
    ]  # fmt: skip


def freeze_backbone(model: nn.Module, *, frozen: bool) -> None:
    """Freeze everything but the classifier, the statistics of normalisation too; otherwise make all of it trainable."""
    model.requires_grad_(not frozen)
    if frozen:
        model.eval()
        find_classifier(model).requires_grad_().train()


def _not_decayed(model: nn.Module) -> set[str]:
    network: Any = getattr(model, "network", model)
    return set(network.no_weight_decay()) if hasattr(network, "no_weight_decay") else set()


def learning_rate(recipe: Training, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step: a function of it alone, so that resuming needs no state.

    Linear warm-up, then constant; or multiplied by γ after each milestone, at the first step of an epoch; or half a
    cosine from the end of the warm-up to ``min_lr`` after the last step.

    Args:
        recipe: The run.
        step: Optimizer steps done so far, from 0.
        steps_per_epoch: Optimizer steps of an epoch.
    """
    warmup, total = recipe.warmup_epochs * steps_per_epoch, recipe.epochs * steps_per_epoch
    if step < warmup:
        return recipe.lr * (step + 1) / (warmup + 1)
    if recipe.schedule == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))
        return recipe.min_lr + (recipe.lr - recipe.min_lr) * share
    if recipe.schedule == "step":
        epoch = step // steps_per_epoch + 1e-9  # 0.7 · 10 is a little above 7 in floating point
        passed = sum(epoch >= milestone * recipe.epochs for milestone in recipe.milestones)
        return recipe.lr * recipe.gamma**passed
    return recipe.lr


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group, times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


def find_classifier(model: nn.Module) -> nn.Linear:
    """Return the layer that maps features to classes.

    Raises:
        InputError: If the model has no ``get_classifier``, or its classifier is not a linear layer.
    """
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None  # type: ignore[operator]
    if not isinstance(classifier, nn.Linear):
        raise InputError(f"{type(model).__name__} has no linear classifier, which --head-lr-factor and --freeze need")
    return classifier


class WeightAverage:
    """Exponential moving average of a model's parameters and buffers.

    The decay of update t, counted from 0, is min(decay, (1 + t) / (10 + t)): the average follows about the last tenth
    of the training until that is longer than the decay's own window, so that a short training is not averaged with
    its first weights.

    Args:
        model: The model that is trained; the average starts as its copy.
        decay: The largest decay, in (0, 1).

    Attributes:
        module: The model with the averaged weights.
        updates: Updates so far.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module, self.decay, self.updates = copy.deepcopy(model), decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's floating-point tensors, in one operation."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        pairs = [pair for pair in self._pairs(model) if pair[0].is_floating_point()]
        torch._foreach_lerp_([own for own, _ in pairs], [other for _, other in pairs], 1 - decay)
        self.updates += 1

    @torch.no_grad()
    def copy_counters(self, model: nn.Module) -> None:
        """Take over the model's integer buffers, which cannot be averaged; needed before the average is evaluated."""
        for own, other in self._pairs(model):
            if not own.is_floating_point():
                own.copy_(other)

    def _pairs(self, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        every = [[*part.parameters(), *part.buffers()] for part in (self.module, model)]
        return list(zip(*every, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged weights and the number of updates."""
        return {"module": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.module.load_state_dict(state["module"])
        self.updates = int(state["updates"])


def make_average(recipe: Training, model: nn.Module) -> WeightAverage | None:
    """Return the moving average of the weights, or None if ``ema_decay`` is 0."""
    return WeightAverage(model, recipe.ema_decay) if recipe.ema_decay else None
