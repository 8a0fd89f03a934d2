"""A picture of what a detector finds: each image twice, with its true boxes and with those found."""

import io
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cutmix.errors import InputError
from cutmix.transfer.detection_data import DetectionSet
from cutmix.transfer.detection_transforms import load_picture
from cutmix.transfer.matching import Detections

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
