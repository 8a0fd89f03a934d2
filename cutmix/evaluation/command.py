"""``cutmix evaluate``: run suites on the weights of a run or of a file, then save and print their results."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.text import Text
from torch import Tensor, nn

from cutmix.config.options import EvaluateOptions
from cutmix.config.recipes import recipe_changes
from cutmix.config.tasks import EVALUATE, SUITES, parse_suites
from cutmix.data import ArraySet, FileSet, ImageSet, test_loader
from cutmix.data.boxes import benchmark_boxes, read_boxes
from cutmix.data.opening import locate, refuse_inside
from cutmix.data.sets import take
from cutmix.errors import InputError
from cutmix.evaluation.calibration import calibration_suite
from cutmix.evaluation.classification import (
    LabelledLogits,
    error_records,
    label_calibration,
    label_records,
    predict,
    predictions_arrays,
)
from cutmix.evaluation.classifier import Classifier, SuiteResult, cut_arrays, decode
from cutmix.evaluation.load import (
    Subject,
    View,
    draw_images,
    file_name,
    find_subject,
    find_view,
    is_cut,
    load_model,
    open_test_set,
)
from cutmix.evaluation.localization import box_gallery, example_figures, localization_suite, mixed_maps
from cutmix.evaluation.ood import ood_suite
from cutmix.evaluation.robustness import robustness_suite
from cutmix.runs.folder import command_line, environment, hold, only_begun, today, write_arrays, write_bytes, write_json
from cutmix.runs.outcomes import examples
from cutmix.runs.read import read_config
from cutmix.runs.record import Record, Results, append_records, read_records
from cutmix.runtime.device import (
    World,
    arithmetic,
    autocast,
    check_same_data,
    first_alone,
    from_first,
    processes,
    resolve_precision,
)
from cutmix.runtime.files import make_folder
from cutmix.runtime.terminal import Console, say

_SHARED = ("classification",)  # the only suite that several processes can share


def run_evaluate(options: EvaluateOptions, *, shown: bool = True) -> Results:
    """Run the suites, save each when it is finished, print it where ``shown``, and return all records.

    A suite is saved before it is printed. An interrupted suite leaves nothing; one that is killed while it is saved may
    leave its first lines, which the next evaluation replaces.
    """
    suites, found = parse_suites(options.suite), Results()
    subject = find_subject(options)
    with processes(options.device) as world:
        if world.size > 1 and suites != _SHARED:
            raise InputError(f"--suite {options.suite} runs in one process; start it without torchrun")
        evaluation = Evaluation.open(options, suites, subject, world)
        shared = shared_fields(evaluation)
        with arithmetic(evaluation.precision, world.device), open_output(options, subject, world) as output:
            try:
                for suite in suites:
                    result = _run(suite, evaluation)
                    records = [replace(record, **shared) for record in result.records]
                    if world.first:
                        try:
                            output.write(output.stem(suite, evaluation), records, result)
                        finally:  # print results that cannot be saved
                            if shown:
                                show(records, evaluation.data, opening=not found)
                    found += records
            except KeyboardInterrupt:
                if world.first:
                    finished = ", ".join(dict.fromkeys(str(record.suite) for record in found)) or "no suite"
                    where = f", in {output.lines}" if output.lines else ""
                    Console().print(Text(f"stopped; {finished} finished{where}"))
                raise
            if shown and world.first and output.lines:
                Console().print(f"appended to {output.lines}", soft_wrap=True, markup=False, highlight=False)
    return found


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The model and the images of an evaluation, which its suites share."""

    options: EvaluateOptions
    suites: tuple[str, ...]
    subject: Subject
    data: ImageSet  # the whole test set
    index: Tensor | None  # indices of the images to evaluate on, (n,) int64, ascending; None for all
    view: View
    model: nn.Module  # on the device, with its weights
    precision: str  # arithmetic of the forward pass
    world: World

    @classmethod
    def open(cls, options: EvaluateOptions, suites: tuple[str, ...], subject: Subject, world: World) -> "Evaluation":
        """Open the data and load the model; raises as ``run_evaluate``."""
        data = first_alone(lambda: open_test_set(options, subject), world)
        if world.size > 1:
            check_same_data(data.fingerprint(), data.name, world)
        index = draw_images(len(data), options.images, options.seed)
        own = subject.recipe.precision if subject.recipe else "float32"
        if own == "tf32" and world.device.type != "cuda":  # of a run on a GPU
            own = "float32"
        return cls(
            options, suites, subject, data, index, find_view(options, subject, data),
            load_model(options, subject, data).to(world.device),
            resolve_precision(options.precision or own, world.device), world,
        )  # fmt: skip

    @cached_property
    def images(self) -> ImageSet:
        """The images to evaluate on; image files are decoded once if several passes need them."""
        chosen = self.data if self.index is None else take(self.data, self.index)
        if isinstance(chosen, ArraySet):
            return replace(chosen, images=cut_arrays(chosen.images, *self.view[:4])) if self.cut else chosen
        return chosen if self.suites == _SHARED else decode(chosen, *self.view)

    @property
    def cut(self) -> bool:
        """Whether images are resized and cropped before the model, and not small ones resized whole by it."""
        return is_cut(self.options, self.subject, self.data)

    @property
    def image_size(self) -> int | None:
        """The side to which the images are resized; None if they are decoded to it already."""
        return None if self.cut and isinstance(self.images, ArraySet) else self.view.image_size

    @property
    def decoder(self) -> str | None:
        """How JPEG files are decoded; None where the images are no files."""
        return self.view.decoder if isinstance(self.data, FileSet) else None

    @cached_property
    def predictions(self) -> LabelledLogits | None:
        """The logits of all images, over all processes; None in every process but the first."""
        view = self.view._replace(image_size=self.image_size)
        loader = test_loader(
            self.images, batch_size=self.options.batch_size, device=self.world.device,
            channels_last=self.subject.channels_last, workers=self.options.workers, rank=self.world.rank,
            world_size=self.world.size, **view._asdict(),
        )  # fmt: skip
        return predict(self.model, loader.epoch(), self.world, autocast=autocast(self.precision, self.world.device))

    @property
    def logits(self) -> Tensor:
        """The logits of all images, in the first process."""
        assert self.predictions is not None
        return self.predictions.logits

    @cached_property
    def classifier(self) -> Classifier:
        """The model and the decoded images, as the suites take them."""
        images = self.images
        assert isinstance(images, ArraySet)
        return self.classify(images, self.image_size)

    def classify(self, images: ArraySet, image_size: int | None) -> Classifier:
        """Return the model with some images, resized to a side before the network; None keeps theirs."""
        return Classifier(
            self.model.eval().requires_grad_(False), images.mean, images.std, images.images, images.labels,
            images.classes, images.name, autocast(self.precision, self.world.device), self.options.batch_size,
            self.options.seed, image_size, (lambda images: cut_arrays(images, *self.view[:4])) if self.cut else None,
        )  # fmt: skip


