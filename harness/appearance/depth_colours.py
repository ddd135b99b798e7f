"""Colours of depth: viridis (van der Walt and Smith 2015), shallow bright and deep dark.

Perceptually uniform, so that equal steps of depth look like equal steps, and monotonic in lightness, so that it reads
without colour vision and in print.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

__all__ = ["Shade", "contrast", "depth_colour", "depth_shade"]

_VIRIDIS = (
    "#fde725", "#d8e219", "#addc30", "#84d44b", "#5ec962", "#3fbc73", "#28ae80", "#1fa088", "#21918c", "#26828e",
    "#2c728e", "#33638d", "#3b528b", "#424086", "#472d7b", "#48186a", "#440154",
)  # fmt: skip
"""From its bright end to its dark end, in 16 equal steps."""

Shade = tuple[str, str]
"""A ground and the ink that reads on it, hexadecimal."""

_DARK, _LIGHT = "#000000", "#ffffff"


def depth_colour(share: float) -> str:
    """Return the colour of a share of a model's layers, hexadecimal; shares outside 0…1 count as the nearest end."""
    place = min(max(share, 0.0), 1.0) * (len(_VIRIDIS) - 1)
    low, high = list(pairwise(_VIRIDIS))[min(int(place), len(_VIRIDIS) - 2)]
    part = place - min(int(place), len(_VIRIDIS) - 2)
    mixed = (round(a + (b - a) * part) for a, b in zip(_channels(low), _channels(high), strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


@lru_cache(maxsize=1024)
def depth_shade(layer: int, num_layers: int) -> Shade:
    """Return ground and ink of a token that ran so many of a model's layers; their contrast is at least 4.5 to 1."""
    ground = depth_colour((layer - 1) / max(1, num_layers - 1))
    return ground, max((_DARK, _LIGHT), key=lambda ink: contrast(ink, ground))


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours, 1…21 (WCAG 2.1)."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    linear = [
        channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4
        for channel in (value / 255 for value in _channels(colour))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
