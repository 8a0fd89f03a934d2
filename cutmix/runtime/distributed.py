"""Several processes: the only file that names ``torch.distributed``. ``torchrun`` starts them.

Every function works for a single process too, and then does nothing.
"""

import atexit
import contextlib
import inspect
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cutmix.errors import InputError

TIMEOUT = 1800.0
"""Seconds that a process waits for the others; the first one alone looks for copies of images and downloads data."""

_LOST = re.compile(r"gloo|NCCL|pair closure|[Tt]imed? ?out")  # in the errors of gloo, which have no type of their own

_NO_BUFFERS: dict[str, Any] = {"forward_sync_buffers": False}
if "forward_sync_buffers" not in inspect.signature(DistributedDataParallel).parameters:  # its name before PyTorch 2.15
    _NO_BUFFERS = {"broadcast_buffers": False}

Made = TypeVar("Made")


@dataclass(frozen=True)
class World:
    """This process among all of a run.

    Attributes:
        rank: Number of this process, from 0; the first one writes.
        size: Number of processes.
        device: Where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0


@contextlib.contextmanager
def processes(device: str = "auto", timeout: float = TIMEOUT) -> Iterator[World]:
    """Join the processes that ``torchrun`` started, if it did, until this one ends.

    Args:
        device: See :func:`find_device`; several processes compute on "cpu" or "cuda".
        timeout: Seconds that this process waits for the others.

    Raises:
        InputError: If the device does not exist or cannot be shared by several processes, or another process ended or
            did not answer in time.
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
        late = re.search("time", str(error), re.I)
        why = f"did not answer within {timeout:g} seconds (--timeout)" if late else "has ended; see its message"
        raise InputError(f"another of the {size} processes {why}; restart the run with --resume") from error


def _join(backend: str, timeout: timedelta) -> None:
    """Start the process group; CPU tensors and objects travel through gloo, so that agreeing never waits for a GPU."""
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    # torchrun keeps its store when it restarts the processes, with the addresses of those that ended
    store = dist.PrefixStore(f"restart-{restarts()}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    atexit.register(dist.destroy_process_group)


def restarts() -> int:
    """Return how often ``torchrun --max-restarts`` has restarted the processes."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def find_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return the device of a name.

    Args:
        name: "auto" (the first of CUDA, XPU, MPS and the CPU that is there), "cpu", "cuda", "cuda:1", "xpu", "mps".
        local_rank: Number of this process on its machine, which chooses among several devices; None without.

    Raises:
        InputError: If there is no such device.
    """
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "xpu": torch.xpu.device_count()}
    available["mps"] = int(torch.backends.mps.is_available())
    if name == "auto":
        single = ("cuda", "xpu", "mps", "cpu")
        shared = ("cuda", "cpu")  # what several processes compute on
        name = next(kind for kind in (single if local_rank is None else shared) if available[kind])
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in available:
        raise InputError(f'the device is "{name}"; expected auto, cpu, cuda, cuda:N, xpu or mps')
    if device.type == "cpu":
        return device
    index = device.index if device.index is not None else local_rank or 0
    if index >= available[device.type]:
        raise InputError(f"device {device.type}:{index} does not exist; this machine has {available[device.type]}")
    return torch.device(device.type, index)


def parallel(model: nn.Module, world: World, *, sync_bn: bool = False) -> nn.Module:
    """Return the model that averages its gradients over all processes.

    Buffers are not sent before each forward pass: the first process's are evaluated and saved, see ``send_buffers``.

    Args:
        model: The model, on its device.
        world: This process among all.
        sync_bn: Whether batch normalisation takes mean and variance over the images of all processes.

    Raises:
        InputError: If ``sync_bn`` is set without GPUs.
    """
    if world.size == 1:
        return model
    if sync_bn:
        if world.device.type != "cuda":
            raise InputError(f"--sync-bn is set on {world.device.type}; expected cuda, as PyTorch has it for GPUs only")
        from timm.layers import convert_sync_batchnorm  # PyTorch's own drops the activations of timm's normalisations

        model = convert_sync_batchnorm(model)
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, **_NO_BUFFERS)


def without_sync(model: nn.Module, skip: bool) -> contextlib.AbstractContextManager[Any]:
    """Leave the averaging of gradients to a later backward pass, if ``skip``."""
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    return model.no_sync() if skip and isinstance(model, DistributedDataParallel) else contextlib.nullcontext()


def any_process(flag: bool, world: World) -> bool:
    """Return whether the flag is set in any process."""
    if world.size == 1:
        return flag
    votes = torch.tensor(int(flag))
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return bool(votes)


class Vote:
    """Whether any process wants to stop: asked after each step, and answered a step later, so that no step waits.

    Args:
        world: This process among all.
    """

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
        """Return the answer that is still due; False where none is."""
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


def from_first(make: Callable[[], Made], world: World) -> Made:
    """Return what the first process makes, in every process; its ``InputError`` is raised in every process too."""
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


def barrier(world: World) -> None:
    """Wait until every process is here."""
    any_process(False, world)


def count_in_store(key: str) -> int | None:
    """Add 1 to a counter that the processes of a ``torchrun`` share, and return it; None if there is no such store."""
    try:
        port, wait = int(os.environ["MASTER_PORT"]), timedelta(seconds=5)
        store = dist.TCPStore(os.environ["MASTER_ADDR"], port, is_master=False, timeout=wait)
        return store.add(key, 1)
    except (KeyError, ValueError, RuntimeError):
        return None
