"""What a run without its learned exit advises cures it: the commands, as printed, and then the very same run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.contracts import ModelRequest
from harness.errors import ArtefactError
from harness.models.controllers import find_controller
from harness.models.model import resolve

Command = Callable[..., Any]

QUICK = {
    "lite": ("--steps", "1", "--length", "32", "--batch", "2", "--rank", "2"),
    "trace": ("--length", "64"),
    "classifier": ("--epochs", "1", "--hidden", "4"),
    "lte": ("--epochs", "1", "--hidden", "4"),
    "rl": ("--steps", "4096", "--envs", "16"),
    "shortcut": (),
}
"""Added to the advised commands; nothing of this decides what an artefact belongs to."""


@pytest.fixture
def run(tiny_run: Command, unseen: Path) -> Command:
    """``harness run`` on a document that is in no trace."""
    return lambda *arguments: tiny_run("--source", unseen, "--limit", 1, *arguments)


@pytest.fixture
def follow(cli: Command, rows_file: Path) -> Callable[..., list[str]]:
    """Run the commands that a refusal names, those of ``without`` left out; return all of them."""

    def carry_out(refused: Any, without: Sequence[str] = ()) -> list[str]:
        commands: list[str] = refused.commands
        for command in commands:
            program, *arguments = shlex.split(command)
            if program != "harness":
                subprocess.run([program, *arguments], check=True)
                continue
            kind = arguments[1] if arguments[0] == "train" else arguments[0]
            if kind in without:
                continue
            data = ("--task", "py150", "--source", rows_file) if kind in ("lite", "trace") else ()
            ran = cli(*arguments, *QUICK[kind], *data)
            assert ran.code == 0, (command, ran.err)
        return commands

    return carry_out


def kinds(commands: list[str]) -> list[str]:
    return [next(word for word in command.split() if word not in ("harness", "train")) for command in commands]


@pytest.mark.slow
@pytest.mark.crossed
@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--weights", "random", "--dtype", "bfloat16"),
        ("--weights", "random", "--seed", "1"),
        ("--weights", "pretrained", "--exit-head", "shared"),
        ("--exit-points", "5,7", "--exit-head", "shared"),
        ("--artefacts", "my own"),
        ("--artefacts", "my own", "--exit-points", "all"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("strategy", ["rl", "classifier", "lte", "classifier:heads=mine"])
def test_a_run_without_its_learned_exit_names_what_cures_it(
    run: Command, follow: Command, strategy: str, flags: tuple[str, ...]
) -> None:
    Path("my own").mkdir()
    asked = ("--strategy", strategy, *flags)
    commands = follow(run(*asked), without=["lite"])
    kind = strategy.partition(":")[0]
    assert kinds(commands) == [*([] if "--weights" in flags else ["lite"]), "trace", kind]
    cured = run(*asked)
    assert cured.code == 0, cured.err
    assert Path("artefacts").is_dir() == ("--artefacts" not in flags)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--artefacts", "a", "--exit-points", "4,10")], ids=" ".join)
def test_with_the_hours_of_tuning_as_well(run: Command, follow: Command, flags: tuple[str, ...]) -> None:
    Path("a").mkdir()
    commands = follow(run("--strategy", "classifier", *flags))
    assert kinds(commands) == ["lite", "trace", "classifier"]
    assert run("--strategy", "classifier", *flags, "--out", "cured").code == 0
    assert json.loads(Path("cured/manifest.json").read_text())["model"]["weights"] == "tuned"
    refused = run("--strategy", "lte", *flags)
    assert kinds(refused.commands) == ["lte"], "what is there is not made again"
    follow(refused)
    assert run("--strategy", "lte", *flags).code == 0


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--weights", "random", "--seed", "2"),
        ("--exit-points", "5,7"),
        ("--artefacts", "my own", "--exit-points", "all", "--weights", "pretrained", "--dtype", "bfloat16"),
    ],
    ids=" ".join,
)
def test_a_run_without_its_shortcuts_names_what_cures_it(run: Command, follow: Command, flags: tuple[str, ...]) -> None:
    Path("my own").mkdir()
    asked = ("--exit-head", "shortcut", *flags)
    assert kinds(follow(run(*asked))) == ["trace", "shortcut"]
    cured = run(*asked, "--out", "cured")
    assert cured.code == 0, cured.err
    assert json.loads(Path("cured/manifest.json").read_text())["model"]["exit_head"].startswith("shortcut:")


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [(), ("--exit-head", "shared"), ("--exit-head", "shortcut", "--artefacts", "my own", "--exit-points", "5,7")],
    ids=" ".join,
)
def test_a_run_without_its_tuned_weights_names_what_cures_it(
    run: Command, follow: Command, flags: tuple[str, ...]
) -> None:
    Path("my own").mkdir()
    asked = ("--weights", "tuned", *flags)
    assert kinds(follow(run(*asked))) == ["lite"]
    cured = run(*asked, "--out", "cured")
    assert cured.code == 0, cured.err
    assert json.loads(Path("cured/manifest.json").read_text())["model"]["weights"] == "tuned"


def test_heads_from_before_the_shortcuts_are_warned_of_and_cured_by_one_flag(
    cli: Command, run: Command, mine: tuple[str, ...], tiny_llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = ("--model", tiny_llama, "--traces", f"traces/{tiny_llama.name}", "--out", "a")
    trained = cli("train", "classifier", *given, *QUICK["classifier"])
    assert "It was trained for exit head shared: run it with --exit-head shared." in " ".join(trained.err.split())
    assert cli("train", "shortcut", *given).code == 0
    (warning,) = caplog.messages
    assert warning == (
        "trained for exit head shared: a/classifier.json, a/lte.json. With a/shortcut.json, runs take its maps "
        "and refuse these: use them with --exit-head shared, or trace and train again."
    )
    asked = ("--strategy", "lte", "--artefacts", "a")
    refused = run(*asked)
    assert "Give --exit-head shared, for which it was trained, or train it again (minutes" in refused.error
    assert kinds(refused.commands) == ["trace", "lte"], "hours of tuning cure nothing of it"
    assert run(*asked, "--exit-head", "shared").code == 0
    assert cli("train", "shortcut", *given).code == 0
    assert len(caplog.messages) == 1, "the heads of before are refused already"


@pytest.fixture
def shipped(cli: Command, tiny_llama: Path, rows_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A set with an adapter of the tiny model, as if it came with the harness."""
    folder = tmp_path / "site" / "shipped"
    monkeypatch.setattr("harness.models.trained.SHIPPED", folder)
    ran = cli(
        *("train", "lite", "--model", tiny_llama, "--task", "py150", "--source", rows_file, "--out", folder / "set"),
        *QUICK["lite"],
    )
    assert ran.code == 0, ran.err
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["rl", "lte", "classifier:heads=mine"])
def test_a_shipped_set_is_copied_and_the_copy_completed(
    run: Command, follow: Command, shipped: Path, strategy: str
) -> None:
    before = sorted(shipped.rglob("*"))
    asked = ("--strategy", strategy, "--artefacts", "set")
    refused = run(*asked)
    assert "the copy is your own and what --artefacts then means" in refused.error
    assert refused.commands[0] == f"cp -r {shipped / 'set'} set"
    assert kinds(follow(refused)) == ["cp", "trace", strategy.partition(":")[0]]
    cured = run(*asked, "--out", "cured")
    assert cured.code == 0, cured.err
    assert json.loads(Path("cured/manifest.json").read_text())["model"]["weights"] == "tuned"
    assert sorted(shipped.rglob("*")) == before
    assert not Path("artefacts").exists()


