"""What the operating system reports on the memory of this process."""

from __future__ import annotations

import resource
import sys

from harness.host.processor import PROC, read_text

__all__ = ["peak_memory_bytes"]


def peak_memory_bytes() -> int:
    """Return the most that this process held in memory so far."""
    for line in (read_text(PROC / "self" / "status") or "").splitlines():
        if line.startswith("VmHWM:"):  # of this process image alone; ru_maxrss may carry over what came before exec
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
