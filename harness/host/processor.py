"""The processor and memory as the operating system reports them; ``None`` wherever it hides a fact."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

PROC = Path("/proc")
SYS = Path("/sys")

_MACHINES = re.compile(r"kvm|qemu|virtualbox|vmware|virtual machine|xen|hvm|bhyve|google compute|ec2", re.IGNORECASE)
"""Names of vendors and products that mark a virtual machine."""


def usable_cores() -> tuple[int, ...] | None:
    """Return the cores this process may run on; ``None`` where the system does not report them."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None


def core_count() -> int:
    """Return the number of cores this process may run on; else all of the machine's."""
    return len(usable_cores() or ()) or os.cpu_count() or 1


def quota_cores(proc: Path = PROC, sys: Path = SYS) -> float | None:
    """Return how many cores' worth of time the control groups allow; ``None`` without a limit (or without groups)."""
    return min(_quotas(proc, sys / "fs" / "cgroup"), default=None)


def _quotas(proc: Path, root: Path) -> Iterator[float]:
    """Limits of this process' control group and of all above it (version 2)."""
    for line in (read_text(proc / "self" / "cgroup") or "").splitlines():
        group = Path(line.removeprefix("0::/"))
        if line.startswith("0::") and ".." not in group.parts:
            for folder in (group, *group.parents):
                quota, _, period = (read_text(root / folder / "cpu.max") or "").partition(" ")
                if quota.isdigit() and period.isdigit():  # "max" means no limit
                    yield int(quota) / int(period)


def clock() -> tuple[tuple[float, ...], str] | None:
    """Return the present clock of every usable core, megahertz, and who says so; ``None`` where it is hidden.

    ``cpufreq`` says what the kernel set or measured last, ``cpuinfo`` in a virtual machine often a constant.
    """
    cores, found = usable_cores(), psutil.cpu_freq(percpu=True) if hasattr(psutil, "cpu_freq") else []
    mhz = tuple(round(one.current, 1) for core, one in enumerate(found) if cores is None or core in cores)
    source = "cpufreq" if (SYS / "devices/system/cpu/cpu0/cpufreq").is_dir() else "cpuinfo"
    return (mhz, source) if all(mhz) and mhz else None


def governors(sys: Path = SYS) -> tuple[str, ...] | None:
    """Return the different frequency governors of the usable cores, sorted; ``None`` where they are hidden."""
    files = (sys / f"devices/system/cpu/cpu{core}/cpufreq/scaling_governor" for core in usable_cores() or ())
    return tuple(sorted({name for file in files if (name := read_text(file))})) or None


def hypervisor(proc: Path = PROC, sys: Path = SYS) -> str | None:
    """Return the hypervisor's name, or ``unnamed`` when the processor only reports that there is one."""
    flagged = re.search(r"^flags\s*:.*\bhypervisor\b", read_text(proc / "cpuinfo") or "", re.MULTILINE)
    dmi = sys / "class" / "dmi" / "id"
    product = " ".join(filter(None, (read_text(dmi / "sys_vendor"), read_text(dmi / "product_name"))))
    if kind := read_text(sys / "hypervisor" / "type"):
        return kind
    if product and (flagged or _MACHINES.search(product)):
        return product
    return "unnamed" if flagged else None


def multiplies_bfloat16(proc: Path = PROC) -> bool:
    """Tell whether the processor says that it has instructions for products of bfloat16; without, they are slow."""
    flags = r"^(?:flags|Features)\s*:.*\b(?:amx_bf16|avx512_bf16|bf16)\b"
    return re.search(flags, read_text(proc / "cpuinfo") or "", re.MULTILINE) is not None


def read_text(path: Path) -> str | None:
    """Return the stripped text of a small file; ``None`` where it is empty or unreadable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def peak_memory_bytes() -> int:
    """Return the most that this process held in memory so far."""
    if found := re.search(r"^VmHWM:\s*(\d+)", read_text(PROC / "self" / "status") or "", re.MULTILINE):
        return int(found[1]) * 1024  # of this process image alone; ru_maxrss may carry over what came before exec
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def available_memory_bytes(cgroup: Path = SYS / "fs" / "cgroup") -> int:
    """Return the memory this process could still take, its control group's limit respected."""
    available = int(psutil.virtual_memory().available)
    limit, used = read_text(cgroup / "memory.max"), read_text(cgroup / "memory.current")
    if limit and used and limit != "max":
        available = min(available, int(limit) - int(used))
    return max(0, available)
