"""lm-evaluation-harness: its tasks decoded with early exits, by :class:`EarlyExitLM` or ``harness lm-eval``.

The room is called like the package that it adapts; inside it, ``lm_eval`` is always that package. It needs the extra
``lm-eval``, which is asked for when something of it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.host.libraries import require

if TYPE_CHECKING:
    from harness.lm_eval.model import EarlyExitLM

__all__ = ["EarlyExitLM"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'harness.lm_eval' has no attribute '{name}'")
    require("lm-eval", "lm_eval")
    from harness.lm_eval.model import EarlyExitLM

    return EarlyExitLM
