"""Data sets that are tables: a file of labels, or a data set of Hugging Face. No torch here.

The file is CSV, JSON lines or Parquet; the data set is a folder that ``save_to_disk`` wrote, or ``hf:NAME``.
"""

import csv
import io
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from cutmix.data.folder import EXTENSIONS, NAMES_OF_PARTS, ClassFolders, File, Listing, printable_name, read_text
from cutmix.data.shards import Catalogue
from cutmix.data.sources import Sources, SourcesOf, Stored, json_object
from cutmix.errors import InputError, missing_extra
from cutmix.runtime.files import regular

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "img", "image_id"),
    "label": ("label", "labels", "class", "class_name", "category", "target", "species"),
    "split": ("split", "subset", "set", "partition"),
}
_MOST_BYTES = 1 << 30  # of a Parquet file's cells: ten million rows of a hundred characters
Row = tuple[int, str, str, str]  # number in the file, path, label, split


def read_label_file(path: Path) -> ClassFolders:
    """Read the images by split and class that a file lists.

    A row has a path, relative to the folder of the file, a label, and possibly a split: train, val or test. A CSV file
    names these columns in its first line, or has them in this order. Classes are sorted by name; labels that are all
    whole numbers sort by value.

    An image has several labels if they are separated by ``|`` or, in JSON lines and Parquet, are a list. If one image
    has several, all can have any number of labels, including none.
    """
    rows = list(_rows(path))
    if not rows:
        raise InputError(f"{path} lists no images; expected rows of path, label and possibly split")
    several = any("|" in label for _, _, label, _ in rows)
    labels = [[*dict.fromkeys(part.strip() for part in label.split("|") if part.strip())] for _, _, label, _ in rows]
    if not several and [] in labels:
        raise InputError(f"{path}, row {rows[labels.index([])][0]} has no label; expected one in each row")
    counts = Counter(chain.from_iterable(labels))
    numbered = all(label.isdecimal() and len(label) < 4300 for label in counts)
    names = sorted(counts, key=int if numbered else str)
    if not names:
        raise InputError(f"{path} holds no labels; expected some in the column of labels")
    if len(names) < 2:
        raise InputError(f"{path} holds one class only ('{names[0]}'); a classifier needs two or more")
    parts: dict[str, list[list[File]]] = {}
    seen: dict[tuple[int, int], int] = {}
    ids: dict[Path, tuple[int, ...]] = {}
    number_of = {name: number for number, name in enumerate(names)}
    for (number, name, _, split), own in zip(rows, labels, strict=True):
        file = _file(path, number, name)
        if file.identity in seen:
            raise InputError(f"{path}, row {number} lists {name} again, after row {seen[file.identity]}")
        seen[file.identity] = number
        ids[file.path] = tuple(sorted(number_of[label] for label in own))
        part = parts.setdefault(_part(path, number, split), [[] for _ in range(len(names) + several)])
        # images with several labels are grouped by the rarest, and those without any are the last group
        group = min(ids[file.path], key=lambda label: counts[names[label]], default=len(names))
        part[group].append(file)
    if "all" in parts and len(parts) > 1:
        raise InputError(f"{path} has a split in some rows only; expected train, val or test in each, or in none")
    if "all" not in parts and "train" not in parts:
        raise InputError(f"{path} has no train split; expected one")
    for split, classes in parts.items():
        if [] in classes and not several:
            raise InputError(f"{path} has no {split} images of the class '{names[classes.index([])]}'; expected some")
    listings = [Listing(files=own) for classes in parts.values() for own in classes]
    labels_of = ids if several else None
    return ClassFolders(path, tuple(names), parts, dict.fromkeys(parts, path), listings, labels=labels_of)


def _rows(path: Path) -> Iterable[Row]:
    if path.suffix.lower() == ".parquet":
        return _named(path, _read_parquet(path), first=1)
    text = read_text(path)
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return _named(path, _read_json_lines(path, text), first=1)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ";" if ";" in text.partition("\n")[0] else ","
    # not splitlines(): a cell may contain line breaks, and a label the line separators of Unicode
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        lines = [line for line in reader if any(cell.strip() for cell in line)]
    except csv.Error as error:
        raise InputError(f"{path}, row {reader.line_num} cannot be read as a row of a table: {error}") from None
    if lines and len(lines[0]) in (2, 3) and (path.parent / lines[0][0].strip()).is_file():  # no header
        return _named(path, _in_columns(path, ["path", "label", "split"][: len(lines[0])], lines, first=1), first=1)
    return _named(path, _in_columns(path, lines[0], lines[1:], first=2) if lines else [], first=2)


def _in_columns(path: Path, names: list[str], lines: list[list[str]], first: int) -> Iterable[dict[str, Any]]:
    """Yield the cells of each row by column; refuse a row that has more, such as a label with a comma in it."""
    for number, line in enumerate(lines, first):
        if any(cell.strip() for cell in line[len(names) :]):
            raise InputError(
                f"{path}, row {number} has {len(line)} cells; expected {len(names)} ({', '.join(names)}), and quotes "
                "around a cell that holds a separator"
            )
        yield dict(zip(names, line, strict=False))


