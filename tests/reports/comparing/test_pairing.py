"""Units of a comparison, prompts or blocks where only a window has the number, pair when they hold the same prompts."""

from __future__ import annotations

from typing import Any

import pytest

from reports.comparing.change import find_metric
from reports.comparing.pairing import Matched, agreement_units, pair_units
from reports.metrics.point import Point, Units, by_block
from reports.metrics.point import units_of as metric_units
from reports.summary.measured import select

RATE, MEDIAN = map(find_metric, ("tokens_per_s", "latency_p50"))
LETTERS = frozenset("abcdefghij")


def units(*blocks: str) -> Units:
    return {frozenset(block): (float(len(block)), 1.0 + index) for index, block in enumerate(blocks)}


def keys(*blocks: str) -> list[frozenset[str]]:
    return [frozenset(block) for block in blocks]


@pytest.mark.parametrize(
    ("a", "b", "found", "joined"),
    [
        (("ab", "cd"), ("cd", "ab"), ("ab", "cd"), False),  # in any order
        (("ab", "cd", "ef"), ("abcd", "ef"), ("abcd", "ef"), True),
        (("abc", "def", "gh"), ("ab", "cd", "ef", "gh"), ("abcdef", "gh"), True),  # until none overlaps
        (("ab", "cd", "ef", "gh"), ("ab",), ("ab",), False),  # what only one run measured is no obstacle
    ],
)
def test_units_join_until_both_runs_have_the_same_prompts_in_them(
    a: tuple[str, ...], b: tuple[str, ...], found: tuple[str, ...], joined: bool
) -> None:
    pairs = pair_units(RATE, units(*a), units(*b), LETTERS)
    assert pairs is not None
    assert list(pairs[0]) == list(pairs[1]) == keys(*found)
    assert pairs[2] is joined


def test_rows_of_joined_units_are_added_up_or_strung_together() -> None:
    for metric, row in ((RATE, (4.0, 3.0)), (MEDIAN, (2.0, 1.0, 2.0, 2.0))):
        found = pair_units(metric, units("ab", "cd", "ef"), units("abcd", "ef"), LETTERS)
        assert found is not None
        assert (found[0][frozenset("abcd")], found[1][frozenset("abcd")]) == (row, (4.0, 1.0))


def test_what_would_blur_or_leave_out_too_much_does_not_pair() -> None:
    assert pair_units(RATE, units("ab", "cd", "ef", "gh"), units("a", "bc", "de", "fg", "h"), LETTERS) is None
    assert pair_units(RATE, units("ab", "cd", "ij"), units("ab", "cd", "ij"), LETTERS - {"a"}) is None
    assert pair_units(RATE, units("ab"), units("cd"), LETTERS) is None
    assert pair_units(RATE, {}, units("cd"), LETTERS) is None


def cell(build: type[Any], *, batch_size: int, repeats: int = 1, failed: bool = False) -> tuple[Point, Point]:
    """Two blocks of two prompts: 1 s and 3 s in full depth, half of it when exiting."""
    run = build(batch_size=batch_size)
    for repeat in range(repeats):
        for block, seconds in enumerate((1.0, 3.0)):
            for point, share in (("full", 1.0), ("fixed:layer=5", 0.5)):
                samples: list[dict[str, Any]] = [{}, {"error": "it broke"} if failed and block else {}]
                run.window(
                    point, *samples, block=block, repeat=repeat, duration=seconds * share,
                    energy_j=10 * seconds * share, energy_source="rapl", failed=int(failed and block),
                )  # fmt: skip
    cells = tuple(select(run.manifest, run.windows, run.samples).values())
    full, fixed = (Point(one, cells, run.manifest) for one in cells)
    return full, fixed


def units_of(name: str, point: Point) -> Units:
    found = metric_units(find_metric(name), point)
    assert found is not None
    return found


def names(*blocks: str) -> list[frozenset[str]]:
    return [frozenset(block.split()) for block in blocks]


def test_prompts_of_a_block_share_a_window(build: type[Any]) -> None:
    _, fixed = cell(build, batch_size=2, repeats=2)
    for name in ("latency_p50", "tpot_p50", "decode_speedup", "exit_layer_mean", "tokens_per_s"):
        joined = by_block(find_metric(name), units_of(name, fixed), fixed.cell)
        assert list(joined) == names("0-0 0-1", "1-0 1-1")
    latency = by_block(find_metric("latency_p50"), units_of("latency_p50", fixed), fixed.cell)
    assert next(iter(latency.values())) == pytest.approx((0.3,) * 4)  # of two prompts, two repeats each
    single = units_of("exit_layer_mean", fixed)
    assert len(single) == 4
    added = by_block(find_metric("exit_layer_mean"), single, fixed.cell)
    assert next(iter(added.values())) == (72.0, 8.0)  # 9 layers: two prompts, tokens and repeats each


def test_windows_are_blocks_and_repeats_add_up(build: type[Any]) -> None:
    full, fixed = cell(build, batch_size=1, repeats=2)
    assert units_of("speedup", fixed) == dict(
        zip(names("0-0 0-1", "1-0 1-1"), [(2.0, 2.0, 1.0, 2.0), (6.0, 2.0, 3.0, 2.0)], strict=True)
    )
    energy = units_of("energy_per_token", fixed)
    assert list(energy.values()) == [(10.0, 12.0), (30.0, 12.0)]
    assert list(units_of("tokens_per_s", full).values()) == [(12.0, 2.0), (12.0, 6.0)]
    assert units_of("latency_p50", fixed)[frozenset(["0-0"])] == pytest.approx((0.3, 0.3))


def test_a_window_with_a_failure_has_no_cost(build: type[Any]) -> None:
    full, fixed = cell(build, batch_size=1, failed=True)
    assert list(units_of("tokens_per_s", fixed)) == names("0-0 0-1")
    assert len(Matched.of(full.cell, fixed.cell).same) == 3


def test_agreement_counts_the_places_of_the_longer_completion(build: type[Any]) -> None:
    """(1, 2, 3) against (1, 9, 3, 4, 5): two places of five, whichever of them is A."""
    run = build()
    run.window("full", {"token_ids": (1, 2, 3)})
    run.window("fixed:layer=5", {"token_ids": (1, 9, 3, 4, 5)})
    full, fixed = select(run.manifest, run.windows, run.samples).values()
    for a, b in ((full, fixed), (fixed, full)):
        assert agreement_units(a, b, Matched.of(a, b)) == {frozenset(["0-0"]): (2.0, 5.0)}
    assert "longer completion" in find_metric("agreement").meaning
