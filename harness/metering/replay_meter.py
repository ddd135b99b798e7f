"""Counter readings from a file instead of a sensor: for tests, demonstrations, and readings somebody sent.

What a run says of a replayed meter is ``replay``, never the sensor it was recorded from, and that it is not measured:
the joules do not belong to the work that runs now.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from harness.errors import MeterError
from harness.host.files import read_model
from harness.metering.clock import SYSTEM_CLOCK, Clock
from harness.metering.counters import CounterMeter

PSYS = "psys"
"""Name of the RAPL zone of the whole platform: the packages are in it, so it never counts."""


class Recording(BaseModel):
    """Readings of a counter, in order; what each field means, :class:`Replay` says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recorded_from: str = "a counter"
    scope: str = "unknown"
    period_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.001
    readings: Annotated[tuple[dict[str, float] | str, ...], Field(min_length=1)]
    ranges_j: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a JSON file."""
        return read_model(path, cls, MeterError, _USAGE, "recording of a meter", finite=False)


class Replay(CounterMeter):
    """Recorded counter readings in place of a sensor: ``--energy replay:FILE``. Never a measurement.

    The file is JSON, one reading for each window edge in joules, a string where the sensor failed::

        {"scope": "cpu package", "period_s": 0.001, "ranges_j": {"package-0": 262143.3},
         "readings": [{"package-0": 262140.1}, {"package-0": 3.2}, "the device was unplugged"]}

    ``ranges_j`` are joules after which a counter starts again at zero; ``NaN`` and ``Infinity`` are readings. A
    ``psys`` counter never counts. A run has two edges for each idle, warm-up and measured window.
    """

    source = "replay"

    def __init__(
        self,
        *,
        device: str,
        tdp_w: float | None = None,
        argument: str | None = None,
        recording: Recording | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(device, clock=clock)
        if recording is None:
            if not argument:
                raise MeterError(f"the replay meter needs a recording. {_USAGE}")
            recording = Recording.read(Path(argument))
        self._recording = recording
        self._name = Path(argument).name if argument else "a list"
        self._next = 0
        self._before: Mapping[str, float] = {}
        self.scope, self.period_s, self._ranges_j = recording.scope, recording.period_s, recording.ranges_j
        if isinstance(recording.readings[0], str):
            raise self._failure("cannot be opened", recording.readings[0])

    @property
    def description(self) -> str:
        """One line: where the readings come from, and that they are none of this run."""
        return (
            f"readings replayed from {self._name} (recorded from {self._recording.recorded_from}), not measured here; "
            f"ticks about every {self.period_s * 1000:g} ms"
        )

    def _begin_sensor(self) -> None:
        self._before = self._read("began")

    def _end_counters(self) -> Mapping[str, float | None]:
        before, after = self._before, self._read("ended")
        both = before.keys() & after.keys()  # one that comes or goes has no difference
        return {name: after[name] - before[name] if name in both else None for name in {**before, **after}}

    def _read(self, edge: str) -> Mapping[str, float]:
        readings, place, self._next = self._recording.readings, self._next, self._next + 1
        reading = readings[place] if place < len(readings) else f"the recording {self._name} ends here"
        if isinstance(reading, str):
            raise self._failure(f"failed when a window {edge}", reading)
        return {name: value for name, value in reading.items() if not name.startswith(PSYS)}


_USAGE = "Write --energy replay:FILE with a JSON file of counter readings (harness show replay)."
