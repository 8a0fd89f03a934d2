"""The transforms: the paper's distribution, labels exact to the pixel, and a randomness of their own."""

import copy
import pickle
import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from cutmix import CutMix, Cutout, Draw, InputError, Mixup, RandomChoice
from cutmix.data.transforms import CropFlip, draw_crop_flip, normalize

INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TRANSFORMS = {
    "CutMix": CutMix,
    "Mixup": Mixup,
    "Cutout": lambda **options: Cutout(5, **options),
    "choice": lambda **options: RandomChoice([CutMix(**options), Mixup(**options)], seed=options.get("seed")),
}
every_transform = pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS)


def rand_bbox(size: tuple[int, ...], lam: float, cx: int, cy: int) -> tuple[int, int, int, int]:
    """clovaai/CutMix-PyTorch, train.py, but for the drawing; what it calls W are the rows. Returns x1, y1, x2, y2."""
    W, H = size[2], size[3]
    cut_rat = np.sqrt(1.0 - lam)
    cut_w, cut_h = int(W * cut_rat), int(H * cut_rat)
    bbx1, bby1 = np.clip(cx - cut_w // 2, 0, W), np.clip(cy - cut_h // 2, 0, H)
    bbx2, bby2 = np.clip(cx + cut_w // 2, 0, W), np.clip(cy + cut_h // 2, 0, H)
    return int(bby1), int(bbx1), int(bby2), int(bbx2)


@pytest.mark.parametrize("lam", [0.0, 1e-9, 0.1, 0.3, 0.5, 0.64, 0.75, 0.9, 1 - 1e-9, 1.0])
@pytest.mark.parametrize("size", [(5, 7), (8, 3), (1, 6), (6, 6)])
def test_boxes_are_the_authors(lam: float, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutmix.mixing.images.draw_beta", lambda _, n, __: torch.full((n,), lam).double().fill_(lam))
    rows, columns, many = *size, 400
    theirs = Counter(rand_bbox((0, 0, *size), lam, cx, cy) for cx in range(rows) for cy in range(columns))
    draw = CutMix(per_sample=True, seed=0).draw((many * rows * columns, 1, *size))
    ours = Counter(map(tuple, draw.boxes.tolist()))
    assert ours.keys() == theirs.keys()
    if len(ours) > 1:
        expected = [many * theirs[box] for box in ours]
        assert stats.chisquare(list(ours.values()), expected).pvalue > 1e-4
    one = CutMix(seed=0)
    assert {tuple(one.draw((2, 1, *size)).boxes[0].tolist()) for _ in range(50)} <= theirs.keys()


@pytest.mark.parametrize(
    ("side", "mean", "below_half", "nothing"), [(32, 0.701, 0.145, 0.0039), (224, 0.682, 0.175, 0.0001)]
)
def test_corrected_lambda_is_distributed_as_known(side: int, mean: float, below_half: float, nothing: float) -> None:
    # The figures are of 200,000 and more draws of the authors' function; tolerances are four standard errors.
    n = 40_000
    draw = CutMix(per_sample=True, seed=0).draw((n, 3, side, side))
    lam = draw.lam.double()
    assert lam.mean().item() == pytest.approx(mean, abs=4 * 0.21 / n**0.5 + 0.0005)
    assert (lam < 0.5).double().mean().item() == pytest.approx(below_half, abs=4 * (below_half / n) ** 0.5 + 0.0005)
    assert (lam == 1).double().mean().item() == pytest.approx(nothing, abs=4 * (nothing / n) ** 0.5 + 0.0001)


def test_each_pixel_is_pasted_as_often_as_known() -> None:
    n = 10_000
    own = torch.arange(n, dtype=torch.int16).reshape(n, 1, 1, 1).expand(n, 1, 32, 32)
    often = (CutMix(per_sample=True, seed=1).draw(own.shape).apply(own) != own).double().mean((0, 1))
    for pixel, known in ((often[0, 0], 0.135), (often[0, 16], 0.249), (often[16, 16], 0.458)):
        assert pixel.item() == pytest.approx(known, abs=4 * (known * (1 - known) / n) ** 0.5)
    torch.testing.assert_close(often, often.T, rtol=0, atol=0.03)  # But not point-symmetric: boxes are half-open.


@pytest.mark.parametrize(
    ("alpha", "pasted"), [(0.1, 0.291), (0.25, 0.300), (0.5, 0.311), (1, 0.321), (2, 0.328), (4, 0.333)]
)
def test_pasted_share_for_every_alpha(alpha: float, pasted: float) -> None:
    lam = CutMix(alpha, per_sample=True, seed=2).draw((40_000, 1, 4096, 4096)).lam
    assert (1 - lam).mean().item() == pytest.approx(pasted, abs=4 * float(lam.std()) / 200 + 0.001)


def test_lambda_is_distributed_as_torchvisions() -> None:
    theirs, images = v2.CutMix(num_classes=2), torch.zeros(2, 1, 32, 48)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = [theirs.make_params([images])["lam_adjusted"] for _ in range(3000)]
    one = CutMix(seed=3)
    per_batch = [float(one.draw(images.shape).lam[0]) for _ in range(3000)]
    per_sample = CutMix(per_sample=True, seed=3).draw((3000, 1, 32, 48)).lam.numpy()
    assert stats.ks_2samp(expected, per_batch).pvalue > 1e-3
    assert stats.ks_2samp(expected, per_sample).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.1, 1.0, 4.0])
def test_mixup_weights_are_beta(alpha: float) -> None:
    n = 40_000
    lam, beta = Mixup(alpha, per_sample=True, seed=4).draw((n, 1)).lam.double().numpy(), stats.beta(alpha, alpha)
    for moment in (1, 2, 4):
        error = (beta.moment(2 * moment) - beta.moment(moment) ** 2) ** 0.5 / n**0.5
        assert np.mean(lam**moment) == pytest.approx(beta.moment(moment), abs=4 * error)
    for point in (0.001, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999):
        share = beta.cdf(point)
        assert (lam <= point).mean() == pytest.approx(share, abs=4 * (share * (1 - share) / n) ** 0.5 + 1e-9)


@pytest.mark.parametrize("size", [1, 2, 4, 6, 16, 100])
def test_holes_are_the_authors(size: int) -> None:
    height, width, n = 7, 9, 30_000
    # uoguelph-mlrg/Cutout, util/cutout.py: y1 = clip(y - length // 2, 0, h), y2 = clip(y + length // 2, 0, h), ...
    half, odd = size // 2, size % 2  # An odd side loses a pixel there, and keeps it here.
    theirs = Counter(
        (max(x - half, 0), max(y - half, 0), min(x + half + odd, width), min(y + half + odd, height))
        for x in range(width)
        for y in range(height)
    )
    draw = Cutout(size, seed=0).draw((n, 3, height, width))
    ours = Counter(map(tuple, draw.boxes.tolist()))
    assert ours.keys() == theirs.keys()
    if len(ours) > 1:
        expected = [n * theirs[hole] / (height * width) for hole in ours]
        assert stats.chisquare(list(ours.values()), expected).pvalue > 1e-4


@pytest.mark.parametrize("shape", [(3, 7, 7), (3, 20, 36), (3, 130, 90), (2, 4, 9, 5), (6, 6)], ids=str)
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_cutout_sets_its_holes_to_zero(shape: tuple[int, ...], per_sample: bool, inplace: bool) -> None:
    transform = Cutout(6, per_sample=per_sample, inplace=inplace, seed=0)
    twin, labels = copy.deepcopy(transform), torch.arange(7)
    for dtype in (torch.uint8, torch.bfloat16, torch.float32):
        images = torch.ones(7, *shape, dtype=dtype)
        expected = images.clone()
        for i, (x1, y1, x2, y2) in enumerate(twin.draw(images.shape).boxes.expand(7, 4).tolist()):
            expected[i, ..., y1:y2, x1:x2] = 0
        cut, targets = transform(images, labels)
        assert torch.equal(cut, expected)
        assert targets is labels
        assert (cut is images) == inplace
        assert inplace or bool((images == 1).all())


def test_holes_leave_class_ids_as_they_are() -> None:
    masks = torch.full((3, 8, 8), 30)
    draw = Cutout(4, seed=0).draw((3, 3, 8, 8))
    with pytest.warns(UserWarning, match="RandomErasing"):
        oracle = v2.RandomErasing(p=1.0)(tv_tensors.Image(torch.ones(3, 8, 8)), tv_tensors.Mask(masks[0]))
    assert torch.equal(oracle[1], masks[0])  # torchvision's rule
    wrapped = draw.apply(tv_tensors.Mask(masks))
    assert isinstance(wrapped, tv_tensors.Mask)
    assert torch.equal(wrapped, masks)
    assert torch.equal(draw.apply(masks, nearest=True), masks)
    assert (draw.apply(masks, nearest=False) == 0).any()  # images
    for ids in (masks, masks.byte(), masks > 0):
        with pytest.raises(InputError, match="whose holes would become class 0; give nearest=True"):
            draw.apply(ids)


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS], ids=str)
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_lambda_is_the_share_of_own_pixels(
    dtype: torch.dtype, per_sample: bool, inplace: bool, numbered: Callable
) -> None:
    mix = CutMix(per_sample=per_sample, inplace=inplace, seed=5)
    for n in (1, 2, 3, 7):
        for size in ((7, 7), (20, 36), (1, 1), (1, 9), (90, 131)):
            images = numbered(n, 3, *size, dtype=dtype)
            mixed, targets = mix(images, torch.arange(n))
            own = mixed == numbered(n, 3, *size, dtype=dtype)
            share = own.double().mean((1, 2, 3))
            torch.testing.assert_close(targets.lam.double(), share, rtol=0, atol=6e-8)  # Half a step of float32.
            other = mixed == targets.partner_labels.reshape(n, 1, 1, 1).to(dtype)
            assert bool((own != other).all() if n > 1 else own.all())
            assert (mixed is images) == inplace


