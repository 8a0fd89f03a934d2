"""The one loop, read from top to bottom: ``cutmix train``, or ``torchrun --nproc-per-node N -m cutmix train``."""

import contextlib
import json
import math
import shlex
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cutmix.checkpoint import load_checkpoint, save_checkpoint, save_weights
from cutmix.data import ArraySet, FileSet, ImageSet, open_data, test_loader, train_loader
from cutmix.data.loaders import Loader
from cutmix.distributed import (
    World,
    any_process,
    average_loss,
    barrier,
    gather,
    parallel,
    processes,
    send_buffers,
    without_sync,
)
from cutmix.errors import InputError
from cutmix.evaluate.classification import (
    Predictions,
    classification_error,
    mean_loss,
    measures,
    predict,
    predictions_arrays,
)
from cutmix.mixing import FeatureMix, ScheduledCutMix, mixed_cross_entropy
from cutmix.mixing.targets import Targets
from cutmix.models import pretrained_normalization
from cutmix.optim import learning_rate, set_learning_rate
from cutmix.options import TrainOptions
from cutmix.precision import autocast, resolve_precision
from cutmix.preview import preview_grid
from cutmix.progress import Progress
from cutmix.recipe import Recipe
from cutmix.run_folder import RunFolder, command_line, environment, has_results, read_arrays, today
from cutmix.signals import Stop, remembered_signals
from cutmix.state import State, image_mixing, restore, start_state, take_snapshot


@dataclass
class Run:
    """What the loop works with; made once by ``prepare``."""

    recipe: Recipe
    options: TrainOptions
    world: World
    path: Path
    train_set: ImageSet
    test_set: ImageSet
    batches: Loader
    test_batches: Loader
    state: State
    network: nn.Module
    autocast: contextlib.AbstractContextManager
    progress: Progress
    about: dict[str, Any]
    folder: RunFolder | None = None
    board: Any = None
    unread: list[tuple[Tensor, int]] = field(default_factory=list)

    @property
    def checkpoint(self) -> Path:
        """Where to go on."""
        return self.path / "checkpoint.pt"


def train(recipe: Recipe, options: TrainOptions | None = None) -> Path:
    """Train a recipe, measure it after each epoch, and return the folder of the run.

    Args:
        recipe: What to compute.
        options: How to run it.

    Raises:
        InputError: If data, model, folder or device do not fit, a file cannot be read or written, or the loss is no
            longer finite.
        SystemExit: With 128 + the signal's number, after SIGTERM or Ctrl-C and a checkpoint.
    """
    with processes((options or TrainOptions()).device) as world:
        run = prepare(recipe, options or TrainOptions(), world)
        try:
            if begin(run):
                return run.path
            with remembered_signals() as stop, run.progress:
                for epoch in range(run.state.epoch, run.recipe.epochs):
                    train_epoch(run, epoch, stop)
                    measure_epoch(run)
                    save(run)
                finish(run)
        finally:
            if run.board:
                run.board.close()
            if run.folder:
                run.folder.close()
        return run.path


def train_epoch(run: Run, epoch: int, stop: Stop) -> None:
    """Train on what is left of an epoch; look, save and stop between two steps."""
    recipe, options, state, world = run.recipe, run.options, run.state, run.world
    run.network.train()
    run.progress.start_epoch()
    clock = time.perf_counter()
    for images, labels in run.batches.epoch(epoch, start=state.step_in_epoch):
        lr = learning_rate(recipe, state.step, run.batches.steps)
        set_learning_rate(state.optimizer, lr)
        run.unread.append((train_step(run, images, labels), len(images)))
        state.step += 1
        state.step_in_epoch += 1
        run.progress.step(len(images) * world.size)
        if state.step % options.log_every == 0:
            log_step(run, epoch, lr)
        stopping = any_process(stop.number is not None, world)
        due = options.checkpoint_every and state.step % options.checkpoint_every == 0
        if stopping or (due and state.step_in_epoch < run.batches.steps):
            state.seconds += time.perf_counter() - clock
            save(run)
            clock = time.perf_counter()
        if stopping:
            run.progress.say(
                f"stopped at step {state.step} in epoch {epoch + 1}; "
                f"cutmix train --resume --out {shlex.quote(str(run.path))} goes on from there"
            )
            raise SystemExit(128 + (stop.number or signal.SIGTERM))
    check_finite(run)
    state.seconds += time.perf_counter() - clock


