"""Who completes the samples of an operating point: the engine, or a black box beside it.

A session opens the same windows for both and asks a runner to fill them; what of a window's readings speaks of its
operating point is the runner's to say. Outside the windows, the engine says what full depth would have chosen along
what was generated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeAlias
from zlib import crc32

from harness.contracts import Answer, BlackBox, Cursor, Meter, NamedStop, Sample
from harness.contracts.meters import is_measured
from harness.contracts.stops import spelled_prompt
from harness.decoding.engine import Engine
from harness.decoding.generation import Generation
from harness.decoding.teacher_forcing import TeacherForcing
from harness.errors import HarnessError, ModelError, is_out_of_memory, reason
from harness.records import WindowRecord
from harness.running.completions import Outcome
from harness.running.operating_points import OperatingPoint
from harness.running.plan import Plan, PlannedTask

Made: TypeAlias = Generation | Answer | str
"""The completion of a sample, or why there is none."""


class Runner:
    """Completes batches of samples at the operating points that are its own."""

    def prepare(self, point: OperatingPoint) -> None:
        """Load or make what an operating point runs on, before anything is measured."""

    def rehearse(self, planned: PlannedTask, point: OperatingPoint, batch: Sequence[Sample]) -> None:
        """Do what belongs to an operating point and not into its window."""

    def complete(self, planned: PlannedTask, point: OperatingPoint, batch: Sequence[Sample]) -> Sequence[Made]:
        """Complete a batch, inside a window; one that fails says why, and the others stand."""
        raise NotImplementedError

    def counted(self, window: WindowRecord, point: OperatingPoint) -> WindowRecord:
        """Return a window's record with those readings alone that speak of the operating point."""
        return window

    def close(self) -> None:
        """Let go of what it holds."""


def runners(plan: Plan, engines: Mapping[str, Engine], meter: Meter) -> Mapping[str, Runner]:
    """Return the runner of each operating point, by its name.

    Args:
        plan: what runs.
        engines: by weights format.
        meter: opens the windows.
    """
    engine = EngineRunner(plan, engines)
    return {
        point.name: BlackBoxRunner(plan, point.strategy, meter) if isinstance(point.strategy, BlackBox) else engine
        for point in plan.points
    }


class EngineRunner(Runner):
    """The engine, in the weights format of each operating point.

    Args:
        plan: what runs.
        engines: by weights format.
    """

    def __init__(self, plan: Plan, engines: Mapping[str, Engine]) -> None:
        self._plan, self._engines = plan, engines
        self._rehearsed: dict[tuple[str, str, str], tuple[list[int], ModelError | None]] = {}

    def prepare(self, point: OperatingPoint) -> None:
        """Make the cheap heads that it reads."""
        heads = point.strategy.cheap_heads()
        self._engines[point.weights_format].prepare(heads if point.lossless is None else (*heads, point.lossless.head))

    def rehearse(self, planned: PlannedTask, point: OperatingPoint, batch: Sequence[Sample]) -> None:
        """Let a strategy that looks at the answer do so; its exits are replayed in the window."""
        keys = [(planned.record.name, point.name, sample.sample_id) for sample in batch]
        if not point.strategy.upper_bound or all(key in self._rehearsed for key in keys):
            return
        for key, sample, made in zip(keys, batch, self._decode(planned, point, batch), strict=True):
            layers = self._plan.model.info.num_layers
            stops = made.first_stops(layers)
            rest = sample.max_new_tokens - len(stops)  # where it failed the replay may go on
            self._rehearsed[key] = [*stops, *[layers] * rest], made.failure

    def complete(self, planned: PlannedTask, point: OperatingPoint, batch: Sequence[Sample]) -> Sequence[Made]:
        """Decode a batch together."""
        try:
            decoded = (self._replay if self._is_known(planned, point, batch) else self._decode)(planned, point, batch)
        except ModelError as error:
            return [str(error)] * len(batch)
        return [made if made.failure is None else str(made.failure) for made in decoded]

    def _is_known(self, planned: PlannedTask, point: OperatingPoint, batch: Sequence[Sample]) -> bool:
        return all((planned.record.name, point.name, sample.sample_id) in self._rehearsed for sample in batch)

    def _replay(self, planned: PlannedTask, point: OperatingPoint, batch: Sequence[Sample]) -> list[Generation]:
        known = [self._rehearsed[planned.record.name, point.name, sample.sample_id] for sample in batch]
        replayed = self._engines[point.weights_format].replay(
            [sample.prompt_ids for sample in batch],
            [layers for layers, _ in known],
            kv=point.kv,
            max_new_tokens=[sample.max_new_tokens for sample in batch],
            stop=planned.stop,
            eos_token_ids=self._plan.model.tokenizer.eos_token_ids,
            lossless=point.lossless,
            rules=self._rules(planned, point, batch),
        )
        failures = (failure for _, failure in known)
        return [replace(made, failure=why or made.failure) for made, why in zip(replayed, failures, strict=True)]

    def _decode(self, planned: PlannedTask, point: OperatingPoint, batch: Sequence[Sample]) -> list[Generation]:
        return self._engines[point.weights_format].decode(
            [sample.prompt_ids for sample in batch],
            point.strategy,
            kv=point.kv,
            max_new_tokens=[sample.max_new_tokens for sample in batch],
            seeds=[self._plan.config.seed + crc32(sample.sample_id.encode()) for sample in batch],
            stop=planned.stop,
            eos_token_ids=self._plan.model.tokenizer.eos_token_ids,
            lossless=point.lossless,
            rules=self._rules(planned, point, batch),
        )

    def _rules(self, planned: PlannedTask, point: OperatingPoint, batch: Sequence[Sample]) -> list[NamedStop] | None:
        """Return the stop rule of each sample's completion."""
        if point.stop is None:
            return None
        model, language = self._plan.model, planned.task.language
        device = str(self._engines[point.weights_format].backbone.device)
        return [
            point.stop.start(
                Cursor(sample.prompt_ids, model.tokenizer, language, model.info, device, _code_before(sample))
            )
            for sample in batch
        ]


