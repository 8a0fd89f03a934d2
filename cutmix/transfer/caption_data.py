"""Batches of pictures with captions to train on, and of pictures to caption: the same whenever they are asked for."""

import csv
import hashlib
import io
import json
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cutmix.data.decode import read_image
from cutmix.data.folder import Split, listed_names, names_by_hash, read_text
from cutmix.data.loaders import TestOrder, TrainOrder
from cutmix.data.transforms import crop_and_flip, normalize
from cutmix.errors import InputError
from cutmix.runtime.seeding import derive_seed
from cutmix.transfer.caption_scores import tokenize

PAD, START, END, UNKNOWN = range(4)


class Vocabulary:
    """Words and their numbers: 0 pads, 1 starts a caption, 2 ends it, 3 stands for every other word, then the words.

    Args:
        words: The words from number 4 on, each once.

    Raises:
        InputError: There is no word, or one twice.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._numbers = {word: number for number, word in enumerate(self.words, UNKNOWN + 1)}
        if not self.words or len(self._numbers) < len(self.words):
            raise InputError(f"a vocabulary of {len(self.words)} words: expected one or more, none of them twice")

    def __len__(self) -> int:
        """Count the words and the four other numbers: the classes that a network tells apart."""
        return UNKNOWN + 1 + len(self.words)

    @classmethod
    def from_captions(cls, captions: Iterable[str], min_count: int = 4) -> "Vocabulary":
        """Make a vocabulary of the words that occur at least ``min_count`` times, the most frequent ones first.

        Args:
            captions: The training captions.
            min_count: At least 1; 4 in the code that the CutMix authors built on, which also kept punctuation.

        Raises:
            InputError: ``min_count`` is below 1, or no word is that frequent.
        """
        if min_count < 1:
            raise InputError(f"min_count is {min_count}: expected 1 or more")
        counts = Counter(word for caption in captions for word in tokenize(caption))
        kept = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
        if not kept:
            raise InputError(
                f"none of the {len(counts)} words of the training captions occurs {min_count} times: "
                "lower min_count or give more captions"
            )
        return cls(kept)

    def encode(self, caption: str) -> list[int]:
        """Return the numbers of a caption's words, between START and END; UNKNOWN for words that are not here."""
        return [START, *(self._numbers.get(word, UNKNOWN) for word in tokenize(caption)), END]

    def decode(self, numbers: Iterable[int]) -> str:
        """Return the words up to END, joined by spaces; START and PAD are left out, UNKNOWN is "<unk>"."""
        found = []
        for number in numbers:
            if number == END:
                break
            if number == UNKNOWN:
                found.append("<unk>")
            elif number > UNKNOWN:
                found.append(self.words[number - UNKNOWN - 1])
        return " ".join(found)


def collate(encoded: Sequence[Sequence[int]]) -> Tensor:
    """Return captions as one matrix, the shorter ones filled up with PAD.

    Args:
        encoded: n captions as ``Vocabulary.encode`` gives them.

    Returns:
        (n, longest) int64.
    """
    return pad_sequence([torch.tensor(caption) for caption in encoded], batch_first=True, padding_value=PAD)


_FLICKR_FILES = ("Flickr8k.token.txt", "Flickr8k_text/Flickr8k.token.txt", "captions.txt")
_FLICKR_FOLDERS = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images")  # the first one is the official name
_COCO_SPLITS = {"train": "train", "test": "val"}


@dataclass(frozen=True, eq=False)
class CaptionSet:
    """One split: N pictures, each with one or more captions.

    Attributes:
        name: The folder's name.
        split: "train" or "test".
        paths: The N files; their names are what scores and captions are filed under, so none occurs twice.
        captions: Of each picture, as they were written.
        mean: Of each channel, pixels taken as 0 to 1; replace both by those that the encoder was trained with.
        std: Of each channel, pixels taken as 0 to 1.
    """

    name: str
    split: Split
    paths: tuple[Path, ...]
    captions: tuple[tuple[str, ...], ...]
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def references(self) -> dict[str, tuple[str, ...]]:
        """The captions by the names of the files, as ``score_captions`` takes them."""
        return {path.name: captions for path, captions in zip(self.paths, self.captions, strict=True)}

    def fingerprint(self) -> str:
        """Return a digest of which pictures these are, in which order, with which captions."""
        return hashlib.blake2b(json.dumps(list(self.references.items())).encode(), digest_size=16).hexdigest()


