"""Energy per request: requests that run at the same time share what is measured equally."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from harness.contracts import Meter

__all__ = ["EnergyShares"]

logger = logging.getLogger(__name__)


class EnergyShares:
    """Cuts time where a request begins or ends, and splits each cut's energy among those that ran in it.

    Shares add up to what was measured while any request ran. A cut shorter than the sensor's tick is imprecise;
    over several requests the errors cancel.

    Args:
        meter: opens the windows; closed by its owner.
    """

    def __init__(self, meter: Meter) -> None:
        self.source = meter.source
        self._meter: Meter | None = meter
        self._running: set[int] = set()
        self._energy_j: dict[int, float | None] = {}
        self._open = False

    def begin(self, row: int) -> None:
        """A request begins in a row."""
        self._cut()
        self._running.add(row)
        self._energy_j[row] = None if self._meter is None else 0.0
        self._start()

    def end(self, row: int) -> float | None:
        """A row's request ended: returns its joules, ``None`` when there is no number."""
        self._cut()
        self._running.discard(row)
        self._start()
        return self._energy_j.pop(row, None)

    def forget(self, rows: Iterable[int]) -> None:
        """End these rows without a reading, if they run."""
        for row in rows:
            if row in self._running:
                self.end(row)

    def _start(self) -> None:
        if self._meter is None or not self._running:
            return
        try:
            self._meter.begin()
            self._open = True
        except Exception as error:  # a meter may be a plug-in
            self._give_up(error)

    def _cut(self) -> None:
        if not self._open or self._meter is None:
            return
        self._open = False
        try:
            used_j = self._meter.end().energy_j
        except Exception as error:  # a meter may be a plug-in
            self._give_up(error)
            return
        for row in self._running:
            before = self._energy_j[row]
            self._energy_j[row] = None if before is None or used_j is None else before + used_j / len(self._running)

    def _give_up(self, error: Exception) -> None:
        """Continue without energy: the completion matters more."""
        logger.warning("energy is not measured from now on: %s", error)
        self._meter, self.source, self._open = None, "none", False
        self._energy_j = dict.fromkeys(self._energy_j)
