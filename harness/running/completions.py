"""From what was decoded to its record: text, scores, times and counts of one sample. Nothing here is timed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.contracts import CONTEXT, Answer, BadRow, Completion, Sample, Tokenizer, common_prefix
from harness.contracts.stops import spelled_behind
from harness.decoding.generation import Generation
from harness.errors import HarnessError, is_out_of_memory, reason
from harness.records import AnswerRecord, Discarded, SampleRecord, WindowRecord, Work
from harness.running.plan import Plan, PlannedTask
from harness.running.scoring import score_sample


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one sample in one window.

    Attributes:
        sample: which.
        made: what was decoded or answered, or why nothing was.
        came: with a fixed arrival rate, seconds from the window's start to its arrival, and how long it waited.
        full_depth_ids: full depth's choices along what was decoded; empty where nobody asked.
    """

    sample: Sample
    made: Generation | Answer | str
    came: tuple[float, float] | None = None
    full_depth_ids: tuple[int, ...] = ()


def sample_record(window: WindowRecord, plan: Plan, planned: PlannedTask, outcome: Outcome) -> SampleRecord:
    """Return the record of a sample, scored; a failed one becomes an error record."""
    sample, made = outcome.sample, outcome.made
    base: dict[str, Any] = {
        "window": window.window,
        "operating_point": window.operating_point,
        "task": window.task,
        "repeat": window.repeat,
        "sample_id": sample.sample_id,
        "duplicate": sample.duplicate,
        "document": sample.document,
        "project": sample.project,
        "prompt_ids": sample.prompt_ids,
        "reference_ids": sample.reference_ids,
        "reference": sample.reference,
    }
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
        if is_out_of_memory(error):
            raise
        return SampleRecord(**base, error=f"the completion cannot be read and scored: {reason(error)}.")
    arrival_s, queue_s = outcome.came or (None, None)
    if plan.config.untimed:
        read |= {"latency_s": None, "ttft_s": None, "token_times_s": ()}
    waited = queue_s or 0.0
    for time in ("latency_s", "ttft_s"):
        read[time] = None if read[time] is None else waited + read[time]
    return SampleRecord(**base, **read, full_depth_ids=outcome.full_depth_ids, arrival_s=arrival_s, queue_s=queue_s)


def tokens_of(outcomes: Sequence[Outcome]) -> int | None:
    """Return how many tokens were generated; ``None`` where a black box does not count its own."""
    counts = [
        one.made.tokens if isinstance(one.made, Answer) else len(one.made.token_ids)
        for one in outcomes
        if not isinstance(one.made, str)
    ]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _of_answer(plan: Plan, planned: PlannedTask, sample: Sample, made: Answer) -> dict[str, Any]:
    """Facts of an external endpoint's completion; scores of tokens read its text as the run's tokenizer spells it."""
    text = planned.task.completion(planned.record.protocol, made.text, sample.around)
    made.text.encode()  # a text that no file can hold breaks here
    token_ids = plan.model.tokenizer.encode(made.text)
    return {
        "text": text,
        **_scores(planned, sample, text, token_ids),
        "latency_s": made.total_s,
        "ttft_s": made.ttft_s,
        "finish_reason": made.finish_reason,
        "answer": AnswerRecord(tokens=made.tokens, model=made.model),
    }


def _of_generation(plan: Plan, planned: PlannedTask, sample: Sample, made: Generation) -> dict[str, Any]:
    return {
        **vars(Work.of(made)),
        **_text_and_scores(plan, planned, sample, made),
        "token_ids": tuple(made.token_ids),
        "token_times_s": tuple(round(t, 7) for t in made.token_times_s),
        "latency_s": made.token_times_s[-1],
        "ttft_s": made.token_times_s[0],
        "finish_reason": made.finish_reason,
        "stop_rule": _stop_rule(planned, made),
    }


def _stop_rule(planned: PlannedTask, made: Generation) -> str:
    """Return whose rule ended a completion: its own, or the protocol's, which has the protocol's name or a better."""
    if made.finish_reason != "stop" or made.stopped_by:
        return made.stopped_by
    return str(getattr(planned.stop, "name", planned.record.protocol))


def _text_and_scores(plan: Plan, planned: PlannedTask, sample: Sample, made: Generation) -> dict[str, Any]:
    tokenizer = plan.model.tokenizer
    spoken = made.token_ids[:-1] if made.finish_reason == "eos" else made.token_ids
    pieces = token_texts(tokenizer, spoken, sample.prompt_ids)
    text = planned.task.completion(planned.record.protocol, "".join(pieces), sample.around)
    "".join((text, *pieces)).encode()  # a text that no file can hold breaks here
    discarded = tuple(_spelled(tokenizer, sample.prompt_ids, spoken, one) for one in made.discarded)
    return {
        "text": text,
        "discarded": discarded,
        "token_texts": (*pieces, *[""] * (len(made.token_ids) - len(pieces))),
        **_scores(planned, sample, text, tuple(made.token_ids)),
    }


def _scores(planned: PlannedTask, sample: Sample, text: str, token_ids: Sequence[int]) -> dict[str, Any]:
    completion = Completion(
        text,
        sample.reference,
        token_ids,
        sample.reference_ids,
        planned.task.language,
        planned.record.protocol,
        sample.around,
        sample.tests,
    )
    return scores_and_failures({**score_sample(completion), **planned.score(sample, token_ids)})


def scores_and_failures(found: Mapping[str, float | str | None]) -> dict[str, Any]:
    """Return what a sample's record says of its scores: values, and why those of a plug-in that failed have none."""
    failures = {name: value for name, value in found.items() if isinstance(value, str)}
    return {"scores": {**found, **dict.fromkeys(failures)}, "score_failures": failures}


def _spelled(tokenizer: Tokenizer, prompt_ids: Sequence[int], spoken: Sequence[int], one: Discarded) -> Discarded:
    """Return what a verification threw away with its texts, spelled behind the tokens before it."""
    start = max(0, one.place - CONTEXT)
    before, earlier = spoken[start : one.place], [*prompt_ids[-CONTEXT:], *spoken[:start]]
    texts = token_texts(tokenizer, [*before, *one.token_ids], earlier)[len(before) :]
    "".join(texts).encode()  # as above
    return replace(one, token_texts=texts)


def token_texts(tokenizer: Tokenizer, token_ids: Sequence[int], before: Sequence[int] = ()) -> tuple[str, ...]:
    """Return what each token adds to the text of all; joined they are that text.

    A token that ends inside a character adds nothing, the one that completes it adds the character.

    Args:
        tokenizer: spells them.
        token_ids: the tokens.
        before: tokens that they are spelled behind.
    """
    whole = spelled_behind(tokenizer, before, token_ids)
    ends = [0]
    for count in range(1, len(token_ids)):
        so_far = spelled_behind(tokenizer, before, token_ids[:count])
        ends.append(max(ends[-1], common_prefix(so_far, whole)))
    ends.append(len(whole))
    return tuple(whole[start:end] for start, end in itertools.pairwise(ends)) if token_ids else ()


def bad_record(window: WindowRecord, planned: PlannedTask, row: BadRow) -> SampleRecord:
    """Return the error record of a row that could not become a sample."""
    return SampleRecord(
        window=window.window,
        operating_point=window.operating_point,
        task=planned.record.name,
        sample_id=row.sample_id,
        repeat=window.repeat,
        error=row.reason,
    )
