"""How far a study is, as it is read, shown and answered with an exit code; and what it costs to look."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.appearance.terminal import Console
from harness.errors import StoreError
from harness.records.estimate import Estimate
from harness.records.summary import SUMMARY_VERSION, Summary, SummaryRow
from harness.store.committed import SAMPLES
from harness.store.record_files import write_document
from harness.store.run_directory import SUMMARY, last_seal
from harness.study.grid import Point
from harness.study.ledger import EVENTS, StudyDirectory
from harness.study.status import StudyView

from .made_up import open_study, put_runs

Command = Callable[..., Any]

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("happened", "while_it_runs", "afterwards"),
    [
        ("", 3, 4),
        ("0 started", 3, 4),
        ("0 started, 0 failed", 3, 4),  # one has failed, and one is left
        ("0 failed, 1 started, 1 retried", 3, 4),
        ("0 failed, 1 finished", 3, 1),  # the driver may yet try the failed one again
        ("0 finished, 1 merged", 0, 0),
        ("0 failed, 0 started, 0 finished, 1 finished", 0, 0),
    ],
)
def test_the_exit_code_says_whether_it_is_worth_waiting(
    cli: Command, tmp_path: Path, happened: str, while_it_runs: int, afterwards: int
) -> None:
    with open_study(tmp_path / "s", 2) as study:
        for number, what in (each.split() for each in happened.split(", ") if each):
            study.log(study.points[int(number)], what)
        assert [cli("watch", "s", flag).code for flag in ("--json", "--once")] == [while_it_runs] * 2
    assert [cli("watch", "s", flag).code for flag in ("--json", "--once")] == [afterwards] * 2


def test_time_left_is_shared_by_the_points_that_run_at_once(tmp_path: Path) -> None:
    def left_s() -> float | None:
        return StudyView(tmp_path / "s").look().left_s

    with open_study(tmp_path / "s", 6) as study:
        study.log(study.points[0], "started")
        assert left_s() is None
        study.log(study.points[0], "finished", took_s=10)
        study.log(study.points[1], "finished", took_s=20)
        assert left_s() == 4 * 15  # between two points
        study.log(study.points[2], "started")
        assert left_s() == 4 * 15
        study.log(study.points[3], "started")
        assert left_s() == 4 * 15 / 2
        study.log(study.points[3], "retried", took_s=1000)
        assert left_s() == 4 * 15
        status = StudyView(tmp_path / "s").look()
        assert ([each.point for each in status.running], status.waiting) == ([study.points[2].name], 3)
    stopped = StudyView(tmp_path / "s").look()  # nothing runs in a study that nobody measures
    assert (stopped.running, stopped.waiting, stopped.left_s, stopped.is_held) == ((), 4, None, False)


def test_a_grid_that_grows_is_seen_and_another_log_is_read_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_study(tmp_path / "s", 2) as study:
        study.log(study.points[0], "finished")
    view = StudyView(tmp_path / "s")
    assert (view.look().points, len(view.look().finished)) == (2, 1)
    log = (tmp_path / "s" / EVENTS).read_bytes()
    (tmp_path / "s" / EVENTS).write_bytes(b"?" * (len(log) - 1) + b"\n")  # what was read is not read again
    with open_study(tmp_path / "s", 3) as study:
        caplog.clear()
        study.log(study.points[2], "finished")
        status = view.look()
    assert (status.points, len(status.finished)) == (3, 2)
    assert not caplog.records


def row(operating_point: str, speedup: float | None, *, lossless: bool = False) -> SummaryRow:
    metrics = {} if speedup is None else {"speedup": Estimate(value=speedup)}
    return SummaryRow(
        operating_point=operating_point, strategy=operating_point.partition(":")[0], options={}, task="py150",
        language="python", protocol="green-code", source="made up", model="m", weights="tuned", kv="propagate",
        batch_size=1, dtype="float32", decode="lossless" if lossless else "lossy", n=2, errors=0, repeats=1,
        metrics=metrics | ({} if lossless else {"edit_similarity": Estimate(value=0.5)}),
    )  # fmt: skip


def summarise(directory: Path, *rows: SummaryRow, records: str | None = None) -> None:
    """Leave nothing of a run but its windows and a summary with these rows."""
    (directory / SAMPLES).unlink(missing_ok=True)
    seal = last_seal(directory) if records is None else records
    write_document(
        directory / SUMMARY,
        Summary(schema_version=SUMMARY_VERSION, machine="a machine", notes=(), rows=rows, records=seal),
    )


@pytest.fixture
def measured(tmp_path: Path) -> Iterator[tuple[StudyDirectory, tuple[Point, ...]]]:
    with open_study(tmp_path / "s", 3) as study:
        put_runs(study, *study.points)
        for point in study.points:
            study.log(point, "finished")
        yield study, study.points


def test_the_fastest_points_are_lossless_ones_first_and_neither_full_depth_nor_bounds(
    cli: Command, measured: tuple[StudyDirectory, tuple[Point, ...]]
) -> None:
    study, (first, second, third) = measured
    summarise(
        study.directory(first),
        row("full", 1.0),
        row("oracle", 9.0),
        row("fixed:layer=4", 3.0),
        row("lte", None),
        row("full@lossless", 1.5, lossless=True),
    )
    summarise(study.directory(second), row("classifier", 4.0), row("classifier@lossless", 2.0, lossless=True))
    summarise(study.directory(third), row("fixed:layer=6", 8.0), records="0" * 64)  # of other records
    view = StudyView(study.path)
    view.look()
    assert [(each.operating_point, each.speedup) for each in view.best()] == [
        ("classifier@lossless", 2.0), ("full@lossless", 1.5), ("classifier", 4.0), ("fixed:layer=4", 3.0)
    ]  # fmt: skip
    assert [each.operating_point for each in view.best(1)] == ["classifier@lossless", "classifier"]
    found = json.loads(cli("watch", study.path, "--json").out)["best"]
    assert found[0] == {
        "point": second.name, "task": "py150", "operating_point": "classifier@lossless", "lossless": True,
        "speedup": 2.0, "edit_similarity": None,
    }  # fmt: skip
    assert "2.00×" in cli("watch", study.path, "--once").out
    with pytest.raises(StoreError, match=r"is no study: it has no study\.json"):
        StudyView(study.path / "runs").look()


def test_looking_loads_no_torch(measured: tuple[StudyDirectory, tuple[Point, ...]]) -> None:
    study, _ = measured
    probe = (
        f"import sys\nsys.argv = ['harness', 'watch', {str(study.path)!r}, '--once']\nfrom harness.cli import main\n"
        "try:\n    main()\nfinally:\n    print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 points measured" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_live_view_goes_on_after_a_failure_and_ends_when_the_driver_has_died(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=100)
    monkeypatch.setattr("harness.commands.study.stdout", lambda: console)
    with open_study(tmp_path / "s", 3) as study:
        first, second, third = study.points
        steps = iter(
            (
                lambda: study.log(first, "started"),
                lambda: study.log(first, "failed", reason="layer 3 is no exit point"),
                lambda: study.log(second, "started"),
                lambda: study.log(second, "finished", took_s=5),
                lambda: study.log(third, "started"),
                study.__exit__,
            )
        )
        monkeypatch.setattr("harness.commands.study.time", SimpleNamespace(sleep=lambda seconds: next(steps)()))
        assert cli("watch", study.path).code == 4
        assert next(steps, None) is None, "it stopped looking"
    shown = file.getvalue()
    assert f"✗ {first.name}: layer 3 is no exit point" in shown
    assert "Stopped: no process measures it." in shown
    assert "1 of 3 points measured · 0 running · 1 failed · 1 waiting" in shown
