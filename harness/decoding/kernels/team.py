"""The threads that torch computes with, lent to compiled functions.

torch's CPU wheels bring GNU's OpenMP, whose threads wait by spinning. A second pool beside it would fight for the same
cores, so compiled functions run in a parallel region of the same library.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

__all__ = ["Team", "team"]

_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Team(NamedTuple):
    """How compiled functions find each other's threads.

    Attributes:
        run: ``run(address of a C function of one pointer, that pointer, threads)`` calls it in so many threads at most.
        size: address of a function that returns how many there are; 0 where a function runs alone.
        member: address of one that returns which of these the caller is.
        barrier: address of one that returns when all have called it.
    """

    run: Callable[[int, int, int], None]
    size: int = 0
    member: int = 0
    barrier: int = 0


def _alone(function: int, parameters: int, _: int) -> None:
    _Body(function)(parameters)


@cache
def team() -> Team:
    """Return torch's threads; where its OpenMP is not GNU's, the calling thread alone."""
    installed = Path(torch.__file__).parent
    path = next((path for folder in ("lib", "../torch.libs") for path in (installed / folder).glob("libgomp*")), None)
    if path is None:
        return Team(_alone)
    library = ctypes.CDLL(str(path))
    parallel = library.GOMP_parallel
    parallel.restype, parallel.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    names = ("omp_get_num_threads", "omp_get_thread_num", "GOMP_barrier")
    addresses = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in names]
    return Team(lambda function, given, threads: parallel(function, given, threads, 0), *addresses)
