"""What a run says of other processes before it measures anything."""

from __future__ import annotations

import pytest

from harness.metering.contamination import LoadReading
from harness.running.runner import _warn_of_others


def said(caplog: pytest.LogCaptureFixture, foreign_cpu_s: float, *, span_s: float = 2.0, threads: int = 2) -> list[str]:
    caplog.clear()
    _warn_of_others(LoadReading(span_s, 2, own_cpu_s=1.0, foreign_cpu_s=foreign_cpu_s, stolen_cpu_s=0.0), threads)
    return caplog.messages


def test_others_are_told_with_their_share_and_what_helps(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = said(caplog, 2.0)  # of two cores in two seconds: half, which leaves one core
    assert "other processes take 50% of the cores' time" in line
    assert "Stop them, or use --threads 1; " in line
    (line,) = said(caplog, 2.0, threads=1)
    assert "take 50% of the cores' time. Stop them; windows" in line
    (line,) = said(caplog, 0.4)  # a tenth leaves 1.8 cores: no thread less is the better for it
    assert "10% " in line
    assert "--threads" not in line


def test_a_quiet_machine_a_short_look_and_hidden_counters_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert said(caplog, 0.2) == []  # 5 % is what a window may have before it is flagged
    assert said(caplog, 1.0, span_s=0.9) == []
    _warn_of_others("hidden", 2)
    assert caplog.messages == []