@every_transform
@pytest.mark.parametrize("per_sample", [False, True])
def test_in_place_is_out_of_place(make: Callable, per_sample: bool) -> None:
    for side in (9, 80):
        images, labels = torch.randn(7, 3, side, side), torch.arange(7)
        before = images.clone()
        mixed, targets = make(per_sample=per_sample, seed=6)(images, labels)
        assert torch.equal(images, before)
        written, same = make(per_sample=per_sample, inplace=True, seed=6)(images, labels)
        assert written is images
        assert torch.equal(written, mixed)
        assert all(map(torch.equal, targets, same))


@pytest.mark.parametrize("make", [CutMix, Mixup])
def test_partners_form_one_cycle(make: Callable) -> None:
    for n in (2, 3, 7, 100):
        partner = make(seed=7).draw((n, 3, 8, 8)).partner.tolist()
        met, i = [], 0
        while i not in met:
            met.append(i)
            i = partner[i]
        assert sorted(met) == list(range(n))


@every_transform
def test_a_batch_of_one_comes_back(make: Callable) -> None:
    images, labels = torch.randn(1, 3, 8, 8), torch.tensor([3])
    mixed, targets = make(seed=0)(images, labels)
    if make is not TRANSFORMS["Cutout"]:
        assert torch.equal(mixed, images)
        assert targets.lam.tolist() == [1.0]
        assert torch.equal(targets.labels, targets.partner_labels)


