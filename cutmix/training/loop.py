"""The one loop, read from top to bottom: ``cutmix train``, or ``torchrun --nproc-per-node N -m cutmix train``."""

import copy
import math
import shlex
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from cutmix.config.options import RunOptions, TrainOptions
from cutmix.config.recipe import Recipe
from cutmix.config.recipes import recipe_changes
from cutmix.errors import InputError
from cutmix.runs.folder import RunFolder, command_line, is_complete, lacks_outputs, today, write_arrays, write_bytes
from cutmix.runs.record import Record, with_interval
from cutmix.runtime.checkpoint import copy_state, load_checkpoint, save_checkpoint
from cutmix.runtime.device import (
    Vote,
    all_finite,
    any_process,
    arithmetic,
    average_loss,
    check_same_data,
    describe_precision,
    from_first,
    gather,
    processes,
    restarts,
    training_attention,
    without_sync,
)
from cutmix.runtime.files import read_arrays
from cutmix.runtime.terminal import Stop, remembered_signals
from cutmix.runtime.weights import load_weights, read_weights, save_weights
from cutmix.training.classification import Evaluation
from cutmix.training.setup import Run, compiled, prepare
from cutmix.training.state import freeze_backbone, learning_rate, restore, set_learning_rate, take_snapshot
from cutmix.training.trackers import open_tracker

Options = TypeVar("Options", bound=RunOptions)


def run_training(recipe: Recipe, options: TrainOptions | None = None, stop: Stop | None = None) -> Path:
    """Train a recipe, evaluate it after each epoch, and return the folder of the run.

    After SIGTERM, SIGHUP or Ctrl-C and a checkpoint, SystemExit is raised with 128 + the signal's number.
    A signal after the last step does not end the run: ``stop`` has its number.
    """
    options = after_restart(options or TrainOptions())
    with processes(options.device, options.timeout) as world:
        return run_to_end(prepare(recipe, options, world), stop)


def run_to_end(run: Run, stop: Stop | None = None) -> Path:
    """Train a prepared run, from its start or its checkpoint, and return its folder."""
    try:
        if begin(run):
            return run.path
        with remembered_signals(stop) as stop, run.progress, arithmetic(run.recipe.precision, run.world.device):
            while not is_over(run):
                train_epoch(run, run.state.epoch, stop)
                if is_evaluated(run, run.state.epoch + 1):
                    save(run, background=True)  # an evaluation can take long or fail
                record = evaluate_epoch(run)
                save(run)
                run.progress.show_epoch(record)  # printing may fail, as on a closed pipe
            finish(run)
    finally:
        try:
            run.writing.wait()
        finally:
            if run.board:
                run.board.close()
            if run.folder:
                run.folder.close()
    return run.path


def train_epoch(run: Run, epoch: int, stop: Stop) -> None:
    """Train on the rest of an epoch; log, save and stop between two steps."""
    recipe, options, state, world = run.recipe, run.options, run.state, run.world
    run.network.train()
    if isinstance(recipe, Recipe) and recipe.freeze:
        freeze_backbone(state.network, state.optimizer, frozen=epoch < recipe.freeze)
    run.progress.start_epoch()
    vote, clock = Vote(world), time.perf_counter()
    for images, labels in run.batches.epoch(epoch, start=state.step_in_epoch):
        lr = learning_rate(recipe, state.step, run.batches.steps)
        set_learning_rate(state.optimizer, lr)
        run.unread.append((train_step(run, images, labels), len(images)))
        state.step += 1
        state.step_in_epoch += 1
        run.progress.step(len(images) * world.size)
        if state.step % options.log_every == 0:
            log_step(run, epoch, lr)
        last = state.step_in_epoch == run.batches.steps
        stopping = vote.ask(stop.number is not None) or (last and vote.answer())
        due = options.checkpoint_every and state.step % options.checkpoint_every == 0
        if stopping or (due and not last):
            state.seconds += time.perf_counter() - clock
            save(run, background=not stopping)
            clock = time.perf_counter()
        if stopping:
            run.progress.say(
                f"stopped at step {state.step} in epoch {epoch + 1}; "
                f"{run.task.command} --resume --out {shlex.quote(str(run.path))} resumes the run"
            )
            raise SystemExit(128 + (stop.number or signal.SIGTERM))
    check_finite(run)
    state.seconds += time.perf_counter() - clock