def _named(path: Path, rows: Iterable[dict[str, Any]], first: int) -> Iterable[Row]:
    """Yield the path, label and split of each row, under any of the known names of columns."""
    for number, row in enumerate(rows, first):
        lower = {str(name).strip().lower(): value for name, value in row.items()}
        cells = []
        for wanted, known in _COLUMNS.items():
            value = next((lower[name] for name in known if lower.get(name) is not None), None)
            try:
                several = [_as_text(part) for part in value] if isinstance(value, list) else [_as_text(value)]
            except TypeError:
                raise InputError(
                    f"{path}, row {number}: the {wanted} is {value!r:.60}; expected a text or a number"
                ) from None
            text = "|".join(filter(None, several)).strip().encode("utf-8", "backslashreplace")
            cells.append(printable_name(text) if wanted == "label" else text.decode())
            there = wanted == "label" and any(name in lower for name in known)  # an image may have none of the labels
            if not cells[-1] and wanted != "split" and not there:
                raise InputError(
                    f"{path}, row {number} has no {wanted} in columns {', '.join(map(str, row))}; expected a column "
                    f"named {', '.join(known[:4])} or the like"
                )
        yield number, *cells  # type: ignore[misc]


def _as_text(value: Any) -> str:
    """Return a cell as text, "" for an absent value; a value that is no text, number or truth is a TypeError."""
    if value is None or value != value:  # NaN: an absent number of Parquet
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, list | dict):
        raise TypeError
    return str(value)


def _read_json_lines(path: Path, text: str) -> Iterable[dict[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield json_object(line, f"{path}, line {number}", '{"path": …, "label": …}')


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra(f"{path}: Parquet", "parquet") from None
    known, rows, size = {name for names in _COLUMNS.values() for name in names}, [], 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:  # a small file may announce more than the memory holds
            columns = [name for name in file.schema_arrow.names if name.strip().lower() in known]
            for batch in file.iter_batches(4096, columns=columns):
                size += batch.nbytes
                if size > _MOST_BYTES:
                    raise InputError(f"{path} holds more than {_MOST_BYTES >> 20} MiB of paths and labels")
                rows += batch.to_pylist()
        return rows
    except InputError:
        raise
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:  # of texts and dates among them
        raise InputError(f"{path} cannot be read as Parquet: {' '.join(str(error).split())}") from None


def _file(path: Path, number: int, name: str) -> File:
    found, files = path.parent / name, []
    try:
        found = path.parent / Path(name).expanduser()
        if not found.suffix and not found.exists():  # a column of ids: the names without their suffixes
            files = [each for suffix in EXTENSIONS if (each := found.with_suffix(suffix)).exists()]
            found = files[0] if files else found
        status = found.stat()
    except (OSError, ValueError, RuntimeError):  # of expanduser, without a home
        raise InputError(f"{path}, row {number}: there is no {found}; expected paths from {path.parent}") from None
    if len(files) > 1:
        which = " and ".join(each.name for each in files)
        raise InputError(f"{path}, row {number}: {name} can be {which}; expected names with their suffixes")
    return File(found, (status.st_dev, status.st_ino), status.st_size)


def _part(path: Path, number: int, split: str) -> str:
    if not split:
        return "all"
    for part, pattern in NAMES_OF_PARTS.items():
        if pattern.fullmatch(split):
            return part
    raise InputError(f"{path}, row {number}: the split is '{split}'; expected train, val or test")


# ---- data sets of Hugging Face ----

PREFIX = "hf:"

_LABELS = ("label", "labels", "class", "fine_label", "category", "target", "species")
_PIECE = 10_000

_log = logging.getLogger(__name__)


class Rows(SourcesOf[Stored]):
    """The images in a column of a data set, read when they are used; ``kept`` are the rows, (n,) int64.

    ``place`` is the name of the data set, or its folder, in which relative paths of images are looked for first.
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
        beside = Path(self.place).expanduser() / found["path"]
        return regular(beside if beside.exists() else Path(found["path"])).read_bytes()


def is_saved(folder: Path) -> bool:
    """Return whether ``save_to_disk`` wrote a folder."""
    return (folder / "dataset_dict.json").is_file() or all(
        (folder / name).is_file() for name in ("state.json", "dataset_info.json")
    )


def read_hub(data: str) -> Catalogue:
    """Read a data set of Hugging Face with a column of images and one of labels.

    ``data`` is a folder that ``save_to_disk`` wrote, or "hf:NAME" or "hf:NAME:CONFIG", which is downloaded.
    """
    try:
        import datasets
    except ImportError:
        raise missing_extra(f"{data}, a data set of Hugging Face", "datasets") from None
    datasets.disable_progress_bars()
    try:
        if data.startswith(PREFIX):
            name, _, config = data.removeprefix(PREFIX).partition(":")
            found = _load_named(name, config or None)
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
    image, label, classes = _columns(data, parts["train" if "train" in parts else "all"])
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


def _load_named(name: str, config: str | None) -> Any:
    """Load a data set of the hub, or its copy on the disk; the hub is asked once, instead of for half a minute."""
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    try:
        if not any(before) and not Path(name).exists():
            get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # of the network
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        return datasets.load_dataset(name, config)
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


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
    """Return the labels of a split as int64; None for a split whose labels are not published."""
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
