"""Read run folders: the recipe, the log, the results and the predictions. No torch here."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from cutmix.config.recipe import Recipe
from cutmix.config.tasks import TASKS, Captioning, Detection, task_of
from cutmix.errors import InputError
from cutmix.runs.record import Record, Results, read_records
from cutmix.runtime.files import check_fields, kind_of, read_arrays, read_lines, read_object, regular
from cutmix.runtime.terminal import Tabular

Json = dict[str, Any]

NOTHING = "nothing"
"""Value of ``evaluated_on`` in the environment of a run without images to evaluate."""

_RECIPES = {"classification": Recipe, "detection": Detection, "captioning": Captioning}
# Two records with the same values of these fields are the same metric, evaluated twice.
_KEY = ("source", "data", "split", "metric", "which", "weights", "of", "at", "convention", "score", "image_size")


class Config(NamedTuple):
    """The contents of ``config.json``."""

    recipe: Json  # fields of the recipe; for a file of weights, the known fields
    command: str = ""  # the command that started the run; "" if it was not recorded
    evaluated: str | None = None  # file of the evaluated weights; None in the folder of a training run


@dataclass(frozen=True, repr=False)
class Run(Tabular):
    """The contents of a run folder. It is accepted in place of the path of a run, and prints as a table of results."""

    folder: Path
    recipe: Json
    command: str
    environment: Json  # versions, device and commit
    epochs: tuple[Json, ...]  # the last log entry of each epoch, ascending
    # the last record of each metric, in order; those of other data or sizes than the first come last
    results: tuple[Record, ...]
    samples: bytes | None  # the bytes of samples.png
    label: str = ""  # a short name, unique among the runs that were read together
    group: str = ""  # the label of the recipe, which runs that differ only in the seed share
    evaluated: str | None = None  # file of the weights that ``cutmix evaluate`` evaluated; None for a training run

    def __fspath__(self) -> str:
        return str(self.folder)

    def tables(self) -> Iterator[Table | str]:
        """Yield the folder, and the table of the results."""
        yield f"{self.folder}: {len(self.epochs)} epochs" + ("" if self.finished else ", not finished")
        yield from Results(self.results).tables()

    @property
    def task(self) -> str:
        """Task of the run: classification, multilabel, detection or captioning."""
        return str(self.environment.get("task") or task_of(self.recipe))

    @property
    def data(self) -> str:
        """The data set of the results; without results, that of the recipe."""
        if self.results:
            return self.results[0].data
        planned = str(self.recipe.get("data", "unknown data"))
        return planned if task_of(self.recipe) == "classification" else Path(planned).name

    @property
    def finished(self) -> bool:
        """Whether the last planned epoch was evaluated or, without images to evaluate, trained."""
        if self.evaluated:
            return bool(self.results)
        if self.untested:
            return (self.folder / "model.safetensors").is_file()
        epochs = [record.epoch or 0 for record in self.results if record.which == "last" and self.is_own(record)]
        return bool(epochs) and (max(epochs) >= self.recipe.get("epochs", 0) or bool(self.recipe.get("patience")))

    @property
    def untested(self) -> bool:
        """Whether the run has no images to evaluate."""
        return self.environment.get("evaluated_on") == NOTHING

    def result(self, metric: str, which: str) -> Record | None:
        """Return a metric of the "last" or "best" epoch on the run's own test set, of the model before its average."""
        found = {
            record.weights: record
            for record in sorted(self.results, key=lambda record: record.source == "training")  # these come last
            if record.metric == metric and record.which == self.named(which) and self.is_own(record)
        }
        return found.get("model", found.get("ema"))

    def suite(self, name: str, which: str = "last") -> list[Record]:
        """Return the records of a suite, or of a task of transfer, of an epoch on the run's own test set."""
        which = self.named(which)
        return [r for r in self.results if r.suite == name and r.which == which and self.is_own(r)]

    @property
    def predictions(self) -> Path:
        """The file of the predictions after the last epoch."""
        return self.folder / "predictions" / "last.npz"

    def arrays(self, suite: str) -> Path:
        """Return the file of a suite's results for each image; for transfer, the predictions of the training."""
        return self.predictions if suite in TASKS else self.predictions.with_name(f"{suite}-last.npz")

    def named(self, which: str) -> str:
        """Return the value of ``which`` in the results: for a file of weights, that of its records."""
        return self.results[0].which if self.evaluated and self.results else which

    def is_own(self, record: Record) -> bool:
        """Return whether a record is about the run's own test set, at the size of its images."""
        return same_images(record, self.results[0])

    def fact(self, name: str) -> Any:
        """Return a circumstance (device, torch, commit …) from the results, else the environment, else the recipe."""
        own = [record for record in self.results if record.source == "training"]
        for source in (*map(vars, (own or self.results)[-1:]), self.environment, self.recipe):
            if source.get(name) is not None:
                return source[name]
        return None


