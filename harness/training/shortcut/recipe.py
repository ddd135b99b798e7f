"""``harness train shortcut``: its options; :mod:`harness.training.shortcut.train_shortcut` does the work."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from harness.contracts.recipes import Trained, TrainingRun
from harness.training.recipe import TraceOptions

__all__ = ["Shortcut"]


class Shortcut(TraceOptions):
    """Fit linear maps from every exit to the last layer, in closed form: an exit head for untuned weights."""

    ridge: Annotated[float, Field(ge=0, allow_inf_nan=False, description="Damping, relative to the mean variance.")] = (
        1e-4
    )

    @field_validator("name")
    @classmethod
    def _found(cls, name: str | None) -> str | None:
        if name is not None and not name.startswith("shortcut"):
            raise ValueError("input should begin with shortcut, since shortcuts are looked for as shortcut*.json")
        return name

    def train(self, run: TrainingRun) -> Trained:
        """Fit; see :func:`harness.training.shortcut.train_shortcut.train_shortcut`."""
        from harness.training.shortcut.train_shortcut import train_shortcut

        result = train_shortcut(self, run)
        rows = [f"| {layer} | {before:.3f} | {after:.3f} |" for layer, (before, after) in result.agreement.items()]
        report = "\n".join(["| exit layer | agreement before | with the maps |", "|--:|--:|--:|", *rows])
        return Trained(report, f"{result.tokens} held-out tokens. The maps are in {result.artefact.path}")