def open_captions(path: str | Path, split: Split, *, val_fraction: float = 0.2, seed: int = 0) -> CaptionSet:
    """Open one split of a set of pictures with captions.

    Recognised are

    * COCO captions: ``captions_train*.json`` (train) and ``captions_val*.json`` (test), in the folder or in
      ``annotations/``, with the pictures in ``train2014/`` and so on, in the folder or in ``images/``;
    * Flickr8k: ``Flickr8k.token.txt`` (``NAME#0<tab>CAPTION``) or ``captions.txt`` (``image,caption``) and the pictures
      in ``Flicker8k_Dataset/``, ``Images/`` or ``images/``. The splits are those of ``*.trainImages.txt`` and
      ``*.testImages.txt``; the development pictures are then not used. Without these files ``val_fraction`` of the
      pictures are the test split: those whose hash with ``seed`` is smallest, so that a new one moves hardly any other.

    Args:
        path: The folder.
        split: "train" or "test".
        val_fraction: In (0, 1).
        seed: Decides that split, and nothing else.

    Raises:
        InputError: Nothing usable is there, a picture or its captions are missing, or a caption has no word.

    Source: the file formats of the two sets' authors. The code base of CutMix's table A2 trains on train2014 and
    measures on val2014.
    """
    root = Path(path).expanduser()
    if split not in get_args(Split):
        raise InputError(f"split is '{split}': expected 'train' or 'test'")
    if not 0 < val_fraction < 1:
        raise InputError(f"val_fraction is {val_fraction}: expected a share between 0 and 1")
    if not root.is_dir():
        raise InputError(f"{path} is not a folder: expected one in COCO's or Flickr8k's layout of captions")
    flickr = next((root / name for name in _FLICKR_FILES if (root / name).is_file()), None)
    if flickr:
        return _open_flickr(root, flickr, split, val_fraction, seed)
    return _open_coco(root, split)


def _caption_set(root: Path, split: Split, source: Path, folder: Path, captions: Mapping[str, list[str]]) -> CaptionSet:
    """Check that every picture is there and every caption has a word."""
    if not captions:
        raise InputError(f"{source} leaves no {split} pictures: expected one or more with captions")
    there = {entry.name for entry in folder.iterdir()}
    for name, texts in captions.items():
        if name not in there:
            raise InputError(f"{source} names the picture '{name}', which is not in {folder}")
        if not texts:
            raise InputError(f"{source} has no caption for the picture '{name}': expected one or more")
        if not all(any(letter.isalnum() for letter in text) for text in texts):
            raise InputError(f"{source} has an empty caption for the picture '{name}': expected words")
    paths = tuple(folder / name for name in captions)
    return CaptionSet(root.resolve().name, split, paths, tuple(map(tuple, captions.values())))


def _first_folder(places: Sequence[Path], what: str) -> Path:
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise InputError(f"{what} has no pictures: expected them in {' or '.join(map(str, places))}")
    return found


# ---- COCO ----


