"""Steps in processes of this machine: traced, trained, measured with; and a worker that is killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from harness.contracts.executors import Command, Happened
from harness.running.reading import read_run
from harness.study import step_run
from harness.study.conduct import conduct
from harness.study.executors.local import Local
from harness.study.grid import expand, read_study
from harness.study.ledger import StudyDirectory
from harness.study.step_run import LOG, read_step

from .made_up import Commands, Watching, read_events
from .test_local import at_once

Declare = Callable[..., Path]
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_what_is_traced_and_trained_is_measured_with(
    declare: Declare, tmp_path: Path, tiny_llama: Path, rows_file: Path, steps: Callable[..., str]
) -> None:
    promise = (
        f"calibrate --model {tiny_llama} --source {rows_file} --limit 6 --max-new-tokens 5 --threads 1 --untimed "
        "--energy none --weights-format float32 --strategy confidence:threshold=0.99,0.15 --target agreement=0.3 "
        "--confidence 0.8"
    )
    more = f'{steps()}[[step]]\nname = "promise"\ncommand = {json.dumps(promise)}\n'
    used = ["@{promise}/operating-point.json", "classifier:threshold=0.5"]
    settings = {"strategies": used, "artefacts": "{heads}", "duplicates": "keep"}
    grid = read_study(str(declare(more=more, run=settings)))
    (point,) = points = expand(grid)

    def conducted() -> Any:
        with StudyDirectory(tmp_path / "s", grid, points) as study, Local.open({"share": "2"}) as executor:
            return conduct(study, executor, Watching(lambda event: None))

    outcome = conducted()
    assert (outcome.made, outcome.finished, outcome.failed) == (3, 1, {})
    found = at_once(tmp_path / "s")
    assert found[:2] == [{"step traces"}, {"step traces", "step promise"}]
    assert found[-1] == {point.name}  # it has the machine
    (heads,) = (tmp_path / "s" / "steps").glob("heads-*")
    artefact = json.loads((heads / "classifier.json").read_text())
    assert artefact["made"]["command"].startswith("harness train classifier --model ")
    assert "% agreement from threshold" in (heads / LOG).read_text()
    manifest = read_run(tmp_path / "s" / "runs" / point.name).manifest
    assert manifest.config["artefacts"] == str(heads)
    (learned,) = (one.artefacts for one in manifest.operating_points if one.strategy == "classifier")
    assert learned["classifier"] == artefact["sha256"]
    (promised,) = (tmp_path / "s" / "steps").glob("promise-*/operating-point.json")
    assert manifest.config["strategies"] == [json.loads(promised.read_text())["strategy"], used[1]]

    before = len(read_events(tmp_path / "s"))
    again = conducted()
    assert (again.made, again.finished, len(read_events(tmp_path / "s"))) == (3, 1, before)


@pytest.mark.slow
def test_a_worker_that_is_killed_in_mid_step_is_replaced_and_the_step_goes_on(
    declare: Declare, tmp_path: Path, documents: list[str], steps: Callable[..., str]
) -> None:
    source = tmp_path / "many.jsonl"  # a shard of a trace, and more
    codes = ["\n".join([text, f"# {number}", text]) for number in range(6) for text in documents]
    source.write_text("".join(json.dumps({"id": str(n), "code": code}) + "\n" for n, code in enumerate(codes)))
    grid = read_study(str(declare(more=steps(source, "--documents 0 --length 256", heads=False))))
    grid = grid.model_copy(update={"run": {}})
    shards: dict[str, int] = {}
    ends: list[str] = []

    class Killing(Watching):
        def happened(self, event: Happened) -> None:
            super().happened(event)
            if event.ended:
                ends.append(event.how)
            elif not shards and (index := event.job.directory / "index.json").is_file():
                shards.update({shard["file"]: shard["bytes"] for shard in json.loads(index.read_text())["shards"]})
                os.kill(int(event.place.rpartition(":")[2]), signal.SIGKILL)

    with StudyDirectory(tmp_path / "s", grid, ()) as study, Local.open({}) as executor:
        outcome = conduct(study, executor, Killing(lambda event: None))
        folder = study.directory(study.steps[0])
    assert (outcome.made, outcome.failed) == (1, {})
    assert ends == ["died", "done"]
    assert [event.reason for event in read_events(tmp_path / "s")][1] == "its process ended with signal 9"
    record = read_step(folder)
    assert record is not None
    assert (folder / LOG).read_text().splitlines()[0].endswith(" --resume")
    assert {name: record.files[name].bytes for name in shards} == shards
    traced = [document["id"] for document in json.loads((folder / "index.json").read_text())["documents"]]
    assert len(traced) == len(set(traced)) == len(codes)


def test_a_command_ends_with_what_started_it() -> None:
    """Else it would write on into a folder that the next worker goes on with."""
    program = (
        "import time\n"
        "import runpy; runpy.run_module = lambda *_, **__: print('works', flush=True) or time.sleep(600)\n"
        "from harness.study.step_run import main\n"
        "main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == b"works\n"
        assert child.poll() is None
        child.stdin.close()  # as the kernel does for a process that dies
        assert child.wait(timeout=30) == 1


def test_nothing_writes_before_what_a_killed_process_began_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command holds the folder, even where it is slow to notice that it shall end."""
    program = (
        "import subprocess, sys\n"
        "from pathlib import Path\n"
        "from harness.contracts.executors import Command\n"
        "from harness.study import step_run\n"
        "slow = 'import os, time; print(os.getpid(), flush=True); time.sleep(600)'\n"
        "step_run.fresh_interpreter = lambda *_, stdin, stdout, stderr, inherited, threads: subprocess.Popen(\n"
        "    [sys.executable, '-c', slow], stdin=stdin, stdout=stdout, pass_fds=inherited)\n"
        "step_run.make_step(Path(sys.argv[1]), Command(('trace',), 'id'), {}, lambda line: print(line, flush=True))"
    )
    folder, commands = tmp_path / "t-0", Commands()
    monkeypatch.setattr(step_run, "_run", commands)

    with subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, cwd=ROOT) as worker:
        assert worker.stdout is not None
        command = int(worker.stdout.readline())
        worker.kill()
        worker.wait()
        made: list[tuple[str, str]] = []
        command_line = Command(("trace",), "id")
        with monkeypatch.context() as patch:  # it does not wait for ever
            patch.setattr(step_run, "BUSY_S", 0.0)
            how, text = step_run.make_step(folder, command_line, {}, lambda line: None)
        assert (how, text[:46]) == ("died", "the command of another attempt still writes /t")
        waits = Thread(target=lambda: made.append(step_run.make_step(folder, command_line, {}, lambda line: None)))
        try:
            waits.start()
            waits.join(0.3)
            assert waits.is_alive()
            assert commands.called == []
        finally:
            os.kill(command, signal.SIGKILL)
            waits.join(30)
    assert (made, len(commands.called)) == ([("done", "")], 1)
