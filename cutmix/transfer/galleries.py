"""A page of pictures with what a network said about them, and what people said."""

import io
import textwrap
import warnings
from collections.abc import Mapping

import torch
from matplotlib.figure import Figure

from cutmix.data.decode import read_image
from cutmix.errors import InputError
from cutmix.runtime.seeding import derive_seed
from cutmix.transfer.captions import CaptionSet

_COLUMNS = 4
_LETTERS, _SMALL_LETTERS = 33, 44  # that fit in a line above a picture, and below it


def gallery_of_captions(
    data: CaptionSet, captions: Mapping[str, str], *, count: int = 8, references: int = 2, seed: int = 0
) -> bytes:
    """Draw some pictures, the network's caption of each in bold, and captions by people in grey.

    Args:
        data: The pictures and the captions by people.
        captions: The network's, by the picture's file name, as ``caption_scores`` takes them.
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
