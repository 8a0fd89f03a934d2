"""The device: arithmetic of the forward pass, and memory."""

import contextlib
import ctypes
import math
import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from cutmix.errors import InputError

Precision = Literal["float32", "tf32", "bfloat16", "float16"]
_HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_precision(
    precision: Literal["auto"] | Precision, device: torch.device, model: nn.Module | None = None
) -> Precision:
    """Return the precision to compute in.

    "auto" is bfloat16 where the device multiplies it in hardware, but float32 for a model with depthwise convolutions
    on a CPU, where these are slower in bfloat16: EfficientNet-Lite0 trains at half the speed.

    Raises:
        InputError: If the device does not have it.
    """
    if precision == "tf32" and device.type != "cuda":
        raise InputError(f"--precision is tf32 on a device of type {device.type}; only CUDA GPUs have TF32")
    if precision != "auto":
        return precision
    if device.type == "cpu" and model is not None and has_depthwise(model):
        return "float32"
    return "bfloat16" if multiplies_bfloat16(device) else "float32"


def has_depthwise(model: nn.Module) -> bool:
    """Return whether a model has a convolution in which each channel is a group of its own."""
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    return any(convolution.groups == convolution.in_channels > 1 for convolution in convolutions)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether a device has bfloat16 instructions; it emulates them otherwise, slower than float32."""
    if device.type in ("cuda", "xpu"):
        return bool(torch.get_device_module(device).is_bf16_supported(including_emulation=False))
    if device.type != "cpu":  # Apple's GPUs: not before their second generation, and there is no way to ask
        return False
    return _cpu_has("avx512_bf16", "amx_bf16")


def _cpu_has(*instructions: str) -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in instructions)


def describe_precision(precision: str, device: torch.device) -> str:
    """Return a resolved precision in words; an emulated one is named as such."""
    emulated = precision == "bfloat16" and not multiplies_bfloat16(device)
    emulated |= precision == "float16" and device.type == "cpu" and not _cpu_has("avx512_fp16", "amx_fp16")
    return f"{precision} (emulated: float32 is faster on this device)" if emulated else precision


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context of a forward pass in a resolved precision."""
    return torch.autocast(device.type, _HALF.get(precision, torch.bfloat16), enabled=precision in _HALF)


def make_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Return the gradient scaler, which keeps float16 gradients from vanishing; disabled in other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "float16")


@contextlib.contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Compute float32 on a CUDA GPU in IEEE arithmetic, or in TF32 where that is the precision; restore the flags.

    PyTorch's own default is TF32 for convolutions and IEEE for matrix products. cuDNN chooses the fastest of its
    algorithms by timing them, once for each shape.
    """
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark
    try:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        cudnn.allow_tf32, cudnn.benchmark = precision == "tf32", True
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32, cudnn.benchmark = before[1:]


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Return whether all values of tensors on one device are finite: a few launches, and a single read."""
    checked = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    return not checked or bool(torch.stack(torch._foreach_norm(checked, math.inf)).isfinite().all())


class Upload:
    """Copies batches to a device; to a CUDA GPU in a stream of its own, so that a copy runs beside the step before it.

    Args:
        device: Where the batches are wanted.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, parts: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """Return tensors of the host, pinned or small, on the device; nothing waits but what uses them."""
        with torch.cuda.stream(self.stream):  # None has no effect
            there = [part.to(self.device, non_blocking=True) for part in parts]
        if self.stream:
            using = torch.cuda.current_stream(self.device)
            using.wait_stream(self.stream)
            for part in there:
                part.record_stream(using)  # its memory is not used again before the step has read it
        return there


def random_state(device: torch.device) -> torch.Tensor | None:
    """Return the state of a device's own generator, (n,) uint8 on the CPU; None for the CPU."""
    if device.type == "cpu":
        return None
    module: Any = torch.get_device_module(device)
    return module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)


def set_random_state(device: torch.device, state: torch.Tensor) -> None:
    """Set the state of the generator of a device other than the CPU."""
    module: Any = torch.get_device_module(device)
    module.set_rng_state(state, *(() if device.type == "mps" else (device,)))


def device_name(device: torch.device) -> str:
    """Return the type of a device and its hardware, e.g. "cuda (NVIDIA H200)" or "cpu (AMD EPYC 9B14, 2 threads)"."""
    if device.type in ("cuda", "xpu"):
        return f"{device.type} ({torch.get_device_module(device).get_device_name(device)})"
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as file:
        name = next(line for line in file if line.startswith("model name")).split(":", 1)[1].strip()
    return f"{device.type} ({name}" + (f", {torch.get_num_threads()} threads)" if device.type == "cpu" else ")")


# ---- memory ----


def keep_freed_memory() -> None:
    """Have glibc keep what a training step frees for the next one, in this process.

    By default it gives large blocks back to the system and gets them again, page by page, in each step: about a tenth
    of a CPU's time on small images (benchmarks/training.py). 32 MiB is the largest block that every version lets one
    keep. With another C library, nothing happens.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD: smaller blocks come from the heap
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD: the heap shrinks only when so much of it is free


def check_memory(size: float, what: str) -> None:
    """Refuse sizes that this machine cannot hold, before any memory is allocated.

    Args:
        size: Bytes that will be needed at least.
        what: The start of the sentence: the flag, its value and what it makes, e.g. "--image-size is 100000: an image".

    Raises:
        InputError: If they are more than the machine's memory.
    """
    limit = total_memory()
    if size > limit:
        raise InputError(f"{what} takes {size / 2**30:,.1f} GiB; expected at most this machine's {limit / 2**30:,.1f}")


def total_memory() -> float:
    """Return the bytes of main memory that processes here may use; infinity where the system does not tell."""
    sizes = [math.inf]
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):  # "max" without a limit
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(size for size in sizes if size > 0)
