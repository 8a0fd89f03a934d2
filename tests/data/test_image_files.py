"""Squares of image files: torchvision, timm and Pillow are the oracles."""

import random
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms import ColorJitter, v2

from cutmix.data.decode import read_image, read_jpeg
from cutmix.data.image_files import RandAugment, ResizeAndCrop, TrainTransform, draws_from
from cutmix.data.transforms import Augment
from cutmix.errors import InputError

RAND: Any = "rand-m9-mstd0.5-inc1"


def noise(height: int = 50, width: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8))


def smooth(width: int, height: int) -> Image.Image:
    """Return an image without detail, which no resampling changes much."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray((255 * np.stack([x, y, (x + y) / 2], -1)).astype(np.uint8))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def png(tmp_path: Path) -> Path:
    noise().save(tmp_path / "a.png")
    return tmp_path / "a.png"


# ---- draws ----


POLICIES = {"none": [], "trivial": [v2.TrivialAugmentWide()], "augmix": [v2.AugMix()]} | {
    name: [v2.AutoAugment(v2.AutoAugmentPolicy(name))] for name in ("imagenet", "cifar10", "svhn")
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("squash", [False, True])
def test_equals_torchvision_from_the_same_generator_state(png: Path, policy: Any, squash: bool) -> None:
    crop: Any = v2.RandomResizedCrop(16, scale=(0.5, 1.0), antialias=True)
    if squash:
        crop = v2.Compose([v2.Resize((18, 18)), v2.RandomCrop(16)])
    oracle = v2.Compose([crop, v2.RandomHorizontalFlip(), *POLICIES[policy]])
    augment = Augment(image_size=16, crop_scale=(0.5, 1.0), flip=True, auto_augment=policy, squash=squash)
    ours = TrainTransform(augment, "exact")
    state = torch.get_rng_state()
    squares = [ours(png, seeded(seed), ours.plan(0)) for seed in range(20)]
    assert torch.equal(torch.get_rng_state(), state)
    for seed, square in enumerate(squares):
        torch.manual_seed(seed)
        assert np.array_equal(square, oracle(noise()))


@pytest.mark.parametrize("size", [(300, 10), (10, 300), (40, 50)])
def test_a_crop_that_never_fits_is_torchvisions_central_one(tmp_path: Path, size: tuple[int, int]) -> None:
    noise(*size).save(tmp_path / "a.png")
    ours, oracle = TrainTransform(Augment(image_size=8), "exact"), v2.RandomResizedCrop(8)
    for seed in range(20):
        torch.manual_seed(seed)
        assert np.array_equal(ours(tmp_path / "a.png", seeded(seed), None), oracle(noise(*size)))


def test_draws_of_other_threads_are_their_own() -> None:
    torch.manual_seed(1)
    expected, found = torch.rand(3), {}
    torch.manual_seed(1)

    def elsewhere() -> None:
        found["elsewhere"] = torch.rand(3)

    with draws_from(seeded(2)):
        assert torch.equal(torch.empty(2).uniform_(), torch.rand(2, generator=seeded(2)))
        thread = Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert torch.equal(found["elsewhere"], expected)


def test_rand_augment_of_image_files_has_the_settings_of_timms_training() -> None:
    timms = create_transform(224, is_training=True, auto_augment=RAND, interpolation="bicubic")
    ours: Any = RandAugment(RAND, "bicubic")
    kwargs = [{op.name: op.kwargs for op in found.ops} for found in (timms.transforms[2], ours.augment)]
    assert kwargs[0] == kwargs[1]
    assert not any(isinstance(step, v2.ColorJitter | ColorJitter) for step in timms.transforms)


@pytest.mark.parametrize("policy", [RAND, "rand", "rand-m7-n3-p0.8-mmax15-tweights", "rand-m5-mstd101-inc0-t3a"])
@pytest.mark.parametrize("interpolation", [None, "bicubic"])
def test_rand_augment_drawn_ahead_equals_timms(interpolation: Any, policy: str) -> None:
    settings = {"interpolation": Image.Resampling.BICUBIC, "img_mean": (124, 116, 104)} if interpolation else {}
    ours, timms, changed = RandAugment(policy, interpolation), rand_augment_transform(policy, settings), 0
    states = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    drawn = [ours.draw(seed)(noise()) for seed in range(40)]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states  # type: ignore[index]  # noqa: NPY002
    for seed, image in enumerate(drawn):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            expected = timms(noise())
        except (ValueError, IndexError):  # of posterize to no bits
            continue
        assert np.array_equal(image, expected)
        changed += not np.array_equal(image, noise())
    assert changed > (20 if policy == RAND else 15)


# ---- test images ----


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("size", [(1, 12_000), (12_000, 1), (30, 30_000), (30_000, 30)])
def test_a_long_image_is_cropped_before_it_is_resized(size: tuple[int, int], squash: bool) -> None:
    """Resized whole, a line of 1 × 12,000 pixels would be one of 256 × 3,072,000."""
    image = noise(height=size[1], width=size[0])
    result = ResizeAndCrop(224, 0.875, squash, "bilinear")(image)
    assert (result.shape, result.dtype) == ((3, 224, 224), torch.uint8)
    if min(size) == 30 and not squash:
        middle = image.crop((size[0] // 2 - 15, size[1] // 2 - 15, size[0] // 2 + 15, size[1] // 2 + 15))
        whole = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])(middle)
        assert (result.int() - whole.int()).abs().max() <= 1  # of rounding


def test_a_small_crop_of_an_image_does_not_resize_all_of_it() -> None:
    image = noise(400, 500)
    result = ResizeAndCrop(224, 0.01, False, "bilinear")(image)  # the whole would have 28,000 × 22,400 pixels
    expected = v2.functional.pil_to_tensor(image.resize((224, 224), Image.Resampling.BILINEAR, (248, 198, 252, 202)))
    assert result.shape == (3, 224, 224)
    assert (result.float().mean() - expected.float().mean()).abs() < 5


# ---- the fast decoder ----


def jpegs(folder: Path) -> Iterator[Path]:
    """Yield JPEG files of many kinds, without values near 0 and 255, which a bicubic filter clips."""
    exif = Image.Exif()
    for kind in range(12):
        exif[0x0112] = kind + 1 if kind < 8 else 1
        image = (noise(61 + kind, 97) if kind % 2 else smooth(97, 61 + kind)).point(lambda value: 64 + value // 2)
        image = image.convert("L") if kind == 8 else image
        image.save(
            folder / f"{kind}.jpg", quality=90, exif=exif if kind < 10 else b"", progressive=kind == 9,
            subsampling=kind % 3,
        )  # fmt: skip
        yield folder / f"{kind}.jpg"


def test_plain_jpeg_files_have_pillows_pixels(tmp_path: Path) -> None:
    for path in jpegs(tmp_path):
        jpeg, image = read_jpeg(path), read_image(path)
        assert jpeg
        assert jpeg.size == image.size
        assert np.array_equal(jpeg.decode(), image)  # type: ignore[arg-type]
        for reduce in (2, 4, 8):
            reduced = jpeg.decode(reduce)
            assert reduced is not None
            assert reduced.shape == (-(-image.height // reduce), -(-image.width // reduce), 3)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_upper_rows_are_those_of_the_whole_image(tmp_path: Path, subsampling: str, progressive: bool) -> None:
    path, rng = tmp_path / "a.jpg", random.Random(0)
    restarts = {"restart_marker_rows": 1} if progressive else {}
    noise(150, 97).save(path, quality=85, subsampling=subsampling, progressive=progressive, **restarts)
    jpeg, shorter = read_jpeg(path), 0
    assert jpeg
    for reduce in (1, 2, 4, 8):
        whole = np.array(jpeg.decode(reduce))
        for rows in [1, 150, *rng.choices(range(1, 150), k=12)]:
            part = jpeg.decode(reduce, rows)
            assert part is not None
            shorter += len(part) < len(whole)
            assert np.array_equal(part[: -(-rows // reduce)], whole[: -(-rows // reduce)])
    assert shorter == 0 if progressive else shorter > 24


@pytest.mark.parametrize("damage", [b"\xff\xd9", b"\xff\xc4", b"\x12\x34", b""])
def test_damage_anywhere_is_judged_by_the_whole_file(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "a.jpg"
    noise(200, 200).save(path, quality=95)
    content = path.read_bytes()
    at = len(content) * 3 // 4
    path.write_bytes(content[:at] + damage + content[at + len(damage) :] if damage else content[:at])
    jpeg = read_jpeg(path)
    assert jpeg
    rows = jpeg.decode(rows=20)
    try:
        expected = np.asarray(read_image(path))
    except InputError:
        assert rows is None
    else:
        assert rows is None or np.array_equal(rows[:20], expected[:20])


def test_a_square_outlives_the_next_file(tmp_path: Path) -> None:
    (first, expected), *others = [(path, read_image(path)) for path in jpegs(tmp_path)][1::2]
    side = min(expected.size)
    square = ResizeAndCrop(side, 1.0, False, "bilinear").read(first, "fast")
    for path, _ in others:
        ResizeAndCrop(side, 1.0, False, "bilinear").read(path, "fast")
    assert np.array_equal(square, ResizeAndCrop(side, 1.0, False, "bilinear").read(first, "exact"))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_fast_squares_differ_from_exact_ones_by_rounding(tmp_path: Path, interpolation: Any) -> None:
    augment = Augment(image_size=40, crop_scale=(0.3, 1.0), flip=True, interpolation=interpolation)
    for path in jpegs(tmp_path):
        for seed in range(5):
            exact, fast = (TrainTransform(augment, how)(path, seeded(seed), None) for how in ("exact", "fast"))  # type: ignore[arg-type]
            assert np.abs(exact.astype(int) - fast).max() <= 2
            assert np.abs(exact.astype(int) - fast).mean() < 0.5
        exact, fast = (ResizeAndCrop(40, 0.8, False, interpolation).read(path, how) for how in ("exact", "fast"))  # type: ignore[arg-type]
        assert np.abs(exact.astype(int) - fast).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_image_is_cut_in_the_same_place(tmp_path: Path, orientation: int) -> None:
    exif, path = Image.Exif(), tmp_path / "large.jpg"
    exif[0x0112] = orientation
    smooth(903, 701).save(path, quality=98, subsampling=0, exif=exif)
    for squash in (False, True):
        augment = Augment(image_size=40, crop_scale=(0.1, 1.0), flip=True, squash=squash)
        for seed in range(5):
            exact, fast = (TrainTransform(augment, how)(path, seeded(seed), None) for how in ("exact", "fast"))  # type: ignore[arg-type]
            assert np.abs(exact.astype(int) - fast).max() <= 3  # a shift by a tenth of the square would be 25
        exact, fast = (ResizeAndCrop(40, 0.8, squash, "bilinear").read(path, how) for how in ("exact", "fast"))  # type: ignore[arg-type]
        assert np.abs(exact.astype(int) - fast).max() <= 3


@pytest.mark.parametrize("name", ["cmyk.jpg", "a.png", "a.webp", "long.jpg"])
def test_other_files_are_read_exactly(tmp_path: Path, name: str) -> None:
    image = noise(1, 12_000) if name == "long.jpg" else noise()
    (image.convert("CMYK") if name == "cmyk.jpg" else image).save(tmp_path / name)
    exact, fast = (ResizeAndCrop(16, 0.8, False, "bilinear").read(tmp_path / name, how) for how in ("exact", "fast"))  # type: ignore[arg-type]
    assert np.array_equal(exact, fast)


@pytest.mark.parametrize("damage", ["empty", "cut", "cut in the header", "text", "garbage", "missing", "folder"])
def test_damaged_files_are_judged_as_exactly(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.jpg"
    noise(200, 200).save(path)
    content = path.read_bytes()
    half = len(content) // 2
    changed = {
        "empty": b"", "cut": content[:half], "cut in the header": content[:30], "text": b"hello, I am text",
        "garbage": content[:half] + b"\xff\xd0\x00" * 50 + content[half:],
    }  # fmt: skip
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage in changed:
        path.write_bytes(changed[damage])
    results = []
    for decoder in ("exact", "fast"):
        try:
            results.append(ResizeAndCrop(16, 0.8, False, "bilinear").read(path, decoder).tolist())  # type: ignore[arg-type]
        except InputError as error:
            results.append(str(error))
    assert results[0] == results[1]
    assert isinstance(results[0], str) or damage == "garbage"


def test_pillows_limit_of_pixels_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(80, 80).save(tmp_path / "a.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    with pytest.raises(InputError, match="exceeds limit of 6000 pixels"):
        ResizeAndCrop(16, 0.8, False, "bilinear").read(tmp_path / "a.jpg", "fast")
