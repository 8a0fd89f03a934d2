"""A page of pictures with what a network said about them, and what people said."""

import io
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cutmix.data.decode import read_image
from cutmix.errors import InputError
from cutmix.runtime.seeding import derive_seed
from cutmix.transfer.average_precision import Detections
from cutmix.transfer.caption_data import CaptionSet
from cutmix.transfer.detection_data import DetectionSet, load_picture

_COLUMNS = 4
_LETTERS, _SMALL_LETTERS = 33, 44  # that fit in a line above a picture, and below it


def gallery_of_captions(
    data: CaptionSet, captions: Mapping[str, str], *, count: int = 8, references: int = 2, seed: int = 0
) -> bytes:
    """Draw some pictures, the network's caption of each in bold, and captions by people in grey.

    Args:
        data: The pictures and the captions by people.
        captions: The network's, by the picture's file name, as ``score_captions`` takes them.
        count: Number of pictures, at most; in the order of the set.
        references: Most captions by people below each picture.
        seed: Of the choice of pictures.

    Returns:
        A PNG file.

    Raises:
        InputError: A picture that is drawn has no caption or cannot be read.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "gallery"))
    chosen = torch.randperm(len(data), generator=generator)[:count].sort().values.tolist()
    columns = min(_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(2.6 * columns, (2.5 + 0.3 * references) * rows), dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, i in zip(axes, chosen, strict=False):
        name = data.paths[i].name
        if name not in captions:
            raise InputError(f"there is no caption for the picture '{name}' of {data.name}")
        axis.imshow(read_image(data.paths[i]))
        said = _wrapped(captions[name] or "(nothing)", _LETTERS, 3)
        axis.set_title(said, fontsize=9, fontweight="bold", parse_math=False)
        known = [f"– {text.strip().removesuffix(' .')}" for text in data.captions[i][:references]]
        people = "\n".join(_wrapped(text, _SMALL_LETTERS, 2) for text in known)
        axis.set_xlabel(people, fontsize=7, color="#555555", parse_math=False)
    for axis in figure.axes:
        axis.set(xticks=[], yticks=[])
        axis.set_frame_on(False)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")  # a caption in a script that the font lacks
        figure.savefig(file, format="png")
    return file.getvalue()


def _wrapped(text: str, letters: int, lines: int) -> str:
    """Break a text into lines, and cut what does not fit."""
    return "\n".join(textwrap.wrap(text, letters, max_lines=lines, placeholder=" …"))


# ---- detection gallery ----
# A picture of what a detector finds: each image twice, with its true boxes and with those found.

_SOLID, _DASHED, _DOTTED = "-", (0, (5, 3)), (0, (1, 2))


def gallery_of_detections(
    data: DetectionSet, found: Detections, *, pictures: Sequence[int] | None = None, threshold: float = 0.5
) -> bytes:
    """Draw pictures in pairs: true boxes on the left, found ones with their scores on the right.

    What is found at a lower score than ``threshold`` is drawn only where there is less above it than there are objects:
    then the surest detections are, as many as there are objects, for a detector that is never sure of anything has
    something to show too.

    Lines are black and white, so that they are seen on any picture and in print: solid for objects, dotted for
    difficult ones, dashed for what was found.

    Args:
        data: The split.
        found: What was found in it, in pixels; pictures numbered by their order.
        pictures: Which ones to draw; by default the first eight.
        threshold: The score from which all are drawn.

    Returns:
        A PNG file.

    Raises:
        InputError: A number names no picture, or a picture cannot be read.
    """
    chosen = list(range(min(8, len(data))) if pictures is None else pictures)
    if not chosen or not 0 <= min(chosen) <= max(chosen) < len(data):
        raise InputError(f"the pictures to draw are {chosen}: expected numbers from 0 to {len(data) - 1}")
    rows = -(-len(chosen) // 2)
    figure = Figure(figsize=(14, 0.3 + 2.9 * rows), dpi=100, layout="constrained")
    axes = figure.subplots(rows, 4, squeeze=False).reshape(-1, 2)
    for axis in axes.flat:
        axis.axis("off")
    for number, (left, right) in zip(chosen, axes, strict=False):
        picture = data.pictures[number]
        pixels = load_picture(picture).permute(1, 2, 0).numpy()
        names = [data.classes[label] for label in picture.labels.tolist()]
        styles = [_DOTTED if hard else _SOLID for hard in picture.difficult.tolist()]
        _draw(left, pixels, zip(picture.boxes.tolist(), names, styles, strict=True))
        left.set_title(f"{picture.path.stem}: true", fontsize=9, loc="left", parse_math=False)
        every = np.flatnonzero(found.images == number)
        every = every[np.argsort(-found.scores[every], kind="stable")]
        surest = every[: max(int((found.scores[every] >= threshold).sum()), len(names))]
        texts = [f"{data.classes[found.labels[i]]} {found.scores[i]:.2f}" for i in surest]
        boxes = zip(found.boxes[surest].tolist(), texts, [_DASHED] * len(texts), strict=True)
        _draw(right, pixels, reversed([*boxes]))  # the surest on top
        right.set_title(f"found: the surest {len(surest)} of {len(every)}", fontsize=9, loc="left")
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")  # a class name in a script that the font lacks
        figure.savefig(file, format="png")
    return file.getvalue()


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
