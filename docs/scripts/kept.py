"""The numbers behind the documentation's tables, kept beside its pages: ``docs/results/data/STUDY.json``.

A file holds the summaries of a study's runs, five digits of each number, and what only their records tell. Every table
is made of these files alone, so that readers can derive it without the run directories.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from harness.errors import HarnessError
from harness.records.record import Record
from harness.records.summary import Summary
from harness.running.reading import find_runs, read_run
from reports.recorded import RecordedRun


class MissingRunsError(HarnessError):
    """Runs of a table are not there, or not finished."""


class KeptRun(Record):
    """One run: when it began, how prompts were cut, the mean tokens of those of each task, and its summary."""

    created: str
    protocols: tuple[str, ...]
    prompt_tokens: tuple[float, ...] = ()
    max_new_tokens: int | None = None
    summary: Summary


class Kept(Record):
    """One study: the command that makes it, its runs, and what only records or replays tell, by name."""

    command: str
    runs: tuple[KeptRun, ...] = ()
    documents: dict[str, Any] = Field(default_factory=dict)

    def write(self, file: Path) -> None:
        """Write it, a row of a summary on a line of its own."""
        file.parent.mkdir(parents=True, exist_ok=True)
        fields = {**self.model_dump(mode="json", exclude_defaults=True), "documents": self.documents}
        text = json.dumps(_short(fields), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        file.write_text(text.replace('{"operating_point":', '\n{"operating_point":') + "\n", encoding="utf-8")


Found = Mapping[str, Kept]
"""Study → what is kept of it."""
Tell = Callable[[Sequence[RecordedRun], Path], tuple[Sequence[RecordedRun], Mapping[str, Any]]]
"""``(runs, folder) -> (runs to keep, documents)`` of a study of which summaries are not all."""


def read(file: Path) -> Kept:
    """Return what is kept of a study."""
    if not file.is_file():
        raise MissingRunsError(f"there is no {file}")
    return Kept.model_validate_json(file.read_text(encoding="utf-8"))


def collect(folder: Path, command: str, tell: Tell | None = None) -> Kept:
    """Return what is to be kept of a finished study in a folder."""
    runs: Sequence[RecordedRun] = [read_run(path) for path in _directories(folder)]
    for run in runs:
        if run.state:
            raise MissingRunsError(f"{run.directory} is {run.state}")
    documents: Mapping[str, Any] = {}
    if tell is not None:
        runs, documents = tell(runs, folder)
    kept = tuple(
        KeptRun(
            created=run.manifest.created,
            protocols=tuple(dict.fromkeys(task.protocol for task in run.manifest.tasks)),
            prompt_tokens=tuple(
                task.prompt_tokens_mean for task in run.manifest.tasks if task.prompt_tokens_mean is not None
            ),
            max_new_tokens=run.manifest.config.get("max_new_tokens"),
            summary=run.summary.model_copy(update={"notes": (), "records": ""}),
        )
        for run in runs
    )
    return Kept(command=command, runs=kept, documents=dict(documents))


def document(file: Path) -> dict[str, Any]:
    """Return a JSON document of a study."""
    if not file.is_file():
        raise MissingRunsError(f"there is no {file}")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _directories(folder: Path) -> Iterable[Path]:
    """Return the runs of a study in its order, or all below a folder that is none."""
    if not folder.is_dir():
        raise MissingRunsError(f"there is no {folder}")
    if not (folder / "study.json").is_file():
        return find_runs([folder]) if any(folder.rglob("manifest.json")) else []
    points = document(folder / "study.json")["points"]
    ends = [name.rpartition("-")[2] for name in points]  # of a hash, by which a folder is found whatever its name
    found = [run for end in ends for run in folder.glob(f"runs/*-{end}") if (run / "summary.json").is_file()]
    if len(found) < len(points):
        raise MissingRunsError(f"{len(found)} of {len(points)} points of {folder} are measured")
    return found


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _short(each) for name, each in value.items()}
    return [_short(each) for each in value] if isinstance(value, list) else value
