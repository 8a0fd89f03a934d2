"""Loaders: the same batches whatever went before, however many workers or processes; torchvision for the pixels."""

import contextlib
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from cutmix.data import loaders
from cutmix.data.opening import open_data
from cutmix.data.sets import ArraySet, FileSet
from cutmix.data.transforms import Augment, Interpolation, TrainOrder, draw_color, draw_crop_flip, split_draw
from cutmix.errors import InputError
from cutmix.runtime.seeding import derive_seed

CUDA = torch.device("cuda")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def numbered(n: int = 50, size: int = 8) -> ArraySet:
    """Return a set in which every image is filled with its own number, and so is its label."""
    values = torch.arange(n)
    images = values.to(torch.uint8).view(n, 1, 1, 1).repeat(1, 1, size, size)
    return ArraySet("numbers", "train", tuple(map(str, range(n))), values, (0.0,), (1 / 255,), images)


def photos(folder: Path, n: int = 10) -> FileSet:
    rng = np.random.default_rng(0)
    for k in range(n):
        height, width = rng.integers(24, 60, 2)
        file = folder / ("ab"[k % 2]) / f"{k:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file)
    paths = tuple(sorted(folder.rglob("*.png")))
    labels = torch.tensor([int(path.parent.name == "b") for path in paths])
    return FileSet("photos", "train", ("a", "b"), labels, MEAN, STD, paths)


def train(data: ArraySet | FileSet, **options: Any) -> loaders.Loader:
    """Return a loader; what is no argument of it is a field of ``Augment``."""
    names = {field.name for field in fields(Augment)}
    augment = {"image_size": 16 if isinstance(data, FileSet) else None, "crop_scale": (0.25, 1.0)}
    augment |= {name: value for name, value in options.items() if name in names}
    given: dict[str, Any] = {"batch_size": 16, "seed": 0, "device": "cpu", "workers": 0, "channels_last": False}
    given |= {name: value for name, value in options.items() if name not in names}
    return loaders.train_loader(data, Augment(**augment), **given)


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for one, two in zip(a, b, strict=True) for x, y in zip(one, two, strict=True))


# ---- order ----


def test_an_epoch_is_every_image_once_and_images_keep_their_labels() -> None:
    loader = train(numbered())
    batches = list(loader.epoch(0))
    assert [len(labels) for _, labels in batches] == [12, 13, 12, 13]
    assert loader.steps == 4
    seen = torch.cat([labels for _, labels in batches])
    assert sorted(seen.tolist()) == list(range(50))
    assert seen.tolist() != list(range(50))
    for images, labels in batches:
        assert images.dtype == torch.float32
        torch.testing.assert_close(images[:, 0, 0, 0], labels.float())


