"""Energy and bandwidth: what a window of work cost, and what the memory could have delivered.

Meters register under the entry-point group ``harness.meters``; :func:`open_meter` turns a name into
an open one. Importing this package touches no sensor and loads neither torch nor zeus.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

from harness.contracts import Meter
from harness.errors import MeterError
from harness.metering.contamination import CONTAMINATED, ObservedWindow, Surroundings, observed
from harness.metering.examine import measure_bandwidth
from harness.metering.window import metered
from harness.registry import METERS

__all__ = [
    "CONTAMINATED",
    "ObservedWindow",
    "Surroundings",
    "measure_bandwidth",
    "metered",
    "observed",
    "open_meter",
]

AUTO_ORDER = ("nvml", "rapl", "estimate")
"""Meters that ``auto`` tries, best first: a sensor of the device that works, then the labelled guess."""


def open_meter(choice: str, device: str, tdp_w: float | None = None) -> tuple[Meter, dict[str, str]]:
    """Return an open meter, and why the better ones that ``auto`` passed over are not available.

    A registered class is called with ``device=`` (several joined by commas: all are counted) and ``tdp_w=`` (watts of
    all logical cores); its classmethod ``probe(device) -> str | None``, if it has one, is asked first. What follows a
    colon (``replay:FILE``) is given to it as ``argument=``.
    """
    unavailable: dict[str, str] = {}
    for name in AUTO_ORDER if choice == "auto" else ():
        factory = METERS.load(name)
        reason = _probe(factory, device)
        if reason is None:
            try:
                return _open(name, factory, device, tdp_w), unavailable
            except MeterError as error:
                reason = str(error)
        unavailable[name] = reason
    if unavailable:
        raise MeterError(f"no meter can be opened: {unavailable}. Use --energy none.")
    name, colon, argument = choice.partition(":")
    factory = METERS.load(name)
    if colon and "argument" not in inspect.signature(factory).parameters:
        raise MeterError(f"--energy {choice}: the meter '{name}' takes nothing after a colon. Use --energy {name}.")
    reason = _probe(factory, device)
    if reason is not None:
        raise MeterError(
            f"--energy {choice} cannot measure here: {reason}. "
            "Alternatives: --energy estimate (a labelled guess), --energy none."
        )
    return _open(name, factory, device, tdp_w, **({"argument": argument} if colon else {})), {}


def _probe(factory: object, device: str) -> str | None:
    probe: Callable[[str], str | None] | None = getattr(factory, "probe", None)
    return probe(device) if probe is not None else None


def _open(name: str, factory: Callable[..., object], device: str, tdp_w: float | None, **more: str) -> Meter:
    meter = factory(device=device, tdp_w=tdp_w, **more)
    if not isinstance(meter, Meter):
        raise MeterError(f"the meter '{name}' ({type(meter).__qualname__}) does not implement harness.contracts.Meter.")
    period_s = meter.sensor_period_s
    if period_s is not None and not (math.isfinite(period_s) and period_s > 0):
        meter.close()
        raise MeterError(f"the meter '{name}' says that its sensor ticks every {period_s} s, which is no period.")
    return meter
