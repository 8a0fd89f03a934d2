"""Corrupted sets that are written here with known errors, AlexNet's own numbers, and files that must be refused."""

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cutmix.errors import InputError
from cutmix.evaluation.classifier import Classifier
from cutmix.evaluation.occlusion import (
    ALEXNET_ERR,
    CORRUPTIONS,
    _records,
    corruption_error,
    open_corrupted,
)

CLASSES = ("n01", "n02", "n03", "n04")
N, SIDE = 12, 16
LABELS = np.arange(N) % 4


class ByBrightness(nn.Module):
    """The class is how bright an image is: 0, 1, 2 or 3 times 60/255."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.arange(4.0) * 60 / 255, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return -(x.mean((1, 2, 3))[:, None] - self.levels).abs()


@pytest.fixture
def classifier() -> Classifier:
    images = torch.zeros(N, 3, SIDE, SIDE, dtype=torch.uint8)
    context = contextlib.nullcontext()
    return Classifier(
        ByBrightness().eval(), (0.0,) * 3, (1.0,) * 3, images, torch.from_numpy(LABELS), CLASSES, "toy", context, 5
    )


def shown_class(corruption: int, severity: int, image: int) -> int:
    """Return the class that an image looks like: its own, or for severity 1–5 of corruption c, the next one of some."""
    label = int(LABELS[image])
    return (label + 1) % 4 if image < (corruption + severity) % (N + 1) else label


EXPECTED = np.array([[(c + s) % (N + 1) / N * 100 for s in range(1, 6)] for c in range(15)])  # errors in per cent


def pixels(corruption: int, severity: int, image: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), 60 * shown_class(corruption, severity, image), dtype=np.uint8)


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """A set in the layout of CIFAR-C."""
    for c, name in enumerate(CORRUPTIONS):
        images = np.stack([pixels(c, severity, i) for severity in range(1, 6) for i in range(N)])
        np.save(tmp_path / f"{name}.npy", images)
    np.save(tmp_path / "labels.npy", np.tile(LABELS, 5).astype(np.uint8))
    return tmp_path


def test_arrays_are_cut_as_the_images_were(classifier: Classifier, arrays: Path) -> None:
    """A dark border of a quarter of the pixels, which the cut takes away, does not count."""
    for name in CORRUPTIONS:
        images = np.load(arrays / f"{name}.npy")
        np.save(arrays / f"{name}.npy", np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0))))
    with pytest.raises(InputError, match=r"npy is \(60, 24, 24, 3\) uint8; expected \(60, 16, 16, 3\) uint8"):
        open_corrupted(classifier, arrays)
    cutting = replace(classifier, cut=lambda images: images[..., 4:-4, 4:-4])
    records = corruption_error(cutting, open_corrupted(cutting, arrays)).records
    found = [record.value for record in records if record.metric == "corruption_err"]
    np.testing.assert_allclose(found, EXPECTED.flatten())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set in the layout of ImageNet-C."""
    root = tmp_path_factory.mktemp("imagenet-c")
    for c, name in enumerate(CORRUPTIONS):
        for severity in range(1, 6):
            for i in range(N):
                folder = root / name / str(severity) / CLASSES[LABELS[i]]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels(c, severity, i)).save(folder / f"ILSVRC2012_val_{i:08}.JPEG", format="JPEG")
    return root


def test_alexnets_errors_are_the_published_ones() -> None:
    published = [
        0.886,
        0.894,
        0.923,
        0.820,
        0.826,
        0.786,
        0.798,
        0.867,
        0.827,
        0.819,
        0.565,
        0.853,
        0.646,
        0.718,
        0.607,
    ]
    assert [error / 100 for error in ALEXNET_ERR.values()] == pytest.approx(published, abs=6e-4)


@pytest.mark.parametrize("layout", ["arrays", "images"])
def test_errors_are_those_that_were_made(layout: str, classifier: Classifier, request: pytest.FixtureRequest) -> None:
    suite = corruption_error(classifier, open_corrupted(classifier, request.getfixturevalue(layout)))
    by = {(r.metric, r.of, r.at): r for r in suite.records}
    for c, name in enumerate(CORRUPTIONS):
        for severity in range(1, 6):
            record = by["corruption_err", name, float(severity)]
            assert record.value == pytest.approx(EXPECTED[c, severity - 1])
            assert record.n == N
            assert record.low < record.high
        assert by["corruption_mean_err", name, None].value == pytest.approx(EXPECTED[c].mean())
    assert by["mean_corruption_err", None, None].value == pytest.approx(EXPECTED.mean())
    errors = {name: EXPECTED[c].mean() for c, name in enumerate(CORRUPTIONS)}
    if layout == "images":
        assert by["mean_corruption_ce", None, None].value == pytest.approx(
            np.mean([100 * error / ALEXNET_ERR[name] for name, error in errors.items()])
        )
        for name, error in errors.items():
            assert by["corruption_ce", name, None].value == pytest.approx(100 * error / ALEXNET_ERR[name])
    else:
        assert ("mean_corruption_ce", None, None) not in by
    assert suite.arrays["corruption_right"].shape == (15, 5, N)
    assert 100 * (1 - suite.arrays["corruption_right"].mean()) == pytest.approx(EXPECTED.mean())
    assert {r.suite for r in suite.records} == {"robustness"}


def test_the_interval_of_the_mean_is_over_images(classifier: Classifier, arrays: Path) -> None:
    suite = corruption_error(classifier, open_corrupted(classifier, arrays))
    record = next(r for r in suite.records if r.metric == "mean_corruption_err")
    of_images = 100 * (~suite.arrays["corruption_right"]).reshape(75, N).mean(0)
    half = 1.959964 * of_images.std(ddof=1) / N**0.5
    assert record.high - record.value == pytest.approx(half, rel=1e-5)
    assert record.low == pytest.approx(max(record.value - half, 0), rel=1e-5)
    assert record.n == N


