"""The options of loaded strategies as controls of a form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.serving.exit_settings import Loaded

__all__ = ["Control", "controls"]

STEPS = 100
"""A slider has at least so many positions; the field beside it takes any number between its ends."""

LAYER = "layer"
"""An option of this name is a layer at which the model can be left."""


@dataclass(frozen=True, slots=True)
class Control:
    """One option.

    Attributes:
        name: of the option.
        kind: ``range`` (slider and field), ``layer`` (slider and list of exit points), ``number`` (field alone, where
            there are no limits), or ``switch``.
        value: its default.
        low, high: least and greatest value of a ``range``.
        step: of the slider of a ``range``.
        whole: whether only integers are allowed.
        description: what it means.
    """

    name: str
    kind: Literal["range", "layer", "number", "switch"]
    value: int | float | bool
    low: float
    high: float
    step: float
    whole: bool
    description: str

    @property
    def shown(self) -> str:
        """The default, rounded for display. Unchanged, the exact value is sent."""
        return str(self.value) if isinstance(self.value, int) else f"{self.value:.4g}"


def controls(loaded: Loaded, exit_points: Sequence[int]) -> tuple[Control, ...]:
    """Return the controls of a strategy; options that are neither numbers nor switches have none."""
    return tuple(
        _control(loaded, name, value, exit_points)
        for name, value in loaded.options.items()
        if isinstance(value, (int, float))
    )


def _control(loaded: Loaded, name: str, value: int | float, exit_points: Sequence[int]) -> Control:
    description, whole = loaded.descriptions.get(name, ""), isinstance(value, int)
    if isinstance(value, bool):
        return Control(name, "switch", value, 0, 1, 1, True, description)
    if name == LAYER and value in exit_points:
        return Control(name, "layer", value, 0, len(exit_points) - 1, 1, True, description)
    if name not in loaded.limits:
        return Control(name, "number", value, 0, 0, 1, whole, description)
    low, high = (int(end) if float(end).is_integer() else end for end in loaded.limits[name])
    return Control(name, "range", value, low, high, 1 if whole else _step(high - low), whole, description)


def _step(width: float) -> float:
    """Return the power of ten that cuts a width into at least :data:`STEPS` pieces, and at most ten times as many."""
    power = math.floor(math.log10(width / STEPS) + 1e-9) if width > 0 else 0
    return 10**power if power >= 0 else round(10.0**power, -power)
