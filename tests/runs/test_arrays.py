"""Predictions: what was written comes back; damaged and lying files are refused before memory is asked for."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cutmix.errors import InputError
from cutmix.runs.folder import write_arrays
from cutmix.runs.read import read_arrays, read_outcome


def test_arrays_come_back(tmp_path: Path) -> None:
    arrays = {
        "logits": np.zeros((2, 3), np.float32),
        "labels": np.arange(2),
        "none": np.zeros((0, 4)),
        "odd/name": np.ones(1),
    }
    write_arrays(tmp_path / "deep" / "last.npz", arrays)
    found = read_arrays(tmp_path / "deep" / "last.npz")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_of_equal_logits_the_lowest_class_counts(tmp_path: Path) -> None:
    logits = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 2]], np.float32)
    np.savez(tmp_path / "last.npz", logits=logits, labels=np.array([0, 1, 2]))
    assert read_outcome(tmp_path / "last.npz").right.tolist() == [True, False, True]


def test_what_is_no_predictions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.npz"
    arrays = {
        r"of shape \(3, 2\) and labels of \(4,\); expected": {"logits": np.zeros((3, 2)), "labels": np.zeros(4)},
        "holds the arrays logits; expected logits and labels": {"logits": np.zeros((3, 2))},
        "allow_pickle=False": {"logits": np.array([{}, {}]), "labels": np.zeros(2)},
    }
    for reason, content in arrays.items():
        np.savez(path, **content)
        with pytest.raises(InputError, match=reason):
            read_outcome(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read"):
        read_outcome(path)
    with pytest.raises(InputError, match=r"absent\.npz cannot be read as arrays: No such file"):
        read_outcome(tmp_path / "absent.npz")


@pytest.mark.parametrize("flipped", [0xFF, 0x01])
def test_a_wrong_byte_is_refused_or_changes_nothing(tmp_path: Path, flipped: int) -> None:
    path = tmp_path / "arrays.npz"
    arrays = {"logits": np.arange(4.0).reshape(2, 2), "labels": np.arange(2)}
    np.savez(path, **arrays)
    whole, refused = path.read_bytes(), 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ flipped]) + whole[at + 1 :])
        try:
            found = read_arrays(path)
        except InputError:
            refused += 1
            continue
        assert {name: array.tolist() for name, array in found.items()} == {
            name: array.tolist() for name, array in arrays.items()
        }, at
    assert refused > len(whole) / 2


def test_an_array_that_announces_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)})
    path = tmp_path / "last.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("logits.npy", member.getvalue() + bytes(80))
    with pytest.raises(InputError, match=r"logits\.npy announces 8,000,000,000,000 bytes and holds 80"):
        read_arrays(path)
    np.savez_compressed(path, logits=np.zeros(10**6))
    with pytest.raises(InputError, match=r"logits\.npy is compressed; expected a file that cutmix wrote"):
        read_arrays(path)
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(InputError, match="Is a directory"):
        read_arrays(tmp_path / "folder.npz")