def test_epochs_and_seeds_differ() -> None:
    orders = {
        tuple(torch.cat([labels for _, labels in train(numbered(), seed=seed).epoch(epoch)]).tolist())
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_an_epoch_can_be_entered_anywhere(start: int) -> None:
    options = {"crop_padding": 2, "flip": True}
    data = open_data("digits", "train")
    assert isinstance(data, ArraySet)
    whole = list(train(data, batch_size=250, **options).epoch(3))
    again = train(data, batch_size=250, **options)
    next(again.epoch(7))
    assert same(list(again.epoch(3, start=start)), whole[start:])


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("n", [48, 57, 10])
def test_ranks_share_the_same_global_batches(n: int, world_size: int) -> None:
    data = ArraySet(
        "noise",
        "train",
        ("a", "b"),
        torch.arange(n) % 2,
        (0.5,),
        (0.5,),
        torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    )
    options = {"crop_padding": 2, "flip": True, "world_size": world_size}
    alone = list(train(data, crop_padding=2, flip=True).epoch(1))
    ranks = [list(train(data, rank=rank, **options).epoch(1)) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {len(alone)}
    for step in range(len(alone)):
        assert len({len(batches[step][1]) for batches in ranks}) == 1
    images, labels = (torch.cat(parts) for parts in zip(*alone, strict=True))
    by_step = (batches[step] for step in range(len(alone)) for batches in ranks)
    joined, joined_labels = (torch.cat(parts) for parts in zip(*by_step, strict=True))
    assert torch.equal(joined[:n], images)
    assert torch.equal(joined_labels[:n], labels)
    assert len(joined) - n < world_size


def test_filled_up_from_the_start_of_the_order() -> None:
    data = numbered(57)
    order = torch.cat([labels for _, labels in train(data).epoch(2)])
    last = torch.cat([list(train(data, rank=rank, world_size=4).epoch(2))[-1][1] for rank in range(4)])
    assert last.tolist() == [*order[44:].tolist(), *order[:3].tolist()]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("own", [1, 2, 3, 4, 16])
def test_no_batch_is_a_single_image_and_every_image_is_seen(own: int, world_size: int) -> None:
    for size in range(1, 70):
        ranks = [TrainOrder(size, own * world_size, 0, rank, world_size) for rank in range(world_size)]
        order, steps = ranks[0].indices(0), ranks[0].steps
        shares = [[rank.share(step) for step in range(steps)] for rank in ranks]
        assert {i for rank in shares for share in rank for i in order[share].tolist()} == set(range(size))
        counts = [share.stop - share.start for share in shares[0]]
        assert all([share.stop - share.start for share in rank] == counts for rank in shares)
        assert min(counts) >= min(2, own, size)
        assert max(counts) <= max(own, 3 if own == 2 else 0)
        assert max(counts) - min(counts) <= 1
        if size % (own * world_size) == 0:
            assert counts == [own] * (size // (own * world_size))


@pytest.mark.parametrize(
    ("size", "batch_size", "counts"),
    [(9, 4, [3, 3, 3]), (1000, 64, [62, 63] * 8), (3, 2, [3]), (5, 2, [2, 3]), (65, 64, [32, 33]), (3, 1, [1] * 3)],
)
def test_batches_differ_by_one_image_at_most(size: int, batch_size: int, counts: list[int]) -> None:
    order = TrainOrder(size, batch_size, 0, 0, 1)
    assert [order.share(step).stop - order.share(step).start for step in range(order.steps)] == counts


@pytest.mark.parametrize(("n", "world_size"), [(50, 1), (50, 4), (3, 4)])
def test_test_loader_has_every_image_once(n: int, world_size: int) -> None:
    parts = []
    for rank in range(world_size):
        loader = loaders.test_loader(
            numbered(n), batch_size=16, device="cpu", image_size=None, rank=rank, world_size=world_size
        )
        batches = list(loader.epoch(0))
        assert len(batches) == loader.steps
        parts.append([int(label) for _, labels in batches for label in labels])
        assert parts[rank] == list(range(rank, n, world_size))
    assert sorted(label for part in parts for label in part) == list(range(n))


# ---- pixels of array sets ----


@pytest.mark.parametrize("channels_last", [False, True])
def test_array_test_batch_equals_torchvision(channels_last: bool) -> None:
    images = torch.randint(0, 256, (5, 3, 12, 12), dtype=torch.uint8)
    data = ArraySet("noise", "test", ("a", "b"), torch.zeros(5, dtype=torch.int64), MEAN, STD, images)
    loader = loaders.test_loader(data, batch_size=5, device="cpu", image_size=20, channels_last=channels_last)
    (result, _), *_ = loader.epoch()
    oracle = v2.Compose(
        [v2.ToDtype(torch.float32, scale=True), v2.Resize((20, 20), antialias=True), v2.Normalize(MEAN, STD)]
    )
    torch.testing.assert_close(result, oracle(images), rtol=1e-5, atol=1e-5)
    assert result.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_crops_move_the_image_and_flips_mirror_half() -> None:
    images = torch.zeros(400, 1, 9, 9, dtype=torch.uint8)
    images[:, :, 4, 4] = 255  # where the pixel lands tells the crop
    data = ArraySet("dots", "train", ("a",), torch.zeros(400, dtype=torch.int64), (0.0,), (1.0,), images)
    (batch, _), *_ = train(data, batch_size=400, crop_padding=2).epoch(0)
    places = {divmod(int(k), 9) for k in batch.flatten(1).argmax(1)}
    assert places == {(y, x) for y in range(2, 7) for x in range(2, 7)}
    images[:] = 0
    images[:, :, :, 0] = 255
    (batch, _), *_ = train(data, batch_size=400, flip=True).epoch(0)
    assert 150 < int(batch[:, 0, 0, 8].sum()) < 250


# ---- files ----


INTERPOLATIONS = ("bilinear", "bicubic")


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_file_test_batch_equals_torchvision(tmp_path: Path, interpolation: Interpolation) -> None:
    data = photos(tmp_path)
    loader = loaders.test_loader(
        data, batch_size=4, device="cpu", image_size=14, crop_fraction=0.7, interpolation=interpolation
    )
    images = torch.cat([images for images, _ in loader.epoch()])
    oracle = v2.Compose(
        [
            v2.Resize(20, v2.InterpolationMode(interpolation), antialias=True),
            v2.CenterCrop(14),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    expected = torch.stack([oracle(Image.open(path).convert("RGB")) for path in data.paths])
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-5)


def test_file_batches_do_not_depend_on_workers_or_what_went_before(tmp_path: Path) -> None:
    data = photos(tmp_path)
    state = torch.get_rng_state()
    alone = train(data, batch_size=4, flip=True)
    first, second = list(alone.epoch(0)), list(alone.epoch(1))
    assert [images.shape for images, _ in first] == [(3, 3, 16, 16), (3, 3, 16, 16), (4, 3, 16, 16)]
    assert not same(first, second)
    helped = train(data, batch_size=4, flip=True, workers=2)
    assert same(list(helped.epoch(1)), second)
    next(helped.epoch(0))  # left in the middle
    assert same(list(helped.epoch(0, start=1)), first[1:])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("world_size", [1, 2])
def test_repeated_augmentation_puts_copies_of_an_image_into_one_batch(world_size: int) -> None:
    orders = [TrainOrder(12, 6, 0, rank, world_size, repeats=3) for rank in range(world_size)]
    batches = [[order.indices(0)[order.share(step)] for order in orders] for step in range(orders[0].steps)]
    assert [sorted(torch.cat(batch).bincount().tolist(), reverse=True)[:3] for batch in batches] == [[3, 3, 0]] * 2
    assert len(torch.cat([torch.cat(batch) for batch in batches])) == 12
    draws = [split_draw(draw) for draw in orders[0].draws(0).tolist()]
    assert len({*draws}) == 12
    assert [repeats for _, repeats in draws[:3]] == [(), (1,), (2,)]
    assert torch.equal(orders[0].indices(0), TrainOrder(12, 6, 0, 0, 1).indices(0)[:4].repeat_interleave(3))


def test_copies_of_an_image_are_augmented_differently(tmp_path: Path) -> None:
    data = photos(tmp_path)
    loader = train(data, batch_size=4, repeats=2, crop_scale=(0.2, 0.9))
    images = torch.cat([batch for batch, _ in loader.epoch(0)])
    assert len(images) == len(images.flatten(1).unique(dim=0)) == len(data)


def test_epochs_of_one_loader_do_not_disturb_each_other(tmp_path: Path) -> None:
    loader = train(photos(tmp_path), batch_size=4, workers=2, auto_augment="rand-m9-mstd0.5-inc1")
    alone = list(loader.epoch(0))
    left = loader.epoch(0)
    begun = [next(left)]
    next(loader.epoch(1))
    assert same(begun + list(left), alone)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_file_train_batch_equals_torchvision_from_the_same_generator_state(
    tmp_path: Path, interpolation: Interpolation
) -> None:
    data, how = photos(tmp_path), v2.InterpolationMode(interpolation)
    resized = v2.RandomResizedCrop(16, scale=(0.3, 0.9), interpolation=how, antialias=True)
    crop = v2.Compose([resized, v2.RandomHorizontalFlip()])
    convert = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    expected = []
    for index, path in enumerate(data.paths):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(5, "augment", 2, index))
            expected.append(convert(crop(Image.open(path).convert("RGB"))))
    by_number = replace(data, labels=torch.arange(10), classes=tuple("0123456789"))
    order = torch.cat([labels for _, labels in train(by_number, seed=5).epoch(2)])
    loader = train(data, seed=5, flip=True, crop_scale=(0.3, 0.9), interpolation=interpolation)
    images = torch.cat([images for images, _ in loader.epoch(2)])
    torch.testing.assert_close(images, torch.stack(expected)[order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_file_stops_with_its_path_in_one_sentence(tmp_path: Path, workers: int) -> None:
    data = photos(tmp_path)
    data.paths[7].write_bytes(data.paths[7].read_bytes()[:200])
    loader = loaders.test_loader(data, batch_size=2, device="cpu", image_size=16, workers=workers)
    batches = loader.epoch()
    for _ in range(3):
        next(batches)
    with pytest.raises(InputError) as caught:
        next(batches)
    assert str(caught.value).startswith(f"{data.paths[7]} cannot be read as an image")
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


# ---- colours and AutoAugment ----


def noise(n: int = 20, channels: int = 3) -> ArraySet:
    images = torch.randint(0, 256, (n, channels, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return ArraySet("noise", "train", ("a", "b"), torch.arange(n) % 2, MEAN[:channels], STD[:channels], images)


COLORS = [{"color_jitter": 0.4, "lighting": 0.1}, {"auto_augment": "cifar10"}, {"auto_augment": "augmix"}]


@pytest.mark.parametrize("options", COLORS, ids=str)
@pytest.mark.parametrize("photographs", [False, True])
def test_colours_are_a_function_of_seed_epoch_and_step(
    tmp_path: Path, options: dict[str, Any], photographs: bool
) -> None:
    data = photos(tmp_path, 12) if photographs else noise()
    state = torch.get_rng_state()
    plain = list(train(data, batch_size=4).epoch(1))
    loader = train(data, batch_size=4, **options)
    whole = list(loader.epoch(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(torch.cat([images for images, _ in whole]), torch.cat([images for images, _ in plain]))
    assert all(torch.equal(labels, other) for (_, labels), (_, other) in zip(whole, plain, strict=True))
    next(loader.epoch(0))
    assert same(list(loader.epoch(1, start=1)), whole[1:])
    ranks = [list(train(data, batch_size=4, rank=rank, world_size=2, **options).epoch(1)) for rank in range(2)]
    joined = [torch.cat([first[0], second[0]]) for first, second in zip(*ranks, strict=True)]
    assert all(torch.equal(one, images) for one, (images, _) in zip(joined, whole, strict=True))
    others = [train(data, batch_size=4, **options).epoch(2), train(data, batch_size=4, seed=1, **options).epoch(1)]
    assert not any(same(list(other), whole) for other in others)


def test_colours_are_changed_before_the_normalization() -> None:
    data = noise(8)
    (plain, labels), *_ = train(data, batch_size=8).epoch(0)
    (changed, same_labels), *_ = train(data, batch_size=8, color_jitter=0.4, lighting=0.1).epoch(0)
    draw = draw_color(8, 0.4, 0.1, torch.Generator().manual_seed(derive_seed(0, "color", 0, 0)))
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    pixels = ((plain * std + mean) * 255).round().to(torch.uint8)
    torch.testing.assert_close(changed, (draw.apply(pixels) / 255 - mean) / std, rtol=1e-4, atol=1e-4)
    assert torch.equal(labels, same_labels)


def test_a_small_image_gets_the_policy_of_its_position_and_then_its_crop() -> None:
    data = noise(8)
    (images, _), *_ = train(data, batch_size=8, auto_augment="cifar10", crop_padding=2, flip=True).epoch(3)
    (uncropped, _), *_ = train(data, batch_size=8, auto_augment="cifar10").epoch(3)
    generator = torch.Generator().manual_seed(derive_seed(0, "augment", 3))
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    black = -mean / std
    cropped = draw_crop_flip(8, 2, True, generator).apply(uncropped - black) + black
    torch.testing.assert_close(images, cropped, rtol=1e-4, atol=1e-4)
    augment, expected = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), []
    (plain, _), *_ = train(data, batch_size=8).epoch(3)
    for position, image in enumerate(((plain * std + mean) * 255).round().to(torch.uint8)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(0, "policy", 3, position))
            expected.append((augment(image) / 255 - mean) / std)
    torch.testing.assert_close(uncropped, torch.stack(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"color_jitter": 0.4}, {"lighting": 0.1}])
def test_colours_need_three_channels(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="the images of noise have 1 channels; colour jitter and lighting need 3"):
        train(noise(channels=1), **options)


# ---- wrong input ----


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 10, "world_size": 4}, "batch_size is 10; expected a positive multiple of the 4"),
        ({"rank": 1}, "rank is 1"),
        ({"workers": -1}, "workers is -1"),
        ({"image_size": 0}, "image_size is 0"),
        ({"crop_padding": -1}, "padding is -1 and"),
        (
            {"crop_padding": 8, "padding_mode": "reflect"},
            "crop_padding is 8 with padding_mode 'reflect'; expected less than the image's 8 pixels",
        ),
        (
            {"crop_padding": 100_000},
            "crop_padding is 100000 with padding_mode 'constant'; expected at most the image's 8 pixels",
        ),
        ({"padding_mode": "edge"}, "padding_mode 'edge'"),
        (
            {"image_size": 1_000_000},
            r"a batch of 16 images of 1000000×1000000 takes [\d,.]+ GiB; expected at most this",
        ),
        ({"batch_size": 10**12}, r"a batch of 1000000000000 images takes [\d,.]+ GiB"),
        ({"auto_augment": "cifar100"}, "auto_augment is 'cifar100'; expected one of none, imagenet, cifar10, svhn"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_scale": (0.5, 0.4)}, "crop_scale"),
        ({"crop_fraction": 0.0, "squash": True}, "crop_fraction is 0.0; expected a share above 0, at most 1"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        train(numbered(), **options)


def test_wrong_arguments_of_files(tmp_path: Path) -> None:
    data = photos(tmp_path, n=2)
    with pytest.raises(InputError, match="image_size is missing"):
        train(data, image_size=None)
    with pytest.raises(InputError, match=r"an image of 10000000×10000000 pixels .* takes"):
        train(data, image_size=10, squash=True, crop_fraction=1e-6)
    with pytest.raises(InputError, match=r"crop_fraction is 1\.5"):
        loaders.test_loader(data, batch_size=2, device="cpu", image_size=8, crop_fraction=1.5)


def test_a_copy_has_a_stream_of_its_own_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Stream:
        def __init__(self, *_: Any) -> None: ...

        def wait_stream(self, other: "Stream") -> None:
            said.append("the step waits for the copy" if other is upload.stream and self is current else "wrong")

    @contextlib.contextmanager
    def stream(given: Stream) -> Iterator[None]:
        said.append("copy" if given is upload.stream else "wrong")
        yield

    current, batch = Stream(), [torch.arange(3), torch.ones(2)]
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: current)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, non_blocking: tensor)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda _, used: said.append("kept" if used is current else "wrong")
    )
    upload = loaders.Upload(CUDA)
    assert upload(batch) == batch
    assert said == ["copy", "the step waits for the copy", "kept", "kept"]


def test_large_copies_to_a_gpu_are_pinned_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of other memory waits for the steps before it; of small ones the driver takes a copy."""
    pinned: list[int] = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: None)
    upload = loaders.Upload(CUDA)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    upload.stream = SimpleNamespace()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(wait_stream=lambda _: None))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.nbytes) or tensor)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: tensor.dtype == torch.uint8)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, non_blocking: tensor)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    upload([torch.zeros(1 << 14), torch.zeros((1 << 14) + 1), torch.zeros(1 << 20, dtype=torch.uint8)])
    assert pinned == [4 * ((1 << 14) + 1)]


def test_a_copy_to_another_device_needs_no_stream() -> None:
    assert [part.tolist() for part in loaders.Upload(torch.device("cpu"))((torch.arange(3), torch.ones(1)))] == [
        [0, 1, 2],
        [1.0],
    ]


@pytest.mark.gpu
def test_copies_beside_a_step_arrive_whole() -> None:
    upload = loaders.Upload(CUDA)
    batches = [torch.full((64, 3, 224, 224), i, dtype=torch.uint8).pin_memory() for i in range(8)]
    busy, sums = torch.randn(4096, 4096, device=CUDA), []
    for batch in batches:
        (there,) = upload([batch])
        busy = busy @ busy
        sums.append(there.sum())
    assert [int(each) for each in sums] == [i * batches[0].numel() for i in range(8)]
