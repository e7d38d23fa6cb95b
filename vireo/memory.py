"""Keep the memory that large tensors use instead of giving it back and taking it again; but not in forked processes."""

from __future__ import annotations

import os
import sys
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 1 << 30  # bytes; larger blocks still come from the system, one by one


def keep_memory() -> bool:
    """Let this process keep freed blocks of up to 1 GiB for its next ones, on Linux with glibc.

    By default glibc returns every large block to the system as soon as it is free, and the system hands the
    next one out page by page, zeroed: a network on a CPU then spends up to half of its time on page faults
    (docs/benchmarks.md has the figures). The price is that the process stays as large as it ever was; at its
    largest it is about a tenth larger.

    The command line calls this. A library must not decide it for its host, so ``import vireo`` does not: call
    it yourself, early, in programs that run networks on a CPU. Where the environment tunes the allocator
    (``MALLOC_*_``, ``GLIBC_TUNABLES``, another malloc preloaded), that stands.

    Returns:
        Whether the allocator was told.
    """
    tuned = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES", "LD_PRELOAD"}
    if not sys.platform.startswith("linux") or any(os.environ.get(name) for name in tuned):
        return False
    libc = _glibc()
    return libc is not None and bool(libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST) and libc.mallopt(_M_TRIM_THRESHOLD, -1))


def drop_free_memory() -> None:
    """Give freed blocks back to the system, on Linux with glibc.

    For a forked process: what its parent keeps is of no use to it, but while it has a share in it every page that the
    parent writes to is copied, slowly, and there twice for as long as the process lives.
    """
    libc = _glibc() if sys.platform.startswith("linux") else None
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> Any:
    """The C library; None where it is another one."""
    import ctypes

    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.gnu_get_libc_version  # noqa: B018  # musl has none, and a mallopt that does nothing
    except (OSError, AttributeError):
        return None
    return libc
