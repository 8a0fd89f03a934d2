"""Attacks against closed forms, a slow loop written from the definition, and what must be refused."""

import math
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cutmix.errors import InputError
from cutmix.evaluation.attacks import apgd, ascend, fgsm, loss_gradient, pgd
from cutmix.evaluation.classifier import PixelModel
from cutmix.runtime.seeding import derive_seed

EPS = 8 / 255


def random_images(n: int = 6, side: int = 5, channels: int = 3) -> Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def small_network(classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.Flatten(), nn.Linear(54, classes)
    return nn.Sequential(*layers).double().eval()


def partly_training() -> nn.Module:
    model = small_network()
    model[1].train()  # type: ignore[index]
    return model


class Linear(nn.Module):
    """Two classes, the margin of class 1 over class 0 being w·x + b."""

    def __init__(self, weight: Tensor, bias: float = 0.0) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        margin = (x * self.weight).flatten(1).sum(1) + self.bias
        return torch.stack([-margin / 2, margin / 2], 1)


def test_fgsm_of_a_linear_model_is_the_sign_of_its_weights() -> None:
    images = random_images(40)
    weight = torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = Linear(weight, -float((0.5 * weight).sum())).eval()
    labels = torch.arange(40) % 2
    toward = torch.where(labels == 1, -1.0, 1.0).view(-1, 1, 1, 1)  # away from the true class
    expected = (images + EPS * toward * weight.sign()).clamp(0, 1)
    torch.testing.assert_close(fgsm(model, images, labels, EPS), expected)
    # inside [ε, 1 − ε] nothing is clamped, and the margin falls by ε · ‖w‖₁: exactly those below it are fooled
    inside = images * (1 - 2 * EPS) + EPS
    labels = model(inside).argmax(1)
    margin = (model(inside)[:, 1] - model(inside)[:, 0]).abs()
    fooled = model(fgsm(model, inside, labels, EPS)).argmax(1) != labels
    assert torch.equal(fooled, margin < EPS * weight.abs().sum())
    assert 0 < int(fooled.sum()) < 40


def test_epsilon_is_in_pixels_whatever_the_normalization() -> None:
    images, labels = random_images().float(), torch.arange(6) % 4
    model = PixelModel(small_network().float(), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)).eval()
    for attacked in (fgsm(model, images, labels, EPS), pgd(model, images, labels, EPS)):
        assert 0 <= float(attacked.min()) <= float(attacked.max()) <= 1
        assert float((attacked - images).abs().max()) == pytest.approx(EPS, abs=1e-6)


def test_epsilon_0_is_the_image_itself() -> None:
    images, labels, model = random_images(), torch.arange(6) % 4, small_network()
    assert torch.equal(fgsm(model, images, labels, 0), images)
    assert torch.equal(pgd(model, images, labels, 0), images)


def slow_pgd(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int, size: float, seed: int
) -> Tensor:
    """Sample by sample and pixel by pixel."""
    starts = torch.rand(images.shape, generator=torch.Generator().manual_seed(derive_seed(seed, "pgd"))) * 2 - 1
    results = []
    for image, label, start in zip(images, labels, starts.double(), strict=True):
        current = [
            min(max(x + eps * u, 0), 1) for x, u in zip(image.flatten().tolist(), start.flatten().tolist(), strict=True)
        ]
        for _ in range(steps):
            x = torch.tensor(current, dtype=torch.float64).view(1, *image.shape).requires_grad_()
            F.cross_entropy(model(x), label[None]).backward()
            assert x.grad is not None
            for i, g in enumerate(x.grad.flatten().tolist()):
                moved = current[i] + size * ((g > 0) - (g < 0))
                origin = float(image.flatten()[i])
                current[i] = min(max(min(max(moved, origin - eps), origin + eps), 0), 1)
        results.append(torch.tensor(current, dtype=torch.float64).view_as(image))
    return torch.stack(results)


def test_attacks_are_their_definition_written_out() -> None:
    images, labels, model = random_images(), torch.arange(6) % 4, small_network()
    expected = slow_pgd(model, images, labels, EPS, steps=4, size=0.01, seed=3)
    result = pgd(model, images, labels, EPS, steps=4, step_size=0.01, seed=3)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-7)  # the start is drawn in float32
    default = pgd(model, images, labels, EPS, steps=4, seed=3)
    torch.testing.assert_close(default, pgd(model, images, labels, EPS, steps=4, step_size=2.5 * EPS / 4, seed=3))
    assert not torch.equal(default, pgd(model, images, labels, EPS, steps=4, seed=4))


