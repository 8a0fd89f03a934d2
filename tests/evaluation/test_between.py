"""In-between samples: end points, symmetry, and every pair on its own."""

import contextlib
from itertools import pairwise

import pytest
import torch
from torch import nn

from cutmix.errors import InputError
from cutmix.evaluation.classification import wilson_interval
from cutmix.evaluation.classifier import Classifier
from cutmix.evaluation.occlusion import (
    between_classes,
    blend,
    draw_pairs,
    fill_hole,
    neither,
    pairs_interval,
    wrong,
)

LAMS = [0.0, 0.25, 0.5, 0.75, 1.0]
SIDES = [0, 2, 4, 6]


def make_classifier(n: int = 15, width: int = 6) -> Classifier:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 6, width), generator=generator, dtype=torch.uint8)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), 5)).eval().requires_grad_(False)
    labels = torch.randint(5, (n,), generator=generator)
    context = contextlib.nullcontext()
    return Classifier(network, (0.5,) * 3, (0.25,) * 3, images, labels, tuple("abcde"), "toy", context, batch_size=8)


def test_pairs_are_different_images_and_all_ordered_pairs_are_as_likely() -> None:
    pairs = draw_pairs(5, 40_000, seed=0)
    assert not bool((pairs[:, 0] == pairs[:, 1]).any())
    counts = torch.bincount(pairs[:, 0] * 5 + pairs[:, 1], minlength=25).view(5, 5)
    off_diagonal = counts[~torch.eye(5, dtype=torch.bool)].double()
    chi_square = float(((off_diagonal - 2000) ** 2 / 2000).sum())
    assert chi_square < 43.8  # 99.9 % of 19 degrees of freedom
    assert torch.equal(pairs, draw_pairs(5, 40_000, seed=0))
    assert not torch.equal(pairs, draw_pairs(5, 40_000, seed=1))


def test_classes_are_those_of_each_mixed_pair() -> None:
    classifier = make_classifier()
    clean, pairs = classifier.predict().argmax(1), draw_pairs(15, 50, seed=0)
    mixup, cutmix = between_classes(classifier, clean, pairs, LAMS, SIDES)
    assert (mixup.shape, cutmix.shape) == ((5, 50), (4, 50))
    pixels = classifier.images / 255
    for p, (a, b) in enumerate(pairs.tolist()):
        for i, lam in enumerate(LAMS):
            mixed = lam * pixels[a] + (1 - lam) * pixels[b]
            assert int(mixup[i, p]) == int(classifier.logits(mixed[None]).argmax())
        for i, side in enumerate(SIDES):
            mixed, low, high = pixels[a].clone(), (6 - side) // 2, (6 - side) // 2 + side
            mixed[:, low:high, low:high] = pixels[b][:, low:high, low:high]
            assert int(cutmix[i, p]) == int(classifier.logits(mixed[None]).argmax())


def test_at_the_ends_the_error_is_that_of_one_image() -> None:
    classifier = make_classifier()
    clean, labels, pairs = classifier.predict().argmax(1), classifier.labels, draw_pairs(15, 200, seed=0)
    mixup, cutmix = between_classes(classifier, clean, pairs, [0.0, 1.0], [0, 6])
    missed = clean != labels
    first, second = missed[pairs[:, 0]], missed[pairs[:, 1]]
    assert torch.equal(wrong(mixup, labels, pairs, [0.0, 1.0]), torch.stack([second, first]))
    assert torch.equal(wrong(cutmix, labels, pairs, [1.0, 0.0]), torch.stack([first, second]))
    # neither is the clean error, less the cases where the wrong class happens to be the other image's
    other = clean[pairs[:, 0]] == labels[pairs[:, 1]]
    assert torch.equal(neither(mixup[1], labels, pairs), first & ~other)


def test_mixup_is_symmetric_under_the_swap_of_a_pair() -> None:
    classifier = make_classifier()
    clean, labels, pairs = classifier.predict().argmax(1), classifier.labels, draw_pairs(15, 200, seed=0)
    there = between_classes(classifier, clean, pairs, LAMS, [])[0]
    back = between_classes(classifier, clean, pairs.flip(1), [1 - lam for lam in LAMS], [])[0]
    assert torch.equal(there, back)
    assert torch.equal(neither(there, labels, pairs), neither(back, labels, pairs.flip(1)))


def test_the_larger_share_decides_and_the_first_of_equal_ones() -> None:
    labels, pairs = torch.tensor([0, 1]), torch.tensor([[0, 1]])
    predicted = torch.tensor([[0], [0], [0], [1], [2]])
    shares = [1.0, 0.5, 0.49, 0.2, 0.9]
    assert wrong(predicted, labels, pairs, shares).flatten().tolist() == [False, False, True, False, True]
    assert neither(predicted, labels, pairs).flatten().tolist() == [False, False, False, False, True]


