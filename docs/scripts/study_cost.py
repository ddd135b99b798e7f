"""What a study adds to its points, and how soon it goes on when all are measured, by the number of points.

    .venv/bin/python docs/scripts/study_cost.py [--points 100 1000 10000] [--rounds 5]

No point is measured: an executor finishes each at once, so that what is left is the study's own work, the grid, the
scheduling and two flushed lines of the log. Every round is a new study in FOLDER, on the disk that is meant: a ``/tmp``
in memory flushes nothing. Writes ``study-cost.json``, every round with the machine, and ``study-cost.png`` into --out.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from harness.contracts.executors import Executor, Happened, Job
from harness.errors import HarnessError
from harness.host.environment import describe, machine_line
from harness.study.conduct import conduct
from harness.study.grid import StudyConfig, expand
from harness.study.ledger import EVENTS, STUDY, StudyDirectory
from reports.figures import drawing
from reports.files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

NAME = "study-cost"
MOST_PER_POINT_S = 0.05
MOST_TO_RESUME_S = 3.0
PANELS = (
    ("added to a point", "ms", "added_s", 1e3, MOST_PER_POINT_S),
    ("written for a point", "bytes", "written_bytes", 1.0, None),
    ("to go on when all are measured", "s", "resume_s", 1.0, MOST_TO_RESUME_S),
)
"""Title, unit, key of a round, what it is multiplied by, and the most that is wanted in SI units."""


class Instant(Executor):
    """Finishes every point at once, with the one file that says so."""

    def __init__(self) -> None:
        self._job: Job | None = None

    @classmethod
    def open(cls, options: Mapping[str, str]) -> Self:
        """Start it; it has no options."""
        return cls()

    def has_room(self, job: Job) -> bool:
        """Whether nothing was begun."""
        return self._job is None

    def start(self, job: Job) -> None:
        """Begin a job."""
        self._job = job

    def wait(self) -> Happened:
        """Finish it."""
        job, self._job = self._job, None
        assert job is not None
        job.directory.mkdir(parents=True)
        (job.directory / "summary.json").touch()
        return Happened(job, "done", place="here:1")

    def close(self) -> None:
        """Do nothing: nothing runs."""


class _Nobody:
    def begin(self, total: int, done: int) -> None: ...

    def happened(self, event: Happened) -> None: ...

    def ended(self, name: str, reason: str) -> None: ...


def run_study(folder: Path, points: int) -> float:
    """Return the seconds that a study of so many points takes in a folder, new or finished."""
    grid = StudyConfig.build({"run": {"limit": 100}, "grid": {"seed": list(range(points))}})
    began = time.perf_counter()
    with StudyDirectory(folder, grid, expand(grid)) as directory:
        finished = conduct(directory, Instant(), _Nobody()).finished
    took_s = time.perf_counter() - began
    assert finished == points
    return took_s


def one_round(folder: Path, points: int) -> dict[str, float]:
    """Return what a new study of so many points costs: ``added_s`` and ``written_bytes`` per point, ``resume_s``."""
    added_s = run_study(folder, points) / points
    written = sum((folder / name).stat().st_size for name in (STUDY, EVENTS)) / points
    return {"added_s": added_s, "written_bytes": written, "resume_s": run_study(folder, points)}


def measure(folder: Path, counts: Sequence[int], rounds: int) -> dict[str, Any]:
    """Return every round of each number of points, with date and machine, JSON-able."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, float]]] = {str(points): [] for points in counts}
    for _ in range(rounds):  # in turns, so that drift of the machine favours no number of points
        for points in counts:
            with tempfile.TemporaryDirectory(dir=folder, prefix="study-cost-") as made:
                found[str(points)].append(one_round(Path(made) / "study", points))
    facts = describe()
    return {"measured": datetime.now(UTC).date().isoformat(), "machine": machine_line(facts), "points": found}


def draw(found: Mapping[str, Any]) -> Canvas:
    """Draw what :func:`measure` returned: each round a point, a line through the medians, dashed what is wanted."""
    counts = sorted(map(int, found["points"]))
    canvas, axes = drawing.panels("text", len(PANELS), 2.1, across=3)
    colour = drawing.look_of("rl").colour
    for place, (title, unit, key, scale, most) in zip(axes, PANELS, strict=True):
        values = {points: [each[key] * scale for each in found["points"][str(points)]] for points in counts}
        for points, each in values.items():
            place.plot([points] * len(each), each, "o", color=colour, markersize=3, alpha=0.5)
        place.plot(counts, [statistics.median(values[points]) for points in counts], color=colour)
        place.set(title=title, xlabel="points of the study", ylabel=unit, xscale="log")
        place.set_xticks(counts, [f"{points:,}" for points in counts])
        if most is None:
            place.set_ylim(0, 1.2 * max(max(each) for each in values.values()))
        else:
            place.axhline(most * scale, color=drawing.QUIET, linestyle="--")
            drawing.near(place, f"at most {most * scale:g} {unit}", (counts[0], most * scale), (0, -3), va="top")
            place.set_yscale("log")
    rounds, ink = max(map(len, found["points"].values())), drawing.QUIET
    canvas.text(0.01, -0.05, f"{found['machine']}; {found['measured']}, {rounds} rounds", fontsize=6, color=ink)
    return canvas


def main(given: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, nargs="+", default=[100, 1000, 10_000], help="numbers of points")
    parser.add_argument("--rounds", type=int, default=5, help="new studies of each number")
    parser.add_argument("--folder", type=Path, default=Path("studies"), help="where they are made, and removed")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "gallery", help="folder of the JSON file and picture"
    )
    asked = parser.parse_args(given)
    found = measure(asked.folder, asked.points, asked.rounds)
    replace_file(asked.out / f"{NAME}.json", f"{json.dumps(found, indent=2)}\n".encode())
    with drawing.styled(NAME):
        stream = io.BytesIO()
        draw(found).savefig(stream, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
    replace_file(asked.out / f"{NAME}.png", stream.getvalue())
    for points, rounds in found["points"].items():
        middle = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        print(
            f"{points:>7} points: {middle['added_s'] * 1e3:.2f} ms and {middle['written_bytes']:.0f} bytes each, "
            f"all of them again in {middle['resume_s']:.2f} s"
        )


if __name__ == "__main__":
    try:
        main()
    except HarnessError as error:
        sys.exit(str(error))
