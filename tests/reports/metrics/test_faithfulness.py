"""How far completions are full depth's, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from reports.metrics.faithfulness import EXACT_LINE, EXACT_PREFIX, OWN_TEXT
from reports.metrics.point import Point, units_of
from reports.summary.measured import select

FULL, OTHER = "full", "fixed:layer=5"

Ids = tuple[int, ...]


def pair(run: Any, full: Ids, other: Ids, block: int = 0, **more: Any) -> None:
    run.window(FULL, {"token_ids": full}, block=block)
    run.window(OTHER, {"token_ids": other, **more}, block=block)


# ---------------------------------------------------------------------------------- exact prefix


@pytest.mark.parametrize(
    ("kv", "full", "other", "kept", "of"),
    [
        ("propagate", (1, 2, 3, 4), (1, 2, 3, 4), 3, 3),
        ("propagate", (1, 2, 3, 4), (1, 2, 9, 4), 1, 3),  # right again later: no longer full depth's context
        ("propagate", (1, 2, 3, 4), (1, 2), 1, 3),  # ended early: the next place differs
        ("propagate", (1, 2), (1, 2, 3, 4), 1, 1),  # beyond full depth's end nothing is compared
        ("propagate", (1, 2, 3), (9, 2, 3), 0, 2),  # prefill itself differs: nothing is exact
        ("none", (1, 2, 3, 4), (1, 2, 9, 4), 2, 4),  # without a cache the first token is decided, too
        ("none", (1, 2, 3, 4), (9, 2, 3, 4), 0, 4),
    ],
)
def test_the_exact_prefix_ends_at_the_first_difference(
    build: Any, kv: str, full: Ids, other: Ids, kept: int, of: int
) -> None:
    run = build(kv=kv)
    pair(run, full, other)
    row = run.row(OTHER)
    assert row.value("exact_prefix") == kept / of
    assert row.value("exact_prefix_tokens") == kept
    assert (run.row(FULL).value("exact_prefix"), run.row(FULL).value("exact_prefix_tokens")) == (1, of)


def test_every_completion_weighs_the_same_and_one_without_decisions_nothing(build: Any) -> None:
    run = build()
    pair(run, (1, 2, 3, 4, 5), (1, 2, 3, 4, 9), 0)  # 3 of 4
    pair(run, (1, 2), (1, 9), 1)  # 0 of 1
    pair(run, (1,), (1,), 2)  # prefill's token alone
    estimate = run.row(OTHER).estimate("exact_prefix")
    assert (estimate.value, estimate.n) == (pytest.approx((3 / 4 + 0) / 2), 2)


def test_only_what_both_finished_counts_and_later_repeats_do_not(build: Any) -> None:
    run = build()
    pair(run, (1, 2), (1, 2), 0)
    run.window(FULL, {"token_ids": (1, 2)}, block=1)
    run.window(OTHER, {"error": "broken"}, block=1)
    for point, ids in ((FULL, (1, 2)), (OTHER, (1, 9))):
        run.window(point, {"token_ids": ids}, block=0, repeat=1)
    assert run.row(OTHER).estimate("exact_prefix").n == 1
    assert run.row(OTHER).value("exact_prefix") == 1.0


@pytest.mark.parametrize(("differing", "told"), [(7, False), (8, True), (52, True), (53, False)])
def test_no_interval_where_nearly_all_is_exact_or_nothing(build: Any, differing: int, told: bool) -> None:
    run = build()
    for block in range(60):
        pair(run, (1, 2), (1, 9) if block < differing else (1, 2), block)
    estimate = run.row(OTHER).estimate("exact_prefix")
    assert estimate.value == pytest.approx(1 - differing / 60)
    assert (estimate.interval is not None) is told


# ------------------------------------------------------------------------------------ exact line


@pytest.mark.parametrize(
    ("full", "other", "same"),
    [
        ("x = 1\nreturn", "x = 1\nbreak", 1),
        ("x = 1", "x  =  1 ", 1),
        ("\n\n  x = 1\ny", "x = 1", 1),
        ("x = 1 <EOL> y", "x = 1", 1),
        ("x = 1", "x = 12", 0),
        ("", "x", 0),
    ],
)
def test_the_first_line_is_full_depth_s_or_not(build: Any, full: str, other: str, same: int) -> None:
    run = build()
    run.window(FULL, {"text": full})
    run.window(OTHER, {"text": other})
    assert run.row(OTHER).value("exact_line") == same
    assert run.row(FULL).value("exact_line") == 1


# -------------------------------------------------------------------------------------- own text


def test_own_text_counts_what_full_depth_would_choose_there(build: Any) -> None:
    run = build()
    # Prefill, then: as full depth, another token, and of two further ones one that full depth would choose there.
    pair(run, (1, 2, 3, 4, 5), (1, 2, 9, 8, 7), full_depth_ids=(1, 2, 3, 8, 0))
    assert run.row(OTHER).value("own_text_agreement") == pytest.approx(2 / 4)
    assert run.row(OTHER).value("agreement") == pytest.approx(2 / 5)
    run = build(kv="none")  # no prefill: the first token may leave early, too
    pair(run, (1, 2), (9, 2), full_depth_ids=(1, 2))
    assert run.row(OTHER).value("own_text_agreement") == pytest.approx(1 / 2)


def test_up_to_the_first_difference_full_depth_s_own_completion_decides(build: Any) -> None:
    run = build()
    # Near-ties that fell otherwise when the completion was read in one pass: at a common place, at the first other.
    pair(run, (1, 2, 3, 4), (1, 2, 3, 9), full_depth_ids=(1, 7, 3, 9))
    assert run.row(OTHER).value("own_text_agreement") == pytest.approx(2 / 3)


# ---------------------------------------------------------------------------------- where it stands


def test_runs_can_be_compared_by_sample(build: Any) -> None:
    run = build()
    pair(run, (1, 2, 3), (1, 2, 9), full_depth_ids=(1, 2, 3), text="y")
    cells = tuple(select(run.manifest, run.windows, run.samples).values())
    point, key = Point(cells[1], cells, run.manifest), frozenset(["0-0"])
    assert units_of(EXACT_PREFIX, point) == {key: (0.5, 1.0)}
    assert units_of(EXACT_LINE, point) == {key: (0.0, 1.0)}
    assert units_of(OWN_TEXT, point) == {key: (0.5, 1.0)}