@pytest.mark.parametrize("make", [CutMix, Mixup])
@pytest.mark.parametrize("per_sample", [False, True])
def test_prob(make: Callable, per_sample: bool) -> None:
    mix, images = make(prob=0.0, per_sample=per_sample, seed=9), torch.randn(8, 1, 64, 64)
    mixed, targets = mix(images, torch.arange(8))
    assert torch.equal(mixed, images)
    assert targets.lam.tolist() == [1.0] * 8
    mix.prob = 0.3
    lam = torch.stack([mix.draw(images.shape).lam for _ in range(2000)])
    assert (lam < 1).double().mean().item() == pytest.approx(0.3, abs=0.05)
    together = ((lam < 1) == (lam[:, :1] < 1)).all(1)
    assert bool(together.all()) != per_sample
    mix.prob = 1.0
    assert (torch.stack([mix.draw(images.shape).lam for _ in range(200)]) < 1).double().mean() > 0.98
    holes = Cutout(8, prob=0.3, per_sample=per_sample, seed=9)
    cut = torch.stack([holes(torch.ones(8, 1, 16, 16), torch.arange(8))[0].amin((1, 2, 3)) == 0 for _ in range(500)])
    assert cut.double().mean().item() == pytest.approx(0.3, abs=0.09)


def test_random_choice() -> None:
    choice = RandomChoice([CutMix(seed=0), Mixup(seed=0), Cutout(4, seed=0)], weights=[1, 3, 0], seed=0)
    kinds = Counter(choice.draw((4, 3, 32, 32)).boxes is None for _ in range(2000))
    assert kinds[True] / 2000 == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 2000) ** 0.5)
    even = RandomChoice([CutMix(seed=0), Cutout(4, seed=0)], seed=0)
    kinds = Counter(isinstance(even(torch.ones(4, 1, 8, 8), torch.arange(4))[1], Tensor) for _ in range(1000))
    assert kinds[True] / 1000 == pytest.approx(0.5, abs=0.065)


