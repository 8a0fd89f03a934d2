"""What the C library is asked for."""

import ctypes
import platform

import pytest

from cutmix.runtime.device import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_large_blocks_come_from_the_heap() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)

    class Info(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "u", "f", "o",
                                                         "d", "k")]  # fmt: skip

    libc.mallinfo2.restype = Info
    keep_freed_memory()
    before = libc.mallinfo2().hblks
    block = libc.malloc(ctypes.c_size_t(16 << 20))
    mapped = libc.mallinfo2().hblks - before
    libc.free(block)
    assert mapped == 0


def test_another_c_library_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    keep_freed_memory()
