"""Memory of this process, and memory that is still free, as the operating system reports them."""

from __future__ import annotations

import sys
from pathlib import Path

from harness.host.processor import PROC, read_text

__all__ = ["available_memory_bytes", "peak_memory_bytes"]

MEMINFO = PROC / "meminfo"
CGROUP = Path("/sys/fs/cgroup")


def peak_memory_bytes() -> int:
    """Return the most that this process held in memory so far."""
    for line in (read_text(PROC / "self" / "status") or "").splitlines():
        if line.startswith("VmHWM:"):  # of this process image alone; ru_maxrss may carry over what came before exec
            return int(line.split()[1]) * 1024
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def available_memory_bytes(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """Return the memory this process could still take, its cgroup's limit respected; ``None`` if not readable."""
    found: list[int] = []
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    except OSError:
        pass
    try:
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            found.append(int(limit) - int((cgroup / "memory.current").read_text(encoding="ascii")))
    except OSError:
        pass
    return max(0, min(found)) if found else None
