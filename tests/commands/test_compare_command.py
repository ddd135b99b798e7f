"""``harness compare`` on real runs of the tiny model: output, files and exit codes."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from reports.comparing.conditions import parse_condition

Command = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]
ACTION = yaml.safe_load((ROOT / ".github/actions/compare/action.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this module's runs are kept, made once."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def two_runs(tiny_run: Command, kept: Path) -> tuple[Path, Path]:
    """The same run twice."""
    folders = kept / "before", kept / "after"
    for folder in folders:
        if not folder.exists():
            assert tiny_run("--strategy", "fixed:layer=6", "--limit", 8, "--out", folder).code == 0
    return folders


@pytest.mark.slow
def test_the_same_run_twice_has_the_same_tokens(cli: Command, two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "comment.md"
    ran = cli(
        "compare", *two_runs, "--json", "--markdown", file,
        *("--fail-if", "agreement<1", "--fail-if", "layers_skipped<0"),
    )  # fmt: skip
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert [point["operating_point_a"] for point in found["points"]] == ["full", "fixed:layer=6"]
    for point in found["points"]:
        assert point["prompts_matched"] == point["completions_identical"] == 8
        assert point["metrics"]["agreement"]["absolute"] == 1.0
        assert point["metrics"]["edit_similarity"]["absolute"] == 0.0
        assert point["metrics"]["energy_j_per_token"]["reason"] == "no energy was measured"
        assert point["metrics"]["latency_p90_s"]["relative_interval"] is None
    assert {one["outcome"] for one in found["conditions"]} == {"passed"}
    assert found["differences"] == []
    assert "every token the same" in file.read_text(encoding="utf-8")
    few = cli("compare", *two_runs, "--fail-if", "edit_similarity<0")
    assert few.code == 2
    assert "cannot be judged: a score's interval needs 50 prompts, there are 8" in few.err
    unknown = cli("compare", *two_runs, "--fail-if", "latncy_p50>+5%")
    assert "Did you mean 'latency_p50_s'?" in unknown.error  # once it is known which scores the runs have


def test_a_condition_that_holds_exits_with_1(cli: Command, two_runs: tuple[Path, Path]) -> None:
    pair = ("--point-a", "full", "--point-b", "fixed:layer=6")
    ran = cli("compare", two_runs[0], two_runs[0], *pair, "--fail-if", "layers_skipped>+0.4")
    assert ran.code == 1
    assert ran.err.startswith("failed: layers_skipped>+0.4 at py150, full → fixed:layer=6: holds: +0.5")
    assert "interleaved: drift" in ran.out.replace("\n", " ")
    both = cli(
        "compare", two_runs[0], two_runs[0], *pair, "--fail-if", "layers_skipped>+0.4", "--fail-if", "latency_p99>0"
    )
    assert both.code == 1
    assert "error: latency_p99>0" in both.err


def test_bad_flags_are_refused_before_anything_is_read(cli: Command) -> None:
    for more, said in (
        (["--point-a", "full"], "--point-b is missing"),
        (["--point", "full", "--point-a", "full", "--point-b", "full"], "Use one or the other"),
        (["--markdown", "nowhere/x.md"], "the folder nowhere does not exist"),
        ([], "nothing does not exist"),
    ):
        assert said in cli("compare", "nothing", "nothing-else", *more).error


def test_the_documented_workflows_can_be_read() -> None:
    text = (ROOT / "tests" / "benchmarks" / "README.md").read_text(encoding="utf-8")
    workflows = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    assert [workflow["name"] for workflow in workflows] == ["early exit", "history"]
    (action,), steps = (next(iter(workflow["jobs"].values()))["steps"] for workflow in workflows)
    assert all("uses" in step or "run" in step for step in steps)
    assert action["with"].keys() == ACTION["inputs"].keys()
    for given in (action["with"]["fail-if"], ACTION["inputs"]["fail-if"]["default"]):
        assert all(parse_condition(line).metric.name for line in given.splitlines())


def test_the_action_runs_both_sides_and_fails_as_its_conditions_say(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    for side in ("before", "after"):
        (tmp_path / side).mkdir()
        activate = tmp_path / f"venv-{side}" / "bin" / "activate"
        activate.parent.mkdir(parents=True)
        activate.write_text(f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH\n", encoding="utf-8")
    shown = tmp_path / "summary.md"
    scripts = {step["name"]: step["run"] for step in ACTION["runs"]["steps"] if "run" in step}
    run = (
        f"--model {tiny_llama} --source {rows_file} --limit 5 --max-new-tokens 4 --energy none --strategy fixed:layer=6"
    )
    env = os.environ | {"RUN": f"{run} --threads 1", "GITHUB_STEP_SUMMARY": str(shown), "PYTHONPATH": str(ROOT)}
    for name, conditions, code in (
        ("Run both", "", 0),
        ("Compare", "layers_skipped<-0.1\n\n", 0),
        ("Compare", "layers_skipped<-0.1\nlayers_skipped>-0.1\n", 1),
        ("Show it in the job's summary", "", 0),
    ):
        command = ["bash", "-e", "-o", "pipefail", "-c", scripts[name]]
        given = env | {"CONDITIONS": conditions}
        ran = subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True, check=False)
        assert ran.returncode == code, ran.stderr
    assert "layers_skipped" in shown.read_text(encoding="utf-8").replace("\\", "")
