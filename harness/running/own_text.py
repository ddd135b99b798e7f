"""What full depth would have chosen along the completions of one block of samples, asked outside measured windows.

A prompt is read once for all operating points, as long as there is room to keep it; a completion that came before costs
nothing. Full depth's own completion is its choice by definition, and is not read again.
"""

from __future__ import annotations

from dataclasses import replace

from harness.contracts import Sample
from harness.decoding.engine import Engine
from harness.decoding.generation import Generation
from harness.decoding.teacher_forcing import TeacherForcing
from harness.errors import ModelError
from harness.running.completions import Outcome
from harness.running.operating_points import OperatingPoint

__all__ = ["OwnText"]

KEPT_BYTES = 1 << 30
"""Memory that the keys and values of a block's prompts may take; prompts beyond it are read for each completion."""

Ids = tuple[int, ...]


class OwnText:
    """Full depth's choices in one block.

    Args:
        engine: of the model, in the run's first weights format.
        full: the run's first operating point, full depth in it.
    """

    def __init__(self, engine: Engine, full: OperatingPoint) -> None:
        self._engine, self._format = engine, full.weights_format
        self._prompts: dict[str, TeacherForcing] = {}
        self._known: dict[tuple[str, Ids], Ids] = {}

    def of(self, point: OperatingPoint, outcome: Outcome) -> Outcome:
        """Return what an operating point made of a sample with full depth's choices along it; a failure as it is.

        Where full depth makes no choice, since its logits are not finite, the sample fails.
        """
        sample, made = outcome.sample, outcome.made
        if not isinstance(made, Generation):
            return outcome
        generated = tuple(made.token_ids)
        known = (sample.sample_id, generated)
        never_exits = not point.record.exit_points or point.record.never_exits
        if never_exits and point.weights_format == self._format:
            self._known[known] = generated
        elif known not in self._known:
            try:
                self._known[known] = tuple(self._prompt(sample).choices(generated))
            except ModelError as error:
                return replace(outcome, made=f"full depth along its text: {error}")
        return replace(outcome, full_depth_ids=self._known[known])

    def _prompt(self, sample: Sample) -> TeacherForcing:
        found = self._prompts.get(sample.sample_id)
        if found is None:
            found = TeacherForcing(self._engine, sample.prompt_ids, sample.max_new_tokens)
            if found.nbytes + sum(kept.nbytes for kept in self._prompts.values()) <= KEPT_BYTES:
                self._prompts[sample.sample_id] = found
        return found
