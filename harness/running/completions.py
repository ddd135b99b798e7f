"""Who completes the samples of an operating point, the engine or a black box beside it, and what is recorded of it.

Outside the windows, where nothing is timed, the engine says what full depth would have chosen along what was generated.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias, cast
from zlib import crc32

from harness.config.rules import start_stop
from harness.contracts import (
    CONTEXT,
    Answer,
    BadRow,
    BlackBox,
    Completion,
    Cursor,
    Keep,
    Meter,
    NamedStop,
    Prefetch,
    Sample,
    Tokenizer,
    common_prefix,
)
from harness.contracts.meters import is_measured
from harness.contracts.stops import spelled_behind, spelled_prompt
from harness.decoding.engine import Engine, EngineSession
from harness.decoding.generation import Generation
from harness.decoding.teacher_forcing import TeacherForcing
from harness.errors import HarnessError, ModelError, reason
from harness.records import AnswerRecord, SampleRecord, WindowRecord, Work
from harness.registry import ran_out_of_memory
from harness.running.operating_points import OperatingPoint
from harness.running.plan import Plan, PlannedTask, shared_fields
from harness.running.scoring import score_sample

Made: TypeAlias = Generation | Answer | str
"""The completion of a sample, or why there is none."""
Rehearsal: TypeAlias = list[tuple[list[int], ModelError | None]]


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
    """Return the runner of each operating point, by its name; engines are by weights format."""
    engine = EngineRunner(plan, engines)
    return {
        point.name: BlackBoxRunner(plan, point.strategy, meter) if isinstance(point.strategy, BlackBox) else engine
        for point in plan.points
    }


class EngineRunner(Runner):
    """The engine, in the weights format of each operating point."""

    def __init__(self, plan: Plan, engines: Mapping[str, Engine]) -> None:
        self._plan, self._engines = plan, engines
        self._sessions: dict[tuple[str, str, str, str], EngineSession] = {}
        self._decided: dict[tuple[str, str, str], tuple[list[int], ModelError | None]] = {}

    def prepare(self, point: OperatingPoint) -> None:
        """Make the cheap heads that it reads."""
        heads = point.strategy.cheap_heads()
        self._engines[point.weights_format].prepare(heads if point.lossless is None else (*heads, point.lossless.head))
        if point.keep is not None:
            self._session(point, point.keep)

    def rehearse(self, planned: PlannedTask, point: OperatingPoint, batch: Sequence[Sample]) -> None:
        """Let a strategy that looks at the answer do so; its exits are replayed in the window.

        Every window opens its documents anew.
        """
        if point.keep is not None:
            self._session(point, point.keep).forget()
        if not point.strategy.upper_bound or self._known(planned, point, batch) is not None:
            return
        layers = self._plan.model.info.num_layers
        for sample, made in zip(batch, self._decode(planned, point, batch), strict=True):
            stops = made.first_stops(layers)
            rest = sample.max_new_tokens - len(stops)  # where it failed the replay may go on
            known = [*stops, *[layers] * rest], made.failure
            self._decided[planned.record.name, point.name, sample.sample_id] = known

    def complete(self, planned: PlannedTask, point: OperatingPoint, batch: Sequence[Sample]) -> Sequence[Made]:
        """Decode a batch together, or one request of an editor session."""
        known = self._known(planned, point, batch)
        try:
            if point.keep is not None and batch[0].session:
                decoded = [self._decode_in_session(planned, point, point.keep, batch[0], known)]
            else:
                decoded = self._decode(planned, point, batch, known)
        except ModelError as error:
            return [str(error)] * len(batch)
        return [made if made.failure is None else str(made.failure) for made in decoded]

    def _known(self, planned: PlannedTask, point: OperatingPoint, batch: Sequence[Sample]) -> Rehearsal | None:
        """Return layers and failure of each sample's rehearsal; ``None`` where one was not rehearsed."""
        found = [self._decided.get((planned.record.name, point.name, sample.sample_id)) for sample in batch]
        known = [one for one in found if one is not None]
        return known if len(known) == len(found) else None

    def _decode(
        self, planned: PlannedTask, point: OperatingPoint, batch: Sequence[Sample], known: Rehearsal | None = None
    ) -> list[Generation]:
        """Decode a batch, or replay its rehearsal."""
        engine, prompts = self._engines[point.weights_format], [sample.prompt_ids for sample in batch]
        same: dict[str, Any] = {
            "kv": point.kv,
            "max_new_tokens": [sample.max_new_tokens for sample in batch],
            "stop": planned.stop,
            "eos_token_ids": self._plan.model.tokenizer.eos_token_ids,
            "lossless": point.lossless,
            "rules": [self._rule(planned, point, sample) for sample in batch],
            "prompt_rule": None if point.prompt is None else point.prompt.rule,
        }
        if known is None:
            return engine.decode(prompts, point.strategy, seeds=[self._seed(sample) for sample in batch], **same)
        replayed = engine.replay(prompts, [layers for layers, _ in known], **same)
        return [replace(made, failure=why or made.failure) for made, (_, why) in zip(replayed, known, strict=True)]

    def _decode_in_session(
        self, planned: PlannedTask, point: OperatingPoint, keep: Keep, sample: Sample, known: Rehearsal | None
    ) -> Generation:
        """Decode a request behind what the session has left, after those that typing overtook.

        In an untimed run these did not come, and there was the time until they came.
        """
        session, spent, idle = self._session(point, keep), [], 0.0
        decode = partial(
            session.decode, sample.session, strategy=point.strategy, seed=self._seed(sample), stop=planned.stop,
            eos_token_ids=self._plan.model.tokenizer.eos_token_ids, lossless=point.lossless,
            max_new_tokens=sample.max_new_tokens, prompt_rule=None if point.prompt is None else point.prompt.rule,
        )  # fmt: skip
        layers, why = known[0] if known is not None else (None, None)
        typing_s, before = sample.typing_s, session.idle.drafted
        for request in sample.overtaken_requests if known is None and not self._plan.config.untimed else ():
            rule = self._rule(planned, point, replace(sample, prompt_ids=request.prompt_ids))
            idle += session.prefetch(request.typing_s)
            started = time.perf_counter()
            decode(prompt=request.prompt_ids, rule=rule, within_s=request.after_s)
            spent.append(time.perf_counter() - started)
            typing_s -= request.typing_s + request.after_s
        idle += session.prefetch(typing_s)
        rule = self._rule(planned, point, sample)
        made = decode(prompt=sample.prompt_ids, rule=rule, exit_layers=layers)
        return replace(
            made, failure=why or made.failure, overtaken_s=tuple(spent), prefetch_s=idle,
            prefetched=session.idle.drafted - before,
        )  # fmt: skip

    def _session(self, point: OperatingPoint, keep: Keep) -> EngineSession:
        """Return where requests are decoded behind one another; points that differ in nothing of it share it."""
        prefetch = cast("Prefetch", point.record.prefetch or "none")
        key = point.weights_format, point.kv, keep, prefetch
        if key not in self._sessions:
            samples = [sample for task in self._plan.tasks for sample in task.data.samples]
            positions = max(
                len(prompt) + sample.max_new_tokens
                for sample in samples
                for prompt in (sample.prompt_ids, *(request.prompt_ids for request in sample.overtaken_requests))
            )
            self._sessions[key] = EngineSession(
                self._engines[point.weights_format], positions, point.kv, keep, prefetch
            )
        return self._sessions[key]

    def _rule(self, planned: PlannedTask, point: OperatingPoint, sample: Sample) -> NamedStop | None:
        """Start the stop rule of an operating point; ``None`` where it has none."""
        model, device = self._plan.model, str(self._engines[point.weights_format].backbone.device)
        before_gap = sample.around[0] if any(sample.around) else None
        language = planned.task.language
        cursor = Cursor(sample.prompt_ids, model.tokenizer, language, model.info, device, before_gap)
        return start_stop(point.stop, cursor)

    def _seed(self, sample: Sample) -> int:
        return self._plan.config.seed + crc32(sample.sample_id.encode())


