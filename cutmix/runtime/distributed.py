"""Several processes: the only file that names ``torch.distributed``. ``torchrun`` starts them.

Every function works for a single process too, and then does nothing.
"""

import atexit
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cutmix.errors import InputError


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
def processes(device: str = "auto") -> Iterator[World]:
    """Join the processes that ``torchrun`` started, if it did, until this one ends.

    Args:
        device: See :func:`find_device`; several processes compute on "cpu" or "cuda".

    Raises:
        InputError: If the device does not exist or cannot be shared by several processes.
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
    if not dist.is_initialized():  # a second run in the same processes goes on with the group of the first
        # CPU tensors and objects travel through gloo beside NCCL: agreeing on something never waits for a GPU.
        dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    yield World(dist.get_rank(), size, chosen)


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


def parallel(model: nn.Module, world: World) -> nn.Module:
    """Return the network that averages its gradients over all processes."""
    if world.size == 1:
        return model
    return DistributedDataParallel(model, device_ids=[world.device] if world.device.type == "cuda" else None)


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