def same_images(record: Record, first: Record) -> bool:
    """Return whether a record is about the data of a run's first record, at the same size."""
    return record.data == first.data and record.image_size in (None, first.image_size)


def read_runs(folders: Sequence[Path]) -> tuple[Run, ...]:
    """Read run folders, and give each run a unique label."""
    if not folders:
        raise InputError("no run was given; give at least one folder that `cutmix train` wrote")
    repeated = [folder for folder, count in Counter(Path(folder).resolve() for folder in folders).items() if count > 1]
    if repeated:
        raise InputError(f"the run {repeated[0]} is given more than once; give each run folder once")
    runs = [read_run(Path(folder)) for folder in folders]
    for run in runs:
        if run.evaluated and not run.results:
            raise InputError(f"{run.folder} holds an evaluation that has no results yet; evaluate again: {run.command}")
    return _labelled(runs)


def read_run(folder: Path) -> Run:
    """Read one run folder; an unfinished run has fewer epochs and no results."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give a run folder that `cutmix train` wrote")
    check_is_run(folder)
    config = read_config(folder / "config.json")
    log = read_log(folder / "log.jsonl")
    results = read_records(folder / "results.jsonl")
    epochs = {entry["epoch"]: entry for entry in log if entry["kind"] == "epoch"}
    latest: dict[tuple[Any, ...], Record] = {}
    for record in results:
        key = tuple(getattr(record, name) for name in _KEY)
        latest.pop(key, None)  # the later takes its own place, not that of the earlier
        latest[key] = record
    samples = folder / "samples.png"
    return Run(
        folder=folder,
        # an older run may lack fields, which have their defaults
        recipe=({} if config.evaluated else _RECIPES[task_of(config.recipe)]().to_dict()) | config.recipe,
        command=config.command,
        environment=read_environment(folder / "environment.json"),
        epochs=tuple(epochs[epoch] for epoch in sorted(epochs)),
        results=tuple(sorted(latest.values(), key=lambda record: not same_images(record, results[0]))),
        samples=regular(samples).read_bytes() if samples.exists() else None,
        evaluated=config.evaluated,
    )


def check_is_run(folder: Path) -> None:
    """Refuse a folder that holds no run."""
    if (folder / "config.json").is_file():
        return
    if (folder / "fold-1").is_dir():
        raise InputError(f"{folder} holds folds, each of which is a run: give {folder / 'fold-1'} or others")
    raise InputError(f"{folder} has no config.json; expected a run folder that `cutmix train` wrote")


def read_config(path: Path) -> Config:
    """Read the configuration of a run."""
    config = Config(**check_fields(Config, read_object(path), str(path), ("recipe",)))
    check_fields(_RECIPES[task_of(config.recipe)], config.recipe, f"{path}, recipe")
    return config


def read_environment(path: Path) -> Json:
    """Read the versions and the device of a run; empty if the file does not exist."""
    values = read_object(path) if path.exists() else {}
    for name, value in values.items():
        if value is not None and not isinstance(value, str | int | float):
            raise InputError(f"{path}: {name} is {kind_of(value)}; expected a text or a number")
    return values


def read_log(path: Path) -> list[Json]:
    """Read the log of a run: entries with ``kind``, ``epoch``, the evaluated ``split`` and named numbers."""
    entries = read_lines(path)
    for number, entry in enumerate(entries, start=1):
        where = f"{path}, line {number}"
        metrics = {name: value for name, value in entry.items() if name not in _Entry._fields}
        check_fields(_Entry, {name: entry[name] for name in entry if name not in metrics}, where, ("kind", "epoch"))
        for name, value in metrics.items():
            if value is not None and type(value) not in (int, float):
                raise InputError(f"{where}: {name} is {kind_of(value)}; expected a number")
    return entries


class _Entry(NamedTuple):
    kind: str
    epoch: int
    split: str = ""


def tested_alike(runs: Iterable[Run]) -> bool:
    """Return whether runs, of each fold, have the same test images, by the digests in their environments, if any."""
    digests: dict[Any, set[str]] = {}
    for run in runs:
        of_splits = str(run.environment.get("images") or "")
        digests.setdefault(run.recipe.get("fold"), set()).add(of_splits.rpartition("-")[2])  # that of the test split
    return all(len(found - {""}) < 2 for found in digests.values())


def groups(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Return the runs by recipe: each list holds runs that differ only in the seed."""
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(run.group, []).append(run)
    return grouped


def differing_fields(runs: Sequence[Run]) -> list[str]:
    """Return the recipe fields, other than name and seed, in which the runs differ."""
    fields = dict.fromkeys(field for run in runs for field in run.recipe if field not in ("name", "seed", "fold"))
    return [field for field in fields if len({_canonical(run.recipe.get(field)) for run in runs}) > 1]


