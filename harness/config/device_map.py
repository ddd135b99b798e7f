"""Which layers lie on which device: ``auto``, or ``1-16=cuda:0,17-32=cpu``. No torch at import."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, Field

from harness.config.placeholder import Placeholder

__all__ = ["DISK", "DeviceMap", "Span", "parse_device_map"]

DISK = "disk"
"""Layers in a file that is mapped into memory: the CPU multiplies, and lets go of what it needs room for."""

Span: TypeAlias = tuple[int, int, str]
"""First and last layer, from 1, and their device."""

_SPAN = re.compile(rf"(\d{{1,4}})(?:-(\d{{1,4}}))?=(cpu|cuda:\d{{1,3}}|{DISK})", re.ASCII)


def parse_device_map(text: str) -> tuple[Span, ...]:
    """Return what an explicit map says, in the order of the layers; nothing for ``auto``.

    Raises:
        ValueError: it is no map, or names a layer twice.
    """
    if text == "auto":
        return ()
    spans = []
    for part in text.split(","):
        found = _SPAN.fullmatch(part.strip())
        if found is None:
            raise ValueError(f"'{part}' should be LAYERS=DEVICE, such as 17-32=cuda:1, with cpu, cuda:N or {DISK}")
        first, last = int(found[1]), int(found[2] or found[1])
        if not 1 <= first <= last:
            raise ValueError(f"'{part}' names no layers: they count from 1, the first one before the last")
        spans.append((first, last, found[3]))
    spans.sort()
    for (_, last, _), (first, *_) in pairwise(spans):
        if first <= last:
            raise ValueError(f"layer {first} is named twice")
    return tuple(spans)


def _checked(text: str | None) -> str | None:
    if text is not None:
        parse_device_map(text)
    return text


DeviceMap = Annotated[
    str | None,
    AfterValidator(_checked),
    Placeholder("MAP"),
    Field(
        description="Layers beyond --device, for a model that does not fit one: auto (accelerate's plan by free "
        "memory), or LAYERS=DEVICE[,…] with cpu, cuda:N or disk, such as 17-32=cuda:1; the rest stays on --device. "
        "Default: all of it."
    ),
]
