"""A KV policy, a weights format and a model family of another, separately installed package work like built-in ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parent / "fixtures" / "third_party_kv"
NEW = 24

Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def env(install: Callable[[Path], Path]) -> dict[str, str]:
    """An environment that sees the fixture project, installed by pip."""
    return os.environ | {"PYTHONPATH": str(install(PROJECT)), "COLUMNS": "120"}


@pytest.fixture(scope="module")
def stranger(make_model: Callable[..., Path]) -> Path:
    """A model whose ``model_type`` neither transformers nor the harness knows."""
    folder = make_model("starcoder2", num_key_value_heads=2, sliding_window=100, tie_word_embeddings=False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "stranger"}))
    return folder


@pytest.fixture(scope="module")
def run(
    env: dict[str, str],
    forked: Shell,
    tiny_llama: Path,
    rows_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A run directory of the policy beside two built-in ones."""
    folder = tmp_path_factory.mktemp("run")
    ran = forked(
        *("run", "--strategy", "random", "--strategy", "fixed:layer=6", "--kv", "propagate,zeros,skip"),
        *("--model", tiny_llama, "--source", rows_file, "--limit", 3, "--max-new-tokens", NEW),
        *("--energy", "none", "--threads", 1, "--out", "out", "--weights-format", "ternary"),
        cwd=folder,
        env=env,
    )
    assert ran.returncode == 0, ran.stderr
    return folder / "out"


def by_point(run: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for line in (run / "samples.jsonl").read_text().splitlines():
        sample = json.loads(line)
        found.setdefault(sample["operating_point"], []).append(sample)
    return {point: sorted(samples, key=lambda sample: sample["sample_id"]) for point, samples in found.items()}


def test_all_are_listed_with_their_distribution(env: dict[str, str], forked: Shell, tmp_path: Path) -> None:
    for kind, name, meaning in (
        ("kv", "zeros", "Leave zeros"),
        ("families", "stranger", "StarCoder2 in disguise"),
        ("weights_formats", "ternary", "Weights are −1, 0 or 1"),
    ):
        ran = forked("list", kind, cwd=tmp_path, env=env)
        assert ran.returncode == 0, ran.stderr
        (line,) = [line for line in ran.stdout.splitlines() if line.startswith(f"{name} ")]
        assert meaning in line
        assert line.rstrip().endswith("zero-fill")
        assert name not in forked("list", kind, cwd=tmp_path).stdout
    assert "Leave zeros" in forked("show", "zeros", cwd=tmp_path, env=env).stdout


def test_a_misspelt_policy_is_refused_with_the_closest_name(env: dict[str, str], forked: Shell, tmp_path: Path) -> None:
    ran = forked("run", "--kv", "zeroes", cwd=tmp_path, env=env)
    assert ran.returncode == 2
    assert "unknown KV policy 'zeroes'. Did you mean 'zeros'?" in ran.stderr


def test_the_policy_decides_what_later_tokens_read(run: Path) -> None:
    found = by_point(run)
    tokens = {point: [sample["token_ids"] for sample in samples] for point, samples in found.items()}
    # Where depths never mix, no token reads what a policy leaves behind; where they do, the policies part.
    assert tokens["fixed:layer=6@zeros"] == tokens["fixed:layer=6@propagate"]
    assert tokens["random@zeros"] not in (tokens["random@propagate"], tokens["random@skip"])
    for zeros, skip in zip(found["random@zeros"], found["random@skip"], strict=True):
        assert zeros["kv_fill_layers"] == 0
        assert zeros["layers_executed"] == sum(zeros["exit_layers"][1:])
        assert len(zeros["token_ids"]) == len(skip["token_ids"]) == NEW


def test_a_report_needs_neither_the_package_nor_torch(run: Path, forked: Shell, tmp_path: Path) -> None:
    ran = forked("report", run, cwd=tmp_path, env=os.environ | {"COLUMNS": "200"})
    assert ran.returncode == 0, ran.stderr
    assert "random@zeros" in ran.stdout
    words = " ".join(ran.stdout.split())
    assert "kv zeros: skipped layers hold zeros" in words
    assert "ternary weights, float32 activations" in words
    assert "matrices are stored in ternary, which is lossy" in words
    rows = {row["operating_point"]: row for row in json.loads((run / "summary.json").read_text())["rows"]}
    assert rows["random@zeros"]["kv"] == "zeros"


def test_going_on_without_the_package_names_it(run: Path, env: dict[str, str], forked: Shell, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "cut")
    windows = (run / "windows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cut" / "windows.jsonl").write_text("".join(windows[:-1]))
    ran = forked("run", "--resume", "cut", cwd=tmp_path)
    assert ran.returncode == 2
    absent = "KV policy 'zeros', weights format 'ternary'. Install what it needs"
    assert f"cut was measured with what is not installed here: {absent}" in ran.stderr
    assert ran.stderr.splitlines()[-1] == "  pip install zero-fill==1.0"
    assert forked("run", "--resume", "cut", cwd=tmp_path, env=env).returncode == 0


def test_the_server_takes_the_policy(env: dict[str, str], forked: Shell, tmp_path: Path) -> None:
    ran = forked("serve", "--kv", "zeros", "--host", "no-such-host.invalid", cwd=tmp_path, env=env)
    assert ran.returncode == 2
    assert "cannot be resolved" in ran.stderr  # the next thing to be checked
    assert "Did you mean" not in ran.stderr


def test_the_family_decodes_as_transformers_does(
    env: dict[str, str], forked: Shell, stranger: Path, rows_file: Path, tmp_path: Path
) -> None:
    ran = forked(
        *("run", "--strategy", "fixed:layer=6", "--model", stranger, "--source", rows_file, "--limit", 2),
        *("--max-new-tokens", NEW, "--energy", "none", "--threads", 1, "--out", "out"),
        cwd=tmp_path,
        env=env,
    )
    assert ran.returncode == 0, ran.stderr
    import torch
    from transformers import Starcoder2Config, Starcoder2ForCausalLM

    facts = json.loads((stranger / "config.json").read_text()) | {"model_type": "starcoder2"}
    model = Starcoder2ForCausalLM.from_pretrained(stranger, config=Starcoder2Config(**facts)).eval()
    assert len(by_point(tmp_path / "out")["full"]) == 2
    for sample in by_point(tmp_path / "out")["full"]:
        prompt = torch.tensor([sample["prompt_ids"]])
        assert prompt.shape[1] + NEW <= 100  # the window is the limit of what fits
        expected = model.generate(prompt, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
        assert sample["token_ids"] == expected[0, prompt.shape[1] :].tolist()


def test_without_the_package_the_family_is_refused_with_those_there_are(
    forked: Shell, stranger: Path, tmp_path: Path
) -> None:
    ran = forked("run", "--model", stranger, cwd=tmp_path)
    assert ran.returncode == 2
    assert "model family 'stranger' is not supported. Supported: gpt2, gpt_neox, llama" in ran.stderr
    assert "harness.families" in ran.stderr
