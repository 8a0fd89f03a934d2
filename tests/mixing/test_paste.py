"""Pixels: whatever the path, dtype and memory format, a draw moves what it says and nothing else."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from cutmix import Draw, InputError

INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PARTNERS = {
    "one cycle": [1, 2, 3, 4, 5, 6, 0],
    "cycles and fixed points": [2, 0, 1, 4, 3, 5, 6],
    "pairs": [6, 5, 4, 3, 2, 1, 0],
    "nobody": [0, 1, 2, 3, 4, 5, 6],
    "shared partners": [1, 1, 1, 0, 0, 5, 2],
    "one for all": [3, 3, 3, 3, 3, 3, 3],
}
# Small and large, so that whole-batch and one-by-one paths are both taken; video, volumes, masks without channels.
SHAPES = [
    (3, 7, 7),
    (3, 20, 36),
    (1, 1, 9),
    (1, 1, 1),
    (12, 64, 48),
    (3, 90, 131),
    (150, 201),
    (2, 3, 10, 9),
    (3, 5, 64, 40),
]


def content(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256 if dtype == torch.uint8 else 100, shape, generator=generator).to(dtype)


def random_boxes(n: int, height: int, width: int, seed: int = 0) -> list[list[int]]:
    """Boxes of all kinds: ordinary, empty, full, one pixel in a corner."""
    rng = np.random.default_rng(seed)
    xs, ys = np.sort(rng.integers(0, width + 1, (n, 2))), np.sort(rng.integers(0, height + 1, (n, 2)))
    boxes = np.stack((xs[:, 0], ys[:, 0], xs[:, 1], ys[:, 1]), axis=1).tolist()
    special = [[0, 0, width, height], [width, height, width, height], [width - 1, 0, width, 1]]
    return boxes[:1] if n == 1 else (special + boxes)[:n]


def pasted(x: Tensor, partner: list[int], boxes: list[list[int]]) -> Tensor:
    """The definition, one sample after another, from an untouched source."""
    mixed = x.clone()
    for i, j in enumerate(partner):
        x1, y1, x2, y2 = boxes[i % len(boxes)]
        mixed[i][..., y1:y2, x1:x2] = x[j][..., y1:y2, x1:x2]
    return mixed


def assert_applies(draw: Draw, x: Tensor, expected: Tensor, nearest: bool | None = None) -> None:
    """Out of place, in place, with a gradient and without: the same bits, and the memory format is kept."""
    before = x.clone()
    results = [draw.apply(x, nearest=nearest)]
    assert results[0] is not x
    assert torch.equal(x, before)
    if x.is_floating_point():
        results.append(draw.apply(x.clone().requires_grad_(), nearest=nearest).detach())
    inner = x.clone()
    results.append(draw.apply(inner, inplace=True, nearest=nearest))
    assert results[-1] is inner
    for result in results:
        assert result.dtype == x.dtype
        assert result.stride() == before.stride()
        assert torch.equal(result, expected)


@pytest.mark.parametrize("partner", PARTNERS.values(), ids=PARTNERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_boxes_move_exactly_their_pixels(shape: tuple[int, ...], partner: list[int]) -> None:
    x = content(7, *shape)
    height, width = shape[-2:]
    for boxes in (
        random_boxes(7, height, width),
        random_boxes(1, height, width),
        [[0, 0, width, height]],
        [[0, 0, 0, 0]],
    ):
        draw = Draw.from_boxes(torch.tensor(partner), torch.tensor(boxes), (height, width))
        assert_applies(draw, x, pasted(x, partner, boxes))


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS, torch.bool], ids=str)
@pytest.mark.parametrize("shape", [(3, 7, 9), (3, 160, 130)], ids=str)
@pytest.mark.parametrize("boxes", [1, 7])
def test_boxes_and_masks_of_every_dtype(dtype: torch.dtype, shape: tuple[int, ...], boxes: int) -> None:
    x, partner = content(7, *shape, dtype=dtype), PARTNERS["one cycle"]
    where = random_boxes(boxes, *shape[-2:], seed=3)
    expected = pasted(x, partner, where)
    draw = Draw.from_boxes(torch.tensor(partner), where, shape[-2:])
    assert_applies(draw, x, expected)
    mask = torch.ones(boxes, *shape[-2:], dtype=torch.bool)
    for own, (x1, y1, x2, y2) in zip(mask, where, strict=True):
        own[y1:y2, x1:x2] = False
    by_mask = Draw.from_mask(torch.tensor(partner), mask)
    assert_applies(by_mask, x, expected)
    torch.testing.assert_close(by_mask.lam, draw.lam, rtol=0, atol=1e-7)
    if dtype != torch.bool:  # A blend of 0 and 1 says the same.
        for nearest in (False, True):
            assert_applies(Draw.from_mask(torch.tensor(partner), mask.to(torch.float16)), x, expected, nearest)


@pytest.mark.parametrize("side", [8, 96])
@pytest.mark.parametrize("boxes", [1, 7])
def test_memory_formats_are_kept(side: int, boxes: int) -> None:
    partner = torch.tensor(PARTNERS["shared partners"])
    where = random_boxes(boxes, side, side + 1)
    image, video = content(7, 3, side, side + 1), content(7, 3, 4, side, side + 1)
    strided = content(7, 3, side, 2 * side + 2)[..., ::2]
    transposed = content(3, 7, side, side + 1).transpose(0, 1)
    for x in (
        image.contiguous(memory_format=torch.channels_last),
        video.contiguous(memory_format=torch.channels_last_3d),
        transposed,
    ):
        assert_applies(Draw.from_boxes(partner, where, x.shape[-2:]), x, pasted(x, partner.tolist(), where))
        ends = Draw.from_lam(partner, torch.tensor([0.0, 1, 1, 0, 0, 1, 0]))
        assert_applies(ends, x, torch.where(ends.lam.bool().reshape(-1, *[1] * (x.ndim - 1)), x, x[partner]))
    expected = pasted(strided, partner.tolist(), where)
    assert torch.equal(Draw.from_boxes(partner, where, strided.shape[-2:]).apply(strided), expected)
    assert Draw.from_boxes(partner, where, strided.shape[-2:]).apply(strided, inplace=True) is strided
    assert torch.equal(strided, expected)


@pytest.mark.parametrize("partner", PARTNERS.values(), ids=PARTNERS)
@pytest.mark.parametrize("shape", [(3, 7, 7), (1, 128, 65), (5,), (9000,)], ids=str)
def test_blend_is_the_same_bits_on_every_path(shape: tuple[int, ...], partner: list[int]) -> None:
    generator = torch.Generator().manual_seed(1)
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(7, *shape, generator=generator, dtype=dtype)
        for lam in (torch.rand(7, generator=generator) ** 8, 0.0, 1.0, 0.5, 0.3, 1e-7):
            draw = Draw.from_lam(torch.tensor(partner), lam)
            own = draw.lam.double().reshape(-1, *[1] * len(shape))
            expected = own * x.double() + (1 - own) * x[torch.tensor(partner)].double()
            mixed = draw.apply(x)
            torch.testing.assert_close(mixed.double(), expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-15)
            assert_applies(draw, x, mixed)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("shape", [(3, 11, 7), (3, 128, 90)], ids=str)
def test_integers_are_rounded_to_the_nearest(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    high = 256 if dtype == torch.uint8 else torch.iinfo(dtype).max if dtype != torch.int64 else 2**32
    x = torch.randint(high, (7, *shape), generator=torch.Generator().manual_seed(2)).to(dtype)
    partner, lam = PARTNERS["cycles and fixed points"], np.linspace(0.0, 1.0, 7).astype(np.float32)
    own, pixels = lam.astype(np.float64).reshape(-1, 1, 1, 1), x.numpy().astype(np.float64)
    exact = own * pixels + (1 - own) * pixels[partner]
    draw = Draw.from_lam(torch.tensor(partner), torch.from_numpy(lam))
    mixed, tie = draw.apply(x, nearest=False), 4e-3 if dtype == torch.int16 else 1e-4
    # Half a step is the best there is, but for the precision of float32, which int16 and uint8 are blended in.
    assert np.abs(mixed.numpy().astype(np.float64) - exact).max() <= 0.5 + tie
    assert_applies(draw, x, mixed, nearest=False)
    mask = torch.rand(7, *shape[-2:], generator=torch.Generator().manual_seed(3))
    own = mask.numpy().astype(np.float64)[:, None]
    exact = own * pixels + (1 - own) * pixels[partner]
    composed = Draw.from_mask(torch.tensor(partner), mask).apply(x, nearest=False)
    assert np.abs(composed.numpy().astype(np.float64) - exact).max() <= 0.5 + tie


@pytest.mark.parametrize("dtype", [torch.bool, *INTEGERS, torch.float32], ids=str)
def test_nearest_makes_no_new_class_ids(dtype: torch.dtype) -> None:
    ids = content(7, 9, 8, dtype=dtype)
    partner, lam = torch.tensor(PARTNERS["one cycle"]), torch.tensor([0.0, 0.49, 0.5, 0.51, 1.0, 0.97, 0.2])
    expected = torch.where((lam >= 0.5)[:, None, None], ids, ids[partner])
    assert_applies(Draw.from_lam(partner, lam), ids, expected, nearest=True)
    weights = torch.rand(7, 9, 8, generator=torch.Generator().manual_seed(5))
    by_pixel = torch.where(weights >= 0.5, ids, ids[partner])
    assert_applies(Draw.from_mask(partner, weights), ids, by_pixel, nearest=True)


@pytest.mark.parametrize("dtype", [torch.bool, *INTEGERS], ids=str)
def test_a_blend_of_integers_is_refused_unless_it_is_said_how(dtype: torch.dtype) -> None:
    x, partner = content(7, 3, 8, 8, dtype=dtype), torch.tensor(PARTNERS["one cycle"])
    for draw in (Draw.from_lam(partner, 0.3), Draw.from_mask(partner, torch.full((8, 8), 0.3))):
        for inplace in (False, True):
            with pytest.raises(InputError, match=r"give nearest=True for class ids, nearest=False for images"):
                draw.apply(x, inplace=inplace)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_blended_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(4)).to(dtype)
    partner = torch.tensor(PARTNERS["one cycle"])
    lam = torch.full((7,), 0.7031)  # Not a number that bfloat16 holds.
    exact = (lam[0] * x.double() + (1 - lam[0]) * x[partner].double()).to(dtype)
    mixed = Draw.from_lam(partner, lam).apply(x)
    assert (mixed != exact).float().mean() < 0.01  # But for ties: with λ rounded it would be most of them.
    assert_applies(Draw.from_lam(partner, lam), x, mixed)


@pytest.mark.parametrize("partner", ["one cycle", "shared partners"])
def test_gradients(partner: str) -> None:
    x = torch.randn(7, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    who = torch.tensor(PARTNERS[partner])
    draws = [
        Draw.from_boxes(who, random_boxes(7, 3, 4), (3, 4)),
        Draw.from_boxes(who, [1, 0, 3, 2], (3, 4)),
        Draw.from_lam(who, torch.rand(7)),
        Draw.from_mask(who, torch.rand(7, 3, 4)),
        Draw.from_mask(who, torch.rand(3, 4) > 0.5),
    ]
    for draw in draws:
        assert gradcheck(draw.apply, x)
        assert gradcheck(lambda x, draw=draw: draw.apply(x * 2, inplace=True), x)


def test_large_maps_inside_a_network_carry_gradients() -> None:
    x = torch.randn(7, 3, 90, 90, requires_grad=True)
    partner, boxes = PARTNERS["one cycle"], random_boxes(7, 90, 90)
    weight = torch.randn(x.shape)
    expected = torch.autograd.grad((pasted(x, partner, boxes) * weight).sum(), x)[0]
    draw = Draw.from_boxes(torch.tensor(partner), boxes, (90, 90))
    assert torch.equal(torch.autograd.grad((draw.apply(x) * weight).sum(), x)[0], expected)
    assert torch.equal(torch.autograd.grad((draw.apply(x * 1, inplace=True) * weight).sum(), x)[0], expected)
    with torch.no_grad():
        assert torch.equal(draw.apply(x), pasted(x, partner, boxes))


@pytest.mark.usefixtures("no_recompilation")
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", ["box", "boxes", "blend", "mask"])
def test_compiles_once_for_every_draw(kind: str, inplace: bool, backend: str) -> None:
    make = {
        "box": lambda k: Draw.from_boxes(torch.randperm(7), random_boxes(1, 12, 9, seed=k), (12, 9)),
        "boxes": lambda k: Draw.from_boxes(torch.randperm(7), random_boxes(7, 12, 9, seed=k), (12, 9)),
        "blend": lambda k: Draw.from_lam(torch.randperm(7), torch.rand(7)),
        "mask": lambda k: Draw.from_mask(torch.randperm(7), torch.rand(12, 9) > 0.5),
    }[kind]
    compiled = torch.compile(lambda draw, x: draw.apply(x, inplace=inplace), fullgraph=True, backend=backend)
    for k in range(4):
        x, draw = content(7, 3, 12, 9, seed=k), make(k)
        expected = draw.apply(x)
        result = compiled(draw, x)
        torch.testing.assert_close(result, expected, rtol=0, atol=0 if backend == "eager" else 1e-5)
        assert (result is x) == inplace


@pytest.mark.gpu
@pytest.mark.parametrize("inplace", [False, True])
def test_gpu_equals_cpu_and_waits_for_nothing(inplace: bool) -> None:
    partner = torch.tensor(PARTNERS["cycles and fixed points"])
    draws = [
        Draw.from_boxes(partner, random_boxes(7, 20, 36), (20, 36)),
        Draw.from_boxes(partner, [3, 4, 30, 11], (20, 36)),
        Draw.from_lam(partner, torch.rand(7)),
        Draw.from_mask(partner, torch.rand(20, 36) > 0.5),
        Draw.from_mask(partner, torch.rand(7, 20, 36)),
    ]
    for dtype in (torch.uint8, torch.bfloat16, torch.float32):
        x = content(7, 3, 20, 36, dtype=dtype)
        for draw in draws:
            on_device = x.cuda()
            draw.apply(on_device)  # What is loaded at the first call may wait.
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                mixed = draw.apply(on_device, inplace=inplace)
                targets = draw.targets(torch.arange(7).to("cuda", non_blocking=True))
            finally:
                torch.cuda.set_sync_debug_mode("default")
            # A GPU may fuse the multiplication and the addition of a blend: one step in the last place.
            close = {torch.uint8: (0, 1), torch.bfloat16: (2**-7, 0), torch.float32: (1e-6, 1e-6)}[dtype]
            torch.testing.assert_close(mixed.cpu(), draw.apply(x), rtol=close[0], atol=close[1])
            assert targets.labels.device == mixed.device
            assert torch.equal(targets.lam.cpu(), draw.lam)
