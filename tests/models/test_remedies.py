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

Command = Callable[..., Any]

QUICK = {
    "lite": ("--steps", "1", "--length", "32", "--batch", "2", "--rank", "2"),
    "trace": ("--length", "64"),
    "classifier": ("--epochs", "1", "--hidden", "4"),
    "lte": ("--epochs", "1", "--hidden", "4"),
    "rl": ("--steps", "4096", "--envs", "16"),
    "shortcut": (),
    "prepare": ("--documents", "4", "--length", "64", "--exit-module", "linear", "--steps", "0"),
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
            data = ("--task", "py150", "--source", rows_file) if kind in ("lite", "trace", "prepare") else ()
            ran = cli(*arguments, *QUICK[kind], *data)
            assert ran.code == 0, (command, ran.err)
        return commands

    return carry_out


def kinds(commands: list[str]) -> list[str]:
    return [next(word for word in command.split() if word not in ("harness", "train")) for command in commands]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "flags", "without", "weights"),
    [
        ("rl:agent=mine", (), ["lite"], "pretrained"),
        ("classifier:heads=mine", ("--weights", "random", "--dtype", "bfloat16", "--seed", "1"), [], "random"),
        ("classifier", ("--artefacts", "my own", "--exit-points", "all"), [], "tuned"),  # after hours
    ],
)
def test_a_run_without_its_learned_exit_names_what_cures_it(
    run: Command, follow: Command, strategy: str, flags: tuple[str, ...], without: list[str], weights: str
) -> None:
    Path("my own").mkdir()
    asked = ("--strategy", strategy, *flags)
    commands = follow(run(*asked), without=without)
    kind = strategy.partition(":")[0]
    assert kinds(commands) == [*([] if weights == "random" else ["lite"]), "trace", kind]
    cured = run(*asked, "--out", "cured")
    assert cured.code == 0, cured.err
    assert json.loads(Path("cured/manifest.json").read_text())["model"]["weights"] == weights
    assert Path("artefacts").is_dir() == ("--artefacts" not in flags)


@pytest.mark.slow
def test_an_agent_its_heads_and_maps_are_made_by_one_command(run: Command, follow: Command) -> None:
    """Which goes on: what one of them needed is not made again for the next."""
    asked = ("--strategy", "classifier", "--strategy", "rl", "--exit-head", "shortcut")
    assert follow(run("--strategy", "classifier"))[0].startswith("harness prepare ")
    refused = run("--strategy", "rl")
    assert [shlex.split(command)[-1] for command in refused.commands] == ["--agent"]
    follow(refused)
    cured = run(*asked, "--out", "cured")
    assert cured.code == 0, cured.err


