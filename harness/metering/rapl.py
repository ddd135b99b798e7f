"""Energy of the CPU packages, from the RAPL counters that Linux shows under ``powercap``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import MeterError
from harness.metering.clock import SYSTEM_CLOCK, Clock
from harness.metering.zeus_window import ZeusMeter

RAPL_PERIOD_S = 0.001
"""RAPL counters are updated about every millisecond (Intel SDM vol. 3B, "RAPL Interfaces")."""

POWERCAP = (Path("/sys/class/powercap/intel-rapl"), Path("/zeus_sys/class/powercap/intel-rapl"))
"""Where zeus looks, in its order; the second is its mount point inside a container."""


@dataclass(frozen=True, slots=True)
class Zone:
    """One top-level RAPL zone.

    Attributes:
        index: zeus' number for it: its place among the top-level zones.
        name: what the kernel calls it, for example ``package-0`` or ``psys``.
    """

    index: int
    name: str


class Rapl(ZeusMeter):
    """CPU packages and their memory, by the RAPL counters (Linux, Intel and AMD).

    Whole packages: whatever else runs on them is counted too. The DRAM counter is added where the
    package has one and the scope says so. The ``psys`` zone (the whole platform, packages included)
    is left out, or the packages would be counted twice. A wrap that zeus missed is corrected.

    Args:
        device: ``cpu``.
        tdp_w: not used.
        clock: what times the windows.

    Raises:
        MeterError: there are no counters, or they cannot be opened.
    """

    source = "rapl"
    period_s = RAPL_PERIOD_S

    def __init__(self, *, device: str, tdp_w: float | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        self._zones = package_zones()
        if not self._zones:
            raise MeterError(f"the rapl sensor cannot be opened: {self.probe(device)}. Use --energy estimate or none.")
        super().__init__(device, cpu_indices=[zone.index for zone in self._zones], clock=clock)
        dram = self._first.dram_energy or {}
        self._with_dram = frozenset(zone.index for zone in self._zones if zone.index in dram)
        self._ranges_j = _ranges_j(self._zones)
        self.scope = "cpu package + dram" if self._with_dram else "cpu package"

    @classmethod
    def probe(cls, device: str) -> str | None:
        """Return why the counters cannot be read and how to enable them; ``None`` if they can."""
        if not all(one.startswith("cpu") for one in device.split(",")):
            return f"RAPL counts CPU packages and the work runs on '{device}' (use --energy nvml)"
        root = _root()
        if root is None:
            return (
                f"{POWERCAP[0]} is absent: a virtual machine hides the host's counters, or the kernel module is not "
                "loaded (on bare metal run `sudo modprobe intel_rapl_msr`)"
            )
        if not package_zones():
            return f"{root} has no package zone (on bare metal run `sudo modprobe intel_rapl_msr`)"
        if "ZEUSD_SOCK_PATH" in os.environ or "ZEUSD_HOST_PORT" in os.environ:
            return None  # zeus asks its daemon, which reads the counters as root
        # zeus opens every zone, those that are left out here as well
        counters = [*root.glob("intel-rapl:*/energy_uj"), *root.glob("intel-rapl:*/intel-rapl:*/energy_uj")]
        if not all(os.access(counter, os.R_OK) for counter in counters):
            return f"the counters are readable by root only (run `sudo chmod -R a+r {root}`, or run as root)"
        return None

    @property
    def description(self) -> str:
        """One line: zones, scope, tick."""
        names = ", ".join(zone.name for zone in self._zones)
        return (
            f"RAPL counters of {names}: {self.scope}, everything that runs there, "
            f"ticks about every {self.period_s * 1000:g} ms"
        )

    def _joules(self, measurement: Any) -> Mapping[str, float | None]:
        package, dram = measurement.cpu_energy or {}, measurement.dram_energy or {}
        joules = {zone.name: package.get(zone.index) for zone in self._zones}
        joules |= {f"{zone.name} dram": dram.get(zone.index) for zone in self._zones if zone.index in self._with_dram}
        return joules


def package_zones() -> tuple[Zone, ...]:
    """Return the package zones of this machine with zeus' numbers; empty without RAPL."""
    root = _root()
    if root is None:
        return ()
    zones = (Zone(index, _name(path)) for index, path in enumerate(_numbered(root)))
    return tuple(zone for zone in zones if zone.name.startswith("package"))


def _ranges_j(zones: Sequence[Zone]) -> dict[str, float]:
    """Return how far each counter counts before it starts again at zero; those the kernel does not say are left out.

    zeus watches for wraps from a helper process and adds them; when the helper comes late, the difference
    is negative by exactly this much.
    """
    root = _root()
    if root is None:
        return {}
    numbered = _numbered(root)
    ranges: dict[str, float] = {}
    for zone in zones:
        folder = numbered[zone.index]
        folders = {zone.name: folder}
        folders |= {f"{zone.name} dram": part for part in folder.glob(f"{folder.name}:*") if _name(part) == "dram"}
        for name, place in folders.items():
            with suppress(OSError, ValueError):
                ranges[name] = int((place / "max_energy_range_uj").read_text(encoding="utf-8")) / 1e6
    return ranges


def _numbered(root: Path) -> list[Path]:
    """Return the top-level zones in zeus' order."""
    numbered = [path for path in root.glob("intel-rapl:*") if path.name.partition(":")[2].isdigit()]
    return sorted(numbered, key=lambda path: int(path.name.partition(":")[2]))


def _name(zone: Path) -> str:
    return (zone / "name").read_text(encoding="utf-8").strip()


def _root() -> Path | None:
    return next((root for root in POWERCAP if root.exists()), None)
