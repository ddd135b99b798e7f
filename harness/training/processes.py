"""Several processes that train one model, as ``torchrun`` and ``accelerate launch`` start them: which one is this?"""

from __future__ import annotations

import os

__all__ = ["is_main", "world_size"]


def is_main() -> bool:
    """Tell whether this is the process that writes files and talks; alone it always is."""
    return os.environ.get("RANK", "0") == "0"


def world_size() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))
