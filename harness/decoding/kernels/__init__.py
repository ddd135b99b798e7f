"""Compiled arithmetic of packed weights on a CPU: one matrix times a few rows, and whole layers for a few tokens.

torch multiplies packed matrices well, but each of its operators costs some ten microseconds and empties the caches for
the next; a layer has thirty. What is here runs the layers between two exits in one call, on torch's own threads.
Numba (Lam 2015, doi 10.1145/2833157.2833162) compiles it for the processor at hand when a model is loaded, so that
nobody needs a compiler. Importing Numba takes half a second: only what packs a matrix imports these modules.
"""

from __future__ import annotations

from functools import cache

__all__ = ["obstacle"]


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
