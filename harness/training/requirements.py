"""Packages of the extra ``train``, asked for before any work."""

from __future__ import annotations

import importlib.util

from harness.errors import ConfigError

__all__ = ["require"]


def require(*modules: str) -> None:
    """Refuse to go on without some modules.

    Raises:
        ConfigError: one is not installed; says how it would be.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} not installed: pip install 'early-exit-harness[train]'")