class BlackBoxRunner(Runner):
    """A black box: prompts as text, one request for each, those of a batch at the same time."""

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

        The black box is what else ran, so that its load contaminates nothing.
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
            if ran_out_of_memory(error):
                raise
            return f"the answer cannot be read: {reason(error)}."


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one sample in one window.

    Attributes:
        came: with a fixed arrival rate, seconds from the window's start to its arrival, and how long it waited.
        full_depth_ids: full depth's choices along what was decoded; empty where nobody asked.
    """

    sample: Sample
    made: Made
    came: tuple[float, float] | None = None
    full_depth_ids: tuple[int, ...] = ()


KEPT_BYTES = 1 << 30
"""Memory that the keys and values of a block's prompts may take; prompts beyond it are read for each completion."""


class OwnText:
    """Full depth's choices in one block: those of the run's first weights format, which its first point has."""

    def __init__(self, engine: Engine, full: OperatingPoint) -> None:
        self._engine, self._format = engine, full.weights_format
        self._prompts: dict[str, TeacherForcing] = {}
        self._known: dict[tuple[str, tuple[int, ...]], tuple[int, ...]] = {}

    def of(self, point: OperatingPoint, outcome: Outcome) -> Outcome:
        """Return an outcome with full depth's choices along it; a failure as it is, or where full depth fails."""
        sample, made = outcome.sample, outcome.made
        if not isinstance(made, Generation):
            return outcome
        generated = tuple(made.token_ids)
        known = (sample.sample_id, generated)
        never_exits = not point.record.exit_points or point.record.never_exits
        if never_exits and point.prompt is None and point.weights_format == self._format:
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


