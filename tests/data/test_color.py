"""Colours: the authors' code, image by image, is the oracle."""

from collections import Counter

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from cutmix.data.transforms import ColorDraw, draw_color

BRIGHTNESS, CONTRAST, SATURATION = range(3)
# As published with AlexNet, and in the CutMix authors' train.py.
EIGENVALUES = torch.tensor([0.2175, 0.0188, 0.0045])
EIGENVECTORS = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


def some_images(n: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (n, 3, 12, 9), dtype=torch.uint8, generator=generator)


def one_by_one(images: Tensor, draw: ColorDraw) -> Tensor:
    """Change each image by torchvision, which blends as x · f + target · (1 − f) with f = 1 − a, and clips at 0 and 1.

    Images halfway between grey and themselves are not clipped for the amounts that are drawn here.
    """
    done = []
    for image, order, amounts, light in zip(images / 255, draw.order.tolist(), draw.amounts, draw.light, strict=True):
        for what, amount in zip(order, amounts.tolist(), strict=True):
            adjust = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation)[what]
            image = adjust(image, 1 - amount)
        done.append(image + light.view(3, 1, 1))
    return 255 * torch.stack(done)


def test_equals_torchvision_where_nothing_is_clipped() -> None:
    images = (some_images() // 4 + 96).to(torch.uint8)
    before = images.clone()
    draw = draw_color(16, 0.2, 0.1, torch.Generator().manual_seed(1))
    result = draw.apply(images)
    torch.testing.assert_close(result, one_by_one(images, draw), rtol=1e-3, atol=0.1)  # 0.2989 for red there
    assert result.dtype == torch.float32
    assert torch.equal(images, before)


@pytest.mark.parametrize(("what", "amount"), [(BRIGHTNESS, 1.0), (CONTRAST, 1.0), (SATURATION, 1.0), (SATURATION, 0.0)])
def test_end_points(what: int, amount: float) -> None:
    images = some_images(1)
    amounts = torch.tensor([[amount, 0.0, 0.0]])
    others = [k for k in range(3) if k != what]
    result = ColorDraw(torch.tensor([[what, *others]]), amounts, torch.zeros(1, 3)).apply(images)
    grey = (images * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True).expand(1, 3, 12, 9)
    targets = {BRIGHTNESS: torch.zeros_like(grey), CONTRAST: grey.mean().expand(1, 3, 12, 9), SATURATION: grey}
    torch.testing.assert_close(result, targets[what] if amount else images.float())


def test_nothing_is_clipped() -> None:
    white = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    order, amounts = torch.tensor([[0, 1, 2]]), torch.tensor([[-0.4, 0.0, 0.0]])
    result = ColorDraw(order, amounts, torch.full((1, 3), 0.1)).apply(white)
    torch.testing.assert_close(result, torch.full((1, 3, 4, 4), 255 * 1.5))


def test_draws_have_their_distributions() -> None:
    draw = draw_color(20_000, 0.4, 0.1, torch.Generator().manual_seed(0))
    counts = Counter(map(tuple, draw.order.tolist()))
    assert len(counts) == 6
    assert all(abs(count - 20_000 / 6) < 250 for count in counts.values())  # 4.7 standard deviations
    assert -0.4 <= draw.amounts.min() < -0.399
    assert 0.399 < draw.amounts.max() <= 0.4
    assert (draw.amounts.mean(0).abs() < 0.01).all()
    components = draw.light @ EIGENVECTORS / EIGENVALUES  # the vectors are orthonormal to four decimals
    torch.testing.assert_close(components.std(0), torch.full((3,), 0.1), rtol=0.03, atol=0)
    assert (torch.corrcoef(components.T) - torch.eye(3)).abs().max() < 0.03


def test_without_either_the_other_is_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    assert not draw_color(50, 0.4, 0.0, generator).light.any()
    assert not draw_color(50, 0.0, 0.1, generator).amounts.any()
    assert len(draw_color(50, 0.4, 0.1, generator)[10:30]) == 20


@pytest.mark.gpu
def test_on_a_gpu_nothing_waits_and_the_result_is_the_same() -> None:
    images, draw = some_images(), draw_color(16, 0.4, 0.1, torch.Generator().manual_seed(1))
    there = images.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = draw.apply(there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(result.cpu(), draw.apply(images), rtol=1e-5, atol=1e-3)
