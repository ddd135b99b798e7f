"""Lossless decoding: its tokens against full depth's, in the same weights format, alone and in batches."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

from harness.decoding.engine import Engine
from harness.records.certificate import Claim
from harness.running.operating_points import OperatingPoint
from harness.verifying.formats import Completion, Step, in_batches, reference_of


def verify_lossless(
    point: OperatingPoint,
    name: str,
    engine: Engine,
    alone: Sequence[Completion],
    size: int,
    seed: int,
    eos_token_ids: frozenset[int],
    step: Step,
) -> Claim:
    """Hold what an operating point drafts and verifies against what full depth wrote, prompt by prompt.

    Args:
        point: decodes losslessly.
        name: of the weights format.
        engine: decodes in it.
        alone: what full depth wrote in it.
        size: rows that are decoded together.
        seed: of random strategies, and of the noise that bounds rounding.
        eos_token_ids: tokens that end a completion.
        step: is told how many completions are done.

    Raises:
        ModelError: logits are not finite.
    """
    samples = [one.sample for one in alone]
    drafted = in_batches(
        samples,
        size,
        lambda batch: engine.decode(
            [sample.prompt_ids for sample in batch],
            point.strategy,
            kv=point.kv,
            max_new_tokens=[sample.max_new_tokens for sample in batch],
            seeds=[seed + crc32(sample.sample_id.encode()) for sample in batch],
            eos_token_ids=eos_token_ids,
            lossless=point.lossless,
        ),
        step,
    )
    facts, reference = reference_of(name, engine, seed)
    places, differences = reference.follow(alone, drafted)
    return Claim(
        weights_format=name,
        accuracy=facts.accuracy,
        what=point.name if size == 1 else f"{point.name}, batches of {size}",
        batch_size=size,
        judged=facts.invariant or facts.accuracy != "lossy",
        places=places,
        differences=differences,
        drafts=sum(one.drafts for one in drafted),
        accepted=sum(one.accepted for one in drafted),
    )
