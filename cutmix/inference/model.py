"""A trained classifier with its preprocessing, classes and temperature: ``load`` a run or a file, then ``predict``."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from cutmix.config.options import WORKERS
from cutmix.config.recipe import Recipe
from cutmix.data.decode import Decoded, decoding_threads, read_image, to_rgb
from cutmix.data.image_files import Decoder, ResizeAndCrop
from cutmix.data.sources import Stored
from cutmix.data.transforms import Interpolation, normalize, resize
from cutmix.errors import InputError, counted
from cutmix.evaluation.calibration import TEMPERATURES
from cutmix.inference.explain import Explanation, explain_image, find_class, training_images
from cutmix.models import create_model
from cutmix.models.regularizers import regularize
from cutmix.runs.folder import find_weights
from cutmix.runs.read import read_run
from cutmix.runtime.checkpoint import read_header
from cutmix.runtime.device import arithmetic, find_device
from cutmix.runtime.terminal import Tabular
from cutmix.runtime.weights import load_weights

Source = Path | str | Stored | Image.Image | np.ndarray
_MOST_ROWS, _MOST_NAMES = 100, 10  # of tables
_EXPECTED = "a file, a PIL image, or a uint8 array of shape (height, width) or (height, width, 3)"


class Prediction(NamedTuple):
    """The most probable classes of one image; of a model with several labels an image, all above their thresholds.

    Attributes:
        source: The file, or the position of another image in the input.
        classes: Class names, the most probable first; empty for an unreadable file, and where no label is predicted.
        probabilities: Of these classes, in [0, 1].
        sure: Whether the largest probability reaches the threshold; None without a threshold.
        error: The reason why the file cannot be read; None for an image.
    """

    source: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    sure: bool | None = None
    error: str | None = None


class Predictions(Tabular):
    """Predictions of images in their order, each made when it is used; they print as a table.

    Attributes:
        opening: A line about the model and the images; "" prints none.
        top: Largest number of classes of each prediction.
        several: Whether an image can have several labels.
    """

    def __init__(self, made: Iterable[Prediction], opening: str = "", *, top: int = 1, several: bool = False) -> None:
        self.opening, self.top, self.several = opening, top, several
        self._rest, self._made = iter(made), []  # type: tuple[Iterator[Prediction], list[Prediction]]

    def __iter__(self) -> Iterator[Prediction]:
        for position in count():  # by position, as another loop over the same predictions may be ahead
            self._made.extend(islice(self._rest, int(position == len(self._made))))
            if position == len(self._made):
                return
            yield self._made[position]

    def __len__(self) -> int:
        for _ in self:
            pass
        return len(self._made)

    def __getitem__(self, index: int) -> Prediction:
        return list(self)[index]

    def stream(self) -> Iterator[Prediction]:
        """Yield the predictions once, without keeping them."""
        return self._rest

    def tables(self) -> Iterator[Table | str]:
        """Yield the opening, and a table of the first hundred predictions."""
        if self.opening:
            yield self.opening
        made = list(self)
        table = Table("image", "labels" if self.several else "class", "probability", "error")
        for each in made[:_MOST_ROWS]:
            probabilities = ", ".join(f"{p:.3f}" for p in each.probabilities)
            unsure = " (not sure)" if each.sure is False else ""
            table.add_row(*map(Text, [each.source, ", ".join(each.classes) + unsure, probabilities, each.error or ""]))
        yield table
        if len(made) > _MOST_ROWS:
            yield f"… {len(made) - _MOST_ROWS:,} more images"


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of an image for a classifier.

    Attributes:
        image_size: Side of the input in pixels.
        in_chans: Channels: 1 (grey), 3 (RGB) or others, up to 16.
        mean, std: Of each channel, for pixels in [0, 1].
        small: Resize the whole image, as for data sets of small images, instead of a resized centre crop.
        crop_fraction: Share of the resized short side that the centre crop takes.
        squash: Resize both sides alike, whatever the shape.
        interpolation: How the image is resized.
        decoder: How JPEG files are decoded.
    """

    image_size: int
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    small: bool
    crop_fraction: float = 0.875
    squash: bool = False
    interpolation: Interpolation = "bilinear"
    decoder: Decoder = "exact"

    def __call__(self, image: Path | Stored | Decoded) -> Tensor:
        """Return an image or a file as the normalized input, (in_chans, image_size, image_size) float32.

        For a file, the result equals that of ``cutmix.data.test_loader``.
        """
        return self.finish(self.cut(image)[None])[0]

    def cut(self, image: Path | Stored | Decoded) -> Tensor:
        """Return the square of an image or a file, (in_chans, image_size, image_size), which ``finish`` normalizes.

        It is uint8; of small images, which are resized behind the normalization, it is the input itself.
        """
        if self.small:
            image = read_image(image) if isinstance(image, Path | Stored) else image
            assert isinstance(image, Image.Image)
            pixels = np.array(image.convert("L") if self.in_chans == 1 else image)
            tensor = torch.from_numpy(pixels).view(*pixels.shape[:2], self.in_chans).permute(2, 0, 1)
            return resize(normalize(tensor[None], self.mean, self.std), self.image_size)[0]
        if isinstance(image, Path | Stored):
            square = self._transform.read(image, self.decoder, skippable=False)
            return torch.from_numpy(np.ascontiguousarray(square.transpose(2, 0, 1)))
        return self._transform(image)

    def finish(self, squares: Tensor) -> Tensor:
        """Return squares (N, in_chans, image_size, image_size) as normalized inputs."""
        return squares if squares.is_floating_point() else normalize(squares, self.mean, self.std)

    @property
    def _transform(self) -> ResizeAndCrop:
        return ResizeAndCrop(self.image_size, self.crop_fraction, self.squash, self.interpolation, self.in_chans)


