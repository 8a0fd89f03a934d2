"""The paper's ablations: what each changes, exactly, and that it changes nothing else."""

import copy
import pickle
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from cutmix import (
    CenterGaussianCutMix,
    CompleteLabelCutMix,
    CutMix,
    Cutout,
    Draw,
    FeatureMix,
    FixedSizeCutMix,
    Mixup,
    MultiCutMix,
    MultiDraw,
    MultiTargets,
    OneHotCutMix,
    RandomChoice,
    ScheduledCutMix,
    mixed_binary_cross_entropy,
    mixed_cross_entropy,
)

VARIANTS = {
    "center-gaussian": CenterGaussianCutMix,
    "fixed-size": FixedSizeCutMix,
    "one-hot": OneHotCutMix,
    "complete-label": CompleteLabelCutMix,
    "scheduled": ScheduledCutMix,
    "three": MultiCutMix,
    "four": lambda **options: MultiCutMix(num_images=4, **options),
}
every_variant = pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS)
SHAPE = (4000, 1, 32, 32)


def ready(mix: CutMix) -> CutMix:
    if isinstance(mix, ScheduledCutMix):
        mix.progress = 1.0
    return mix


# The box.


@pytest.mark.parametrize("sigma", [0.1, 0.25, 1.0])
def test_gaussian_centres(sigma: float) -> None:
    size = np.array([[1e6], [1e5]])
    centres = CenterGaussianCutMix(sigma=sigma, seed=0).draw_centres(4000, size) / size
    expected = stats.truncnorm(-0.5 / sigma, 0.5 / sigma, loc=0.5, scale=sigma)
    for axis in centres:
        assert stats.kstest(axis, expected.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(centres)[0, 1]) < 4 / 4000**0.5


def test_a_wide_gaussian_is_cutmix_and_a_narrow_one_is_centred() -> None:
    wide = CenterGaussianCutMix(sigma=1e4, per_sample=True, seed=0).draw(SHAPE)
    assert torch.equal(wide.boxes, CutMix(per_sample=True, seed=0).draw(SHAPE).boxes)
    x1, y1, x2, y2 = CenterGaussianCutMix(sigma=1e-3, per_sample=True, seed=0).draw((500, 1, 20, 40)).boxes.unbind(1)
    assert {*(x1 + x2).tolist()} == {38, 40}  # around one of the two pixels in the middle
    assert {*(y1 + y2).tolist()} == {18, 20}


def test_fixed_size_boxes_are_cutouts_holes() -> None:
    for side in (1, 7, 16, 100):
        fixed, cutout = FixedSizeCutMix(side, per_sample=True, seed=0), Cutout(side, seed=0)
        cutout.load_state_dict(fixed.state_dict())
        assert torch.equal(fixed.draw((300, 1, 20, 36)).boxes, cutout.draw((300, 1, 20, 36)).boxes)


def test_fixed_size_areas_are_as_known() -> None:
    # Mean area and share of boxes that are not clipped, known from the authors' function.
    area = 1 - FixedSizeCutMix(per_sample=True, seed=0).draw((40_000, 1, 32, 32)).lam.double()
    assert area.mean().item() == pytest.approx(0.192, abs=0.001)
    assert (area == 0.25).double().mean().item() == pytest.approx(0.28, abs=0.01)


@pytest.mark.parametrize("make", [CenterGaussianCutMix, FixedSizeCutMix, ScheduledCutMix])
@pytest.mark.parametrize("per_sample", [False, True])
def test_lambda_is_the_share_of_own_pixels(make: Callable, per_sample: bool, numbered: Callable) -> None:
    mix = ready(make(per_sample=per_sample, seed=1))
    for n, size in ((2, (7, 7)), (7, (20, 36)), (5, (1, 9)), (1, (8, 8))):
        images = numbered(n, 3, *size)
        mixed, targets = mix(images, torch.arange(n))
        torch.testing.assert_close(targets.lam, (mixed == images).float().mean((1, 2, 3)))


