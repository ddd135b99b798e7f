"""Options that come in sets: a preset decides those that are not given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from harness.config.model import Configuration

__all__ = ["WithPresets"]


class WithPresets(Configuration):
    """A configuration some of whose values depend on a preset.

    Attributes:
        presets: preset → option → its value there; an option that a preset leaves out keeps its default.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def under(self, preset: str) -> Self:
        """Return the same with a preset's values for what was not given."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return self.build({**self.presets[preset], **given})
