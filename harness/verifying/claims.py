"""The claims: formats have float32's tokens, rows in a batch those of rows alone, lossless decoding full depth's.

So has decoding behind prompts that were read with exits and deepened.

A format is read along what float32 wrote: a place at which it differs does not change the places after it, and every
one is compared. Rows of a batch and drafts have to be decoded; where one leaves what it is held against, what follows
is of another text, so that its first difference is the last that is compared.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

from harness.config import BASELINE, StrategySpec
from harness.config.options import build_strategy
from harness.contracts import PromptRule, Sample, WeightsFacts
from harness.decoding.blocks import Linear
from harness.decoding.engine import Engine, EngineSession
from harness.decoding.teacher_forcing import FLOAT32_ERROR, TeacherForcing, disturbed, largest_error, product_error
from harness.records.certificate import Claim, TokenDifference
from harness.registry import WEIGHTS_FORMATS
from harness.running.operating_points import OperatingPoint

Step = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Completion:
    """The generation from a prompt."""

    sample: Sample
    tokens: tuple[int, ...]
    drafts: int = 0
    accepted: int = 0


def decode(
    engine: Engine,
    samples: Sequence[Sample],
    size: int,
    eos_token_ids: frozenset[int],
    step: Step,
    point: OperatingPoint | None = None,
    seed: int = 0,
) -> list[Completion]:
    """Decode prompts greedily, so many at a time, and tell how many are done."""
    strategy = build_strategy(StrategySpec(BASELINE)) if point is None else point.strategy
    made: list[Completion] = []
    for start in range(0, len(samples), size):
        batch = samples[start : start + size]
        decoded = engine.decode(
            [sample.prompt_ids for sample in batch], strategy, kv=strategy.default_kv if point is None else point.kv,
            max_new_tokens=[sample.max_new_tokens for sample in batch], eos_token_ids=eos_token_ids,
            seeds=[seed + crc32(sample.sample_id.encode()) for sample in batch],
            lossless=None if point is None else point.lossless,
        )  # fmt: skip
        for sample, one in zip(batch, decoded, strict=True):
            if one.failure is not None:
                raise one.failure
            made.append(Completion(sample, tuple(one.token_ids), one.drafts, sum(one.accepted)))
        step(len(made))
    return made


def decode_deepened(
    engine: Engine, samples: Sequence[Sample], rule: PromptRule, eos_token_ids: frozenset[int], step: Step
) -> list[Completion]:
    """Decode prompts at full depth behind what was left where each was read with exits, and deepened."""
    full, made = build_strategy(StrategySpec(BASELINE)), list[Completion]()
    reach = max(len(sample.prompt_ids) + sample.max_new_tokens for sample in samples)
    session = EngineSession(engine, reach, full.default_kv, "prompt", "deepen")
    for number, sample in enumerate(samples, start=1):
        session.decode(sample.sample_id, sample.prompt_ids, full, max_new_tokens=1, prompt_rule=rule)
        session.prefetch(math.inf)
        one = session.decode(
            sample.sample_id, sample.prompt_ids, full, max_new_tokens=sample.max_new_tokens, eos_token_ids=eos_token_ids
        )
        if one.failure is not None:
            raise one.failure
        made.append(Completion(sample, tuple(one.token_ids)))
        step(number)
    return made


class Reference:
    """An engine whose tokens others must have, and what rounding may do to its logits."""

    def __init__(self, engine: Engine, error: float, seed: int) -> None:
        self._engine = engine
        self._disturbed = Engine(disturbed(engine.backbone, error, seed), engine.info)

    def differences(self, written: Completion, others: Sequence[tuple[int, int]]) -> list[TokenDifference]:
        """Judge places of a completion where another token was found."""
        if not others:
            return []
        logits, moved = (
            TeacherForcing(engine, written.sample.prompt_ids, len(written.tokens)).logits(written.tokens)
            for engine in (self._engine, self._disturbed)
        )
        bound = largest_error(logits, moved)
        return [
            TokenDifference(
                sample_id=written.sample.sample_id,
                place=place,
                token=written.tokens[place - 1],
                other=other,
                logit=float(logits[place - 1, written.tokens[place - 1]]),
                other_logit=float(logits[place - 1, other]),
                bound=bound,
            )
            for place, other in others
        ]

    def follow(
        self, written: Sequence[Completion], others: Sequence[Completion]
    ) -> tuple[int, tuple[TokenDifference, ...]]:
        """Compare completions up to their first difference; return how many places that are, and the differences."""
        places, found = 0, list[TokenDifference]()
        for one, other in zip(written, others, strict=True):
            pairs = enumerate(itertools.zip_longest(one.tokens, other.tokens), start=1)
            first = next(((place, token, instead) for place, (token, instead) in pairs if token != instead), None)
            places += len(one.tokens) if first is None else first[0]
            if first is None:
                continue
            place, token, instead = first
            if token is None or instead is None:  # one ended where the other goes on: no two logits explain it
                nothing: dict[str, Any] = {"logit": None, "other_logit": None, "bound": 0}
                name = one.sample.sample_id
                found.append(TokenDifference(sample_id=name, place=place, token=token, other=instead, **nothing))
            else:
                found += self.differences(one, [(place, instead)])
        return places, tuple(found)


def reference_of(name: str, engine: Engine, seed: int) -> tuple[WeightsFacts, Reference]:
    """Return a format's facts as they hold of an engine, and that as what rows decoded together are held against.

    Where a format promises the same bits for a row whatever is beside it, only sums of attention are left to differ.
    torch's products keep no such promise, and fp16 is multiplied by them off the CPU.
    """
    facts: WeightsFacts = WEIGHTS_FORMATS.load(name).facts
    facts = replace(facts, invariant=facts.invariant and not isinstance(engine.backbone.lm_head, Linear))
    return facts, Reference(engine, FLOAT32_ERROR if facts.invariant else product_error(facts), seed)


def verify_format(
    name: str, engine: Engine, float32: Engine, written: Sequence[Completion], seed: int, step: Step
) -> Claim:
    """Hold full depth in a format against what float32 wrote, along its text."""
    facts = WEIGHTS_FORMATS.load(name).facts
    reference = Reference(float32, product_error(facts), seed)
    found: list[TokenDifference] = []
    for number, one in enumerate(written, start=1):
        chosen = TeacherForcing(engine, one.sample.prompt_ids, len(one.tokens)).choices(one.tokens)
        places = enumerate(zip(one.tokens, chosen, strict=True), start=1)
        found += reference.differences(one, [(place, other) for place, (token, other) in places if token != other])
        step(number)
    return Claim(
        weights_format=name,
        accuracy=facts.accuracy,
        what="float32's tokens, along its text",
        batch_size=None,
        judged=facts.accuracy != "lossy",
        places=sum(len(one.tokens) for one in written),
        differences=tuple(found),
    )


def verify_rows(
    name: str,
    engine: Engine,
    alone: Sequence[Completion],
    others: Sequence[Completion],
    size: int,
    seed: int,
    point: OperatingPoint | None = None,
    what: str = "",
) -> Claim:
    """Hold rows that were decoded together, drafted by an operating point or as ``what`` says, against rows alone."""
    facts, reference = reference_of(name, engine, seed)
    places, differences = reference.follow(alone, others)
    together = f"batches of {size}"
    if point is not None:
        what = point.name if size == 1 else f"{point.name}, {together}"
    return Claim(
        weights_format=name,
        accuracy=facts.accuracy,
        what=what or f"{together} as alone",
        batch_size=size,
        judged=facts.invariant or facts.accuracy != "lossy",
        places=places,
        differences=differences,
        drafts=None if point is None else sum(one.drafts for one in others),
        accepted=None if point is None else sum(one.accepted for one in others),
    )
