"""The machine of a run: processes, devices, precision and memory.

Only this file and the random streams of mixing name ``torch.distributed``; ``torchrun`` starts several processes. Every
function works for a single process too.
"""

import atexit
import contextlib
import ctypes
import gc
import inspect
import math
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cutmix.errors import InputError

TIMEOUT = 1800.0
"""Seconds that a process waits for the others; the first one alone looks for copies of images and downloads data."""

_LATE = re.compile("timed? ?out", re.I)
_LOST = re.compile(f"gloo|NCCL|pair closure|(?i:{_LATE.pattern})")  # errors of gloo have no type of their own

_NO_BUFFERS: dict[str, Any] = {"forward_sync_buffers": False}
if "forward_sync_buffers" not in inspect.signature(DistributedDataParallel).parameters:  # its name before PyTorch 2.15
    _NO_BUFFERS = {"broadcast_buffers": False}

Made = TypeVar("Made")


@dataclass(frozen=True)
class World:
    """This process among all of a run."""

    rank: int  # number of this process, from 0; the first one writes
    size: int  # number of processes
    device: torch.device  # the device of this process

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0


@contextlib.contextmanager
def processes(device: str = "auto", timeout: float = TIMEOUT) -> Iterator[World]:
    """Join the processes that ``torchrun`` started, if it did, until this one ends.

    ``device`` is a name as of :func:`find_device`; several processes compute on "cpu" or "cuda". InputError is raised
    if another process ends, or does not answer within ``timeout`` seconds.
    """
    size, local_rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    chosen = find_device(device, local_rank if size > 1 else None)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1:
        yield World(0, 1, chosen)
        return
    if chosen.type not in ("cpu", "cuda"):
        raise InputError(f"--device is {device} for {size} processes; expected cpu or cuda, or one process")
    try:
        if not dist.is_initialized():  # a second run in the same processes uses the group of the first
            _join("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo", timedelta(seconds=timeout))
        yield World(dist.get_rank(), size, chosen)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not _LOST.search(str(error)):
            raise
        late = _LATE.search(str(error))
        why = f"did not answer within {timeout:g} seconds (--timeout)" if late else "has ended; see its message"
        raise InputError(f"another of the {size} processes {why}; restart the run with --resume") from error


def _join(backend: str, timeout: timedelta) -> None:
    """Start the process group; CPU tensors and objects travel through gloo, so that votes never wait for a GPU."""
    import torch.distributed.nn.functional  # noqa: F401  its default arguments keep a group that exists at the import

    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    # torchrun keeps its store when it restarts the processes, with the addresses of those that ended
    store = dist.PrefixStore(f"restart-{restarts()}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    atexit.register(_leave)


def _leave() -> None:
    """End the threads of the process group: one that frees a tensor while the interpreter ends aborts the process."""
    gc.collect()  # a parallel model keeps the group too
    dist.destroy_process_group()


def restarts() -> int:
    """Return the number of restarts of the processes by ``torchrun --max-restarts``."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def find_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return the device of a name.

    Args:
        name: "auto" (the first available of CUDA, XPU, MPS and CPU), "cpu", "cuda", "cuda:1", "xpu", "mps".
        local_rank: Number of this process on its machine, which chooses among several devices; None without.

    Raises:
        InputError: If the device does not exist.
    """
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "xpu": torch.xpu.device_count()}
    available["mps"] = int(torch.backends.mps.is_available())
    if name == "auto":
        single = ("cuda", "xpu", "mps", "cpu")
        shared = ("cuda", "cpu")  # for several processes
        name = next(kind for kind in (single if local_rank is None else shared) if available[kind])
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in available:
        raise InputError(f'the device is "{name}"; expected auto, cpu, cuda, cuda:N, xpu or mps')
    if device.type == "cpu":
        return device
    if device.index is not None and local_rank is not None:
        raise InputError(f"the device is {name} for several processes; expected {device.type}, of which each takes one")
    index = device.index if device.index is not None else local_rank or 0
    if index >= available[device.type]:
        raise InputError(f"device {device.type}:{index} does not exist; this machine has {available[device.type]}")
    return torch.device(device.type, index)