def train_step(run: Run, images: Tensor, labels: Tensor) -> Tensor:
    """Mix a batch, take one optimizer step on it, and return its mean loss, which nothing has waited for."""
    recipe, state = run.recipe, run.state
    if isinstance(state.mix, ScheduledCutMix):
        state.mix.progress = state.step / (recipe.epochs * run.batches.steps)
    state.optimizer.zero_grad(set_to_none=True)
    if state.cutout:
        images, _ = state.cutout(images, labels)
    inside = state.mix if isinstance(state.mix, FeatureMix) else None
    targets: Targets = labels
    if not isinstance(state.mix, FeatureMix | None):  # the whole batch, so that its parts change nothing
        images, targets = state.mix(images, labels)
    parts = list(zip(images.chunk(recipe.accumulate), split(targets, recipe.accumulate), strict=True))
    total = torch.zeros((), device=images.device)
    for number, (x, y) in enumerate(parts, 1):
        with without_sync(run.network, number < len(parts)):
            with run.autocast:
                logits, y = inside.forward(run.network, x, y) if inside else (run.network(x), y)
            loss = mixed_cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
            loss = loss * (len(x) / len(images))
            loss.backward()
        total += loss.detach()
    if recipe.clip_grad_norm:
        nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip_grad_norm)
    state.optimizer.step()
    if state.average is not None:
        state.average.update_parameters(state.model)
    return total


def split(targets: Targets, parts: int) -> Sequence[Any]:
    """Split targets as ``chunk`` splits their images."""
    if isinstance(targets, Tensor):
        return targets.chunk(parts)
    return [type(targets)(*fields) for fields in zip(*(column.chunk(parts) for column in targets), strict=True)]


