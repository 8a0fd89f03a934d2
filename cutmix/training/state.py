"""The state of a training run: created, saved, and restored bit for bit; optimizer, learning rate, moving average."""

import copy
import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from cutmix.config.recipe import Recipe, Training
from cutmix.data import ArraySet, ImageSet
from cutmix.errors import InputError, reason
from cutmix.mixing import Cutout, Mix
from cutmix.models import create_model
from cutmix.models.create import check_shake_drop, start_new_head, trying_images
from cutmix.models.regularizers import DropBlock, regularize
from cutmix.models.transformers import WithTokenHead
from cutmix.runtime.checkpoint import read_header
from cutmix.runtime.device import World, first_alone, gather_first, make_scaler
from cutmix.runtime.seeding import derive_seed
from cutmix.runtime.weights import read_weights
from cutmix.training.mixes import make_cutout, make_mix, read_fields

# ---- optimizer and learning rate ----

FUSED = ("cuda",)
"""Types of devices on which one launch updates all parameters."""


def make_optimizer(
    recipe: Training, model: nn.Module, *, head_lr_factor: float = 1.0, layer_decay: float = 1.0
) -> torch.optim.Optimizer:
    """Return the recipe's optimizer.

    Without ``decay_all``, weight decay leaves out vectors (biases, normalization) and the parameters in the
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


def freeze_backbone(model: nn.Module, optimizer: torch.optim.Optimizer, *, frozen: bool) -> None:
    """Freeze everything but the classifier, including the statistics of normalization; or train what the optimizer has.

    Parameters that a model fixes by design, such as position embeddings, are not in the optimizer and stay fixed.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.requires_grad_(not frozen)
    if frozen:
        model.eval()
        find_classifier(model).requires_grad_().train()


def _not_decayed(model: nn.Module) -> set[str]:
    network: Any = getattr(model, "network", model)
    return set(network.no_weight_decay()) if hasattr(network, "no_weight_decay") else set()


def learning_rate(recipe: Training, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step, counted from 0: a function of it alone, so that resuming needs no state.

    Linear warm-up, then constant; or multiplied by γ after each milestone, at the first step of an epoch; or half a
    cosine from the end of the warm-up to ``min_lr`` after the last step.
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
    """Return the layer that maps features to classes; refuse a model whose classifier is not linear."""
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None  # type: ignore[operator]
    if not isinstance(classifier, nn.Linear):
        raise InputError(f"{type(model).__name__} has no linear classifier, which --head-lr-factor and --freeze need")
    return classifier


# ---- moving average ----


class WeightAverage:
    """Exponential moving average of a model's parameters and buffers.

    The decay of update t, counted from 0, is min(decay, (1 + t) / (10 + t)): the average follows about the last tenth
    of the training until that is longer than the decay's own window, so that a short training is not averaged with its
    first weights. ``module`` is the model with the averaged weights.
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
        """Copy the model's integer buffers, which cannot be averaged; needed before the average is evaluated."""
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
        """Restore the result of ``state_dict``."""
        self.module.load_state_dict(state["module"])
        self.updates = int(state["updates"])


def make_average(recipe: Training, model: nn.Module) -> WeightAverage | None:
    """Return the moving average of the weights, or None if ``ema_decay`` is 0."""
    return WeightAverage(model, recipe.ema_decay) if recipe.ema_decay else None


# ---- state ----


@dataclass
class State:
    """The content of a checkpoint, without the states of the global random generators."""

    model: nn.Module  # without wrappers for several processes or compilation
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None  # moving average of the weights
    cutout: Cutout | None  # the Cutout before the mix; it has a random state of its own
    mix: Mix  # the mixing method; it has a random state of its own
    scaler: torch.amp.GradScaler  # the gradient scaler of float16
    epoch: int = 0  # epochs done
    step_in_epoch: int = 0  # optimizer steps done of the running epoch
    step: int = 0  # optimizer steps done in all
    loss_sum: float = 0.0  # sum of this process's losses in the running epoch, over its samples
    seen: int = 0  # samples of this process in the running epoch
    recent_sum: float = 0.0  # as ``loss_sum``, since the last line of the log
    recent_seen: int = 0  # as ``seen``, since the last line of the log
    seconds: float = 0.0  # time spent on training steps so far
    # epoch and errors of the best evaluation so far; empty before the first
    best: dict[str, Any] = field(default_factory=dict)

    @property
    def network(self) -> nn.Module:
        """The network without a head that only serves the training."""
        return self.model.network if isinstance(self.model, WithTokenHead) else self.model

    @property
    def exported(self) -> nn.Module:
        """The model that is evaluated and exported: the moving average, if there is one."""
        return self.average.module if self.average else self.network

    @property
    def exported_kind(self) -> str:
        """Which weights the exported model has: "ema" for the moving average, else "model"."""
        return "ema" if self.average else "model"


_SHARED = ("epoch", "step_in_epoch", "step", "seconds", "best")
_OF_A_PROCESS = ("loss_sum", "seen", "recent_sum", "recent_seen")


def start_state(recipe: Recipe, data: ImageSet, world: World, *, started: bool = False) -> State:
    """Create model, optimizer and mix with equal weights in every process; later random draws differ.

    With ``started``, a checkpoint will be restored, so that the initial weights are not needed.
    """
    torch.manual_seed(derive_seed(recipe.seed, "model"))
    pretrained: Any = recipe.pretrained and not started
    if recipe.weights and not started:
        check_shake_drop(recipe.weights, read_header(recipe.weights), recipe.shake_drop)
        pretrained = read_weights(recipe.weights, use_ema=recipe.weights_ema)
    make = partial(create_model, recipe.model, data.num_classes, in_chans=data.in_chans, pretrained=pretrained)
    model = first_alone(make, world) if pretrained is True else make()  # the first process downloads
    if not (recipe.zero_init or pretrained):
        start_branches_at_one(model)
    if recipe.new_head:
        start_new_head(model)
    regularize(
        model, stochastic_depth=recipe.stochastic_depth, shake_drop=recipe.shake_drop, decay=recipe.depth_decay,
        drop_block=recipe.drop_block, block_size=recipe.drop_block_size,
    )  # fmt: skip
    if recipe.grad_checkpointing:
        checkpoint_activations(recipe, model)
    if recipe.freeze:
        find_classifier(model)
    mix, network = make_mix(recipe), model.to(world.device)
    model = _prepare(network, mix, recipe, data, world)
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)
    torch.manual_seed(derive_seed(recipe.seed, "training", world.rank))
    scaler = make_scaler(recipe.precision, world.device)
    optimizer = make_optimizer(recipe, model, head_lr_factor=recipe.head_lr_factor, layer_decay=recipe.layer_decay)
    return State(model, optimizer, make_average(recipe, network), make_cutout(recipe), mix, scaler)


