"""Memory that is given back: large blocks outside the heap while a model is loaded.

glibc keeps what is freed below 32 MiB in its heap, once it has seen such sizes, so that matrices that are packed and
dropped one after the other stay resident. While a model is loaded they are mapped one by one instead, which the system
takes back at once; afterwards the heap serves again, since mapping costs page faults that decoding would feel.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

__all__ = ["large_blocks_apart"]

_THRESHOLD = -3  # M_MMAP_THRESHOLD in malloc.h
_LOADING, _DECODING = 1 << 18, 32 << 20  # bytes; the second is the most that glibc takes


@contextlib.contextmanager
def large_blocks_apart() -> Iterator[None]:
    """Map blocks of 256 KiB and more one by one; does nothing where the C library is not glibc."""
    try:
        library = ctypes.CDLL("libc.so.6")
        mallopt, malloc_trim = library.mallopt, library.malloc_trim
    except (OSError, AttributeError):
        yield
        return
    mallopt(_THRESHOLD, _LOADING)
    try:
        yield
    finally:
        malloc_trim(0)
        mallopt(_THRESHOLD, _DECODING)
