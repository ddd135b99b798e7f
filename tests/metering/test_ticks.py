"""The period of a counter, found by polling: with a clock that moves when told to, and with a real file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.metering import rapl
from harness.metering import sensors as ticks
from harness.metering.sensors import measure_period, measure_ticks, open_counter


class Polled:
    """A counter that steps every ``period_s``; each reading of the clock takes ``read_s``."""

    def __init__(self, period_s: float, read_s: float, first_s: float = 0.0) -> None:
        self.moment_s, self.period_s, self.read_s, self.first_s = first_s, period_s, read_s, first_s

    def now(self) -> float:
        self.moment_s += self.read_s
        return self.moment_s

    def read(self) -> int:
        return int(self.moment_s / self.period_s)


@pytest.mark.parametrize(("period_s", "read_s"), [(0.1, 0.0007), (0.001, 0.00001), (0.02, 0.003)])
@pytest.mark.parametrize("first_s", [0.0, 0.0137])
def test_the_period_is_found_to_one_reading(period_s: float, read_s: float, first_s: float) -> None:
    counter = Polled(period_s, read_s, first_s)
    found = measure_ticks(counter.read, timeout_s=30, now=counter.now)
    assert found.period_s == pytest.approx(period_s, abs=2 * read_s)
    assert (found.intervals, found.reason) == (ticks.TICKS, None)
    assert found.read_s == pytest.approx(read_s, rel=0.2)


def test_the_interval_that_the_beginning_cuts_off_does_not_count() -> None:
    counter = Polled(1.0, 0.01, first_s=0.98)  # the first change comes after 20 ms
    found = measure_ticks(counter.read, ticks=3, timeout_s=30, now=counter.now)
    assert found.period_s == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(("period_s", "moved"), [(1e9, 0), (0.5, 2)])
def test_a_counter_that_hardly_moves_has_no_period(period_s: float, moved: int) -> None:
    counter = Polled(period_s, 0.001)
    found = measure_ticks(counter.read, timeout_s=1.2, now=counter.now)
    assert found.period_s is None
    assert found.reason == f"the counter moved {moved} times in 1.2 s, too few to tell its period"


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "intel-rapl"
    for number, name in enumerate(("psys", "package-0")):
        zone = root / f"intel-rapl:{number}"
        zone.mkdir(parents=True)
        (zone / "name").write_text(name + "\n")
        (zone / "energy_uj").write_text("0")
    monkeypatch.setattr(rapl, "POWERCAP", (tmp_path / "absent", root))
    return root


@pytest.fixture
def ticking(powercap: Path) -> Callable[[str], None]:
    """Let a zone's counter step every 20 ms or so."""

    def begin(zone: str) -> None:
        def tick() -> None:
            new = powercap / "new"
            for value in range(1, 60):
                new.write_text(str(value * 1000))
                new.replace(powercap / zone / "energy_uj")
                time.sleep(0.02)

        threading.Thread(target=tick, daemon=True).start()

    return begin


def test_rapl_polls_the_file_of_the_first_package(ticking: Callable[[str], None]) -> None:
    ticking("intel-rapl:1")
    found = measure_period("rapl", "cpu")
    assert found.period_s is not None, found.reason
    assert 0.015 < found.period_s < 0.2  # a loaded machine sleeps longer


def test_rapl_does_not_poll_psys(ticking: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ticks.measure_ticks, "__kwdefaults__", {**ticks.measure_ticks.__kwdefaults__, "timeout_s": 0.3})
    ticking("intel-rapl:0")
    assert measure_period("rapl", "cpu").period_s is None


def test_a_counter_that_vanishes_is_a_reason(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def read_bytes(self) -> bytes:
            raise OSError("No such device")

    monkeypatch.setattr(ticks, "_package_counter", Gone)
    found = measure_period("rapl", "cpu")
    assert (found.period_s, found.reason) == (None, "its counter failed while it was polled: No such device")


@pytest.mark.parametrize("source", ["estimate", "none", "wattmeter"])
def test_what_has_no_known_counter_is_not_polled(source: str) -> None:
    assert open_counter(source, "cpu") is None
    assert measure_period(source, "cpu").reason == "its counter cannot be polled from here"
