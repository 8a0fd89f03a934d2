"""Sets of outliers: noise by its distribution, archives by their digest, images by Pillow."""

import hashlib
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import kstest, norm
from torch import Tensor

from cutmix.data import outliers
from cutmix.data.image_files import ResizeAndCrop
from cutmix.data.outliers import SEVEN, Outliers, open_outliers
from cutmix.errors import InputError

RGB = (3, 32, 32)


def whole(found: Outliers) -> Tensor:
    return found.draw(0, len(found))


def sample_image(seed: int, height: int = 32, width: int = 32) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(image: Image.Image | np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def write_archive(path: Path, images: dict[str, Image.Image]) -> str:
    """Write images as ODIN's archives have them, and return the MD5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, image in images.items():
            content = io.BytesIO()
            image.save(content, "PNG")
            member = tarfile.TarInfo(name)
            member.size = len(content.getvalue())
            tar.addfile(member, io.BytesIO(content.getvalue()))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUTMIX_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- noise ----


def test_uniform_noise_is_uniform_and_not_rounded() -> None:
    images = whole(open_outliers("uniform", RGB, count=20))
    assert images.shape == (20, 3, 32, 32)
    assert images.dtype == torch.float32
    assert kstest(images.flatten().numpy(), "uniform").pvalue > 1e-3
    assert (images * 255 != (images * 255).round()).float().mean() > 0.99


def test_gaussian_noise_has_mean_half_and_deviation_one_before_it_is_clipped() -> None:
    images = whole(open_outliers("gaussian", RGB, count=20)).flatten().numpy()
    n = len(images)
    for share, expected in (((images == 0).mean(), norm.cdf(-0.5)), ((images == 1).mean(), norm.cdf(-0.5))):
        assert abs(share - expected) < 4 * (expected * (1 - expected) / n) ** 0.5
    between = images[(images > 0) & (images < 1)]
    assert kstest((norm.cdf(between - 0.5) - norm.cdf(-0.5)) / (1 - 2 * norm.cdf(-0.5)), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("name", ["uniform", "gaussian"])
def test_noise_depends_on_seed_and_place_alone(name: str) -> None:
    found = open_outliers(name, (1, 5, 7), count=11, seed=3)
    images = whole(found)
    assert torch.equal(torch.cat(list(found.batches(4))), images)
    assert [len(batch) for batch in found.batches(4)] == [4, 4, 3]
    torch.rand(5)  # the global generator has no part in it
    assert torch.equal(whole(open_outliers(name, (1, 5, 7), count=11, seed=3)), images)
    assert not torch.equal(whole(open_outliers(name, (1, 5, 7), count=11, seed=4)), images)
    assert len(images.flatten(1).unique(dim=0)) == 11


# ---- folders and known sets ----


def test_a_folder_is_searched_at_any_depth_and_only_for_images(data: Path) -> None:
    folder = data / "things"
    for name in ("b.png", "deep/er/a.PNG", ".hidden/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    sample_image(1).save(folder / "b.png")
    sample_image(2).save(folder / "deep" / "er" / "a.PNG")
    sample_image(3).save(folder / ".hidden" / "c.png")
    (folder / "notes.txt").write_text("no image")
    (folder / "._b.png").write_bytes(b"what another system leaves")
    found = open_outliers(str(folder), RGB, count=100)
    assert torch.equal(whole(found), torch.stack([pixels(sample_image(1)), pixels(sample_image(2))]))
    assert found.note is None


def test_photographs_are_covered_and_cropped_in_the_centre(data: Path) -> None:
    (data / "things").mkdir()
    sample_image(0, 100, 64).save(data / "things" / "high.png")
    transform = ResizeAndCrop(32, 1.0, squash=False, interpolation="bilinear")
    expected = pixels(transform(sample_image(0, 100, 64)).permute(1, 2, 0).numpy())
    found = whole(open_outliers("things", RGB, count=5))[0]
    assert (found - expected).abs().max() <= 1.01 / 255  # Pillow rounds between two passes
    grey = whole(open_outliers("things", (1, 32, 32), count=5))[0]
    luma = (found * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)
    assert (grey - luma).abs().max() <= 0.5 / 255 + 1e-6


def test_of_a_larger_set_a_seeded_part_is_taken_in_order(data: Path) -> None:
    (data / "things").mkdir()
    for i in range(30):
        Image.new("RGB", (4, 4), (i, i, i)).save(data / "things" / f"{i:02}.png")
    parts = [
        whole(open_outliers("things", (3, 4, 4), count=10, seed=s))[:, 0, 0, 0].mul(255).round() for s in (0, 0, 1)
    ]
    assert torch.equal(parts[0], parts[1])
    assert not torch.equal(parts[0], parts[2])
    assert (parts[0].diff() > 0).all()
    assert len(open_outliers("things", (3, 4, 4), count=31)) == 30


def test_a_known_set_is_taken_by_name_and_grey_is_repeated() -> None:
    found = whole(open_outliers("digits", (3, 8, 8), count=50))
    assert found.shape == (50, 3, 8, 8)
    assert torch.equal(found[:, 0], found[:, 2])
    assert found.unique().numel() <= 17
    larger = whole(open_outliers("digits", (1, 32, 32), count=50))
    assert larger.shape == (50, 1, 32, 32)
    assert larger.mean().item() == pytest.approx(found.mean().item(), abs=0.01)


# ---- Tiny-ImageNet ----


def write_tiny(root: Path, n: int = 12) -> Tensor:
    folder = root / "tiny-imagenet-200"
    (folder / "val" / "images").mkdir(parents=True)
    lines = []
    for i in range(n):
        (folder / "train" / f"n{i % 2}" / "images").mkdir(parents=True, exist_ok=True)
        sample_image(i, 64, 64).save(folder / "val" / "images" / f"val_{i:02}.JPEG", quality=95)
        lines.append(f"val_{i:02}.JPEG\tn{i % 2}\t0\t0\t10\t10")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return torch.stack([pixels(Image.open(folder / "val" / "images" / f"val_{i:02}.JPEG")) for i in range(n)])


def test_a_crop_is_a_patch_of_its_image(data: Path) -> None:
    images = write_tiny(data)
    found = open_outliers("tiny-imagenet-crop", RGB, count=100)
    places = set()
    for crop, image in zip(whole(found), images, strict=True):
        windows = image.unfold(1, 32, 1).unfold(2, 32, 1)  # (3, 33, 33, 32, 32)
        same = (windows == crop[:, None, None]).all(dim=4).all(dim=3).all(dim=0).nonzero()
        assert len(same) == 1
        places.add(tuple(same[0].tolist()))
    assert len(places) > 8
    assert not torch.equal(whole(open_outliers("tiny-imagenet-crop", RGB, count=100, seed=1)), whole(found))
    assert "cropped here, at random" in (found.note or "")
    same_size = open_outliers("tiny-imagenet-crop", (3, 64, 64), count=100)
    assert torch.equal(whole(same_size), images)
    with pytest.raises(
        InputError, match=r"cannot be cropped to 65×64: its images have 64×64 pixels; take tiny-imagenet"
    ):
        open_outliers("tiny-imagenet-crop", (3, 65, 64), count=100)


def test_resized_images_are_antialiased(data: Path) -> None:
    images = write_tiny(data)
    found = open_outliers("tiny-imagenet-resize", RGB, count=100)
    pillow = [pixels(Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).resize((32, 32), 2))
              for image in images]  # fmt: skip
    assert (whole(found) - torch.stack(pillow)).abs().max() <= 1.01 / 255
    assert "antialiasing" in (found.note or "")


# ---- ODIN's archives ----


def test_an_archive_is_checked_and_read_in_the_order_of_its_names(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = {f"LSUN_resize/LSUN_resize/{i}.png": sample_image(i) for i in (3, 1, 2)}
    md5 = write_archive(data / "LSUN_resize.tar.gz", images | {"LSUN_resize/._1.png": sample_image(9)})
    with pytest.raises(InputError, match=rf"has the MD5 {md5}, and ODIN's has 278b7b31c8cb7e804a1465a8ce03a2dc: fetch"):
        open_outliers("lsun-resize", RGB, count=9)
    monkeypatch.setitem(outliers._ARCHIVES, "lsun-resize", ("LSUN_resize", md5))
    found = open_outliers("lsun-resize", RGB, count=9)
    assert torch.equal(whole(found), torch.stack([pixels(sample_image(i)) for i in (1, 2, 3)]))
    assert "artefacts alone give them away" in (found.note or "")
    assert len(open_outliers("lsun-resize", RGB, count=2)) == 2


def test_an_unpacked_folder_is_read_too_and_crops_are_cropped(data: Path) -> None:
    (data / "data" / "LSUN" / "test").mkdir(parents=True)
    sample_image(0, 36, 36).save(data / "data" / "LSUN" / "test" / "0.png")
    found = whole(open_outliers("lsun-crop", RGB, count=9))
    assert torch.equal(found[0], pixels(sample_image(0, 36, 36))[:, 2:34, 2:34])


def test_a_damaged_archive_is_one_sentence(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(data / "iSUN.tar.gz", {f"iSUN/{i}.png": sample_image(i) for i in range(9)})
    content = (data / "iSUN.tar.gz").read_bytes()
    for bad in (content[: len(content) // 2], b"no archive"):
        (data / "iSUN.tar.gz").write_bytes(bad)
        monkeypatch.setitem(outliers._ARCHIVES, "isun", ("iSUN", hashlib.md5(bad).hexdigest()))
        with pytest.raises(InputError, match=r"iSUN\.tar\.gz is damaged \(.*\): fetch it again"):
            open_outliers("isun", RGB, count=9)
    md5 = write_archive(data / "iSUN.tar.gz", {})
    monkeypatch.setitem(outliers._ARCHIVES, "isun", ("iSUN", md5))
    with pytest.raises(InputError, match="holds no images"):
        open_outliers("isun", RGB, count=9)


# ---- what is refused ----


def test_wrong_input_is_one_sentence(data: Path) -> None:
    (data / "empty").mkdir()
    (data / "empty" / "notes.txt").write_text("nothing")
    for name, message in {
        "empty": r"empty holds no images; expected some, at any depth",
        "lsun-crop": r"lsun-crop was not found in .* and data: put ODIN's LSUN\.tar\.gz there, or the folder LSUN",
        "tiny-imagenet-crop": "tiny-imagenet-200 was not found in",
        "cifar-10": "cifar-10 was not found in",
        "lsun_resize": "'lsun_resize' is not a set of outliers: did you mean 'lsun-resize'",
        "svhn": "'svhn' is neither a folder that exists nor a known data set",
    }.items():
        with pytest.raises(InputError, match=message):
            open_outliers(name, RGB, count=9)
    for shape, count in (((2, 32, 32), 9), (RGB, 0)):
        with pytest.raises(InputError, match=rf"count is {count} and channels {shape[0]}; expected at least one image"):
            open_outliers("uniform", shape, count=count)
    sample_image(0).save(data / "empty" / "a.png")
    (data / "empty" / "a.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"a\.png cannot be read as an image"):
        open_outliers("empty", RGB, count=9)


def test_there_are_seven() -> None:
    assert len(set(SEVEN)) == 7


@pytest.mark.data
@pytest.mark.skipif("CUTMIX_DATA" not in os.environ, reason="CUTMIX_DATA is not set")
@pytest.mark.parametrize("name", ["tiny-imagenet-crop", "tiny-imagenet-resize"])
def test_the_real_set(name: str) -> None:
    found = open_outliers(name, RGB, count=100)
    assert whole(found).shape == (100, 3, 32, 32)