# The label.


def test_one_hot_is_the_class_of_most_pixels(numbered: Callable) -> None:
    mix, seen = OneHotCutMix(per_sample=True, seed=2), set()
    for _ in range(40):
        images = numbered(7, 1, 10, 12)
        mixed, targets = mix(images, torch.arange(7))
        own = (mixed == images).sum((1, 2, 3))
        label = torch.where(own * 2 >= 120, targets.labels, targets.partner_labels)
        assert torch.equal(targets.dense(7), F.one_hot(label, 7).float())
        seen |= set(targets.lam.tolist())
    assert seen == {0.0, 1.0}
    assert mix.weigh(torch.tensor([0.5, 0.4999, 0.0, 1.0])).tolist() == [1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("make", [OneHotCutMix, CompleteLabelCutMix])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("prob", [1.0, 0.5])
def test_only_the_label_changes(make: Callable, per_sample: bool, prob: float) -> None:
    options = {"per_sample": per_sample, "prob": prob, "seed": 3}
    ours, reference = make(**options), CutMix(**options)
    for _ in range(20):
        images, labels = torch.randn(9, 3, 24, 24), torch.arange(9)
        (mixed, targets), (expected, pixels) = ours(images, labels), reference(images, labels)
        assert torch.equal(mixed, expected)
        assert torch.equal(targets.partner_labels, pixels.partner_labels)
        label = (pixels.lam >= 0.5).float() if make is OneHotCutMix else torch.where(pixels.lam < 1, 0.5, targets.lam)
        assert torch.equal(targets.lam, label)


def test_complete_label_whatever_lambda_is() -> None:
    always = CompleteLabelCutMix(per_sample=True, seed=4).draw((4000, 1, 8, 8))
    assert always.lam.tolist() == [0.5] * 4000
    assert bool((always.boxes[:, 0] == always.boxes[:, 2]).any())  # among them empty boxes
    sometimes = CompleteLabelCutMix(prob=0.3, per_sample=True, seed=4).draw((4000, 1, 8, 8)).lam
    assert sorted(set(sometimes.tolist())) == [0.5, 1.0]
    assert (sometimes == 0.5).double().mean().item() == pytest.approx(0.3, abs=4 * (0.21 / 4000) ** 0.5)
    never = CompleteLabelCutMix(prob=0.0)(torch.randn(3, 1, 8, 8), torch.arange(3))[1]
    assert torch.equal(never.dense(3), torch.eye(3))


# The probability.


@pytest.mark.parametrize(("progress", "prob"), [(0, 1.0), (0.25, 1.0), (1, 1.0), (1, 0.5), (0.5, 0.5)])
def test_scheduled_grows_linearly(progress: float, prob: float) -> None:
    mix = ScheduledCutMix(prob=prob, seed=5)
    assert mix.prob == 0
    mix.progress = progress
    expected = prob * progress
    often = sum(bool((mix.draw((4, 1, 64, 64)).lam < 1).all()) for _ in range(1000)) / 1000
    assert often == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 1000) ** 0.5 + 0.005)


def test_scheduled_goes_on_from_its_state() -> None:
    def run(mix: ScheduledCutMix, steps: range) -> list[list[float]]:
        lams = []
        for step in steps:
            mix.progress = step / 40
            lams.append(mix.draw((3, 1, 9, 9)).lam.tolist())
        return lams

    through = run(ScheduledCutMix(seed=6), range(40))
    first, second = ScheduledCutMix(seed=6), ScheduledCutMix(seed=99)
    assert run(first, range(17)) == through[:17]
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    assert (second.progress, second.prob) == (first.progress, first.prob)
    assert run(second, range(17, 40)) == through[17:]


