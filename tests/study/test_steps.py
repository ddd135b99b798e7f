"""What a study declares of steps, in which order they and the points that name them come, and what fails with one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from harness.config.model import DEFAULT_MODEL
from harness.contracts.executors import Command, Happened, Job
from harness.errors import HarnessError, StoreError
from harness.study import step_run
from harness.study.conduct import ATTEMPTS, Outcome, conduct
from harness.study.grid import Point, StudyConfig, expand, size
from harness.study.ledger import EVENTS, STEPS, StudyDirectory, read_events
from harness.study.status import StudyView
from harness.study.step_run import LOG, STEP, StepRecord, finish_step, make_step, read_step
from harness.study.steps import Step, StepConfig, steps_of
from tests.run_files import cut

from .made_up import HEADS, TRACES, Commands, Instant, open_steps
from .test_local import Watching

Cli = Callable[..., Any]
Declare = Callable[..., Path]

WITH_HEADS = {"run": {"artefacts": "{heads}"}}
MAPS = "no maps. Make them with: `harness trace` ; `harness train shortcut`"


def declared(*steps: dict[str, Any], **tables: Any) -> tuple[dict[str, Step], tuple[Point, ...]]:
    study = StudyConfig.build({"step": list(steps), **tables})
    return {step.name: step for step in steps_of(study.step)}, expand(study)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    made = Commands()
    monkeypatch.setattr(step_run, "_run", made)
    return made


def conducted(study: StudyDirectory, **options: Any) -> tuple[Outcome, list[str]]:
    """What became of a study, and the names of what was begun, in this order."""
    executor = Instant()
    with study:
        outcome = conduct(study, executor, Watching(lambda event: None), **options)
    return outcome, [job.name for job in executor.jobs]


# ------------------------------------------------------------------------------------- what is declared


def test_a_step_that_changes_changes_what_is_made_of_it_and_nothing_else() -> None:
    tables = {"grid": {"artefacts": ["{heads}", "{traces}", "mine"]}}
    before, points = declared(TRACES, HEADS, **tables)
    same, same_points = declared(
        {"name": "t", "command": "harness trace  --model 'm' --threads 1"},
        {"name": "h", "command": HEADS["command"].replace("traces}", "t}"), "threads": 2},
        grid={"artefacts": ["{h}", "{t}", "mine"]},
    )
    assert [step.identity for step in before.values()] == [step.identity for step in same.values()]
    assert [point.identity for point in points] == [point.identity for point in same_points]

    longer = {**TRACES, "command": TRACES["command"] + " --length 99"}
    after, others = declared(longer, HEADS, **tables)
    assert all(after[name].identity != step.identity for name, step in before.items())
    assert [a.identity == b.identity for a, b in zip(points, others, strict=True)] == [False, False, True]
    wider, others = declared(TRACES, {**HEADS, "command": HEADS["command"] + " --hidden 9"}, **tables)
    assert [wider[name].identity == step.identity for name, step in before.items()] == [True, False]
    assert [a.identity == b.identity for a, b in zip(points, others, strict=True)] == [False, True, True]
    assert before["traces"].folder == f"traces-{before['traces'].identity[:10]}"
    assert before["heads"].model == ("step", "m")
    twice = StepConfig(name="a", command="trace --model m --model=last")  # the command takes the last
    assert steps_of([twice])[0].model == ("step", "last")
    assert steps_of(StudyConfig.build({"step": [{"name": "a", "command": "trace"}]}).step)[0].model[1] == DEFAULT_MODEL


def test_a_point_that_names_no_step_is_the_point_that_it_was() -> None:
    settings = {"limit": 3, "strategies": ["full", "@mine.json"], "artefacts": "mine"}
    _, (alone,) = declared(run=settings)
    _, (beside,) = declared(TRACES, run=settings)
    hashed = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    assert alone.identity == beside.identity == hashed
    _, (alone,) = declared(run={"artefacts": "{mine}", "source": "{x}/y"})  # braces, in a study without steps
    assert alone.steps == {}


def test_a_point_may_name_the_files_of_a_step() -> None:
    promise = {"name": "promise", "command": "calibrate --target agreement=0.9 --untimed"}
    run = {"model": "{tuned}/model", "strategies": ["full", "@{promise}/operating-point.json"]}
    steps, (point,) = declared({"name": "tuned", "command": "train lite"}, promise, run=run)
    assert point.steps == steps
    settings = point.config({"tuned": Path("/t"), "promise": Path("/p")})
    assert (settings.model, settings.strategies) == ("/t/model", ("full", "@/p/operating-point.json"))


def test_a_study_may_make_steps_alone() -> None:
    study = StudyConfig.build({"step": [TRACES]})
    assert (size(study), expand(study)) == (0, ())
    assert len(expand(StudyConfig.build({"step": [TRACES], "run": {"limit": 3}}))) == 1


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"step": [{"name": "a", "command": "run"}]}, "step a runs 'run', and a step is trace, train NAME or"),
        ({"step": [{"name": "a", "command": ""}]}, "step a runs nothing, and"),
        ({"step": [{"name": "a", "command": "trace; rm -r x"}]}, "step a runs 'trace;', and"),
        ({"step": [{"name": "a", "command": "trace 'x"}]}, "step a: cannot read the command `trace 'x`: No clo"),
        ({"step": [{"name": "a", "command": "train clasifier"}]}, "unknown recipe 'clasifier'. Did you mean 'classif"),
        ({"step": [{"name": "a", "command": "train"}]}, "unknown recipe ''."),
        ({"step": [{"name": "a", "command": "trace --out x"}]}, "step a gives --out: where its folder is, the st"),
        ({"step": [{"name": "a", "command": "trace --resume"}]}, "step a gives --resume:"),
        ({"step": [{"name": "a", "command": "calibrate --untimed --file=x"}]}, "step a gives --file:"),
        ({"step": [{"name": "a", "command": "trace -- x"}]}, "step a gives --: where its folder is"),
        (
            {"step": [TRACES, {"name": "c", "command": "calibrate --untimed", "begin_with": "{traces}"}]},
            "step c: a calibration begins with an empty folder. Omit begin_with.",
        ),
        ({"step": [{"name": "a", "command": "calibrate"}]}, "step a would time what it decodes, beside other steps."),
        ({"step": [{"name": "a", "command": "trace --threads 1", "threads": 1}]}, "step a says twice how many threads"),
        ({"step": [{"name": "a/b", "command": "trace"}]}, "name = 'a/b': input should be a plain file name"),
        ({"step": [{"name": "..", "command": "trace"}]}, "name = '..': input should be a plain file name"),
        ({"step": [{"name": "a", "comand": "trace"}]}, "unknown configuration key 'comand'. Did you mean 'command'?"),
        ({"step": [TRACES, TRACES]}, "two steps are called traces. Give each a name of its own."),
        ({"step": [TRACES, {**TRACES, "name": "again"}]}, "steps traces and again are the same. Omit one of them."),
        ({"step": [HEADS, TRACES]}, "step heads names {traces}, and no step before it has that name. Move it up."),
        (
            {"step": [TRACES, {**HEADS, "command": "train classifier --traces {trace}"}]},
            "step heads names {trace}, and no step before it has that name. Did you mean 'traces'?",
        ),
        ({"step": [{"name": "a", "command": "train lte --traces {a}"}]}, "step a names {a}, and no step before it"),
        ({"step": [TRACES, {**HEADS, "begin_with": "traces"}]}, "begin_with = 'traces' names no step. Write {NAME}."),
        ({"step": [{**TRACES, "begin_with": "{maps}"}]}, "step traces names {maps}, and no step before it"),
        ({"step": [TRACES], "run": {"artefacts": "{trace}"}}, "a point names {trace}, and no [[step]] has that name."),
        ({"step": [TRACES], "run": {"source": "{traces}/x"}}, "source = '{traces}/x' names a step where none is read."),
        (
            {"step": [TRACES], "run": {"strategies": ["classifier:heads={traces}/a.json"]}},
            "strategies = 'classifier:heads={traces}/a.json' names a step where none is read. Use {NAME} in model or",
        ),
    ],
)  # fmt: skip
def test_refusals(tables: dict[str, Any], said: str) -> None:
    with pytest.raises(HarnessError) as refused:
        expand(StudyConfig.build(tables))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("trace --limit 200", "step traces: No such option: --limit. See `harness trace --help`."),
        ("trace --documents -1", "step traces: --documents -1: input should be greater than or equal to 0."),
        ("trace --documents few", "step traces: Invalid value for '--documents'"),
        ("train classifier", "step traces: Missing option '--traces'"),
        (
            "train classifier --traces t --epochs 0",
            "step traces: --epochs 0: input should be greater than or equal to 1.",
        ),
        (
            "calibrate --untimed --target agreement=0.9",
            "step traces: untimed = true records no time, and energy = auto",
        ),
    ],
)
def test_a_command_that_would_be_refused_is_before_anything_is_written(
    cli: Cli, declare: Declare, tmp_path: Path, command: str, said: str
) -> None:
    file = declare(more=f'[[step]]\nname = "traces"\ncommand = "{command}"')
    assert said in " ".join(cli("study", file, "--out", "s").error.split())
    assert not (tmp_path / "s").exists()


class Roomy(Instant):
    """Has room for everything, and ends it in the order in which it began."""

    def __init__(self) -> None:
        super().__init__()
        self.together: list[set[str]] = []
        self._running: list[Job] = []

    def has_room(self, job: Job) -> bool:
        return True

    def start(self, job: Job) -> None:
        self._running.append(job)
        self.together.append({one.name for one in self._running})

    def wait(self) -> Happened:
        self._job = self._running.pop(0)
        return super().wait()


def test_what_is_measured_runs_beside_neither_what_shares_nor_a_step(tmp_path: Path, commands: Commands) -> None:
    wide = {"name": "wide", "command": "trace --length 99"}
    commands.ends["traces"] = [(-9, "")]  # tried again with nothing beside it
    untimed = {"untimed": True, "energy": "none", "weights_format": "float32"}
    study = open_steps(tmp_path / "s", TRACES, wide, grid={"seed": [0, 1]}, include=[untimed, {**untimed, "seed": 2}])
    executor = Roomy()
    with study:
        assert conduct(study, executor, Watching(lambda event: None)).failed == {}
    zero, one, first, second = (point.name for point in study.points)
    assert executor.together == [
        *({"step traces"}, {"step traces", "step wide"}, {"step traces"}),
        *({zero}, {zero, one}, {first}, {first, second}),
    ]


# ----------------------------------------------------------------------------- order, failures, going on


def test_steps_come_first_each_behind_what_it_names(tmp_path: Path, commands: Commands) -> None:
    untimed = {"untimed": True, "energy": "none", "weights_format": "float32"}
    tables = {"grid": {"seed": [0, 1]}, "include": [{"artefacts": "{heads}"}, {**untimed, "artefacts": "{traces}"}]}
    study = open_steps(tmp_path / "s", TRACES, HEADS, **tables)
    zero, one, heads, traces = (point.name for point in study.points)
    outcome, begun = conducted(study)
    assert (outcome.made, outcome.finished, outcome.failed) == (2, 4, {})
    assert begun == ["step traces", "step heads", zero, one, heads, traces]
    folder = {step.name: study.directory(step) for step in study.steps}
    assert [words[:2] for words in commands.called] == [["trace", "--model"], ["train", "classifier"]]
    assert commands.called[1][2:] == ["--model", "m", "--traces", str(folder["traces"]), "--out", str(folder["heads"])]
    record = read_step(folder["heads"], study.steps[1].identity)
    assert record is not None
    assert record.command == tuple(HEADS["command"].split())
    assert record.files.keys() == {"made.json", LOG}
    said = json.loads((tmp_path / "s" / "study.json").read_text())
    assert said["steps"] == {step.name: step.identity for step in study.steps}
    assert [event.point for event in read_events(tmp_path / "s")][:4] == ["step traces"] * 2 + ["step heads"] * 2

    outcome, begun = conducted(open_steps(tmp_path / "s", TRACES, HEADS))
    assert (outcome.made, begun, len(commands.called)) == (2, [], 2)


def test_a_step_that_fails_fails_what_needs_it_alone(tmp_path: Path, commands: Commands) -> None:
    other = {"name": "other", "command": "trace --length 99"}
    tables = {"grid": {"artefacts": ["{heads}", "{other}", "mine"]}}
    commands.ends["traces"] = [(2, "error: model m does not exist.")]
    study = open_steps(tmp_path / "s", TRACES, HEADS, other, **tables)
    needs, uses, free = (point.name for point in study.points)
    outcome, begun = conducted(study)
    assert begun == ["step traces", "step other", uses, free]
    why = "step traces failed: model m does not exist."
    assert outcome.failed == {"step traces": "model m does not exist.", "step heads": why, needs: why}
    assert (outcome.made, outcome.finished) == (1, 2)
    status = StudyView(tmp_path / "s").look()
    assert (status.made, len(status.finished), len(status.failed), status.exit_code) == (("step other",), 2, 3, 1)

    study = open_steps(tmp_path / "s", TRACES, HEADS, other, grid={"artefacts": ["{heads}", "{heads}/more"]})
    more = study.points[1].name
    outcome, begun = conducted(study)
    assert begun == []
    behind = f"step heads failed: {why}"
    assert outcome.failed == {"step traces": "model m does not exist.", "step heads": why, needs: why, more: behind}
    study = open_steps(tmp_path / "s", TRACES, HEADS, other, grid={"artefacts": ["{heads}"]})
    outcome, begun = conducted(study, retry_failed=True)
    assert (outcome.failed, begun) == ({}, ["step traces", "step heads", study.points[0].name])


def test_nothing_is_made_for_a_step_that_is_not_tried_again(tmp_path: Path, commands: Commands) -> None:
    commands.ends["heads"] = [(2, "error: no.")]
    conducted(open_steps(tmp_path / "s", TRACES, HEADS))
    shutil.rmtree(next((tmp_path / "s" / STEPS).glob("traces-*")))
    assert conducted(open_steps(tmp_path / "s", TRACES, HEADS))[1] == []
    assert conducted(open_steps(tmp_path / "s", TRACES, HEADS), retry_failed=True)[1] == ["step traces", "step heads"]


def test_a_step_that_is_lost_is_tried_again_alone_before_all_else(tmp_path: Path, commands: Commands) -> None:
    killed = (-9, "tracing: 3 of 8")
    commands.ends["traces"] = [killed] * (ATTEMPTS - 1)
    study = open_steps(tmp_path / "s", TRACES, HEADS, **WITH_HEADS)
    executor = Instant()
    with study:
        assert conduct(study, executor, Watching(lambda event: None)).failed == {}
    assert [(job.name, job.shares) for job in executor.jobs[: ATTEMPTS + 1]] == [
        ("step traces", True), *[("step traces", False)] * (ATTEMPTS - 1), ("step heads", True)
    ]  # fmt: skip
    retried = [event for event in read_events(tmp_path / "s") if event.what == "retried"]
    assert [event.reason for event in retried] == ["its command ended with signal 9"] * (ATTEMPTS - 1)

    commands.ends["heads"] = [killed] * ATTEMPTS
    outcome, _ = conducted(open_steps(tmp_path / "other", TRACES, HEADS))
    assert outcome.failed == {"step heads": "its command ended with signal 9"}


def test_what_is_damaged_is_made_anew_and_what_nothing_needs_is_not(tmp_path: Path, commands: Commands) -> None:
    def again() -> list[str]:
        return conducted(open_steps(tmp_path / "s", TRACES, HEADS))[1]

    assert again() == ["step traces", "step heads"]
    traces, heads = (next((tmp_path / "s" / STEPS).glob(f"{name}-*")) for name in ("traces", "heads"))
    (heads / "made.json").write_text("shorter")
    assert again() == ["step heads"]
    assert (tmp_path / "s" / "aside" / f"{heads.name}.1" / "made.json").read_text() == "shorter"
    shutil.rmtree(traces)  # to make room
    assert again() == []
    with open_steps(tmp_path / "s", TRACES, HEADS) as study:
        assert StudyView(study.path).look().exit_code == 0
    shutil.rmtree(heads)
    more = open_steps(tmp_path / "s", TRACES, HEADS, **WITH_HEADS)
    assert conducted(more)[1] == ["step traces", "step heads", more.points[0].name]
    assert len(commands.called) == 5


@pytest.mark.usefixtures("inline")
def test_another_study_s_steps_are_taken_over_and_seen(cli: Cli, tmp_path: Path, commands: Commands) -> None:
    file = tmp_path / "steps.toml"
    steps = [f'[[step]]\nname = "{step["name"]}"\ncommand = "{step["command"]}"' for step in (TRACES, HEADS)]
    file.write_text("\n".join(steps))
    conducted(open_steps(tmp_path / "other", TRACES, HEADS))
    source = next((tmp_path / "other" / STEPS).glob("traces-*"))
    (source / STEP).unlink()  # copied before it was whole
    with open_steps(tmp_path / "s", TRACES, HEADS, dry=True) as study:
        assert [study.is_done(step) for step in study.steps] == [False, False]

    foreseen = cli("study", file, "--out", "s", "--dry-run")
    assert "step traces: to be made\nstep heads: to be made\n" in foreseen.out
    merged = cli("study", file, "--out", "s", "--merge", "other")
    assert merged.code == 0, merged.err
    assert "1 step and 0 finished points came from other" in merged.err
    assert merged.out.splitlines()[0] == "2 steps are made, 0 points are measured."
    whats = [(event.point, event.what) for event in read_events(tmp_path / "s")]
    assert whats == [("step heads", "merged"), ("step traces", "started"), ("step traces", "finished")]
    assert "step traces: ✓ made\nstep heads: ✓ made\n" in cli("study", file, "--out", "s", "--dry-run").out
    seen = cli("watch", "s", "--once")
    assert (seen.code, "2 of 2 steps made · 0 of 0 points measured" in seen.out) == (0, True)


def test_a_step_that_runs_has_no_time_left_said_of_it(cli: Cli, tmp_path: Path) -> None:
    with open_steps(tmp_path / "s", TRACES) as study:
        study.log(study.steps[0], "started")
        seen = cli("watch", "s", "--once")
    assert (seen.code, "0 of 1 steps made" in seen.out) == (3, True)
    assert "left" not in seen.out


@pytest.mark.usefixtures("inline")
def test_a_dry_run_says_what_waits_for_a_step(cli: Cli, declare: Declare, tmp_path: Path) -> None:
    file = declare(run=WITH_HEADS["run"], more="\n".join(
        f'[[step]]\nname = "{step["name"]}"\ncommand = "{step["command"]}"' for step in (TRACES, HEADS)
    ))  # fmt: skip
    foreseen = cli("study", file, "--out", "s", "--dry-run")
    assert foreseen.code == 0, foreseen.err
    assert "after step heads" in " ".join(foreseen.out.split())
    assert not (tmp_path / "s" / EVENTS).exists()
    assert not (tmp_path / "s" / STEPS).exists()


@pytest.mark.usefixtures("inline", "commands")
def test_a_point_that_was_begun_with_a_step_that_lay_elsewhere_is_measured_anew(
    cli: Cli, declare: Declare, tmp_path: Path
) -> None:
    step = f'[[step]]\nname = "traces"\ncommand = "{TRACES["command"]}"'
    file = declare(run={"artefacts": "{traces}", "limit": 3}, more=step)
    assert cli("study", file, "--out", "s").code == 0
    (run,) = (tmp_path / "s" / "runs").iterdir()
    cut(run, 2)
    (run / "summary.json").unlink()
    kept = (run / "windows.jsonl").read_bytes()
    (tmp_path / "s").rename(tmp_path / "moved")
    again = cli("study", file, "--out", "moved")
    assert (again.code, again.out.splitlines()[0]) == (0, "1 step is made, 1 points are measured.")
    whats = [event.what for event in read_events(tmp_path / "moved")]
    assert whats[4:] == ["started", "retried", "started", "finished"]
    (aside,) = (tmp_path / "moved" / "aside").iterdir()
    assert (aside / "windows.jsonl").read_bytes() == kept
    config = json.loads((tmp_path / "moved" / "runs" / run.name / "manifest.json").read_text())["config"]
    assert config["artefacts"].startswith("moved/steps/traces-")


# --------------------------------------------------------------------------------------- one step's folder


def silent(line: str) -> None:
    """Takes what a command prints."""


def test_what_can_go_on_does_and_else_begins_anew(tmp_path: Path, commands: Commands) -> None:
    folder = tmp_path / "s" / STEPS / "t-0"
    command = Command(("trace",), "id")

    def flags() -> list[bool]:
        found = ["--resume" in words for words in commands.called]
        commands.called.clear()
        return found

    commands.ends["t"] = [(-9, "")]
    assert make_step(folder, command, {}, silent)[0] == "died"
    assert flags() == [False]
    (folder / "rest").touch()
    assert make_step(folder, command, {}, silent) == ("done", "")
    assert flags() == [True]
    assert (folder / "rest").exists()
    assert make_step(folder, command, {}, silent) == ("done", "")
    assert flags() == []
    (folder / STEP).unlink()
    assert make_step(folder, command, {}, silent) == ("done", "")
    assert flags() == [True]
    said = [f"$ harness trace --out {folder} --resume", "warning: mind", "made"]
    assert (folder / LOG).read_text().splitlines() == said

    for words in (("calibrate", "--untimed"), ("train", "shortcut")):  # which know no --resume, or another one
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "half").touch()
        assert make_step(folder, Command(words, "id"), {}, silent)[0] == "done"
        assert flags() == [False]


@pytest.mark.parametrize(
    "line",
    [
        "{folder}/checkpoints/x holds no checkpoint to resume from. Omit --resume to begin.",
        "the checkpoint of 8 steps is damaged: it counts the exits of 3 layers. Omit --resume to begin anew.",
        "{folder} is a trace with seed 0, now it is 1. Give another --out.",
        "{folder}/shard-0 has None bytes and should have 8. Trace again with another --out.",
    ],
)
def test_a_folder_that_a_command_cannot_go_on_with_lies_aside(tmp_path: Path, commands: Commands, line: str) -> None:
    folder = tmp_path / "s" / STEPS / "t-0"
    folder.mkdir(parents=True)
    (folder / "shard-0").write_text("of days")
    commands.ends["t"] = [(2, f"error: {line.format(folder=folder)}")]
    assert make_step(folder, Command(("trace",), "id"), {}, silent) == ("done", "")
    assert ["--resume" in words for words in commands.called] == [True, False]
    assert not (folder / "shard-0").exists()
    assert (folder / LOG).read_text().splitlines()[0] == f"$ harness trace --out {folder}"
    assert (tmp_path / "s" / "aside" / "t-0.1" / "shard-0").read_text() == "of days"


@pytest.mark.parametrize(
    ("line", "how"),
    [
        ("model m does not exist.", "refused"),
        ("/traces is a trace with seed 0, now it is 1. Give another --out.", "refused"),  # of what it reads
        ("cannot read the trace {folder}/index.json: Permission denied. Trace again with another --out.", "refused"),
        ("cannot make {folder}: No space left on device. Give another --out.", "stopped"),
        ("cannot make {folder}: CUDA out of memory. Give another --out.", "out-of-memory"),
    ],
)
def test_what_may_be_otherwise_next_time_costs_no_progress(
    tmp_path: Path, commands: Commands, line: str, how: str
) -> None:
    folder = tmp_path / "s" / STEPS / "t-0"
    folder.mkdir(parents=True)
    (folder / "shard-0").write_text("of days")
    commands.ends["t"] = [(2, f"error: {line.format(folder=folder)}")]
    assert make_step(folder, Command(("trace",), "id"), {}, silent)[0] == how
    assert (folder / "shard-0").read_text() == "of days"
    assert not (tmp_path / "s" / "aside").exists()
    assert make_step(folder, Command(("trace",), "id"), {}, silent)[0] == "done"
    assert [words[-1] for words in commands.called] == ["--resume"] * 2


def test_what_a_command_prints_can_be_read_meanwhile_and_stays_where_it_failed(
    tmp_path: Path, commands: Commands
) -> None:
    folder, seen = tmp_path / "t-0", list[str]()

    def look(line: str) -> None:
        assert not folder.exists()  # a calibration refuses a folder that holds something
        seen.append((tmp_path / ".t-0.log").read_text())

    commands.ends["t"] = [(2, "error: model 'm' does not exist.")]
    make_step(folder, Command(("trace", "--model", "a m"), "id"), {}, look)
    first = f"$ harness trace --model 'a m' --out {folder}"
    assert seen == [f"{first}\ntrace …\n"]
    assert not (tmp_path / ".t-0.log").exists()
    said = [first, "warning: mind", "error: model 'm' does not exist."]
    assert (folder / LOG).read_text().splitlines() == said
    (folder / "half.json").unlink()
    assert make_step(folder, Command(("trace",), "id"), {}, silent)[0] == "done"
    assert "--resume" not in commands.called[-1]  # there was nothing but the log to go on with


def test_a_disk_that_is_full_stops_the_study_however_that_is_said(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = os.strerror(errno.ENOSPC)
    ends: list[tuple[Exception, str]] = [
        (StoreError(f"cannot write {tmp_path}/step.json: {full}."), "stopped"),
        (shutil.Error([*[("c", "d", "x" * 99)] * 9, ("a", "b", f"[Errno 28] {full}: 'b'")]), "stopped"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "f"), "stopped"),
        (StoreError("it is otherwise."), "refused"),
        (OSError(errno.EIO, os.strerror(errno.EIO), "f"), "refused"),
    ]

    def finish(folder: Path, command: Command) -> None:
        raise ends[0][0]

    monkeypatch.setattr(step_run, "finish_step", finish)
    while ends:
        assert make_step(tmp_path / "t-0", Command(("trace",), "id"), {}, silent)[0] == ends[0][1]
        ends.pop(0)


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EAGAIN])
def test_a_process_that_cannot_be_started_now_may_be_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def start(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(step_run, "fresh_interpreter", start)
    assert make_step(tmp_path / "t-0", Command(("trace",), "id"), {}, silent)[0] == "died"


def test_a_command_that_leaves_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_run, "_run", lambda *_: (0, deque(["done"])))
    how, text = make_step(tmp_path / "t-0", Command(("trace",), "id"), {}, silent)
    assert (how, text[:47]) == ("refused", "its command ended well and left no file. Give i")


@pytest.mark.parametrize(
    ("code", "line", "how", "said"),
    [
        (2, "error: no such thing.", "refused", "no such thing."),
        (2, "", "refused", "warning: mind"),
        (70, "error: this is a defect of the harness", "refused", "a defect: warning: mind"),
        (2, "error: no maps. Make them with:\nharness trace\nharness train shortcut", "refused", MAPS),
        (1, "last words", "refused", "last words"),
        (-15, "tracing", "died", "its command ended with signal 15"),
        (130, "Stopped.", "died", "its command ended with an interrupt"),
        (2, "error: CUDA out of memory.", "out-of-memory", "CUDA out of memory."),
        (2, "error: cannot write /s: No space left on device.", "stopped", "cannot write /s: No space left on device."),
    ],
)
def test_how_a_command_ended(tmp_path: Path, commands: Commands, code: int, line: str, how: str, said: str) -> None:
    commands.ends["t"] = [(code, line)]
    assert make_step(tmp_path / "t-0", Command(("trace",), "id"), {}, silent) == (how, said)
    assert read_step(tmp_path / "t-0") is None


def test_a_folder_may_begin_with_anothers_files(tmp_path: Path, commands: Commands) -> None:
    maps = {"name": "maps", "command": "train shortcut --traces t"}
    heads = {"name": "heads", "command": "train lte --traces t --artefacts {maps}", "begin_with": "{maps}"}
    study = open_steps(tmp_path / "s", maps, heads)
    conducted(study)
    first, second = (study.directory(step) for step in study.steps)
    (first / "made.json").rename(first / "map.json")
    for name in ("checkpoints", ".lock"):  # which a cluster does not bring, either
        (first / name).mkdir()
    finish_step(first, study.steps[0].command)
    shutil.rmtree(second)
    step = study.steps[1]
    make_step(second, step.command, {"maps": first}, silent)
    record = read_step(second, step.identity)
    assert record is not None
    assert record.files.keys() == {"made.json", "map.json", LOG}
    assert {entry.name for entry in second.iterdir()} == {*record.files, STEP}
    without, _ = declared(maps, {key: value for key, value in heads.items() if key != "begin_with"})
    assert without["heads"].identity != step.identity
    (first / STEP).unlink()
    shutil.rmtree(second)
    how, text = make_step(second, step.command, {"maps": first}, silent)
    assert (how, text) == (
        "refused", f"{first} is not whole any more. Delete it, and give the same command with --retry-failed."
    )  # fmt: skip


def test_a_folder_is_used_as_long_as_it_is_what_was_made(tmp_path: Path, commands: Commands) -> None:
    folder = tmp_path / "t-0"

    def leave(words: list[str], threads: int | None, tell: Callable[[str], None], lock: object) -> Any:
        for name in ("a.json", "below/b.bin", "checkpoints/x/step-1.json", "rl-checkpoint/step-1.json", ".lock"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
        return commands([*words], threads, tell, lock)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_run, "_run", leave)
        make_step(folder, Command(("trace",), "id"), {}, silent)
    record = read_step(folder, "id")
    assert record is not None
    assert record.files.keys() == {"a.json", "below/b.bin", "made.json", LOG}
    assert record.files["a.json"].sha256 == hashlib.sha256(b"a.json").hexdigest()
    assert read_step(folder, "another") is None
    (folder / "a.json").write_text("a")
    assert read_step(folder) is None
    (folder / "a.json").write_text("a.json")
    assert read_step(folder) is not None
    (folder / LOG).unlink()  # of which nothing is made
    assert read_step(folder) is not None
    (folder / "a.json").write_text("A.JSON")
    assert read_step(folder) is not None
    assert read_step(folder, verify=True) is None
    (folder / "a.json").write_text("a.json")
    assert read_step(folder, verify=True) is not None
    (folder / "below" / "b.bin").unlink()
    assert read_step(folder) is None


def test_what_cannot_be_read_now_is_not_damaged(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    conducted(open_steps(tmp_path / "s", TRACES))
    (folder,) = (tmp_path / "s" / STEPS).glob("traces-*")

    def again() -> str:
        try:
            return str(conducted(open_steps(tmp_path / "s", TRACES))[1])
        except StoreError as error:
            return str(error)

    def fails(working: Callable[..., Any], name: str, number: int) -> Callable[..., Any]:
        left = [number]

        def look(path: Any, *given: Any, **options: Any) -> Any:
            if Path(path).name == name and left:
                left.clear()  # for a moment
                raise OSError(number, os.strerror(number), str(path))
            return working(path, *given, **options)

        return look

    looks: tuple[tuple[Any, str, str, int], ...] = (
        (Path, "stat", STEP, errno.EACCES),
        (os, "open", STEP, errno.EMFILE),
        (Path, "stat", "made.json", errno.EIO),
    )
    for where, method, name, number in looks:
        with monkeypatch.context() as patch:
            patch.setattr(where, method, fails(getattr(where, method), name, number))
            said = again()
        assert said.startswith(f"cannot read {folder / name}: {os.strerror(number)}. Make it readable, or delete ")
    whole = (folder / STEP).read_bytes()
    (folder / STEP).write_bytes(whole.replace(b'"schema_version": 1', b'"schema_version": 99'))
    assert "has schema version 99" in again()
    assert not (tmp_path / "s" / "aside").exists()
    (folder / STEP).write_bytes(whole[:-9])
    assert again() == "['step traces']"
    assert (tmp_path / "s" / "aside" / f"{folder.name}.1").is_dir()


def test_hashes_are_compared_where_the_log_does_not_say_that_a_step_is_made(tmp_path: Path, commands: Commands) -> None:
    def again() -> list[str]:
        return conducted(open_steps(tmp_path / "s", TRACES))[1]

    again()
    (folder,) = (tmp_path / "s" / STEPS).glob("traces-*")
    text = (folder / "made.json").read_text()
    (folder / "made.json").write_text(text.swapcase())
    assert again() == []  # of what was finished, each time, only sizes
    (tmp_path / "s" / EVENTS).unlink()
    assert again() == ["step traces"]
    (tmp_path / "s" / EVENTS).unlink()
    assert again() == []
    assert [(event.what, event.reason) for event in read_events(tmp_path / "s")] == [("finished", "finished before")]


def test_a_step_that_was_changed_is_not_taken_over(tmp_path: Path, commands: Commands) -> None:
    conducted(open_steps(tmp_path / "other", TRACES, HEADS))
    traces, heads = (next((tmp_path / "other" / STEPS).glob(f"{name}-*")) for name in ("traces", "heads"))
    (traces / "made.json").write_text((traces / "made.json").read_text().swapcase())
    (heads / "of somebody").touch()
    (heads / LOG).unlink()
    with open_steps(tmp_path / "s", TRACES, HEADS) as study:
        found = [(part.title, reason) for part, reason in study.merge(tmp_path / "other")]
        changed = f"files of {traces} were changed since they were made; it is made again here."
        assert found == [("step traces", changed), ("step heads", "")]
        assert not study.directory(study.steps[0]).exists()
        assert {entry.name for entry in study.directory(study.steps[1]).iterdir()} == {"made.json", STEP}
    (heads / "made.json").rename(tmp_path / "elsewhere.json")
    (heads / "made.json").symlink_to(tmp_path / "elsewhere.json")
    with (
        open_steps(tmp_path / "t", TRACES, HEADS) as study,
        pytest.raises(StoreError, match=r"made\.json: it lies behind a link\."),
    ):
        list(study.merge(tmp_path / "other"))


@pytest.mark.parametrize("name", ["../a", "/a", "below/../../a", "", "a\\b"])
def test_a_record_lists_no_file_outside_of_its_folder(name: str) -> None:
    facts = {
        "schema_version": 1,
        "created": "",
        "command": [],
        "identity": "",
        "files": {name: {"bytes": 1, "sha256": ""}},
    }
    with pytest.raises(ValidationError, match="is no path below a folder"):
        StepRecord.model_validate(facts)
