"""The processor as the operating system reports it: cores, quota, clock, governor, hypervisor.

Read from Linux' ``/proc`` and ``/sys``; elsewhere, and wherever a virtual machine or a container hides a
file, the answer is ``None``. Nothing is measured here: a virtual machine repeats what its host told it.

Memory of this process, and memory that is still free, as the operating system reports them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

PROC = Path("/proc")
SYS = Path("/sys")

MACHINE_WORDS = (
    "kvm",
    "qemu",
    "virtualbox",
    "vmware",
    "virtual machine",
    "xen",
    "hvm",
    "bhyve",
    "google compute",
    "ec2",
)
"""In the firmware's product or vendor name, these mark a virtual machine."""


def usable_cores() -> tuple[int, ...] | None:
    """Return the cores this process may run on; ``None`` where the system does not report them."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None


def core_count() -> int:
    """Return the number of cores this process may run on; else all of the machine's."""
    return len(usable_cores() or ()) or os.cpu_count() or 1


def sibling_sets(sys: Path = SYS) -> tuple[tuple[int, ...], ...]:
    """Return the usable logical CPUs, those of one physical core together; each alone where the system hides that."""
    cores = usable_cores() or ()
    root = sys / "devices" / "system" / "cpu"
    stated = {core: read_text(root / f"cpu{core}" / "topology" / "thread_siblings_list") or "" for core in cores}
    return tuple(sorted({tuple(sorted({core, *_listed(text)} & set(cores))) for core, text in stated.items()}))


def quota_cores(proc: Path = PROC, sys: Path = SYS) -> float | None:
    """Return how many cores' worth of time the control groups allow; ``None`` without a limit (or without groups)."""
    limits = [limit for limit in _quotas(proc, sys / "fs" / "cgroup") if limit is not None]
    return min(limits, default=None)


def clock(proc: Path = PROC, sys: Path = SYS) -> tuple[tuple[float, ...], str] | None:
    """Return the present clock of every usable core, megahertz, and who says so; ``None`` where it is hidden."""
    cores = usable_cores()
    texts = [read_text(folder / "cpufreq" / "scaling_cur_freq") for folder in _core_folders(sys, cores)]
    if texts and all(texts):
        return tuple(round(int(text) / 1000, 1) for text in texts if text), "cpufreq"
    stated: dict[int, float] = {}
    for key, value in _cpuinfo(proc):
        if key == "processor":
            number = int(value)
        elif key == "cpu MHz":
            stated[number] = round(float(value), 1)
    mhz = tuple(value for core, value in stated.items() if cores is None or core in cores)
    return (mhz, "cpuinfo") if mhz else None


def governors(sys: Path = SYS) -> tuple[str, ...] | None:
    """Return the different frequency governors of the usable cores, sorted; ``None`` where they are hidden."""
    found = {read_text(folder / "cpufreq" / "scaling_governor") for folder in _core_folders(sys, usable_cores())}
    return tuple(sorted(name for name in found if name)) or None


def hypervisor(proc: Path = PROC, sys: Path = SYS) -> str | None:
    """Return the hypervisor's name, or ``unnamed`` when the processor only reports that there is one."""
    flagged = any(key == "flags" and "hypervisor" in value.split() for key, value in _cpuinfo(proc))
    kind = read_text(sys / "hypervisor" / "type")
    dmi = sys / "class" / "dmi" / "id"
    product = " ".join(filter(None, (read_text(dmi / "sys_vendor"), read_text(dmi / "product_name"))))
    if kind:
        return kind
    if product and (flagged or any(word in product.lower() for word in MACHINE_WORDS)):
        return product
    return "unnamed" if flagged else None


def _cpuinfo(proc: Path) -> Iterator[tuple[str, str]]:
    for line in (read_text(proc / "cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        yield key.strip(), value.strip()


def _core_folders(sys: Path, cores: tuple[int, ...] | None) -> list[Path]:
    root = sys / "devices" / "system" / "cpu"
    folders = {int(path.name[3:]): path for path in root.glob("cpu[0-9]*") if path.name[3:].isdigit()}
    return [path for core, path in sorted(folders.items()) if cores is None or core in cores]


def _listed(text: str) -> Iterator[int]:
    """Numbers of the kernel's lists, such as ``0-1,8``."""
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _quotas(proc: Path, root: Path) -> Iterator[float | None]:
    """Limits of this process' control group and of all above it, in both layouts."""
    for line in (read_text(proc / "self" / "cgroup") or "").splitlines():
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            for folder in _upwards(root, group):
                quota, _, period = (read_text(folder / "cpu.max") or "").partition(" ")
                yield _share(quota, period)
        elif "cpu" in controllers.split(","):
            for folder in _upwards(root / "cpu", group):
                yield _share(read_text(folder / "cpu.cfs_quota_us"), read_text(folder / "cpu.cfs_period_us"))


def _upwards(root: Path, group: str) -> Iterator[Path]:
    parts = [part for part in group.split("/") if part not in ("", "..")]
    for depth in range(len(parts), -1, -1):
        yield root.joinpath(*parts[:depth])


def _share(quota: str | None, period: str | None) -> float | None:
    if not quota or not period or not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None  # "max" and -1 mean no limit
    return int(quota) / int(period)


def read_text(path: Path) -> str | None:
    """Return the stripped text of a small file; ``None`` where it is empty or unreadable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def peak_memory_bytes() -> int:
    """Return the most that this process held in memory so far."""
    for line in (read_text(PROC / "self" / "status") or "").splitlines():
        if line.startswith("VmHWM:"):  # of this process image alone; ru_maxrss may carry over what came before exec
            return int(line.split()[1]) * 1024
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def available_memory_bytes(cgroup: Path = SYS / "fs" / "cgroup") -> int:
    """Return the memory this process could still take, its control group's limit respected."""
    available = int(psutil.virtual_memory().available)
    limit, used = read_text(cgroup / "memory.max"), read_text(cgroup / "memory.current")
    if limit and used and limit != "max":
        available = min(available, int(limit) - int(used))
    return max(0, available)
