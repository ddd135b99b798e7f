"""A run that is not timed: the same tokens, scores and work, and no time anywhere that could be taken for a cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.config import RunConfig
from harness.errors import ConfigError
from harness.records import SampleRecord
from harness.running.reading import read_run
from harness.running.runner import execute
from reports.metrics.vocabulary import all_metrics
from reports.summary.admission import refuse_window

from ..conftest import Ran

UNTIMED = {"untimed": True, "energy": "none", "weights_format": "float32"}
ROWS = 3


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, rows_file: Path) -> dict[str, Path]:
    """The same run, timed and not."""
    folder = tmp_path_factory.mktemp("untimed")
    shared: dict[str, Any] = {
        "model": str(tiny_llama), "source": str(rows_file), "limit": ROWS, "max_new_tokens": 5, "threads": 1,
        "strategies": ["fixed:layer=4", "confidence:threshold=0.5@lossless"],
    }  # fmt: skip
    given = {"timed": {"energy": "none", "weights_format": "float32"}, "untimed": UNTIMED}
    return {
        name: execute(RunConfig.build({**shared, **extra, "out": folder / name})).directory
        for name, extra in given.items()
    }


def decoded(sample: SampleRecord) -> dict[str, Any]:
    facts = sample.model_dump(mode="json")
    return {name: value for name, value in facts.items() if name not in ("latency_s", "ttft_s", "token_times_s")}


@pytest.mark.slow
def test_records_have_the_same_tokens_and_no_time(pair: dict[str, Path]) -> None:
    timed, untimed = read_run(pair["timed"]), read_run(pair["untimed"])

    def key(sample: SampleRecord) -> tuple[str, str]:
        return sample.operating_point, sample.sample_id

    both = zip(sorted(timed.samples, key=key), sorted(untimed.samples, key=key), strict=True)
    assert len(untimed.samples) == 3 * ROWS
    for one, other in both:
        assert {**decoded(one), "window": 0} == {**decoded(other), "window": 0}
        assert one.latency_s is not None
        assert (other.latency_s, other.ttft_s, other.token_times_s) == (None, None, ())
    assert {window.duration_s for window in untimed.windows} == {None}
    assert {window.cpu_time_s for window in untimed.windows} == {None}
    assert not any(window.flags or window.energy_j for window in untimed.windows)
    assert (timed.manifest.timed, untimed.manifest.timed) == (True, False)
    assert untimed.manifest.machine is None
    assert untimed.manifest.bandwidth_bytes_per_s is None


def test_scores_and_work_are_those_of_the_timed_run_and_costs_are_missing(pair: dict[str, Path]) -> None:
    costs = {metric.name for metric in all_metrics() if metric.is_cost}
    for timed, untimed in zip(
        read_run(pair["timed"]).summary.rows, read_run(pair["untimed"]).summary.rows, strict=True
    ):
        assert {"latency_p50_s", "speedup", "tokens_per_s"} <= costs & timed.metrics.keys()
        assert not costs & untimed.metrics.keys()
        assert untimed.metrics == {name: one for name, one in timed.metrics.items() if name not in costs}
        assert not untimed.pareto
    assert any("was not timed" in note for note in read_run(pair["untimed"]).summary.notes)


def test_a_time_that_is_missing_in_a_run_that_was_timed_is_left_out(pair: dict[str, Path]) -> None:
    run = read_run(pair["untimed"])
    manifest = run.manifest.model_copy(update={"config": {**run.manifest.config, "untimed": False}})
    window = next(window for window in run.windows if not window.warmup)
    assert refuse_window(window, run.manifest) is None
    assert refuse_window(window, manifest) == "no time in a run that was timed"


def test_reports_show_no_cost(cli: Callable[..., Ran], pair: dict[str, Path], tmp_path: Path) -> None:
    assert cli("report", pair["untimed"], "--out", tmp_path / "report").code == 0
    said = (tmp_path / "report" / "report.md").read_text()
    assert "this run was not timed" in said
    (header, *_) = [line for line in said.splitlines() if line.startswith("|  | operating point")]
    assert not [word for word in ("p50", "speed-up<br>", "J/") if word in header]
    site = cli("leaderboard", pair["untimed"], "--out", tmp_path / "site")
    assert f"not ranked: {pair['untimed']}: the run was not timed. Run again without --untimed." in site.err


def test_what_is_about_time_is_refused() -> None:
    for changed, said in (
        ({"energy": "auto"}, 'energy = auto is about time. Use energy = "none".'),
        ({"weights_format": "float32,auto"}, "weights_format = auto is about time. Use a format by its name"),
        ({"strict": True}, "strict = True is about time. Use strict = false."),
        ({"attribute": True}, "attribute = True is about time."),
        ({"arrival_rate": 2.0}, "arrival_rate = 2.0 is about time. Use no arrival_rate."),
        ({"repeats": 2}, "repeats = 2 is about time. Use repeats = 1: tokens are the same again."),
        ({"idle_s": 1.0}, "idle_s = 1.0 is about time. Use idle_s = 0."),
    ):
        with pytest.raises(ConfigError) as refused:
            RunConfig.build({**UNTIMED, **changed})
        assert said in str(refused.value)
    assert RunConfig.build({**UNTIMED, "idle_s": 0}).untimed
