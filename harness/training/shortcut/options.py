"""Options of ``harness train shortcut``."""

from __future__ import annotations

from pydantic import Field, field_validator

from harness.training.options import TraceOptions

__all__ = ["ShortcutOptions"]


class ShortcutOptions(TraceOptions):
    """Options of ``harness train shortcut``."""

    ridge: float = Field(default=1e-4, ge=0, allow_inf_nan=False, description="Damping, relative to the mean variance.")

    @field_validator("name")
    @classmethod
    def _found(cls, name: str | None) -> str | None:
        if name is not None and not name.startswith("shortcut"):
            raise ValueError("input should begin with shortcut, since shortcuts are looked for as shortcut*.json")
        return name
