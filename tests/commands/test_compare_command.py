"""``harness compare`` on real runs of the tiny model: output, files and exit codes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


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
    import yaml

    from reports.comparing.conditions import parse_condition

    text = (Path(__file__).resolve().parents[1] / "benchmarks" / "README.md").read_text(encoding="utf-8")
    workflows = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    assert [workflow["name"] for workflow in workflows] == ["early exit", "history"]
    for workflow in workflows:
        (job,) = workflow["jobs"].values()
        assert all("uses" in step or "run" in step for step in job["steps"])
    conditions = re.findall(r'--fail-if "([^"]+)"', text)
    assert [parse_condition(text).metric.name for text in conditions] == ["edit_similarity", "latency_p50_s", "speedup"]
