"""Plug-ins of every other kind, from five more packages: listed, used, recorded, and missed by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FIXTURES = Path(__file__).resolve().parent / "fixtures"
LEARNED = FIXTURES / "third_party_learned"

Shell = Callable[..., subprocess.CompletedProcess[str]]
Command = Callable[..., Any]
Samples = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def site(install: Callable[..., Path]) -> Path:
    """The folder that the packages are installed into."""
    return install(*(FIXTURES / f"third_party_{name}" for name in ("drafts", "head", "kv", "learned", "stops")))


@pytest.fixture(scope="module")
def env(site: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(site), "COLUMNS": "120"}


@pytest.fixture(scope="module")
def run(
    env: dict[str, str], forked: Shell, tiny_llama: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """``run(*arguments)`` is the run directory of the tiny model; what was printed lies in ``said.txt`` beside it."""

    def make(*arguments: object, limit: int = 3) -> Path:
        folder = tmp_path_factory.mktemp("run")
        base = ("run", "--model", tiny_llama, "--source", rows_file, "--limit", limit, "--energy", "none")
        ran = forked(*base, "--threads", 1, "--out", "out", *arguments, cwd=folder, env=env)
        assert ran.returncode == 0, ran.stderr
        (folder / "said.txt").write_text(ran.stdout)
        return folder / "out"

    return make


def by_point(run: Path) -> Samples:
    found: Samples = {}
    for line in (run / "samples.jsonl").read_text().splitlines():
        sample = json.loads(line)
        found.setdefault(sample["operating_point"], []).append(sample)
    return {point: sorted(samples, key=lambda sample: str(sample["sample_id"])) for point, samples in found.items()}


def plugins(run: Path) -> set[tuple[str, str, str, str]]:
    found = json.loads((run / "manifest.json").read_text())["plugins"]
    return {tuple(plugin[key] for key in ("kind", "name", "distribution", "version")) for plugin in found}


LISTED = {
    "half": ("Read every other token", "half-head"),
    "zeros": ("Leave zeros", "zero-fill"),
    "stranger": ("StarCoder2 in disguise", "zero-fill"),
    "ternary": ("Weights are −1, 0 or 1", "zero-fill"),
    "believer": ("Draft at one exit for as long as", "believing-drafts"),
    "echo": ("Propose the last token again", "believing-drafts"),
    "after": ("End a completion after some tokens", "after-tokens"),
    "mean-difference": ("Fit one linear map per exit point", "mean-difference-exit"),
}
"""Name → what it is, and its package."""


def test_all_are_listed_with_their_package(env: dict[str, str], forked: Shell, tmp_path: Path) -> None:
    ran = forked("list", cwd=tmp_path, env=env | {"COLUMNS": "200"})
    assert ran.returncode == 0, ran.stderr
    for name, (meaning, package) in LISTED.items():
        rows = [line for line in ran.stdout.splitlines() if line.startswith(f"{name} ") and meaning in line]
        assert [row.rstrip().endswith(package) for row in rows] == [True], name
    assert not any(line.startswith("zeros ") for line in forked("list", cwd=tmp_path).stdout.splitlines())
    assert "--decode lossless+short:tokens=2" in forked("show", "short", cwd=tmp_path, env=env).stdout
    assert "harness run --stop after:tokens=4" in forked("show", "after", cwd=tmp_path, env=env).stdout


# ------------------------------------------------------------------------------------------- heads


def test_a_head_is_read_recorded_and_reported(run: Callable[..., Path], forked: Shell, tmp_path: Path) -> None:
    points = ("confidence:threshold=0.01:head=half", "margin:threshold=0.001:head=half:token=head")
    out = run(*(word for one in points for word in ("--strategy", one)), "--max-new-tokens", 8, limit=2)
    own = by_point(out)[points[1]]
    assert sum(one["cheap_head_tokens"] for one in own) > 0
    for one in own:
        pairs = zip(one["token_ids"][1:], one["exit_layers"][1:], strict=True)
        assert all(token % 2 == 0 for token, layer in pairs if layer < 12)
    assert ("head", "half", "half-head", "1.0") in plugins(out)
    report = forked("report", out, cwd=tmp_path, env=os.environ | {"COLUMNS": "200"})  # without the package
    assert report.returncode == 0, report.stderr
    assert "is decided by a cheap head, half (every other token" in " ".join(report.stdout.split())
    missing = forked("run", "--strategy", "confidence:head=half", cwd=tmp_path)
    assert (missing.returncode, "unknown head 'half'" in missing.stderr) == (2, True)


# ------------------------------------------------------------- KV policies, weights formats, families

NEW = 24


@pytest.fixture(scope="module")
def stranger(make_model: Callable[..., Path]) -> Path:
    """A model whose ``model_type`` neither transformers nor the harness knows."""
    folder = make_model("starcoder2", num_key_value_heads=2, sliding_window=100, tie_word_embeddings=False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "stranger"}))
    return folder


@pytest.fixture(scope="module")
def filled(run: Callable[..., Path]) -> Path:
    """A run of the policy beside two built-in ones."""
    points = ("--strategy", "random", "--strategy", "fixed:layer=6", "--kv", "propagate,zeros,skip")
    return run(*points, "--max-new-tokens", NEW, "--weights-format", "ternary")


def test_the_policy_decides_what_later_tokens_read(filled: Path) -> None:
    found = by_point(filled)
    tokens = {point: [sample["token_ids"] for sample in samples] for point, samples in found.items()}
    # Where depths never mix, no token reads what a policy leaves behind; where they do, the policies part.
    assert tokens["fixed:layer=6@zeros"] == tokens["fixed:layer=6@propagate"]
    assert tokens["random@zeros"] not in (tokens["random@propagate"], tokens["random@skip"])
    for zeros, skip in zip(found["random@zeros"], found["random@skip"], strict=True):
        assert zeros["kv_fill_layers"] == 0
        assert zeros["layers_executed"] == sum(zeros["exit_layers"][1:])
        assert len(zeros["token_ids"]) == len(skip["token_ids"]) == NEW


def test_going_on_without_the_package_names_it(
    filled: Path, env: dict[str, str], forked: Shell, tmp_path: Path
) -> None:
    shutil.copytree(filled, tmp_path / "cut")
    windows = (filled / "windows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cut" / "windows.jsonl").write_text("".join(windows[:-1]))
    ran = forked("run", "--resume", "cut", cwd=tmp_path)
    assert ran.returncode == 2
    absent = "KV policy 'zeros', weights format 'ternary'. Install what it needs"
    assert f"cut was measured with what is not installed here: {absent}" in ran.stderr
    assert ran.stderr.splitlines()[-1] == "  pip install zero-fill==1.0"
    assert forked("run", "--resume", "cut", cwd=tmp_path, env=env).returncode == 0


def test_the_family_decodes_as_transformers_does(run: Callable[..., Path], stranger: Path, forked: Shell) -> None:
    out = run("--strategy", "fixed:layer=6", "--model", stranger, "--max-new-tokens", NEW, limit=2)
    import torch
    from transformers import Starcoder2Config, Starcoder2ForCausalLM

    facts = json.loads((stranger / "config.json").read_text()) | {"model_type": "starcoder2"}
    model = Starcoder2ForCausalLM.from_pretrained(stranger, config=Starcoder2Config(**facts)).eval()
    assert len(by_point(out)["full"]) == 2
    for sample in by_point(out)["full"]:
        prompt = torch.tensor([sample["prompt_ids"]])
        assert prompt.shape[1] + NEW <= 100  # the window is the limit of what fits
        expected = model.generate(prompt, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
        assert sample["token_ids"] == expected[0, prompt.shape[1] :].tolist()
    ran = forked("run", "--model", stranger, cwd=out.parent)
    assert ran.returncode == 2
    assert "model family 'stranger' is not supported. Supported: gpt2, gpt_neox, llama" in ran.stderr
    assert "harness.families" in ran.stderr


# ------------------------------------------------------------------------------------------ drafts


def test_what_only_drafts_is_verified_and_its_tokens_are_full_depth_s(run: Callable[..., Path]) -> None:
    points = ("believer:layer=4", "believer:layer=10:threshold=0", "fixed:layer=6", "full", "believer@lossless+lookup")
    given = [word for one in points for word in ("--strategy", one)]
    samples = by_point(run(*given, "--decode", "lossy,lossless+echo+short:tokens=3", "--max-new-tokens", 16))
    lossless = {f"{name}@lossless+echo+short:tokens=3" for name in points[:4]}
    assert set(samples) == {"full", "fixed:layer=6", "believer@lossless+lookup", *lossless}
    full = [row["token_ids"] for row in samples["full"]]
    for name, rows in samples.items():
        if "@lossless" in name:
            assert [row["token_ids"] for row in rows] == full, name
        if name.startswith("believer"):
            assert sum(row["drafts"] for row in rows) > 0, name
            assert all(row["verifications"] > 0 for row in rows)
    for row in samples["believer:layer=10:threshold=0@lossless+echo+short:tokens=3"]:
        assert row["drafts"] <= (3 + 1) * row["verifications"]  # the source's one token may follow a draft of three


def test_taken_for_an_answer_a_draft_is_refused(
    env: dict[str, str], forked: Shell, tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    base = ("run", "--model", tiny_llama, "--source", rows_file, "--strategy")
    ran = forked(*base, "believer:layer=4@lossy", cwd=tmp_path, env=env)
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1] == (
        "error: believer:layer=4@lossy: believer only drafts, and its tokens have to be verified. "
        "Decode it losslessly: believer:layer=4@lossless in a run, else --decode lossless."
    )
    ran = forked(*base, "mean-difference", cwd=tmp_path, env=env)
    assert ran.returncode == 2
    assert f"\n  harness train mean-difference --model {tiny_llama} --traces " in ran.stderr


# --------------------------------------------------------------------------------------- stop rules


@pytest.fixture(scope="module")
def stopped(run: Callable[..., Path]) -> Path:
    """A run that compares exits, ways to decode, rules and weights formats."""
    given = ("--strategy", "fixed:layer=4", "--stop", "none,after,after:tokens=1", "--decode", "lossy,lossless")
    return run(*given, "--weights-format", "float32,int8", "--max-new-tokens", 8, "--verbose")


def rows(stopped: Path) -> dict[str, dict[str, Any]]:
    summary = json.loads((stopped / "summary.json").read_text())
    return {row["operating_point"]: row for row in summary["rows"]}


def test_records_say_who_ended_a_completion(stopped: Path) -> None:
    stops, formats = ("", "@stop=after", "@stop=after:tokens=1"), ("@float32", "@int8")
    names = ("full", "fixed:layer=4", "fixed:layer=4@lossless")
    assert set(rows(stopped)) == {f"{name}{stop}{stored}" for name in names for stop in stops for stored in formats}
    assert ("stop rule", "after", "after-tokens", "1.0") in plugins(stopped)
    samples = by_point(stopped)
    for name, found in samples.items():
        tokens = {"": 8, "after": 4, "after:tokens=1": 1}[rows(stopped)[name]["stop"]]
        ends = {(one["finish_reason"], one.get("stop_rule", ""), len(one["token_ids"])) for one in found}
        others = {end for end in ends if end[:2] != ("eos", "")}
        assert others <= {("length", "", 8) if tokens == 8 else ("stop", "after", tokens)}, name
        if name == "fixed:layer=4@stop=after@float32":
            assert ("stop", "after", 4) in ends
        if name.startswith("fixed:layer=4@lossless@stop=after@"):
            full = samples[f"full@{name.rpartition('@')[2]}"]
            assert [one["token_ids"] for one in found] == [one["token_ids"][:4] for one in full]


# ------------------------------------------------------------------------------ learned strategies


def test_a_recipe_s_options_are_flags(env: dict[str, str], forked: Shell, tmp_path: Path) -> None:
    assert "Fit one linear map per exit point" in forked("train", "--help", cwd=tmp_path, env=env).stdout
    said = forked("train", "mean-difference", "--help", cwd=tmp_path, env=env).stdout
    (line,) = [line for line in said.splitlines() if " --shrink " in line]
    assert "What the difference is multiplied by. Default: 1 (> 0, ≤ 1)." in line
    assert " --traces " in said
    assert "Did you mean 'mean-difference'?" in forked("train", "mean-diff", cwd=tmp_path, env=env).stderr
    ran = forked("train", "mean-difference", "--traces", "t", "--shrink", 2, cwd=tmp_path, env=env)
    assert (ran.returncode, ran.stderr.strip()) == (2, "error: --shrink 2: input should be less than or equal to 1.")


def test_it_is_trained_on_a_trace_and_run(
    env: dict[str, str], forked: Shell, tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    def harness(*arguments: object) -> Any:
        ran = forked(*arguments, "--model", tiny_llama, cwd=tmp_path, env=env)
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
    made = harness("train", "mean-difference", "--traces", "t", "--out", "a", "--shrink", 0.5)
    assert "| threshold (replayed) | mean exit layer | agreement |" in made.stdout
    facts = json.loads((tmp_path / "a" / "mean-difference.json").read_text())
    assert facts["recipe"] == {"shrink": 0.5}
    assert "harness train mean-difference --traces t" in facts["made"]["command"]
    least, never = "mean-difference:threshold=-1e9", "mean-difference:threshold=1e9"
    said = run("mean-difference:threshold=-1e9,1e9")
    assert said[least] == 4
    assert said[never] == said["full"] == 12
    assert "mean-difference" in run("mean-difference")  # the threshold it was saved with


@pytest.mark.parametrize("file", ["mean_difference.py", "mean_difference_recipe.py"])
def test_the_tutorial_shows_this_very_code(file: str) -> None:
    code = (LEARNED / file).read_text(encoding="utf-8")
    definition = code[code.index("@dataclass" if "@dataclass" in code else "class ") :]
    assert definition in (LEARNED.parents[2] / "docs" / "tutorials" / "recipe.md").read_text(encoding="utf-8")