@pytest.mark.parametrize(
    "around", [lambda mix: RandomChoice([mix, Cutout(1)], [1, 0]), lambda mix: FeatureMix(mix, layers=0)]
)
def test_a_schedule_grows_inside_other_methods(around: Callable) -> None:
    """At the end every batch is mixed, at the start none, by the call that a loop makes."""
    images, labels = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 64, 64), torch.arange(6)
    method = around(ScheduledCutMix(seed=7))
    for progress, mixed in ((1.0, True), (0.0, False)):
        given, targets = method.mix(images, labels, progress)
        features, _ = method.forward(nn.Identity(), given, targets)
        assert bool((features != images).any()) is mixed


@pytest.mark.parametrize("progress", [-0.1, 1.1, float("nan")])
def test_progress_out_of_range(progress: float) -> None:
    with pytest.raises(ValueError, match=rf"progress is {progress}; expected a share of the training in \[0, 1\]"):
        ScheduledCutMix().progress = progress


# More images.


@pytest.mark.parametrize("num_images", [2, 3, 4])
@pytest.mark.parametrize("per_sample", [False, True])
def test_weights_are_the_pixels_that_are_seen(num_images: int, per_sample: bool, numbered: Callable) -> None:
    mix = MultiCutMix(0.5, num_images, per_sample=per_sample, seed=7)
    most = 0
    for n, size in [(1, (5, 5)), (2, (8, 9)), (3, (9, 4)), (7, (16, 12)), (7, (1, 5))] * 3:
        mixed, targets = mix(numbered(n, 3, *size), torch.arange(n))
        pixels = torch.stack([(mixed == i).double().mean((1, 2, 3)) for i in range(n)], dim=1)
        torch.testing.assert_close(targets.dense(n).double(), pixels, rtol=0, atol=2e-7)
        assert targets.labels.shape == targets.weights.shape == (n, num_images)
        if n >= num_images:
            assert all(len(set(row)) == num_images for row in targets.labels.tolist())
        most = max(most, int((pixels > 0).sum(1).max()))
    assert most == num_images


def test_two_images_are_cutmix() -> None:
    for per_sample in (False, True):
        ours, reference = (
            MultiCutMix(num_images=2, per_sample=per_sample, seed=8),
            CutMix(per_sample=per_sample, seed=8),
        )
        images, labels = torch.randn(6, 3, 20, 20), torch.arange(6)
        (mixed, targets), (expected, pair) = ours(images, labels), reference(images, labels)
        assert torch.equal(mixed, expected)
        torch.testing.assert_close(targets.dense(6), pair.dense(6))


def test_later_boxes_cover_earlier_ones() -> None:
    partners = torch.tensor([1, 2, 0]), torch.tensor([2, 0, 1])
    boxes = (0, 0, 4, 4), (2, 2, 6, 4)
    draw = MultiDraw.from_draws([Draw.from_boxes(p, b, (6, 6)) for p, b in zip(partners, boxes, strict=True)])
    images = torch.arange(3.0).reshape(3, 1, 1, 1).repeat(1, 1, 6, 6)
    expected = images[:1, 0].clone()
    expected[0, 0:4, 0:4] = 1
    expected[0, 2:4, 2:6] = 2
    assert torch.equal(draw.apply(images)[:1, 0], expected)
    torch.testing.assert_close(draw.weights(), (torch.tensor([[16.0, 12, 8]]) / 36).repeat(3, 1))
    torch.testing.assert_close(draw.lam, torch.full((3,), 16 / 36))


