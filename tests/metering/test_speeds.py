"""Compute peak, dispatch floor and timer: right by hand on a made-up clock, sane on the real one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from harness.metering import examine as compute
from harness.metering import examine as dispatch
from harness.metering.examine import measure_compute, measure_dispatch, measure_timer


class Clock:
    """Every measured span takes the next of some durations."""

    def __init__(self, durations_s: list[float]) -> None:
        self._edges = self._walk(durations_s)

    def _walk(self, durations_s: list[float]) -> Iterator[float]:
        moment = 0.0
        for duration in durations_s:
            yield moment
            moment += duration
            yield moment

    def perf_counter(self) -> float:
        return next(self._edges)


def test_the_dispatch_floor_is_the_median_round_per_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "time", Clock([9.0, 0.5, 0.1, 0.3, 0.2, 7.0]))  # the first is the warm-up
    found = measure_dispatch("cpu", operations=10, rounds=5)
    assert found.seconds == pytest.approx(0.03)
    assert (found.operations, found.rounds) == (10, 5)


def test_an_operation_takes_less_than_a_token() -> None:
    assert 1e-8 < measure_dispatch("cpu").seconds < 1e-3


def test_the_peak_counts_two_operations_per_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "_pass", lambda *arguments: 0.25)
    found = measure_compute("float32", "cpu", budget_s=60)
    assert found.size == compute.SMALLEST  # long enough at once
    assert found.flops_per_s == pytest.approx(2 * compute.SMALLEST**3 / 0.25)


def test_matrices_grow_until_a_pass_is_long_and_the_best_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    later = iter([0.03, 0.02, 0.05, *[0.04] * 20])

    def timed(left: torch.Tensor, *rest: object) -> float:
        if len(left) == compute.SMALLEST:
            return 0.001
        return next(later)

    monkeypatch.setattr(compute, "_pass", timed)
    found = measure_compute("float32", "cpu", budget_s=60)
    assert found.size == 2 * compute.SMALLEST
    assert found.flops_per_s == pytest.approx(2 * (2 * compute.SMALLEST) ** 3 / 0.02)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_peak_of_this_machine_is_sane_whatever_the_budget(dtype: str) -> None:
    found = measure_compute(dtype, "cpu", budget_s=0.0)
    assert 1e7 < found.flops_per_s < 1e16
    assert (found.dtype, found.size, found.threads) == (dtype, compute.SMALLEST, torch.get_num_threads())


def test_the_timer_s_step_and_every_step_back_are_seen() -> None:
    values = iter([1.0, 1.0, 1.25, 1.75, 1.5, 1.5625, 2.5])
    found = measure_timer(lambda: next(values), reads=7)
    assert (found.resolution_s, found.backward_steps) == (0.0625, 1)


def test_a_timer_that_stands_still_has_no_resolution() -> None:
    found = measure_timer(lambda: 3.0, reads=5)
    assert (found.resolution_s, found.backward_steps) == (None, 0)


def test_this_machine_s_timer_never_runs_backwards() -> None:
    found = measure_timer()
    assert found.backward_steps == 0
    assert found.resolution_s is not None
    assert 0 < found.resolution_s < 1e-3
