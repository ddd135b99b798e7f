"""What windows themselves say under a table: flags of those that count, and how many were measured and do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from harness.metering.contamination import CLOCK_CHANGE, CONTAMINATED, FOREIGN_SHARE, STOLEN_SHARE
from harness.metering.counters import INVALID_BELOW_PERIODS, SHORT_BELOW_PERIODS
from harness.metering.pacing import WARMUP_DRIFT
from harness.records import WindowRecord
from reports.summary.measured import Measured

__all__ = ["about_windows"]

FLAGS = {
    "foreign-cpu": f"other processes took more than {100 * FOREIGN_SHARE:g} % of the machine's core-seconds",
    "stolen-cpu": f"the hypervisor gave more than {100 * STOLEN_SHARE:g} % of the machine's core-seconds to others",
    "throttled": "a processor lowered its clock because of heat or its power supply",
    "clock-change": f"the clock differed by more than {100 * CLOCK_CHANGE:g} % between the edges",
    "short-window": f"fewer than {SHORT_BELOW_PERIODS} ticks of the sensor",
    "invalid-window": f"fewer than {INVALID_BELOW_PERIODS} ticks of the sensor, so there is no energy",
}


def about_windows(cells: Sequence[Measured], everything: Sequence[WindowRecord]) -> Iterator[str]:
    """Yield a sentence per flag of the windows that count, and per reason for which others do not."""
    counted = [window for cell in cells for window in cell.windows.values()]
    for flag, count in Counter(flag for window in counted for flag in window.flags).most_common():
        meaning = FLAGS.get(flag)
        yield f"{count} of {len(counted)} windows are flagged '{flag}'{f': {meaning}' if meaning else ''}."
    superseded = [window for window in everything if window.superseded]
    if superseded:
        causes = ", ".join(sorted({flag for window in superseded for flag in window.flags if flag in CONTAMINATED}))
        yield (
            f"{len(superseded)} window(s), idle ones included, were contaminated ({causes}) and measured again "
            "(--strict); superseded, they are kept in windows.jsonl and left out of every number here."
        )
    warm_up = [window for window in everything if window.warmup]
    if any("not-settled" in window.flags for window in warm_up):
        yield (
            f"the machine had not settled when the warm-up ended (no three passes in a row came within "
            f"{100 * WARMUP_DRIFT:g} %): times drift or scatter, which the random order spreads over the operating "
            "points and the intervals show."
        )
