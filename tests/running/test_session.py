"""Windows of a whole run: idle, contaminated, cut short by a sensor; with recorded readings and a made-up machine."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import RunConfig, run
from harness.decoding.heads.int8 import Int8
from harness.decoding.teacher_forcing import TeacherForcing
from harness.errors import ConfigError, MeterError
from harness.metering import Surroundings
from harness.metering.contamination import Contamination, Glance
from harness.metering.counters import WARMUP_PASSES
from harness.running import session
from harness.running.session import poisson, wait_until
from tests.run_files import cut, lines

Command = Callable[..., Any]

STEP_J = 0.5
"""What the recorded counter grows by from one edge to the next."""


class Neighbours(Surroundings):
    """Says of one window after the other what the test says, and then that the machine was quiet."""

    script: Iterator[tuple[str, ...]] = iter(())

    def compare(self, before: Glance, after: Glance) -> Contamination:
        return Contamination(1.5, 0.25, next(self.script, ()))


@pytest.fixture
def neighbours(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[tuple[str, ...]]], None]:
    """``neighbours(flags of each window)``: warm-up and idle windows are windows, too."""

    def move_in(script: Sequence[tuple[str, ...]]) -> None:
        monkeypatch.setattr(Neighbours, "script", iter(script))

    monkeypatch.setattr("harness.running.session.Surroundings", Neighbours)
    monkeypatch.setattr("harness.metering.contamination.QUIET_S", 0.0)
    # one batch and two short passes are enough: the tests count windows
    monkeypatch.setattr("harness.running.session.settled", lambda passes: len(passes) == 2)
    return move_in


WARM = [(), (), ()]


@pytest.fixture
def config(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"limit": 2, "max_new_tokens": 3, "strategies": ("fixed:layer=4",)}


def recording(file: Path, edges: int, failure: str | None = None, **more: Any) -> str:
    """Write a recording of so many sound edges, and return the ``--energy`` that replays it."""
    readings: list[Any] = [{"package-0": STEP_J * edge, "psys": 7.0 * edge} for edge in range(edges)]
    if failure is not None:
        readings.append(failure)
    file.write_text(json.dumps({"scope": "cpu package", "period_s": 1e-5, "readings": readings, **more}))
    return f"replay:{file}"


def windows(folder: Path) -> list[dict[str, Any]]:
    return lines(folder, "windows")


def kinds(folder: Path) -> str:
    """One letter a window: Idle, Warm-up, superseded (x), or one that counts (.)."""
    return "".join(
        "I" if window["idle"] else "W" if window["warmup"] else "x" if window["superseded"] else "."
        for window in windows(folder)
    )


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_without_strict_a_contaminated_window_counts_with_its_flag_and_so_does_a_warm_up_that_never_settles(
    config: dict[str, Any], tmp_path: Path, neighbours: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    neighbours([*[()] * WARMUP_PASSES, ("foreign-cpu", "stolen-cpu")])
    monkeypatch.setattr("harness.running.session.settled", lambda passes: False)
    frame = run(RunConfig(**config | {"energy": "estimate"}))  # no sensor: no rest before or behind
    assert list(frame["n"]) == [2, 2]
    assert kinds(tmp_path / "out") == "W" * WARMUP_PASSES + "...."
    *warm, unsettled, flagged = windows(tmp_path / "out")[: WARMUP_PASSES + 1]
    assert not any(window["flags"] for window in warm)
    assert unsettled["flags"] == ["not-settled"]
    assert flagged["flags"] == ["foreign-cpu", "stolen-cpu"]
    assert (flagged["foreign_cpu_s"], flagged["stolen_cpu_s"]) == (1.5, 0.25)
    notes = summary(tmp_path / "out")["notes"]
    assert any("1 of 4 windows are flagged 'foreign-cpu'" in note for note in notes)
    assert any("had not settled" in note for note in notes)


def test_strict_measures_again_until_it_is_clean(config: dict[str, Any], tmp_path: Path, neighbours: Any) -> None:
    """The rest at the beginning, too, three times at most; a flag of the meter alone is passed over."""
    dirty = ("foreign-cpu",)
    neighbours([dirty, dirty, dirty, *WARM, ("throttled",), (), ("short-window",), ("clock-change",)])
    frame = run(RunConfig(**config | {"idle_s": 0.01, "strict": True}))
    out = tmp_path / "out"
    assert kinds(out) == "IIIWWWx..x..I"
    assert list(frame["n"]) == [2, 2]
    found = windows(out)
    assert [window["superseded"] for window in found[:4]] == [True, True, False, False]
    kept = [window["flags"] for window in found[6:-1] if not window["superseded"]]
    assert kept == [[], ["short-window"], [], []]
    first, second = found[6:8]
    assert [first[k] for k in ("block", "operating_point")] == [second[k] for k in ("block", "operating_point")]
    again = "idle ones included, were contaminated (clock-change, foreign-cpu, throttled) and measured again"
    assert any(f"4 window(s), {again}" in note for note in summary(out)["notes"])


def test_idle_stands_before_and_after_with_a_sensor(config: dict[str, Any], tmp_path: Path, neighbours: Any) -> None:
    neighbours([])
    energy = recording(tmp_path / "counter.json", 100)  # ticks of 10 µs: two seconds of full depth
    run(RunConfig(**config | {"energy": energy, "idle_s": 0.05}))
    out = tmp_path / "out"
    assert kinds(out) == "IWWW..I"  # the sensor decides that both samples are in one block
    for window in windows(out):
        assert (window["energy_j"], window["energy_source"], window["energy_scope"]) == (0.5, "replay", "cpu package")
    for window in (windows(out)[0], windows(out)[-1]):
        assert (window["task"], window["operating_point"], window["samples"], window["tokens"]) == ("", "", 0, 0)
        assert window["duration_s"] >= 0.05
        assert window["cpu_time_s"] < 0.04
    assert [row["metrics"]["energy_j"]["value"] for row in summary(out)["rows"]] == [0.5, 0.5]
    assert any("energy was replayed from a file (readings replayed" in note for note in summary(out)["notes"])


def test_a_resumed_run_rests_again_before_and_a_finished_one_does_not(
    config: dict[str, Any], tmp_path: Path, neighbours: Any
) -> None:
    neighbours([])
    settings, out = RunConfig(**config | {"idle_s": 0.01}), tmp_path / "out"
    run(settings)
    whole = (out / "windows.jsonl").read_bytes()
    run(settings, resume=out)
    assert (out / "windows.jsonl").read_bytes() == whole
    cut(out, -3)
    run(settings, resume=out)
    assert kinds(out) == "IWWW.." + "IWWW..I"
    cut(out, -1)
    run(settings, resume=out)  # everything is measured but the rest behind it
    assert kinds(out) == "IWWW.." + "IWWW.." + "IWWWI"


@pytest.mark.usefixtures("neighbours")
def test_a_sensor_that_vanishes_keeps_what_was_finished_and_resume_goes_on(
    cli: Command, config: dict[str, Any], tmp_path: Path
) -> None:
    good = 2 * (1 + 3 + 2) + 1  # rest, warm-up, two windows, and the left edge of the third
    energy = recording(tmp_path / "counter.json", good, "the device was unplugged")
    arguments = [
        *("--model", config["model"], "--source", config["source"], "--limit", 2, "--max-new-tokens", 3),
        *("--threads", 1, "--strategy", "fixed:layer=4", "--energy", energy, "--idle-s", 0.01, "--block-size", 1),
    ]
    ran = cli("run", *arguments, "--out", "out")
    line = ran.err.splitlines()[-1]
    assert ran.code == 2
    assert ran.out == ""
    assert "failed when a window ended: the device was unplugged" in line
    assert "2 finished windows are kept in out" in line
    assert "--resume out" in line
    assert kinds(tmp_path / "out") == "IWWW.."
    kept = windows(tmp_path / "out")

    recording(tmp_path / "counter.json", 100)  # the sensor is back
    assert cli("run", "--resume", "out").code == 0
    assert kinds(tmp_path / "out") == "IWWW.." + "IWWW..I"
    assert windows(tmp_path / "out")[: len(kept)] == kept
    assert [row["n"] for row in summary(tmp_path / "out")["rows"]] == [2, 2]


@pytest.mark.usefixtures("neighbours")
def test_readings_that_are_no_numbers_leave_their_windows_without_energy(
    config: dict[str, Any], tmp_path: Path
) -> None:
    recording(tmp_path / "counter.json", 100)
    content = json.loads((tmp_path / "counter.json").read_text())
    content["readings"][2 * 3] = {"package-0": float("nan")}  # the first edge after the warm-up
    (tmp_path / "counter.json").write_text(json.dumps(content))
    run(RunConfig(**config | {"energy": f"replay:{tmp_path / 'counter.json'}", "idle_s": 0, "block_size": 1}))
    measured = windows(tmp_path / "out")[3:]
    assert [window["energy_j"] for window in measured] == [None, 0.5, 0.5, 0.5]
    assert measured[0]["energy_reason"] == "the counter of package-0 gave no reading"
    by_point = {row["operating_point"]: row["metrics"].get("energy_j") for row in summary(tmp_path / "out")["rows"]}
    hit = measured[0]["operating_point"]
    assert by_point[hit] is None  # no smaller total
    assert [found["value"] for name, found in by_point.items() if name != hit] == [1.0]
    assert any("1 of 4 windows have no energy reading" in note for note in summary(tmp_path / "out")["notes"])


def test_a_clock_that_runs_backwards_stops_the_run_in_one_line(
    config: dict[str, Any], tmp_path: Path, neighbours: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.metering.clock import Clock

    neighbours([])
    seconds = iter([*range(2 * (3 + 2) + 1), -1000])  # two readings a window; the third measured one ends in the past
    monkeypatch.setattr(Clock, "monotonic_s", lambda self: float(next(seconds)))
    monkeypatch.setattr("harness.metering.contamination.Surroundings.glance", lambda self: Glance(0.0, 0.0))
    with pytest.raises(
        MeterError, match=r"gave a window a length of -10[01]\d\.0 s.*2 finished windows are kept.*--resume"
    ):
        run(RunConfig(**config))
    assert kinds(tmp_path / "out") == "WWW.."


def test_what_an_operating_point_runs_on_is_made_before_anything_is_measured(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cheap head takes as long to make as a completion: its point's first window must not pay for it.

    Nor does a window pay for what full depth would choose along its texts, which is asked behind it.
    """
    within, made, asked = [False], [], []
    make, window, choices = Int8.__init__, session.observed, TeacherForcing.choices

    def watched(self: Int8, *arguments: Any) -> None:
        made.append(within[0])
        make(self, *arguments)

    def chosen(self: TeacherForcing, completion: Any) -> list[int]:
        asked.append(within[0])
        return choices(self, completion)

    @contextmanager
    def open_window(*arguments: Any) -> Iterator[Any]:
        within[0] = True
        with window(*arguments) as closed:
            yield closed
        within[0] = False

    monkeypatch.setattr(Int8, "__init__", watched)
    monkeypatch.setattr(TeacherForcing, "choices", chosen)
    monkeypatch.setattr(session, "observed", open_window)
    points = ("confidence:threshold=1:head=int8", "fixed:layer=4@lossless", "fixed:layer=4")
    run(RunConfig(**config | {"strategies": points, "draft_head": "int8"}))
    assert made == [False]
    assert set(asked) == {False}