def _open_coco(root: Path, split: Split) -> CaptionSet:
    pattern = f"captions_{_COCO_SPLITS[split]}*.json"
    found = sorted([*root.glob(pattern), *root.glob(f"annotations/{pattern}")])
    if len(found) != 1:
        what = f"both {found[0].name} and {found[1].name}" if found else "no captions"
        raise InputError(
            f"{root} holds {what}: expected one {pattern}, there or in annotations/, or the captions.txt or "
            "Flickr8k.token.txt of Flickr8k"
        )
    source = found[0]
    part = source.stem.removeprefix("captions_")
    folder = _first_folder([root / part, root / "images" / part, root / "images"], str(source))
    try:
        content = json.loads(read_text(source))
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        captions: dict[str, list[str]] = {name: [] for name in names.values()}
        pairs = [(note["image_id"], str(note["caption"])) for note in content["annotations"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{source} is not in the layout of COCO captions ({type(error).__name__}: {error}): expected 'images' with "
            "'id' and 'file_name' and 'annotations' with 'image_id' and 'caption'"
        ) from None
    for number, caption in pairs:
        if number not in names:
            raise InputError(f"{source} has a caption for the picture {number}, which its 'images' do not list")
        captions[names[number]].append(caption)
    return _caption_set(root, split, source, folder, captions)


# ---- Flickr8k ----


def _open_flickr(root: Path, source: Path, split: Split, val_fraction: float, seed: int) -> CaptionSet:
    folder = _first_folder([root / name for name in _FLICKR_FOLDERS], str(source))
    captions: dict[str, list[str]] = {}
    for name, caption in _table(source) if source.name == "captions.txt" else _token_lines(source):
        captions.setdefault(name, []).append(caption)
    files = {part: sorted(source.parent.glob(f"*.{part}Images.txt")) for part in ("train", "test")}
    if files["train"] and files["test"]:
        names = listed_names(files[split][0], files["test" if split == "train" else "train"][0])
        source_of_names = files[split][0]
        for name in names:
            if name not in captions:
                raise InputError(f"{source_of_names} names the picture '{name}', for which {source} has no caption")
    elif files["train"] or files["test"]:
        alone, lacking = ("train", "test") if files["train"] else ("test", "train")
        raise InputError(f"{files[alone][0]} has no counterpart: expected a *.{lacking}Images.txt beside it")
    else:
        source_of_names, names = source, names_by_hash(captions, split, val_fraction, seed)
    return _caption_set(root, split, source_of_names, folder, {name: captions[name] for name in names})


def _token_lines(source: Path) -> Iterable[tuple[str, str]]:
    for number, line in enumerate(read_text(source).splitlines(), 1):
        name, tab, caption = line.partition("\t")
        if not tab or "#" not in name:
            raise InputError(f"line {number} of {source} is '{line[:60]}': expected NAME#NUMBER, a tab and a caption")
        yield name.rpartition("#")[0], caption


def _table(source: Path) -> Iterable[tuple[str, str]]:
    rows: Any = csv.reader(io.StringIO(read_text(source), newline=""), strict=True)
    try:
        if next(rows, None) != ["image", "caption"]:
            raise InputError(f"{source} does not start with 'image,caption': expected that line, then one a caption")
        for row in rows:
            if len(row) != 2:
                raise InputError(f"line {rows.line_num} of {source} has {len(row)} fields: expected image,caption")
            yield row[0], row[1]
    except csv.Error as error:
        raise InputError(f"line {rows.line_num} of {source} is no row of a table: {error}") from None


_LARGE = 2**31  # bytes: a set that needs more is decoded batch by batch, in every epoch


class Pictures:
    """Picture files as squares of uint8: decoded once and kept on the device, or anew for each batch of a large set.

    Args:
        paths: The N files.
        size: Side that the whole picture is resized to; its proportions are not kept.
        device: Where the batches are wanted.
        most: Bytes up to which everything is kept.
    """

    def __init__(self, paths: Sequence[Path], size: int, device: torch.device | str, most: int = _LARGE) -> None:
        self.paths, self.size, self.device = paths, size, torch.device(device)
        self.kept: Tensor | None = None
        if len(paths) * 3 * size * size <= most:
            with ThreadPoolExecutor(os.cpu_count()) as threads:
                kept = torch.empty((len(paths), 3, size, size), dtype=torch.uint8)
                for i, picture in enumerate(threads.map(self._read, paths)):
                    kept[i] = picture
            self.kept = kept.to(self.device)

    def batches(self, choices: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield (n, 3, size, size) uint8 on the device for each tensor of n indices."""
        if self.kept is not None:
            for choice in choices:
                yield self.kept.index_select(0, choice.to(self.device))
            return
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            ahead: deque = deque()
            for choice in choices:
                ahead.append([threads.submit(self._read, self.paths[i]) for i in choice.tolist()])
                if len(ahead) > 2:  # two batches are decoded while one is used
                    yield self._gather(ahead.popleft())
            while ahead:
                yield self._gather(ahead.popleft())

    def _gather(self, pending: list) -> Tensor:
        return torch.stack([picture.result() for picture in pending]).to(self.device, non_blocking=True)

    def _read(self, path: Path) -> Tensor:
        picture = read_image(path).resize((self.size, self.size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy())


class CaptionBatches:
    """Shuffled pairs of a picture, randomly cropped and flipped, and one of its captions.

    A sample is a pair, so that an epoch shows each picture as often as it has captions. Order, crops and flips depend
    on the seed and the epoch alone.

    Args:
        data: The training split.
        vocabulary: What the captions are encoded with.
        batch_size: Pairs of all processes together; 20 in the paper.
        seed: Of order, crops and flips.
        device: Where the batches are wanted.
        size: Side that pictures are resized to before the crop.
        crop: Side of the random crop.
        flip: Mirror half of the crops.
        channels_last: The memory format of the images.
        rank: This process.
        world_size: All processes.

    Attributes:
        steps: Batches an epoch.

    Raises:
        InputError: An argument is out of its range, or a picture cannot be read.

    Source: resize to 256×256, random crop of 224, flip: the code base of CutMix's table A2.
    """

    def __init__(
        self,
        data: CaptionSet,
        vocabulary: Vocabulary,
        *,
        batch_size: int = 20,
        seed: int = 0,
        device: torch.device | str = "cpu",
        size: int = 256,
        crop: int = 224,
        flip: bool = True,
        channels_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check(batch_size, size, crop, rank, world_size)
        self.data, self.seed, self.crop, self.flip, self.channels_last = data, seed, crop, flip, channels_last
        self.picture_of = torch.tensor([i for i, captions in enumerate(data.captions) for _ in captions])
        encoded = [vocabulary.encode(caption) for captions in data.captions for caption in captions]
        self.tokens, self.lengths = collate(encoded), torch.tensor([len(caption) for caption in encoded])
        self.order = TrainOrder(len(encoded), batch_size, seed, rank, world_size)
        self.steps = self.order.steps
        self.pictures = Pictures(data.paths, size, device)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, tokens) from batch ``start`` on: (n, 3, crop, crop) float32 and (n, longest) int64."""
        order = self.order.indices(epoch)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "augment", epoch))
        room, device = self.pictures.size - self.crop + 1, self.pictures.device
        offsets = torch.randint(room, (len(order), 2), generator=generator).to(device)
        flips = (torch.rand(len(order), generator=generator) < (0.5 if self.flip else 0.0)).to(device)
        shares = [self.order.share(step) for step in range(start, self.steps)]
        pictures = self.pictures.batches(self.picture_of[order[share]] for share in shares)
        for share, batch in zip(shares, pictures, strict=True):
            images = crop_and_flip(batch, offsets[share], flips[share], (self.crop, self.crop))
            chosen = order[share]
            tokens = self.tokens[chosen, : int(self.lengths[chosen].max())].to(device, non_blocking=True)
            yield normalize(images, self.data.mean, self.data.std, channels_last=self.channels_last), tokens


