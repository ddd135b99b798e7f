"""Many requests through one open batch: where one ends, the next one joins."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from harness.contracts import Lossless, StopRule, Strategy
from harness.decoding.engine import Engine
from harness.decoding.generation import Generation
from harness.decoding.row_exits import RowExits

__all__ = ["decode_in_turn"]


def decode_in_turn(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    strategy: Strategy,
    *,
    rows: int,
    kv: str,
    max_new_tokens: Sequence[int],
    seeds: Sequence[int],
    stop: StopRule | None = None,
    eos_token_ids: frozenset[int] = frozenset(),
    lossless: Lossless | None = None,
) -> Iterator[tuple[int, Generation]]:
    """Decode prompts, so many at a time; yields each one's place and what it made, as they end.

    What a prompt yields is what :meth:`Engine.decode` makes of it alone, up to rounding.

    Args:
        engine: decodes.
        prompts: tokens of each request, none empty; they join in this order.
        strategy: decides the exits.
        rows: decoded together at most. One at a time is a closed batch of one.
        kv: name of the KV policy.
        max_new_tokens: limit of each prompt, at least 1.
        seeds: one per prompt, for random strategies.
        stop: ends a request when true of the tokens it has generated.
        eos_token_ids: tokens that end one.
        lossless: let exits draft, and yield full depth's tokens.

    Raises:
        Exception: those of :meth:`Engine.decode`, and what a strategy raises.
    """
    reach = engine.check(prompts, max_new_tokens)
    if rows == 1:
        for place, (prompt, limit, seed) in enumerate(zip(prompts, max_new_tokens, seeds, strict=True)):
            (made,) = engine.decode(
                [prompt], strategy, kv=kv, max_new_tokens=[limit], seeds=[seed], stop=stop,
                eos_token_ids=eos_token_ids, lossless=lossless,
            )  # fmt: skip
            yield place, made
        return
    tally = [Generation() for _ in range(min(rows, len(prompts)))]
    exits = RowExits(engine.info, str(engine.backbone.device), tally)
    batch = engine.open(len(tally), reach, kv, exits, tally)
    facts = engine.facts(strategy, lossless)
    waiting = deque(range(len(prompts)))
    decoding: dict[int, int] = {}
    while waiting or decoding:
        joined = [row for row in range(len(tally)) if row not in decoding][: len(waiting)]
        for row in joined:
            place = decoding[row] = waiting.popleft()
            known, rule = exits.join(row, strategy, seeds[place], facts)
            drafts = engine.drafts(lossless, known, kv, strategy, rule)
            batch.join(row, prompts[place], max_new_tokens[place], stop, eos_token_ids, lossless=drafts)
        if joined:
            batch.prefill(joined)
        else:
            batch.step()
        for failure in exits.failures.values():
            raise failure
        for row in decoding.keys() - set(batch.running):
            yield decoding.pop(row), tally[row]
