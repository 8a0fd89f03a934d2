"""Reads what `cutmix train` left in a run folder: the recipe, the log and the measured results.

Nothing here imports torch, so that a page or a table of finished runs is made in a second on any machine.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cutmix.config.recipe import Recipe
from cutmix.config.transfer import TASKS, Captioning, Detection, task_of
from cutmix.errors import InputError
from cutmix.runtime.files import read_lines

Json = dict[str, Any]

_DEFAULTS = {
    "classification": Recipe().to_dict(), "detection": Detection().to_dict(), "captioning": Captioning().to_dict()
}  # fmt: skip
# What makes two lines of results the same measure.
_KEY = ("data", "split", "measure", "which", "weights", "of", "at", "convention", "score")


@dataclass(frozen=True)
class Run:
    """One run folder, read.

    Attributes:
        folder: where it was read from.
        recipe: every field of the recipe that was run.
        command: the command line that started it, "" when it was not recorded.
        environment: versions, device and commit.
        epochs: the log's entry of each epoch in rising order; of an epoch logged twice, the later.
        results: the measures in the order in which they were made; of the same measure made twice, the later. Those
            of other data than the first come last.
        samples: the bytes of samples.png, None when there is none.
        label: a short name, unique among the runs that were read together.
        group: the label of the recipe: runs that differ in nothing but the seed share it.
        evaluated: the file of weights that `cutmix evaluate` measured, where the folder is not a training run's.
    """

    folder: Path
    recipe: Json
    command: str
    environment: Json
    epochs: tuple[Json, ...]
    results: tuple[Json, ...]
    samples: bytes | None
    label: str = ""
    group: str = ""
    evaluated: str | None = None

    @property
    def task(self) -> str:
        """What it learns: classification, detection or captioning."""
        return task_of(self.recipe)

    @property
    def data(self) -> str:
        """The data set that it was measured on, or is to be."""
        if self.results:
            return str(self.results[0].get("data"))
        planned = str(self.recipe.get("data", "unknown data"))
        return planned if self.task == "classification" else Path(planned).name

    @property
    def finished(self) -> bool:
        """Whether the last planned epoch was measured."""
        if self.evaluated:
            return bool(self.results)
        measured = [line.get("epoch") or 0 for line in self.results if line["which"] == "last" and self.is_own(line)]
        return bool(measured) and max(measured) >= self.recipe.get("epochs", 0)

    def result(self, measure: str, which: str) -> Json | None:
        """The line of results.jsonl for a measure on the run's own test set, None when it was not run.

        Args:
            measure: for example "top1_err"; of the model's own weights, or else of the averaged ones.
            which: "last" or "best" epoch.
        """
        found = {
            str(line.get("weights", "model")): line
            for line in sorted(self.results, key=lambda line: "file" not in line)  # the training's own come last
            if line["measure"] == measure and line["which"] == self.named(which) and self.is_own(line)
        }
        return found.get("model", found.get("ema"))

    def suite(self, name: str) -> list[Json]:
        """The lines of a suite after the last epoch, on the run's own test set, in their order.

        Args:
            name: One of the suites of `cutmix evaluate`; "detection" and "captioning" are of a run of transfer itself.
        """
        which = self.named("last")
        return [r for r in self.results if r.get("suite") == name and r["which"] == which and self.is_own(r)]

    def arrays(self, suite: str) -> Path:
        """The file of what a suite found for each image; of transfer it is the training's own."""
        return self.folder / "predictions" / ("last.npz" if suite in TASKS else f"{suite}-last.npz")

    def named(self, which: str) -> str:
        """The name of an epoch in the results: a file of weights is of no known epoch, or of the one that it says."""
        return str(self.results[0]["which"]) if self.evaluated and self.results else which

    def is_own(self, line: Json) -> bool:
        """Whether a line is about the run's own test set."""
        return line.get("data", self.data) == self.data

    def fact(self, name: str) -> Any:
        """A circumstance (device, torch, commit …) as the results say it, or else the environment or the recipe."""
        own = [line for line in self.results if "file" not in line]  # the training's, not a later evaluation's
        for source in (*(own or self.results)[-1:], self.environment, self.recipe):
            if source.get(name) is not None:
                return source[name]
        return None


def read_runs(folders: Sequence[Path]) -> tuple[Run, ...]:
    """Read run folders and give them labels that tell them apart.

    Raises:
        InputError: no folder was given, one is given twice, is missing, is no run folder, is of an evaluation without
            results, or a file in it is damaged.
    """
    if not folders:
        raise InputError("no run was given; give at least one folder that `cutmix train` wrote")
    repeated = [folder for folder, count in Counter(Path(folder).resolve() for folder in folders).items() if count > 1]
    if repeated:
        raise InputError(f"the run {repeated[0]} is given more than once; give each run folder once")
    runs = [read_run(Path(folder)) for folder in folders]
    for run in runs:
        if run.evaluated and not run.results:
            raise InputError(f"{run.folder} holds an evaluation that has no results yet; measure again: {run.command}")
    return _labelled(runs)