class Model(Tabular):
    """A classifier of unprocessed images; it prints as a table of its properties.

    Attributes:
        network: Maps normalized images (N, C, H, W) to logits (N, K); in eval mode.
        classes: The K class names, in the order of the logits.
        preprocessing: The preprocessing of an image.
        temperature: Divides the logits before the softmax.
        fitted_on: Number of held-out images that the temperature was fitted on; 0 if it was not.
        rejected: A fitted temperature that is not used, as it does not lower the loss of other images; or None.
        thresholds: Where an image can have several labels: the probability at temperature 1 from which on each of them
            is predicted, (K,); None for one label an image.
        source: The file of weights.
        recipe: The recipe of the training.
    """

    def __init__(
        self, network: nn.Module, classes: tuple[str, ...], preprocessing: Preprocessing, *, temperature: float = 1.0,
        fitted_on: int = 0, rejected: float | None = None, thresholds: tuple[float, ...] | None = None,
        source: Path, recipe: Recipe,
    ) -> None:  # fmt: skip
        self.network = network.eval().requires_grad_(False)
        self.classes, self.preprocessing, self.source, self.recipe = classes, preprocessing, source, recipe
        self.temperature, self.fitted_on, self.rejected = temperature, fitted_on, rejected
        self.thresholds = thresholds

    def tables(self) -> Iterator[Table | str]:
        """Yield the file of weights, and a table of the model's inputs and outputs."""
        yield f"{self.source}: {self.recipe.model}, trained by {self.recipe.name}"
        size, channels = self.preprocessing.image_size, self.preprocessing.in_chans
        names = ", ".join(self.classes[:_MOST_NAMES]) + (", …" if len(self.classes) > _MOST_NAMES else "")
        one = "one class" if self.thresholds is None else "any number of labels"
        table = Table("property", "value")
        for about in (
            ("input", f"{size}×{size} pixels, {counted(channels, 'channel')}"),
            ("output", f"{one} of {len(self.classes):,}: {names}"),
            ("temperature", self.describe_temperature()),
            ("parameters", f"{sum(p.numel() for p in self.network.parameters()):,}"),
            ("device", str(self.device)),
        ):
            table.add_row(*map(Text, about))
        yield table

    def describe_temperature(self) -> str:
        """Return the temperature, and its origin."""
        if self.fitted_on:
            return f"{self.temperature:.3g}, fitted on {self.fitted_on:,} held-out images"
        if self.rejected is not None:
            return f"1, as the fitted {self.rejected:.3g} does not lower the loss of other held-out images"
        return "1, not fitted"

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.network.parameters()).device

    def probabilities(self, inputs: Tensor, *, temperature: float | None = None, flip: bool = False) -> Tensor:
        """Return the calibrated probabilities of a batch: of the classes, or of each label by itself.

        Args:
            inputs: Normalized images, (N, C, H, W) float32, on any device.
            temperature: Divides the logits; by default the model's own.
            flip: Average the probabilities with those of the mirrored images.

        Returns:
            (N, K) float32 on the CPU, each row with sum 1 unless an image can have several labels.
        """
        views = [inputs, inputs.flip(-1)] if flip else [inputs]
        with torch.inference_mode(), arithmetic("float32", self.device):
            logits = [self.network(view.to(self.device)).float() for view in views]
        scaled = torch.stack(logits) / (temperature or self.temperature)
        return (scaled.softmax(-1) if self.thresholds is None else scaled.sigmoid()).mean(0).cpu()

    def label_thresholds(self, temperature: float | None = None) -> Tensor:
        """Return the thresholds of the labels for probabilities at a temperature, by default the model's, (K,)."""
        return torch.tensor(self.thresholds, dtype=torch.float64).logit().div(temperature or self.temperature).sigmoid()

    def predict(
        self,
        images: Iterable[Source] | Source,
        *,
        top: int = 1,
        temperature: float | None = None,
        flip: bool = False,
        threshold: float = 0.0,
        batch_size: int = 64,
        workers: int = WORKERS,
    ) -> Predictions:
        """Classify images, in their order, one batch at a time.

        Args:
            images: Files, PIL images, or uint8 arrays (H, W), (H, W, 1) or (H, W, 3); one or many, many arrays also
                as one (N, H, W, 3). A model of other channels C takes files and arrays (H, W, C).
            top: Number of classes of each prediction, at least 1; only for one label an image.
            temperature: Divides the logits; by default the model's own.
            flip: Average with the prediction of the mirrored image.
            threshold: Smallest largest probability, in [0, 1], of a prediction that is ``sure``; 0 judges none. Where
                an image can have several labels: if above 0, the probability from which on each label is predicted.
            batch_size: Images at a time.
            workers: Threads that decode.

        Returns:
            A prediction for each image, made when it is used; for a file that cannot be read, one with its ``error``.
            They print as a table.

        Raises:
            InputError: If an argument is out of its range.
        """
        _check_range(top=top, batch_size=batch_size, workers=workers)
        if not 0 <= threshold <= 1:
            raise InputError(f"threshold is {threshold}; expected a probability in [0, 1]")
        if temperature is not None and not 1e-6 <= temperature < float("inf"):
            raise InputError(f"temperature is {temperature}; expected a number above 0, from 1e-6 on")
        if top > 1 and self.thresholds is not None:
            raise InputError(f"top is {top}; expected 1, as every label of an image above its threshold is predicted")
        made = self._predict(enumerate(several_images(images)), top, temperature, flip, threshold, batch_size, workers)
        return Predictions(made, top=top, several=self.thresholds is not None)

    def explain(self, image: Source, *, class_name: str | None = None, neighbours: int = 4) -> Explanation:
        """Explain the prediction of an image by a heat map and the nearest training images.

        Args:
            image: A file, a PIL image, or a uint8 array, as ``predict`` takes it.
            class_name: Draw the heat map of this class too, beside that of the predicted one.
            neighbours: Number of training images that are nearest in feature space, if the data exist; 0 draws none.

        Returns:
            The probabilities, the heat maps and a drawing, which a notebook shows.

        Raises:
            InputError: If the image cannot be read, or the class does not exist.
        """
        known, _ = training_images(self, neighbours)
        return explain_image(
            self, self.check(image), class_id=find_class(self, class_name), known=known, neighbours=neighbours,
            drawn=True,
        )  # fmt: skip

    def _predict(
        self, sources: Iterator[tuple[int, Source]], top: int, temperature: float | None, flip: bool,
        threshold: float, batch_size: int, workers: int,
    ) -> Iterator[Prediction]:  # fmt: skip
        limits = None
        if self.thresholds is not None:
            limits = self.label_thresholds(temperature)
            limits = torch.full_like(limits, threshold) if threshold else limits
        with decoding_threads(workers) as threads:
            following = [threads.submit(self._read, *each) for each in islice(sources, batch_size)]
            while following:
                # the next batch is decoded while this one is classified
                batch, following = following, [threads.submit(self._read, *s) for s in islice(sources, batch_size)]
                read = [future.result() for future in batch]
                squares = [square for _, square in read if isinstance(square, Tensor)]
                ranked: Iterator[tuple[list[float], list[int]]] = iter(())
                if squares:
                    inputs = self.preprocessing.finish(torch.stack(squares))
                    ranked = _rank(self.probabilities(inputs, temperature=temperature, flip=flip), top, limits)
                for name, found in read:
                    if not isinstance(found, Tensor):
                        yield Prediction(name, error=found)
                        continue
                    values, index = next(ranked)
                    sure = values[0] >= threshold if threshold and limits is None else None
                    yield Prediction(name, tuple(self.classes[i] for i in index), tuple(values), sure)

    def _read(self, position: int, source: Source) -> tuple[str, Tensor | str]:
        """Return the name and the square of an image, or the reason why it cannot be read."""
        image = self.check(source, position)
        if isinstance(image, Path | Stored):
            try:
                return str(image), self.preprocessing.cut(image)
            except InputError as error:
                return str(image), str(error)
        return str(position), self.preprocessing.cut(image)

    def check(self, source: Source, position: int = 0) -> Path | Stored | Decoded:
        """Return a file, or an image in memory as RGB or as an array of the model's channels."""
        if isinstance(source, str | Path | Stored):
            return Path(source) if isinstance(source, str) else source
        channels = self.preprocessing.in_chans
        shapes, expected = [(), (1,), (3,)], _EXPECTED
        if channels not in (1, 3):
            source, shapes = np.asarray(source), [(channels,)]
            expected = f"a file or a uint8 array of shape (height, width, {channels})"
        if isinstance(source, np.ndarray):
            if source.dtype != np.uint8 or source.ndim < 2 or source.shape[2:] not in shapes or not source.size:
                about = f"of shape {source.shape} and dtype {source.dtype}"
                raise InputError(f"image {position} is an array {about}; expected {expected}")
            if channels not in (1, 3):
                return source
            source = Image.fromarray(source.squeeze(2) if source.shape[2:] == (1,) else source)
        if not isinstance(source, Image.Image):
            raise InputError(f"image {position} is a {type(source).__name__}; expected {expected}")
        return to_rgb(source)