@pytest.fixture
def mine(cli: Command, tiny_llama: Path, rows_file: Path) -> tuple[str, ...]:
    """A trace in the usual place and heads in ``a``, both of the tiny model and its usual exit points."""
    model, traces = ("--model", tiny_llama), f"traces/{tiny_llama.name}"
    assert cli("trace", *model, "--task", "py150", "--source", rows_file, "--length", 64, "--out", traces).code == 0
    assert cli("train", "lte", *model, "--traces", traces, "--out", "a", *QUICK["lte"]).code == 0
    return ("--strategy", "lte:heads=a/lte.json")


@pytest.mark.parametrize(
    "flags", [("--weights", "random"), ("--exit-points", "4,10"), ("--weights", "random", "--seed", "3")], ids=" ".join
)
def test_a_controller_of_something_else_is_made_again_where_it_was_looked_for(
    run: Command, follow: Command, mine: tuple[str, ...], flags: tuple[str, ...], tiny_llama: Path
) -> None:
    """The trace in the usual place is of something else as well, and stays."""
    refused = run(*mine, *flags)
    assert "a/lte.json was trained " in refused.error
    assert any(line.endswith(f"--out traces/{tiny_llama.name}-2") for line in refused.commands)
    follow(refused, without=["lite"])
    assert run(*mine, *flags).code == 0


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model_fingerprint": 1}'])
def test_what_is_no_trace_is_passed_by(tiny_llama: Path, tmp_path: Path, content: str, cli: Command) -> None:
    folder = tmp_path / "traces" / tiny_llama.name
    folder.mkdir(parents=True)
    (folder / "index.json").write_text(content)
    info = resolve(ModelRequest(str(tiny_llama), weights="pretrained", exit_head="shared")).info
    with pytest.raises(ArtefactError, match=rf"--out traces/{tiny_llama.name}-2`"):
        find_controller("classifier", "", info)


