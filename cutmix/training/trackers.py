"""Experiment trackers of ``--log``: each behind its extra, with the two methods of TensorBoard's writer."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from cutmix.config.recipe import Training
from cutmix.errors import InputError, missing_extra
from cutmix.runtime.files import write_atomic


class Tracker(Protocol):
    """An experiment tracker, such as TensorBoard."""

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Log a number at an optimizer step."""

    def close(self) -> None:
        """Write the remaining entries."""


def check_tracker(name: str | None, path: Path | None) -> None:
    """Import the package of a tracker, or raise an InputError; the folder's name is checked if it is known."""
    if name is not None:
        _import(name)
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise InputError(
                f"--log {name} needs a folder with a UTF-8 name, and {path} has none; give another --out"
            ) from None


def open_tracker(name: str, recipe: Training, path: Path, *, step: int) -> Tracker:
    """Return the tracker of a run: "tensorboard", "wandb", "mlflow" or "trackio".

    ``tracker-NAME.txt`` in the folder names the tracked run, which a resumed run continues. After ``step``, the number
    of optimizer steps done before, TensorBoard drops older entries.
    """
    check_tracker(name, path)
    package, settings = _import(name), recipe.to_dict()
    kept = path / f"tracker-{name}.txt"
    known = kept.read_text(encoding="utf-8").strip() if kept.is_file() else None
    made = known or secrets.token_hex(6)  # as folders of one name are different runs
    with _in_a_sentence(name, "started"):
        if name == "tensorboard":
            return _Service(name, package.SummaryWriter(str(path / "tensorboard"), purge_step=step + 1))
        if name == "mlflow":
            package.set_experiment("cutmix")
            made = package.start_run(run_id=known, run_name=path.name).info.run_id
            if not known:  # MLflow refuses changed parameters
                package.log_params(settings)
        elif name == "wandb":
            package.init(project="cutmix", name=path.name, id=made, resume="allow", dir=str(path), config=settings)
        else:
            package.init(project="cutmix", name=f"{path.name}-{made}", resume="allow", config=settings)
        write_atomic(kept, lambda file: file.write(made.encode()))
    return _Service(name, package)


@contextmanager
def _in_a_sentence(name: str, done: str) -> Iterator[None]:
    """Turn any error of a tracker, such as that of a disk, a network or a server, into an InputError."""
    try:
        yield
    except Exception as error:
        raise InputError(f"--log {name} could not be {done}: {' '.join(str(error).split())}") from None


class _Service:
    """TensorBoard's writer; or wandb, trackio or MLflow, which keep the current run in their module."""

    def __init__(self, name: str, package: Any) -> None:
        self.name, self.package = name, package

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        with _in_a_sentence(self.name, "written"):
            if self.name == "tensorboard":
                self.package.add_scalar(tag, value, step)
            elif self.name == "mlflow":
                self.package.log_metric(tag, value, step=step)
            else:
                self.package.log({tag: value}, step=step)

    def close(self) -> None:
        with _in_a_sentence(self.name, "written"):
            getattr(self.package, {"tensorboard": "close", "mlflow": "end_run"}.get(self.name, "finish"))()


def _import(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module("torch.utils.tensorboard" if name == "tensorboard" else name)
    except ImportError:
        raise missing_extra(f"--log {name}", name) from None