# ---- suites ----


def _classification(evaluation: Evaluation) -> SuiteResult:
    predictions, several = evaluation.predictions, evaluation.data.multi_label

    def records() -> list[Record]:
        assert predictions is not None
        if several:
            return _label_records(evaluation, predictions)
        return [replace(record, suite="classification") for record in error_records(predictions)]

    found = from_first(records, evaluation.world)
    if predictions is None:
        return SuiteResult(found, {})
    arrays = predictions_arrays(predictions, evaluation.images)
    if several:
        arrays |= {"thresholds": _thresholds(evaluation)}
    return SuiteResult(found, arrays, _examples(evaluation, arrays))


def _thresholds(evaluation: Evaluation) -> np.ndarray:
    """Return the thresholds of the labels, 0.5 where the weights have none."""
    return np.array(evaluation.subject.header.thresholds or [0.5] * evaluation.data.num_classes)


def _label_records(evaluation: Evaluation, predictions: LabelledLogits) -> list[Record]:
    thresholds = _thresholds(evaluation)
    return label_records(
        predictions.logits.numpy(), predictions.labels.numpy(), evaluation.data.classes, thresholds,
        chosen_on="val" if {*thresholds.tolist()} != {0.5} else None, split=evaluation.data.split,
        seed=evaluation.options.seed,
    )  # fmt: skip


