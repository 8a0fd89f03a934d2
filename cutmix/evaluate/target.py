"""Where the results of an evaluation go: into the run's folder, a folder of their own, or one JSON-lines file."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutmix.config.options import EvaluateOptions
from cutmix.errors import InputError
from cutmix.evaluate.classifier import Suite
from cutmix.evaluate.load import Subject
from cutmix.runs.folder import command_line, environment, hold, only_begun, write_arrays, write_bytes, write_json
from cutmix.runtime.distributed import World
from cutmix.runtime.files import append_lines, read_lines


@dataclass(frozen=True)
class Target:
    """An open place for results.

    Attributes:
        lines: The JSON-lines file, or None.
        folder: The folder for what came out for each image, or None.
        own: Whether that folder is the evaluation's own and not a run's, whose predictions are its training's.
    """

    lines: Path | None
    folder: Path | None
    own: bool = False

    def write(self, name: str, records: list[dict[str, Any]], suite: Suite) -> None:
        """Write a suite: what came out for each image to predictions/NAME.npz, pictures, then all its lines or none."""
        if self.folder:
            if suite.arrays:
                write_arrays(self.folder / "predictions" / f"{name}.npz", suite.arrays)
            for title, png in suite.pictures.items():
                write_bytes(self.folder / "pictures" / f"{name}-{title}.png", png)
        if self.lines:
            append_lines(self.lines, records)


@contextlib.contextmanager
def open_target(options: EvaluateOptions, subject: Subject, world: World) -> Iterator[Target]:
    """Open the place for results, held against other processes while it is open.

    ``--out`` with the ending .jsonl is a file that lines are appended to; any other is a folder of the evaluation's
    own, which ``cutmix report`` reads like a run's. Without it the results of a run go into its folder, and those of a
    file of weights are only shown.

    Raises:
        InputError: If the folder holds something else, or another process is writing to it.
    """
    out = options.out
    if not world.first or (out is None and subject.run is None):
        yield Target(None, None)
        return
    if out is not None and out.suffix == ".jsonl":
        _check_lines(out)
        yield Target(out, None)
        return
    folder = out or subject.run
    assert folder is not None
    if out is not None:
        _check(out, subject)
    lock = hold(folder)
    try:
        read_lines(folder / "results.jsonl")  # damaged, it is to be mended now, and not after minutes
        if out is not None:
            recipe = subject.recipe.to_dict() if subject.recipe else {"name": subject.weights.stem}
            recipe |= {name: value for name in ("model", "data") if (value := getattr(options, name))}
            config = {"recipe": recipe, "command": command_line(), "evaluated": str(subject.weights)}
            write_json(out / "environment.json", environment(world.device))
            write_json(out / "config.json", config)
        yield Target(folder / "results.jsonl", folder, own=out is not None)
    finally:
        if lock is not None:
            lock.close()


def _check_lines(path: Path) -> None:
    """See that lines can be appended to a file, before they are measured."""
    if path.is_dir() or not path.parent.is_dir():
        what = f"{path} is a folder" if path.is_dir() else f"{path.parent} is not there"
        raise InputError(f"{what}; give --out a file that ends in .jsonl, in a folder that exists")
    read_lines(path)


def _check(folder: Path, subject: Subject) -> None:
    """See that a folder is new, or holds an evaluation of the same weights."""
    config = folder / "config.json"
    if folder.is_file():
        raise InputError(f"{folder} is a file; give --out a folder, or a file that ends in .jsonl")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = json.loads(config.read_text()).get("evaluated") if config.exists() else None
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{folder} cannot be used for results: {error}; give another --out") from None
    if config.exists() and held != str(subject.weights):
        what = f"an evaluation of {held}" if held else "a run"
        raise InputError(f"{folder} holds {what}; give another --out, or a file that ends in .jsonl")
    if not config.exists() and not only_begun(folder):
        raise InputError(f"{folder} is not empty and holds no evaluation; give another --out")
