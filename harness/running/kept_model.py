"""The model that a process loaded last, kept for the next run that needs the same one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

from harness.models.model import LoadedModel
from harness.running.plan import Plan

__all__ = ["KeptModel"]


class KeptModel:
    """Holds one model; another takes its place, and is loaded when nothing holds the first any more."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._loaded: tuple[LoadedModel, ...] = ()

    def load(
        self, plan: Plan, formats: Sequence[str | None], note: Callable[[str], None] = lambda text: None
    ) -> tuple[LoadedModel, ...]:
        """Return the model of a plan, in several weights formats; read unless it is the one that is kept.

        Raises:
            HarnessError: as :meth:`harness.models.model.ResolvedModel.load_all` has it.
        """
        model = plan.model
        trained = tuple(None if part is None else part.sha256 for part in (model.adapter, model.shortcut))
        seed = model.info.asked.seed if model.info.weights == "random" else None
        key = (model.info, trained, seed, model.devices(plan.device), plan.config.threads, tuple(formats))
        if key != self._key:
            self._key, self._loaded = None, ()
            note(f"loading {model.info.name}")
            self._loaded = model.load_all(plan.device, note, formats)
            self._key = key
        asked = model.info.asked
        return tuple(
            replace(one, resolved=replace(one.resolved, info=replace(one.info, asked=asked))) for one in self._loaded
        )