def several_images(images: Any) -> Iterable[Any]:
    """Return one image, or many, as many; what is neither is an ``InputError``."""
    if isinstance(images, Source) and getattr(images, "ndim", 0) != 4:
        return [images]
    if isinstance(images, Tensor | bytes) or not isinstance(images, Iterable):
        raise InputError(f"images is a {type(images).__name__}; expected {_EXPECTED}, or several")
    return images


def _rank(probabilities: Tensor, top: int, limits: Tensor | None) -> Iterator[tuple[list[float], list[int]]]:
    """Yield the largest probabilities of each image and their classes; with limits, all that reach them."""
    values, index = probabilities.topk(min(top, probabilities.shape[1]) if limits is None else probabilities.shape[1])
    if limits is None:
        yield from zip(values.tolist(), index.tolist(), strict=True)
        return
    for row, order, reached in zip(values.tolist(), index.tolist(), (values >= limits[index]).tolist(), strict=True):
        kept = [k for k, is_reached in enumerate(reached) if is_reached]
        yield [row[k] for k in kept], [order[k] for k in kept]


def load(source: str | os.PathLike[str], *, which: str = "last", device: str = "auto") -> Model:
    """Load a classifier that ``cutmix train`` wrote.

    Args:
        source: Folder of a run, or one of its files of weights, wherever it was copied to.
        which: Of a run: "last" or "best" epoch.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".

    Returns:
        The model. Its temperature is the one that ``cutmix evaluate --suite calibration`` fitted on held-out images of
        the run; 1 where there is none, or none that lowers the loss of images that it was not fitted on.

    Raises:
        InputError: If the file does not exist or lacks what a prediction needs.
    """
    path = find_weights(Path(source), which)
    header = _complete_header(path)
    fitted = _fitted_temperature(Path(source), which) if Path(source).is_dir() else {}
    recipe, classes = Recipe.from_dict(header["recipe"]), header["classes"]
    preprocessing = Preprocessing(
        header["image_size"], header["in_chans"], header["mean"], header["std"], header["small"],
        recipe.crop_fraction, recipe.squash, "bilinear" if header["small"] else recipe.interpolation, recipe.decoder,
    )  # fmt: skip
    network = create_model(recipe.model, len(classes), in_chans=header["in_chans"])
    load_weights(network, path)
    regularize(network, shake_drop=recipe.shake_drop, decay=recipe.depth_decay)
    return Model(
        network.to(find_device(device)), classes, preprocessing, thresholds=read_header(path).thresholds, source=path,
        recipe=recipe, **fitted,
    )  # fmt: skip


