"""The extra ``lm-eval``, asked for before any work."""

from __future__ import annotations

import importlib.util

from harness.errors import ConfigError

__all__ = ["require"]


def require() -> None:
    """Refuse to go on without lm-evaluation-harness.

    Raises:
        ConfigError: it is not installed; says how it would be.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("lm-eval is not installed:", ["pip install 'early-exit-harness[lm-eval]'"])