def checkpoint_activations(recipe: Recipe, model: nn.Module) -> None:
    """Make a model of timm recompute its activations in the backward pass."""
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError):  # the latter of timm's models without it
        raise InputError(f"{recipe.model} has no gradient checkpointing; leave out --grad-checkpointing") from None


def start_branches_at_one(model: nn.Module) -> None:
    """Undo timm's ``zero_init_last``: a normalization whose scales are all 0 gets PyTorch's own 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine and not module.weight.any():
            nn.init.ones_(module.weight)


def _prepare(network: nn.Module, mix: Mix, recipe: Recipe, data: ImageSet, world: World) -> nn.Module:
    """Return the module to train, after network, DropBlock and mixing method have accepted images of this size."""
    sides: tuple[int, ...] = (recipe.image_size or 0,) * 2
    if isinstance(data, ArraySet) and recipe.image_size is None:
        sides = tuple(data.images.shape[-2:])
    if "cutout_size" in read_fields(recipe) and recipe.cutout_size // 2 >= max(sides):
        raise InputError(
            f"--cutout-size is {recipe.cutout_size}; expected less than {2 * max(sides)}, as it would cover images of "
            f"{'×'.join(map(str, sides))} pixels wherever its centre is"
        )
    images = torch.zeros(2, data.in_chans, *sides, device=world.device)
    network.eval()
    for module in network.modules():
        if isinstance(module, DropBlock):
            module.train()
    with trying_images(recipe.model, sides):
        with torch.inference_mode():
            network(images[:1])
        model = mix.prepare(network, images).to(world.device)
    if recipe.batch_size < 2 * world.size:
        _train_on_one(network, images[:1], f"--batch-size is {recipe.batch_size}; expected at least {2 * world.size}")
    return model.train()


def _train_on_one(network: nn.Module, image: torch.Tensor, refusal: str) -> None:
    """Check that a network can be trained on a single image, and leave it unchanged."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            network.train()(image)
    except ValueError:  # of F.batch_norm
        raise InputError(f"{refusal}, as batch normalization cannot be trained on a single image") from None
    finally:
        network.load_state_dict(before)


def random_state(device: torch.device) -> torch.Tensor | None:
    """Return the state of a device's own generator, (n,) uint8 on the CPU; None for the CPU."""
    if device.type == "cpu":
        return None
    module: Any = torch.get_device_module(device)
    return module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)


def set_random_state(device: torch.device, state: torch.Tensor) -> None:
    """Set the state of the generator of a device other than the CPU."""
    module: Any = torch.get_device_module(device)
    module.set_rng_state(state, *(() if device.type == "mps" else (device,)))


def take_snapshot(state: State, world: World) -> dict[str, Any]:
    """Return, in the first process, the state that a run resumes from bit for bit; every process calls this."""
    own = {name: getattr(state, name) for name in _OF_A_PROCESS}
    own |= {"torch": torch.get_rng_state()}
    own |= {name: part.state_dict() for name in ("cutout", "mix") if (part := getattr(state, name))}
    if (drawn := random_state(world.device)) is not None:
        own[world.device.type] = drawn
    return {
        **{name: getattr(state, name) for name in _SHARED},
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "average": state.average.state_dict() if state.average else None,
        "processes": gather_first(own, world),
    }


def restore(state: State, snapshot: dict[str, Any], world: World) -> None:
    """Restore a snapshot; refuse one of another network or number of processes."""
    processes = snapshot.get("processes", [])
    if len(processes) not in (0, world.size):
        raise InputError(
            f"the run was started with {len(processes)} processes, and needs as many to resume; there are {world.size}"
        )
    try:
        own = processes[world.rank]
        for names, values in ((_SHARED, snapshot), (_OF_A_PROCESS, own)):
            for name in names:
                setattr(state, name, values[name])
        state.model.load_state_dict(snapshot["model"])
        state.optimizer.load_state_dict(snapshot["optimizer"])
        state.scaler.load_state_dict(snapshot["scaler"])
        if state.average:
            state.average.load_state_dict(snapshot["average"])
        for name in ("cutout", "mix"):
            if part := getattr(state, name):
                part.load_state_dict(own[name])
        torch.set_rng_state(own["torch"])
        if world.device.type in own:
            set_random_state(world.device, own[world.device.type])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
        raise InputError(f"the checkpoint is not one of this run: {reason(error)}") from None
