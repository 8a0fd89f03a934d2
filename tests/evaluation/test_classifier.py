"""The input of the suites: logits from pixels, the same as in a test, in either precision; image files decoded once."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import cutmix.data
from cutmix.data import normalize, open_data
from cutmix.errors import InputError
from cutmix.evaluation.classifier import Classifier, PixelModel, decode
from cutmix.models import create_model
from cutmix.runtime.device import autocast

CPU = torch.device("cpu")
MEAN, STD = (0.2, 0.5, 0.7), (0.3, 0.2, 0.1)


def classifier(*, precision: str = "float32", channels_last: bool = False, size: int | None = None) -> Classifier:
    torch.manual_seed(0)
    network = create_model("resnet20", 7).eval()
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    images = torch.randint(0, 256, (11, 3, 12, 10), dtype=torch.uint8)
    labels = torch.randint(0, 7, (11,))
    classes = tuple("abcdefg")
    return Classifier(network, MEAN, STD, images, labels, classes, "noise", autocast(precision, CPU), 4, 0, size)


@pytest.mark.parametrize("channels_last", [False, True])
def test_pixels_give_the_logits_of_normalized_images(channels_last: bool) -> None:
    it = classifier(channels_last=channels_last)
    with torch.inference_mode():
        normalized = normalize(it.images, MEAN, STD, channels_last=channels_last)
        expected = torch.cat([it.network(x) for x in normalized.split(it.batch_size)])
    assert torch.equal(it.predict(), expected)


def test_images_are_changed_as_pixels_before_the_network() -> None:
    it, seen = classifier(), []

    def look(pixels: Tensor) -> Tensor:
        seen.append((len(pixels), float(pixels.min()), float(pixels.max())))
        return torch.zeros_like(pixels)

    logits = it.predict(look)
    assert [count for count, _, _ in seen] == [4, 4, 3]
    assert min(low for _, low, _ in seen) == 0
    assert max(high for _, _, high in seen) == 1
    assert torch.equal(logits, logits[:1].expand(11, -1))  # every image is black


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused_after_the_last_batch(value: float) -> None:
    it = classifier()
    with torch.no_grad():
        it.network.get_parameter("fc.bias")[2] = value
    with pytest.raises(InputError, match="11 of the logits are NaN or infinite; expected finite numbers"):
        it.predict()


def test_no_batch_waits_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fake CUDA tensors, reading a value raises: the logits read none, only the check after all batches does."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: None)
    with FakeTensorMode():
        conv, linear = nn.Conv2d(3, 4, 3, device="cuda"), nn.Linear(4 * 36, 5, device="cuda")
        network, images = nn.Sequential(conv, nn.Flatten(), linear).eval(), torch.zeros(10, 3, 8, 8, dtype=torch.uint8)
        it = Classifier(
            network, MEAN, STD, images, torch.zeros(10, dtype=torch.int64), tuple("abcde"), "fake",
            contextlib.nullcontext(), 4,
        )  # fmt: skip
        for part in (slice(0, 4), slice(4, 8)):
            assert it.logits(it.pixels(part)).device.type == "cuda"
        with pytest.raises(DataDependentOutputException):
            it.check()


def test_a_check_starts_anew() -> None:
    it = classifier()
    it.logits(it.pixels(slice(3)) * float("nan"))
    with pytest.raises(InputError, match="21 of the logits are NaN or infinite"):
        it.check()
    it.check()
    it.predict()


def test_exact_is_float32_and_differentiable_where_the_run_is_bfloat16() -> None:
    it = classifier(precision="bfloat16")
    pixels = it.pixels(slice(3)).requires_grad_()
    logits = it.exact(pixels)
    (gradient,) = torch.autograd.grad(logits.sum(), pixels)
    assert logits.dtype == gradient.dtype == torch.float32
    assert float(gradient.abs().sum()) > 0
    assert not torch.equal(it.logits(pixels.detach()), logits)  # rounded
    assert torch.allclose(it.logits(pixels.detach()), logits, atol=0.2)
    assert not it.exact.training


def test_small_images_are_resized_after_their_normalization() -> None:
    it = classifier(size=24)
    with torch.inference_mode():
        resized = nn.functional.interpolate(normalize(it.images, MEAN, STD), (24, 24), mode="bilinear", antialias=True)
        assert torch.allclose(it.predict(), it.network(resized), atol=1e-5)


def test_the_memory_format_is_the_networks() -> None:
    seen: list[Tensor] = []
    model = PixelModel(create_model("resnet20", 2).to(memory_format=torch.channels_last), MEAN, STD)
    model.network.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(torch.rand(2, 3, 8, 8))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_image_files_are_decoded_as_by_the_loader(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i, size in enumerate([(60, 40), (33, 50), (48, 48)]):
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    data = open_data(str(tmp_path), "all")
    decoded = decode(data, 32, 0.8, False, "bilinear", "exact")
    loader = cutmix.data.test_loader(data, batch_size=6, device="cpu", image_size=32, crop_fraction=0.8)
    ((images, labels),) = loader.epoch()
    assert torch.equal(normalize(decoded.images, data.mean, data.std), images)
    assert torch.equal(decoded.labels, labels)
    digits = open_data("digits", "test")
    assert decode(digits, None, 0.875, False, "bilinear", "exact") is digits


def test_an_autocast_can_be_entered_again() -> None:
    it = classifier()
    with contextlib.ExitStack() as stack:
        stack.enter_context(it.autocast)
        assert it.predict().shape == (11, 7)