def test_the_gradient_is_that_of_finite_differences_and_of_a_sample_alone() -> None:
    images, labels, model = random_images(), torch.arange(6) % 4, small_network()
    gradient = loss_gradient(model, images, labels)
    shift = torch.zeros_like(images)
    shift[2, 1, 3, 0] = 1e-6
    with torch.no_grad():
        loss = [float(F.cross_entropy(model(images + s), labels, reduction="sum")) for s in (shift, -shift)]
    assert float(gradient[2, 1, 3, 0]) == pytest.approx((loss[0] - loss[1]) / 2e-6, rel=1e-5)
    torch.testing.assert_close(gradient[:1], loss_gradient(model, images[:1], labels[:1]))


class Reads(TorchDispatchMode):
    """Counts what would wait for a GPU: values read by Python, and conversions to float64 for NumPy."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.ops.aten._local_scalar_dense.default:
            self.counts["reads"] += 1
        if function is torch.ops.aten._to_copy.default and kwargs.get("dtype") is torch.float64:
            self.counts["float64"] += 1
        return function(*args, **kwargs)


def test_a_step_of_pgd_reads_nothing() -> None:
    images, labels, model = random_images().float(), torch.arange(6) % 4, small_network().float()
    counts = []
    for steps in (1, 4, 16):
        with Reads() as reads:
            pgd(model, images, labels, EPS, steps=steps)
        counts.append(reads.counts)
    assert counts[0] == counts[1] == counts[2]
    with Reads() as reads:
        ascend(model, images, labels, EPS, 5, 0)
    assert not reads.counts


def test_the_start_of_pgd_is_the_same_on_every_machine() -> None:
    first = pgd(Linear(torch.zeros(3, 5, 5)).eval().requires_grad_(False), random_images(1).float() * 0 + 0.5,
                torch.zeros(1).long(), 0.5, steps=1, seed=7)  # fmt: skip
    generator = torch.Generator().manual_seed(derive_seed(7, "pgd"))
    assert torch.equal(first, 0.5 + 0.5 * (torch.rand(1, 3, 5, 5, generator=generator) * 2 - 1))


def test_nothing_that_was_given_is_changed() -> None:
    images, labels, model = random_images(), torch.arange(6) % 4, small_network()
    before, weights = images.clone(), {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    fgsm(model, images, labels, EPS)
    pgd(model, images, labels, EPS)
    assert torch.equal(images, before)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_apgd_stays_within_epsilon_and_fools_what_pgd_fools() -> None:
    pytest.importorskip("pyautoattack")
    images, model = random_images(30).float(), small_network().float()
    labels = model(images).argmax(1)
    state = torch.get_rng_state()
    attacked = apgd(model, images, labels, EPS, steps=10)
    assert torch.equal(torch.get_rng_state(), state)
    assert float((attacked - images).abs().max()) <= EPS + 1e-6
    assert 0 <= float(attacked.min()) <= float(attacked.max()) <= 1
    fooled = int((model(attacked).argmax(1) != labels).sum())
    assert fooled >= int((model(pgd(model, images, labels, EPS)).argmax(1) != labels).sum()) > 0
    assert torch.equal(attacked, apgd(model, images, labels, EPS, steps=10))


def test_apgd_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pyautoattack", "pyautoattack.autopgd_base"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"APGD needs pyautoattack; install it with pip install \"pyautoattack>="):
        apgd(small_network(), random_images(), torch.arange(6) % 4, EPS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": math.nan}, r"ε is nan; expected 0 to 1"),
        ({"eps": -0.1}, r"ε is -0.1; expected 0 to 1"),
        ({"eps": 8.0}, r"ε is 8.0; .*e\.g\. 8/255"),
        ({"images": random_images() * 255}, r"pixels outside \[0, 1\]"),
        ({"images": random_images() - 0.5}, r"pixels outside \[0, 1\]"),
        ({"images": random_images() / 0}, r"pixels outside \[0, 1\]"),
        ({"images": (random_images() * 255).to(torch.uint8)}, r"torch\.uint8; expected .* floating point, in \[0, 1\]"),
        ({"images": random_images()[0]}, r"images are \(3, 5, 5\)"),
        ({"images": random_images()[:0], "labels": torch.arange(0)}, r"or none"),
        ({"labels": torch.arange(5)}, r"labels are \(5,\) torch\.int64; expected \(6,\) int64"),
        ({"labels": torch.zeros(6)}, r"labels are \(6,\) torch\.float32"),
        ({"labels": torch.arange(6)}, r"labels range from 0 to 5; expected 0 to 3, as there are 4 classes"),
        ({"model": small_network().train()}, r"the model is in training mode: call model\.eval\(\)"),
        ({"model": partly_training()}, r"the model's part '1' is in training mode: call model\.eval\(\)"),
        ({"model": nn.Sequential(small_network(), nn.Softmax(1)).eval()}, r"probabilities were given; expected logits"),
        ({"model": small_network(1), "labels": torch.zeros(6).long()}, r"logits have the shape \(6, 1\).* two classes"),
    ],
)
@pytest.mark.parametrize("attack", [fgsm, pgd, apgd])
def test_what_is_no_attack_is_refused(attack: Callable[..., Tensor], change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"model": small_network(), "images": random_images(), "labels": torch.arange(6) % 4}
    given = good | {"eps": EPS} | change
    if attack is apgd:  # which is in float32
        pytest.importorskip("pyautoattack")
        given["model"].float()
        if given["images"].is_floating_point():
            given["images"] = given["images"].float()
    with pytest.raises(InputError, match=message):
        attack(**given)


@pytest.mark.parametrize("attack", [fgsm, pgd, apgd])
def test_images_of_another_dtype_than_the_network_are_refused(attack: Callable[..., Tensor]) -> None:
    if attack is apgd:
        pytest.importorskip("pyautoattack")
    message = "expected float32" if attack is apgd else "and the model's weights torch.float32; expected the same"
    for dtype in (torch.float64, torch.float16):
        with pytest.raises(InputError, match=f"images are {dtype}.*{message}"):
            attack(small_network().float(), random_images().to(dtype), torch.arange(6) % 4, EPS)


def test_other_errors_of_a_network_are_its_own() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fgsm(small_network(), random_images(side=6), torch.arange(6) % 4, EPS)


@pytest.mark.parametrize("attack", [fgsm, pgd, apgd])
def test_without_gradients_there_is_no_attack(attack: Callable[..., Tensor]) -> None:
    if attack is apgd:
        pytest.importorskip("pyautoattack")
    model, images = small_network().float(), random_images().float()
    labels = model(images).argmax(1)
    with torch.inference_mode(), pytest.raises(InputError, match=r"inference_mode is on, .* attack outside of it"):
        attack(model, images, labels, EPS)
    with torch.no_grad():
        assert not torch.equal(attack(model, images, labels, 0.5), images)


class Broken(nn.Module):
    """Does to the logits of a small network what its argument says."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.network, self.change = small_network(), change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.network(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z: z / 0, "24 of the logits are NaN or infinite"),
        (lambda z: z.detach(), "cannot be differentiated"),
        (lambda z: nn.Parameter(torch.ones(6, 4).double()) * 1, "cannot be differentiated"),
        (lambda z: (z - z.detach()).sqrt(), "gradient in the pixels is not finite"),
        (lambda z: z[:, 0], r"the logits have the shape \(6,\); expected \(images, classes\)"),
        (lambda z: z[:4], r"labels are int64 of shape \(6,\); expected 4 class ids"),
    ],
)
def test_models_without_a_gradient_are_refused(change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fgsm(Broken(change).eval(), random_images(), torch.arange(6) % 4, EPS)


@pytest.mark.parametrize("more", [{"steps": 0}, {"step_size": 0.0}, {"step_size": -1.0}, {"step_size": math.nan}])
def test_pgd_without_a_step_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected at least 1 step of a positive size"):
        pgd(small_network(), random_images(), torch.arange(6) % 4, EPS, **more)


def test_fgsm_and_pgd_are_those_of_torchattacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchattacks 3.5.1 wants an old requests, so that it is no requirement: pip install --no-deps torchattacks."""
    torchattacks = pytest.importorskip("torchattacks")
    model, images, labels = small_network().float(), random_images(8).float(), torch.arange(8) % 4
    theirs = torchattacks.FGSM(model, eps=EPS)(images, labels)
    torch.testing.assert_close(fgsm(model, images, labels, EPS), theirs, rtol=0, atol=1e-6)

    generator = torch.Generator().manual_seed(derive_seed(3, "pgd"))
    start = EPS * (torch.rand(images.shape, generator=generator) * 2 - 1)
    monkeypatch.setattr(Tensor, "uniform_", lambda tensor, low, high: tensor.copy_(start))
    theirs = torchattacks.PGD(model, eps=EPS, alpha=0.01, steps=7)(images, labels)
    ours = pgd(model, images, labels, EPS, steps=7, step_size=0.01, seed=3)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert (ours - images).abs().max() > 0.9 * EPS
