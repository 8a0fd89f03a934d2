"""The arithmetic of the forward pass."""

import psutil
import pytest
import torch

from cutmix.errors import InputError
from cutmix.runtime.device import autocast, check_memory, describe_precision, resolve_precision, total_memory

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True}, "bfloat16"), ({"avx2": True}, "float32")],
)
def test_auto_is_bfloat16_where_the_hardware_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert resolve_precision("auto", CPU) == expected
    assert resolve_precision("float32", CPU) == "float32"
    assert resolve_precision("bfloat16", CPU) == "bfloat16"


def test_an_emulated_precision_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    assert describe_precision("bfloat16", CPU) == "bfloat16 (emulated: float32 is faster on this device)"
    assert describe_precision("float32", CPU) == "float32"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert describe_precision("bfloat16", CPU) == "bfloat16"


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_autocast_computes_in_the_precision(precision: str, dtype: torch.dtype) -> None:
    with autocast(precision, CPU):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype
    assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32


def test_sizes_beyond_the_memory_are_refused_without_asking_for_it() -> None:
    total = total_memory()
    assert 0 < total <= psutil.virtual_memory().total
    check_memory(total, "what fits")
    with pytest.raises(InputError, match=r"^--image-size is 100000: an image takes 1,048,576\.0 GiB; expected at most"):
        check_memory(2**50, "--image-size is 100000: an image")
