"""A pytest plugin: ``pytest --harness-run=DIR`` puts a run's results into pytest-benchmark's history.

One test item per task × operating point; its rounds are the latencies that the run recorded for every sample. Node ids
are made of conditions and operating point, never of a folder or a machine, so that ``--benchmark-compare`` compares
like with like. Every pytest of an environment loads this: nothing heavy is imported before the option is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from harness.records.summary import SummaryRow
    from reports.recorded import RecordedRun
    from reports.summary.measured import Measured

_RUNS = pytest.StashKey[list["RecordedRun"]]()


class RecordedClock:
    """A timer that pytest-benchmark's ``pedantic`` reads before and after each round: 0, and then what was recorded."""

    __name__ = "recorded latency"  # what the history calls the timer

    def __init__(self, durations_s: tuple[float, ...]) -> None:
        self._readings = iter([reading for duration in durations_s for reading in (0.0, duration)])

    def __call__(self) -> float:
        """Return the next reading in seconds."""
        return next(self._readings)


class RunCollector(pytest.Collector):
    """The operating points of one run as test items."""

    run: RecordedRun

    def collect(self) -> Iterator[pytest.Item]:
        """Yield one item per task × operating point that finished a sample."""
        rows = {(row.task, row.operating_point): row for row in self.run.summary.rows}
        for (task, point), cell in self.run.cells.items():
            latencies = tuple(s.latency_s for s in cell.samples.values() if s.latency_s is not None)
            if latencies and (task, point) in rows:
                name = _item(cell)
                body = _replay(latencies, _facts(self.run, cell, rows[task, point]))
                item: pytest.Function = pytest.Function.from_parent(self, name=name, callobj=body)
                item.add_marker(pytest.mark.benchmark(group=task, timer=RecordedClock(latencies)))
                yield item


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--harness-run``."""
    parser.getgroup("early-exit-harness").addoption(
        "--harness-run",
        action="append",
        default=[],
        metavar="DIR",
        help="Run directory of `harness run`: its recorded latencies become benchmarks of pytest-benchmark, one per "
        "task and operating point. Repeatable; write it with =, or pytest looks for its settings there. Without paths, "
        "only they are collected.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Read the runs that were named, or refuse them in one line."""
    named: list[str] = config.getoption("harness_run")
    if not named:
        return
    if config.getoption("benchmark_skip", default=None) is None:
        raise pytest.UsageError("--harness-run needs pytest-benchmark. Install it with `pip install pytest-benchmark`.")
    from harness.errors import HarnessError
    from harness.running.reading import read_run

    runs: list[RecordedRun] = []
    held: dict[str, str] = {}
    for directory in named:
        try:
            run = read_run(Path(directory))
        except HarnessError as error:
            raise pytest.UsageError(f"--harness-run: {_line(str(error))}") from None
        if run.state:
            raise pytest.UsageError(_line(f"--harness-run {directory}: {run.state}. {run.remedy}"))
        for name in {f"{_model(run)}::{_item(cell)}" for cell in run.cells.values()}:
            if other := held.get(name):
                said = f"--harness-run: {other} and {directory} both hold {name}. Give each a pytest of its own."
                raise pytest.UsageError(_line(said))
            held[name] = directory
        runs.append(run)
    config.stash[_RUNS] = runs


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say what is replayed."""
    return [
        _line(f"harness run: {run.directory}, measured {run.manifest.created[:16]} UTC on {run.summary.machine}")
        for run in config.stash.get(_RUNS, [])
    ]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Collect nothing else where no path was asked for."""
    del collection_path
    asked = config.args_source is pytest.Config.ArgsSource.ARGS
    return True if _RUNS in config.stash and not asked else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the runs' items, before anything is deselected."""
    for run in config.stash.get(_RUNS, []):
        name = _model(run)
        collector: RunCollector = RunCollector.from_parent(session, name=name, nodeid=f"harness::{name}")
        collector.run = run
        items.extend(collector.collect())


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Say where the runs were measured, which need not be where pytest runs; pytest-benchmark warns of a difference."""
    if runs := config.stash.get(_RUNS, []):
        machine_info["harness_runs"] = sorted({_machine(run, run.manifest.model.numbers) for run in runs})


def _replay(latencies_s: tuple[float, ...], facts: dict[str, Any]) -> Callable[[Any], None]:
    def recorded(benchmark: Any) -> None:
        benchmark.extra_info.update(facts)
        benchmark.pedantic(lambda: None, rounds=len(latencies_s))

    return recorded


def _model(run: RecordedRun) -> str:
    return _line(next(iter(run.cells.values())).conditions.model_label)


def _item(cell: Measured) -> str:
    """Conditions and operating point; no policy or format twice where the run compares several."""
    conditions = cell.conditions
    point = cell.point.name.replace(f"@{conditions.kv}", "").replace(f"@{conditions.weights_format}", "")
    return _line(f"{conditions.label}[{point}]")


def _line(text: str) -> str:
    from harness.appearance.visible_text import one_line

    return one_line(text)


def _machine(run: RecordedRun, numbers: str) -> str:
    from harness.records.conditions import hardware_class

    return f"{hardware_class(run.manifest, run.identity)}, {numbers}"


def _facts(run: RecordedRun, cell: Measured, row: SummaryRow) -> dict[str, Any]:
    import hashlib

    from reports.metrics.vocabulary import metrics_of

    model = run.manifest.model
    packages = run.manifest.environment.get("packages") or {}
    return {
        **{
            metric.name: row.value(metric)
            for metric in metrics_of([row])
            if metric.kind != "score" or model.weights != "random"
        },
        **{name: getattr(row, name) for name in ("energy_source", "energy_measured", "errors", "repeats", "kv")},
        "samples": row.n,
        "weights_sha256": model.weights_sha256,
        "artefacts": dict(cell.point.artefacts),
        "data_sha256": cell.task.fingerprint,
        "weights_format": row.weights_format,
        "machine_class": _machine(run, row.numbers),
        "harness_version": packages.get("early-exit-harness"),
        "run_created": run.manifest.created,
        "run_id": hashlib.sha256(run.manifest.model_dump_json().encode()).hexdigest()[:16],
    }
