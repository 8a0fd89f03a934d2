"""The one loop, read from top to bottom: ``cutmix train``, or ``torchrun --nproc-per-node N -m cutmix train``."""

import json
import math
import shlex
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cutmix.checkpoint import load_checkpoint, save_checkpoint, save_weights
from cutmix.data import ArraySet, ImageSet
from cutmix.distributed import any_process, average_loss, barrier, gather, processes, send_buffers, without_sync
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
from cutmix.optim import learning_rate, set_learning_rate
from cutmix.options import TrainOptions
from cutmix.preparation import Run, prepare, summary_writer
from cutmix.preview import preview_grid
from cutmix.recipe import Recipe
from cutmix.run_folder import RunFolder, command_line, has_results, read_arrays, today
from cutmix.signals import Stop, remembered_signals
from cutmix.state import image_mixing, restore, take_snapshot


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
    options = options or TrainOptions()
    with processes(options.device) as world:
        return run_to_end(prepare(recipe, options, world))


def run_to_end(run: Run) -> Path:
    """Train what is prepared, from its start or from its checkpoint, and return its folder; raises as ``train``."""
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


def describe(recipe: Recipe, data: ImageSet, epoch: int) -> dict[str, str]:
    """Return what a file of weights says of itself: enough to use it and to measure it."""
    about: dict[str, Any] = {
        "model": recipe.model, "num_classes": data.num_classes, "in_chans": data.in_chans, "classes": data.classes,
        "mean": data.mean, "std": data.std, "recipe": recipe.to_dict(), "epoch": epoch,
        "image_size": recipe.image_size or (data.images.shape[-1] if isinstance(data, ArraySet) else 224),
    }  # fmt: skip
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
