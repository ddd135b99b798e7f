"""``harness prepare``: what it would run, and that it goes on where it stopped."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.docs.test_blocks import parsed

Command = Callable[..., Any]
SMALL = ("--task", "py150", "--documents", 8, "--length", 64, "--threads", 1)


def test_a_dry_run_prints_commands_that_parse_and_feed_each_other(cli: Command) -> None:
    ran = cli("prepare", "m.gguf", "--source", "data", "--agent", "--dry-run")
    assert ran.code == 0
    words = [shlex.split(line) for line in ran.out.splitlines() if not line.startswith("#")]
    assert [each[1] for each in words] == ["suitability", "trace", "train", "trace", "train", "train"]
    for each in words:
        assert each[0] == "harness"
        parsed(each[1], each[2:])
    assert not Path("artefacts").exists()
    made = {word for each in words for flag, word in itertools.pairwise(each) if flag == "--out"}
    read = {word for each in words for flag, word in itertools.pairwise(each) if flag == "--traces"}
    assert read <= made == {"traces/m.gguf/plain", "traces/m.gguf/exits", "artefacts/m.gguf"}


def test_a_folder_that_others_filled_is_refused(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "artefacts" / "smollm2-135m").mkdir(parents=True)
    (tmp_path / "artefacts" / "smollm2-135m" / "classifier.json").write_text("{}")
    assert (
        "holds artefacts that `harness prepare` did not make. Use another --out" in cli("prepare", "smollm2-135m").error
    )
    assert "are two models" in cli("prepare", "smollm2-135m", "--model", "opt-125m").error


@pytest.mark.slow
def test_it_goes_on_where_it_stopped(cli: Command, tmp_path: Path, tiny_llama: Path, rows_file: Path) -> None:
    given = ("prepare", tiny_llama, "--source", rows_file, *SMALL, "--out", "made", "--traces", "traces")
    ran = cli(*given)  # its exit module is wider than the model
    assert ran.code == 2
    assert "Stopped at step 3 of 5" in ran.err
    done = json.loads(Path("made/prepare.json").read_text())
    assert [words.split()[1] for words in done] == ["suitability", "trace"]
    ran = cli(*given, "--exit-module", "linear", "--steps", 0)
    assert ran.code == 0, ran.err
    assert [line.split(", ")[1].split(":")[0] for line in ran.err.splitlines() if " of 5, " in line][:2] == ["done"] * 2
    assert {"shortcut.json", "classifier.json"} <= {path.name for path in Path("made").iterdir()}
    before = {path: path.stat().st_mtime_ns for path in Path("made").iterdir()}
    again = cli(*given, "--exit-module", "linear", "--steps", 0)
    assert (again.code, again.err.count("done: ")) == (0, 5)
    assert before == {path: path.stat().st_mtime_ns for path in Path("made").iterdir()}
