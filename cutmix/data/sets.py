"""Data sets: images and their labels, in memory or encoded, and their splits."""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from cutmix.config.recipe import FILE_SIZE
from cutmix.data.division import Copies
from cutmix.data.folder import ClassFolders, File
from cutmix.data.sources import Paths, Source, Sources, SourcesOf
from cutmix.errors import InputError
from cutmix.runtime.seeding import derive_seed

Split = Literal["train", "val", "test", "all"]


@dataclass(frozen=True, eq=False)
class _Labelled:
    """The fields that both kinds of sets share."""

    name: str  # a known name, or the folder's
    split: Split
    classes: tuple[str, ...]
    # class ids, (N,) int64, indices into the classes; or, where an image can have several, (N, K) uint8, 0 or 1
    labels: Tensor
    mean: tuple[float, ...]  # of each channel, for pixels in [0, 1]
    std: tuple[float, ...]  # of each channel, for pixels in [0, 1]

    def __post_init__(self) -> None:
        if self.multi_label:
            return
        if len(self) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.num_classes:
            raise InputError(
                f"the {self.split} labels of {self.name} run from {int(self.labels.min())} to "
                f"{int(self.labels.max())}; expected 0 to {self.num_classes - 1} for its {self.num_classes} classes"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def multi_label(self) -> bool:
        """Whether an image can have several classes, or none."""
        return self.labels.ndim == 2

    def counts(self) -> Tensor:
        """Return the number of images of each class, (K,) int64."""
        if self.multi_label:
            return self.labels.sum(0, dtype=torch.int64)
        return self.labels.bincount(minlength=self.num_classes)

    def members(self, label: int) -> Tensor:
        """Return the indices of the images of a class, ascending, (n,) int64."""
        return (self.labels[:, label] if self.multi_label else self.labels == label).nonzero()[:, 0]

    def fingerprint(self) -> str:
        """Return a digest of the samples, their order, labels and classes, wherever they lie; computed once."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(self.labels.numpy().tobytes(), digest_size=16)
        digest.update("/".join(self.classes).encode("utf-8", "surrogateescape"))
        if isinstance(self, ArraySet):
            digest.update(self.images.contiguous().numpy().data)
        if isinstance(self, FileSet):
            for identity in self.paths.identities():
                digest.update(identity)
        return digest.hexdigest()

    @property
    def num_classes(self) -> int:
        """Classes that a label can name."""
        return len(self.classes)


@dataclass(frozen=True, eq=False)
class ArraySet(_Labelled):
    """A split that is small enough to be one tensor."""

    images: Tensor  # (N, C, H, W) uint8
    skipped: tuple[Source, ...] = ()  # unreadable files that were left out on request

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return self.images.shape[1]


@dataclass(frozen=True, eq=False)
class FileSet(_Labelled):
    """A split of encoded images, decoded when they are loaded."""

    paths: Sources  # the N images: paths of files, or the places of images inside larger files
    skipped: tuple[Source, ...] = ()  # unreadable images that were left out on request
    in_chans: int = 3  # channels that the files are decoded to; see ``decode.read_channels``

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "paths", self.paths if isinstance(self.paths, SourcesOf) else Paths(self.paths))


ImageSet = ArraySet | FileSet


@dataclass(frozen=True, eq=False)
class Splits:
    """The splits of a data set, and their origin."""

    train: ImageSet  # images to train on
    val: ImageSet | None  # images to choose by (the best epoch, a threshold)
    test: ImageSet | None  # images to report on
    origin: dict[str, str]  # origin of each split, as a phrase
    folders: ClassFolders | None = None  # of a folder of class folders: its contents
    copies: Copies = field(default_factory=Copies)  # of such a folder: equal images
    # of such a folder, by split: files left out since a later split has the same image
    leaks: dict[str, list[File]] = field(default_factory=dict)
    official: bool = False  # whether the division is that of a known set

    @property
    def reported(self) -> ImageSet | None:
        """The images of the results: test, else val."""
        return self.test or self.val

    @property
    def chooses(self) -> ImageSet | None:
        """The images that choose the best epoch: val, else the test images of a known set, as in published results."""
        return self.val or (self.test if self.official else None)

    def fingerprint(self) -> str:
        """Return the digests of the images of all splits."""
        return "-".join(part.fingerprint() for part in (self.train, self.val, self.test) if part)

    def normalized(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "Splits":
        """Return the splits with another mean and standard deviation of the channels."""
        parts = {name: part for name in ("train", "val", "test") if (part := getattr(self, name))}
        return replace(self, **{name: replace(part, mean=mean, std=std) for name, part in parts.items()})


def side_of(data: ImageSet) -> int:
    """Return the side of small images, by default of the input of a model for files."""
    return FILE_SIZE if isinstance(data, FileSet) else data.images.shape[-1]


def take(data: ImageSet, index: Tensor) -> ImageSet:
    """Return the images of a set at some indices, (n,) int64, in their order."""
    labels = data.labels[index]
    if isinstance(data, FileSet):
        return replace(data, labels=labels, paths=data.paths.take(index.tolist()))
    return replace(data, labels=labels, images=data.images[index])


def random_subset(n: int, count: int, seed: int) -> Tensor:
    """Return ``count`` of the indices 0 to n − 1, (count,) int64, drawn without replacement and sorted; at most n."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count].sort().values


def keep_per_class(data: ImageSet, count: int) -> ImageSet:
    """Keep ``count`` random images of each class, in their order; a smaller subset is part of every larger one."""
    if data.multi_label:
        raise InputError(f"--train-per-class needs one label an image; images of {data.name} have several")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(derive_seed(0, "subset")))
    kept = []
    for label, name in enumerate(data.classes):
        members = order[data.labels[order] == label]
        if len(members) < count:
            raise InputError(
                f"class '{name}' of {data.name} has {len(members)} {data.split} images; expected at least {count}"
            )
        kept.append(members[:count])
    return take(data, torch.cat(kept).sort().values)
