"""What drafting and what was rolled back are counted as, against decoding whose counts are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from harness.contracts import HeadChoice, Lossless, Strategy
from harness.decoding.drafts.lookup import Lookup
from harness.records import DraftWork
from strategies.confidence import Confidence
from strategies.dynamic_exit import DynamicExit
from strategies.fixed import Fixed
from strategies.full import Full
from strategies.random import Random

NEW, LAYERS = 24, 6
REPEATING = [[5, 9, 40, 17, 5, 9, 40], [88, 3, 60, 88, 3, 60], [12] * 5]


def draft_work(passes: int, layers_read: int, exit_checks: int, lm_heads: int, cheap_head_tokens: int) -> DraftWork:
    return DraftWork(exit_checks, lm_heads, cheap_head_tokens, layers_read, passes)


def decoded(case: Any, prompts: Sequence[Sequence[int]], strategy: Strategy, lossless: Lossless) -> Any:
    limits = [NEW] * len(prompts)
    return case.engine.decode(
        prompts, strategy, kv="recompute", max_new_tokens=limits, seeds=[3, 1, 2], lossless=lossless
    )


@pytest.mark.parametrize("most", [1, 4])
def test_a_fixed_exit_drafts_at_its_layer_with_one_check_and_head(llama: Any, prompts: Any, most: int) -> None:
    for one in decoded(llama, prompts, Fixed(2), Lossless(most)):
        wrong = one.drafts - sum(one.accepted)
        assert wrong > 0
        assert one.drafting == draft_work(one.drafts, 2 * one.drafts, one.drafts, one.drafts, 0)
        assert one.rolled_back == draft_work(wrong, 2 * wrong, wrong, wrong, 0)


def test_a_cheap_head_that_reads_drafts_is_told_from_the_lm_head(llama: Any, prompts: Any) -> None:
    for one in decoded(llama, prompts, Fixed(2), Lossless(4, head=HeadChoice("int8"))):
        wrong = one.drafts - sum(one.accepted)
        assert one.drafting == draft_work(one.drafts, 2 * one.drafts, one.drafts, 0, one.drafts)
        assert one.rolled_back == draft_work(wrong, 2 * wrong, wrong, 0, wrong)


@pytest.mark.crossed
@pytest.mark.parametrize("strategy", [Random(0.5), Confidence(threshold=0.2), DynamicExit()], ids=str)
def test_what_verifying_read_is_what_is_left(case: Any, prompts: Any, strategy: Strategy) -> None:
    """A pass that goes deep runs every layer once, whatever waited; one without a new token, from where others wait."""
    for one in decoded(case, prompts, strategy, Lossless(16)):
        left = one.layers_read - one.drafting.layers_read
        assert left <= LAYERS * one.verifications
        assert (left == LAYERS * one.verifications) or one.finish_reason is not None
        assert one.drafting.passes == one.drafts
        assert one.rolled_back.passes == one.drafts - sum(one.accepted)
        for name in ("layers_read", "exit_checks", "lm_head_evaluations"):
            whole = getattr(one, name)
            assert getattr(one.rolled_back, name) <= getattr(one.drafting, name) <= whole


def test_what_a_source_proposes_runs_nothing(llama: Any) -> None:
    for one in decoded(llama, REPEATING, Full(), Lossless(8, (Lookup(least=1),))):
        assert one.drafts > 0
        assert (one.drafting, one.rolled_back) == (DraftWork(), DraftWork())
    some = decoded(llama, REPEATING, Fixed(2), Lossless(8, (Lookup(least=1),)))
    assert any(0 < one.drafting.passes < one.drafts for one in some)
    assert all(one.drafting.layers_read == 2 * one.drafting.passes for one in some)


def test_lossy_decoding_has_none(llama: Any, prompts: Any) -> None:
    made = llama.engine.decode(prompts, Fixed(2), kv="recompute", max_new_tokens=[NEW] * 3)
    assert all(one.drafting == one.rolled_back == DraftWork() for one in made)
