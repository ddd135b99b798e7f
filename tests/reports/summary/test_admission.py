"""Records that cannot count are left out, never silently."""

from __future__ import annotations

import pytest

FULL, OTHER = "full", "fixed:layer=5"


def notes_of(run) -> str:
    return "\n".join(run.summary().notes)


def pairs(run, blocks=6):
    for block in range(blocks):
        run.window(FULL, {}, block=block, duration=2.0)
        run.window(OTHER, {}, block=block, duration=1.0)
    return run


def test_a_clean_run_has_nothing_to_say(build) -> None:
    assert "left out" not in notes_of(pairs(build())).replace("paired columns leave", "")


@pytest.mark.parametrize("duration", [-1.0, 0.0, float("nan"), float("inf")])
def test_a_window_whose_clock_ran_backwards_is_left_out_and_counted(build, duration) -> None:
    run = pairs(build())
    run.windows[1] = run.windows[1].model_copy(update={"duration_s": duration})
    row = run.row(OTHER)
    assert (row.n, row.value("speedup")) == (5, 2.0)
    assert "1 of 12 windows left out, with their samples: for a clock that stood still or ran backwards." in notes_of(
        run
    )


def test_superseded_windows_are_replaced_by_their_repetition_and_counted(build) -> None:
    run = build()
    run.window(FULL, {"scores": {"bleu": 0.1}}, duration=50.0, superseded=True)
    pairs(run)
    assert run.row(FULL).n == 6
    assert run.row(FULL).value("tokens_per_s") == pytest.approx(3 / 2)
    assert (
        "1 window(s), idle ones included, were contaminated () and measured again (--strict); superseded"
        in notes_of(run)
    )
    assert "windows left out" not in notes_of(run)  # counted once


def test_records_of_another_run_are_left_out_and_counted(build) -> None:
    run = pairs(build())
    run.window("somebody else's", {}, {})
    run.window(FULL, {}, task="another task")
    text = notes_of(run)
    assert [row.n for row in run.summary().rows] == [6, 6]
    assert "2 of 14 windows left out, with their samples: for a task or operating point that the manifest" in text


def test_idle_windows_make_no_row_and_no_note(build) -> None:
    run = pairs(build())
    run.idle(energy_j=1.0, duration=1.0, energy_source="rapl")
    assert [row.n for row in run.summary().rows] == [6, 6]
    assert "left out" not in notes_of(run)
    run.idle(energy_j=1.0, duration=-1.0, energy_source="rapl")
    assert "1 of 2 idle windows left out" in notes_of(run)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"token_times_s": (0.1, 0.3, 0.2)}, "ran backwards"),
        ({"token_times_s": (-0.1, 0.2, 0.3)}, "ran backwards"),
        ({"ttft_s": 0.9}, "ran backwards"),
        ({"queue_s": -0.5}, "ran backwards"),
        ({"latency_s": float("nan")}, "not finite"),
        ({"scores": {"bleu": float("inf")}}, "not finite"),
        ({"exit_layers": (10, 11, 5)}, "an exit layer outside 1…10"),
        ({"exit_layers": (10, 0, 5)}, "an exit layer outside 1…10"),
    ],
)
def test_a_sample_that_cannot_be_true_is_left_out_and_counted(build, change, why) -> None:
    run = pairs(build())
    run.samples[0] = run.samples[0].model_copy(update=change)
    assert run.row(FULL).n == 5
    assert len(run.summary().rows) == 2
    (note,) = [note for note in run.summary().notes if "sample records left out" in note]
    assert note.startswith("1 of 12 sample records left out for ")
    assert why in note


def test_samples_without_their_window_are_counted(build) -> None:
    run = pairs(build())
    run.windows.pop()
    run.samples[0] = run.samples[0].model_copy(update={"operating_point": OTHER})
    text = notes_of(run)
    assert "1 of 12 sample records left out for a window that was not committed" in text
    assert "1 of 12 sample records left out for a window of another task or operating point" in text


def test_a_task_without_samples_says_so(build) -> None:
    run = build()
    manifest = run.manifest
    task = manifest.tasks[0].model_copy(update={"samples": 0})
    from reports.summary.summarise import summarise

    summary = summarise(manifest.model_copy(update={"tasks": (task,)}), [], [], lambda *_: {})
    assert any("py150: no sample was drawn" in note for note in summary.notes)


@pytest.mark.parametrize("broken", [{"token_ids": ()}, {"token_times_s": ()}, {"exit_layers": (10, 10)}])
def test_a_sample_whose_lists_do_not_match_is_left_out_and_counted(build, broken) -> None:
    run = pairs(build())
    run.samples[1] = run.samples[1].model_copy(update=broken)
    assert run.row(OTHER).n == 5
    assert "1 of 12 sample records left out for tokens, exit layers and times that are missing" in notes_of(run)