def test_a_misspelt_folder_is_called_one_and_its_neighbours_are_named(
    run: Command, tiny_llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    shutil.copytree(tiny_llama, tmp_path / "models" / "tiny-llama")
    shutil.copytree(tiny_llama, tmp_path / "tiny-here")
    (tmp_path / "models" / "notes").write_text("")
    for typed, said in {
        "./models/tiny-lama": "does not exist. Did you mean ./models/tiny-llama?",
        "models/tiny-lama": "does not exist. Did you mean models/tiny-llama? As a hub id, it is not cached and the",
        "./modles/tiny-llama": "does not exist: there is no modles. Did you mean ./models/tiny-llama?",
        f"{tmp_path}/models/tiny-lama": f"does not exist. Did you mean {tmp_path}/models/tiny-llama?",
        "./models/opt-2.7": "does not exist. Did you mean opt-2.7b?",
        "../nowhere/at/all": "does not exist: there is no ../nowhere.",
    }.items():
        assert f"the model folder {typed} {said}" in run("--model", typed).error
    assert "Did you mean 'tiny-here'?" in run("--model", "tiny-heer").error
    assert "models/notes is a file. Give the folder it lies in: --model models" in run("--model", "models/notes").error
    assert (
        "model nobody/none (nobody/none) is not cached and the model hub is out" in run("--model", "nobody/none").error
    )


def test_cures_keep_the_model_as_it_was_typed(
    run: Command, follow: Command, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(tiny_llama, tmp_path / "my models" / "tiny")
    for typed in ("my models/tiny", "./my models/tiny/", "~/my models/tiny"):
        refused = run("--model", typed, "--strategy", "classifier")
        assert [shlex.split(line)[shlex.split(line).index("--model") + 1] for line in refused.commands] == [typed] * 3
    follow(refused, without=["lite"])
    assert run("--model", typed, "--strategy", "classifier").code == 0


def test_a_folder_without_a_tokenizer_is_refused_before_any_row_is_called_too_short(
    run: Command, make_model: Callable[..., Path]
) -> None:
    folder = make_model("opt")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    line = run("--model", folder).error
    assert f"no tokenizer for {folder.name} in {folder}: files of the tokenizer are missing" in line
    assert "tokenizer.json, or vocab.json with merges.txt" in line
    assert "too short" not in line


PAGE = (Path(__file__).parents[2] / "docs" / "tutorials" / "own-model.md").read_text(encoding="utf-8")
SESSIONS = re.findall(r"^\$ (harness run .*--model opt-2\.7b.*)\n((?:.+\n)+?)(?=```|\$)", PAGE, re.M)


@pytest.mark.parametrize(("command", "said"), SESSIONS)
def test_a_model_out_of_reach_says_what_the_tutorial_says(cli: Command, command: str, said: str) -> None:
    assert cli(*shlex.split(command)[1:]).err.splitlines()[1:] == said.splitlines()


def test_the_tutorial_shows_the_refusal_with_and_without_weights() -> None:
    assert ["--weights random --dtype bfloat16" in command for command, _ in SESSIONS] == [False, True]
