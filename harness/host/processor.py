"""The processor as the operating system reports it: cores, quota, clock, governor, hypervisor.

Read from Linux' ``/proc`` and ``/sys``; elsewhere, and wherever a virtual machine or a container hides a
file, the answer is ``None``. Nothing is measured here: a virtual machine repeats what its host told it.

Memory of this process, and memory that is still free, as the operating system reports them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True, slots=True)
class Clock:
    """Present clock of the cores this process may use.

    Attributes:
        mhz: one value per core, megahertz.
        source: ``cpufreq`` (what the kernel set or measured last) or ``cpuinfo`` (in a virtual machine often a
            constant that the host handed over).
    """

    mhz: tuple[float, ...]
    source: str


def usable_cores() -> tuple[int, ...] | None:
    """Return the cores this process may run on; ``None`` where the system does not report them."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None


def core_count() -> int:
    """Return the number of cores this process may run on; else all of the machine's."""
    return len(usable_cores() or ()) or os.cpu_count() or 1


def sibling_sets(sys: Path = SYS) -> tuple[tuple[int, ...], ...]:
    """Return the usable logical CPUs, those of one physical core together; each alone where the system hides that.

    Empty where it does not report them at all.
    """
    cores = usable_cores() or ()
    root = sys / "devices" / "system" / "cpu"
    stated = {core: read_text(root / f"cpu{core}" / "topology" / "thread_siblings_list") or "" for core in cores}
    return tuple(sorted({tuple(sorted({core, *_listed(text)} & set(cores))) for core, text in stated.items()}))


def quota_cores(proc: Path = PROC, sys: Path = SYS) -> float | None:
    """Return how many cores' worth of time the control groups allow; ``None`` without a limit (or without groups)."""
    limits = [limit for limit in _quotas(proc, sys / "fs" / "cgroup") if limit is not None]
    return min(limits, default=None)


def clock(proc: Path = PROC, sys: Path = SYS) -> Clock | None:
    """Return the present clock of every usable core; ``None`` where it is hidden."""
    cores = usable_cores()
    texts = [read_text(folder / "cpufreq" / "scaling_cur_freq") for folder in _core_folders(sys, cores)]
    if texts and all(texts):
        return Clock(tuple(round(int(text) / 1000, 1) for text in texts if text), "cpufreq")
    stated: dict[int, float] = {}
    number = -1
    for line in (read_text(proc / "cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "processor":
            number = int(value)
        elif key.strip() == "cpu MHz":
            stated[number] = round(float(value), 1)
    mhz = tuple(value for core, value in stated.items() if cores is None or core in cores)
    return Clock(mhz, "cpuinfo") if mhz else None


def governors(sys: Path = SYS) -> tuple[str, ...] | None:
    """Return the different frequency governors of the usable cores, sorted; ``None`` where they are hidden."""
    found = {read_text(folder / "cpufreq" / "scaling_governor") for folder in _core_folders(sys, usable_cores())}
    return tuple(sorted(name for name in found if name)) or None


def hypervisor(proc: Path = PROC, sys: Path = SYS) -> str | None:
    """Return the hypervisor's name, or ``unnamed`` when the processor only reports that there is one.

    ``None`` without any sign of one; a hypervisor may hide.
    """
    flagged = any(
        key.strip() == "flags" and "hypervisor" in value.split()
        for key, _, value in (line.partition(":") for line in (read_text(proc / "cpuinfo") or "").splitlines())
    )
    kind = read_text(sys / "hypervisor" / "type")
    dmi = sys / "class" / "dmi" / "id"
    product = " ".join(filter(None, (read_text(dmi / "sys_vendor"), read_text(dmi / "product_name"))))
    if kind:
        return kind
    if product and (flagged or any(word in product.lower() for word in MACHINE_WORDS)):
        return product
    return "unnamed" if flagged else None


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
