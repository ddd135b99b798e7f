"""A benchmark harness for early-exit decoding of code language models.

``run`` takes a :class:`RunConfig` and returns one row per task × operating point as a pandas frame.
Importing this package is cheap; torch and pandas are loaded when ``run`` is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.config import RunConfig
    from harness.running.runner import run

__all__ = ["RunConfig", "run"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "RunConfig":
        from harness.config import RunConfig

        return RunConfig
    if name == "run":
        from harness.running.runner import run

        return run
    raise AttributeError(f"module 'harness' has no attribute '{name}'")
