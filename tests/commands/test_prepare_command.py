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


def test_a_dry_run_prints_commands_that_parse_and_feed_each_other(cli: Command, tiny_llama: Path) -> None:
    name = tiny_llama.name
    ran = cli("prepare", tiny_llama, "--source", "data", "--agent", "--dry-run")
    assert ran.code == 0
    words = [shlex.split(line) for line in ran.out.splitlines() if not line.startswith("#")]
    assert [each[1] for each in words] == ["suitability", "trace", "train", "trace", "train", "train"]
    for each in words:
        assert each[0] == "harness"
        parsed(each[1], each[2:])
    assert not Path("artefacts").exists()
    made = {word for each in words for flag, word in itertools.pairwise(each) if flag == "--out"}
    read = {word for each in words for flag, word in itertools.pairwise(each) if flag == "--traces"}
    assert read <= made == {f"traces/{name}/plain", f"traces/{name}/exits", f"artefacts/{name}"}


@pytest.mark.parametrize(("width", "module"), [(128, "mlp/128"), (576, "mlp/512"), (2560, "mlp/512")])
def test_exits_that_nobody_chose_fit_the_model(
    cli: Command, make_model: Callable[..., Path], width: int, module: str
) -> None:
    folder = make_model("llama", hidden_size=width, num_attention_heads=4, num_key_value_heads=4)
    assert f"--exit-module {module} " in cli("prepare", folder, "--dry-run").out


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--exit-module", "x"), "'x'"),
        (("--exit-module", "mlp/3"), "mlp/3"),
        (("--exit-module", "mlp/5000"), "mlp/5000"),
        (("--exit-module", "linear/4"), "linear"),
        (("--model", "opt-125m"), "two models"),
        (("--task", "none"), "'none'"),
    ],
)
def test_what_can_be_refused_is_refused_before_the_first_step(
    cli: Command, tiny_llama: Path, tmp_path: Path, flags: tuple[str, ...], named: str
) -> None:
    line = cli("prepare", tiny_llama, *flags).error
    assert named in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("count", "length", "decisions"), [(8, 64, 4096), (50, 640, 256_000), (10**4, 640, 2_000_000)])
def test_an_agent_learns_for_as_long_as_there_is_to_learn_from(
    cli: Command, tiny_llama: Path, count: int, length: int, decisions: int
) -> None:
    given = ("--task", "py150", "--documents", count, "--length", length, "--agent", "--dry-run")
    *_, last = cli("prepare", tiny_llama, *given).out.splitlines()
    assert last.endswith(f"--steps {decisions}")


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
    Path("made").mkdir()
    (Path("made") / "shortcut.json").mkdir()  # in the way of what step 3 makes
    (Path("made") / "prepare.json").write_text("[]")
    ran = cli(*given, "--exit-module", "linear", "--steps", 0)
    assert ran.code
    assert "Stopped at step 3 of 5" in ran.err
    done = json.loads(Path("made/prepare.json").read_text())
    assert [words.split()[1] for words in done] == ["suitability", "trace"]
    (Path("made") / "shortcut.json").rmdir()
    ran = cli(*given, "--exit-module", "linear", "--steps", 0)
    assert ran.code == 0, ran.err
    assert [line.split(", ")[1].split(":")[0] for line in ran.err.splitlines() if " of 5, " in line][:2] == ["done"] * 2
    assert {"shortcut.json", "classifier.json"} <= {path.name for path in Path("made").iterdir()}
    before = {path: path.stat().st_mtime_ns for path in Path("made").iterdir()}
    again = cli(*given, "--exit-module", "linear", "--steps", 0)
    assert (again.code, again.err.count("done: ")) == (0, 5)
    assert before == {path: path.stat().st_mtime_ns for path in Path("made").iterdir()}
