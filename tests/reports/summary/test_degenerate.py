"""A full depth that says nothing is the first thing a report says."""

from __future__ import annotations

from typing import Any

import pytest

from reports.summary.measured import select
from reports.summary.notes import degenerate

FULL, OTHER = "full", "fixed:layer=5"
SAME = [{"token_ids": (7,) * length} for length in (2, 3, 5, 2)]
LOST = "logits of layer 10 are not finite at token 1: weights or activations overflow in bfloat16."


def of(run: Any) -> str | None:
    return degenerate(run.manifest, select(run.manifest, run.windows, run.samples).values())


def measured(build: Any, *full: dict[str, Any], tasks: tuple[str, ...] = ("py150",), **more: Any) -> Any:
    """A run whose full depth made this on its last task; everything else is sound."""
    run = build(tasks=tasks, **more)
    sound = {"scores": {"edit_similarity": 0.5}}
    for task in tasks:
        here = full if task == tasks[-1] else [{}] * len(full)
        run.window(FULL, *({**sound, **one} for one in here), task=task)
        run.window(OTHER, *[sound] * len(full), task=task, duration=0.5)
    return run


@pytest.mark.parametrize(
    "full",
    [
        SAME[:3],  # three may be chance
        [*SAME[:3], {"token_ids": (7,)}],  # a single token is no text
        [*SAME, {"token_ids": (7, 7, 8)}],
        [*SAME, {"token_ids": (8,)}],
        [{"token_ids": (one,) * 4} for one in (1, 2, 3, 4)],  # each repeats itself, and no two are alike
        [{}, {"error": LOST}],
        [],
    ],
)
def test_full_depth_that_says_something(build: Any, full: list[dict[str, Any]]) -> None:
    run = measured(build, *full)
    assert of(run) is None
    assert not run.summary().notes[0].startswith("full depth")


def test_one_token_over_and_over(build: Any) -> None:
    run = measured(build, *SAME)
    assert of(run) == "full depth on py150 makes token 7 and no other, in all of its 4 completions"
    summary = run.summary()
    assert summary.notes[0].startswith("full depth on py150 makes token 7 and no other, in all of its 4 completions: ")
    assert "never ranked" in summary.notes[0]
    varied = measured(build, *SAME[:3], {"token_ids": (7, 8)})
    for each, marked in ((run, False), (varied, True)):
        for block in range(1, 8):  # enough to tell
            each.window(FULL, {"token_ids": (7, 7)}, block=block)
            each.window(OTHER, {"token_ids": (7, 7)}, block=block, duration=0.5)
        assert any(row.pareto for row in each.summary().rows) is marked


def test_random_weights_that_repeat_one_token_say_so_too(build: Any) -> None:
    notes = measured(build, *SAME, weights="random").summary().notes
    assert [note[:14] for note in notes[:2]] == ["full depth on ", "random weights"]


def test_every_sample_failed(build: Any) -> None:
    run = measured(build, {"error": LOST, "prompt_ids": (1,)}, {"error": "another", "prompt_ids": (1,)})
    assert of(run) == f"full depth on py150 failed on every sample (the first one: {LOST[:-1]})"
    assert run.summary().notes[0].startswith("full depth on py150 failed on every sample")
    assert not any(row.pareto for row in run.summary().rows)


def test_rows_of_the_data_that_could_not_become_samples_say_nothing_of_the_model(build: Any) -> None:
    assert of(measured(build, {"error": "row 1: is not JSON", "prompt_ids": ()})) is None


def test_one_task_of_two_is_enough(build: Any) -> None:
    assert "full depth on javacorpus makes token 7" in str(of(measured(build, *SAME, tasks=("py150", "javacorpus"))))


def test_a_later_repeat_and_other_operating_points_do_not_count(build: Any) -> None:
    run = build()
    for repeat in (0, 1):
        run.window(FULL, *SAME[:2], repeat=repeat)
    run.window(OTHER, *SAME)
    assert of(run) is None
