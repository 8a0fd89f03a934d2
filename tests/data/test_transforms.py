"""Device transforms: torchvision applied to one sample after another is the oracle."""

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from cutmix.data.transforms import (
    CropFlip,
    draw_crop_flip,
    erase,
    normalize,
    resize,
)


def some_images(n: int = 24, channels: int = 3, height: int = 32, width: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 7, 11)])
def test_equals_torchvision_sample_by_sample(mode: str, padding: int, shape: tuple[int, int, int]) -> None:
    _, height, width = shape
    images = some_images(40, *shape)
    before = images.clone()
    draw = draw_crop_flip(40, padding, True, torch.Generator().manual_seed(1), mode)  # type: ignore[arg-type]
    ours = draw.apply(images)
    for image, (top, left), flipped, result in zip(images, draw.offsets, draw.flips, ours, strict=True):
        expected = TF.crop(TF.pad(image, [padding] * 4, padding_mode=mode), int(top), int(left), height, width)
        assert torch.equal(result, TF.horizontal_flip(expected) if flipped else expected)
    assert ours.dtype == torch.uint8
    assert torch.equal(images, before)


@pytest.mark.parametrize(("top", "left"), [(0, 0), (8, 8), (4, 4)])
def test_end_points_by_hand(top: int, left: int) -> None:
    image = some_images(1)
    result = CropFlip(torch.tensor([[top, left]]), torch.tensor([False]), 4).apply(image)
    padded = torch.zeros(1, 3, 40, 40, dtype=torch.uint8)
    padded[:, :, 4:-4, 4:-4] = image
    assert torch.equal(result, padded[:, :, top : top + 32, left : left + 32])


def test_no_images() -> None:
    draw = draw_crop_flip(0, 4, True, torch.Generator())
    assert draw.apply(some_images(0)).shape == (0, 3, 32, 32)


def test_draws_are_uniform() -> None:
    draw = draw_crop_flip(20_000, 4, True, torch.Generator().manual_seed(0))
    counts = torch.stack([draw.offsets[:, k].bincount(minlength=9) for k in (0, 1)])
    assert counts.shape == (2, 9)
    assert (counts - 20_000 / 9).abs().max() < 200  # 4.5 standard deviations
    assert abs(draw.flips.float().mean() - 0.5) < 0.015
    assert abs(torch.corrcoef(draw.offsets.T.float())[0, 1]) < 0.03
    assert not draw_crop_flip(100, 4, False, torch.Generator()).flips.any()


def test_slices_and_generator_decide_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one = draw_crop_flip(64, 4, True, torch.Generator().manual_seed(3))
    two = draw_crop_flip(64, 4, True, torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), state)
    images = some_images(64)
    assert torch.equal(one[16:48].apply(images[16:48]), two.apply(images)[16:48])
    assert len(one[16:48]) == 32


@pytest.mark.parametrize("channels_last", [False, True])
def test_normalize_equals_torchvision(channels_last: bool) -> None:
    mean, std = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    oracle = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])(images)
    for given in ((mean, std), (torch.tensor(mean), torch.tensor(std))):
        result = normalize(images, *given, channels_last=channels_last)
        torch.testing.assert_close(result, oracle, rtol=1e-6, atol=1e-6)
        assert result.is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize(("shape", "size"), [((32, 32), 20), ((32, 32), 64), ((30, 41), 16)])
def test_resize_equals_torchvision(shape: tuple[int, int], size: int) -> None:
    images = some_images(2, 3, *shape).float()
    torch.testing.assert_close(resize(images, size), TF.resize(images, [size, size], antialias=True))


def test_resize_leaves_what_fits() -> None:
    images = some_images(2).float()
    assert resize(images, 32) is images


@pytest.mark.gpu
def test_on_a_gpu_nothing_waits_and_the_result_is_the_same() -> None:
    images = some_images()
    draw = draw_crop_flip(24, 4, True, torch.Generator().manual_seed(1))
    mean, std = torch.tensor([0.49, 0.48, 0.45]), torch.tensor([0.25, 0.24, 0.26])
    there, moved = images.cuda(), draw.to("cuda")
    mean_there, std_there = mean.cuda(), std.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = normalize(moved.apply(there), mean_there, std_there, channels_last=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(result.cpu(), normalize(draw.apply(images), mean, std), rtol=1e-6, atol=1e-6)


def test_erased_rectangles_follow_their_probability_and_area() -> None:
    """The mean share, over all draws, is that of a uniform area, a little less where the rectangle is cut."""
    images = torch.ones(4000, 2, 24, 24)
    same = erase(images.clone(), 0.5, torch.Generator().manual_seed(3))
    assert torch.equal(same, erase(images.clone(), 0.5, torch.Generator().manual_seed(3)))
    shares = (same == 0).float().mean((1, 2, 3))
    erased = shares[shares > 0]
    assert abs(len(erased) / 4000 - 0.5) < 0.03
    assert 0.16 < erased.mean() < 0.18
    assert erased.max() < 0.36
    assert torch.equal(same[:, 0], same[:, 1])
    rows, columns = (same[:, 0] == 0).any(2).sum(1), (same[:, 0] == 0).any(1).sum(1)
    assert torch.equal(rows * columns, (same[:, 0] == 0).sum((1, 2)))
    assert torch.equal(erase(images.clone(), 0.0, torch.Generator()), images)
