"""The folder of a run: its configuration, environment, log, checkpoint, weights and results.

config.json        the resolved recipe, and the command
environment.json   versions, device, commit
log.jsonl          one line every few steps, one per epoch
checkpoint.pt      the state to resume from
model.safetensors  the weights after the last epoch; best.safetensors: of the best one
results.jsonl      one line per metric
predictions/       per-sample logits of the last and the best epoch
samples.png        training images as they were mixed
tracker-NAME.txt   identifier of the run in the tracker of --log
figures/           figures of its results: detections, captions, attention
"""

import io
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from cutmix import __version__
from cutmix.config.recipe import ARRAYS, Recipe, Training, flag
from cutmix.config.tasks import EVALUATE, task_of
from cutmix.errors import InputError
from cutmix.runs.read import NOTHING, check_is_run, read_config, read_environment, read_log
from cutmix.runs.record import Record, read_records
from cutmix.runtime.checkpoint import TIMM_NAMES, read_header, timm_config
from cutmix.runtime.device import device_name
from cutmix.runtime.files import (
    append_line,
    check_fields,
    make_folder,
    open_no_link,
    to_json,
    truncate,
    why_not_written,
    write_atomic,
)

Kind = TypeVar("Kind", bound=Training)

# The files of a run by the folders that hold them; those of an evaluation name its suite, epoch and data.
_SUITE = rf"(?:evaluated|{'|'.join(EVALUATE)})-(?:last|best)\b.*"
_PLACES = {
    "predictions": rf"(?:last|best|best\.next|{_SUITE})\.npz",
    "figures": rf"(?:detections|captions|attention|example-.*|{_SUITE})\.png",
    "tensorboard": r"events\.out\.tfevents\..*",
    "": r"environment\.json|log\.jsonl|checkpoint\.pt|(?:model|best|best\.next)\.safetensors|samples\.png|"
    r"results(?:-\d+-epochs)?\.jsonl|tracker-\w+\.txt",
}
# The files of a run that was killed before it had written its configuration.
_FIRST = re.compile(r"\.lock|environment\.json|\.(environment|config)\.json\.\w+\.tmp")


