"""Two points on one machine never share a physical core: a made-up one with two threads on each."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from harness.errors import ConfigError
from harness.study.executors import sharing as own_cores
from harness.study.executors.sharing import hold_cores, points_on

SETS = ((0, 4), (1, 5), (2, 6), (3, 7))

pytestmark = pytest.mark.skipif(os.name == "nt", reason="processes are not pinned there")


@pytest.fixture
def pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """The logical CPUs of each call that pins this process, which stays where it is."""
    calls: list[set[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: calls.append(set(cores)), raising=False)
    monkeypatch.setattr(own_cores, "sibling_sets", lambda: SETS)
    monkeypatch.setattr(own_cores, "FREED_S", 0.0)
    monkeypatch.setattr(own_cores, "LOOK_S", 0.0)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    return calls


def test_points_get_whole_cores_of_their_own(pinned: list[set[int]]) -> None:
    first = hold_cores(3)
    second = hold_cores(4)
    assert pinned == [{0, 4, 1, 5}, {2, 6, 3, 7}]
    with pytest.raises(ConfigError, match=r"has 0 free logical CPUs where a point wants 1\. Use fewer: cpus=N\."):
        hold_cores(1)
    for lock in first:
        lock.close()
    assert len(hold_cores(2)) == 2
    assert pinned[2] == {0, 4}
    assert not any(lock.closed for lock in second)


def test_what_holds_one_thread_of_a_core_keeps_the_others_from_it(pinned: list[set[int]], tmp_path: Path) -> None:
    kept = hold_cores(2)
    kept[0].close()  # CPU 0; its sibling is still held
    hold_cores(2)
    assert pinned == [{0, 4}, {1, 5}]


def test_all_cores_are_not_pinned(pinned: list[set[int]]) -> None:
    assert hold_cores(0) == []
    assert pinned == []


@pytest.mark.parametrize(
    ("sets", "count", "points"),
    [
        (SETS, 8, 1),
        (SETS, 4, 2),
        (SETS, 3, 2),  # two cores each
        (SETS, 1, 4),  # a core each, not a thread
        (SETS, 9, 0),
        (((0,), (1,), (2,)), 1, 3),
        (((0, 1), (2,), (3,)), 2, 2),  # large cores and small ones
    ],
)
def test_points_that_fit_at_once(sets: tuple[tuple[int, ...], ...], count: int, points: int) -> None:
    assert points_on(sets, count) == points
