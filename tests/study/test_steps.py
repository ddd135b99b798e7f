"""What a study declares of steps, in which order they and the points that name them come, and what fails with one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.config.model import DEFAULT_MODEL
from harness.contracts.executors import Happened, Job
from harness.errors import HarnessError
from harness.study.conduct import ATTEMPTS, conduct
from harness.study.grid import Point, StudyConfig, expand, size
from harness.study.ledger import EVENTS, STEPS
from harness.study.status import StudyView
from harness.study.step_run import LOG, STEP, read_step
from harness.study.steps import Step, StepConfig, steps_of
from tests.run_files import cut

from .made_up import HEADS, TRACES, Commands, Instant, Watching, conducted, open_steps, read_events

Cli = Callable[..., Any]
Declare = Callable[..., Path]

WITH_HEADS = {"run": {"artefacts": "{heads}"}}


def declared(*steps: dict[str, Any], **tables: Any) -> tuple[dict[str, Step], tuple[Point, ...]]:
    study = StudyConfig.build({"step": list(steps), **tables})
    return {step.name: step for step in steps_of(study.step)}, expand(study)


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
    study = StudyConfig.build({"step": [TRACES]})  # of steps alone
    assert (size(study), expand(study)) == (0, ())


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"step": [{"name": "a", "command": "run"}]}, "step a runs 'run', and a step is trace, train NAME or"),
        ({"step": [{"name": "a", "command": ""}]}, "step a runs nothing, and"),
        ({"step": [{"name": "a", "command": "trace; rm -r x"}]}, "step a runs 'trace;', and"),
        ({"step": [{"name": "a", "command": "trace 'x"}]}, "step a: cannot read the command `trace 'x`: No clo"),
        ({"step": [{"name": "a", "command": "train clasifier"}]}, "unknown recipe 'clasifier'. Did you mean 'classif"),
        ({"step": [{"name": "a", "command": "trace --out x"}]}, "step a gives --out: where its folder is, the st"),
        ({"step": [{"name": "a", "command": "trace -- x"}]}, "step a gives --: where its folder is"),
        (
            {"step": [TRACES, {"name": "c", "command": "calibrate --untimed", "begin_with": "{traces}"}]},
            "step c: a calibration begins with an empty folder. Omit begin_with.",
        ),
        ({"step": [{"name": "a", "command": "calibrate"}]}, "step a would time what it decodes, beside other steps."),
        ({"step": [{"name": "a", "command": "trace --threads 1", "threads": 1}]}, "step a says twice how many threads"),
        ({"step": [{"name": "a/b", "command": "trace"}]}, "name = 'a/b': input should be a plain file name"),
        ({"step": [TRACES, TRACES]}, "two steps are called traces. Give each a name of its own."),
        ({"step": [TRACES, {**TRACES, "name": "again"}]}, "steps traces and again are the same. Omit one of them."),
        ({"step": [HEADS, TRACES]}, "step heads names {traces}, and no step before it has that name. Move it up."),
        (
            {"step": [TRACES, {**HEADS, "command": "train classifier --traces {trace}"}]},
            "step heads names {trace}, and no step before it has that name. Did you mean 'traces'?",
        ),
        ({"step": [TRACES, {**HEADS, "begin_with": "traces"}]}, "begin_with = 'traces' names no step. Write {NAME}."),
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


def test_a_command_that_would_be_refused_is_before_anything_is_written(
    cli: Cli, declare: Declare, tmp_path: Path
) -> None:
    for command, said in (
        ("trace --limit 200", "step traces: No such option: --limit. See `harness trace --help`."),
        ("trace --documents -1", "step traces: --documents -1: input should be greater than or equal to 0."),
        ("train classifier", "step traces: Missing option '--traces'"),
        (
            "train classifier --traces t --epochs 0",
            "step traces: --epochs 0: input should be greater than or equal to 1.",
        ),
        (
            "calibrate --untimed --target agreement=0.9",
            "step traces: untimed = true records no time, and energy = auto",
        ),
    ):
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
def test_steps_are_foreseen_taken_over_and_seen(cli: Cli, declare: Declare, tmp_path: Path, commands: Commands) -> None:
    steps = "\n".join(f'[[step]]\nname = "{step["name"]}"\ncommand = "{step["command"]}"' for step in (TRACES, HEADS))
    file = declare(run=WITH_HEADS["run"], more=steps)
    foreseen = cli("study", file, "--out", "s", "--dry-run")
    assert foreseen.code == 0, foreseen.err
    assert "step traces: to be made\nstep heads: to be made\n" in foreseen.out
    assert "after step heads" in " ".join(foreseen.out.split())
    assert not {EVENTS, STEPS} & {entry.name for entry in (tmp_path / "s").iterdir()}

    file.write_text(steps)  # of steps alone
    conducted(open_steps(tmp_path / "other", TRACES, HEADS))
    source = next((tmp_path / "other" / STEPS).glob("traces-*"))
    (source / STEP).unlink()  # copied before it was whole
    merged = cli("study", file, "--out", "s", "--merge", "other")
    assert merged.code == 0, merged.err
    assert "1 step and 0 finished points came from other" in merged.err
    assert merged.out.splitlines()[0] == "2 steps are made, 0 points are measured."
    whats = [(event.point, event.what) for event in read_events(tmp_path / "s")]
    assert whats == [("step heads", "merged"), ("step traces", "started"), ("step traces", "finished")]
    assert "step traces: ✓ made\nstep heads: ✓ made\n" in cli("study", file, "--out", "s", "--dry-run").out
    seen = cli("watch", "s", "--once")
    assert (seen.code, "2 of 2 steps made · 0 of 0 points measured" in seen.out) == (0, True)


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
