"""How far one operating point walks: from a configuration to its summary through few rooms, and seldom up again.

The walk is that of the values that say what to run and what was found for it. A run is made, and every function is
noted that is handed one of them, once for each such value, in the order of first calls: whoever finds a model again
walks again. That holds whatever the code looks like, follows plug-ins and callbacks, and counts nothing that is not
run. A value's own methods are no room, unless they hand it on.
"""

from __future__ import annotations

import sys
from itertools import groupby, pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from harness.config import RunConfig, StrategySpec
from harness.contracts import ModelRequest
from harness.models.model import LoadedModel, ResolvedModel
from harness.models.source import ModelSpec
from harness.records import Manifest
from harness.running.operating_points import OperatingPoint
from harness.running.plan import Plan
from harness.running.runner import execute

FOUND = (RunConfig, ModelRequest, ModelSpec, ResolvedModel, LoadedModel, Plan, Manifest)
MANY = (StrategySpec, OperatingPoint)
"""Of which a run has several by nature: they walk together."""
HARNESS = Path(sys.modules["harness"].__path__[0])
FLOORS = ({"contracts", "config", "host", "records", "appearance"}, {"decoding", "models", "metering", "store"})
"""The lower two of the house; reports, which make the summary, are read by themselves."""
ROOMS, CLIMBS = 25, 8


@pytest.mark.slow
def test_an_operating_point_walks_straight_to_its_summary(config: dict[str, Any]) -> None:
    handed: dict[Any, str] = {}
    held = []  # so that no other object gets the identity of one

    def note(frame: FrameType, *_: object) -> None:  # None: lines are not traced
        code = frame.f_code
        if not code.co_filename.startswith(str(HARNESS)):
            return
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        for value in [frame.f_locals.get(name) for name in names if name != "self"]:
            if isinstance(value, FOUND + MANY):
                held.append(value)
                which = type(value) if isinstance(value, MANY) else id(value)
                handed.setdefault((code, which), Path(code.co_filename).relative_to(HARNESS).as_posix())

    strategies = ("confidence:threshold=q50", "fixed:layer=4@lossless")
    before = sys.gettrace()
    sys.settrace(note)
    try:
        execute(RunConfig(strategies=strategies, **config | {"limit": 1}))
    finally:
        sys.settrace(before)
    stays = [room for room, _ in groupby(handed.values())]
    climbs = [f"{below} to {above}" for below, above in pairwise(stays) if _floor(above) > _floor(below)]
    assert len(set(stays)) <= ROOMS, stays
    assert len(climbs) <= CLIMBS, climbs


def _floor(room: str) -> int:
    folder = room.partition("/")[0]
    return next((number for number, rooms in enumerate(FLOORS) if folder in rooms), len(FLOORS))
