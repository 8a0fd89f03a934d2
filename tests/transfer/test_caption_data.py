"""Batches beside PIL and torchvision, image by image."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from cutmix.data.transforms import crop_and_flip
from cutmix.errors import InputError
from cutmix.transfer.caption_data import CaptionBatches, CaptionSet, ImageBatches, Images
from cutmix.transfer.caption_scores import END, PAD, START, Vocabulary

WORDS = ("one", "two", "three", "four", "five", "six", "seven")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture
def data(tmp_path: Path) -> CaptionSet:
    """Seven images of several sizes and modes; image i has i % 3 + 1 captions of its word and its caption's."""
    generator = torch.Generator().manual_seed(0)
    for i in range(7):
        pixels = torch.randint(0, 256, (20 + i, 30 - i, 3), dtype=torch.uint8, generator=generator).numpy()
        Image.fromarray(pixels).convert("L" if i == 3 else "RGB").save(tmp_path / f"{i}.png")
    captions = tuple(tuple(f"{WORDS[i]} {' '.join(WORDS[: k + 1])}" for k in range(i % 3 + 1)) for i in range(7))
    return CaptionSet(
        "some",
        "train",
        tuple(tmp_path / f"{i}.png" for i in range(7)),
        tuple(f"{i}.png" for i in range(7)),
        captions,
        MEAN,
        STD,
    )


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary(WORDS)


