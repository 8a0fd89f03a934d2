"""``cutmix evaluate``: measure a run, or any file of weights, on its own or on other data, by one or several suites."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from cutmix.config.options import SUITES, EvaluateOptions, parse_suites
from cutmix.config.recipes import recipe_changes
from cutmix.data import ArraySet, FileSet, ImageSet, test_loader
from cutmix.data.boxes import read_boxes
from cutmix.data.sets import locate, take
from cutmix.errors import InputError
from cutmix.evaluate.calibration import calibration_suite
from cutmix.evaluate.classification import error_records, predict, predictions_arrays
from cutmix.evaluate.classifier import Classifier, Suite, decode
from cutmix.evaluate.gallery import box_gallery, mixed_maps
from cutmix.evaluate.load import Subject, View, draw_images, find_subject, find_view, load_model, open_test_set
from cutmix.evaluate.localization import localization_suite
from cutmix.evaluate.ood import ood_suite
from cutmix.evaluate.robustness import robustness_suite
from cutmix.runs.folder import command_line, environment, hold, only_begun, today, write_arrays, write_bytes, write_json
from cutmix.runs.read import read_config
from cutmix.runs.record import Record, append_records, read_records
from cutmix.runtime.device import autocast, resolve_precision
from cutmix.runtime.distributed import World, processes
from cutmix.runtime.terminal import Console


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

    def write(self, name: str, records: list[Record], suite: Suite) -> None:
        """Write a suite: what came out for each image to predictions/NAME.npz, pictures, then all its lines or none."""
        if self.folder:
            if suite.arrays:
                write_arrays(self.folder / "predictions" / f"{name}.npz", suite.arrays)
            for title, png in suite.pictures.items():
                write_bytes(self.folder / "pictures" / f"{name}-{title}.png", png)
        if self.lines:
            append_records(self.lines, records)


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
        read_records(folder / "results.jsonl")  # damaged, it is to be mended now, and not after minutes
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
    read_records(path)


def _check(folder: Path, subject: Subject) -> None:
    """See that a folder is new, or holds an evaluation of the same weights."""
    config = folder / "config.json"
    if folder.is_file():
        raise InputError(f"{folder} is a file; give --out a folder, or a file that ends in .jsonl")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be used for results: {error}; give another --out") from None
    held = read_config(config).evaluated if config.exists() else None
    if config.exists() and held != str(subject.weights):
        what = f"an evaluation of {held}" if held else "a run"
        raise InputError(f"{folder} holds {what}; give another --out, or a file that ends in .jsonl")
    if not config.exists() and not only_begun(folder):
        raise InputError(f"{folder} is not empty and holds no evaluation; give another --out")


_SHARED = ("classification",)  # the suite that several processes share


def run_evaluate(options: EvaluateOptions) -> list[Record]:
    """Measure, print tables, write the records and what came out for each image, and return the records.

    A suite is shown and written when it is done. What is interrupted before has left nothing; of one that was killed
    while it was written, the first lines may be there, which the next measurement replaces.

    Raises:
        InputError: If the run, the file, the network, the data or a suite do not fit one another.
    """
    suites = parse_suites(options.suite)
    subject = find_subject(options)
    found: list[Record] = []
    with processes(options.device) as world:
        if world.size > 1 and suites != _SHARED:
            raise InputError(f"--suite {options.suite} runs in one process; start it without torchrun")
        data = open_test_set(options, subject)
        index = draw_images(len(data), options.images, options.seed)
        view = find_view(options, subject, data)
        model = load_model(options, subject, data).to(world.device)
        precision = resolve_precision(
            options.precision or (subject.recipe.precision if subject.recipe else "float32"), world.device
        )
        common = describe(options, subject, data, index, view, model, precision, world)
        with open_target(options, subject, world) as target:
            try:
                for name, suite in measure(options, suites, subject, data, index, view, model, precision, world):
                    records = [replace(record, **common) for record in suite.records]
                    if world.first:
                        show(name, records, data)
                        target.write(file_name(name, options, subject, data, target), records, suite)
                    found += records
            except KeyboardInterrupt:
                if world.first:
                    finished = ", ".join(dict.fromkeys(str(record.suite) for record in found)) or "no suite"
                    Console().print(
                        Text(f"stopped; {finished} finished" + (f", in {target.lines}" if target.lines else ""))
                    )
                raise
            if world.first and target.lines:
                Console().print(f"appended to {target.lines}", soft_wrap=True, markup=False, highlight=False)
    return found


def measure(
    options: EvaluateOptions,
    suites: tuple[str, ...],
    subject: Subject,
    whole: ImageSet,
    index: Tensor | None,
    view: View,
    model: nn.Module,
    precision: str,
    world: World,
) -> Iterator[tuple[str, Suite]]:
    """Yield each suite's name and what it found; of all suites, one that does not fit the classifier says why."""
    shown: ImageSet = whole if index is None else take(whole, index)
    fed = view
    if suites != _SHARED and isinstance(shown, FileSet):
        shown, fed = decode(shown, *view), view._replace(image_size=None)  # each photograph once for all suites
    cast, predictions = autocast(precision, world.device), None
    if {"classification", "calibration"} & set(suites):
        loader = test_loader(
            shown, batch_size=options.batch_size, device=world.device, channels_last=subject.channels_last,
            workers=options.workers, rank=world.rank, world_size=world.size, **fed._asdict(),
        )  # fmt: skip
        predictions = predict(model, loader.epoch(), world, autocast=cast)
    if "classification" in suites:
        assert predictions is not None
        records = [replace(record, suite="classification") for record in error_records(predictions)]
        yield "classification", Suite(records, predictions_arrays(predictions))
    if suites == _SHARED:
        return
    assert not isinstance(shown, FileSet)
    classifier = Classifier(
        model.eval().requires_grad_(False), shown.mean, shown.std, shown.images, shown.labels, shown.classes,
        shown.name, cast, options.batch_size, options.seed, fed.image_size,
    )  # fmt: skip
    logits = predictions.logits if predictions else None
    run = {
        "calibration": lambda: calibration_suite(classifier, logits),
        "robustness": lambda: robustness_suite(
            classifier, pairs=options.pairs, apgd=options.apgd, corruptions=options.corruptions,
            say=lambda text: print(f"robustness of {text}", flush=True),
        ),
        "ood": lambda: ood_suite(classifier, options.outliers or None, logits=logits),
        "localization": lambda: localize(classifier, find_boxes(options, subject, whole, index, view)),
    }  # fmt: skip
    for name in suites:
        if name in run:
            yield name, _run_or_say_why(run[name], name, options, suites)