@pytest.mark.parametrize(
    ("strategy", "flags", "commands"),
    [
        ("rl", (), ["prepare"]),
        ("classifier", (), ["prepare"]),
        ("full", ("--exit-head", "shortcut"), ["prepare"]),
        ("classifier:heads=mine", (), ["lite", "trace", "classifier"]),  # which it would not make
        ("classifier", ("--exit-points", "all"), ["lite", "trace", "classifier"]),
        ("lte", (), ["lite", "trace", "lte"]),
    ],
)
def test_the_shortest_cure_that_there_is_is_named(
    run: Command, strategy: str, flags: tuple[str, ...], commands: list[str]
) -> None:
    assert kinds(run("--strategy", strategy, *flags).commands) == commands


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("strategies", [("rl",), ("classifier", "lte"), ("full",)])
def test_all_that_is_missing_with_a_model_stands_in_one_list(
    cli: Command, monkeypatch: pytest.MonkeyPatch, offline: bool, strategies: tuple[str, ...]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1" if offline else "0")
    monkeypatch.setattr("harness.host.hub.hub_trouble", lambda endpoint: "out of reach")
    refused = cli("run", "--model", "opt-2.7b", *(word for name in strategies for word in ("--strategy", name)))
    learned = strategies != ("full",)
    assert "opt-2.7b" in refused.error
    assert ("--weights random" in refused.error) != learned
    assert ("HF_HUB_OFFLINE" in refused.err) == offline
    wanted = [f"harness prepare opt-2.7b{' --agent' if 'rl' in strategies else ''}"] if learned else []
    made = [command for command in refused.commands if "unset" not in command]
    assert made[:1] == wanted
    assert [command.split()[2] for command in made[1:]] == [name for name in strategies if name == "lte"]


def test_a_controller_of_other_exit_points_is_made_again_from_the_trace_that_is_there(
    cli: Command, run: Command, follow: Command, tiny_llama: Path, rows_file: Path
) -> None:
    model, traces = ("--model", tiny_llama), f"traces/{tiny_llama.name}"
    asked = ("--strategy", "lte", "--exit-points", "4,10")
    data = ("--task", "py150", "--source", rows_file, "--length", 64)
    assert cli("trace", *model, *data, "--exit-points", "4,10", "--out", traces).code == 0
    refused = run(*asked)
    assert kinds(refused.commands) == ["lte"], "what is there is not made again"
    follow(refused)
    assert run(*asked).code == 0
    refused = run("--strategy", "lte", "--exit-points", "4,8,10")
    assert "lte.json was trained at exit points 4, 10; this run has 4, 8, 10. Use --exit-points 4,10" in refused.error
    assert kinds(refused.commands) == ["trace", "lte"]
    assert refused.commands[-1].endswith("--overwrite")
    assert f"--out {traces}-2" in refused.commands[0], "what lies there is of something else, and stays"


@pytest.mark.parametrize(
    "flags",
    [(), ("--artefacts", "my own", "--exit-points", "all", "--weights", "pretrained", "--dtype", "bfloat16")],
    ids=" ".join,
)
def test_a_run_without_its_shortcuts_names_what_cures_it(run: Command, follow: Command, flags: tuple[str, ...]) -> None:
    Path("my own").mkdir()
    asked = ("--exit-head", "shortcut", *flags)
    assert kinds(follow(run(*asked))) == (["trace", "shortcut"] if flags else ["prepare"])
    cured = run(*asked, "--out", "cured")
    assert cured.code == 0, cured.err
    assert json.loads(Path("cured/manifest.json").read_text())["model"]["exit_head"].startswith("shortcut:")


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
def test_a_shipped_set_is_copied_and_the_copy_completed(run: Command, follow: Command, shipped: Path) -> None:
    """A new folder of its name would stand in for the set, without its adapter."""
    before, asked = sorted(shipped.rglob("*")), ("--strategy", "lte", "--artefacts", "set")
    refused = run(*asked)
    assert "the copy is your own and what --artefacts then means" in refused.error
    assert kinds(follow(refused)) == ["cp", "trace", "lte"]
    cured = run(*asked, "--out", "cured")
    assert cured.code == 0, cured.err
    assert json.loads(Path("cured/manifest.json").read_text())["model"]["weights"] == "tuned"
    assert sorted(shipped.rglob("*")) == before


def test_cures_keep_the_model_as_it_was_typed(
    run: Command, follow: Command, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(tiny_llama, tmp_path / "my models" / "tiny")
    for typed in ("my models/tiny", "./my models/tiny/", "~/my models/tiny"):
        refused = run("--model", typed, "--strategy", "lte")
        assert [shlex.split(line)[shlex.split(line).index("--model") + 1] for line in refused.commands] == [typed] * 3
    follow(refused, without=["lite"])
    assert run("--model", typed, "--strategy", "lte").code == 0


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


def test_a_model_out_of_reach_says_what_the_tutorial_says(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("harness.host.hub.hub_trouble", lambda endpoint: "out of reach")
    assert ["--weights random" in command for command, _ in SESSIONS] == [False, True]
    for command, said in SESSIONS:
        assert cli(*shlex.split(command)[1:]).err.splitlines()[1:] == said.splitlines()