def read_run(folder: Path) -> Run:
    """Read one run folder; a run that is still going or was killed has fewer epochs and no results.

    Raises:
        InputError: the folder is missing, is no run folder, or a file in it is damaged.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give a run folder that `cutmix train` wrote")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is no run folder: it has no config.json; give a folder that `cutmix train` wrote")
    config = _read_object(folder / "config.json")
    if not isinstance(config.get("recipe"), dict):
        raise InputError(f"{folder / 'config.json'} has no recipe; expected an object under the key 'recipe'")
    evaluated = str(config["evaluated"]) if "evaluated" in config else None
    environment = folder / "environment.json"
    log = _read_lines(folder / "log.jsonl", {"kind": str, "epoch": int})
    results = _read_lines(
        folder / "results.jsonl",
        {"measure": str, "which": str, "value": int | float | None, "n": int | None, "epoch": int | None},
    )
    epochs = {entry["epoch"]: entry for entry in log if entry["kind"] == "epoch"}
    measures: dict[tuple[Any, ...], Json] = {}
    for line in results:
        key = ("file" in line, *(line.get(name) for name in _KEY))
        measures.pop(key, None)  # the later takes its own place, not that of the earlier
        measures[key] = line
    samples = folder / "samples.png"
    return Run(
        folder=folder,
        recipe=config["recipe"] if evaluated else _with_defaults(config["recipe"]),
        command=str(config.get("command") or ""),
        environment=_read_object(environment) if environment.exists() else {},
        epochs=tuple(epochs[epoch] for epoch in sorted(epochs)),
        results=tuple(sorted(measures.values(), key=lambda line: line.get("data") != results[0].get("data"))),
        samples=samples.read_bytes() if samples.exists() else None,
        evaluated=evaluated,
    )


def _with_defaults(recipe: Json) -> Json:
    """Return a recipe with the fields that an older run lacks."""
    return recipe | {name: value for name, value in _DEFAULTS[task_of(recipe)].items() if name not in recipe}


def groups(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs by recipe: each list holds runs that differ in nothing but the seed."""
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(run.group, []).append(run)
    return grouped


def differing_fields(runs: Sequence[Run]) -> list[str]:
    """The recipe fields, other than its name and the seed, in which the runs are not all alike."""
    fields = dict.fromkeys(field for run in runs for field in run.recipe if field not in ("name", "seed"))
    return [field for field in fields if len({_canonical(run.recipe.get(field)) for run in runs}) > 1]


def _labelled(runs: Sequence[Run]) -> tuple[Run, ...]:
    keys = [_canonical({**run.recipe, "seed": None, "evaluated": run.evaluated}) for run in runs]
    firsts = [runs[keys.index(key)] for key in dict.fromkeys(keys)]
    names = [str(run.recipe.get("name") or run.folder.resolve().name) for run in firsts]
    mixes = [str(run.recipe.get("mix") or "") for run in firsts] if len(firsts) > 1 else [""]
    chosen = _distinct(mixes, names, *_with_folders(names, firsts))
    group = dict(zip(dict.fromkeys(keys), chosen, strict=True))
    shared = [group[key] for key in keys]
    seeded = [
        f"{name}, seed {run.recipe.get('seed')}" if shared.count(name) > 1 else name
        for name, run in zip(shared, runs, strict=True)
    ]
    labels = _distinct(shared, seeded, *_with_folders(seeded, runs))
    return tuple(replace(run, label=label, group=name) for run, label, name in zip(runs, labels, shared, strict=True))


def _with_folders(names: Sequence[str], runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """The names with the run's folder behind those that are there twice, and all with the whole path."""
    count, pairs = Counter(names), [*zip(names, runs, strict=True)]
    short = [f"{name} ({run.folder.resolve().name})" if count[name] > 1 else name for name, run in pairs]
    return short, [f"{name} ({run.folder})" for name, run in pairs]


def _distinct(*candidates: list[str]) -> list[str]:
    """The first list of names in which none is empty and no two are the same; the last list is of unique paths."""
    return next(names for names in candidates if all(names) and len(set(names)) == len(names))


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _read_object(path: Path) -> Json:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}; expected one JSON object") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}; expected one JSON object")
    return value


def _read_lines(path: Path, fields: dict[str, Any]) -> list[Json]:
    """The records of a JSON-lines file; each must have the fields, of these types."""
    entries = read_lines(path)
    for number, entry in enumerate(entries, start=1):
        wrong = [name for name, kind in fields.items() if not isinstance(entry.get(name), kind)]
        if wrong:
            raise InputError(f"{path}, line {number} has {wrong[0]!r} missing or of another type")
    return entries