def test_multi_targets_in_the_losses() -> None:
    _, targets = MultiCutMix(num_images=4, per_sample=True, seed=9)(
        torch.randn(5, 1, 9, 9), torch.tensor([0, 3, 1, 3, 2])
    )
    assert isinstance(targets, MultiTargets)
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weight, soft = torch.rand(4, dtype=torch.float64), targets.dense(4).double()
    torch.testing.assert_close(soft.sum(1), torch.ones(5).double(), rtol=0, atol=1e-6)
    for options in ({}, {"label_smoothing": 0.1}, {"weight": weight, "label_smoothing": 0.2, "reduction": "sum"}):
        ours, theirs = mixed_cross_entropy(logits, targets, **options), F.cross_entropy(logits, soft, **options)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))
    binary = F.binary_cross_entropy_with_logits(logits, soft)
    torch.testing.assert_close(mixed_binary_cross_entropy(logits, targets), binary)
    with pytest.raises(ValueError, match="class ids go from 3 to 3; expected 0 to 2"):
        mixed_cross_entropy(logits[:, :3], MultiTargets(torch.tensor([[0, 3]] * 5), torch.full((5, 2), 0.5)))
    with pytest.raises(ValueError, match="there are 5 targets for 4 rows"):
        mixed_cross_entropy(logits[:4], targets)


