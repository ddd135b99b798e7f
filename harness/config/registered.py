"""Registered names in configurations."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator

from harness.errors import did_you_mean
from harness.registry import KV_POLICIES, WEIGHTS_FORMATS, Registry

__all__ = ["FormatName", "KVName", "registered"]


def registered(registry: Registry[Any], name: str, also: tuple[str, ...] = ()) -> str:
    """Return a name that stands in a registry, or is one of a few words beside it.

    Raises:
        ValueError: it is neither.
    """
    if name not in registry and name not in also:
        known = (*also, *registry.names())
        raise ValueError(f"unknown {registry.noun} '{name}'.{did_you_mean(name, known)} Known: {', '.join(known)}")
    return name


KVName: TypeAlias = Annotated[str, AfterValidator(partial(registered, KV_POLICIES))]
FormatName: TypeAlias = Annotated[str, AfterValidator(partial(registered, WEIGHTS_FORMATS, also=("auto",)))]