class RunFolder:
    """The folder of one training run, made if it does not exist, held by one process at a time.

    With ``resume`` the run that the folder holds is continued; with ``overwrite`` it is removed, and nothing else in
    the folder.
    """

    def __init__(self, path: Path, recipe: Training, *, resume: bool, overwrite: bool) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file; expected a folder for the run")
        holds_run = (path / "config.json").exists()
        saved = ("checkpoint.pt", "best.safetensors", "model.safetensors", "results.jsonl")
        if holds_run and not resume and not any((path / name).exists() for name in saved):
            overwrite = True  # it ended before anything was saved: there is nothing to lose
        if holds_run and not (resume or overwrite):
            raise InputError(
                f"{path} already holds a run; continue it with --resume, start again with --overwrite, "
                "or choose another folder with --out"
            )
        if not holds_run and path.exists() and not only_begun(path):
            raise InputError(f"{path} is not empty and holds no run; choose another folder with --out")
        make_folder(path)
        self._lock = hold(path)
        try:
            if holds_run and resume:
                _check_same(recipe, read_recipe(path, type(recipe)), path)
            elif holds_run:
                self._remove_run()
        except InputError:
            self.close()
            raise

    def start(self, recipe: Training, environment: dict[str, Any]) -> None:
        """Write the environment, then the configuration, which makes the folder a run."""
        write_json(self.path / "environment.json", environment)
        write_json(self.path / "config.json", {"recipe": recipe.to_dict(), "command": command_line()})

    def resume(self, recipe: Training) -> list[str]:
        """Write a recipe whose data have moved or that has more epochs than before; return notes on the changes.

        Results from before an extension are kept under another name: they are not of the last epoch.
        """
        config = read_config(self.path / "config.json")
        before = read_recipe(self.path, type(recipe))
        lines = []
        if recipe.data != before.data:
            lines.append(f"the data have moved from {before.data} to {recipe.data}; they are the same")
        if recipe.epochs > before.epochs:
            schedule = getattr(recipe, "schedule", "")
            lines.append(
                f"extended from {before.epochs} to {recipe.epochs} epochs: from here on, the learning rate follows the "
                f"{schedule} schedule of {recipe.epochs} epochs"
            )
            if (results := self.path / "results.jsonl").exists():
                kept = self.path / f"results-{before.epochs}-epochs.jsonl"
                os.replace(results, kept)
                lines.append(f"the results after {before.epochs} epochs are in {kept}")
        if lines:
            write_json(self.path / "config.json", {"recipe": recipe.to_dict(), "command": config.command})
        return lines

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to the log, in which a number that is not finite is null, as JSON has none."""
        lost = {name: None for name, value in record.items() if isinstance(value, float) and not math.isfinite(value)}
        append_line(self.path / "log.jsonl", record | lost)

    def log_size(self) -> int:
        """Return the bytes of the log so far, which a checkpoint remembers."""
        log = self.path / "log.jsonl"
        return log.stat().st_size if log.exists() else 0

    def cut_log(self, size: int) -> None:
        """Remove the lines after a checkpoint: their steps will be run again."""
        log = self.path / "log.jsonl"
        if log.exists() and log.stat().st_size > size:
            truncate(log, size)

    def check_begun(self) -> None:
        """Refuse to start a run whose log has finished epochs: they cannot be resumed without the checkpoint.

        The first one alone is run again: on a full disk or in a killed process its checkpoint was not written.
        """
        epochs = [entry["epoch"] for entry in read_log(self.path / "log.jsonl") if entry["kind"] == "epoch"]
        if max(epochs, default=0) > 1:
            raise InputError(
                f"{self.path} has finished {max(epochs)} epochs, but its checkpoint.pt is missing, so it cannot be "
                "resumed; start again with --overwrite"
            )

    def promote_best(self, epoch: int | None) -> None:
        """Publish the weights and predictions of the best epoch of the last checkpoint, and remove any later ones.

        They are written under another name first, so that a process killed before its checkpoint leaves the earlier
        best unchanged.
        """
        weights = self.path / "best.next.safetensors"
        if not weights.exists():
            return
        predictions = self.path / "predictions/best.next.npz"
        if read_header(weights).epoch != epoch:
            weights.unlink()
            predictions.unlink(missing_ok=True)
            return
        if predictions.exists():
            os.replace(predictions, self.path / "predictions/best.npz")
        os.replace(weights, self.path / "best.safetensors")

    def write_results(self, records: list[Record]) -> None:
        """Write the records of training, keeping those of evaluations."""
        path = self.path / "results.jsonl"
        kept = [record for record in read_records(path) if record.source != "training"]
        write_bytes(path, b"".join(to_json(record.to_json()) for record in [*records, *kept]))

    def _remove_run(self) -> None:
        """Remove the files of a run and its evaluations, but not its configuration, which the next run replaces."""
        found = [part for place in _PLACES for part in (self.path / place).glob("*") if _is_own(place, part.name)]
        first = {"results.jsonl": 0, "checkpoint.pt": 1}  # a process killed meanwhile must not leave a finished run
        for part in sorted(found, key=lambda part: first.get(part.name, 2)):
            try:
                part.unlink(missing_ok=True)
            except OSError as error:
                raise InputError(f"{part} could not be removed: {error.strerror}") from None

    def close(self) -> None:
        """Release the folder."""
        if self._lock is not None:
            self._lock.close()


def _is_own(place: str, name: str) -> bool:
    """Return whether a run or a killed process writes a file of this name in a folder of the run."""
    hidden = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}\.tmp", name)
    return re.fullmatch(_PLACES[place], hidden[1] if hidden else name) is not None


def is_run_file(path: Path) -> bool:
    """Return whether a run keeps this file in its folder."""
    return (path.parent / "config.json").is_file() and (path.name == "config.json" or _is_own("", path.name))


def only_begun(path: Path) -> bool:
    """Return whether a folder without a configuration is empty, or holds only files that are written before it."""
    return all(_FIRST.fullmatch(part.name) for part in path.iterdir())


def is_complete(path: Path) -> bool:
    """Return whether training has written its results, or its weights where there is no image to evaluate.

    A run whose weights or predictions were removed is not complete while its checkpoint can restore them.
    """
    tested = read_environment(path / "environment.json").get("evaluated_on") != NOTHING
    lacking = lacks_outputs(path, tested=tested)
    if not tested or (lacking and (path / "checkpoint.pt").is_file()):
        return not lacking
    return any(record.source == "training" for record in read_records(path / "results.jsonl"))


def lacks_outputs(path: Path, *, tested: bool) -> bool:
    """Return whether the weights or, of a ``tested`` run, the predictions of the last epoch are not in the folder."""
    outputs = ("model.safetensors", "predictions/last.npz")[: 2 if tested else 1]
    return not all((path / name).is_file() for name in outputs)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_bytes(path, to_json(value, indent=1))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically; its folder is made if it does not exist."""
    make_folder(path.parent)
    write_atomic(path, lambda file: file.write(data))


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an npz file atomically; its folder is made if it does not exist."""
    make_folder(path.parent)
    write_atomic(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def find_weights(source: Path, which: str) -> Path:
    """Return the file of weights of a run's last or best epoch, or of a model that timm saved in a folder.

    A file is returned unchanged.
    """
    if which not in ("last", "best"):
        raise InputError(f'which is "{which}"; expected "last" or "best"')
    if not source.exists():
        raise InputError(f"{source} does not exist; expected the folder of a run, or a file of weights")
    if not source.is_dir():
        return source
    if timm_config(source):
        found = [path for name in TIMM_NAMES for path in sorted(source.glob(f"{name}.*"))]
        if not found:
            raise InputError(f"{source} describes a model of timm, but holds no {TIMM_NAMES[0]}.safetensors")
        return found[0]
    last = source / "model.safetensors"
    path = last if which == "last" else source / "best.safetensors"
    if path.exists():
        return path
    if last.exists():
        raise InputError(f"{path} does not exist: no validation images chose a best epoch; use --which last")
    check_is_run(source)
    if is_complete(source):
        raise InputError(
            f"{path} was removed, and so was checkpoint.pt, which --resume would restore it from; train it again with "
            "--overwrite"
        )
    raise InputError(f"{path} does not exist: the run is not finished; continue it with --resume")


def saved_recipe(path: Path) -> Recipe:
    """Return the recipe of the classifier that was trained in a folder."""
    return read_recipe(path, Recipe)


def read_recipe(path: Path, kind: type[Kind]) -> Kind:
    """Return the recipe of the run in a folder; refuse that of another task."""
    check_is_run(path)
    config = path / "config.json"
    recipe = read_config(config).recipe
    if kind is Recipe and task_of(recipe) != "classification":
        raise InputError(f"{path} holds the run of a {task_of(recipe)} task; expected a classifier's run")
    fields = check_fields(kind, recipe, f"{config}, recipe")
    if null := [name for name in ("name", *ARRAYS) if name in fields and fields[name] is None]:
        raise InputError(f"{config}, recipe: {null[0]} is null; expected the value that the run had")
    try:
        return kind(**fields)
    except InputError as error:
        raise InputError(f"{config}, recipe: {error}") from None


def environment(device: torch.device) -> dict[str, Any]:
    """Return the circumstances of a result beside its recipe: versions, device, threads, commit."""
    return {
        "cutmix": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "torchvision", "timm", "numpy")},
        "device": device_name(device),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def commit() -> str | None:
    """Return the commit of the running source, with "+" if files have changed since; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout

    try:
        if Path(git("rev-parse", "--show-toplevel").strip()).resolve() != root:
            return None
        return git("rev-parse", "--short", "HEAD").strip() + (
            "+" if git("status", "--porcelain", "-uno").strip() else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None


TYPED = "CUTMIX_COMMAND"
"""Environment variable of processes that a command starts for parts of its work: the command as it was typed."""


def command_line() -> str:
    """Return the command as it was typed, ``python -m cutmix`` as ``cutmix``; of a calling program, ``python FILE``."""
    if typed := os.environ.get(TYPED):
        return typed
    program = Path(sys.argv[0])
    own = program.stem == "cutmix" or program.parts[-2:] == ("cutmix", "__main__.py")
    return shlex.join([*(["cutmix"] if own else filter(None, ["python", program.name])), *sys.argv[1:]])


def today() -> str:
    """Return the date, ISO 8601."""
    return date.today().isoformat()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _check_same(recipe: Training, saved: Training, path: Path) -> None:
    """Refuse to resume another recipe; epochs may grow, and data may move, as their fingerprint decides."""
    ours, theirs = recipe.to_dict() | {"data": saved.data}, saved.to_dict()
    if recipe.epochs > saved.epochs:
        theirs["epochs"] = recipe.epochs
    different = [f"--{flag(k)} {ours[k]} (there {theirs[k]})" for k in ours if ours[k] != theirs[k]]
    if different:
        raise InputError(f"{path} holds another run: {', '.join(different)}; resume it with its own recipe")


def hold(path: Path, name: str = ".lock") -> io.TextIOWrapper | None:
    """Lock the folder against other processes until the file is closed or the process ends.

    Parts of the folder that are symbolic links are refused.
    """
    for part in (name, "results.jsonl", "log.jsonl", "predictions", "figures", "tensorboard"):
        if (path / part).is_symlink():
            raise InputError(
                f"{path / part} is a symbolic link, and nothing is written through one; choose another --out"
            )
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return None
    try:
        file = open(path / name, "a", opener=open_no_link)  # noqa: SIM115
    except OSError as error:
        raise InputError(f"{path / name} cannot be written to: {why_not_written(error)}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if isinstance(error, BlockingIOError):
            reason = "is being written by another process; wait for it, or choose another --out"
        else:
            reason = f"cannot be locked ({error.strerror}); choose another --out"
        raise InputError(f"{path} {reason}") from None
    return file
