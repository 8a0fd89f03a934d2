"""Occlusion against a loop over pixels, and its end points."""

import contextlib

import pytest
import torch
from torch import Tensor, nn

from cutmix.errors import InputError
from cutmix.evaluation.classifier import Classifier
from cutmix.evaluation.occlusion import centred_square, occlude, occlusion_classes, side_grid

MEAN = (0.5, 0.25, 0.75)


def make_classifier(n: int = 23, side: int = 6, width: int | None = None) -> Classifier:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, side, width or side), generator=generator, dtype=torch.uint8)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), 5)).eval().requires_grad_(False)
    labels = torch.randint(5, (n,), generator=generator)
    return Classifier(
        network, MEAN, (0.25, 0.2, 0.3), images, labels, tuple("abcde"), "toy", contextlib.nullcontext(), batch_size=8
    )


def slow(image: Tensor, side: int, fill: tuple[float, ...], boundary: bool) -> Tensor:
    _, height, width = image.shape
    top, left = (height - side) // 2, (width - side) // 2
    result = image.clone()
    for y in range(height):
        for x in range(width):
            if (top <= y < top + side and left <= x < left + side) != boundary:
                result[:, y, x] = torch.tensor(fill)
    return result


@pytest.mark.parametrize("boundary", [False, True])
@pytest.mark.parametrize(("height", "width"), [(6, 6), (7, 7), (5, 8)])
def test_occlude_is_a_loop_over_pixels(height: int, width: int, boundary: bool) -> None:
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    for side in range(min(height, width) + 1):
        result = occlude(images, side, MEAN, boundary=boundary)
        assert torch.equal(result, torch.stack([slow(image, side, MEAN, boundary) for image in images]))
    assert torch.equal(images, before)


def test_what_one_hides_the_other_shows() -> None:
    images = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    black = (0.0, 0.0, 0.0)
    for side in range(10):
        parts = occlude(images, side, black), occlude(images, side, black, boundary=True)
        assert torch.equal(parts[0] + parts[1], images)
    assert torch.equal(occlude(images, 0, MEAN), images)
    assert torch.equal(occlude(images, 9, MEAN, boundary=True), images)


def test_classes_are_those_of_the_occluded_images() -> None:
    classifier = make_classifier()
    clean = classifier.predict().argmax(1)
    found = occlusion_classes(classifier, clean, [0, 2, 3, 6])
    assert set(found) == {(where, fill) for where in ("center", "boundary") for fill in ("black", "mean")}
    for (where, fill), classes in found.items():
        color = MEAN if fill == "mean" else (0.0, 0.0, 0.0)
        for side, row in zip([0, 2, 3, 6], classes, strict=True):
            hidden = torch.stack([slow(image / 255, side, color, where == "boundary") for image in classifier.images])
            assert torch.equal(row, classifier.logits(hidden).argmax(1))
        assert torch.equal(classes[0 if where == "center" else -1], clean)
        assert len(classes[-1 if where == "center" else 0].unique()) == 1  # one and the same blank image


def test_the_mean_is_zero_after_the_normalization() -> None:
    classifier = make_classifier()
    blank = occlude(classifier.pixels(slice(1)), 6, classifier.mean)
    bias = classifier.network[1].bias  # type: ignore[index]
    torch.testing.assert_close(classifier.logits(blank)[0], bias, rtol=0, atol=1e-6)


def test_end_points_need_no_pass_over_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = make_classifier()
    clean = classifier.predict().argmax(1)
    sizes: list[int] = []
    original = Classifier.logits
    monkeypatch.setattr(Classifier, "logits", lambda self, x: sizes.append(len(x)) or original(self, x))
    occlusion_classes(classifier, clean, [0, 6])
    assert sizes == [1] * 4
    sizes.clear()
    occlusion_classes(classifier, clean, [2])
    assert sum(sizes) == 4 * 23


def test_of_oblong_images_the_largest_square_is_not_everything() -> None:
    classifier = make_classifier(side=4, width=7)
    clean = classifier.predict().argmax(1)
    found = occlusion_classes(classifier, clean, [4])
    hidden = occlude(classifier.pixels(slice(None)), 4, MEAN, boundary=True)
    assert torch.equal(found["boundary", "mean"][0], classifier.logits(hidden).argmax(1))
    assert not torch.equal(hidden, classifier.pixels(slice(None)))


@pytest.mark.parametrize(
    ("side", "steps", "expected"),
    [(32, 8, [0, 4, 8, 12, 16, 20, 24, 28, 32]), (28, 4, [0, 7, 14, 21, 28]), (3, 8, [0, 1, 2, 3])],
)
def test_grid_has_both_ends(side: int, steps: int, expected: list[int]) -> None:
    assert side_grid(torch.zeros(1, 3, side, side + 1), steps) == expected


@pytest.mark.parametrize("side", [-1, 7])
def test_a_hole_larger_than_the_images_is_refused(side: int) -> None:
    message = rf"side is {side} pixels; expected 0 to 6 in images of 6×8"
    with pytest.raises(InputError, match=message):
        centred_square(6, 8, side)
    classifier = make_classifier(side=6, width=8)
    with pytest.raises(InputError, match=message):
        occlusion_classes(classifier, torch.zeros(23, dtype=torch.int64), [0, side])


def test_a_fill_of_other_channels_is_refused() -> None:
    with pytest.raises(InputError, match="fill has 1 values; expected 3"):
        occlude(torch.zeros(1, 3, 4, 4), 2, (0.0,))