def tokens_of(outcomes: Sequence[Outcome]) -> int | None:
    """Return how many tokens were generated; ``None`` where a black box does not count its own."""
    counts = [
        one.made.tokens if isinstance(one.made, Answer) else len(one.made.token_ids)
        for one in outcomes
        if not isinstance(one.made, str)
    ]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def sample_record(window: WindowRecord, plan: Plan, planned: PlannedTask, outcome: Outcome) -> SampleRecord:
    """Return the record of a sample, scored; a failed one becomes an error record."""
    sample, made = outcome.sample, outcome.made
    base = shared_fields(window, SampleRecord) | shared_fields(sample, SampleRecord)
    if isinstance(made, str):
        return SampleRecord(**base, error=made)
    try:
        if isinstance(made, Answer):
            read = _of_answer(plan, planned, sample, made)
        else:
            read = _of_generation(plan, planned, sample, made)
    except HarnessError:  # a refusal is meant for the whole run
        raise
    except Exception as error:  # the tokenizer's, a protocol's, over this one completion
        if ran_out_of_memory(error):
            raise
        return SampleRecord(**base, error=f"the completion cannot be read and scored: {reason(error)}.")
    arrival_s, queue_s = outcome.came or (None, None)
    if plan.config.untimed:
        read |= {"latency_s": None, "ttft_s": None, "token_times_s": (), "overtaken_s": None, "prefetch_s": None}
    for name in ("latency_s", "ttft_s"):
        read[name] = None if read[name] is None else (queue_s or 0.0) + read[name]
    return SampleRecord(**base, **read, full_depth_ids=outcome.full_depth_ids, arrival_s=arrival_s, queue_s=queue_s)


def _of_answer(plan: Plan, planned: PlannedTask, sample: Sample, made: Answer) -> dict[str, Any]:
    made.text.encode()  # a text that no file can hold breaks here
    token_ids = plan.model.tokenizer.encode(made.text)  # scores of tokens read the text as the run spells it
    return {
        **_scored(planned, sample, made.text, token_ids),
        "latency_s": made.total_s,
        "ttft_s": made.ttft_s,
        "finish_reason": made.finish_reason,
        "answer": AnswerRecord(tokens=made.tokens, model=made.model),
    }


