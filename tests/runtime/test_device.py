"""The arithmetic of the forward pass."""

import math
from types import SimpleNamespace

import psutil
import pytest
import timm
import torch

from cutmix.errors import InputError
from cutmix.runtime.device import (
    all_finite,
    arithmetic,
    autocast,
    check_memory,
    describe_precision,
    device_name,
    find_device,
    make_scaler,
    processes,
    resolve_precision,
    total_memory,
    training_attention,
)
from cutmix.training.state import random_state, set_random_state

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _whole_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)


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


@pytest.mark.parametrize(
    ("isa", "expected"),
    [("AVX2", "float32"), ("avx512_core", "float32"), ("AVX512_CORE_BF16", "bfloat16"), ("DEFAULT", "bfloat16")],
)
def test_a_cpu_that_onednn_may_not_use_whole_is_a_smaller_one(
    monkeypatch: pytest.MonkeyPatch, isa: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    assert resolve_precision("auto", CPU) == expected


@pytest.mark.parametrize(
    ("model", "device", "expected"),
    [
        ("efficientnet_lite0", "cpu", "float32"), ("convnext_atto", "cpu", "float32"), ("resnet10t", "cpu", "bfloat16"),
        ("resnext26ts", "cpu", "bfloat16"), ("efficientnet_lite0", "cuda", "bfloat16"),
    ],
)  # fmt: skip
def test_auto_is_float32_for_depthwise_convolutions_on_a_cpu(
    model: str, device: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    network = timm.create_model(model, num_classes=2)
    assert resolve_precision("auto", torch.device(device), network) == expected
    assert resolve_precision("bfloat16", torch.device(device), network) == "bfloat16"


def test_an_emulated_precision_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    assert describe_precision("bfloat16", CPU) == "bfloat16 (emulated: float32 is faster on this device)"
    assert describe_precision("float16", CPU) == "float16 (emulated: float32 is faster on this device)"
    assert describe_precision("float32", CPU) == "float32"
    assert describe_precision("bfloat16", torch.device("mps")) == "bfloat16"  # some of them have it
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert describe_precision("bfloat16", CPU) == "bfloat16"


@pytest.mark.parametrize("emulates", [True, False])
def test_a_gpu_that_emulates_bfloat16_computes_in_float32(emulates: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_bf16_supported(including_emulation: bool = True) -> bool:  # as a T4 or V100 answers
        return including_emulation or not emulates

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert resolve_precision("auto", CUDA) == ("float32" if emulates else "bfloat16")
    assert ("emulated" in describe_precision("bfloat16", CUDA)) == emulates


def test_float32_is_ieee_on_a_gpu_and_tf32_goes_by_its_name() -> None:
    def flags() -> tuple[str, bool, bool]:
        backends = torch.backends
        return torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32, backends.cudnn.benchmark

    before = flags()
    for precision, expected in (
        ("float32", ("highest", False)),
        ("bfloat16", ("highest", False)),
        ("tf32", ("high", True)),
    ):
        with arithmetic(precision, CUDA):
            assert flags() == (*expected, True)
        assert flags() == before
    with arithmetic("float32", CPU):
        assert flags() == before
    assert resolve_precision("tf32", CUDA) == "tf32"
    with pytest.raises(InputError, match=r"^--precision is tf32 on a device of type cpu; only CUDA GPUs have TF32$"):
        resolve_precision("tf32", CPU)


@pytest.mark.parametrize(("precision", "fused"), [("bfloat16", False), ("float32", True)])
def test_a_training_step_in_bfloat16_on_a_cpu_has_no_fused_attention(precision: str, fused: bool) -> None:
    kind = getattr(torch, precision)
    parts = torch.randn(3, 4, 2, 17, 16, generator=torch.Generator().manual_seed(0)).to(kind)
    exact, ours = (parts.to(each).requires_grad_() for each in (torch.float64, kind))
    torch.nn.functional.scaled_dot_product_attention(*exact).square().sum().backward()
    with training_attention(precision, CPU), torch.profiler.profile() as seen:
        torch.nn.functional.scaled_dot_product_attention(*ours).square().sum().backward()
    assert any("flash" in one.key for one in seen.key_averages()) == fused
    assert torch.backends.cuda.flash_sdp_enabled()
    assert exact.grad is not None
    torch.testing.assert_close(ours.grad, exact.grad.to(kind), rtol=0.1, atol=0.1 if kind == torch.bfloat16 else 1e-4)


def test_the_loss_is_scaled_in_float16_alone() -> None:
    assert [make_scaler(each, CPU).is_enabled() for each in ("float32", "bfloat16", "float16")] == [False, False, True]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_are_checked_by_one_read(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [torch.randn(3, 4), torch.tensor(7), torch.zeros(0), torch.randn(5).bfloat16(), torch.tensor(2.0)]
    assert all_finite(tensors)
    assert all_finite([])
    reads = 0

    def counted(tensor: torch.Tensor) -> bool:
        nonlocal reads
        reads += 1
        return bool(tensor.item())

    monkeypatch.setattr(torch.Tensor, "__bool__", counted)
    for place in (0, 3, 4):
        broken = [tensor.clone() for tensor in tensors]
        broken[place].view(-1)[-1] = bad
        reads = 0
        assert not all_finite(broken)
        assert reads == 1


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
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


# ---- devices that are not here, faked ----


def fake(monkeypatch: pytest.MonkeyPatch, kind: str) -> dict[str, torch.Tensor]:
    """Make torch report one device of a kind, with a generator whose state is in the result."""
    held = {"state": torch.arange(4, dtype=torch.uint8)}
    takes_device = () if kind == "mps" else (torch.device(kind, 0),)

    def get_rng_state(*device: torch.device) -> torch.Tensor:
        assert device == takes_device
        return held["state"]

    def set_rng_state(state: torch.Tensor, *device: torch.device) -> None:
        assert device == takes_device
        held["state"] = state

    module = SimpleNamespace(
        get_rng_state=get_rng_state, set_rng_state=set_rng_state, is_bf16_supported=lambda including_emulation: True,
        get_device_name=lambda device: "Arc B580", device_count=lambda: 1,
    )  # fmt: skip
    if kind == "mps":
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    else:
        monkeypatch.setattr(torch.xpu, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    return held


@pytest.mark.parametrize(("kind", "precision"), [("mps", "float32"), ("xpu", "bfloat16")])
def test_other_accelerators_have_a_precision_a_name_and_a_generator(
    monkeypatch: pytest.MonkeyPatch, kind: str, precision: str
) -> None:
    held = fake(monkeypatch, kind)
    device = find_device(kind)
    assert device == torch.device(kind, 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert find_device("auto") == device
    assert find_device("auto", local_rank=0) == torch.device("cpu")  # several processes compute on CUDA or the CPU
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert find_device("auto") == torch.device("cuda", 0)
    with pytest.raises(InputError, match="the device is cuda:0 for several processes; expected cuda"):
        find_device("cuda:0", local_rank=1)
    assert resolve_precision("auto", device) == precision
    assert device_name(device).startswith(f"{kind} (")
    assert ("Arc B580" in device_name(device)) == (kind == "xpu")
    assert random_state(CPU) is None
    set_random_state(device, torch.ones(4, dtype=torch.uint8))
    assert torch.equal(held["state"], random_state(device))  # type: ignore[arg-type]
    assert autocast("bfloat16", device).device == kind
    assert autocast("float32", device)._enabled is False


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_other_accelerators_are_for_one_process(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    fake(monkeypatch, kind)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=f"--device is {kind} for 2 processes; expected cpu or cuda"), processes(kind):
        pass
