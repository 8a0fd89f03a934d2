"""Captioning data: a split of images with captions, and its batches, which depend on seed and epoch alone."""

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cutmix.data.decode import decoding_threads, read_image
from cutmix.data.folder import Split
from cutmix.data.loaders import Upload, check_batch_size
from cutmix.data.transforms import IMAGENET_MEAN, IMAGENET_STD, TestOrder, TrainOrder, crop_and_flip, normalize
from cutmix.runtime.seeding import derive_seed
from cutmix.transfer.caption_scores import PAD, Vocabulary


@dataclass(frozen=True, eq=False)
class CaptionSet:
    """A split of N images, each with one or more captions."""

    name: str
    split: Split
    paths: tuple[Path, ...]
    names: tuple[str, ...]  # names of the images in the annotations, each once
    captions: tuple[tuple[str, ...], ...]  # of each image, as they were written
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    notes: tuple[str, ...] = ()  # on data left out and assumptions made, one sentence each

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def references(self) -> dict[str, tuple[str, ...]]:
        """The captions by the names of the images, as ``score_captions`` takes them."""
        return dict(zip(self.names, self.captions, strict=True))

    def fingerprint(self) -> str:
        """Return a digest of the names of the images, their order and their captions."""
        return hashlib.blake2b(json.dumps(list(self.references.items())).encode(), digest_size=16).hexdigest()


def collate(encoded: Sequence[Sequence[int]]) -> Tensor:
    """Return n encoded captions as one matrix, (n, longest) int64, the shorter ones padded with PAD."""
    return pad_sequence([torch.tensor(caption) for caption in encoded], batch_first=True, padding_value=PAD)


_LARGE = 2**31  # bytes; larger sets are decoded batch by batch, in every epoch


class Images:
    """Image files as squares of ``size`` pixels, uint8, their aspect ratio not kept.

    Up to ``most`` bytes are decoded once and kept on the device; a larger set is decoded for each batch.
    """

    def __init__(self, paths: Sequence[Path], size: int, device: torch.device | str, most: int = _LARGE) -> None:
        self.paths, self.size, self.device = paths, size, torch.device(device)
        self.upload = Upload(self.device)
        self.kept: Tensor | None = None
        if len(paths) * 3 * size * size <= most:
            with decoding_threads() as threads:
                kept = torch.empty((len(paths), 3, size, size), dtype=torch.uint8)
                for i, image in enumerate(threads.map(self._read, paths)):
                    kept[i] = image
            self.kept = kept.to(self.device)

    def batches(self, choices: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield (n, 3, size, size) uint8 on the device for each tensor of n indices."""
        if self.kept is not None:
            for choice in choices:
                yield self.kept.index_select(0, *self.upload([choice]))
            return
        with decoding_threads() as threads:
            ahead: deque = deque()
            for choice in choices:
                ahead.append([threads.submit(self._read, self.paths[i]) for i in choice.tolist()])
                if len(ahead) > 2:  # two batches are decoded while one is used
                    yield self._gather(ahead.popleft())
            while ahead:
                yield self._gather(ahead.popleft())

    def _gather(self, pending: list) -> Tensor:
        return self.upload([torch.stack([image.result() for image in pending])])[0]

    def _read(self, path: Path) -> Tensor:
        image = read_image(path).resize((self.size, self.size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


class CaptionBatches:
    """Shuffled pairs of an image, randomly cropped and flipped, and one of its captions.

    An epoch has each image as often as it has captions. Order, crops and flips depend on the seed and the epoch alone.
    ``batch_size`` is the number of pairs of all processes together; images are resized to ``size`` pixels before the
    crop.

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
        check_batch_size(batch_size, world_size, "--batch-size")
        self.data, self.seed, self.crop, self.flip, self.channels_last = data, seed, crop, flip, channels_last
        self.image_of = torch.tensor([i for i, captions in enumerate(data.captions) for _ in captions])
        encoded = [vocabulary.encode(caption) for captions in data.captions for caption in captions]
        self.tokens, self.lengths = collate(encoded), torch.tensor([len(caption) for caption in encoded])
        self.order = TrainOrder(len(encoded), batch_size, seed, rank, world_size)
        self.steps = self.order.steps
        self.images = Images(data.paths, size, device)
        self.scale = torch.tensor(data.mean, device=device), torch.tensor(data.std, device=device)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, tokens) from batch ``start`` on: (n, 3, crop, crop) float32 and (n, longest) int64."""
        order = self.order.indices(epoch)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "augment", epoch))
        room, device = self.images.size - self.crop + 1, self.images.device
        offsets = torch.randint(room, (len(order), 2), generator=generator).to(device)
        flips = (torch.rand(len(order), generator=generator) < (0.5 if self.flip else 0.0)).to(device)
        shares = [self.order.share(step) for step in range(start, self.steps)]
        decoded = self.images.batches(self.image_of[order[share]] for share in shares)
        for share, batch in zip(shares, decoded, strict=True):
            images = crop_and_flip(batch, offsets[share], flips[share], (self.crop, self.crop))
            chosen = order[share]
            (tokens,) = self.images.upload([self.tokens[chosen, : int(self.lengths[chosen].max())]])
            yield normalize(images, *self.scale, channels_last=self.channels_last), tokens


class ImageBatches:
    """The central squares of the images to caption, in their order; process r of R has r, r + R, and so on."""

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
        check_batch_size(batch_size, world_size, "--batch-size")
        self.data, self.crop, self.channels_last = data, crop, channels_last
        self.order = TestOrder(len(data), batch_size, rank, world_size)
        self.steps = self.order.steps
        self.images = Images(data.paths, size, device)
        self.scale = torch.tensor(data.mean, device=device), torch.tensor(data.std, device=device)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, indices): (n, 3, crop, crop) float32 and their indices in the set, (n,) int64."""
        chosen = [self.order.indices(epoch)[self.order.share(step)] for step in range(start, self.steps)]
        edge = (self.images.size - self.crop) // 2
        inner = slice(edge, edge + self.crop)
        for indices, batch in zip(chosen, self.images.batches(chosen), strict=True):
            images = normalize(batch[:, :, inner, inner], *self.scale, channels_last=self.channels_last)
            yield images, self.images.upload([indices])[0]
