"""Counter readings from a file instead of a sensor: for tests, demonstrations, and readings somebody sent.

What a run says of a replayed meter is ``replay``, never the sensor it was recorded from, and that it is not measured:
the joules do not belong to the work that runs now.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

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
    times_s: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] | None = None
    ranges_j: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _times_fit(self) -> Self:
        if self.times_s is not None:
            if len(self.times_s) != len(self.readings):
                raise ValueError(f"{len(self.readings)} readings have {len(self.times_s)} times")
            if list(self.times_s) != sorted(self.times_s):
                raise ValueError("times_s must not run backwards")
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a JSON file."""
        return read_model(path, cls, MeterError, _USAGE, "recording of a meter", finite=False)


class Replay(CounterMeter):
    """Recorded counter readings in place of a sensor: ``--energy replay:FILE``. Never a measurement.

    The file is JSON, one reading for each window edge in joules, a string where the sensor failed::

        {"scope": "cpu package", "period_s": 0.001, "ranges_j": {"package-0": 262143.3},
         "readings": [{"package-0": 262140.1}, {"package-0": 3.2}, "the device was unplugged"]}

    ``ranges_j`` are joules after which a counter starts again at zero; ``NaN`` and ``Infinity`` are readings. With
    ``times_s`` (seconds since the meter was opened, one for each reading) the readings are ticks, and an edge reads the
    last one before it. A ``psys`` counter never counts. A run has two edges for each idle, warm-up and measured window.
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
        self._opened_s = clock.monotonic_s()
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
        reading = self._at_edge()
        if not isinstance(reading, dict):
            words = f"the recording {self._name} ends here" if reading is None else reading
            raise self._failure(f"failed when a window {edge}", words)
        return {name: value for name, value in reading.items() if not name.startswith(PSYS)}

    def _at_edge(self) -> dict[str, float] | str | None:
        readings: Sequence[dict[str, float] | str] = self._recording.readings
        times_s = self._recording.times_s
        if times_s is None:
            self._next += 1
            return readings[self._next - 1] if self._next <= len(readings) else None
        now_s = self._clock.monotonic_s() - self._opened_s
        if now_s >= times_s[-1] + self.period_s or math.isnan(now_s):
            return None
        return readings[max(0, bisect_right(times_s, now_s) - 1)]


_USAGE = "Write --energy replay:FILE with a JSON file of counter readings (harness show replay)."