def parallel(model: nn.Module, world: World, *, sync_bn: bool = False) -> nn.Module:
    """Return the model that averages its gradients over all processes.

    With ``sync_bn``, batch normalization takes mean and variance over the images of all processes, on GPUs only.
    Buffers are not sent before each forward pass: the first process's are evaluated and saved, see ``send_buffers``.
    """
    if world.size == 1:
        return model
    if sync_bn:
        if world.device.type != "cuda":
            raise InputError(f"--sync-bn is set on {world.device.type}; expected cuda, as PyTorch has it for GPUs only")
        from timm.layers import convert_sync_batchnorm  # PyTorch's own drops the activations of timm's normalizations

        model = convert_sync_batchnorm(model)
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, **_NO_BUFFERS)


def without_sync(model: nn.Module, skip: bool) -> contextlib.AbstractContextManager[Any]:
    """Leave the averaging of gradients to a later backward pass, if ``skip``."""
    model = getattr(model, "_orig_mod", model)  # inside torch.compile
    return model.no_sync() if skip and isinstance(model, DistributedDataParallel) else contextlib.nullcontext()


def any_process(flag: bool, world: World) -> bool:
    """Return whether the flag is set in any process."""
    if world.size == 1:
        return flag
    votes = torch.tensor(int(flag))
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return bool(votes)


class Vote:
    """Whether any process wants to stop: asked after each step, and answered a step later, so that no step waits."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.cast: tuple[torch.Tensor, Any] | None = None

    def ask(self, flag: bool) -> bool:
        """Return the answer to the question before, and ask again; a single process has its answer at once."""
        if self.world.size == 1:
            return flag
        answer, votes = self.answer(), torch.tensor(int(flag))
        self.cast = votes, dist.all_reduce(votes, op=dist.ReduceOp.MAX, async_op=True)
        return answer

    def answer(self) -> bool:
        """Return the answer that is still due; False without one."""
        if self.cast is None:
            return False
        (votes, work), self.cast = self.cast, None
        work.wait()
        return bool(votes)


def average_loss(loss_sum: float, count: int, world: World) -> float:
    """Return the sum of losses over the number of samples, both over all processes."""
    totals = torch.tensor([loss_sum, count], dtype=torch.float64)
    if world.size > 1:
        dist.all_reduce(totals)
    return float(totals[0] / totals[1])


def send_buffers(model: nn.Module, world: World) -> None:
    """Give every process the first one's buffers: running statistics differ, as each saw its own share."""
    if world.size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def gather(value: Any, world: World) -> list[Any]:
    """Return every process's value, in the order of ranks, in each."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def gather_first(value: Any, world: World) -> list[Any] | None:
    """Return every process's value, in the order of ranks, in the first process; None in the others."""
    if world.size == 1:
        return [value]
    values: list[Any] | None = [None] * world.size if world.first else None
    dist.gather_object(value, values)
    return values


def gather_samples(own: list[Made], world: World) -> list[Made] | None:
    """Return the results of all samples in the first process, in order; process r of R has those of r, r + R, …."""
    if (shares := gather_first(own, world)) is None:
        return None
    every: list[Any] = [None] * sum(map(len, shares))
    for rank, share in enumerate(shares):
        every[rank :: world.size] = share
    return every


def from_first(make: Callable[[], Made], world: World) -> Made:
    """Return the first process's result in every process; its ``InputError`` is raised in every process too."""
    if world.size == 1:
        return make()
    sent: list[Any] = [None, None]
    if world.first:
        try:
            sent[0] = make()
        except InputError as error:
            sent[1] = error
    dist.broadcast_object_list(sent)
    if sent[1] is not None:
        raise sent[1]
    return sent[0]


def first_alone(make: Callable[[], Made], world: World) -> Made:
    """Return each process's own result; the first one has it before the others start, which find the files it wrote."""
    own: list[Made] = []
    from_first(lambda: own.append(make()), world)
    return own[0] if own else make()


