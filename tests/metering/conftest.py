"""A clock that moves when told to, and a stand-in for zeus at the border where it enters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from harness.metering import sensors


@dataclass
class FakeClock:
    """A :class:`harness.metering.clock.Clock` turned by hand."""

    wall_s: float = 1000.0
    cpu_s: float = 10.0

    def monotonic_s(self) -> float:
        return self.wall_s

    def process_cpu_s(self) -> float:
        return self.cpu_s

    def work(self, wall_s: float, cpu_s: float = 0.0) -> None:
        self.wall_s += wall_s
        self.cpu_s += cpu_s


@dataclass
class FakeMonitor:
    """What harness.metering uses of a ZeusMonitor; ``energy`` is what the next window says."""

    gpu_indices: list[int]
    cpu_indices: list[int]
    energy: dict[str, Any] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    failure: Exception | None = None

    def begin_window(self, key: str, sync_execution: bool = True, restart: bool = False) -> None:
        assert not sync_execution, "the meter synchronises by itself, once"
        self.calls.append("restart" if restart else "begin")
        if self.failure is not None:
            raise self.failure

    def end_window(self, key: str, sync_execution: bool = True) -> SimpleNamespace:
        assert not sync_execution, "the meter synchronises by itself, once"
        self.calls.append("end")
        if self.failure is not None:
            raise self.failure
        nothing = {"time": -1.0, "gpu_energy": {}, "cpu_energy": None, "dram_energy": None, "soc_energy": None}
        return SimpleNamespace(**(nothing | self.energy))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@dataclass
class Monitors:
    """Every monitor that was opened, and what each finds at first."""

    opened: list[FakeMonitor] = field(default_factory=list)
    energy: dict[str, Any] = field(default_factory=dict)
    failure: Exception | None = None

    def open(self, gpu_indices: Sequence[int], cpu_indices: Sequence[int]) -> FakeMonitor:
        monitor = FakeMonitor(list(gpu_indices), list(cpu_indices), dict(self.energy), failure=self.failure)
        self.opened.append(monitor)
        return monitor


@pytest.fixture
def monitors(monkeypatch: pytest.MonkeyPatch) -> Monitors:
    made = Monitors()
    monkeypatch.setattr(sensors, "open_monitor", made.open)
    return made
