"""The command as a user meets it: help, lists, pipes, colours, narrow terminals, and defects that stay visible."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from harness.cli import READER_GONE
from harness.config import parse_strategies
from harness.config.options import build_strategy
from harness.errors import DEFECT
from harness.records import WindowRecord
from harness.registry import REGISTRIES, STRATEGIES

Command = Callable[..., Any]
Shell = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted({name for registry in REGISTRIES.values() for name in registry.names()})


def test_the_version_is_the_package_s_and_no_command_is_a_call_for_help(cli: Command) -> None:
    assert cli().out == cli("-h").out == cli("--help").out
    ran = cli("--version")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.split() == ["early-exit-harness", metadata.version("early-exit-harness")]


@pytest.mark.parametrize("kind", REGISTRIES)
@pytest.mark.parametrize("columns", ["60", "120"])
def test_a_list_shows_every_name_whole(cli: Command, monkeypatch: pytest.MonkeyPatch, kind: str, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    ran = cli("list", kind)
    assert ran.code == 0
    assert max(map(len, ran.out.splitlines())) <= int(columns)
    first_words = [line.split()[0] for line in ran.out.splitlines() if line and not line.startswith(" ")]
    assert first_words == [kind, "name", *REGISTRIES[kind].names()]
    assert not re.search(r"``|:\w+:`|::$", ran.out, re.M)
    for name in REGISTRIES[kind].names():
        assert REGISTRIES[kind].entry(name).summary  # read from the source text, without importing it


@pytest.mark.parametrize("name", NAMES)
def test_everything_that_is_listed_can_be_shown(cli: Command, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ran = cli("show", name)
    assert ran.code == 0, ran.err
    assert ran.out.startswith(name)
    assert len(ran.out.splitlines()) >= 2
    assert not re.search(r"``|:\w+:`|::$", ran.out, re.M)  # no marks of its source
    assert max(map(len, ran.out.splitlines())) <= 80
    if name in STRATEGIES and "No options" not in ran.out:
        (example,) = [line for line in ran.out.splitlines() if line.startswith("harness run --strategy ")]
        (spec,) = parse_strategies(example.rpartition(" ")[2])  # how it is used
        assert spec.name == name
        build_strategy(spec)


def test_the_built_ins_register_as_a_third_party_would() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    for registry in REGISTRIES.values():
        assert set(groups[registry.group]) <= set(registry.names())
        for name, target in groups[registry.group].items():
            assert registry.entry(name).target == target
            assert registry.load(name) is not None


# ------------------------------------------------------------------------------ pipes and colours


@pytest.mark.parametrize("arguments", [["list"], ["--help"]])
def test_a_reader_that_goes_away_is_no_error(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)  # as `| head` does, but at once
    command = [sys.executable, "-m", "harness.cli", *arguments]
    try:
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writing)
    assert done.returncode == READER_GONE  # never 1, which says that a condition holds
    assert done.stderr == ""


def in_terminal(arguments: list[object], folder: Path, **environment: str) -> tuple[int, str]:
    """Run with stdout and stderr on a terminal; return exit code and everything written to it."""
    master, slave = pty.openpty()
    settings = {"COLUMNS": "80", "LINES": "40", "TERM": "xterm-256color", **environment}
    process = subprocess.Popen(
        [sys.executable, "-m", "harness.cli", *map(str, arguments)],
        cwd=folder, stdin=slave, stdout=slave, stderr=slave, env=os.environ | settings,
    )  # fmt: skip
    os.close(slave)
    said = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # how Linux says that the other side has closed
            break
        if not piece:
            break
        said += piece
    os.close(master)
    return process.wait(), said.decode()


def test_a_terminal_gets_colours_unless_it_asked_for_none(tmp_path: Path) -> None:
    code, said = in_terminal(["list", "tasks"], tmp_path)
    assert code == 0
    assert "\x1b[36m" in said
    code, said = in_terminal(["list", "tasks"], tmp_path, NO_COLOR="1")
    assert code == 0
    assert not any(f"\x1b[{colour}" in said for colour in ("3", "9", "38"))


@pytest.mark.slow
def test_a_run_in_a_terminal_draws_a_bar_and_takes_it_away(tmp_path: Path, tiny_llama: Path, rows_file: Path) -> None:
    arguments = ["run", "--model", tiny_llama, "--source", rows_file, "--limit", 2, "--max-new-tokens", 3]
    arguments += ["--energy", "none", "--threads", 1, "--strategy", "fixed:layer=4", "--out", "out"]
    code, said = in_terminal(arguments, tmp_path)
    assert code == 0
    assert "4/4" in said  # windows
    assert "━" in said
    assert "\x1b[?25h" in said  # the cursor is back
    assert said.count("out") >= 1
    assert "What each operating point gives and saves" in said


# ---------------------------------------------------------------------------------- progress


def record(point: str = "full") -> WindowRecord:
    return WindowRecord(
        window=0, task="py150", block=0, repeat=0, operating_point=point, samples=1, tokens=4,
        started="2026-01-01T00:00:00+00:00", duration_s=0.5, cpu_time_s=0.4,
    )  # fmt: skip


def test_a_log_file_gets_a_line_per_stage_and_tenth() -> None:
    from rich.console import Console

    from harness.commands.progress import RunProgress

    said = io.StringIO()
    with RunProgress(Console(file=said, width=100, emoji=False)) as progress:
        progress.stage("loading [red]model[/red]")
        progress.begin(200, 60, Path("runs/[b]old[/b]"))
        for _ in range(140):
            progress.window(record("fixed:[x]=1"))
        progress.stage("scoring")
        progress.interrupted()
    assert said.getvalue().splitlines() == [
        "loading [red]model[/red] …",
        "200 windows into runs/[b]old[/b], 60 kept",
        *(f"windows: {count} of 200, 0 s left" for count in range(80, 200, 20)),
        "windows: 200 of 200",
        "scoring …",
        "Stopped; every finished window is kept. Continue with `harness run --resume 'runs/[b]old[/b]'`.",
    ]


# ------------------------------------------------------------------------------- defects, noise


def test_a_defect_keeps_its_traceback(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("harness.running.runner.resolve", broken)
    ran = cli("run")
    assert ran.code == DEFECT
    assert "Traceback" in ran.err
    assert "ZeroDivisionError: a defect" in ran.err
    assert "please report it" in ran.err


@pytest.mark.slow
def test_a_run_says_nothing_but_its_stages(
    shell: Shell, tmp_path: Path, tiny_llama: Path, rows_file: Path, documents: list[str]
) -> None:
    """No library's warnings or bars; a bad row is one warning. The bandwidth is really measured here."""
    source = tmp_path / "rows.jsonl"
    source.write_text(rows_file.read_text() + "{broken\n")
    ran = shell(
        *("run", "--model", tiny_llama, "--source", source, "--limit", 0, "--max-new-tokens", 3, "--energy", "none"),
        *("--threads", 1, "--strategy", "oracle", "--out", "out", "--task", "py150", "--task", "javacorpus"),
        cwd=tmp_path,
    )
    assert ran.returncode == 0
    said = ran.stderr.splitlines()
    assert said[0] == "checking the configuration and drawing samples …"
    warnings = [line for line in said if line.startswith("warning: ")]
    assert len(warnings) == 2  # one per task
    assert f"py150: row {len(documents) + 1}: is not JSON" in warnings[0]
    others = [line for line in said[1:] if not line.startswith("warning: ") and not line.startswith("windows: ")]
    checked = next(line for line in others if line.startswith(f"preparing {tiny_llama.name}, its weights checked in "))
    assert others == [
        f"loading {tiny_llama.name} …",
        checked,
        "warming up …",
        next(line for line in others if re.fullmatch(r"warmed up in \d+\.\d s, examining the machine …", line)),
        "32 windows into out",
        "scoring …",
        "Records, report.md, summary.csv and summary.json are in out",
        "All tables, the front and all notes: harness report out",
    ]


def test_a_run_ends_with_what_to_use_and_one_table(tiny_run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ran = tiny_run("--strategy", "margin:threshold=0.1,0.2", "--strategy", "oracle", "--out", "out")
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 25  # a machine of a long name takes two
    said = " ".join(ran.out.split())
    assert "3 samples are too few to tell any operating point from full depth. Use --limit 50 or more." in said
    assert "margin:threshold=0.2" in said
    assert "First of" in said
    for rest in ("Pareto front", "How to read this", "Against full depth"):
        assert rest not in said