def train_step(run: Run, images: Any, targets: Any) -> Tensor:
    """Take one optimizer step on a batch, and return its mean loss without waiting for the device."""
    recipe, state = run.recipe, run.state
    state.optimizer.zero_grad(set_to_none=True)
    # the batch is mixed here, as a whole, and then divided
    parts = run.task.split(images, targets, state.step / (recipe.epochs * run.batches.steps))
    total = torch.zeros((), device=run.world.device)
    for number, (x, y) in enumerate(parts, 1):
        attention = training_attention(recipe.precision, run.world.device)
        with without_sync(run.network, number < len(parts)), attention:
            loss = run.task.loss(run.network, x, y) * (len(x) / len(images))
            state.scaler.scale(loss).backward()
        total += loss.detach()
    if recipe.clip_grad_norm:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip_grad_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.average:
        state.average.update(state.network)
    return total


def read_losses(run: Run) -> None:
    """Read the losses since the last read and add them one by one: the sums do not depend on when they are read."""
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
    """Check the losses and the weights before they are saved or evaluated, so that every checkpoint is finite.

    A finite loss can have an infinite gradient, which makes the weights infinite.
    """
    read_losses(run)
    if any_process(not all_finite(run.state.model.state_dict().values()), run.world):
        raise diverged(run, "the weights are not finite", run.state.step - 1)


class DivergedError(InputError):
    """The loss or the weights of a run are not finite; raised in all processes at the same step."""


def diverged(run: Run, what: str, step: int) -> DivergedError:
    """Return the error of a diverged run, with the step, the learning rate and the last good checkpoint."""
    lr = learning_rate(run.recipe, step, run.batches.steps)
    run.writing.wait()
    good = f"the last good checkpoint is {run.checkpoint}" if run.checkpoint.exists() else "no checkpoint was saved"
    return DivergedError(f"{what} at step {step + 1}, with learning rate {lr:.4g}; {good}")


def log_step(run: Run, epoch: int, lr: float) -> None:
    """Show and log the mean loss since the last logged step of the epoch."""
    read_losses(run)
    loss = run.state.recent_sum / run.state.recent_seen
    run.state.recent_sum, run.state.recent_seen = 0.0, 0
    speed = run.progress.images_per_second()
    run.progress.show(epoch + 1, run.state.step, loss, lr)
    record = {"epoch": epoch + 1, "step": run.state.step, "loss": loss, "lr": lr, "images_per_second": speed}
    log(run, {"kind": "train"} | record)


def evaluate_epoch(run: Run) -> dict[str, Any]:
    """End an epoch: evaluate it if the recipe asks for it, log it, keep the best epoch; return the line of the log."""
    recipe, state = run.recipe, run.state
    record = {
        "kind": "epoch", "epoch": state.epoch + 1, "step": state.step,
        "lr": learning_rate(recipe, state.step - 1, run.batches.steps),
        "train_loss": average_loss(state.loss_sum, state.seen, run.world), "seconds": round(state.seconds, 3),
    }  # fmt: skip
    if speed := run.progress.images_per_second():  # 0 where the epoch was resumed after its last step
        record["images_per_second"] = speed
    state.epoch, state.step_in_epoch, state.loss_sum, state.seen = state.epoch + 1, 0, 0.0, 0
    state.recent_sum, state.recent_seen = 0.0, 0
    chosen_on, reported_on = run.task.chosen_on, run.task.reported_on
    if chosen_on and is_evaluated(run, state.epoch):
        metrics, arrays = evaluate(run, chosen_on)
        record |= {"split": chosen_on, **metrics}
        if is_best(run, metrics):
            state.best = {"epoch": state.epoch, **metrics}
            same = arrays if chosen_on == reported_on else None
            keep(run, same, "best.next", "best.next.safetensors")  # published with the checkpoint
        if is_over(run) and chosen_on == reported_on:
            keep(run, arrays, "last", "model.safetensors")
    if is_over(run) and reported_on is None:
        if state.average:
            state.average.copy_counters(state.network)
        keep(run, None, "last", "model.safetensors")
    elif is_over(run) and reported_on and chosen_on != reported_on:
        metrics, arrays = evaluate(run, reported_on)
        keep(run, arrays, "last", "model.safetensors")
        record = record if chosen_on else record | {"split": reported_on, **metrics}
    log(run, record)
    return record


def is_over(run: Run) -> bool:
    """Return whether the last epoch is done, or --patience ended the run at an evaluation: by the checkpoint alone."""
    state, patience = run.state, getattr(run.recipe, "patience", 0)
    waited = state.epoch - state.best["epoch"] if state.best and is_evaluated(run, state.epoch) else 0
    return state.epoch >= run.recipe.epochs or 0 < patience <= waited