def test_soft_labels_are_mixed_as_class_ids() -> None:
    mix = MultiCutMix(per_sample=True, seed=10)
    draw, labels = mix.draw((6, 1, 12, 12)), torch.tensor([0, 1, 2, 3, 0, 1])
    soft = draw.targets(F.one_hot(labels, 4))
    torch.testing.assert_close(soft, draw.targets(labels).dense(4))
    assert draw.targets(torch.rand(6, 4, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("per_sample", [False, True])
def test_several_images_in_every_layout(per_sample: bool, numbered: Callable) -> None:
    draw = MultiCutMix(num_images=4, per_sample=per_sample, seed=11).draw((5, 3, 12, 10))
    expected = draw.apply(numbered(5, 3, 12, 10))
    channels_last = numbered(5, 3, 12, 10).contiguous(memory_format=torch.channels_last)
    mixed = draw.apply(channels_last)
    assert torch.equal(mixed, expected)
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert draw.apply(channels_last, inplace=True) is channels_last
    assert torch.equal(channels_last, expected)
    assert torch.equal(draw.apply(numbered(5, 3, 12, 10, dtype=torch.uint8)), expected.to(torch.uint8))
    video = numbered(5, 3, 12, 10).unsqueeze(2).repeat(1, 1, 2, 1, 1)
    assert torch.equal(draw.apply(video)[:, :, 1], expected)
    images = numbered(5, 3, 12, 10).requires_grad_()
    draw.apply(images).sum().backward()
    assert images.grad.sum() == images.numel()  # every pixel that is seen passes its gradient to its source


@pytest.mark.parametrize("num_images", [1, 2.5, 5])
def test_wrong_number_of_images(num_images: float) -> None:
    with pytest.raises(ValueError, match=rf"num_images is {num_images}; expected 2, 3 or 4"):
        MultiCutMix(num_images=num_images)


# All of them.


def drawn(mix: CutMix, batches: int = 5) -> list[tuple]:
    draws = [mix.draw((5, 1, 30, 30)) for _ in range(batches)]
    return [(d.partner.tolist(), d.lam.tolist(), d.boxes.tolist()) for d in draws]


@every_variant
def test_seeds_and_state(make: Callable) -> None:
    first = ready(make(prob=0.6, per_sample=True, seed=0))
    reference = drawn(first)
    assert drawn(ready(make(prob=0.6, per_sample=True, seed=0))) == reference
    assert drawn(ready(make(prob=0.6, per_sample=True, seed=1))) != reference
    copies = [copy.deepcopy(first), pickle.loads(pickle.dumps(first)), make(prob=0.6, per_sample=True, seed=77)]
    copies[2].load_state_dict(first.state_dict())
    following = drawn(first)
    assert following != reference
    assert [drawn(mix) for mix in copies] == [following] * 3


@every_variant
@pytest.mark.parametrize("per_sample", [False, True])
def test_prob_and_batches_of_one(make: Callable, per_sample: bool) -> None:
    images, labels = torch.randn(6, 1, 16, 16), torch.tensor([3, 1, 0, 2, 2, 3])
    mix = ready(make(per_sample=per_sample, seed=0))
    mixed, targets = mix(images[:1], labels[:1])
    assert torch.equal(mixed, images[:1])
    assert torch.equal(targets.dense(4), F.one_hot(labels[:1], 4).float())
    mix.prob = 0
    mixed, unmixed = mix(images, labels)
    assert torch.equal(mixed, images)
    assert torch.equal(unmixed.dense(4), F.one_hot(labels, 4).float())
    assert type(unmixed) is type(targets)
    mix.prob = 0.3
    changed = torch.stack([mix(images, labels)[0].ne(images).flatten(1).any(1) for _ in range(400)])
    assert changed.double().mean().item() == pytest.approx(0.3, abs=0.1)
    assert bool((changed == changed[:, :1]).all()) != per_sample


@pytest.mark.parametrize("prob", [1.0, 0.4])
@pytest.mark.parametrize(
    "make",
    [*VARIANTS.values(), CutMix, Mixup, lambda **options: CutMix(0.01, **options), partial(Cutout, 9),
     lambda **options: RandomChoice([CutMix(**options), Mixup(**options)], seed=1)],
)  # fmt: skip
def test_pytorchs_defaults_have_no_effect(make: Callable, prob: float) -> None:
    """Of the device, which a GPU is for some users, and of the dtype, which Lightning sets in a training step."""

    def drawn(device: str | None, dtype: torch.dtype) -> list[Tensor]:
        mix, before = ready(make(seed=13, prob=prob)), torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        torch.set_default_device(device)
        try:
            draws = [mix.draw((6, 3, 40, 40)) for _ in range(5)]
        finally:
            torch.set_default_device(None)
            torch.set_default_dtype(before)
        return [part for draw in draws for part in (draw.partner, draw.lam)]

    plain = drawn(None, torch.float32)
    assert {part.dtype for part in plain} == {torch.int64, torch.float32}
    for device, dtype in (("meta", torch.float32), (None, torch.float64), (None, torch.bfloat16)):
        for part, expected in zip(drawn(device, dtype), plain, strict=True):
            torch.testing.assert_close(part, expected, rtol=0, atol=0)


@every_variant
def test_in_place(make: Callable) -> None:
    images, labels = torch.randn(5, 3, 20, 20), torch.arange(5)
    mixed, targets = ready(make(seed=12))(images, labels)
    written, same = ready(make(seed=12, inplace=True))(images, labels)
    assert written is images
    assert torch.equal(written, mixed)
    assert all(map(torch.equal, targets, same))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: CenterGaussianCutMix(sigma=0), "sigma is 0; expected a number above 0"),
        (lambda: CenterGaussianCutMix(-1), "alpha is -1; expected a number above 0"),
        (lambda: FixedSizeCutMix(0), "size is 0; expected a whole number of pixels above 0"),
        (lambda: FixedSizeCutMix(prob=2), "prob is 2; expected a probability"),
        (lambda: MultiCutMix().draw((3, 4)), "without spatial dimensions"),
        (lambda: MultiCutMix().draw((3, 1, 4, 4)).apply(torch.zeros(3, 1, 4, 5)), "the draw is for 4×4 pixels"),
        (lambda: MultiCutMix().draw((3, 1, 4, 4)).targets(torch.zeros(3)), "expected an integer dtype"),
        (
            lambda: MultiDraw.from_draws([Draw.from_lam(torch.arange(2), 0.5)] * 2),
            "2 draws; expected one to three, all",
        ),
        (
            lambda: MultiDraw.from_draws([Draw.from_boxes([1, 0], [0, 0, s, s], (s, s)) for s in (8, 16)]),
            "one batch and one size",
        ),
        (
            lambda: MultiDraw.from_draws([Draw.from_boxes(p, [0, 0, 4, 4], (8, 8)) for p in ([1, 0], [1, 2, 0])]),
            "one batch and one size",
        ),
    ],
)
def test_wrong_input(make: Callable[[], Tensor], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()
