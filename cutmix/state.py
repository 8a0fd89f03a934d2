"""All that changes while training: how it starts, and how it is saved and restored bit for bit."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from cutmix.data import ArraySet, ImageSet
from cutmix.distributed import World, gather
from cutmix.errors import InputError
from cutmix.mixing import CutMix, Cutout, Mixup, RandomChoice
from cutmix.mixing.images import BatchTransform
from cutmix.models import create_model
from cutmix.optim import make_average, make_optimizer
from cutmix.recipes import Recipe
from cutmix.seeding import derive_seed


@dataclass
class State:
    """What a checkpoint holds, beside the states of the global random generators.

    Attributes:
        model: The network, without what wraps it for several processes or compilation.
        optimizer: What moves its weights.
        average: Moving average of the weights, or None.
        mix: The transform of each batch, or None; it has a random state of its own.
        epoch: Epochs done.
        step_in_epoch: Optimizer steps done of the epoch that is running.
        step: Optimizer steps done in all.
        loss_sum: Sum of this process's losses in the running epoch, over its samples.
        seen: Samples of this process in the running epoch.
        recent_sum: The same as ``loss_sum``, since the last line of the log.
        recent_seen: The same as ``seen``, since the last line of the log.
        seconds: Time spent on training steps so far.
        best: Epoch and errors of the best measurement so far; empty before the first.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    mix: BatchTransform | None
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
    def measured(self) -> nn.Module:
        """The network that is measured: the average, where there is one."""
        return self.model if self.average is None else self.average.module


_SHARED = ("epoch", "step_in_epoch", "step", "seconds", "best")
_OF_A_PROCESS = ("loss_sum", "seen", "recent_sum", "recent_seen")


def start_state(recipe: Recipe, data: ImageSet, world: World) -> State:
    """Make the network and all that moves it, the same in every process; random numbers drawn later differ."""
    torch.manual_seed(derive_seed(recipe.seed, "model"))
    pretrained = recipe.weights or recipe.pretrained
    model = create_model(recipe.model, data.num_classes, in_chans=data.in_chans, pretrained=pretrained)
    model = model.to(world.device)
    _check_input(model, recipe, data, world.device)
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)
    torch.manual_seed(derive_seed(recipe.seed, "training", world.rank))
    return State(model, make_optimizer(recipe, model), make_average(recipe, model), make_mix(recipe))


def _check_input(model: nn.Module, recipe: Recipe, data: ImageSet, device: torch.device) -> None:
    """See that the network takes images of this size, before a folder is made for the run."""
    sides: tuple[int, ...] = (recipe.image_size or 0,) * 2
    if isinstance(data, ArraySet) and recipe.image_size is None:
        sides = tuple(data.images.shape[-2:])
    model.eval()
    try:
        with torch.inference_mode():
            model(torch.zeros(1, data.in_chans, *sides, device=device))
    except (AssertionError, RuntimeError, ValueError) as error:
        size, reason = "×".join(map(str, sides)), (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(
            f"{recipe.model} takes no images of {size} pixels ({reason}); give another --image-size or --model"
        ) from None
    model.train()


def make_mix(recipe: Recipe) -> BatchTransform | None:
    """Return the recipe's transform of a batch; it writes into the batch, which the loader has just made."""
    shared: dict[str, Any] = {"prob": recipe.mix_prob, "per_sample": recipe.mix_per_sample, "inplace": True}
    seed = {name: derive_seed(recipe.seed, name) for name in ("cutmix", "mixup", "cutout", "choice")}
    if recipe.mix == "cutmix":
        return CutMix(recipe.alpha, seed=seed["cutmix"], **shared)
    if recipe.mix == "mixup":
        return Mixup(recipe.alpha, seed=seed["mixup"], **shared)
    if recipe.mix == "cutout":
        return Cutout(recipe.cutout_size, seed=seed["cutout"], prob=recipe.mix_prob, inplace=True)
    if recipe.mix == "cutmix-or-mixup":
        both = CutMix(recipe.alpha, seed=seed["cutmix"], **shared), Mixup(recipe.alpha, seed=seed["mixup"], **shared)
        return RandomChoice(both, seed=seed["choice"])
    return None


def take_snapshot(state: State, world: World) -> dict[str, Any]:
    """Return all that a run needs to go on bit for bit; every process takes part."""
    own = {name: getattr(state, name) for name in _OF_A_PROCESS}
    own |= {"torch": torch.get_rng_state(), "mix": state.mix.state_dict() if state.mix else None}
    if world.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(world.device)
    return {
        **{name: getattr(state, name) for name in _SHARED},
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "average": state.average.state_dict() if state.average is not None else None,
        "processes": gather(own, world),
    }


def restore(state: State, snapshot: dict[str, Any], world: World) -> None:
    """Set everything as it was when the snapshot was taken.

    Raises:
        InputError: If the snapshot is of another network or number of processes, or lacks something.
    """
    processes = snapshot.get("processes", [])
    if len(processes) not in (0, world.size):
        raise InputError(
            f"the run was started with {len(processes)} processes and goes on exactly only with as many; there "
            f"are {world.size}"
        )
    try:
        own = processes[world.rank]
        for names, values in ((_SHARED, snapshot), (_OF_A_PROCESS, own)):
            for name in names:
                setattr(state, name, values[name])
        state.model.load_state_dict(snapshot["model"])
        state.optimizer.load_state_dict(snapshot["optimizer"])
        if state.average is not None:
            state.average.load_state_dict(snapshot["average"])
        if state.mix:
            state.mix.load_state_dict(own["mix"])
        torch.set_rng_state(own["torch"])
        if "cuda" in own and world.device.type == "cuda":
            torch.cuda.set_rng_state(own["cuda"], world.device)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"the checkpoint is not one of this run: {reason}") from None
