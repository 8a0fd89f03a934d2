"""CIFAR read from official layouts: torchvision is the oracle; a pickle is never allowed to run anything."""

import os
import pickle
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from cutmix.data.opening import open_data
from cutmix.errors import InputError

NAMES = {"cifar-10": [f"name{k}" for k in range(10)], "cifar-100": [f"name{k}" for k in range(100)]}


def short(text: str) -> bytes:
    """Spell a Python-2 string."""
    return b"U" + bytes([len(text)]) + text.encode()


def python2_pickle(pixels: np.ndarray, labels_key: str, labels: list[int]) -> bytes:
    """Spell a pickle as Python 2 wrote the official files: protocol 2, byte strings, numpy's old module path."""
    raw = pixels.tobytes()
    return b"".join(
        [
            b"\x80\x02}(U\x04data",
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
            b"(K\x01" + b"".join(b"J" + struct.pack("<i", n) for n in pixels.shape) + b"\x86",
            b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb",
            short(labels_key) + b"](" + b"".join(b"K" + bytes([n]) for n in labels) + b"e",
            b"u.",
        ]
    )


def write_cifar(root: Path, name: str, per_file: int = 30) -> Path:
    rng = np.random.default_rng(0)
    ten = name == "cifar-10"
    folder = root / ("cifar-10-batches-py" if ten else "cifar-100-python")
    folder.mkdir(parents=True)
    files = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"] if ten else ["train", "test"]
    for file in files:
        pixels = rng.integers(0, 256, (per_file, 3072), dtype=np.uint8)
        labels = rng.integers(0, 10 if ten else 100, per_file).tolist()
        (folder / file).write_bytes(python2_pickle(pixels, "labels" if ten else "fine_labels", labels))
    key = "label_names" if ten else "fine_label_names"
    meta = b"\x80\x02}" + short(key) + b"](" + b"".join(map(short, NAMES[name])) + b"es."
    (folder / ("batches.meta" if ten else "meta")).write_bytes(meta)
    return folder


@pytest.mark.parametrize("name", ["cifar-10", "cifar-100"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_equals_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, split: str) -> None:
    folder = write_cifar(tmp_path, name)
    oracle_class = datasets.CIFAR10 if name == "cifar-10" else datasets.CIFAR100
    monkeypatch.setattr(oracle_class, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    with warnings.catch_warnings():
        # torchvision lets NumPy rebuild the dtype, and NumPy 2.4 finds Python 2's alignment flag old-fashioned
        warnings.simplefilter("ignore")
        oracle = oracle_class(tmp_path, train=split == "train")
    for path in (tmp_path, folder):
        data = open_data(str(path), split)
        assert data.name == name
        assert data.images.dtype == torch.uint8
        assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), oracle.data)
        assert data.labels.tolist() == oracle.targets
        assert list(data.classes) == [c.decode() if isinstance(c, bytes) else c for c in oracle.classes]
        assert len(data) == (150 if name == "cifar-10" and split == "train" else 30)
        assert data.in_chans == 3


def test_images_own_writable_memory(tmp_path: Path) -> None:
    data = open_data(str(write_cifar(tmp_path, "cifar-100")), "train")
    data.images[0].fill_(7)
    assert data.images[0].eq(7).all()


