"""Memory that a process has freed, kept for what it allocates next."""

import ctypes
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # mallopt's names, malloc.h
_LARGEST_KEPT = 1 << 26
_MOST_KEPT = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep what is freed, up to 2 GiB at the end of its heap and in blocks of
    up to 64 MiB; True where that can be set.

    It gives every block above 32 MiB back to the system at once, and smaller ones often. The
    activations of a network are such blocks, and on a virtual machine a page that comes back from
    the system may cost more than the arithmetic that fills it (`benchmarks/memory.py`).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {
        _MMAP_THRESHOLD: _LARGEST_KEPT,
        _TRIM_THRESHOLD: _MOST_KEPT,
        _TOP_PAD: _LARGEST_KEPT,
    }
    return all(mallopt(name, value) == 1 for name, value in settings.items())
