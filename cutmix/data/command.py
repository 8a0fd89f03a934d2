"""``cutmix data`` describes a data set; ``cutmix shards`` writes one as tar shards, and resumes an interrupted one."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from cutmix.config.options import DataOptions, ShardsOptions
from cutmix.config.recipe import flag
from cutmix.data.decode import displayed, read_channels
from cutmix.data.division import Copies, find_copies, of_several_classes
from cutmix.data.folder import ClassFolders, count_suffixes, is_hidden, say_others
from cutmix.data.opening import is_small, open_splits
from cutmix.data.sets import ArraySet, FileSet, ImageSet, Splits
from cutmix.data.shards import find_shards, read_shards
from cutmix.data.sources import CLASSES, plan_shards, write_shard
from cutmix.errors import InputError, a_few, counted, printable, shorten
from cutmix.runtime.files import make_folder, read_object, to_json, write_atomic
from cutmix.runtime.seeding import derive_seed
from cutmix.runtime.terminal import Tabular, say

if TYPE_CHECKING:
    from rich.table import Table


UNBALANCED = 3.0
"""Classes are called unbalanced where the largest has this many times the training images of the smallest."""


@dataclass(frozen=True, repr=False)
class Description(Tabular):
    """A description of a data set."""

    name: str  # a known name, or the folder's
    classes: tuple[str, ...]  # in the order of their labels
    splits: dict[str, list[int]]  # the number of images of each class, by split ("train", "val", "test")
    origin: dict[str, str]  # origin of each split, as a phrase
    # "width" and "height": smallest, median and largest in pixels; empty if no image was decoded
    sizes: dict[str, list[int]] = field(default_factory=dict)
    # number of files in the class folders that are not images, by suffix
    others: dict[str, int] = field(default_factory=dict)
    hidden: int = 0  # number of hidden files and folders in the class folders
    beside: list[str] = field(default_factory=list)  # images and folders beside the class folders, which are left out
    links: list[str] = field(default_factory=list)  # links to files that are in the data set under another name
    unreadable: dict[str, str] = field(default_factory=dict)  # files that cannot be decoded, and the reason
    compared: str = "nothing"  # "pixels", "files" or "nothing": the data compared to find copies
    copies: list[list[str]] = field(default_factory=list)  # groups of files of the same image
    conflicts: list[list[str]] = field(default_factory=list)  # those groups whose files are in different classes
    # by split: files left out of it since a later split has the same image
    leaks: dict[str, list[str]] = field(default_factory=dict)
    # number of images in each folder inside a class folder; these images are used
    deeper: dict[str, int] = field(default_factory=dict)
    near: int = 0  # number of images beyond the first of each group of nearly equal ones, without the copies
    apart: list[list[str]] = field(default_factory=list)  # groups of nearly equal images that are in several splits
    # by split: the number of images, where an image can have several classes, or none
    images: dict[str, int] = field(default_factory=dict)
    near_conflicts: list[list[str]] = field(default_factory=list)  # groups of nearly equal images in different classes

    @property
    def totals(self) -> dict[str, int]:
        """The number of images of each split."""
        return self.images or {split: sum(counts) for split, counts in self.splits.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, the counts of each class by its name."""
        classes = [
            {"name": name} | {split: counts[label] for split, counts in self.splits.items()}
            for label, name in enumerate(self.classes)
        ]
        splits = {
            split: {"images": images, "origin": self.origin.get(split, "")} for split, images in self.totals.items()
        }
        rest = {
            name: value for name, value in vars(self).items() if name not in ("origin", "classes", "splits", "images")
        }
        return rest | {"classes": classes, "splits": splits, "warnings": self.warnings()}

    def tables(self) -> "Iterator[Table | str]":
        """Yield the table of the classes, then the summary."""
        yield self.table()
        yield from self.lines()

    def to_json(self) -> str:
        """Return the description as JSON text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def lines(self) -> list[str]:
        """Return a summary in a few lines: the splits, the sizes, the files left out, and the warnings."""
        total = sum(self.totals.values())
        lines = [f"{self.name}: {total:,} images of {len(self.classes)} classes ({a_few(self.classes)})"]
        if self.images:
            mean = sum(map(sum, self.splits.values())) / total
            lines.append(f"an image can have several labels: {mean:.2g} on average")
        lines += [
            f"{split}: {images:,} images" + (f" ({self.origin[split]})" if self.origin.get(split) else "")
            for split, images in self.totals.items()
        ]
        if self.sizes:
            (w0, w, w1), (h0, h, h1) = self.sizes["width"], self.sizes["height"]
            ranges = f"{w0:,} to {w1:,} wide (median {w:,}), {h0:,} to {h1:,} high (median {h:,})"
            lines.append(f"pixels: {w}×{h}" if (w0, h0) == (w1, h1) else f"pixels: {ranges}")
        return lines + self.warnings()

    def warnings(self) -> list[str]:
        """Return notes on the files left out and on possible distortions of a result."""
        return self.left_out() + self._copies() + self._labels() + self._balance()

    def left_out(self) -> list[str]:
        """Return notes on the files left out."""
        lines = []
        if self.others:
            lines.append(say_others(self.others))
        if self.hidden:
            lines.append(f"{counted(self.hidden, 'hidden file or folder is', 'hidden files or folders are')} left out")
        if self.beside:
            where = "the split folders" if any(name.endswith("/") for name in self.beside) else "the class folders"
            lines.append(f"left out, beside {where}: {a_few(self.beside)}")
        if self.deeper:
            images = counted(sum(self.deeper.values()), "image is", "images are")
            lines.append(f"{images} in folders inside the class folders and taken too: {a_few(self.deeper)}")
        if self.links:
            links = counted(len(self.links), "link repeats a file", "links repeat files")
            lines.append(f"{links}: {a_few(self.links)}")
        if self.unreadable:
            which = a_few(self.unreadable)
            lines.append(f"{counted(len(self.unreadable), 'image cannot be read', 'images cannot be read')}: {which}")
        return lines

    def _copies(self) -> list[str]:
        lines = []
        if self.copies:
            extra = _extra(self.copies)
            groups = counted(len(self.copies), "image is", "images are")
            how = "the same pixels" if self.compared == "pixels" else "equal files"
            lines.append(
                f"{groups} there several times ({how}, {counted(extra, 'copy', 'copies')}); "
                "copies are never in two splits"
            )
        if self.near:
            kept = "" if self.apart else "; such images are never in two splits"
            lines.append(f"{counted(self.near, 'more image is', 'more images are')} nearly the same as another{kept}")
        if self.apart:
            n = counted(len(self.apart), "image is", "images are")
            lines.append(f"{n} nearly the same in several splits: {_alike(self.apart)}")
        for split, files in self.leaks.items():
            n = counted(len(files), f"image of {split} is", f"images of {split} are")
            lines.append(f"{n} in a later split too and left out of {split}: {a_few(files)}")
        if self.conflicts:
            n = counted(len(self.conflicts), "image is", "images are")
            lines.append(f"{n} in two classes: {_alike(self.conflicts)}")
        if self.near_conflicts:
            n = counted(len(self.near_conflicts), "image is", "images are")
            lines.append(f"{n} nearly the same in two classes: {_alike(self.near_conflicts)}")
        return lines

    def _labels(self) -> list[str]:
        """Return notes on class names that read like quantities, or like several labels."""
        lines, known = [], set(self.classes)
        numbers = all(re.fullmatch(r"[-+]?\d*\.?\d+", name) for name in known)
        if numbers and any(float(name) % 1 for name in known):
            lines.append(f"the labels are numbers ({a_few(self.classes)}): each is a class, without order or distance")
        if several := [name for name in self.classes if {name} != {*re.split(r" *[,;/+&] *", name)} <= known]:
            lines.append(
                f"{counted(len(several), 'class reads', 'classes read')} like several labels: {a_few(several)}; "
                "a file of labels separates those of an image by |"
            )
        return lines

    def _balance(self) -> list[str]:
        lines = []
        counts = self.splits.get("train", [])
        if list(self.splits) == ["train"]:
            lines.append("there are no images to evaluate on")
        if len(counts) > 1 and max(counts) >= UNBALANCED * min(counts):
            least, most = (self.classes[counts.index(number)] for number in (min(counts), max(counts)))
            share = max(counts) / sum(counts)
            always = "" if self.images else f"; always predicting {most} is right for {share:.0%} of them"
            lines.append(
                f"classes are unbalanced: from {min(counts):,} ({least}) to {max(counts):,} ({most}) training images"
                f"{always}"
            )
        for split, numbers in self.splits.items():
            if missing := [name for name, number in zip(self.classes, numbers, strict=True) if not number]:
                classes = counted(len(missing), "class has", "classes have")
                lines.append(f"{classes} no {split} images: {a_few(missing)}")
        return lines

    def table(self, most: int = 30) -> "Table":
        """Return a table of the images of each class in each split; beyond ``most``, of the first and last classes."""
        from rich.markup import escape
        from rich.table import Table

        table = Table("class", *self.splits)
        for column in table.columns[1:]:
            column.justify = "right"
        rows = list(enumerate(self.classes))
        shown = rows if len(rows) <= most else [*rows[: most // 2], None, *rows[-(most // 2) :]]
        for row in shown:
            if row is None:
                table.add_row(f"… {len(rows) - 2 * (most // 2):,} more", *("…" for _ in self.splits))
            else:
                table.add_row(escape(shorten(row[1], 60)), *(f"{counts[row[0]]:,}" for counts in self.splits.values()))
        if len(self.classes) > 1:
            table.add_section()
            table.add_row("images" if self.images else "all", *(f"{images:,}" for images in self.totals.values()))
        return table


def run_data(options: DataOptions) -> Description:
    """Describe a data set, after decoding every image of a folder; draw a few images of each class into ``--out``."""
    splits = open_splits(
        options.data, val_fraction=options.val_fraction, seed=options.seed, download=options.download,
        skip_unreadable=True, channels=options.channels,
    )  # fmt: skip
    if splits.official:
        _refuse_division(splits.train.name, val_fraction=options.val_fraction, seed=options.seed)
    copies = None
    if splits.folders and splits.copies.compared == "files":
        copies = find_copies(splits.folders, None, channels=options.channels)
    description = describe_splits(splits, copies)
    if options.out:
        image = draw_classes(splits.train)
        write_atomic(options.out, lambda file: image.save(file, "PNG"))
    return description


def _refuse_division(name: str, **given: float) -> None:
    """Refuse flags that divide a folder, if they are given for a set with its own splits."""
    own = {field.name: field.default for field in fields(DataOptions)}
    if flags := [flag(name) for name, value in given.items() if value != own[name]]:
        raise InputError(f"{name} has its own splits; expected no --{' and no --'.join(flags)}")


def describe_splits(splits: Splits, copies: Copies | None = None) -> Description:
    """Describe an opened data set; ``cutmix train`` prints its ``lines()`` first."""
    parts = {split: part for split in ("train", "val", "test") if (part := getattr(splits, split)) is not None}
    counts = {split: part.counts().tolist() for split, part in parts.items()}
    train = splits.train
    if splits.folders is None:
        sizes = {}
        if isinstance(train, ArraySet):
            height, width = train.images.shape[2:]
            sizes = {"width": [width] * 3, "height": [height] * 3}
        skipped = [path for part in parts.values() for path in part.skipped]
        return Description(
            train.name, train.classes, counts, splits.origin, sizes, unreadable={str(path): "" for path in skipped}
        )
    folders, copies = splits.folders, copies or splits.copies

    def shown(paths: Iterable[Path]) -> list[str]:
        return [printable(folders.name_of(path)) + "/" * path.is_dir() for path in paths]

    def grouped(groups: Iterable[Sequence[Any]]) -> list[list[str]]:
        return [shown(file.path for file in group) for group in groups]

    listings, near = folders.listings, copies.near or []
    split_of = {path: split for split, part in parts.items() if isinstance(part, FileSet) for path in part.paths}
    unreadable = {path: str(error) for path, error in copies.unreadable.items()}
    unreadable |= {path: "" for part in parts.values() for path in part.skipped if path not in unreadable}
    columns = list(zip(*copies.sizes.values(), strict=True)) if copies.sizes else []
    return Description(
        train.name,
        train.classes,
        counts,
        splits.origin,
        dict(zip(("width", "height"), ([min(x), round(median(x)), max(x)] for x in columns), strict=False)),
        count_suffixes(path for listing in listings for path in listing.others),
        sum(len(listing.hidden) for listing in listings),
        shown(folders.beside),
        shown(path for listing in listings for path in listing.repeated),
        dict(zip(shown(unreadable), map(printable, unreadable.values()), strict=True)),
        copies.compared,
        grouped(copies.groups),
        grouped(copies.conflicts),
        {split: shown(file.path for file in files) for split, files in splits.leaks.items()},
        _deeper(folders),
        _extra(near) - _extra(copies.groups) if near else 0,
        grouped(group for group in near if len({split_of.get(file.path) for file in group} - {None}) > 1),
        {split: len(part) for split, part in parts.items()} if train.multi_label else {},
        grouped(
            group for group in of_several_classes(near, folders)
            if not any({*copy} <= {*group} for copy in copies.conflicts)  # named already
        ),
    )  # fmt: skip


def _alike(groups: Iterable[Sequence[str]]) -> str:
    """Return the first groups of alike images, of a large one its first images."""
    return a_few(" = ".join([*group[:3], *[f"{len(group) - 3:,} more"] * (len(group) > 3)]) for group in groups)


def _extra(groups: Sequence[Sequence[Any]]) -> int:
    """Return the number of members of groups beyond the first of each."""
    return sum(map(len, groups)) - len(groups)


def _deeper(folders: ClassFolders) -> dict[str, int]:
    """Return the number of images in each folder inside a class folder."""
    if folders.root.is_file():
        return {}
    counts: Counter[str] = Counter()
    for part, classes in folders.parts.items():
        level = len(folders.folders[part].parts) + 2  # the class, the file
        paths = [file.path for own in classes for file in own]
        counts.update(folders.name_of(path.parent) for path in paths if len(path.parts) > level)
    return {f"{printable(name)}/": count for name, count in sorted(counts.items())}


def draw_classes(data: ImageSet) -> Image.Image:
    """Draw the first 8 images of each of the first 40 classes in a row, fitted into squares."""
    font = ImageFont.load_default(size=13)
    per_class, most, side, line, gap = 8, 40, 96, 20, 4
    rows = min(data.num_classes, most)
    page = Image.new("RGB", (gap + per_class * (side + gap), rows * (line + side + gap)), "white")
    draw = ImageDraw.Draw(page)
    for label in range(rows):
        top = label * (line + side + gap)
        members = data.members(label).tolist()
        draw.text((gap, top + 2), f"{shorten(data.classes[label], 60)} ({len(members):,})", "black", font)
        for column, index in enumerate(members[:per_class]):
            image = ImageOps.pad(_load(data, index), (side, side), color=(230, 230, 230))
            page.paste(image, (gap + column * (side + gap), top + line))
    return page


def _load(data: ImageSet, index: int) -> Image.Image:
    if isinstance(data, FileSet):
        return displayed(read_channels(data.paths[index], data.in_chans))
    pixels = data.images[index].permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")


# ---- shards ----

PLAN = "shards.json"


def write_shards(options: ShardsOptions) -> Path:
    """Write the splits of a data set as shards, the training images in a random order; return the folder."""
    if is_small(options.data):
        raise InputError(f"{options.data} is a set of small images, held in memory; expected a folder of images")
    if Path(options.data).is_dir() and options.out.resolve().is_relative_to(Path(options.data).resolve()):
        raise InputError(f"{options.out} is inside {options.data}, and would be a class of it; expected another folder")
    splits = open_splits(
        options.data, val_fraction=options.val_fraction, seed=options.seed, skip_unreadable=options.skip_unreadable,
        channels=options.channels,
    )  # fmt: skip
    if splits.official:
        _refuse_division(splits.train.name, val_fraction=options.val_fraction)
    if splits.train.labels.ndim > 1:
        raise InputError(f"{options.data} has several labels an image; cutmix shards writes one for each")
    say("\n".join(describe_splits(splits).lines()))
    sets: dict[str, Any] = {split: part for split in ("train", "val", "test") if (part := getattr(splits, split))}
    plan = {
        "shard_size": options.shard_size, "seed": options.seed,
        "data": {split: data.fingerprint() for split, data in sets.items()},
    }  # fmt: skip
    _start(options.out, plan)
    written = kept = 0
    for split, data in sets.items():
        new, old = _write_split(options, split, data)
        written, kept = written + new, kept + old
    found = read_shards(options.out, find_shards(options.out))
    for split, data in sets.items():
        if len(found.parts[split][0]) != len(data):
            raise InputError(f"{options.out} has {len(found.parts[split][0])} {split} images; expected {len(data)}")
    there = f" ({kept} existed)" if kept else ""
    flag = f" --channels {options.channels}" if options.channels != 3 else ""
    say(f"wrote {written} shards to {options.out}{there}; cutmix train --data {options.out}{flag} trains on them")
    return options.out


def _start(folder: Path, plan: dict[str, Any]) -> None:
    """Make the folder, or check that an interrupted command with the same images and flags made it."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; expected a folder for the shards")
    if (folder / PLAN).exists():
        if read_object(folder / PLAN) != plan:
            raise InputError(f"{folder} holds shards of other images or flags; choose another folder with --out")
        return
    make_folder(folder)
    if any(not is_hidden(path.name) for path in folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds no shards; choose another folder with --out")
    write_atomic(folder / PLAN, lambda file: file.write(to_json(plan, indent=1)))


def _write_split(options: ShardsOptions, split: str, data: FileSet) -> tuple[int, int]:
    """Write the missing shards of a split; return the number written, and the number that existed."""
    names, labels = data.paths.names(), data.labels.tolist()
    sizes = [int(identity.rpartition(b"/")[2]) for identity in data.paths.identities()]
    order = torch.arange(len(data))
    if split == "train":
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(derive_seed(options.seed, "shards")))
    shards = plan_shards(sizes, order.tolist(), options.shard_size * 1_000_000)
    write_atomic(options.out / CLASSES, lambda file: file.write("\n".join(data.classes).encode() + b"\n"))
    written = 0
    for number, indices in enumerate(shards):
        path = options.out / f"{split}-{number:06d}.tar"
        if not path.exists():
            write_shard(path, indices, data.paths, names, labels, data.classes)
            written += 1
    return written, len(shards) - written
