"""Compiled arithmetic of packed weights on a CPU: one matrix times a few rows, and whole layers for a few tokens.

torch multiplies packed matrices well, but each of its operators costs some ten microseconds and empties the caches for
the next; a layer has thirty. What is here runs the layers between two exits in one call, on torch's own threads.
Numba (Lam 2015, doi 10.1145/2833157.2833162) compiles it for the processor at hand when a model is loaded, so that
nobody needs a compiler. Importing Numba takes half a second: only what packs a matrix imports these modules.

Beside what compiles, here are torch's threads and memory in large pages. torch's CPU wheels bring GNU's OpenMP, whose
threads wait by spinning. A second pool beside it would fight for the same cores, so compiled functions run in a
parallel region of the same library (:func:`team`). A token reads all weights once; in pages of four kilobytes the
processor looks up an address for each, which took a quarter of a token's time on a virtual machine
(:func:`in_large_pages`).
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor


@cache
def obstacle() -> str | None:
    """Return why nothing can be compiled on this machine, as a clause; ``None`` where it can."""
    try:
        import llvmlite.binding as llvm
        import numba  # noqa: F401
    except ImportError as error:
        return f"Numba, which compiles its products, cannot be imported ({error})"
    features = llvm.get_host_cpu_features()
    if llvm.get_process_triple().startswith("x86_64") and not (features.get("f16c") and features.get("fma")):
        return "this processor has no fused multiply-adds, or does not widen half precision"
    return None


def once(compile_for: Callable[[type], Any]) -> Callable[[type], Any]:
    """Compile for each kind of weights once in a process, whichever thread asks first; it is kept."""
    made: dict[type, Any] = {}
    lock = threading.RLock()

    @wraps(compile_for)
    def find(bits: type) -> Any:
        with lock:
            if bits not in made:
                made[bits] = compile_for(bits)
            return made[bits]

    return find


def prepare(bits: str) -> None:
    """Compile for a kind of weights, by its name in :mod:`.panels`, in a thread: reading a model waits for the disk."""

    def compiling() -> None:
        from harness.decoding.kernels import arithmetic, panels

        panels.product_of(getattr(panels, bits))
        arithmetic.layers()

    threading.Thread(target=compiling, name=f"compiling {bits}").start()


_LARGE = 2 << 20
_ROOM = 64 << 20  # bytes that are taken at once, so that small matrices share pages
_LINE = 64
_taken: list[Tensor] = []
_lock = threading.Lock()


def in_large_pages(tensor: Tensor) -> Tensor:
    """Return a CPU tensor that nobody has written to, after asking for large pages; others as they are."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or tensor.device.type != "cpu" or tensor.nbytes < 2 * _LARGE:
        return tensor
    start = -(-tensor.data_ptr() // _LARGE) * _LARGE
    size = (tensor.data_ptr() + tensor.nbytes - start) // _LARGE * _LARGE
    if size > 0:  # an answer is not needed: without large pages all is as right
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), advice)
    return tensor


def moved(data: Tensor) -> Tensor:
    """Return a copy of a CPU tensor of bytes beside those that were moved before it, in large pages."""
    with _lock, torch.inference_mode(mode=False):  # whatever made the first of them
        if not _taken or len(_taken[0]) < data.nbytes + _LINE:
            _taken[:] = [in_large_pages(torch.empty(max(_ROOM, data.nbytes + _LINE), dtype=torch.uint8))]
        (free,) = _taken
        free = free[-free.data_ptr() % _LINE :]
        _taken[:] = [free[data.nbytes :]]
        return free[: data.nbytes].view(data.shape).copy_(data)


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
