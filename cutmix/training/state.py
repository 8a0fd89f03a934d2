"""The state of a training run: created, saved, and restored bit for bit."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from cutmix.config.recipe import Recipe
from cutmix.data import ArraySet, ImageSet
from cutmix.errors import InputError
from cutmix.mixing import Cutout, Mix
from cutmix.models import WithTokenHead, create_model
from cutmix.models.create import start_new_head, trying_images
from cutmix.models.regularizers import DropBlock, regularize
from cutmix.runtime.device import make_scaler, random_state, set_random_state
from cutmix.runtime.distributed import World, gather_first
from cutmix.runtime.seeding import derive_seed
from cutmix.runtime.weights import read_weights
from cutmix.training.mixes import make_cutout, make_mix
from cutmix.training.optim import WeightAverage, find_classifier, make_average, make_optimizer


@dataclass
class State:
    """The content of a checkpoint, without the states of the global random generators.

    Attributes:
        model: The network, without what wraps it for several processes or compilation.
        optimizer: The optimizer of the model.
        average: Moving average of the weights, or None.
        cutout: The Cutout before the mix, or None; it has a random state of its own.
        mix: The mixing method; it has a random state of its own.
        scaler: The gradient scaler of float16.
        epoch: Epochs done.
        step_in_epoch: Optimizer steps done of the epoch that is running.
        step: Optimizer steps done in all.
        loss_sum: Sum of this process's losses in the running epoch, over its samples.
        seen: Samples of this process in the running epoch.
        recent_sum: The same as ``loss_sum``, since the last line of the log.
        recent_seen: The same as ``seen``, since the last line of the log.
        seconds: Time spent on training steps so far.
        best: Epoch and errors of the best evaluation so far; empty before the first.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    cutout: Cutout | None
    mix: Mix
    scaler: torch.amp.GradScaler
    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seen: int = 0
    recent_sum: float = 0.0
    recent_seen: int = 0
    seconds: float = 0.0
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

    Args:
        recipe: What is run.
        data: The training images.
        world: This process among all.
        started: Whether a checkpoint will be restored, so that the weights to start from need not be there any more.
    """
    torch.manual_seed(derive_seed(recipe.seed, "model"))
    pretrained: Any = recipe.pretrained and not started
    if recipe.weights and not started:
        pretrained = read_weights(recipe.weights, use_ema=recipe.weights_ema)
    model = create_model(recipe.model, data.num_classes, in_chans=data.in_chans, pretrained=pretrained)
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
    """Have a model of timm compute its activations again in the backward pass."""
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError):  # the latter of timm's models without it
        raise InputError(f"{recipe.model} has no gradient checkpointing; leave out --grad-checkpointing") from None


def start_branches_at_one(model: nn.Module) -> None:
    """Undo timm's ``zero_init_last``: a normalisation whose scales are all 0 gets PyTorch's own 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine and not module.weight.any():
            nn.init.ones_(module.weight)


def _prepare(network: nn.Module, mix: Mix, recipe: Recipe, data: ImageSet, world: World) -> nn.Module:
    """Return the module to train, once the network, DropBlock and the mixing method have taken images of this size."""
    sides: tuple[int, ...] = (recipe.image_size or 0,) * 2
    if isinstance(data, ArraySet) and recipe.image_size is None:
        sides = tuple(data.images.shape[-2:])
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
    """Check that a network can be trained on a single image, and leave it as it is."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            network.train()(image)
    except ValueError:  # of F.batch_norm
        raise InputError(f"{refusal}, as batch normalisation cannot be trained on a single image") from None
    finally:
        network.load_state_dict(before)


def take_snapshot(state: State, world: World) -> dict[str, Any]:
    """Return the state that a run needs to resume bit for bit, on the first process; every process takes part."""
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
    """Set everything as it was when the snapshot was taken.

    Raises:
        InputError: If the snapshot is of another network or number of processes, or lacks something.
    """
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
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"the checkpoint is not one of this run: {reason}") from None
