"""One step's folder: made, gone on with, begun anew or set aside, and used as long as it is what was made."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from harness.contracts.executors import Command
from harness.errors import DEFECT, StoreError, is_full
from harness.study import step_run
from harness.study.grid import StudyConfig
from harness.study.ledger import EVENTS, STEPS
from harness.study.step_run import LOG, STEP, StepRecord, finish_step, make_step, read_step
from harness.study.steps import steps_of

from .made_up import HEADS, TRACES, Commands, conducted, open_steps

MAPS = "no maps. Make them with: `harness trace` ; `harness train shortcut`"


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
    assert (folder / LOG).read_text().splitlines() == [f"$ harness trace --out {folder} --resume", "trace …"]

    for words in (("calibrate", "--untimed"), ("train", "shortcut")):  # which know no --resume, or another one
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "half").touch()
        assert make_step(folder, Command(words, "id"), {}, silent)[0] == "done"
        assert flags() == [False]


@pytest.mark.parametrize(
    ("code", "how"),
    [
        (step_run._ANEW, ""),
        (2, "refused"),  # what may be otherwise next time costs no progress
        (DEFECT, "refused"),
        (step_run._FULL, "stopped"),
        (step_run._NO_MEMORY, "out-of-memory"),
    ],
)
def test_a_folder_lies_aside_where_a_command_cannot_go_on_with_it_and_only_then(
    tmp_path: Path, commands: Commands, code: int, how: str
) -> None:
    folder, aside = tmp_path / "s" / STEPS / "t-0", tmp_path / "s" / "aside" / "t-0.1"
    folder.mkdir(parents=True)
    (folder / "shard-0").write_text("of days")
    commands.ends["t"] = [(code, "error: whatever it says")]
    assert make_step(folder, Command(("trace",), "id"), {}, silent)[0] == (how or "done")
    if how:
        assert not aside.exists()
        assert make_step(folder, Command(("trace",), "id"), {}, silent)[0] == "done"
    assert ["--resume" in words for words in commands.called] == [True, bool(how)]
    assert ((folder if how else aside) / "shard-0").read_text() == "of days"
    assert (folder / "shard-0").exists() is bool(how)


def of(number: int) -> StoreError:
    """What cannot be written, since the system refuses."""
    try:
        raise OSError(number, os.strerror(number))
    except OSError:
        try:
            raise StoreError("cannot write it.") from None
        except StoreError as error:
            return error


def test_an_error_of_a_full_disk_is_known_by_its_number_and_of_a_library_by_the_system_s_words() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as of_the_system:
        Path("/dev/full").write_text("x")
    assert is_full(of_the_system.value)
    assert is_full(RuntimeError(f"I/O error: {os.strerror(errno.ENOSPC)} (os error 28)"))  # as safetensors says it
    assert not is_full(StoreError(os.strerror(errno.ENOSPC)))  # ours are known by what they were raised for


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoiled", "aside"),
    [
        (None, True),  # traced with another seed
        ("index.json", True),
        ("notes.txt", True),  # what no trace leaves
        ("model", False),  # which may be there next time
    ],
)
def test_what_a_real_command_cannot_go_on_with_is_made_anew(
    tmp_path: Path, tiny_llama: Path, rows_file: Path, cli: Callable[..., Any], spoiled: str | None, aside: bool
) -> None:
    folder = tmp_path / "s" / STEPS / "t-0"
    model = tmp_path / "no model" if spoiled == "model" else tiny_llama
    data = ("--task", "py150", "--source", rows_file, "--documents", "4", "--length", "32", "--threads", "1")
    words = tuple(map(str, ("trace", "--model", model, *data)))
    if spoiled == "notes.txt":
        folder.mkdir(parents=True)
        (folder / spoiled).touch()
    else:
        ran = cli("trace", "--model", tiny_llama, *data, *(("--seed", 1) if spoiled is None else ()), "--out", folder)
        assert ran.code == 0, ran.err
    if spoiled == "index.json":
        (folder / spoiled).write_text("{")
    how, why = make_step(folder, Command(words, "id"), {}, silent)
    assert how == ("done" if aside else "refused"), why
    assert (tmp_path / "s" / "aside").exists() == aside


def test_how_a_command_ended(tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    for code, line, how, said in (
        (2, "error: no such thing.", "refused", "no such thing."),
        (DEFECT, "error: this is a defect of the harness\nerror: a defect: of it", "refused", "a defect: of it"),
        (2, "error: no maps. Make them with:\nharness trace\nharness train shortcut", "refused", MAPS),
        (-15, "tracing", "died", "its command ended with signal 15"),
        (2, "error: CUDA out of memory.", "refused", "CUDA out of memory."),  # what it says decides nothing
        (step_run._NO_MEMORY, "error: it is large.", "out-of-memory", "it is large."),
        (step_run._FULL, "error: cannot write /s.", "stopped", "cannot write /s."),
    ):
        commands.ends["t"] = [(code, line)]
        assert make_step(tmp_path / "t-0", Command(("calibrate",), "id"), {}, silent) == (how, said)
        assert read_step(tmp_path / "t-0") is None
    ends: tuple[tuple[Exception, str], ...] = (
        (of(errno.ENOSPC), "stopped"),
        (of(errno.EACCES), "refused"),
        (OSError(errno.EIO, os.strerror(errno.EIO), "f"), "refused"),
        (OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "died"),  # no process can be started now
    )
    for error, how in ends:

        def finish(folder: Path, command: Command, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(step_run, "finish_step", finish)
        assert make_step(tmp_path / "t-0", Command(("calibrate",), "id"), {}, silent)[0] == how
    monkeypatch.undo()
    monkeypatch.setattr(step_run, "_run", lambda *_: (0, ["done"]))
    how, text = make_step(tmp_path / "t-1", Command(("trace",), "id"), {}, silent)
    assert (how, text[:47]) == ("refused", "its command ended well and left no file. Give i")


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
    assert (folder / LOG).read_text().splitlines() == [first, "trace …"]
    (folder / "half.json").unlink()
    assert make_step(folder, Command(("trace",), "id"), {}, silent)[0] == "done"
    assert "--resume" not in commands.called[-1]  # there was nothing but the log to go on with


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
    del heads["begin_with"]
    assert steps_of(StudyConfig.build({"step": [maps, heads]}).step)[1].identity != step.identity
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

    def closed(path: Path, *given: Any, **options: Any) -> Any:
        if path.name == STEP:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        return working(path, *given, **options)

    working = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", closed)
        said = again()
    assert said.startswith(f"cannot read {folder / STEP}: {os.strerror(errno.EMFILE)}. Make it readable, or delete ")
    whole = (folder / STEP).read_bytes()
    (folder / STEP).write_bytes(whole.replace(b'"schema_version": 1', b'"schema_version": 99'))
    assert "has schema_version 99" in again()
    assert not (tmp_path / "s" / "aside").exists()
    (folder / STEP).write_bytes(whole[:-9])
    assert again() == "['step traces']"
    assert (tmp_path / "s" / "aside" / f"{folder.name}.1").is_dir()
    (folder / "made.json").write_text((folder / "made.json").read_text().swapcase())
    assert again() == "[]"  # of what was finished, each time, only sizes
    (tmp_path / "s" / EVENTS).unlink()
    assert again() == "['step traces']"  # hashes where the log does not say that it is made


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
    facts = json.loads((heads / STEP).read_text())
    for name in ("../a", "/a", "below/../../a", "", "a\\b"):
        with pytest.raises(ValidationError, match="is no path below a folder"):
            StepRecord.model_validate({**facts, "files": {name: {"bytes": 1, "sha256": ""}}})