def _of_generation(plan: Plan, planned: PlannedTask, sample: Sample, made: Generation) -> dict[str, Any]:
    tokenizer, token_ids, discarded = plan.model.tokenizer, tuple(made.token_ids), []
    spoken = made.token_ids[:-1] if made.finish_reason == "eos" else made.token_ids
    pieces = token_texts(tokenizer, spoken, sample.prompt_ids)
    for one in made.discarded:  # by a verification; spelled behind the tokens before it
        start = max(0, one.place - CONTEXT)
        before, earlier = spoken[start : one.place], [*sample.prompt_ids[-CONTEXT:], *spoken[:start]]
        texts = token_texts(tokenizer, [*before, *one.token_ids], earlier)[len(before) :]
        discarded.append(replace(one, token_texts=texts))
    "".join((*pieces, *(text for one in discarded for text in one.token_texts))).encode()  # as above
    stopped_by = made.stopped_by
    if made.finish_reason == "stop" and not stopped_by:  # the protocol's rule has its name, or a better one
        stopped_by = str(getattr(planned.stop, "name", planned.record.protocol))
    return {
        **vars(Work.of(made)),
        **_scored(planned, sample, "".join(pieces), token_ids),
        "discarded": tuple(discarded),
        "token_texts": (*pieces, *[""] * (len(token_ids) - len(pieces))),
        "token_ids": token_ids,
        "token_times_s": tuple(round(t, 7) for t in made.token_times_s),
        "latency_s": made.token_times_s[-1],
        "ttft_s": made.token_times_s[0],
        "finish_reason": made.finish_reason,
        "stop_rule": stopped_by,
        "prompt_reused": made.prompt_reused,
        "overtaken": len(made.overtaken_s),
        "overtaken_s": math.fsum(made.overtaken_s) if sample.session else None,
        "prefetch_s": made.prefetch_s if sample.session else None,
        "prefetched": made.prefetched,
        "prefetch_used": made.prefetch_used,
    }


def _scored(planned: PlannedTask, sample: Sample, generated: str, token_ids: Sequence[int]) -> dict[str, Any]:
    """Return the part of a text that is scored, with its scores."""
    task, protocol = planned.task, planned.record.protocol
    text = task.completion(protocol, generated, sample.around)
    text.encode()
    completion = Completion(
        text, sample.reference, token_ids, sample.reference_ids, task.language, protocol, sample.around, sample.tests
    )
    return {"text": text, **scores_and_failures({**score_sample(completion), **planned.score(sample, token_ids)})}


def scores_and_failures(found: Mapping[str, float | str | None]) -> dict[str, Any]:
    """Return what a sample's record says of its scores: values, and why those of a plug-in that failed have none."""
    failures = {name: value for name, value in found.items() if isinstance(value, str)}
    return {"scores": {**found, **dict.fromkeys(failures)}, "score_failures": failures}


def token_texts(tokenizer: Tokenizer, token_ids: Sequence[int], before: Sequence[int] = ()) -> tuple[str, ...]:
    """Return what each token adds to the text of all, spelled behind those before; joined they are that text.

    A token that ends inside a character adds nothing, the one that completes it adds the character.
    """
    whole = spelled_behind(tokenizer, before, token_ids)
    ends = [0]
    for count in range(1, len(token_ids)):
        so_far = spelled_behind(tokenizer, before, token_ids[:count])
        ends.append(max(ends[-1], common_prefix(so_far, whole)))
    ends.append(len(whole))
    return tuple(whole[start:end] for start, end in itertools.pairwise(ends)) if token_ids else ()


def bad_record(window: WindowRecord, row: BadRow, *, in_session: bool) -> SampleRecord:
    """Return the error record of a row that could not become a sample, or a whole session of them."""
    session = row.sample_id if in_session else ""
    return SampleRecord(
        **shared_fields(window, SampleRecord), sample_id=row.sample_id, session=session, error=row.reason
    )