# Randomness.


def stream(transform: CutMix, batches: int = 4) -> list[list[float]]:
    return [transform(torch.randn(5, 1, 30, 30), torch.eye(5))[1].flatten().tolist() for _ in range(batches)]


def drawn(transform: CutMix, batches: int = 4) -> list[tuple]:
    draws = [transform.draw((5, 1, 30, 30)) for _ in range(batches)]
    return [(d.partner.tolist(), d.lam.tolist(), d.boxes.tolist() if d.boxes is not None else None) for d in draws]


@every_transform
@pytest.mark.parametrize("prob", [1.0, 0.6])
def test_seeds_and_state(make: Callable, prob: float) -> None:
    options = {"prob": prob, "per_sample": True}
    first = make(seed=0, **options)
    reference = drawn(first, 9)
    assert drawn(make(seed=0, **options), 9) == reference
    assert drawn(make(seed=1, **options), 9) != reference
    assert drawn(make(**options), 9) != drawn(make(**options), 9)
    state = first.state_dict()
    copies = [copy.deepcopy(first), pickle.loads(pickle.dumps(first)), make(seed=77, **options)]
    following = drawn(first, 9)
    assert following != reference
    copies[2].load_state_dict(pickle.loads(pickle.dumps(state)))
    first.load_state_dict(state)
    for transform in (*copies, first):
        assert drawn(transform, 9) == following


@every_transform
def test_global_generators_are_neither_read_nor_moved(make: Callable) -> None:
    def states() -> tuple:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    before = states()
    reference = drawn(make(seed=0))
    assert states() == before
    with torch.random.fork_rng():
        torch.manual_seed(1234)
        assert drawn(make(seed=0)) == reference
        torch.manual_seed(5)
        fresh = drawn(make(seed=None))
        torch.manual_seed(5)
        assert drawn(make(seed=None)) != fresh