def read_losses(run: Run) -> None:
    """Read the losses since the last look, and add them one by one: the sums do not depend on when one looked.

    Raises:
        InputError: If one is not finite, with its step and learning rate and the last good checkpoint.
    """
    if not run.unread:
        return
    state = run.state
    losses = torch.stack([loss for loss, _ in run.unread]).tolist()
    counts = [count for _, count in run.unread]
    run.unread.clear()
    first_step = state.step - len(losses)
    bad = next(((first_step + i, loss) for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
    found = [one for one in gather(bad, run.world) if one is not None]
    if found:
        step, loss = min(found)
        raise diverged(run, f"the loss is {loss}", step)
    for loss, count in zip(losses, counts, strict=True):
        state.loss_sum, state.seen = state.loss_sum + loss * count, state.seen + count
        state.recent_sum, state.recent_seen = state.recent_sum + loss * count, state.recent_seen + count


def check_finite(run: Run) -> None:
    """Look at the losses and the weights before they are saved or measured, so that every checkpoint is good.

    A finite loss can leave infinite weights: they are its gradient's.

    Raises:
        InputError: If one is not finite.
    """
    read_losses(run)
    finite = all(bool(tensor.isfinite().all()) for tensor in run.state.model.state_dict().values())
    if any_process(not finite, run.world):
        raise diverged(run, "the weights are not finite", run.state.step - 1)


def diverged(run: Run, what: str, step: int) -> InputError:
    """Return the error of a run that cannot go on, with what is needed to find out why."""
    lr = learning_rate(run.recipe, step, run.batches.steps)
    good = f"the last good checkpoint is {run.checkpoint}" if run.checkpoint.exists() else "no checkpoint was saved"
    return InputError(f"{what} at step {step + 1}, with learning rate {lr:.4g}; {good}")


def log_step(run: Run, epoch: int, lr: float) -> None:
    """Show and log the loss since the last such line of the epoch."""
    read_losses(run)
    loss = run.state.recent_sum / run.state.recent_seen
    run.state.recent_sum, run.state.recent_seen = 0.0, 0
    speed = run.progress.images_per_second()
    run.progress.show(epoch + 1, run.state.step, loss, lr)
    record = {"epoch": epoch + 1, "step": run.state.step, "loss": loss, "lr": lr, "images_per_second": speed}
    log(run, {"kind": "train"} | record)


def measure_epoch(run: Run) -> None:
    """Close an epoch: measure it where the recipe says so, log it, and keep the best one."""
    recipe, state = run.recipe, run.state
    record = {
        "kind": "epoch", "epoch": state.epoch + 1, "step": state.step,
        "lr": learning_rate(recipe, state.step - 1, run.batches.steps),
        "train_loss": average_loss(state.loss_sum, state.seen, run.world), "seconds": round(state.seconds, 3),
        "images_per_second": run.progress.images_per_second(),
    }  # fmt: skip
    state.epoch, state.step_in_epoch, state.loss_sum, state.seen = state.epoch + 1, 0, 0.0, 0
    state.recent_sum, state.recent_seen = 0.0, 0
    if state.epoch % recipe.eval_every == 0 or state.epoch == recipe.epochs:
        predictions = predict_test(run)
        errors = {name: error.value for name, error in classification_error(predictions).items()}
        record |= {"test_loss": mean_loss(predictions), **errors}
        if errors["top1_err"] < state.best.get("top1_err", math.inf):
            state.best = {"epoch": state.epoch, **errors}
            keep(run, predictions, "best.next", "best.next.safetensors")  # best once the checkpoint says so
        if state.epoch == recipe.epochs:
            keep(run, predictions, "last", "model.safetensors")
    log(run, record)
    run.progress.show_epoch(record)


def predict_test(run: Run) -> Predictions:
    """Return the predictions of the network that is measured, on the whole test set, in every process."""
    send_buffers(run.state.measured, run.world)
    return predict(run.state.measured, run.test_batches.epoch(), run.world, autocast=run.autocast)


def keep(run: Run, predictions: Predictions, which: str, weights: str) -> None:
    """Write the predictions and the weights that made them."""
    if run.folder:
        run.folder.write_arrays(f"predictions/{which}.npz", predictions_arrays(predictions))
        save_weights(
            run.path / weights, run.state.measured.state_dict(), describe(run.recipe, run.train_set, run.state.epoch)
        )


def save(run: Run) -> None:
    """Write a checkpoint; every process takes part, the first one writes."""
    check_finite(run)
    snapshot = take_snapshot(run.state, run.world)
    if run.folder:
        about = {"log_size": run.folder.log_size(), "data": run.train_set.fingerprint()}
        save_checkpoint(run.checkpoint, snapshot | about)
        run.folder.promote_best(run.state.best.get("epoch"))


def log(run: Run, record: dict[str, Any]) -> None:
    """Append to the log, and to TensorBoard where it was asked for."""
    if run.folder:
        run.folder.log(record)
    if run.board:
        for name, value in record.items():
            if isinstance(value, float):
                run.board.add_scalar(f"{record['kind']}/{name}", value, run.state.step)


def finish(run: Run) -> None:
    """Write every measure of the last and of the best epoch, with what it depends on."""
    if not run.folder:
        return
    recipe = run.recipe
    common = {
        "recipe": recipe.name, "data": run.train_set.name, "split": "test", "model": recipe.model,
        "mix": recipe.mix, "epochs": recipe.epochs,
        "seed": recipe.seed, "weights": "ema" if run.state.average is not None else "model",
        "precision": recipe.precision, "processes": run.world.size, "seconds": round(run.state.seconds, 1),
        **{name: run.about[name] for name in ("parameters", "commit", "torch", "device")}, "date": today(),
        "command": command_line(),
    }  # fmt: skip
    records = [
        {**common, **measure, "which": which, "epoch": epoch}
        for which, epoch in (("last", recipe.epochs), ("best", run.state.best["epoch"]))
        for measure in measures(Predictions(**read_arrays(run.path / f"predictions/{which}.npz")))
    ]
    run.folder.write_results(records)
    for record in records:
        if record["measure"] == "top1_err":
            run.progress.say(
                f"{record['which']} epoch ({record['epoch']}): top-1 error {record['value']:.2f} % "
                f"[{record['low']:.2f}, {record['high']:.2f}]"
            )
    run.progress.say(f"results in {run.path}; cutmix report {run.path} makes a page of them")


def prepare(recipe: Recipe, options: TrainOptions, world: World) -> Run:
    """Open the data, make everything that the loop works with, and, when nothing is wrong, take hold of the folder."""
    if options.tensorboard:
        summary_writer()
    train_set, test_set = open_sets(recipe, options, world)
    if recipe.pretrained and train_set.in_chans == 3 and (normalization := pretrained_normalization(recipe.model)):
        mean, std = normalization  # what the weights were trained with
        train_set, test_set = (replace(part, mean=mean, std=std) for part in (train_set, test_set))
    recipe = resolve(recipe, train_set, world.device)
    shared: dict[str, Any] = {
        "batch_size": recipe.batch_size, "device": world.device, "image_size": recipe.image_size,
        "workers": options.workers, "channels_last": recipe.channels_last, "rank": world.rank,
        "world_size": world.size,
    }  # fmt: skip
    batches = train_loader(
        train_set, seed=recipe.seed, crop_padding=recipe.crop_padding, padding_mode=recipe.padding_mode,
        flip=recipe.flip, crop_scale=recipe.crop_scale, policy=recipe.auto_augment,
        color_jitter=recipe.color_jitter, lighting=recipe.lighting, **shared,
    )  # fmt: skip
    path = options.out or Path("runs") / f"{recipe.name}-seed{recipe.seed}"
    state = start_state(recipe, train_set, world)
    network = parallel(state.model, world)
    return Run(
        recipe, options, world, path,
        train_set=train_set,
        test_set=test_set,
        batches=batches,
        test_batches=test_loader(test_set, crop_fraction=recipe.crop_fraction, **shared),
        state=state,
        network=torch.compile(network) if recipe.compile else network,  # type: ignore[arg-type]
        autocast=autocast(recipe.precision, world.device),
        progress=Progress(recipe.epochs, batches.steps, shown=world.first),
        about=environment(world.device)
        | {"processes": world.size, "parameters": sum(p.numel() for p in state.model.parameters()), "date": today()},
    )  # fmt: skip


def begin(run: Run) -> bool:
    """Take hold of the folder, start the run's files or go on from its checkpoint; return whether it is finished."""
    recipe, options, data = run.recipe, run.options, run.train_set
    if run.world.first:
        run.folder = RunFolder(run.path, recipe, resume=options.resume, overwrite=options.overwrite)
    barrier(run.world)  # the first process has dealt with the folder
    skipped = sum(len(part.skipped) for part in (data, run.test_set))
    run.progress.say(
        f"{recipe.name}: {recipe.model}, mix {recipe.mix}; {data.name}: {len(data):,} images to train on, "
        f"{len(run.test_set):,} to test, {data.num_classes} classes"
        + (f", {skipped} unreadable ones left out" if skipped else "")
        + f"; {run.world.device.type}, {recipe.precision}"
    )
    if run.checkpoint.exists():
        snapshot = load_checkpoint(run.checkpoint)
        if snapshot.get("data", data.fingerprint()) != data.fingerprint():
            raise InputError(f"{data.name} has other training images than when the run in {run.path} was started")
        restore(run.state, snapshot, run.world)
        if run.folder:
            run.folder.promote_best(run.state.best.get("epoch"))
        if run.state.epoch == recipe.epochs and has_results(run.path):
            run.progress.say(f"{run.path} is finished")
            return True
        if run.folder:
            run.folder.cut_log(snapshot["log_size"])
        run.progress.say(f"going on after step {run.state.step}")
    elif run.folder:
        run.folder.cut_log(0)
        run.folder.start(recipe, run.about | {"skipped": skipped})
        mixing = image_mixing(recipe)
        rows = {"original": None} | ({recipe.mix: mixing} if mixing else {})
        png = preview_grid(run.train_set, rows, image_size=recipe.image_size, count=8)
        run.folder.write_bytes("samples.png", png)
    if len(set(gather(run.state.step, run.world))) > 1:
        raise InputError(f"the processes do not see the same checkpoint; {run.path} has to be a folder that all share")
    if options.tensorboard and run.folder:
        run.board = summary_writer()(str(run.path / "tensorboard"), purge_step=run.state.step + 1)
    return False


def open_sets(recipe: Recipe, options: TrainOptions, world: World) -> tuple[ImageSet, ImageSet]:
    """Open both splits; where something is to be downloaded, the first process does it for all."""
    if not recipe.data:
        raise InputError("there is no data to train on; give a folder of class folders or a known set with --data")

    def both() -> list[ImageSet]:
        return [
            open_data(
                recipe.data, split, val_fraction=recipe.val_fraction, seed=recipe.seed,
                skip_unreadable=options.skip_unreadable, download=options.download and world.first,
            )
            for split in ("train", "test")
        ]  # fmt: skip

    sets = both() if world.first or not options.download else []
    if options.download:
        barrier(world)
    train_set, test_set = sets or both()
    return train_set, test_set


def resolve(recipe: Recipe, data: ImageSet, device: torch.device) -> Recipe:
    """Return the recipe with everything automatic replaced by what it stands for here."""
    size = recipe.image_size or (224 if isinstance(data, FileSet) else None)
    return replace(recipe, image_size=size, precision=resolve_precision(recipe.precision, device))


def describe(recipe: Recipe, data: ImageSet, epoch: int) -> dict[str, str]:
    """Return what a file of weights says of itself: enough to use it and to measure it."""
    about: dict[str, Any] = {
        "model": recipe.model, "num_classes": data.num_classes, "in_chans": data.in_chans, "classes": data.classes,
        "mean": data.mean, "std": data.std, "recipe": recipe.to_dict(), "epoch": epoch,
        "image_size": recipe.image_size or (data.images.shape[-1] if isinstance(data, ArraySet) else 224),
    }  # fmt: skip
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}


def summary_writer() -> Any:
    """Return the class of TensorBoard's writer.

    Raises:
        InputError: If TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError('--tensorboard needs TensorBoard; install it with pip install "cutmix[tensorboard]"') from None
    return SummaryWriter
