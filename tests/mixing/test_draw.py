"""Draws built by hand: the pixels and labels of other libraries for the same box, λ and partners; wrong input."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import timm.data.mixup as timm_mixup
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import v2

from cutmix import CutMix, Cutout, CutoutDraw, Draw, InputError, MixedTargets, Mixup, MultiCutMix

SIZE = (20, 36)
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
BOXES = {"inside": (3, 4, 30, 11), "corner": (0, 0, 5, 7), "full": (0, 0, 36, 20), "empty": (9, 9, 9, 9)}
ROLLED, FLIPPED = torch.arange(6).roll(1), torch.arange(6).flip(0)  # The partners of torchvision, and of timm.


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, *SIZE, generator=generator), torch.tensor([0, 3, 3, 1, 2, 0])


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_boxes_as_torchvision(
    batch: tuple[Tensor, Tensor], box: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x1, y1, x2, y2 = box
    theirs = v2.CutMix(num_classes=4)
    params = {"box": box, "lam_adjusted": 1 - (x2 - x1) * (y2 - y1) / (SIZE[0] * SIZE[1])}
    monkeypatch.setattr(theirs, "make_params", lambda _: params)
    images, labels = theirs(*batch)
    draw = Draw.from_boxes(ROLLED, box, SIZE)
    assert torch.equal(draw.apply(batch[0]), images)
    torch.testing.assert_close(draw.targets(batch[1]).dense(4), labels)
    # Labels that are dense already.
    soft = torch.rand(6, 4)
    torch.testing.assert_close(draw.targets(soft), theirs(batch[0], soft)[1])


@pytest.mark.parametrize("lam", [0.0, 1.0, 0.5, 0.3, 0.123456])
def test_blends_as_torchvision(batch: tuple[Tensor, Tensor], lam: float, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = v2.MixUp(num_classes=4)
    monkeypatch.setattr(theirs, "make_params", lambda _: {"lam": lam})
    images, labels = theirs(*batch)
    draw = Draw.from_lam(ROLLED, lam)
    torch.testing.assert_close(draw.apply(batch[0]), images)
    torch.testing.assert_close(draw.targets(batch[1]).dense(4), labels)


@pytest.mark.parametrize("mode", ["batch", "elem"])
@pytest.mark.parametrize("cut", [True, False])
def test_as_timm(batch: tuple[Tensor, Tensor], mode: str, cut: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, lams = [], []

    def remember(shape: tuple, lam: float, **options: object) -> tuple:
        (yl, yh, xl, xh), lam = original(shape, lam, **options)
        boxes.append((xl, yl, xh, yh))
        return (yl, yh, xl, xh), lam

    def weights(count: int | None = None) -> tuple:
        lam = np.random.default_rng(0).uniform(0.1, 0.9, count or 1).astype(np.float32)
        lams.extend(lam.tolist())
        return (lam, np.full(count, cut)) if count else (float(lam[0]), cut)

    original = timm_mixup.cutmix_bbox_and_lam
    monkeypatch.setattr(timm_mixup, "cutmix_bbox_and_lam", remember)
    theirs = timm_mixup.Mixup(mode=mode, label_smoothing=0.0, num_classes=4)
    monkeypatch.setattr(theirs, f"_params_per_{mode}", weights)
    images, labels = theirs(batch[0].clone(), batch[1])
    draw = Draw.from_boxes(FLIPPED, np.array(boxes), SIZE) if cut else Draw.from_lam(FLIPPED, torch.tensor(lams))
    torch.testing.assert_close(draw.apply(batch[0]), images, rtol=0, atol=0 if cut else 1e-6)
    torch.testing.assert_close(draw.targets(batch[1]).dense(4), labels)


def test_a_mask_says_what_a_box_and_a_weight_say(batch: tuple[Tensor, Tensor]) -> None:
    mask = torch.ones(SIZE, dtype=torch.bool)
    mask[4:11, 3:30] = False
    by_box, by_mask = Draw.from_boxes(ROLLED, BOXES["inside"], SIZE), Draw.from_mask(ROLLED, mask)
    assert torch.equal(by_box.lam, by_mask.lam)
    assert torch.equal(by_box.apply(batch[0]), by_mask.apply(batch[0]))
    even = Draw.from_mask(ROLLED, torch.full(SIZE, 0.25))
    assert even.lam.tolist() == [0.25] * 6
    torch.testing.assert_close(even.apply(batch[0]), Draw.from_lam(ROLLED, 0.25).apply(batch[0]))


def test_one_draw_mixes_everything_of_the_batch(batch: tuple[Tensor, Tensor]) -> None:
    draw = CutMix(per_sample=True, seed=0).draw(batch[0].shape)
    images = draw.apply(batch[0])
    segmentation, video = batch[0][:, 0].mul(9).long(), batch[0][:, :, None].expand(-1, -1, 4, -1, -1)
    assert torch.equal(draw.apply(segmentation), images[:, 0].mul(9).long())
    assert torch.equal(draw.apply(video), images[:, :, None].expand_as(video))
    assert torch.equal(draw.apply(batch[0]), images)


def test_labels_of_every_kind(batch: tuple[Tensor, Tensor]) -> None:
    draw = Draw.from_lam(ROLLED, torch.tensor([0.0, 1.0, 0.5, 0.25, 0.75, 1.0]))
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, *UNSIGNED):
        mixed = draw.targets(batch[1].to(dtype))
        assert isinstance(mixed, MixedTargets)
        assert mixed.labels.tolist() == [0, 3, 3, 1, 2, 0]
        assert mixed.partner_labels.tolist() == [0, 0, 3, 3, 1, 2]
        assert torch.equal(mixed.lam, draw.lam)
    dense = mixed.dense(4)
    for dtype in (torch.bool, torch.int64, torch.float16, torch.float32, torch.float64):
        soft = draw.targets(F.one_hot(batch[1]).to(dtype))
        assert soft.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(soft.float(), dense)
    several = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 0, 1]])  # Multi-label images.
    expected = torch.stack([lam * several[i] + (1 - lam) * several[i - 1] for i, lam in enumerate(draw.lam)])
    torch.testing.assert_close(draw.targets(several), expected)


@pytest.mark.parametrize("unknown", [-1.0, -100.0, 2.0, float("nan")])
def test_multi_labels_out_of_range_are_refused(batch: tuple[Tensor, Tensor], unknown: float) -> None:
    targets = torch.eye(6)
    targets[2, 3] = unknown
    draws = [Draw.from_lam(ROLLED, 0.5), MultiCutMix(seed=0).draw(batch[0].shape), Cutout(4).draw(batch[0].shape)]
    for draw in draws:
        with pytest.raises(InputError, match=r"targets \(N, K\) go from .* to .*; expected 0 to 1$"):
            draw.targets(targets)
    rounded = targets.clone()
    rounded[2, 3] = 1 + 1e-6  # as sums of weights may be
    assert draws[0].targets(rounded).isfinite().all()


class Copies(TorchDispatchMode):
    """Count what is copied from the CPU to another device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        moved = isinstance(result, Tensor) and result.device.type != "cpu" and "copy" in str(func)
        self.count += moved and args[0].device.type == "cpu"
        return result


