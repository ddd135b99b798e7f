"""`del`: what it learns of every exit in the engine, and how it chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import Batch, Draft, ExitRule, Lossless, ModelInfo, UnitCosts
from strategies.dynamic_exit import DynamicExit, best_exit
from strategies.full import Full

NEW = 24
PLAIN = UnitCosts(layer=1, head=0, shortcut=0, source="this test")


@pytest.mark.parametrize(
    ("rates", "costs", "most", "choice"),
    [
        ({2: 0.5}, PLAIN, 16, (2, 1)),  # 1.5/12 = 1.75/14 > 1/10: the shorter of two alike
        ({2: 0.5, 4: 0.9}, PLAIN, 16, (4, 4)),  # 1.9/14, 2.71/18, 3.439/22, 4.0951/26 = .1575, 4.686/30 = .1562
        ({2: 0.5, 4: 0.9}, PLAIN, 2, (4, 2)),
        ({}, PLAIN, 8, (None, 0)),
        ({2: 0.5}, UnitCosts(1, 5, 0, "this test"), 16, (2, 1)),  # 1.5/22 = .0682 > 1/15 = .0667
        ({2: 0.5}, UnitCosts(1, 5, 1, "this test"), 16, (None, 0)),  # 1.5/23 = .0652: the shortcut is too much
        ({2: 0.5}, UnitCosts(1, 5, 1, "this test", draft_head=1), 16, (2, 1)),  # 1.5/19 = .0789 > 1.75/23 = .0761
        ({2: 0.5, 4: 0.9}, UnitCosts(1, 0, 0, "this test", check=1, asked_at=(2, 4)), 16, (4, 2)),  # 2.71/22 = .1232
        ({2: 0.6, 6: 0.9}, UnitCosts(1, 0, 0, "this test", layer_row=0.5), 16, (6, 1)),  # 1.9/18 = .1056 > 1.6/16
    ],
)
def test_the_choice_is_most_tokens_per_cost(
    rates: dict[int, float], costs: UnitCosts, most: int, choice: tuple[int | None, int]
) -> None:
    assert best_exit(rates, costs, 10, most) == choice


def test_the_choice_is_that_of_trying_all() -> None:
    costs = UnitCosts(1, 2.5, 0.5, "this test")
    for first in range(11):
        for second in range(11):
            rates = {3: first / 10, 7: second / 10}
            found = {
                (layer, length): sum(rate**power for power in range(length + 1)) / (12.5 + length * (layer + 3))
                for layer, rate in rates.items()
                for length in range(1, 9)
            }
            found[None, 0] = 1 / 12.5  # type: ignore[index]
            assert found[best_exit(rates, costs, 10, 8)] == pytest.approx(max(found.values()))  # type: ignore[index]


class Kept(DynamicExit):
    """Keeps its rules, for the test to look at."""

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        RULES.append(super().start(model, batch))
        return RULES[-1]


RULES: list[Any] = []


def rule_after(case: Any, prompts: Sequence[Sequence[int]], most: int = 5, **options: Any) -> Any:
    RULES.clear()
    made = case.engine.decode(
        prompts, Kept(**options), kv="recompute", max_new_tokens=[NEW] * len(prompts), lossless=Lossless(most)
    )
    plain = case.engine.decode(prompts, Full(), kv="recompute", max_new_tokens=[NEW] * len(prompts))
    assert [one.token_ids for one in made] == [one.token_ids for one in plain]
    return RULES[0], made


@pytest.mark.parametrize("case", ["llama", "opt-post-norm"], indirect=True)
def test_every_place_counts_once_at_every_exit(case: Any, prompts: list[list[int]]) -> None:
    """With nothing forgotten, the shares are those of reading the whole text once."""
    rule, made = rule_after(case, prompts, decay=1)
    assert any(one.drafts for one in made)
    for row, (prompt, one) in enumerate(zip(prompts, made, strict=True)):
        text = [*prompt, *one.token_ids]
        for layer, rate in rule.rates(row).items():
            (state,) = case.engine.read(text[:-1], [layer])
            said = case.engine.backbone.logits(state[len(prompt) :]).argmax(-1).tolist()
            right = sum(a == b for a, b in zip(said, one.token_ids[1:], strict=True))
            assert rate == pytest.approx((1 + right) / (2 + NEW - 1))


def test_between_readings_only_the_exit_that_drafted_learns(llama: Any, prompts: list[list[int]]) -> None:
    rule, made = rule_after(llama, prompts[:1], every=1000)
    _, often = rule_after(llama, prompts[:1], every=1)
    assert made[0].lm_head_evaluations < often[0].lm_head_evaluations
    assert len(set(rule.rates(0).values())) > 1


def test_what_reading_costs_is_counted(llama: Any, prompts: list[list[int]]) -> None:
    """Each known place once at each exit but the one that drafted it, beside drafts and verifications."""
    _, (one,) = rule_after(llama, prompts[:1])
    verified = sum(1 for _ in one.token_ids[1:])
    shadows = verified * 5 - sum(at is not None for at in one.drafted_at)
    verified_places = one.layers_executed // 6
    assert one.lm_head_evaluations == shadows + one.drafts + verified_places


@dataclass
class At:
    """A row at an exit, at a position that nothing is known of."""

    exit_layer: int
    rows: Tensor = field(default_factory=lambda: torch.tensor([0]))
    position: Tensor = field(default_factory=lambda: torch.tensor([10_000]))


def hand_fed(**options: Any) -> Any:
    """Its rule for a model of ten layers with exits after two and six."""
    info = ModelInfo(
        "model", "llama", 10, 8, 97, (2, 6), 100, "float32", "random", 1, 1, 1, 1, unit_costs=lambda: PLAIN
    )
    return DynamicExit(**options).start(info, Batch((0, 1), "cpu"))


def exits(rule: Any) -> list[int]:
    return [layer for layer in (2, 6) if rule.should_exit(At(layer)).tolist() == [True]]


def tell(rule: Any, layer: int, accepted: int, *probabilities: float) -> None:
    """Verify a draft of one exit."""
    drafted = len(probabilities)
    draft = Draft(0, [1, 2, 3], [4] * (accepted + 2), [5] * drafted, [layer] * drafted, list(probabilities))
    rule.verified(draft, accepted)


def ends(rule: Any, *probabilities: float) -> bool:
    drafted = len(probabilities)
    answer: bool = rule.verify_now(Draft(0, [1], [2], [5] * drafted, [2] * drafted, list(probabilities)))
    return answer


def test_it_goes_where_tokens_are_accepted() -> None:
    rule = hand_fed(decay=0.5)
    assert exits(rule) == [2]  # 1.5/12 > 1/10 > 1.5/16
    assert ends(rule, 0.9)  # one token
    tell(rule, 2, 1, 0.9)
    assert rule.rates(0) == {2: 0.75, 6: 0.5}  # (1/2 + 1) / (2/2 + 1)
    assert rule.rates(1) == {2: 0.5, 6: 0.5}  # rows have estimates of their own
    assert not ends(rule, 0.9)  # 1.75/12 = .1458, 2.3125/14 = .165, 2.734/16 = .171, 3.051/18 = .1695: three tokens
    assert not ends(rule, 0.9, 0.9)
    assert ends(rule, 0.9, 0.9, 0.9)
    for _ in range(5):
        tell(rule, 2, 0, 0.9, 0.9)
    assert exits(rule) == []  # neither pays: full depth
    for _ in range(5):
        tell(rule, 6, 2, 0.9, 0.9)
    assert exits(rule) == [6]
    for _ in range(5):
        tell(rule, 2, 2, 0.9, 0.9)
    assert exits(rule) == [2]


def test_only_places_up_to_the_first_that_was_replaced_count() -> None:
    rule = hand_fed(decay=1)
    tell(rule, 2, 1, 0.9, 0.9, 0.9, 0.9)
    assert rule.rates(0)[2] == (1 + 1) / (2 + 2)
    assert rule.rates(0)[6] == 0.5


def test_a_doubtful_token_ends_a_draft() -> None:
    rule = hand_fed(decay=1)
    for _ in range(20):
        tell(rule, 2, 2, 0.9, 0.8)
    assert not ends(rule, 0.01)  # nothing was replaced yet
    tell(rule, 2, 1, 0.85, 0.25)
    assert not ends(rule, 0.9, 0.56)
    assert ends(rule, 0.9, 0.54)  # midway between .85 and .25


def test_a_verification_counts_as_one_whatever_its_length() -> None:
    rule = hand_fed(decay=0.5)
    tell(rule, 2, 1, 0.9, 0.3)
    tell(rule, 2, 4, 0.5, 0.5, 0.5, 0.5, 0.1)
    # stood: (0.9/2 + 4 · 0.5) / (1/2 + 4) = .5444; replaced: (0.3/2 + 0.1) / (1/2 + 1) = .1667; midway .3556
    assert not ends(rule, 0.36)
    assert ends(rule, 0.35)
