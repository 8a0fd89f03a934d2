"""The line of a results file: one type, one writer, one reader. No torch here."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol

from rich.table import Table
from rich.text import Text

from cutmix.errors import InputError
from cutmix.runtime.files import append_lines, check_fields, read_lines
from cutmix.runtime.terminal import Tabular

SCHEMA = 1

Source = Literal["training", "evaluation"]
Task = Literal["classification", "multilabel", "detection", "captioning"]
Which = Literal["last", "best", "file"]

# Fields that every line has, though others may be left out.
_ALWAYS = ("source", "task", "recipe", "data", "split", "which", "metric", "value")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One metric of one run: a line of ``results.jsonl``.

    A suite fills in the metric; the run that it belongs to adds the rest with ``dataclasses.replace``. A value that is
    not finite is stored as None, with a note.

    Attributes:
        source: Whether the run's own training wrote the record, or a later evaluation.
        task: What the model was trained for; "multilabel" where an image can have several labels.
        recipe: Name of the recipe; of a file of weights that names none, the name of the file.
        recipe_changes: Fields in which the run's recipe differs from the named one, with their values; None where no
            recipe has this name.
        data: Name of the test data.
        split: "test", "val" or "all".
        fold: Of a cross-validation: "2 of 5", or "mean of 5".
        which: "last" or "best" epoch of a run, or "file" for a file of weights.
        epoch: Number of that epoch, from 1.
        metric: Name of the metric, such as "top1_err".
        value: The result in the metric's unit; None where it was not run.
        low: Lower end of the interval; None without an interval.
        high: Upper end of the interval.
        few: Whether the interval is of too few images to be trusted; see ``statistics.too_narrow``.
        confidence: Confidence of the interval, in (0, 1).
        n: Number of images, or of objects, that the metric is computed on.
        suite: Suite of ``cutmix evaluate`` or task of ``cutmix transfer``; None for the errors of training.
        of: What else the metric depends on: a set of outliers, a fill, a class, a corruption.
        at: Where the metric is taken: ε, a side in pixels, λ, a threshold or a temperature.
        convention: Convention of out-of-distribution detection.
        score: Score of out-of-distribution detection.
        chosen_on: Split on which the threshold, or the best epoch of a training, was chosen.
        bins: Number of calibration bins.
        steps: Steps of an attack.
        note: What limits the result, in words.
        model: Name of the model.
        arch: Detector or captioner on the backbone.
        mix: The recipe's mixing method.
        weights: "model", or "ema" for the moving average.
        parameters: Number of parameters.
        epochs: Epochs of the recipe.
        seed: Seed of the training run.
        backbone: File of the backbone's weights, "pretrained" or "none".
        backbone_recipe: Recipe of the backbone.
        training_images: Number of training images; of a detector or a captioner.
        beam: Width of the beam search.
        image_size: Side of the model's input in pixels.
        precision: Arithmetic of the forward pass.
        decoder: How JPEG files were decoded: "exact" or "fast"; None for small images.
        drawn: Number of images drawn from the test set; None for all.
        draw_seed: Seed of everything that an evaluation draws.
        test_images: Number of images of the whole test set; an evaluation may use fewer.
        classes: Number of classes; with five or fewer, a top-5 error is not applicable.
        skipped: Number of unreadable images left out.
        file: File of the evaluated weights.
        processes: Number of processes.
        seconds: Duration of the training.
        commit: Commit of the source.
        torch: Version of torch.
        device: Name of the device.
        date: ISO 8601.
        command: The command as it was typed.
    """

    source: Source = "evaluation"
    task: Task = "classification"
    recipe: str = ""
    recipe_changes: Mapping[str, Any] | None = None
    data: str = ""
    split: str = ""
    fold: str | None = None
    which: Which = "last"
    epoch: int | None = None
    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None
    few: bool = False
    confidence: float = 0.95
    n: int | None = None
    suite: str | None = None
    of: str | None = None
    at: float | None = None
    convention: str | None = None
    score: str | None = None
    chosen_on: str | None = None
    bins: int | None = None
    steps: int | None = None
    note: str | None = None
    model: str | None = None
    arch: str | None = None
    mix: str | None = None
    weights: Literal["model", "ema"] = "model"
    parameters: int | None = None
    epochs: int | None = None
    seed: int | None = None
    backbone: str | None = None
    backbone_recipe: str | None = None
    training_images: int | None = None
    beam: int | None = None
    image_size: int | None = None
    precision: str | None = None
    decoder: str | None = None
    drawn: int | None = None
    draw_seed: int | None = None
    test_images: int | None = None
    classes: int | None = None
    skipped: int | None = None
    file: str | None = None
    processes: int | None = None
    seconds: float | None = None
    commit: str | None = None
    torch: str | None = None
    device: str | None = None
    date: str | None = None
    command: str | None = None

    def __post_init__(self) -> None:
        values = {name: None if (x := getattr(self, name)) is None else float(x) for name in ("value", "low", "high")}
        if values["value"] is not None and not math.isfinite(values["value"]):
            note = f"the {self.metric} is {values['value']}, so there is no result"
            values = dict.fromkeys(values, None) | {"note": f"{self.note}; {note}" if self.note else note}
        elif not all(x is None or math.isfinite(x) for x in values.values()):
            values |= {"low": None, "high": None}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def usual(self) -> bool:
        """Whether score and convention are the usual ones: the largest softmax probability, metrics by definition."""
        return self.convention in (None, "exact") and self.score in (None, "max-softmax")

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object, without fields that are None or false, apart from the value."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"schema": SCHEMA} | {k: v for k, v in values.items() if not (v is None or v is False) or k in _ALWAYS}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> "Record":
        """Return the record of a JSON object; ``where`` names the file and the line."""
        version = values.get("schema")
        if version != SCHEMA or isinstance(version, bool):
            raise InputError(f"{where}: schema is {version!r}; expected {SCHEMA}, the version that this cutmix writes")
        own = {name: value for name, value in values.items() if name != "schema"}
        return cls(**check_fields(cls, own, where, _ALWAYS))