def _labelled(runs: Sequence[Run]) -> tuple[Run, ...]:
    keys = [_canonical({**run.recipe, "seed": None, "fold": None, "evaluated": run.evaluated}) for run in runs]
    firsts = [runs[keys.index(key)] for key in dict.fromkeys(keys)]
    names = [str(run.recipe.get("name") or run.folder.resolve().name) for run in firsts]
    mixes = [str(run.recipe.get("mix") or "") for run in firsts] if len(firsts) > 1 else [""]
    chosen = _distinct(mixes, _without_shared_parts(names), names, *_with_folders(names, firsts))
    group = dict(zip(dict.fromkeys(keys), chosen, strict=True))
    shared = [group[key] for key in keys]
    seeded = [
        f"{name}, seed {run.recipe.get('seed')}" if shared.count(name) > 1 else name
        for name, run in zip(shared, runs, strict=True)
    ]
    labels = _distinct(shared, seeded, *_with_folders(seeded, runs))
    return tuple(replace(run, label=label, group=name) for run, label, name in zip(runs, labels, shared, strict=True))


def _without_shared_parts(names: Sequence[str]) -> list[str]:
    """Return names without the parts, between hyphens, with which all start or end; each keeps a letter."""
    parts = [name.split("-") for name in names]
    start = _shared(parts)
    while start and not all(map(_has_letter, (each[start:] for each in parts))):
        start -= 1
    rest = [each[start:] for each in parts]
    end = _shared([each[::-1] for each in rest])
    without = [each[: len(each) - end] for each in rest]
    return ["-".join(each) for each in (without if all(map(_has_letter, without)) else rest)]


def _shared(parts: Sequence[Sequence[str]]) -> int:
    """Return with how many equal parts several names start."""
    columns = zip(*parts, strict=False)
    return len([*takewhile(lambda column: len(parts) > 1 and len(set(column)) == 1, columns)])


def _has_letter(parts: Sequence[str]) -> bool:
    return any(character.isalpha() for part in parts for character in part)


def _with_folders(names: Sequence[str], runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """Return the names, with the run's folder after those that occur twice, and all names with the whole path."""
    count, pairs = Counter(names), [*zip(names, runs, strict=True)]
    short = [f"{name} ({run.folder.resolve().name})" if count[name] > 1 else name for name, run in pairs]
    return short, [f"{name} ({run.folder})" for name, run in pairs]


def _distinct(*candidates: list[str]) -> list[str]:
    """Return the first list of names in which none is empty or occurs twice; the last list is of unique paths."""
    return next(names for names in candidates if all(names) and len(set(names)) == len(names))


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


# ---- predictions ----


class Outcome(NamedTuple):
    """The result of a classifier on each image of a test set."""

    labels: np.ndarray  # class ids, (N,) int64
    right: np.ndarray  # whether the prediction is the label, (N,) bool; of equal logits the first counts
    files: np.ndarray  # path of each image below the folder of the data, (N,); empty for sets without files

    def same_images(self, other: "Outcome") -> bool:
        """Return whether two outcomes have the same labels of the same files."""
        return np.array_equal(self.labels, other.labels) and np.array_equal(self.files, other.files)


def read_predictions(path: Path) -> dict[str, np.ndarray]:
    """Read a file of predictions: logits, (N, K), labels, (N,), and others."""
    arrays = read_arrays(path)
    if not {"logits", "labels"} <= arrays.keys():
        raise InputError(f"{path} holds the arrays {', '.join(arrays) or 'none'}; expected logits and labels")
    logits, labels = arrays["logits"], arrays["labels"]
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise InputError(
            f"{path} holds logits of shape {logits.shape} and labels of {labels.shape}; expected (N, K) and (N,)"
        )
    return arrays


def read_outcome(path: Path) -> Outcome:
    """Read the outcome from a file of predictions."""
    arrays = read_predictions(path)
    right = arrays["logits"].argmax(1) == arrays["labels"]
    return Outcome(arrays["labels"], right, arrays.get("files", np.array([], np.str_)))


# ---- a metric over runs ----


class Main(NamedTuple):
    """The metric by which the runs of a task are compared."""

    metric: str  # its name in the results
    label: str  # its name in a sentence
    unit: str  # unit after the number


MAIN = {
    "classification": Main("top1_err", "top-1 error", " %"),
    "multilabel": Main("label_map", "mAP", " %"),
    "detection": Main("map", "mAP", " %"),
    "captioning": Main("cider_d", "CIDEr-D", ""),
}


def baseline_of(runs: Sequence[Run]) -> str:
    """Return the group of the baseline: of the run without mixing that has the fewest regularizers, else the first."""
    unmixed = [run for run in runs if run.recipe.get("mix") == "none"]
    return min(unmixed, key=_regularizers, default=runs[0]).group


def _regularizers(run: Run) -> int:
    """Return how many of the regularizers that are compared with mixing a run has."""
    names = ("label_smoothing", "stochastic_depth", "shake_drop", "drop_block", "random_erasing")
    return sum(bool(run.recipe.get(name)) for name in names) + (run.recipe.get("auto_augment", "none") != "none")
