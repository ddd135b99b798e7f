"""Further numbers of GREEN-CODE's authors: the cost of their agent (Table IV).

Source: as :mod:`reports.green_code.published_runs`. Overhead was measured with one sensor window inside another, per
sample; the paper's Table IV is the Python rows at its own thresholds, the others are in the result files only. It
reports about 2.9 ms a check where the same authors' run that never exits implies 0.2 ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from reports.green_code.published_runs import read_rows

__all__ = ["Overhead", "overhead_of"]


@dataclass(frozen=True, slots=True)
class Overhead:
    """What the agent cost in one of the authors' instrumented runs.

    Attributes:
        model, language, threshold, context, samples: which run.
        time_s, energy_j: of a sample, instrumented; ``…_std…`` over the samples.
        agent_time_s, agent_energy_j: of a sample's exit checks.
        time_of_run, energy_of_run: the agent's share of the instrumented run itself.
        time_of_full, energy_of_full: the same over full depth, as in Table IV; ``None`` where there is no such run.
    """

    model: str
    language: str
    threshold: float
    context: float
    samples: int
    time_s: float
    time_std_s: float
    energy_j: float
    energy_std_j: float
    agent_time_s: float
    agent_energy_j: float
    time_of_run: float
    energy_of_run: float
    time_of_full: float | None
    energy_of_full: float | None


@cache
def _overheads() -> tuple[Overhead, ...]:
    """Return every instrumented run, in the authors' order."""
    words = {"model", "language", "samples"}
    return tuple(
        Overhead(
            model=row["model"],
            language=row["language"],
            samples=int(row["samples"]),
            **{key: float(value) if value else None for key, value in row.items() if key not in words},  # type: ignore[arg-type]
        )
        for row in read_rows("green-code-overhead.csv")
    )


def overhead_of(model: str, language: str, threshold: float) -> Overhead | None:
    """Return the instrumented run of a point of the grid, with the grid's context; ``None`` where there is none."""
    return next(
        (
            run
            for run in _overheads()
            if (run.model, run.language, run.threshold, run.context) == (model, language, threshold, 0.2)
        ),
        None,
    )
