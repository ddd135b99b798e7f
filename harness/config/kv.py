"""Names of KV policies in configurations."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import AfterValidator

from harness.errors import did_you_mean
from harness.registry import KV_POLICIES

__all__ = ["KVName", "registered"]


def registered(name: str) -> str:
    """Return the name of a KV policy.

    Raises:
        ValueError: it is not registered.
    """
    if name not in KV_POLICIES:
        known = KV_POLICIES.names()
        raise ValueError(f"unknown KV policy '{name}'.{did_you_mean(name, known)} Known: {', '.join(known)}")
    return name


KVName: TypeAlias = Annotated[str, AfterValidator(registered)]