@pytest.mark.parametrize(("name", "label_bytes"), [("cifar-10", 1), ("cifar-100", 2)])
def test_binary_layout(tmp_path: Path, name: str, label_bytes: int) -> None:
    ten = name == "cifar-10"
    folder = tmp_path / ("cifar-10-batches-bin" if ten else "cifar-100-binary")
    folder.mkdir()
    rng = np.random.default_rng(1)
    records = rng.integers(0, 10, (1200, label_bytes + 3072), dtype=np.uint8)
    for file in [f"data_batch_{k}.bin" for k in range(1, 6)] if ten else ["train.bin"]:
        records.tofile(folder / file)
    (folder / ("batches.meta.txt" if ten else "fine_label_names.txt")).write_text("\n".join(NAMES[name]) + "\n\n")
    data = open_data(str(folder), "train")
    copies = 5 if ten else 1
    expected = torch.from_numpy(np.tile(records[:, label_bytes:], (copies, 1))).view(-1, 3, 32, 32)
    assert torch.equal(data.images, expected)
    assert data.labels.tolist() == records[:, label_bytes - 1].tolist() * copies
    assert data.classes == tuple(NAMES[name])
    with pytest.raises(InputError, match=r"test(_batch)?\.bin is missing"):
        open_data(str(folder), "test")
    file = folder / ("data_batch_3.bin" if ten else "train.bin")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="not a multiple of"):
        open_data(str(folder), "train")


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickle_with_code_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    folder = write_cifar(tmp_path, "cifar-100")
    (folder / "train").write_bytes(pickle.dumps({"data": Evil(tmp_path / "proof")}, protocol=protocol))
    with pytest.raises(InputError, match=r"train is refused, and nothing of it was run: it asks for \w+\.mkdir"):
        open_data(str(folder), "train")
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:-1],
        lambda raw: b"",
        lambda raw: b"not a pickle",
        lambda raw: raw.replace(b"u1", b"f4"),
        lambda raw: raw.replace(b"fine_labels", b"xine_labels"),
        lambda raw: pickle.dumps([1, 2]),
        lambda raw: b"\x80\x02T\xff\xff\xff\x7f" + raw,
        lambda raw: b"\x80\x02}r\xff\xff\xff\x7f.",  # a memo of two thousand million entries
        lambda raw: b"\x80\x02(" + b"]" * 2_100_000 + b"l.",  # a byte a list
        lambda raw: b"\x80\x02" + b"(h\x00h\x00tq\x00" * 40 + b".",
        lambda raw: b"\x80\x02)" + b"2\x86" * 60 + b"}N\x86\x85.",  # a tuple whose hash takes 2^60 steps
    ],
)
def test_damaged_pickle_names_the_file(tmp_path: Path, damage) -> None:
    folder = write_cifar(tmp_path, "cifar-100", per_file=100)
    (folder / "train").write_bytes(damage((folder / "train").read_bytes()))
    with pytest.raises(InputError, match="train") as caught:
        open_data(str(folder), "train")
    assert "\n" not in str(caught.value)


def test_incomplete_set_names_what_is_missing(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path, "cifar-100")
    (folder / "test").unlink()
    assert len(open_data(str(folder), "train")) == 30
    with pytest.raises(InputError, match="not a complete cifar-100: test is missing"):
        open_data(str(folder), "test")


def test_labels_out_of_range(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path, "cifar-100")
    pixels = np.zeros((2, 3072), np.uint8)
    (folder / "train").write_bytes(python2_pickle(pixels, "fine_labels", [3, 100]))
    with pytest.raises(InputError, match="run from 3 to 100; expected 0 to 99"):
        open_data(str(folder), "train")


_PEAK = """
import re, sys, torch
import cutmix.data.opening

def kilobytes(what):
    with open("/proc/self/status") as status:
        return int(re.search(what + r":\\s+(\\d+) kB", status.read())[1])

before = kilobytes("VmRSS")
data = cutmix.data.opening.open_data(sys.argv[1], "train")
print((kilobytes("VmHWM") - before) * 1024 / data.images.nbytes)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the process's memory from /proc")
@pytest.mark.parametrize("name", ["cifar-10", "cifar-100"])
def test_pixels_are_held_twice_at_most(tmp_path: Path, name: str) -> None:
    folder = write_cifar(tmp_path, name, per_file=5_000 if name == "cifar-10" else 25_000)
    run = subprocess.run([sys.executable, "-c", _PEAK, str(folder)], capture_output=True, text=True, check=True)
    assert float(run.stdout) < (1.6 if name == "cifar-10" else 2.2)  # of the file that is being read


@pytest.mark.data
@pytest.mark.parametrize(("split", "count"), [("train", 50_000), ("test", 10_000)])
def test_real_cifar_100_equals_torchvision(split: str, count: int) -> None:
    root = Path(os.environ.get("CUTMIX_DATA", ""))
    if not os.environ.get("CUTMIX_DATA") or not (root / "cifar-100-python").is_dir():
        pytest.skip("needs $CUTMIX_DATA/cifar-100-python")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = datasets.CIFAR100(root, train=split == "train")
    data = open_data("cifar-100", split)
    assert data.images.shape == (count, 3, 32, 32)
    assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), oracle.data)
    assert data.labels.tolist() == oracle.targets
    assert list(data.classes) == oracle.classes