# ----------------------------------------------------------------------------------------- arrivals


def test_gaps_are_exponential_with_the_mean_of_the_rate() -> None:
    arrivals = poisson(4.0, 20_000, ("a",))
    gaps = [after - before for before, after in zip((0.0, *arrivals), arrivals, strict=False)]
    assert min(gaps) > 0
    assert statistics.mean(gaps) == pytest.approx(0.25, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(0.25, rel=0.05)  # as large as the mean: memoryless
    assert poisson(1.0, 5, (0, "py150", 3, 0)) == poisson(1.0, 5, (0, "py150", 3, 0))
    assert poisson(1.0, 5, (0, "py150", 3, 0)) != poisson(1.0, 5, (0, "py150", 4, 0))


def test_a_request_is_waited_for_and_a_late_server_finds_it_waiting() -> None:
    started = time.perf_counter()
    first = wait_until(started + 0.03)
    assert time.perf_counter() - started >= 0.03
    assert 0 <= first < 1  # a busy machine wakes nobody on time
    time.sleep(0.05)
    assert wait_until(started + 0.031) >= 0.04


def test_a_run_at_a_fixed_rate_counts_latency_from_the_arrival(config: dict[str, Any], tmp_path: Path) -> None:
    run(RunConfig(**config | {"limit": 8, "max_new_tokens": 4, "arrival_rate": 100.0}))
    samples = lines(tmp_path / "out", "samples")
    arrivals = {}
    for sample in samples:
        assert sample["latency_s"] == pytest.approx(sample["queue_s"] + sample["token_times_s"][-1], abs=1e-6)
        assert sample["ttft_s"] == pytest.approx(sample["queue_s"] + sample["token_times_s"][0], abs=1e-6)
        assert sample["queue_s"] >= 0
        arrivals.setdefault(sample["sample_id"], set()).add(sample["arrival_s"])
    assert all(len(times) == 1 for times in arrivals.values())  # every operating point served the same requests
    windows = [window for window in lines(tmp_path / "out", "windows") if not window["warmup"] and not window["idle"]]
    assert len(windows) == 2  # a block holds enough requests for a queue
    for window in windows:
        last = max(sample["arrival_s"] for sample in samples if sample["window"] == window["window"])
        assert window["duration_s"] > last  # idle time is inside


def test_a_batch_cannot_arrive_one_by_one() -> None:
    with pytest.raises(ConfigError, match="--arrival-rate serves one request at a time and --batch-size is 2"):
        RunConfig(arrival_rate=1.0, batch_size=2)
