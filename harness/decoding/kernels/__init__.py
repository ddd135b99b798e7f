"""Compiled arithmetic of packed weights on a CPU: one matrix times a few rows, and whole layers for a few tokens.

torch multiplies packed matrices well, but each of its operators costs some ten microseconds and empties the caches for
the next; a layer has thirty. What is here runs the layers between two exits in one call, on torch's own threads.
Numba (Lam 2015, doi 10.1145/2833157.2833162) compiles it for the processor at hand when a model is loaded, so that
nobody needs a compiler. Importing Numba takes half a second: only what packs a matrix imports these modules.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

__all__ = ["obstacle", "once", "prepare"]


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
    """Compile for a kind of weights, by its name in :mod:`.lanes`, in a thread: reading a model waits for the disk."""

    def compiling() -> None:
        from harness.decoding.kernels import arithmetic, lanes, matrix

        kind = getattr(lanes, bits)
        matrix.product_for(kind)
        arithmetic.layers_for(kind)

    threading.Thread(target=compiling, name=f"compiling {bits}").start()
