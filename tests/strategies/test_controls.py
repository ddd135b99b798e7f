"""full, fixed, pruned, schedule, random and oracle: the rules that read no certainty."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from harness.contracts import Batch, ModelInfo
from harness.errors import OptionError
from strategies.fixed import Fixed
from strategies.full import Full
from strategies.oracle import Oracle
from strategies.pruned import Pruned
from strategies.random import Random
from strategies.schedule import Schedule


def test_full_asks_nowhere_and_stays(view: Any, model: ModelInfo) -> None:
    assert Full().exit_points(model) == ()
    assert Full().should_exit(view(rows=[0, 3])).tolist() == [False, False]


def test_fixed_asks_at_its_layer_and_leaves_without_looking(view: Any, model: ModelInfo) -> None:
    assert Fixed(layer=14).exit_points(model) == (14,)
    answer = Fixed(layer=14).should_exit(view(rows=[0, 3, 4]))
    assert (answer.tolist(), answer.dtype) == ([True] * 3, torch.bool)
    for layer, reason in (
        (28, r"fixed:layer=28 is the last layer of model\. Use --strategy full"),
        (29, r"fixed:layer=29 is beyond model, which has 28 layers"),
        (5, r"fixed:layer=5 is not an exit point of model \(exit points: 4, 6, .*26\).*--exit-points all"),
    ):
        with pytest.raises(OptionError, match=reason):
            Fixed(layer=layer).exit_points(model)


def test_oracle_compares_with_the_last_layer(view: Any) -> None:
    seen = view(logits=[[0.0, 1.0, 0.0], [3.0, 1.0, 2.0], [0.0, 1.0, 2.0]], deep=[1, 2, 2])
    assert Oracle().should_exit(seen).tolist() == [True, False, True]


# -------------------------------------------------------------------------------------- random


def draws(
    rule: Random, model: ModelInfo, view: Any, seeds: tuple[int, ...], asked: list[list[int]]
) -> list[list[bool]]:
    """Answers of one batch, for the rows asked each time."""
    started = rule.start(model, Batch(seeds, "cpu"))
    return [started.should_exit(view(rows=rows)).tolist() for rows in asked]


def test_random_leaves_with_its_probability(view: Any, model: ModelInfo) -> None:
    for probability in (0.0, 0.2, 0.7, 1.0):
        answers = draws(Random(probability=probability), model, view, tuple(range(50)), [list(range(50))] * 80)
        share = sum(map(sum, answers)) / 4000
        # four standard deviations; never and always are exact
        assert abs(share - probability) <= (0.03 if 0 < probability < 1 else 0)


def test_a_row_draws_alike_whatever_the_batch(view: Any, model: ModelInfo) -> None:
    rule = Random(probability=0.5)
    asked = [[0, 1, 2], [0, 2], [2], [0, 1, 2], [1, 2]] * 10
    together = draws(rule, model, view, (7, 8, 9), asked)
    for row, seed in enumerate((7, 8, 9)):
        mine = [answers[rows.index(row)] for rows, answers in zip(asked, together, strict=True) if row in rows]
        alone = draws(rule, model, view, (seed,), [[0]] * len(mine))
        assert mine == [answer for (answer,) in alone]


def test_seeds_of_run_and_option_both_count(view: Any, model: ModelInfo) -> None:
    found = [
        draws(Random(probability=0.5, seed=option), model, view, (seed,), [[0]] * 60)
        for option in (0, 1)
        for seed in (0, 1, 2**63 - 1)
    ]
    assert len({str(answers) for answers in found}) == len(found)


def test_what_is_kept_is_the_rest(view: Any, model: ModelInfo) -> None:
    for layers, kept in ((2, 26), (24, 4), (None, 26)):
        assert Pruned(layers=layers).exit_points(model) == (kept,)
    assert Pruned().should_exit(view(rows=[0, 3])).tolist() == [True, True]
    assert Pruned().exit_points(dataclasses.replace(model, exit_points=())) == ()
    for layers in (1, 28, 40):  # leave no exit point
        reason = rf"pruned:layers={layers} keeps {28 - layers} of 28 layers.*Drop one of 2, 6, 10.*--exit-points all"
        with pytest.raises(OptionError, match=reason):
            Pruned(layers=layers).exit_points(model)


def exits(rule: Schedule, model: ModelInfo, view: Any, made: int) -> int:
    """The layer at which a token leaves after so many."""
    points = rule.exit_points(model)
    asked = {point: rule.should_exit(view(generated=[made], exit_layer=point)).item() for point in points}
    return next((point for point in points if asked[point]), model.num_layers)


def test_depth_is_its_formula(view: Any, model: ModelInfo) -> None:
    for power, made, expected in (
        # 26 − 12 · t / 12: 26, 25, 20, 18, 17, 14; and the first exit point from there on.
        (1.0, 0, 26), (1.0, 1, 26), (1.0, 6, 22), (1.0, 8, 18), (1.0, 9, 18), (1.0, 12, 14), (1.0, 50, 14),
        # 26 − 12 · (t / 12)²: 23 at 6, 19.25 at 9, 17.67 at 10.
        (2.0, 6, 26), (2.0, 9, 22), (2.0, 10, 18), (2.0, 12, 14),
        # 26 − 12 · √(t / 12): 20 at 3, 17.5 at 6
        (0.5, 3, 22), (0.5, 6, 18),
    ):  # fmt: skip
        rule = Schedule(first=26, last=14, horizon=12, power=power)
        assert exits(rule, model, view, made) == expected, (power, made)


def test_depth_never_rises(view: Any, model: ModelInfo) -> None:
    for rule in (Schedule(), Schedule(first=28, last=4, power=0.3), Schedule(first=9, last=4, power=7)):
        depths = [exits(rule, model, view, made) for made in range(40)]
        assert depths == sorted(depths, reverse=True)
        assert len(set(depths)) > 1


def test_it_asks_only_where_it_comes(model: ModelInfo) -> None:
    assert Schedule(first=20, last=8).exit_points(model) == (8, 10, 12, 14, 18, 22)
    assert Schedule(first=28, last=22).exit_points(model) == (22, 26)
    assert Schedule(first=6, last=6).exit_points(model) == (6,)


def test_rows_have_their_own_positions(view: Any) -> None:
    seen = view(generated=[0, 6, 12], exit_layer=18)
    assert Schedule(first=22, last=14, horizon=8).should_exit(seen).tolist() == [False, True, True]


def test_a_schedule_that_does_not_fit_is_refused(model: ModelInfo) -> None:
    with pytest.raises(OptionError, match=r"schedule:first=8:last=10 rises.*Give last at most first"):
        Schedule(first=8, last=10).exit_points(model)
    with pytest.raises(OptionError, match=r"schedule:last=5 is not an exit point of model"):
        Schedule(first=8, last=5).exit_points(model)
