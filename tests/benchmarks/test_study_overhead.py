"""What a study adds to its points (grid, two flushed lines of the log), and how soon it goes on when all is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from study_cost import MOST_PER_POINT_S, MOST_TO_RESUME_S, one_round


@pytest.mark.parametrize("points", [100, 1000, 10_000])
def test_scheduling_and_storage_of_a_point(benchmark: Any, tmp_path: Path, points: int) -> None:
    found = benchmark.pedantic(one_round, (tmp_path / "s", points), rounds=1)
    print(f"\n  {points} points: {found['added_s'] * 1e3:.2f} ms each, all of them again in {found['resume_s']:.2f} s")
    assert found["added_s"] < MOST_PER_POINT_S
    assert found["resume_s"] < MOST_TO_RESUME_S
