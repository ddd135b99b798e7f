"""The CodeXGLUE leaderboard of code completion: other systems on the official test sets.

Source: the public leaderboard of CodeXGLUE (Lu et al., "CodeXGLUE", 2021, arXiv 2102.04664), tasks "code completion,
line level" (exact match, edit similarity) and "token level" (accuracy), on PY150 and Github Java Corpus. The official
test answers are withheld, so nothing measured by this harness is on the same set: its rows are official dev rows, or
other code. Scores as fractions; ``None`` where a system has no entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from reports.published.green_code import read_rows

__all__ = ["DATASETS", "LeaderboardEntry", "codexglue"]

DATASETS = {"py150": "python", "javacorpus": "java"}
"""The leaderboard's datasets and their languages."""


@dataclass(frozen=True, slots=True)
class LeaderboardEntry:
    """One system on one dataset.

    Attributes:
        system: as the leaderboard names it.
        dataset: key of :data:`DATASETS`.
        exact_match, edit_similarity: line completion, 0…1.
        token_accuracy: token completion, 0…1.
    """

    system: str
    dataset: str
    exact_match: float | None
    edit_similarity: float | None
    token_accuracy: float | None


@cache
def codexglue() -> tuple[LeaderboardEntry, ...]:
    """Return what the leaderboard has of each dataset, PY150 first, in its order; systems without an entry omitted."""
    entries = (_entry(row, dataset) for dataset in DATASETS for row in read_rows("codexglue.csv"))
    return tuple(entry for entry in entries if entry.exact_match is not None or entry.token_accuracy is not None)


def _entry(row: dict[str, str], dataset: str) -> LeaderboardEntry:
    def score(name: str) -> float | None:
        text = row[f"{dataset}_{name}"]
        return float(text) if text else None

    return LeaderboardEntry(
        row["system"], dataset, score("exact_match"), score("edit_similarity"), score("token_accuracy")
    )
