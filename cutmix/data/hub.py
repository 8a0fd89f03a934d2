"""Data sets of Hugging Face's ``datasets``: a folder that ``save_to_disk`` wrote, or ``hf:NAME``. No torch here."""

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cutmix.data.folder import NAMES_OF_PARTS, printable_name
from cutmix.data.shards import Catalogue
from cutmix.data.sources import Sources, SourcesOf, Stored
from cutmix.errors import InputError, missing_extra
from cutmix.runtime.files import regular

PREFIX = "hf:"

_LABELS = ("label", "labels", "class", "fine_label", "category", "target", "species")
_PIECE = 10_000

_log = logging.getLogger(__name__)


class Rows(SourcesOf[Stored]):
    """The images in a column of a data set, read when they are asked for.

    Args:
        data: The data set, whose images are not decoded.
        column: The column.
        kept: The rows, (n,) int64.
        place: The data set, for messages.
    """

    def __init__(self, data: Any, column: str, kept: np.ndarray, place: str) -> None:
        self.data, self.column, self.kept, self.place = data, column, kept, place

    def __len__(self) -> int:
        return len(self.kept)

    def one(self, number: int) -> Stored:
        """Return an image by its index."""
        return _Row(self, int(self.kept[number]))

    def take(self, index: Sequence[int] | np.ndarray) -> "Rows":
        """Return some of the images, by their indices."""
        return Rows(self.data, self.column, self.kept[np.asarray(index, np.int64)], self.place)

    def names(self) -> list[str]:
        """Return the number of the row of each image."""
        return [f"{row:09d}" for row in self.kept.tolist()]

    def identities(self) -> Iterable[bytes]:
        """Yield the row and the size of each image."""
        import pyarrow.compute

        table, sizes = self.data.with_format("arrow"), np.zeros(len(self.data), np.int64)
        for start in range(0, len(self.data), _PIECE):
            column = table[start : start + _PIECE][self.column].combine_chunks()
            lengths = pyarrow.compute.binary_length(pyarrow.compute.struct_field(column, "bytes"))
            sizes[start : start + _PIECE] = lengths.fill_null(-1).to_numpy(zero_copy_only=False)
        return (b"%d/%d" % (row, sizes[row]) for row in self.kept.tolist())


class _Row(Stored):
    """The image of a row."""

    suffix = ""

    def __init__(self, rows: Rows, row: int) -> None:
        self.rows, self.row, self.name, self.place = rows, row, f"{row:09d}", rows.place

    def read_bytes(self) -> bytes:
        found = self.rows.data[self.row][self.rows.column]
        if not found:
            raise OSError("the row has no image")
        if found["bytes"] is not None:
            return found["bytes"]
        if not found["path"] or "\0" in found["path"]:
            raise OSError("the row has no image")
        return regular(Path(found["path"])).read_bytes()


def is_saved(folder: Path) -> bool:
    """Return whether ``save_to_disk`` wrote a folder."""
    return (folder / "dataset_dict.json").is_file() or all(
        (folder / name).is_file() for name in ("state.json", "dataset_info.json")
    )


def read_hub(data: str) -> Catalogue:
    """Read a data set with a column of images and one of labels.

    Args:
        data: A folder that ``save_to_disk`` wrote, or "hf:NAME" or "hf:NAME:CONFIG", which is downloaded.

    Raises:
        InputError: The package ``datasets`` is not installed, or there is no such data set, or it has no such columns.
    """
    try:
        import datasets
    except ImportError:
        raise missing_extra(f"{data}, a data set of Hugging Face", "datasets") from None
    datasets.disable_progress_bars()
    try:
        if data.startswith(PREFIX):
            name, _, config = data.removeprefix(PREFIX).partition(":")
            found = datasets.load_dataset(name, config or None)
        else:
            found = datasets.load_from_disk(os.fspath(Path(data).expanduser()))
    except Exception as error:  # of the network, the hub, Arrow or JSON
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"{data} could not be loaded: {reason}") from None
    given = dict(found) if isinstance(found, dict) else {"all": found}
    parts: dict[str, Any] = {}
    for split, own in given.items():
        part = next((part for part, names in NAMES_OF_PARTS.items() if names.fullmatch(split)), "all")
        if (part == "all" and len(given) > 1) or part in parts:
            _log.info("%s: the split '%s' is left out; train, validation and test are used", data, split)
        else:
            parts[part] = own
    if not {"train", "all"} & parts.keys():
        raise InputError(f"{data} has the splits {', '.join(given)}; expected train")
    image, label, classes = _columns(data, next(iter(parts.values())))
    read: dict[str, tuple[np.ndarray, Sources]] = {}
    for part, own in parts.items():
        labels = _labels(data, part, own, label, classes)
        if labels is not None:
            if image not in own.features:
                raise InputError(f"{data} has no column {image} in the split {part}; expected one as in the others")
            rows = own.cast_column(image, datasets.Image(decode=False))
            read[part] = labels, Rows(rows, image, np.arange(len(own)), data)
    if not {"train", "all"} & read.keys():
        raise InputError(f"{data} has no labels of images to train on; expected the column {label} in each split")
    return Catalogue(tuple(map(printable_name, classes)), read, {part: f"split '{part}'" for part in read})


def _columns(data: str, table: Any) -> tuple[str, str, list[str]]:
    """Return the column of the images, that of the labels, and the names of the classes."""
    import datasets

    features = table.features
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    texts = [name for name in _LABELS if getattr(features.get(name), "dtype", "") in ("string", "int64", "int32")]
    if not images or not (labels or texts):
        raise InputError(f"{data} has the columns {', '.join(features)}; expected one of images and one of labels")
    label = next((name for name in _LABELS if name in labels), None) or (labels + texts)[0]
    if label in labels:
        return images[0], label, list(features[label].names)
    values = set(table.unique(label))
    if None in values:
        raise InputError(f"{data} has rows without a value of {label}; expected a label in each")
    return images[0], label, [str(value) for value in sorted(values)]


def _labels(data: str, part: str, table: Any, column: str, classes: list[str]) -> np.ndarray | None:
    """Return the labels of a split as int64; None of a split whose labels are not published."""
    number = {name: i for i, name in enumerate(classes)}
    values = list(table[column]) if column in table.features else [None]
    if (names := getattr(table.features.get(column), "names", None)) is not None:
        # each split may number the names in its own way
        values = [names[value] if value is not None and 0 <= value < len(names) else value for value in values]
    labels = np.array([-1 if value is None else number.get(str(value), -1) for value in values], np.int64)
    if unknown := [value for value, i in zip(values, labels, strict=True) if i < 0 and value not in (None, -1)]:
        raise InputError(f"{data} has {part} images of the class '{unknown[0]}'; expected {' or '.join(classes[:20])}")
    if len(labels) and labels.max() < 0:
        _log.info("%s: the split '%s' is left out, as it has no labels", data, part)
        return None
    if not len(labels) or labels.min() < 0:
        raise InputError(f"{data} has {part} images without a known label; expected one for each")
    return labels
