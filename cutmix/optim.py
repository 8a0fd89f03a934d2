"""What moves the weights: the optimizer, the learning rate at a step, the moving average."""

import math

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cutmix.recipes import Recipe


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Return the recipe's optimizer; with ``decay_all`` off, vectors (biases, normalisation) are not decayed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if recipe.decay_all or p.ndim > 1]
    others = [p for p in parameters if not (recipe.decay_all or p.ndim > 1)]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step: a function of it alone, so that resuming needs no state.

    Linear warm-up, then constant; or multiplied by γ after each milestone, at the first step of an epoch; or half a
    cosine from the end of the warm-up to zero after the last step.

    Args:
        recipe: The run.
        step: Optimizer steps done so far, from 0.
        steps_per_epoch: Optimizer steps of an epoch.
    """
    warmup, total = recipe.warmup_epochs * steps_per_epoch, recipe.epochs * steps_per_epoch
    if step < warmup:
        return recipe.lr * (step + 1) / (warmup + 1)
    if recipe.schedule == "cosine":
        return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))
    if recipe.schedule == "step":
        epoch = step // steps_per_epoch + 1e-9  # 0.7 · 10 is a little above 7 in floating point
        passed = sum(epoch >= milestone * recipe.epochs for milestone in recipe.milestones)
        return recipe.lr * recipe.gamma**passed
    return recipe.lr


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def make_average(recipe: Recipe, model: nn.Module) -> AveragedModel | None:
    """Return the exponential moving average of weights and buffers, or None without ``ema_decay``."""
    if not recipe.ema_decay:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay), use_buffers=True)