_NEEDED = ("recipe", "classes", "in_chans", "image_size", "mean", "std", "small")


def _complete_header(path: Path) -> dict[str, Any]:
    """Return the fields of the header of a file of weights that a prediction needs."""
    header = read_header(path)
    fields = {name: getattr(header, name) for name in _NEEDED}
    if missing := [name for name, value in fields.items() if value is None]:
        raise InputError(
            f"{path} does not say its {', '.join(missing)}; expected weights that cutmix train wrote "
            "(evaluate other weights with cutmix evaluate --model)"
        )
    return fields


def _fitted_temperature(run: Path, which: str) -> dict[str, Any]:
    """Return what a model keeps of the temperature that a calibration of the run found.

    A temperature is not used at the end of its range, or if it does not lower the NLL of images it was not fitted on.
    """
    lines = {line.metric: line for line in read_run(run).suite("calibration", which)}
    found = {name: line.value for name, line in lines.items()}
    temperature = found.get("temperature")
    if temperature is not None and not 1e-6 <= temperature <= 1e6:
        raise InputError(f"{run / 'results.jsonl'}: temperature is {temperature}; expected a number from 1e-6 to 1e6")
    before, after = found.get("nll_unscaled"), found.get("nll_scaled")
    worse = before is not None and after is not None and after >= before
    if temperature is None or worse or temperature in TEMPERATURES:
        return {"rejected": temperature}
    return {"temperature": temperature, "fitted_on": lines["temperature"].n}


def _check_range(**counts: int) -> None:
    for name, number in counts.items():
        if number < 1:
            raise InputError(f"{name} is {number}; expected at least 1")
