"""A learned strategy of another, separately installed package: two files, trained from a trace and run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.test_plugin import seeing

PROJECT = Path(__file__).resolve().parent / "fixtures" / "third_party_learned"

NAME = "mean-difference"

Shell = Callable[..., Any]


@pytest.fixture(scope="module")
def site(install: Callable[[Path], Path]) -> Path:
    """A folder the fixture project is installed into."""
    return install(PROJECT)


@pytest.mark.slow
def test_its_recipe_is_listed_and_its_options_are_flags(site: Path, forked: Shell, tmp_path: Path) -> None:
    for arguments in (("list", "recipes"), ("train", "--help")):
        said = forked(*arguments, cwd=tmp_path, **seeing(site)).stdout
        assert "Fit one linear map per exit point" in said
    said = forked("train", NAME, "--help", cwd=tmp_path, **seeing(site)).stdout
    (line,) = [line for line in said.splitlines() if " --shrink " in line]
    assert "What the difference is multiplied by. Default: 1 (> 0, ≤ 1)." in line
    assert " --traces " in said
    assert "Did you mean 'mean-difference'?" in forked("train", "mean-diff", cwd=tmp_path, **seeing(site)).stderr
    ran = forked("train", NAME, "--traces", "t", "--shrink", 2, cwd=tmp_path, **seeing(site))
    assert (ran.returncode, ran.stderr.strip()) == (2, "error: --shrink 2: input should be less than or equal to 1.")


def test_it_is_trained_on_a_trace_and_run(
    site: Path, forked: Shell, tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    def harness(*arguments: object) -> Any:
        ran = forked(*arguments, "--model", tiny_llama, cwd=tmp_path, **seeing(site))
        assert ran.returncode == 0, ran.stderr
        return ran

    def run(spec: str) -> dict[str, float]:
        arguments = ("--source", unseen, "--limit", 2, "--max-new-tokens", 6, "--energy", "none", "--threads", 1)
        said = harness("run", "--strategy", spec, *arguments, "--artefacts", "a", "--json").stdout
        rows = json.loads(said)["rows"]
        return {row["operating_point"]: row["metrics"]["exit_layer_mean"]["value"] for row in rows}

    unseen = tmp_path / "unseen.jsonl"
    rows = rows_file.read_text().splitlines(keepends=True)
    unseen.write_text("".join(rows[6:]))
    (tmp_path / "seen.jsonl").write_text("".join(rows[:6]))
    traced = ("--task", "py150", "--source", "seen.jsonl", "--length", 64, "--out", "t")
    harness("trace", *traced)
    made = harness("train", NAME, "--traces", "t", "--out", "a", "--shrink", 0.5)
    assert "| threshold (replayed) | mean exit layer | agreement |" in made.stdout
    facts = json.loads((tmp_path / "a" / f"{NAME}.json").read_text())
    assert facts["recipe"] == {"shrink": 0.5}
    assert f"harness train {NAME} --traces t" in facts["made"]["command"]
    least, never = f"{NAME}:threshold=-1e9", f"{NAME}:threshold=1e9"
    said = run(f"{NAME}:threshold=-1e9,1e9")
    assert said[least] == 4
    assert said[never] == said["full"] == 12
    assert NAME in run(NAME)  # the threshold it was saved with


def test_what_is_not_trained_names_its_recipe(
    site: Path, forked: Shell, tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    ran = forked("run", "--model", tiny_llama, "--source", rows_file, "--strategy", NAME, cwd=tmp_path, **seeing(site))
    assert ran.returncode == 2
    assert f"\n  harness train {NAME} --model {tiny_llama} --traces " in ran.stderr


@pytest.mark.parametrize("file", ["mean_difference.py", "mean_difference_recipe.py"])
def test_the_tutorial_shows_this_very_code(file: str) -> None:
    code = (PROJECT / file).read_text(encoding="utf-8")
    definition = code[code.index("@dataclass" if "@dataclass" in code else "class ") :]
    assert definition in (PROJECT.parents[2] / "docs" / "tutorials" / "recipe.md").read_text(encoding="utf-8")
