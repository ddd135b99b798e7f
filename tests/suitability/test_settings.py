"""Speed-ups of families, against the byte and the time model by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.contracts import ModelInfo
from harness.records import UnitTimes
from harness.suitability.exits import ReadExits, describe
from harness.suitability.record import Setting
from harness.suitability.settings import Prices, best_settings

TIMES = UnitTimes(positions=9, rows=5, layer_s=1, head_s=2, layer_row_s=0.1, head_row_s=0.1)
PRICES = Prices(TIMES, check=2.5, map=0.25, short=0.5)


def best(
    reads: list[ReadExits], info: ModelInfo, prices: Prices | None = None, keep: float = 1.0, short_bytes: int = 0
) -> dict[str, Setting]:
    found = best_settings(
        reads, info, prices, keep=keep, map_bytes=40, short_bytes=short_bytes, step=lambda done: None
    )  # fmt: skip
    return {one.family: one for one in found}


def test_exits_that_are_always_right(read: Callable[..., ReadExits], info: ModelInfo) -> None:
    found = best([read([[True, True]] * 40)], info, PRICES)
    # 12 layers and a head, over 4 layers and a head
    assert found["fixed depth"].setting == "fixed:layer=4"
    assert found["fixed depth"].bytes_speedup == pytest.approx(12500 / 4500)
    # the 8 skipped layers run later, as a further row of another pass
    assert found["fixed depth"].time_speedup == pytest.approx(14 / (4 + 8 * 0.1 + 2))
    assert found["oracle"].bytes_speedup == found["fixed depth"].bytes_speedup
    # two tokens for a draft after 4 layers, read by the head, and a pass of 12 with a row more in 8 of them
    drafts = found["drafts of fixed length"]
    assert (drafts.agreement, drafts.agreement_ci, drafts.lossless) == (1, None, True)
    assert drafts.time_speedup is not None
    assert drafts.time_speedup > 28 / (4 + 2 + 12 + 8 * 0.1 + 2 + 0.1)
    assert not drafts.bound


def test_an_oracle_skips_what_is_right_and_nothing_else(read: Callable[..., ReadExits], info: ModelInfo) -> None:
    one = read([[True, True], [False, True], [False, False], [False, False]] * 10)
    facts = describe(one, info)
    assert facts.oracle_skip == pytest.approx((8 + 4) / 48)
    assert [exit_.agreement for exit_ in facts.exits] == [0.25, 0.5]
    assert [exit_.in_ten for exit_ in facts.exits] == [0.25, 0.5]
    assert [exit_.rank_median for exit_ in facts.exits] == [20, 1]  # the lower of two middle ones
    assert best([one], info)["oracle"].bytes_speedup == pytest.approx(50_000 / (36_000 + 4 * 500))


def test_a_check_costs_a_head_unless_it_is_granted(read: Callable[..., ReadExits], info: ModelInfo) -> None:
    """The second exit is right and sure on half of the tokens, on which the first is sure as well, but wrong."""
    right, sure = [[False, True], [False, False]], [[0.3, 0.9], [0.2, 0.1]]
    found = best([read(right * 20, sure * 20)], info, PRICES, short_bytes=100)
    half = 0.5 * (12500 + 8500)
    assert found["learned check"].bytes_speedup == pytest.approx(12500 / half)
    assert found["learned check"].bound
    # at layer 8 alone: one check a token, which is the output's own head where it exits
    assert found["one check by the LM head"].setting.endswith(" at layer 8")
    assert found["one check by the LM head"].bytes_speedup == pytest.approx(12500 / (half + 0.5 * 500))
    assert found["check by the LM head"].bytes_speedup == pytest.approx(12500 / (half + 1.5 * 500))
    assert found["check by a short head"].bytes_speedup == pytest.approx(12500 / (half + 100))
    # 10 layers, the 4 that half of the tokens skip as rows, one check, and the head of those that go deep
    assert found["one check by the LM head"].time_speedup == pytest.approx(14 / (10 + 2 * 0.1 + 2.5 + 1))
    assert found["check by a short head"].time_speedup == pytest.approx(14 / (10 + 2 * 0.1 + 0.5 + 0.5 + 2))
    assert found["full depth"].speedup == 1


def test_maps_are_paid_for(read: Callable[..., ReadExits], info: ModelInfo) -> None:
    found = best([read([[True, True]] * 40, maps=True)], info, PRICES)
    assert found["fixed depth"].bytes_speedup == pytest.approx(12500 / 4540)
    assert found["fixed depth"].time_speedup == pytest.approx(14 / (4 + 0.8 + 2.25))


def test_what_keeps_too_little_is_left_out(read: Callable[..., ReadExits], info: ModelInfo) -> None:
    rows = [[False, True], [False, True], [False, True], [False, False]]
    assert "fixed depth" not in best([read(rows * 10)], info, keep=0.8)
    assert best([read(rows * 10)], info, keep=0.75)["fixed depth"].setting == "fixed:layer=8"