@pytest.mark.parametrize("make", [CutMix, Mixup, Cutout], ids=lambda make: make.__name__)
@pytest.mark.parametrize("per_sample", [False, True])
def test_one_small_copy_a_step(make: Callable, per_sample: bool) -> None:
    """The meta device stands for a GPU: it has no data to wait for, and no copy of it is free."""
    transform = make(**{"size": 4} if make is Cutout else {}, per_sample=per_sample, seed=0)
    images, labels = torch.empty(6, 3, 20, 36, device="meta"), torch.empty(6, dtype=torch.int64, device="meta")
    with Copies() as copies:
        draw = transform.draw(images.shape)
        assert draw.apply(images).device.type == "meta"
        draw.targets(labels)
        draw.apply(images[:, 0])
    assert copies.count == 1


def test_what_is_sent_in_one_copy_is_the_draw(batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere:
        """Another device, as far as the draw can see; tensors stay on the CPU."""

        type = "elsewhere"

    to = Tensor.to
    monkeypatch.setattr(
        Tensor, "to", lambda x, *args, **kwargs: x if isinstance(args[0], Elsewhere) else to(x, *args, **kwargs)
    )
    for draw in (
        CutMix(per_sample=True, seed=0).draw(batch[0].shape),
        CutMix(seed=0).draw(batch[0].shape),
        Mixup(per_sample=True, seed=0).draw(batch[0].shape),
    ):
        partner, lam, boxes = draw.on(Elsewhere())
        assert torch.equal(partner.long(), draw.partner)
        assert torch.equal(lam, draw.lam)
        assert boxes is None if draw.boxes is None else torch.equal(boxes.long(), draw.boxes)


@pytest.mark.parametrize(
    "make",
    [CutMix, Mixup, lambda **options: Cutout(4, **options), MultiCutMix],
    ids=["CutMix", "Mixup", "Cutout", "MultiCutMix"],
)
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("per_sample", [False, True])
def test_an_empty_batch(make: Callable, inplace: bool, per_sample: bool) -> None:
    transform = make(inplace=inplace, per_sample=per_sample, seed=0)
    images, targets = transform(torch.zeros(0, 3, 90, 90), torch.zeros(0, dtype=torch.int64))
    assert images.shape == (0, 3, 90, 90)
    assert isinstance(targets, Tensor) or targets.dense(4).shape == (0, 4)


PAIR, ONE, EIGHT = torch.tensor([1, 0]), torch.tensor([0]), (8, 8)
WRONG = {
    "partner outside": (lambda: Draw.from_lam(torch.tensor([0, 2]), 0.5), "expected indices from 0 to 1"),
    "partner negative": (lambda: Draw.from_lam(torch.tensor([-1, 0]), 0.5), "expected indices from 0 to 1"),
    "partner float": (lambda: Draw.from_lam(PAIR.float(), 0.5), "partner is torch.float32"),
    "partner bool": (lambda: Draw.from_lam(PAIR.bool(), 0.5), "partner is torch.bool"),
    "partner shape": (lambda: Draw.from_lam(PAIR[None], 0.5), r"\(1, 2\); expected integers of shape \(N,\)"),
    "lam above": (lambda: Draw.from_lam(PAIR, 1.5), r"lam is 1.5; expected one number or 2 numbers in \[0, 1\]"),
    "lam nan": (lambda: Draw.from_lam(PAIR, float("nan")), "lam is nan"),
    "lam count": (lambda: Draw.from_lam(PAIR, torch.ones(3)), "expected one number or 2 numbers"),
    "box outside": (lambda: Draw.from_boxes(PAIR, [0, 0, 9, 8], EIGHT), "not inside 8×8 pixels"),
    "box negative": (lambda: Draw.from_boxes(PAIR, [-1, 0, 8, 8], EIGHT), "not inside 8×8 pixels"),
    "box reversed": (lambda: Draw.from_boxes(PAIR, [5, 0, 4, 8], EIGHT), "not inside 8×8 pixels"),
    "box float": (lambda: Draw.from_boxes(PAIR, [0.0, 0, 1, 1], EIGHT), "boxes are torch.float32"),
    "box count": (lambda: Draw.from_boxes(PAIR, [[0, 0, 1, 1]] * 3, EIGHT), r"\(3, 4\); expected integers"),
    "mask shape": (lambda: Draw.from_mask(PAIR, torch.ones(3, 8, 8)), r"mask is \(3, 8, 8\); expected"),
    "mask flat": (lambda: Draw.from_mask(PAIR, torch.ones(8)), r"mask is \(8,\); expected"),
    "mask range": (lambda: Draw.from_mask(PAIR, torch.full(EIGHT, 2.0)), r"floating with values in \[0, 1\]"),
    "mask dtype": (lambda: Draw.from_mask(PAIR, torch.ones(EIGHT).long()), "mask must be bool, or floating"),
    "batch size": (lambda: Draw.from_lam(PAIR, 0.5).apply(torch.zeros(3, 8)), r"batch of 2, but x is \(3, 8\)"),
    "no batch": (lambda: Draw.from_lam(ONE, 0.5).apply(torch.tensor(0.0)), r"batch of 1, but x is \(\)"),
    "image size": (
        lambda: Draw.from_boxes(PAIR, [0, 0, 1, 1], EIGHT).apply(torch.zeros(2, 3, 8, 9)),
        r"8×8 pixels, but x is \(2, 3, 8, 9\)",
    ),
    "hole size": (
        lambda: CutoutDraw(PAIR, torch.ones(2), boxes=torch.zeros(1, 4).long(), size=EIGHT).apply(torch.zeros(2, 8)),
        r"8×8 pixels, but x is \(2, 8\)",
    ),
    "float class ids": (lambda: Draw.from_lam(PAIR, 0.5).targets(torch.zeros(2)), "class ids are torch.float32"),
    "bool class ids": (lambda: Draw.from_lam(PAIR, 0.5).targets(PAIR.bool()), "class ids are torch.bool"),
    "label count": (lambda: Draw.from_lam(PAIR, 0.5).targets(torch.arange(3)), "3 labels for 2 images"),
    "label dimensions": (lambda: Draw.from_lam(PAIR, 0.5).targets(torch.zeros(2, 8, 8)), "mixed by draw.apply"),
    "no labels": (lambda: Draw.from_lam(ONE, 0.5).targets(torch.tensor(3)), r"labels are \(\)"),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_named(call: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert not re.search(r"[\n]", str(caught.value))
