"""What a study's folder holds, and how soon it is read when it is large."""

from __future__ import annotations

import time
from pathlib import Path

from harness.study.conduct import Outcome, conduct
from harness.study.grid import StudyConfig, expand
from harness.study.ledger import EVENTS, RUNS, Event, StudyDirectory
from harness.study.status import read_status

from .inline import Inline


class Nobody:
    def begin(self, total: int, done: int) -> None:
        self.counts = (total, done)

    def happened(self, event: object) -> None:
        raise AssertionError("nothing is left to do")

    def ended(self, name: str, reason: str) -> None:
        raise AssertionError("nothing is left to do")


def test_ten_thousand_finished_points_resume_in_three_seconds(tmp_path: Path) -> None:
    grid = StudyConfig.build({"grid": {"seed": list(range(5000)), "tasks": ["py150", "javacorpus"]}})
    lines = []
    for point in expand(grid):
        folder = tmp_path / RUNS / point.name
        folder.mkdir(parents=True)
        (folder / "summary.json").touch()
        event = {"at": "2026-01-01T00:00:00+00:00", "point": point.name, "identity": point.identity}
        lines += [
            Event(**event, what="started").model_dump_json(),
            Event(**event, what="finished", records_bytes=0).model_dump_json(),
        ]
    (tmp_path / EVENTS).write_text("\n".join(lines) + "\n")
    (tmp_path / "study.json").write_text(
        '{"schema_version": 1, "created": "2026-01-01T00:00:00+00:00", "declared": {}, "points": {}}'
    )
    nobody = Nobody()
    began = time.process_time()
    with StudyDirectory(tmp_path, grid, expand(grid)) as study:
        outcome = conduct(study, Inline(), nobody)
    seconds = time.process_time() - began
    assert outcome == Outcome(finished=10_000)
    assert nobody.counts == (10_000, 10_000)
    assert seconds < 3
    assert read_status(tmp_path).exit_code == 0
