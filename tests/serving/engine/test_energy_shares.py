"""Shares of energy: together what was measured, each for the time it ran."""

from __future__ import annotations

import pytest

from harness.contracts import EnergyReading
from harness.errors import MeterError
from harness.serving.worker import EnergyShares


class Scripted:
    """A meter that reads given joules, window by window."""

    source, description, sensor_period_s = "rapl", "scripted", None

    def __init__(self, *energies_j: float | Exception | None) -> None:
        self.energies_j, self.open = list(energies_j), False

    def begin(self) -> None:
        assert not self.open
        self.open = True

    def end(self) -> EnergyReading:
        assert self.open
        self.open = False
        value = self.energies_j.pop(0)
        if isinstance(value, Exception):
            raise value
        return EnergyReading(value, "rapl", "package", 1.0, 1.0)

    def close(self) -> None: ...


def test_those_who_run_together_share_in_equal_parts() -> None:
    shares = EnergyShares(Scripted(4.0, 6.0, 1.0))
    shares.begin(0)  # 4 J alone
    shares.begin(1)  # 6 J together
    assert shares.end(0) == 7.0
    assert shares.end(1) == 4.0  # 3 J, and 1 J alone


def test_nothing_is_measured_while_nobody_runs() -> None:
    meter = Scripted(1.0, 2.0)
    shares = EnergyShares(meter)
    shares.begin(0)
    assert shares.end(0) == 1.0
    assert not meter.open
    shares.begin(0)
    assert shares.end(0) == 2.0


def test_a_missing_number_is_missing_and_never_zero() -> None:
    shares = EnergyShares(Scripted(None, 2.0, 5.0))
    shares.begin(0)
    shares.begin(1)
    assert shares.end(0) is None
    assert shares.end(1) == 6.0


def test_a_sensor_that_fails_ends_the_numbers_and_not_the_server() -> None:
    shares = EnergyShares(Scripted(1.0, MeterError("gone")))
    shares.begin(0)
    shares.begin(1)
    assert shares.end(0) is None
    assert shares.end(1) is None
    assert shares.source == "none"
    shares.begin(2)
    assert shares.end(2) is None


def test_a_row_nobody_asks_about_is_forgotten() -> None:
    meter = Scripted(1.0)
    shares = EnergyShares(meter)
    shares.begin(0)
    shares.forget([0, 1])
    assert not meter.open
    assert shares.end(0) is None


@pytest.mark.parametrize("rows", [2, 5])
def test_shares_add_up(rows: int) -> None:
    energies = [float(n + 1) for n in range(2 * rows - 1)]
    shares = EnergyShares(Scripted(*energies))
    for row in range(rows):
        shares.begin(row)
    assert sum(shares.end(row) or 0 for row in range(rows)) == pytest.approx(sum(energies))
