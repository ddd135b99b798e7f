"""Packages of an extra of pyproject.toml, asked for before any work."""

from __future__ import annotations

import importlib.util

from harness.errors import ConfigError

__all__ = ["NEEDED_BY", "require"]

NEEDED_BY = {
    "cluster": "the ray executor needs",
    "figures": "figures need",
    "hub": "rows of the hub need",
    "leaderboard": "the leaderboard's plot needs",
    "lm-eval": "lm-eval's tasks need",
    "serve": "serving needs",
    "train": "training needs",
}
"""Extra → what it is for, as a sentence begins that goes on with what is missing."""


def require(extra: str, *modules: str, otherwise: str = "") -> None:
    """Refuse to go on without some packages.

    Args:
        extra: that brings them.
        modules: by the names that they are imported under.
        otherwise: a sentence on how to do without.

    Raises:
        ConfigError: one is not installed; names the command that installs it.
    """
    missing = [module.replace("_", "-") for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        are = "which is not" if len(missing) == 1 else "which are not"
        raise ConfigError(
            f"{NEEDED_BY[extra]} {' and '.join(missing)}, {are} installed{f' ({otherwise})' if otherwise else ''}:",
            [f"pip install 'early-exit-harness[{extra}]'"],
        )