class PictureBatches:
    """The central squares of the pictures to caption, in their order, nothing of them random.

    Process r of R has the pictures r, r + R, and so on, and no others.

    Args:
        data: The split to caption.
        batch_size: Pictures of all processes together.
        device: Where the batches are wanted.
        size: Side that pictures are resized to before the crop.
        crop: Side of the central crop.
        channels_last: The memory format of the images.
        rank: This process.
        world_size: All processes.

    Attributes:
        steps: Batches.

    Raises:
        InputError: An argument is out of its range, or a picture cannot be read.
    """

    def __init__(
        self,
        data: CaptionSet,
        *,
        batch_size: int = 20,
        device: torch.device | str = "cpu",
        size: int = 256,
        crop: int = 224,
        channels_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check(batch_size, size, crop, rank, world_size)
        self.data, self.crop, self.channels_last = data, crop, channels_last
        self.order = TestOrder(len(data), batch_size, rank, world_size)
        self.steps = self.order.steps
        self.pictures = Pictures(data.paths, size, device)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, indices): (n, 3, crop, crop) float32 and the pictures' places in the set, (n,) int64."""
        chosen = [self.order.indices(epoch)[self.order.share(step)] for step in range(start, self.steps)]
        edge = (self.pictures.size - self.crop) // 2
        inner = slice(edge, edge + self.crop)
        for indices, batch in zip(chosen, self.pictures.batches(chosen), strict=True):
            images = normalize(
                batch[:, :, inner, inner], self.data.mean, self.data.std, channels_last=self.channels_last
            )
            yield images, indices.to(self.pictures.device)


def _check(batch_size: int, size: int, crop: int, rank: int, world_size: int) -> None:
    if batch_size < 1 or batch_size % world_size:
        raise InputError(f"batch_size is {batch_size}: expected a positive multiple of the {world_size} processes")
    if not 0 <= rank < world_size:
        raise InputError(f"rank is {rank}: expected 0 to {world_size - 1} for {world_size} processes")
    if not 1 <= crop <= size:
        raise InputError(f"pictures of {size} pixels and a crop of {crop}: expected 1 ≤ crop ≤ size")