def test_the_interval_of_a_share_ends_at_100() -> None:
    """99.8 % of 200 images are wrong; relative to AlexNet, more than 100 % are possible."""
    missed = torch.ones(15, 5, 200, dtype=torch.bool)
    missed[:, 0, :2] = False
    found = _records(missed, relative=True)
    shares = [one.high for one in found if one.metric in ("corruption_mean_err", "mean_corruption_err")]
    assert len(shares) == 16
    assert max(shares) == 100
    assert max(one.high for one in found if one.metric == "corruption_ce") > 100


def test_an_image_of_a_severity_meets_its_own_label(classifier: Classifier, arrays: Path) -> None:
    """Without a corruption, all is right; and one wrong image of one severity is found where it is."""
    clean = np.stack([np.full((SIDE, SIDE, 3), 60 * LABELS[i % N], dtype=np.uint8) for i in range(5 * N)])
    for name in CORRUPTIONS:
        np.save(arrays / f"{name}.npy", clean)
    clean[3 * N + 7] = 60 * ((LABELS[7] + 1) % 4)
    np.save(arrays / "fog.npy", clean)
    right = corruption_error(classifier, open_corrupted(classifier, arrays)).arrays["corruption_right"]
    assert np.argwhere(~right).tolist() == [[CORRUPTIONS.index("fog"), 3, 7]]


def rewrite(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / name, change(np.load(folder / name)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "fog.npy").unlink(), r"fog\.npy cannot be read as an array: no such file"),
        (lambda folder: (folder / "fog.npy").write_bytes(b"no array"), r"fog\.npy cannot be read as an array: "),
        (lambda folder: (folder / "fog.npy").write_bytes(b""), r"fog\.npy cannot be read as an array: "),
        (
            lambda folder: (folder / "labels.npy").unlink(),
            r"holds neither labels\.npy nor gaussian_noise/; expected CIFAR-C",
        ),
        (rewrite("fog.npy", lambda x: x / 255), r"fog\.npy is \(60, 16, 16, 3\) float64; expected .* uint8"),
        (rewrite("fog.npy", lambda x: x[:12]), r"fog\.npy is \(12, 16, 16, 3\) uint8; expected \(60, 16, 16, 3\)"),
        (rewrite("snow.npy", lambda x: x.transpose(0, 3, 1, 2)), r"snow\.npy is \(60, 3, 16, 16\) uint8; expected"),
        (rewrite("labels.npy", lambda x: x[:59]), r"labels\.npy is \(59,\) uint8; expected one class id for each"),
        (rewrite("labels.npy", lambda x: x * 1.0), r"labels\.npy is \(60,\) float64; expected one class id"),
        (rewrite("labels.npy", np.sort), r"different labels for different severities"),
        (rewrite("labels.npy", lambda x: x + 6), r"classes 6 to 9; expected the model's, 0 to 3"),
        (rewrite("labels.npy", lambda x: x // 2), r"classes 0 to 1; expected the model's, 0 to 3"),
    ],
)
def test_damaged_arrays_are_refused(
    damage: Callable[[Path], None], message: str, classifier: Classifier, arrays: Path
) -> None:
    damage(arrays)
    with pytest.raises(InputError, match=message):
        open_corrupted(classifier, arrays)


def test_an_array_with_objects_is_not_unpickled(classifier: Classifier, arrays: Path) -> None:
    np.save(arrays / "fog.npy", np.array([{"no": "pixels"}]), allow_pickle=True)
    with pytest.raises(InputError, match=r"fog\.npy cannot be read as an array"):
        open_corrupted(classifier, arrays)


def remove_class(folder: Path) -> None:
    shutil.rmtree(folder / "gaussian_noise" / "1" / "n03")


def add_class(folder: Path) -> None:
    shutil.copytree(folder / "gaussian_noise" / "1" / "n03", folder / "gaussian_noise" / "1" / "n99")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "fog" / "4"), r"fog.4 does not exist; expected 15 corruptions"),
        (
            lambda folder: next((folder / "fog" / "2").rglob("*.JPEG")).unlink(),
            r"and .*gaussian_noise.1 hold different images",
        ),
        (remove_class, "differ in class 'n03'; expected the same classes"),
        (add_class, "differ in class 'n99'; expected the same classes"),
    ],
)
def test_damaged_folders_are_refused(
    damage: Callable[[Path], None], message: str, classifier: Classifier, images: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(images, tmp_path / "copy")
    damage(folder)
    with pytest.raises(InputError, match=message):
        open_corrupted(classifier, folder)


def test_an_image_of_another_size_is_refused(classifier: Classifier, images: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(images, tmp_path / "copy")
    path = next((folder / "fog" / "2").rglob("*.JPEG"))
    Image.open(path).resize((9, 9)).save(path, format="JPEG")
    with pytest.raises(InputError, match=r"is 9×9 pixels; expected 16×16"):
        corruption_error(classifier, open_corrupted(classifier, folder))


def test_no_batch_is_read(classifier: Classifier, arrays: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a value of a meta tensor raises: all batches are launched before the first is read."""
    opened, counted = open_corrupted(classifier, arrays), []
    there = replace(classifier, network=ByBrightness().eval().to("meta"))
    monkeypatch.setattr(Classifier, "check", lambda it: counted.append(it))
    with pytest.raises(NotImplementedError, match="meta"):
        corruption_error(there, opened)
    assert len(counted) == 1
