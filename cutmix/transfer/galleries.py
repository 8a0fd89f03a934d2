"""Figures of test images: with their captions and references, or with their detections and true boxes."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cutmix.data.decode import read_image
from cutmix.data.sets import random_subset
from cutmix.errors import InputError, printable
from cutmix.evaluation.gallery import png_of
from cutmix.runtime.seeding import derive_seed
from cutmix.transfer.average_precision import Detections
from cutmix.transfer.caption_data import CaptionSet
from cutmix.transfer.detection_data import DetectionSet, load_image

_COLUMNS = 4
_LETTERS, _SMALL_LETTERS = 33, 44  # that fit in a line above an image, and below it
_SOLID, _DASHED, _DOTTED = "-", (0, (5, 3)), (0, (1, 2))


def gallery_of_captions(
    data: CaptionSet, captions: Mapping[str, str], *, count: int = 8, references: int = 2, seed: int = 0
) -> bytes:
    """Draw random images of a set, each with its generated caption in bold and references in gray.

    Args:
        data: The images and their references.
        captions: The generated captions by the names of the images, as ``score_captions`` takes them.
        count: Maximum number of images.
        references: Maximum number of references below each image.
        seed: Seed of the choice of images.

    Returns:
        A PNG file.

    Raises:
        InputError: If an image that is drawn has no caption or cannot be read.
    """
    chosen = random_subset(len(data), count, derive_seed(seed, "gallery")).tolist()
    columns = min(_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(2.6 * columns, (2.5 + 0.3 * references) * rows), dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, i in zip(axes, chosen, strict=False):
        name = data.names[i]
        if name not in captions:
            raise InputError(f"the image '{name}' of {data.name} has no caption; expected one for every image")
        axis.imshow(read_image(data.paths[i]))
        generated = _wrapped(captions[name] or "(empty caption)", _LETTERS, 3)
        axis.set_title(generated, fontsize=9, fontweight="bold", parse_math=False)
        texts = [f"– {text.strip().removesuffix(' .')}" for text in data.captions[i][:references]]
        below = "\n".join(_wrapped(text, _SMALL_LETTERS, 2) for text in texts)
        axis.set_xlabel(below, fontsize=7, color="#555555", parse_math=False)
    for axis in figure.axes:
        axis.set(xticks=[], yticks=[])
        axis.set_frame_on(False)
    return png_of(figure)


def _wrapped(text: str, letters: int, lines: int) -> str:
    """Wrap a text, and cut it off after some lines."""
    return "\n".join(textwrap.wrap(text, letters, max_lines=lines, placeholder=" …"))


def gallery_of_detections(
    data: DetectionSet, found: Detections, *, images: Sequence[int] | None = None, threshold: float = 0.5
) -> bytes:
    """Draw images in pairs: with true boxes on the left, with detections and their scores on the right.

    All detections from a score of ``threshold`` are drawn, and at least as many as the image has objects, so that a
    detector with low scores has some too. Lines are black and white, to be visible on any image and in print: solid
    for objects, dotted for difficult ones, dashed for detections.

    Args:
        data: The split.
        found: Its detections, in pixels, with images numbered by their order.
        images: Indices of the images to draw; by default the first eight.
        threshold: The score from which all detections are drawn.

    Returns:
        A PNG file.

    Raises:
        InputError: If an index is out of range, or an image cannot be read.
    """
    chosen = list(range(min(8, len(data))) if images is None else images)
    if not chosen or not 0 <= min(chosen) <= max(chosen) < len(data):
        raise InputError(f"the images to draw are {chosen}; expected indices from 0 to {len(data) - 1}")
    rows = -(-len(chosen) // 2)
    figure = Figure(figsize=(14, 0.3 + 2.9 * rows), dpi=100, layout="constrained")
    axes = figure.subplots(rows, 4, squeeze=False).reshape(-1, 2)
    for axis in axes.flat:
        axis.axis("off")
    for number, (left, right) in zip(chosen, axes, strict=False):
        image = data.images[number]
        pixels = load_image(image).permute(1, 2, 0).numpy()
        names = [data.classes[label] for label in image.labels.tolist()]
        styles = [_DOTTED if is_difficult else _SOLID for is_difficult in image.difficult.tolist()]
        _draw(left, pixels, zip(image.boxes.tolist(), names, styles, strict=True))
        left.set_title(f"{printable(image.path.stem)}: true", fontsize=9, loc="left", parse_math=False)
        every = np.flatnonzero(found.images == number)
        every = every[np.argsort(-found.scores[every], kind="stable")]
        top = every[: max(int((found.scores[every] >= threshold).sum()), len(names))]
        texts = [f"{data.classes[found.labels[i]]} {found.scores[i]:.2f}" for i in top]
        boxes = zip(found.boxes[top].tolist(), texts, [_DASHED] * len(texts), strict=True)
        _draw(right, pixels, reversed([*boxes]))  # the highest score on top
        right.set_title(f"detected: the top {len(top)} of {len(every)}", fontsize=9, loc="left")
    return png_of(figure)


def _draw(axis: Axes, pixels: np.ndarray, boxes: Iterable[tuple[list[float], str, object]]) -> None:
    axis.imshow(pixels)
    edge = [patheffects.Stroke(linewidth=3.5, foreground="black"), patheffects.Normal()]
    for (left, top, right, bottom), text, style in boxes:
        box = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, color="white", linewidth=1.5)
        box.set_linestyle(style)  # type: ignore[arg-type]
        box.set_path_effects(edge)
        axis.add_patch(box)
        above = "bottom" if top > len(pixels) / 12 else "top"  # beside the object, where there is room
        axis.text(
            left, top, text, fontsize=7, va=above, parse_math=False, clip_on=True,
            bbox={"facecolor": "white", "edgecolor": "black", "pad": 1, "linewidth": 0.5},
        )  # fmt: skip