def read_records(path: Path) -> list[Record]:
    """Return the records of a results file; none if the file does not exist."""
    return [Record.from_json(values, f"{path}, line {n}") for n, values in enumerate(read_lines(path), start=1)]


def append_records(path: Path, records: Iterable[Record]) -> None:
    """Append records to a results file, all or none."""
    append_lines(path, (record.to_json() for record in records))


# ---- results as text ----


class _Result(Protocol):
    """A value with its interval: a record, an estimate, a difference."""

    @property
    def value(self) -> float | None: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


def number(value: float, form: str = ".2f") -> str:
    """Return a number in a format such as ".2f" or "+.1f", with a minus sign."""
    return f"{value:{form}}".replace("-", "−")


def with_interval(found: _Result | None, form: str = ".2f", unit: str = "") -> str:
    """Return a value with its interval, "31.20 [30.10, 32.40]", or "not run"; the unit follows the value."""
    if found is None or found.value is None:
        return "not run"
    text = number(found.value, form) + unit
    if found.low is None or found.high is None:
        return text
    text += f" [{number(found.low, form)}, {number(found.high, form)}]"
    return f"{text} (too few images)" if getattr(found, "few", False) else text


class Results(Tabular, list[Record]):
    """Records, which print as one table for each suite, weights and data."""

    def tables(self) -> Iterator[Table | str]:
        """Yield the tables, then the notes."""
        groups: dict[str, list[Record]] = {}
        sized = len({record.image_size for record in self} - {None}) > 1
        for record in self:
            at = f" at {record.image_size} pixels" if sized and record.image_size else ""
            subject = record.file or f"{record.recipe}, seed {record.seed}, {record.which} epoch"
            groups.setdefault(f"{subject} on {record.data}{at}: {record.suite or 'training'}", []).append(record)
        for title, records in groups.items():
            table = Table(title=Text(title))
            for heading in ("metric", "of", "at", "value [95 % interval]", "n"):
                table.add_column(heading, overflow="fold")
            for r in records:
                fold = r.fold and f"fold {r.fold}".replace("fold mean", "mean")
                how = ", ".join(word for word in (r.of, fold, r.score, r.convention) if word)
                cells = [r.metric, how, "" if r.at is None else f"{r.at:.4g}"]
                table.add_row(*map(Text, [*cells, with_interval(r, ".4g"), "" if r.n is None else f"{r.n:,}"]))
            yield table
        yield from dict.fromkeys(r.note for r in self if r.note)