def _code_before(sample: Sample) -> str | None:
    """Return the code before a gap; ``None`` where the prompt is all there is."""
    return sample.around[0] if any(sample.around) else None


class BlackBoxRunner(Runner):
    """A black box: prompts as text, one request for each, those of a batch at the same time.

    Args:
        plan: what runs.
        asked: the black box.
        meter: opens the windows.
    """

    def __init__(self, plan: Plan, asked: BlackBox, meter: Meter) -> None:
        self._tokenizer, self._asked, self._meter = plan.model.tokenizer, asked, meter
        self._connection = asked.connect()

    def complete(self, planned: PlannedTask, point: OperatingPoint, batch: Sequence[Sample]) -> Sequence[Made]:
        """Ask for every sample of a batch."""
        if len(batch) == 1:
            return [self._ask(planned, batch[0])]
        with ThreadPoolExecutor(len(batch)) as threads:
            return list(threads.map(lambda sample: self._ask(planned, sample), batch))

    def counted(self, window: WindowRecord, point: OperatingPoint) -> WindowRecord:
        """Return it without what is of this process, or of this machine where the black box is elsewhere.

        The black box is what else ran, so that its load contaminates nothing; nor can it be told apart from that of
        other processes.
        """
        flags = tuple(flag for flag in window.flags if flag != "foreign-cpu" or not self._asked.local)
        why = None
        if not self._asked.local:
            why = f"{point.name} is not on this machine, whose energy says nothing of it"
        elif not is_measured(self._meter):
            why = f"{point.name} is another process, of which '{window.energy_source}' knows nothing"
        silent = {"energy_j": None, "energy_reason": why} if why and window.energy_j is not None else {}
        return window.model_copy(update={"flags": flags, **silent})

    def close(self) -> None:
        """Close its connection."""
        self._connection.close()

    def _ask(self, planned: PlannedTask, sample: Sample) -> Made:
        try:
            return self._connection.complete(
                spelled_prompt(self._tokenizer, sample.prompt_ids),
                sample.max_new_tokens,
                lambda text: planned.stop(self._tokenizer.encode(text)),
            )
        except HarnessError as error:
            return str(error)
        except Exception as error:  # a stop rule's, or a plug-in's
            if is_out_of_memory(error):
                raise
            return f"the answer cannot be read: {reason(error)}."


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