def _run_or_say_why(run: Callable[[], Suite], name: str, options: EvaluateOptions, suites: tuple[str, ...]) -> Suite:
    """Return what a suite found; where all were asked for and this one cannot be, why not."""
    try:
        return run()
    except InputError as error:
        named = {"robustness": options.corruptions or options.apgd, "ood": options.outliers,
                 "localization": options.boxes}  # fmt: skip
        if suites != SUITES or named.get(name):  # asked for by name, and not because all were
            raise
        note = f"not run: {error}"
        return Suite([Record(suite=name, metric=name, value=None, note=note)], {})


def find_boxes(
    options: EvaluateOptions, subject: Subject, data: ImageSet, index: Tensor | None, view: View
) -> list[np.ndarray]:
    """Return the boxes of the test images, or of those at some indices, in the pixels that the network is shown."""
    folder = options.boxes
    if folder is None:
        name, folder = locate(options.data or (subject.recipe.data if subject.recipe else ""))
        if name == "digits":
            raise InputError("digits has no boxes; localization needs other data, or a folder of them with --boxes")
    boxes = read_boxes(folder, data)
    seen = list(boxes.boxes)
    if isinstance(data, FileSet):
        side = view.image_size or 224
        seen = boxes.after(resize=round(side / view.crop_fraction), crop=side, squash=view.squash)
    return seen if index is None else [seen[i] for i in index.tolist()]


def localize(classifier: Classifier, boxes: list[np.ndarray]) -> Suite:
    """Return the localization suite with its pictures."""
    suite = localization_suite(classifier, boxes)
    pictures = {"boxes": box_gallery(classifier, boxes)}
    others = (classifier.labels != classifier.labels[0]).nonzero()
    if len(others):
        pictures["mixed"] = mixed_maps(classifier, 0, int(others[0]))
    return suite._replace(pictures=pictures)


def file_name(name: str, options: EvaluateOptions, subject: Subject, data: ImageSet, target: Target) -> str:
    """Return what the file of a suite's arrays is called; a run's own predictions are never overwritten."""
    if target.own:
        return "last" if name == "classification" else f"{name}-last"
    other = f"-{data.name}" if options.data else ""
    return f"{'evaluated' if name == 'classification' else name}-{subject.which}{other}"


def describe(
    options: EvaluateOptions, subject: Subject, data: ImageSet, index: Tensor | None, view: View, model: nn.Module,
    precision: str, world: World,
) -> dict[str, Any]:  # fmt: skip
    """Return the fields that all records of this evaluation share."""
    about, recipe = environment(world.device), subject.recipe
    return {
        "source": "evaluation", "recipe": recipe.name if recipe else subject.weights.stem,
        "recipe_changes": recipe_changes(recipe) if recipe else None, "data": data.name, "split": data.split,
        "model": options.model or (recipe.model if recipe else None),
        "parameters": sum(p.numel() for p in model.parameters()), "mix": recipe.mix if recipe else None,
        "epochs": recipe.epochs if recipe else None, "seed": recipe.seed if recipe else None,
        "which": subject.which, "epoch": subject.about.get("epoch"),
        "weights": "ema" if recipe and recipe.ema_decay else "model",
        "file": str(subject.weights), "precision": precision, "skipped": len(data.skipped),
        "drawn": None if index is None else len(index), "draw_seed": options.seed,
        "image_size": data.images.shape[-1] if isinstance(data, ArraySet) and not view.image_size else view.image_size,
        **{name: about[name] for name in ("commit", "torch", "device")}, "date": today(), "command": command_line(),
    }  # fmt: skip


def show(name: str, records: list[Record], data: ImageSet) -> None:
    """Print a suite's table."""
    title = Text(f"{records[0].file} on {data.name}: {name}" if records else name)
    table = Table(title=title)
    for heading in ("metric", "of", "at", "value", "95 % interval", "n"):
        table.add_column(heading, overflow="fold")
    for r in records:
        how = ", ".join(word for word in (r.of, r.score, r.convention) if word)
        cells = [r.metric, how, "" if r.at is None else f"{r.at:.4g}"]
        value = "not run" if r.value is None else f"{r.value:.4g}"
        interval = "" if r.low is None else f"{r.low:.4g} – {r.high:.4g}"
        table.add_row(*map(Text, [*cells, value, interval, "" if r.n is None else f"{r.n:,}"]))
    console = Console()
    console.print(table)
    for note in dict.fromkeys(r.note for r in records if r.note):
        console.print(Text(note))
    if data.skipped:
        console.print(f"{len(data.skipped)} unreadable pictures were left out")
