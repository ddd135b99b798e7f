"""The A/A self-test: coverage counted right, and windows of a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.config import RunConfig
from harness.doctor import self_test as paired
from harness.doctor.self_test import Comparison, Coverage, RealCoverage, compare_with_itself, coverage, real_verdict
from harness.errors import DataError
from harness.records.estimate import NoInterval


def test_an_interval_covers_1_with_its_ends_and_a_missing_one_covers_nothing() -> None:
    found = coverage(8, [(0.9, 1.1), (1.0, 1.2), (0.7, 1.0), (1.01, 1.2), (0.8, 0.99), NoInterval.UNDEFINED])
    assert (found.covered, found.comparisons, found.pairs) == (3, 6, 8)
    assert found.share == 0.5
    assert found.share_ci == pytest.approx((0.1876, 0.8124), abs=5e-5)  # Wilson (1927), by hand
    assert found.half_width == pytest.approx(0.1)
    assert coverage(3, [NoInterval.FEW_PAIRS] * 2).half_width is None


class Heard:
    """A watch that remembers."""

    def __init__(self) -> None:
        self.total, self.steps = 0, list[int]()

    def stage(self, text: str) -> None: ...

    def begin(self, what: str, total: int, done: int = 0) -> None:
        self.total = total

    def step(self, done: int, note: str = "") -> None:
        self.steps.append(done)


@pytest.fixture
def config(tiny_llama: Path, rows_file: Path) -> RunConfig:
    return RunConfig(model=str(tiny_llama), source=str(rows_file), max_new_tokens=2, energy="none")


def test_real_windows_are_compared_with_themselves(config: RunConfig) -> None:
    watch = Heard()
    found = compare_with_itself(config, 4, 6, watch)
    assert len(found.comparisons) == found.coverage.comparisons == 4
    assert found.coverage.pairs == 6
    assert watch.total == watch.steps[-1] == 2 * 4 * 6
    for one in [*found.comparisons, found.overall]:
        assert one.ratio is not None
        assert isinstance(one.interval, tuple)
        assert one.interval[0] <= one.interval[1]
        assert 0.05 < one.ratio < 20
    assert 0 < found.window_s < 10
    assert found.foreign_share is None or found.foreign_share >= 0


def test_both_names_get_the_same_work(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[tuple[int, ...]] = []
    real = paired.Engine.decode

    def decode(self: Any, prompts: Any, *arguments: Any, **given: Any) -> Any:
        decoded.append(tuple(prompts[0]))
        return real(self, prompts, *arguments, **given)

    monkeypatch.setattr(paired.Engine, "decode", decode)
    compare_with_itself(config, 2, 5, Heard())
    measured = decoded[paired.WARMUP_WINDOWS :]
    assert len(measured) == 2 * 2 * 5
    assert measured[0::2] == measured[1::2]
    assert len(set(measured)) == 5
    assert all(1 <= len(prompt) <= paired.PROMPT_TOKENS for prompt in measured)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], float]], None]:
    """Let the n-th measured window take so many seconds."""

    def times(seconds: Callable[[int], float]) -> None:
        count = iter(range(10**6))
        monkeypatch.setattr(paired, "_window", lambda *arguments: seconds(next(count)))

    return times


def test_which_name_runs_first_is_drawn(config: RunConfig, timed: Callable[..., None]) -> None:
    """The second window always takes twice as long: a fixed order would show a ratio of 2 or of one half."""
    timed(lambda count: 1.0 + count % 2)
    found = compare_with_itself(config, 20, 8, Heard())
    assert found.overall.ratio == pytest.approx(1.0, abs=0.15)
    assert found.coverage.covered >= 15
    assert found.expected == (17, 20)  # the binomial's central 95 %, by hand
    timed(lambda count: 1.0 + count // 16)  # drift between comparisons is common to both names
    found = compare_with_itself(config, 5, 8, Heard())
    assert [one.ratio for one in found.comparisons] == [1.0] * 5
    assert found.coverage.covered == 5


def test_too_few_samples_are_refused_before_the_weights(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.models.model.ResolvedModel.load", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(DataError, match=r"4 samples of .* a comparison needs 5\. Use another --source"):
        compare_with_itself(config, 2, 4, Heard())


def result(covered: int, comparisons: int, expected: tuple[int, int]) -> RealCoverage:
    counted = Coverage(8, comparisons, covered, covered / comparisons, (0.0, 1.0), 0.01)
    nothing = Comparison(None, NoInterval.UNDEFINED)
    return RealCoverage("model", counted, expected, (nothing,) * comparisons, nothing, 0.2, None, None)


@pytest.mark.parametrize(
    ("covered", "comparisons", "expected", "word"),
    [
        (19, 20, (17, 20), "can be trusted"),
        (17, 20, (17, 20), "can be trusted"),
        (16, 20, (17, 20), "too narrow here"),
        (5, 5, (4, 5), "Too few comparisons"),
        (1, 5, (4, 5), "too narrow here"),
    ],
)
def test_the_verdict_in_words(covered: int, comparisons: int, expected: tuple[int, int], word: str) -> None:
    said = real_verdict(result(covered, comparisons, expected))
    assert word in said
    assert f"{covered} of {comparisons} intervals" in said