@every_transform
def test_every_rank_draws_its_own(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = drawn(make(seed=0))
    streams = []
    for rank in ("0", "1", "2"):
        monkeypatch.setenv("RANK", rank)
        streams.append(drawn(make(seed=0)))
    assert streams[0] == alone
    assert streams[0] != streams[1] != streams[2] != streams[0]


# Wrong input.


@pytest.mark.parametrize("make", [*list(TRANSFORMS.values())[:3]], ids=[*TRANSFORMS][:3])
@pytest.mark.parametrize("prob", [-0.1, 1.1, float("nan")])
def test_prob_out_of_range(make: Callable, prob: float) -> None:
    with pytest.raises(ValueError, match=rf"prob is {prob}; expected a probability in \[0, 1\]"):
        make(prob=prob)
    transform = make(prob=0.5)
    with pytest.raises(ValueError, match="prob is"):
        transform.prob = prob
    assert transform.prob == 0.5


@pytest.mark.parametrize("make", [CutMix, Mixup])
@pytest.mark.parametrize("alpha", [0.0, -1.0, float("inf"), float("nan")])
def test_alpha_out_of_range(make: Callable, alpha: float) -> None:
    with pytest.raises(ValueError, match=f"alpha is {alpha}; expected a number above 0"):
        make(alpha)


def test_wrong_holes_and_choices() -> None:
    for size in (0, -3, 2.5):
        with pytest.raises(ValueError, match=f"size is {size}"):
            Cutout(size)
    with pytest.raises(ValueError, match="no transform"):
        RandomChoice([])
    with pytest.raises(ValueError, match="2 weights for 1 transforms"):
        RandomChoice([CutMix()], weights=[1, 2])
    for weights in ([-1, 2], [0, 0], [float("nan"), 1], [float("inf"), 1]):
        with pytest.raises(ValueError, match="weights are"):
            RandomChoice([CutMix(), Mixup()], weights=weights)


@every_transform
@pytest.mark.parametrize(
    "labels",
    [torch.arange(5), torch.zeros(4), torch.zeros(4, dtype=torch.bool), torch.zeros(4, 2, 2)],
    ids=lambda x: str(x.shape),
)
def test_images_survive_wrong_labels(make: Callable, labels: Tensor) -> None:
    images = torch.randn(4, 3, 80, 80)
    before = images.clone()
    with pytest.raises(ValueError, match=r"label|class ids"):
        make(inplace=True, seed=0)(images, labels)
    assert torch.equal(images, before)


def test_batches_without_spatial_dimensions() -> None:
    for transform in (CutMix(), Cutout(4)):
        with pytest.raises(ValueError, match=r"\(4, 8\), without spatial dimensions"):
            transform(torch.zeros(4, 8), torch.arange(4))
    with pytest.raises(ValueError, match=r"batch is \(4,\)"):
        Mixup()(torch.zeros(4), torch.arange(4))


def test_pil_images_and_lists_are_refused_in_one_sentence() -> None:
    image = Image.new("RGB", (8, 8))
    expected = r"expected a tensor \(N, ..., H, W\); torchvision's v2.ToImage makes tensors of PIL images"
    for transform in (CutMix(), Mixup(), Cutout(2), RandomChoice([CutMix()])):
        for images in (image, [image] * 4, np.zeros((4, 3, 8, 8))):
            with pytest.raises(InputError, match=rf"^images are of type \w+; {expected}$"):
                transform(images, torch.arange(4))
        for labels in ([0, 1, 2, 3], (0, 1, 2, 3), np.arange(4), "cats"):
            with pytest.raises(
                InputError, match=r"^labels are of type \w+; expected a tensor of class ids \(N,\) or of"
            ):
                transform(torch.rand(4, 3, 8, 8), labels)
    with pytest.raises(InputError, match="images are of type Image; expected a tensor"):
        Draw.from_lam(torch.tensor([0]), 0.5).apply(image)


@every_transform
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("per_sample", [False, True])
def test_torchvisions_images_keep_their_type(make: Callable, inplace: bool, per_sample: bool) -> None:
    for kind, shape in ((tv_tensors.Image, (6, 3, 40, 40)), (tv_tensors.Video, (6, 2, 3, 12, 12))):
        for plain in (torch.rand(shape), torch.rand(shape).mul(255).to(torch.uint8)):
            for grad in (False, True) if plain.is_floating_point() and not inplace else (False,):
                images, options = kind(plain.clone(), requires_grad=grad), {"per_sample": per_sample, "seed": 3}
                mixed, _ = make(inplace=inplace, **options)(images, torch.arange(6))
                assert type(mixed) is kind
                assert (mixed is images) == inplace
                assert torch.equal(mixed, make(**options)(plain, torch.arange(6))[0])


def test_boxes_and_key_points_are_refused() -> None:
    boxes = tv_tensors.BoundingBoxes(torch.rand(4, 4), format="XYXY", canvas_size=(8, 8))
    points = tv_tensors.KeyPoints(torch.rand(4, 2), canvas_size=(8, 8))
    for transform in (Mixup(), CutMix(), Cutout(2)):
        for x in (boxes, points):
            with pytest.raises(InputError, match=f"images are of type {type(x).__name__}, without pixels to mix"):
                transform(x, torch.arange(4))


def test_mixup_makes_no_classes_of_masks() -> None:
    ids = torch.tensor([[0, 30], [30, 0], [7, 255]]).reshape(3, 1, 2)
    for masks in (*(ids.to(dtype) for dtype in INTEGERS[1:]), tv_tensors.Mask(ids.to(torch.uint8))):
        with pytest.raises(InputError, match=r"give nearest=True for class ids, nearest=False for images"):
            Mixup()(masks, torch.arange(3))
        with pytest.raises(InputError, match="give nearest=True"):
            Draw.from_lam(torch.tensor([1, 2, 0]), 0.9).apply(masks)
        chosen = Draw.from_lam(torch.tensor([1, 2, 0]), torch.tensor([0.9, 0.5, 0.1])).apply(masks, nearest=True)
        assert type(chosen) is type(masks)
        assert torch.equal(chosen, masks[[0, 1, 0]])
        assert CutMix(seed=0)(masks, torch.arange(3))[0].dtype == masks.dtype  # which moves them
    pixels = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    assert Mixup(seed=0)(pixels, torch.arange(4))[0].dtype == torch.uint8


@pytest.mark.usefixtures("no_recompilation")
@pytest.mark.parametrize("make", [CutMix, Mixup, TRANSFORMS["Cutout"]])
@pytest.mark.parametrize("per_sample", [False, True])
def test_mixed_and_unmixed_batches_share_one_graph(make: Callable, per_sample: bool) -> None:
    transform = make(prob=0.5, per_sample=per_sample, seed=0)
    compiled = torch.compile(lambda draw, x: draw.apply(x), fullgraph=True, backend="eager")
    images = torch.randn(5, 3, 12, 9)
    for _ in range(8):
        draw = transform.draw(images.shape)
        assert torch.equal(compiled(draw, images), draw.apply(images))


@pytest.mark.usefixtures("no_recompilation")
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("per_sample", [False, True])
def test_crop_flip_normalize_and_mix_are_one_graph(per_sample: bool, backend: str) -> None:
    mean, std, generator = (
        torch.tensor([0.5, 0.4, 0.3]),
        torch.tensor([0.2, 0.2, 0.3]),
        torch.Generator().manual_seed(0),
    )

    def augment(images: Tensor, crop: CropFlip, draw: Draw) -> Tensor:
        return draw.apply(normalize(crop.apply(images), mean, std, channels_last=True))

    compiled = torch.compile(augment, fullgraph=True, backend=backend)
    mix = CutMix(per_sample=per_sample, seed=0)
    for _ in range(3):
        images = torch.randint(256, (8, 3, 20, 24), dtype=torch.uint8, generator=generator)
        drawn = draw_crop_flip(8, 4, True, generator), mix.draw(images.shape)
        result, expected = compiled(images, *drawn), augment(images, *drawn)
        assert torch.equal(result, expected)
        assert result.stride() == expected.stride()


@pytest.mark.gpu
@every_transform
@pytest.mark.parametrize("per_sample", [False, True])
def test_on_a_gpu_nothing_waits(make: Callable, per_sample: bool) -> None:
    images, labels = torch.randn(6, 3, 40, 31), torch.arange(6)
    mixed, targets = make(per_sample=per_sample, seed=0)(images, labels)
    on_device, labels_there = images.cuda(), labels.cuda()
    make(per_sample=per_sample, seed=0)(on_device, labels_there)  # What is loaded at the first call may wait.
    transform = make(per_sample=per_sample, inplace=True, seed=0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        there, targets_there = transform(on_device, labels_there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(there.cpu(), mixed, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(targets_there, targets, strict=True):
        assert torch.equal(ours.cpu(), theirs)


@pytest.mark.parametrize("transform", [CutMix(inplace=True, seed=0), Cutout(2, inplace=True, seed=0)])
def test_images_that_share_memory_are_not_written_into(transform):
    grey = torch.rand(8, 1, 12, 12)
    windows = torch.rand(8, 3, 30).unfold(2, 12, 2).contiguous().as_strided((8, 3, 10, 12), (90, 30, 2, 1))
    for images in (grey.expand(-1, 3, -1, -1), windows):
        before = images.clone()
        for _ in range(5):
            with pytest.raises(ValueError, match="share memory"):
                transform(images, torch.arange(8))
        assert torch.equal(images, before)
    for images in (grey.to(memory_format=torch.channels_last), torch.rand(8, 3, 20, 20)[..., 2:14, ::2]):
        transform(images, torch.arange(8))


def test_a_choice_is_switched_off_and_on_as_a_whole():
    choice = RandomChoice([CutMix(prob=0.5, seed=0), Mixup(seed=1)], weights=[3, 1], seed=2)
    assert repr(choice) == f"RandomChoice([{choice.transforms[0]}, {choice.transforms[1]}], weights=(3, 1))"
    assert choice.prob == pytest.approx((3 * 0.5 + 1) / 4)
    images, labels = torch.rand(8, 3, 32, 32), torch.arange(8)
    choice.prob = 0
    assert all(torch.equal(choice(images, labels)[0], images) for _ in range(20))
    choice.prob = 1
    assert sum(not torch.equal(choice(images, labels)[0], images) for _ in range(20)) > 15  # a box may be empty
    with pytest.raises(ValueError, match="prob is 2"):
        choice.prob = 2
