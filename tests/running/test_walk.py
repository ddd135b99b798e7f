"""How far one operating point walks: from a configuration to its summary through few rooms, and seldom up again.

The walk is that of the values that say what to run and what was found for it. A run is made, and every function is
noted that is handed one of them, in the order of first calls: that holds whatever the code looks like, follows plug-ins
and callbacks, and counts nothing that is not run. A value's own methods are no room, unless they hand it on.
"""

from __future__ import annotations

import sys
from itertools import groupby, pairwise
from pathlib import Path
from types import FrameType
from typing import Any

from harness.config import RunConfig, StrategySpec
from harness.contracts import ModelRequest
from harness.models.model import LoadedModel, ResolvedModel
from harness.models.source import ModelSpec
from harness.records import Manifest
from harness.running.operating_points import OperatingPoint
from harness.running.plan import Plan
from harness.running.runner import execute

CARRIED = (
    *(RunConfig, StrategySpec, ModelRequest, ModelSpec, ResolvedModel, LoadedModel, Plan, OperatingPoint, Manifest),
)
HARNESS = Path(sys.modules["harness"].__path__[0])
FLOORS = ({"contracts", "config", "host", "records", "appearance"}, {"decoding", "models", "metering", "store"})
"""The lower two of the house; reports, which make the summary, are read by themselves."""
ROOMS, CLIMBS = 25, 8


def test_an_operating_point_walks_straight_to_its_summary(config: dict[str, Any]) -> None:
    handed: dict[Any, str] = {}

    def note(frame: FrameType, *_: object) -> None:  # None: lines are not traced
        code = frame.f_code
        if code in handed or not code.co_filename.startswith(str(HARNESS)):
            return
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if any(isinstance(frame.f_locals.get(name), CARRIED) for name in names if name != "self"):
            handed[code] = Path(code.co_filename).relative_to(HARNESS).as_posix()

    strategies = ("confidence:threshold=q50", "fixed:layer=4@lossless")
    before = sys.gettrace()
    sys.settrace(note)
    try:
        execute(RunConfig(strategies=strategies, **config))
    finally:
        sys.settrace(before)
    stays = [room for room, _ in groupby(handed.values())]
    climbs = [f"{below} to {above}" for below, above in pairwise(stays) if _floor(above) > _floor(below)]
    assert len(set(stays)) <= ROOMS, stays
    assert len(climbs) <= CLIMBS, climbs


def _floor(room: str) -> int:
    folder = room.partition("/")[0]
    return next((number for number, rooms in enumerate(FLOORS) if folder in rooms), len(FLOORS))