def is_evaluated(run: Run, epoch: int) -> bool:
    """Return whether an epoch, counted from 1, ends with an evaluation; the last one always does."""
    return epoch == run.recipe.epochs or (run.task.chosen_on is not None and epoch % run.recipe.eval_every == 0)


def evaluated_batches(run: Run) -> int:
    """Return how many batches a run evaluates: at each evaluation, and of the test images at the end."""
    recipe, task = run.recipe, run.task
    trained_on = getattr(task, "train_batches", None)  # with --train-error
    seen: int = trained_on.steps if trained_on else 0  # after every pass over validation or test images
    models = 2 if run.state.average else 1  # the moving average, and the model itself
    batches = 0
    if chosen := task.chosen_on and (task.val_batches or task.test_batches):
        batches += -(-recipe.epochs // recipe.eval_every) * models * (chosen.steps + seen)
    if task.test_batches and task.chosen_on != task.reported_on:  # the last epoch, and the best one's weights
        batches += (models + bool(chosen)) * (task.test_batches.steps + seen)
    return batches


def evaluate(run: Run, split: str) -> Evaluation:
    """Evaluate the model that is exported; where that is the moving average, add the metrics of the model itself."""
    state, task = run.state, run.task
    network = compiled(state.network, run.recipe)
    if not state.average:
        return task.evaluate(network, split)
    state.average.copy_counters(state.network)
    itself = task.evaluate(network, split).metrics
    metrics, arrays = task.evaluate(compiled(state.average.module, run.recipe), split)
    return Evaluation(metrics | {f"model_{name}": value for name, value in itself.items()}, arrays)


def evaluate_best(run: Run) -> None:
    """Evaluate the weights of the best epoch on the reported split, if another split chose the epoch."""
    reported_on = run.task.reported_on
    if not run.state.best or reported_on is None or run.task.chosen_on == reported_on:
        return
    best = copy.deepcopy(run.state.exported)
    load_weights(best, from_first(lambda: read_weights(run.path / "best.safetensors"), run.world))
    arrays = run.task.evaluate(best, reported_on).arrays
    if run.folder:
        write_arrays(run.path / "predictions/best.npz", arrays)


def is_best(run: Run, metrics: dict[str, float]) -> bool:
    """Return whether an epoch is better than all before it, or the first."""
    value, best = metrics[run.task.key], run.state.best.get(run.task.key)
    return best is None or (value < best if run.task.less_is_better else value > best)


def keep(run: Run, arrays: dict[str, np.ndarray] | None, which: str, weights: str) -> None:
    """Write the outputs for each sample of the reported split, if given, and the weights that produced them."""
    if run.folder:
        if arrays is not None:
            write_arrays(run.path / f"predictions/{which}.npz", arrays)
        about = run.task.about(run.state.epoch) | {"weights": run.state.exported_kind}
        save_weights(run.path / weights, run.state.exported.state_dict(), about)


def save(run: Run, *, background: bool = False) -> None:
    """Write a checkpoint; every process takes part, the first one writes, in the background on request.

    A request for the background never comes with a new best epoch.
    """
    check_finite(run)
    snapshot = take_snapshot(run.state, run.world)
    if run.folder:
        snapshot |= {"log_size": run.folder.log_size(), "data": run.fingerprint}
        run.writing.wait()
        if background:
            run.writing.start(partial(save_checkpoint, run.checkpoint, copy_state(snapshot)))
            return
        save_checkpoint(run.checkpoint, snapshot)
        run.folder.promote_best(run.state.best.get("epoch"))


def log(run: Run, record: dict[str, Any]) -> None:
    """Append to the log, and to the tracker of ``--log``."""
    if run.folder:
        run.folder.log(record)
    if run.board:
        for name, value in record.items():
            if isinstance(value, float):
                run.board.add_scalar(f"{record['kind']}/{name}", value, run.state.step)


def finish(run: Run) -> None:
    """Write the results, and print where weights and results are; restore what was removed since the checkpoint."""
    reported_on = run.task.reported_on
    if from_first(lambda: lacks_outputs(run.path, tested=reported_on is not None), run.world):
        arrays = evaluate(run, reported_on).arrays if reported_on else None
        keep(run, arrays, "last", "model.safetensors")
    evaluate_best(run)
    if not run.folder:
        return
    if run.task.reported_on:
        write_records(run, run.folder)
    kind = "the moving average of the weights" if run.state.average else "the weights"
    run.progress.say(f"{run.path / 'model.safetensors'} holds {kind} after the last epoch")
    if run.task.reported_on:
        run.progress.say(f"results in {run.path}; cutmix report {run.path} makes a page of them")
    else:
        run.progress.say(f"no test result; cutmix evaluate {run.path} --data FOLDER evaluates it on other images")


def write_records(run: Run, folder: RunFolder) -> None:
    """Write and print the records of the last epoch, and of the best one where there is one."""
    recipe = run.recipe
    common: dict[str, Any] = {
        "source": "training", "recipe": recipe.name, "recipe_changes": recipe_changes(recipe), "data": run.data,
        "split": run.task.reported_on, "model": recipe.model, **run.task.circumstances(), "epochs": recipe.epochs,
        "seed": recipe.seed, "weights": run.state.exported_kind,
        "precision": recipe.precision, "processes": run.world.size, "seconds": round(run.state.seconds, 1),
        **{name: run.about[name] for name in ("parameters", "commit", "torch", "device")}, "date": today(),
        "command": command_line(),
    }  # fmt: skip
    records: list[Record] = []
    epochs: dict[str, dict[str, Any]] = {"last": {"epoch": run.state.epoch}}
    if run.state.best:
        epochs["best"] = {"epoch": run.state.best["epoch"], "chosen_on": run.task.chosen_on}
    for which, epoch in epochs.items():
        arrays = read_arrays(run.path / f"predictions/{which}.npz")
        fields = common | {"which": which} | epoch
        records += [replace(record, **fields) for record in run.task.records(arrays)]
        for name, png in run.task.figures(arrays).items() if which == "last" else ():
            write_bytes(run.path / f"figures/{name}.png", png)
    folder.write_results(records)
    for record in records:
        if record.metric == run.task.key:
            result = f"{run.task.title} on {record.split} {with_interval(record, unit=run.task.unit)}"
            chosen = f", chosen on {record.chosen_on}" if record.chosen_on else ""
            run.progress.say(f"{record.which} epoch ({record.epoch}{chosen}): {result}")


def begin(run: Run) -> bool:
    """Lock the folder, and start the run's files or resume from its checkpoint; return whether the run is finished."""
    recipe, options = run.recipe, run.options
    snapshot, finished = from_first(lambda: take_hold(run), run.world)
    run.progress.say(
        f"{recipe.name}: {recipe.model}, {run.task.opening()}; {run.world.device.type}, "
        f"{describe_precision(recipe.precision, run.world.device)}"
    )
    for line in run.notes:
        run.progress.say(line)
    for note in run.task.notes():
        run.progress.say(f"note: {note}")
    check_same_data(run.fingerprint, recipe.data, run.world)
    if snapshot is not None:
        if "data" not in snapshot:
            raise InputError(f"{run.checkpoint} is not one of this run: it has no fingerprint of the training images")
        if snapshot["data"] != run.fingerprint:
            what = "images, or --class-weights other values," if getattr(recipe, "class_weights", None) else "images"
            raise InputError(f"{recipe.data} has other {what} than when the run in {run.path} was started")
        restore(run.state, snapshot, run.world)
        if run.folder:
            for line in run.folder.resume(recipe):
                run.progress.say(line)
            run.folder.promote_best(run.state.best.get("epoch"))
        if is_over(run) and finished:
            run.progress.say(f"{run.path} is finished")
            return True
        if run.folder:
            run.folder.cut_log(snapshot["log_size"])
        run.progress.say(f"resuming after step {run.state.step}")
    elif finished:
        run.progress.say(f"{run.path} is finished")
        return True
    elif run.folder:
        run.folder.check_begun()
        run.folder.cut_log(0)
        run.folder.start(recipe, run.about)
        if samples := run.task.samples():
            write_bytes(run.path / "samples.png", samples)
    if options.log and run.folder:
        run.board = open_tracker(options.log, recipe, run.path, step=run.state.step)
    return False


def take_hold(run: Run) -> tuple[dict[str, Any] | None, bool]:
    """Hold the folder in the first process; return its checkpoint, if any, and whether training has its results."""
    run.folder = RunFolder(run.path, run.recipe, resume=run.options.resume, overwrite=run.options.overwrite)
    return load_checkpoint(run.checkpoint) if run.checkpoint.exists() else None, is_complete(run.path)


def after_restart(options: Options) -> Options:
    """Return options that resume a run whose processes ``torchrun --max-restarts`` has restarted."""
    return replace(options, resume=True, overwrite=False) if restarts() else options
