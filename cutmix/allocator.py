"""The C library's memory allocator."""

import contextlib
import ctypes


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