def test_mixing_ends_in_its_images_and_leaves_them() -> None:
    first, second = torch.rand(2, 4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    before = first.clone(), second.clone()
    assert torch.equal(blend(first, second, 1), first)
    assert torch.equal(blend(first, second, 0), second)
    assert torch.equal(fill_hole(first, second, 0), first)
    assert torch.equal(fill_hole(first, second, 6), second)
    kept = [int((fill_hole(first, second, side) == first).all(1).sum()) for side in range(7)]
    assert kept == [4 * (36 - side**2) for side in range(7)]
    assert all(a >= b for a, b in pairwise(kept))
    assert torch.equal(first, before[0])
    assert torch.equal(second, before[1])


def test_each_pair_is_fetched_once_and_ends_need_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = make_classifier()
    clean, pairs = classifier.predict().argmax(1), draw_pairs(15, 20, seed=0)
    seen: list[int] = []
    fetched: list[int] = []
    logits, pixels = Classifier.logits, Classifier.pixels
    monkeypatch.setattr(Classifier, "logits", lambda self, x: seen.append(len(x)) or logits(self, x))
    monkeypatch.setattr(Classifier, "pixels", lambda self, i: fetched.append(len(i)) or pixels(self, i))
    between_classes(classifier, clean, pairs, LAMS, SIDES)
    assert sum(seen) == 20 * (3 + 2)
    assert sum(fetched) == 2 * 20


def test_of_oblong_images_the_largest_hole_is_not_everything() -> None:
    classifier = make_classifier(width=9)
    clean, pairs = classifier.predict().argmax(1), draw_pairs(15, 30, seed=0)
    found = between_classes(classifier, clean, pairs, [], [6])[1][0]
    mixed = fill_hole(classifier.pixels(pairs[:, 0]), classifier.pixels(pairs[:, 1]), 6)
    assert torch.equal(found, classifier.logits(mixed).argmax(1))


@pytest.mark.parametrize("lam", [-0.1, 1.5, float("nan")])
def test_a_share_outside_0_and_1_is_refused(lam: float) -> None:
    classifier = make_classifier()
    with pytest.raises(InputError, match=f"λ is {lam}; expected a share from 0 to 1"):
        between_classes(classifier, classifier.labels, torch.tensor([[0, 1]]), [lam], [])


def test_a_hole_larger_than_the_images_is_refused() -> None:
    classifier = make_classifier()
    with pytest.raises(InputError, match="side is 7 pixels; expected 0 to 6 in images of 6×6"):
        between_classes(classifier, classifier.labels, torch.tensor([[0, 1]]), [], [7])


@pytest.mark.parametrize(("n", "count"), [(1, 10), (0, 10), (5, 0)])
def test_no_pairs_are_refused(n: int, count: int) -> None:
    with pytest.raises(InputError, match=f"{count} pairs of {n} images cannot be drawn"):
        draw_pairs(n, count, seed=0)


@pytest.mark.parametrize("kind", ["first image", "either image", "pair"])
def test_the_interval_of_pairs_is_over_the_images(kind: str) -> None:
    """Images and pairs are drawn 400 times: the interval covers the true share in about 95 % of the cases."""
    generator = torch.Generator().manual_seed(0)
    share, covered = {"first image": 0.3, "either image": 1 - 0.7**2, "pair": 0.3}[kind], 0
    for seed in range(400):
        image, pairs = torch.rand(200, generator=generator) < 0.3, draw_pairs(200, 1000, seed)
        first, second = image[pairs].unbind(1)
        cases = {"first image": first, "either image": first | second}.get(
            kind, torch.rand(1000, generator=generator) < 0.3
        )
        found = pairs_interval(cases, pairs)
        assert found.value == pytest.approx(100 * float(cases.double().mean()))
        covered += found.low <= 100 * share <= found.high
    assert 0.92 <= covered / 400 <= 0.99


def test_the_interval_of_pairs_that_share_no_image_is_wilsons() -> None:
    pairs, cases = torch.arange(60).view(30, 2), torch.arange(30) % 3 == 0
    assert pairs_interval(cases, pairs) == pytest.approx(wilson_interval(10, 30))
    twice = pairs_interval(cases.repeat(2), torch.cat([pairs, pairs.flip(1)]))
    assert twice[:3] == pytest.approx(wilson_interval(10, 30)[:3])
    always = pairs_interval(torch.ones(30, dtype=torch.bool), draw_pairs(5, 30, 0))
    three = torch.tensor([[0, 1], [1, 2], [0, 2]])
    assert pairs_interval(torch.zeros(3, dtype=torch.bool), three).low == 0  # and not 5e-15, of rounding
    assert always[:3] == pytest.approx(wilson_interval(5, 5)[:3])