def _examples(evaluation: Evaluation, arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    """Return the images that a report shows; the folder of a run has those of its training."""
    out = evaluation.options.out
    if out is None or out.suffix == ".jsonl":
        return {}
    shown = examples(arrays)
    few = decode(take(evaluation.images, torch.tensor([*shown], dtype=torch.int64)), *evaluation.view)
    size = None if isinstance(evaluation.images, FileSet) else evaluation.image_size
    return example_figures(evaluation.classify(few, size), shown)


def _calibration(evaluation: Evaluation) -> SuiteResult:
    if evaluation.data.multi_label:
        assert evaluation.predictions is not None
        return label_calibration(*evaluation.predictions, seed=evaluation.options.seed)
    return calibration_suite(evaluation.classifier, evaluation.logits)


def _robustness(evaluation: Evaluation) -> SuiteResult:
    options = evaluation.options
    return robustness_suite(
        evaluation.classifier, pairs=options.pairs, apgd=options.apgd, corruptions=options.corruptions,
        logits=evaluation.logits,
        log=lambda text: Console().print(f"robustness of {text}", markup=False, highlight=False, soft_wrap=True),
    )  # fmt: skip


def _ood(evaluation: Evaluation) -> SuiteResult:
    options = evaluation.options
    return ood_suite(
        evaluation.classifier, options.outliers or None, conventions=options.convention,
        logits=evaluation.logits,
    )  # fmt: skip


def _localization(evaluation: Evaluation) -> SuiteResult:
    boxes = find_boxes(evaluation)
    result = localization_suite(evaluation.classifier, boxes)
    figures = {"boxes": box_gallery(evaluation.classifier, boxes)}
    labels = evaluation.classifier.labels
    others = (labels != labels[0]).nonzero()
    if len(others):
        figures["mixed"] = mixed_maps(evaluation.classifier, 0, int(others[0]))
    return result._replace(figures=figures)


RUNNERS: dict[str, Callable[[Evaluation], SuiteResult]] = {
    "classification": _classification,
    "calibration": _calibration,
    "robustness": _robustness,
    "ood": _ood,
    "localization": _localization,
}


def _run(suite: str, evaluation: Evaluation) -> SuiteResult:
    """Return the results of a suite; among all suites, one that cannot be run is recorded with the reason."""
    try:
        if evaluation.data.multi_label and suite not in ("classification", "calibration"):
            raise InputError(f"--suite {suite} needs one label an image; images of {evaluation.data.name} have several")
        result = RUNNERS[suite](evaluation)
        images = {"images": np.array(evaluation.data.fingerprint())}  # only runs on the same ones are compared
        return result._replace(arrays=result.arrays and result.arrays | images)
    except InputError as error:
        named = any(getattr(evaluation.options, flag) for flag in SUITES[suite].flags)
        if evaluation.suites != EVALUATE or named or suite == "classification":
            raise
        return SuiteResult([Record(suite=suite, metric=suite, value=None, note=f"not run: {error}")], {})


def find_boxes(evaluation: Evaluation) -> list[np.ndarray]:
    """Return the true boxes of the images to evaluate on, in the pixels of the model's input.

    Where image files are squashed without a crop, as in wsolevaluation's benchmark, the boxes are scaled as there.
    """
    data, view, folder = evaluation.data, evaluation.view, evaluation.options.boxes
    if folder is None:
        recipe = evaluation.subject.recipe
        name, folder = locate(evaluation.options.data or (recipe.data if recipe else ""))
        if name == "digits":
            raise InputError("digits has no boxes; localization needs other data, or a folder of boxes with --boxes")
    found = read_boxes(folder, data)
    boxes = list(found.boxes)
    if evaluation.cut:
        side = view.image_size
        assert side is not None  # as in ``find_view``
        resized = round(side / view.crop_fraction)
        squashed = view.squash and resized == side
        boxes = benchmark_boxes(found, side) if squashed else found.after(resize=resized, crop=side, squash=view.squash)
    return boxes if evaluation.index is None else [boxes[i] for i in evaluation.index.tolist()]


# ---- records and their table ----


def shared_fields(evaluation: Evaluation) -> dict[str, Any]:
    """Return the fields that all records of an evaluation share."""
    options, subject, data = evaluation.options, evaluation.subject, evaluation.data
    about, recipe, size = environment(evaluation.world.device), subject.recipe, evaluation.view.image_size
    return {
        "source": "evaluation", "recipe": recipe.name if recipe else subject.weights.stem,
        "recipe_changes": recipe_changes(recipe) if recipe else None, "data": data.name, "split": data.split,
        "model": options.model or (recipe.model if recipe else None),
        "parameters": sum(p.numel() for p in evaluation.model.parameters()), "mix": recipe.mix if recipe else None,
        "epochs": recipe.epochs if recipe else None, "seed": recipe.seed if recipe else None,
        "which": subject.which, "epoch": subject.header.epoch,
        "weights": "ema" if recipe and recipe.ema_decay else "model",
        "file": str(subject.weights), "precision": evaluation.precision, "decoder": evaluation.decoder,
        "skipped": len(data.skipped),
        "drawn": None if evaluation.index is None else len(evaluation.index), "draw_seed": options.seed,
        "test_images": len(data), "classes": data.num_classes,
        "image_size": data.images.shape[-1] if isinstance(data, ArraySet) and not size else size,
        **{name: about[name] for name in ("commit", "torch", "device")}, "date": today(), "command": command_line(),
    }  # fmt: skip


def show(records: list[Record], data: ImageSet, *, opening: bool) -> None:
    """Print the table of a suite, the first one after a line about the images."""
    console = Console()
    if opening:
        say(f"{data.name}: {len(data):,} images ({'all' if data.split == 'all' else f'{data.split} split'})")
    for each in Results(records).tables():
        console.print(Text(each) if isinstance(each, str) else each)
    if data.skipped:
        console.print(f"{len(data.skipped)} unreadable images were left out")


# ---- output ----


@dataclass(frozen=True)
class Output:
    """The files that results are saved to."""

    lines: Path | None  # the JSON-lines file
    folder: Path | None  # the folder for per-sample results
    # whether the folder is the evaluation's own and not a run's, which holds the predictions of its training
    own: bool = False

    def stem(self, suite: str, evaluation: Evaluation) -> str:
        """Return the name of the file of a suite's arrays; a run's own predictions are never overwritten."""
        if self.own:
            return "last" if suite == "classification" else f"{suite}-last"
        other = f"-{file_name(evaluation.data.name)}" if evaluation.options.data else ""
        if evaluation.view.image_size != evaluation.subject.header.image_size:
            other += f"-{evaluation.view.image_size}px"
        return f"{'evaluated' if suite == 'classification' else suite}-{evaluation.subject.which}{other}"

    def write(self, stem: str, records: list[Record], result: SuiteResult) -> None:
        """Save a suite: arrays to predictions/STEM.npz, then figures, then all its lines or none."""
        if self.folder:
            if result.arrays:
                write_arrays(self.folder / "predictions" / f"{stem}.npz", result.arrays)
            for title, png in result.figures.items():
                write_bytes(self.folder / "figures" / f"{stem}-{title}.png", png)
        if self.lines:
            append_records(self.lines, records)


@contextlib.contextmanager
def open_output(options: EvaluateOptions, subject: Subject, world: World) -> Iterator[Output]:
    """Open the output, locked against other processes while it is open.

    ``--out`` with the ending .jsonl is a file to which lines are appended; any other is a folder of the evaluation's
    own, which ``cutmix report`` reads like a run's. Without it the results of a run are saved in its folder, and those
    of a file of weights are only printed.
    """
    out = options.out
    if not world.first or (out is None and subject.run is None):
        yield Output(None, None)
        return
    if out is not None and out.suffix == ".jsonl":
        _check_lines(out)
        yield Output(out, None)
        return
    folder = out or subject.run
    assert folder is not None
    recipe = subject.recipe.to_dict() if subject.recipe else {"name": subject.weights.stem}
    recipe |= {name: value for name in ("model", "data") if (value := getattr(options, name))}
    if out is not None:
        _check_folder(out, subject, recipe.get("data"))
    lock = hold(folder)
    try:
        read_records(folder / "results.jsonl")  # find damage before the evaluation
        if out is not None:
            config = {"recipe": recipe, "command": command_line(), "evaluated": str(subject.weights)}
            task = {"task": "multilabel"} if subject.header.multi_label else {}
            write_json(out / "environment.json", environment(world.device) | task)
            write_json(out / "config.json", config)
        yield Output(folder / "results.jsonl", folder, own=out is not None)
    finally:
        if lock is not None:
            lock.close()


def _check_lines(path: Path) -> None:
    """Check that lines can be appended to a file before anything is evaluated."""
    if path.is_dir() or not path.parent.is_dir():
        what = f"{path} is a folder" if path.is_dir() else f"{path.parent} does not exist"
        raise InputError(f"{what}; give --out a file that ends in .jsonl, in a folder that exists")
    read_records(path)


def _check_folder(folder: Path, subject: Subject, data: str | None) -> None:
    """Check that a folder is new, or holds an evaluation of the same weights on the same data set."""
    config = folder / "config.json"
    if folder.is_file():
        raise InputError(f"{folder} is a file; give --out a folder, or a file that ends in .jsonl")
    refuse_inside(folder, data or "")
    make_folder(folder)
    if config.exists():
        held = read_config(config)
        what = f"an evaluation of {held.evaluated}" if held.evaluated else "a run"
        if held.evaluated == str(subject.weights):
            what += f" on {held.recipe.get('data')}"
        if held.evaluated != str(subject.weights) or held.recipe.get("data") != data:
            raise InputError(f"{folder} holds {what}; give another --out, or a file that ends in .jsonl")
    if not config.exists() and not only_begun(folder):
        raise InputError(f"{folder} is not empty and holds no evaluation; give another --out")