def check_same_data(fingerprint: str, data: str, world: World) -> None:
    """Check that every process has the same images and labels; machines may have other copies of them."""
    fingerprints = gather(fingerprint, world)
    for rank, other in enumerate(fingerprints):
        if other != fingerprints[0]:
            raise InputError(
                f"process {rank} has other images in {data} than process 0; expected the same data for all "
                f"{world.size} processes"
            )


def count_in_store(key: str) -> int | None:
    """Add 1 to a counter that the processes of a ``torchrun`` share, and return it; None without a shared store."""
    try:
        port, wait = int(os.environ["MASTER_PORT"]), timedelta(seconds=5)
        store = dist.TCPStore(os.environ["MASTER_ADDR"], port, is_master=False, timeout=wait)
        return store.add(key, 1)
    except (KeyError, ValueError, RuntimeError):
        return None


# ---- precision ----

Precision = Literal["float32", "tf32", "bfloat16", "float16"]
_HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_precision(
    precision: Literal["auto"] | Precision, device: torch.device, model: nn.Module | None = None
) -> Precision:
    """Return the precision of the computation.

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
    if device.type != "cpu":  # Apple's GPUs: only from their second generation on, which PyTorch does not tell
        return False
    return _cpu_has("avx512_bf16", "amx_bf16")


def _cpu_has(*instructions: str) -> bool:
    """Return whether the CPU has one of these instructions, and oneDNN is not told to stay below them."""
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper().endswith(("SSE41", "AVX", "VNNI", "AVX2", "AVX512_CORE")):
        return False
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in instructions)


def describe_precision(precision: str, device: torch.device) -> str:
    """Return a resolved precision in words; an emulated one is named as such."""
    if device.type == "mps":  # which of Apple's GPUs emulate, PyTorch does not tell
        return precision
    emulated = precision == "bfloat16" and not multiplies_bfloat16(device)
    emulated |= precision == "float16" and device.type == "cpu" and not _cpu_has("avx512_fp16", "amx_fp16")
    return f"{precision} (emulated: float32 is faster on this device)" if emulated else precision


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context of a forward pass in a resolved precision."""
    return torch.autocast(device.type, _HALF.get(precision, torch.bfloat16), enabled=precision in _HALF)


@contextlib.contextmanager
def training_attention(precision: str, device: torch.device) -> Iterator[None]:
    """Leave out PyTorch's fused attention for CPUs in bfloat16 in a training step; restore the flag.

    Its backward pass is so slow on short sequences that a step of DeiT-T takes 1.4 times as long with 17 tokens and 1.3
    times with 65; with 257 tokens the two are equal (benchmarks/training.py --only attention).
    """
    if device.type != "cpu" or precision != "bfloat16":
        yield
        return
    flags = torch.backends.cuda  # the CPU's kernel has the flag of CUDA's
    before = flags.flash_sdp_enabled()
    try:
        flags.enable_flash_sdp(False)
        yield
    finally:
        flags.enable_flash_sdp(before)


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
    """Let glibc keep the memory that a training step frees for the next step, in this process.

    By default glibc returns large blocks to the system and requests them again, page by page, in each step: about a
    tenth of the CPU time on small images (benchmarks/training.py). 32 MiB is the largest block that every version can
    keep. With another C library, nothing happens.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD: smaller blocks come from the heap
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD: the heap shrinks only when so much of it is free


def check_memory(size: float, what: str) -> None:
    """Refuse more bytes than this machine can hold, before any memory is allocated.

    ``what`` starts the sentence: the flag, its value and its product, e.g. "--image-size is 100000: an image".
    """
    limit = total_memory()
    if size > limit:
        raise InputError(f"{what} takes {size / 2**30:,.1f} GiB; expected at most this machine's {limit / 2**30:,.1f}")


def total_memory() -> float:
    """Return the bytes of main memory that processes may use; infinity if the system does not tell."""
    sizes = [math.inf]
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):  # "max" without a limit
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(size for size in sizes if size > 0)
