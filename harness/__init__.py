"""A benchmark harness for early-exit decoding of code language models.

``load`` returns a model that generates with any strategy; ``run`` takes a :class:`RunConfig` and returns one row per
task × operating point; ``read`` returns the frames of a run directory; ``columns`` says what their columns mean.
Importing this package is cheap: torch and pandas are loaded when one of these is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.api.columns import columns
    from harness.api.model import load
    from harness.api.runs import read, run
    from harness.config import RunConfig

__all__ = ["RunConfig", "columns", "load", "read", "run"]
__version__ = "0.2.0"

_HOMES = {
    "RunConfig": "harness.config",
    "columns": "harness.api.columns",
    "load": "harness.api.model",
    "read": "harness.api.runs",
    "run": "harness.api.runs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'harness' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
