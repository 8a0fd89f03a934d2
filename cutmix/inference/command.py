"""The commands that apply a model to images: ``cutmix predict``, ``cutmix explain`` and ``cutmix serve``."""

import csv
import io
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from PIL import Image

from cutmix.config.options import ExplainOptions, PredictOptions, ServeOptions
from cutmix.data.decode import to_rgb
from cutmix.data.folder import count_suffixes, list_images, say_others
from cutmix.data.opening import refuse_inside
from cutmix.data.shards import find_shards, read_unlabelled
from cutmix.data.sources import Source, Stored
from cutmix.errors import InputError, counted, missing_extra, printable
from cutmix.inference.explain import explain_image, find_class, heat_maps, training_images
from cutmix.inference.model import Model, Prediction, Predictions, load
from cutmix.runs.folder import is_run_file, write_bytes
from cutmix.runtime.files import write_atomic
from cutmix.runtime.terminal import say

_log = logging.getLogger(__name__)


def run_predict(options: PredictOptions, images: Iterable[Any]) -> Predictions:
    """Return a prediction for each image of the options, or in memory, made when it is used."""
    if options.out is not None and is_run_file(options.out):
        raise InputError(f"--out is {options.out}, a file of the run in {options.out.parent}; expected another name")
    model = load(options.source, which=options.which, device=options.device)
    top = min(options.top, len(model.classes))
    files = [*chain.from_iterable(map(find_images, images))] if options.images != ("-",) else None
    for used in (options.source, *(file for file in files or () if isinstance(file, Path))):
        if options.out is not None and options.out.name == used.name and _same(options.out, used):
            raise InputError(f"--out is {options.out}, which is read too; expected another name")
    predictions = model.predict(
        files if files is not None else (line.rstrip("\n") for line in sys.stdin),
        top=top, temperature=options.temperature, flip=options.tta == "flip",
        threshold=options.threshold, batch_size=options.batch_size, workers=max(options.workers, 1),
    )  # fmt: skip
    predictions.opening = opening(model, options, files)
    return predictions


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def write_predictions(found: Predictions, options: PredictOptions) -> int:
    """Write each prediction as soon as it is made; return the exit code, 2 if a file cannot be read, else 0."""
    say(found.opening, file=sys.stderr)
    if options.out is None:
        return write(found, sys.stdout, options)
    codes: list[int] = []

    def write_text(file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
        codes.append(write(found, text, options))
        text.detach()

    write_atomic(options.out, write_text)
    return codes[0]


def run_explain(options: ExplainOptions, images: Iterable[Any]) -> list[Path]:
    """Write a PNG for each image of the options, or in memory, and return their paths."""
    model = load(options.source, which=options.which, device=options.device)
    refuse_inside(options.out, model.recipe.data)
    class_id = find_class(model, options.class_name)
    files = [*chain.from_iterable(map(find_images, images))]
    explainer = heat_maps(model)
    known, why = training_images(model, options.neighbours)
    nearest = f"nearest of {len(known.labels):,} training images" if known else why
    say(f"{model.source}: {explainer.name}; {nearest}")
    written = []
    for number, file in enumerate(files, 1):
        found = explain_image(
            model, model.check(file, number - 1), explainer=explainer, class_id=class_id, known=known,
            neighbours=options.neighbours, drawn=True,
        )  # fmt: skip
        stem = f"-{file.stem}" if isinstance(file, Path | Stored) else ""
        written.append(options.out / f"{number:03d}{stem}.png")
        write_bytes(written[-1], found.png)
    say(f"wrote {counted(len(written), 'image')} to {options.out}")
    return written


def find_images(name: Any) -> Sequence[Any]:
    """Return an image file, all images of a folder, sorted by path, or those in a folder of shards; others as given.

    Links to folders are followed, as in training. Hidden files of a folder are left out, and files that are not images
    are counted in a warning.
    """
    if not isinstance(name, str | os.PathLike):
        return [name]
    path = Path(name)
    if not path.is_dir():
        return [path]  # a missing file becomes a line of the output
    if parts := find_shards(path, trained=False):
        return read_unlabelled([shard for part in parts.values() for shard in part])
    listing = list_images(path)
    found = sorted([*(file.path for file in listing.files), *(link for link in listing.repeated if link.is_file())])
    others = count_suffixes(listing.others)
    if not found:
        only = f"; {say_others(others)}" if others else ""
        raise InputError(f"{path} holds no images{only}; expected image files, or a folder of them")
    if others:
        _log.warning("%s: %s", path, say_others(others))
    return found


def opening(model: Model, options: PredictOptions, files: list[Source] | None) -> str:
    """Return a line about the model, the images and the temperature."""
    images = "images from standard input" if files is None else counted(len(files), "image")
    if options.temperature is not None:
        calibration = f"temperature {options.temperature:g}, as given"
    elif model.fitted_on or model.rejected is not None:
        calibration = f"temperature {model.describe_temperature()}"
    else:
        calibration = "no temperature (cutmix evaluate RUN --suite calibration fits one)"
    if model.thresholds is not None:
        how = f"{options.threshold:g} for every label" if options.threshold else "of each label, chosen in training"
        calibration += f"; thresholds {how}"
    return f"{model.source}: {model.recipe.model}, {len(model.classes)} classes; {images}; {calibration}"


def write(found: Predictions, file: TextIO, options: PredictOptions) -> int:
    """Write each prediction as soon as it is made, and return the exit code."""
    if options.format == "jsonl":
        lines = _json_lines(found.stream(), file)
    else:
        lines = _csv_lines(found.stream(), file, found.top, several=found.several)
    failed = sum(prediction.error is not None for prediction in lines)
    if failed:
        print(f"{failed:,} of the files cannot be read", file=sys.stderr)
    return 2 if failed else 0


def _json_lines(predictions: Iterable[Prediction], file: TextIO) -> Iterator[Prediction]:
    for each in predictions:
        name = _named(each, file)
        line: dict[str, Any] = {"file": name, "error": each.error}
        if each.error is None:
            ranked = [{"class": c, "probability": round(p, 6)} for c, p in zip(*each[1:3], strict=True)]
            line = {"file": name, "predictions": ranked}
            line |= {} if each.sure is None else {"sure": each.sure}
        print(json.dumps(line, ensure_ascii=False), file=file, flush=True)
        yield each


def _named(prediction: Prediction, file: TextIO) -> str:
    """Return the name of an image, on a terminal with control characters escaped."""
    return printable(prediction.source) if file.isatty() else prediction.source


def _csv_lines(predictions: Iterable[Prediction], file: TextIO, top: int, *, several: bool) -> Iterator[Prediction]:
    writer = csv.writer(file)
    if several:
        writer.writerow(["file", "labels", "probabilities", "error"])
        for each in predictions:
            values = "|".join(f"{p:.6f}" for p in each.probabilities)
            writer.writerow([_named(each, file), "|".join(each.classes), values, each.error or ""])
            file.flush()
            yield each
        return
    ranks = range(1, top + 1)
    writer.writerow(["file", *(f"{field}_{i}" for i in ranks for field in ("class", "probability")), "sure", "error"])
    for each in predictions:
        ranked = [cell for c, p in zip(*each[1:3], strict=True) for cell in (c, f"{p:.6f}")]
        ranked += [""] * (2 * top - len(ranked))
        writer.writerow(
            [_named(each, file), *ranked, "" if each.sure is None else str(each.sure).lower(), each.error or ""]
        )
        file.flush()
        yield each


def run_serve(options: ServeOptions, *, block: bool = True) -> Any:
    """Serve a classifier on the loopback address until Ctrl-C, and return gradio's page.

    Without ``block``, a thread serves until the page is closed.
    """
    page = make_page(load(options.source, which=options.which, device=options.device))
    try:
        _, address, _ = page.launch(
            server_name="127.0.0.1", server_port=options.port, share=False, quiet=True, prevent_thread_lock=True,
            footer_links=[],
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"--port {options.port} cannot be used: {' '.join(str(error).split())}") from None
    print(f"{address} classifies images; Ctrl-C ends it", flush=True)
    if block:
        try:
            page.block_thread()
        finally:
            page.close()
    return page


def make_page(model: Model) -> Any:
    """Return the page of a model."""
    try:
        from gradio import Image as ImageField
        from gradio import Interface, Label
    except ImportError:
        raise missing_extra("cutmix serve", "serve") from None
    if (channels := model.preprocessing.in_chans) not in (1, 3):
        raise InputError(f"the model takes {channels} channels; cutmix serve shows images of 1 or 3")
    explainer = heat_maps(model)

    def classify(image: Image.Image | None) -> tuple[dict[str, float], Image.Image | None]:
        if image is None:
            return {}, None
        found = explain_image(model, to_rgb(image), explainer=explainer)
        ranked = zip(model.classes, found.probabilities.tolist(), strict=True)
        overlay = Image.fromarray(found.overlay())
        scale = max(1, _SIDE // overlay.width)  # enlarge small images
        return dict(ranked), overlay.resize((scale * overlay.width, scale * overlay.height), Image.Resampling.NEAREST)

    calibrated = f"calibrated on {model.fitted_on:,} held-out images" if model.fitted_on else "not calibrated"
    return Interface(
        # image_mode: gradio would convert to RGB, which clips 16 bits and drops the transparency
        classify, ImageField(type="pil", image_mode=None, label="image", height=_SIDE),
        [Label(num_top_classes=min(5, len(model.classes)), label="classes"),
         ImageField(label=f"heat map ({explainer.name})", height=_SIDE)],
        title=f"{model.recipe.name}: {len(model.classes)} classes",
        description=f"{model.recipe.model}; probabilities are {calibrated}. Images stay on this machine.",
        flagging_mode="never", analytics_enabled=False, api_name="classify", live=True,
    )  # fmt: skip


_SIDE = 320  # pixels of an image on the page