def resized(path: Path, size: int) -> torch.Tensor:
    return TF.pil_to_tensor(Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def normalized(image: torch.Tensor) -> torch.Tensor:
    return TF.normalize(image.float() / 255, list(MEAN), list(STD))


def test_test_images_are_their_central_squares_in_order(data: CaptionSet) -> None:
    batches = ImageBatches(data, batch_size=3, size=16, crop=11)
    found = list(batches.epoch())
    assert [len(images) for images, _ in found] == [3, 3, 1]
    assert batches.steps == 3
    assert torch.cat([indices for _, indices in found]).tolist() == list(range(7))
    for path, image in zip(data.paths, torch.cat([images for images, _ in found]), strict=True):
        torch.testing.assert_close(image, normalized(resized(path, 16)[:, 2:13, 2:13]))
    shares = [ImageBatches(data, batch_size=4, size=16, crop=11, rank=r, world_size=2) for r in (0, 1)]
    assert [torch.cat([i for _, i in share.epoch()]).tolist() for share in shares] == [[0, 2, 4, 6], [1, 3, 5]]


def test_an_epoch_has_every_pair_once_and_the_caption_belongs_to_the_image(
    data: CaptionSet, vocabulary: Vocabulary
) -> None:
    batches = CaptionBatches(data, vocabulary, batch_size=4, size=8, crop=8, flip=False, seed=3)
    known = torch.stack([normalized(resized(path, 8)) for path in data.paths])
    found = []
    for images, tokens in batches.epoch(0):
        assert images.dtype == torch.float32
        assert tokens.dtype == torch.int64
        assert bool((tokens[:, 0] == START).all())
        assert bool((tokens[:, -1] != PAD).any())  # as long as the longest of the batch, not of the set
        assert bool(((tokens == END).sum(1) == 1).all())
        for image, own in zip(images, tokens.tolist(), strict=True):
            nearest = int((known - image).abs().amax((1, 2, 3)).argmin())
            torch.testing.assert_close(image, known[nearest])
            found.append((nearest, vocabulary.decode(own)))
    assert sorted(found) == sorted((i, text) for i, texts in enumerate(data.captions) for text in texts)
    assert batches.steps == 4  # 13 pairs


def test_crops_and_flips_are_torchvisions() -> None:
    images = torch.randint(0, 256, (6, 3, 9, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    offsets, flips = torch.tensor([[0, 0], [2, 5], [1, 3], [2, 0], [0, 5], [1, 1]]), torch.arange(6) % 2 == 0
    result = crop_and_flip(images, offsets, flips, (7, 7))
    for image, (top, left), flipped, own in zip(images, offsets.tolist(), flips, result, strict=True):
        expected = TF.crop(image, top, left, 7, 7)
        assert torch.equal(own, TF.horizontal_flip(expected) if flipped else expected)
    assert result.dtype == torch.uint8


def test_crops_and_flips_are_uniform(data: CaptionSet, vocabulary: Vocabulary) -> None:
    """A ramp from left to right tells where it was cut and whether it was mirrored."""
    ramp = torch.arange(8, dtype=torch.uint8).expand(3, 8, 8) * 10
    batches = CaptionBatches(data, vocabulary, batch_size=13, size=8, crop=6)
    batches.images.kept = (ramp + 100 * torch.eye(8, dtype=torch.uint8)[0][:, None]).expand(7, 3, 8, 8)
    seen: dict[tuple[bool, int], int] = {}
    for epoch in range(60):
        images, _ = next(iter(batches.epoch(epoch)))
        values = ((images[:, 0, -1] * STD[0] + MEAN[0]) * 25.5).round().int()
        for first, last in values[:, [0, -1]].tolist():
            seen[first > last, min(first, last)] = seen.get((first > last, min(first, last)), 0) + 1
    assert set(seen) == {(flipped, left) for flipped in (False, True) for left in range(3)}
    assert all(abs(count - 780 / 6) < 45 for count in seen.values()), seen  # 4 standard deviations


def test_batches_depend_on_seed_and_epoch_alone(data: CaptionSet, vocabulary: Vocabulary) -> None:
    def collect(epoch: int, start: int = 0, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(CaptionBatches(data, vocabulary, batch_size=5, size=16, crop=11, seed=seed).epoch(epoch, start))

    def same(a: list, b: list) -> bool:
        return len(a) == len(b) and all(
            torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
        )

    before = torch.get_rng_state()
    first = collect(1)
    assert same(first, collect(1))
    assert same(first[1:], collect(1, start=1))
    assert not same(first, collect(2))
    assert not same(first, collect(1, seed=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_shares_of_two_processes_are_the_batch(data: CaptionSet, vocabulary: Vocabulary) -> None:
    def first(**share: int) -> tuple[torch.Tensor, torch.Tensor]:
        return next(iter(CaptionBatches(data, vocabulary, batch_size=6, size=16, crop=11, **share).epoch(0)))

    whole, halves = first(), [first(rank=rank, world_size=2) for rank in (0, 1)]
    assert torch.equal(torch.cat([images for images, _ in halves]), whole[0])
    for row, own in zip(whole[1], [own for _, tokens in halves for own in tokens], strict=True):
        assert vocabulary.decode(row.tolist()) == vocabulary.decode(own.tolist())


def test_a_large_set_is_decoded_as_it_is_used(data: CaptionSet) -> None:
    small, large = Images(data.paths, 8, "cpu"), Images(data.paths, 8, "cpu", most=7 * 3 * 64 - 1)
    assert small.kept is not None
    assert large.kept is None
    choices = [torch.tensor([3, 1]), torch.tensor([6]), torch.tensor([0, 0, 5]), torch.tensor([2]), torch.tensor([4])]
    for a, b in zip(small.batches(choices), large.batches(choices), strict=True):
        assert torch.equal(a, b)
        assert a.dtype == torch.uint8
    abandoned = large.batches(choices)
    next(abandoned)
    abandoned.close()


def test_a_damaged_image_is_named(data: CaptionSet, vocabulary: Vocabulary) -> None:
    data.paths[4].write_bytes(b"no image")
    with pytest.raises(InputError, match=r"4.png cannot be read as an image"):
        CaptionBatches(data, vocabulary, size=8, crop=8)
    with pytest.raises(InputError, match=r"4.png cannot be read as an image"):
        list(Images(data.paths, 8, "cpu", most=0).batches([torch.tensor([4])]))


def test_a_batch_that_processes_cannot_share_is_refused(data: CaptionSet, vocabulary: Vocabulary) -> None:
    message = "--batch-size is 5; expected a positive multiple of the 2 processes"
    with pytest.raises(InputError, match=message):
        ImageBatches(data, batch_size=5, world_size=2)
    with pytest.raises(InputError, match=message):
        CaptionBatches(data, vocabulary, batch_size=5, world_size=2)
