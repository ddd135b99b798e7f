"""No number without its catch."""

from __future__ import annotations

import pytest

from harness.records import MeterRecord
from reports.summary.notes import PROJECTS
from reports.summary.summarise import summarise

FULL, OTHER = "full", "fixed:layer=5"


def notes_of(run) -> str:
    return "\n".join(run.summary().notes)


def finished(run, blocks: int = 1, repeats: int = 1, **more):
    for block in range(blocks):
        for repeat in range(repeats):
            for point in run.points:
                run.window(point, {}, block=block, repeat=repeat, **more)
    return run


@pytest.mark.parametrize(
    ("built", "said"),
    [
        ({"weights": "random"}, "random weights: accuracy columns mean nothing"),
        ({"weights": "tuned"}, PROJECTS),
        ({"tokenizer_source": "stand-in: smollm2-135m"}, "tokenizer stand-in: smollm2-135m"),
        (
            {"source_kind": "embedded", "source": "embedded: Python 3.11 standard library"},
            "py150: the samples come from Python 3.11 standard library, not from the published py150 test set",
        ),
        ({"kv": "none"}, "compute-bound"),
        ({"batch_size": 4}, "rows share each read"),
        ({"kv": "recompute"}, "run later"),
        ({"kv": "skip"}, "holes"),
    ],
)
def test_what_a_run_is_made_of_is_said(build, built, said) -> None:
    assert said in notes_of(finished(build(**built)))
    assert said not in notes_of(finished(build()))


def test_an_estimate_says_how_it_is_made_and_why(build) -> None:
    meter = MeterRecord(
        source="estimate",
        description="CPU-seconds × 65 W / 8 cores",
        sensor_period_s=None,
        unavailable={"nvml": "absent"},
    )
    text = notes_of(finished(build(meter=meter), energy_j=1.0, energy_source="estimate"))
    assert "estimate, not a measurement (CPU-seconds × 65 W / 8 cores)" in text
    assert "nvml: absent" in text


def test_missing_energy_is_said_with_its_reason(build) -> None:
    meter = MeterRecord(source="none", description="", sensor_period_s=None, unavailable={"rapl": "permission denied"})
    assert "energy was not measured (rapl: permission denied)" in notes_of(finished(build(meter=meter)))
    run = finished(build(), energy_source="nvml", energy_reason="window shorter than 10 sensor periods")
    assert "2 of 2 windows have no energy reading (window shorter than 10 sensor periods)" in notes_of(run)


def test_a_flag_says_what_it_means(build) -> None:
    run = finished(build())
    run.window(FULL, {}, block=1, flags=("foreign-cpu", "unheard-of"))
    text = notes_of(run)
    assert "1 of 3 windows are flagged 'foreign-cpu': other processes took more than 5 % of the machine" in text
    assert "1 of 3 windows are flagged 'unheard-of'." in text


def test_what_does_not_count_is_counted_and_changes_no_row(build) -> None:
    run = finished(build())
    rows = run.summary().rows
    run.window(FULL, {}, superseded=True, duration=99.0, flags=("throttled", "short-window"))
    run.window(OTHER, {}, superseded=True, duration=99.0, flags=("foreign-cpu",))
    run.window("", task="", idle=True, flags=("stolen-cpu",))
    run.window(FULL, warmup=True, flags=("not-settled",))
    assert run.summary().rows == rows
    text = notes_of(run)
    assert "2 window(s), idle ones included, were contaminated (foreign-cpu, throttled) and measured again" in text
    assert "had not settled" in text
    assert "are flagged" not in text


def test_small_runs_say_so_and_large_ones_do_not(build) -> None:
    small = notes_of(finished(build()))
    assert "single repeat" in small
    assert "few samples (1)" in small
    assert "p99 is close to the slowest sample" in small
    large = notes_of(finished(build(), blocks=50, repeats=2))
    for words in ("single repeat", "few samples", "p99"):
        assert words not in large


def test_errors_bad_rows_and_unfinished_runs_are_said(build) -> None:
    run = build(bad_rows=2)
    run.window(FULL, {}, {})
    run.window(OTHER, {}, {"error": "broken"})
    text = notes_of(run)
    assert "2 row(s) of the data could not become samples" in text
    assert "py150: 1 failure(s)" in text
    assert "finished 1 to 2 samples" in text


def test_layers_on_several_devices_and_other_graphs_are_said(build) -> None:
    run = finished(build())
    config = {**run.manifest.config, "device": "cuda", "graphs": "off"}
    changed = {"placement": {"layers": "layers 1–5 on cuda, 6–10 on cpu"}, "config": config}
    summary = summarise(run.manifest.model_copy(update=changed), run.windows, run.samples, lambda *_: {})
    said = [note for note in summary.notes if note.startswith(("layers 1–5 on cuda, 6–10 on cpu", "CUDA graphs: off"))]
    assert len(said) == 2
    assert not any(word in notes_of(run) for word in ("--device-map", "CUDA graphs"))
