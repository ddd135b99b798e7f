"""A cheap head of another, separately installed package works like a built-in one."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent / "fixtures" / "third_party_head"

Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def env(install: Callable[[Path], Path]) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(install(PROJECT)), "COLUMNS": "120"}


def test_it_is_listed_read_recorded_and_reported(
    env: dict[str, str], forked: Shell, tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    listed = forked("list", "heads", cwd=tmp_path, env=env)
    (line,) = [line for line in listed.stdout.splitlines() if line.startswith("half ")]
    assert "Read every other token" in line
    assert line.rstrip().endswith("half-head")
    ran = forked(
        *("run", "--strategy", "confidence:threshold=0.01:head=half", "--model", tiny_llama, "--source", rows_file),
        *("--strategy", "margin:threshold=0.001:head=half:token=head"),
        *("--limit", 2, "--max-new-tokens", 8, "--energy", "none", "--threads", 1, "--out", "out"),
        cwd=tmp_path,
        env=env,
    )
    assert ran.returncode == 0, ran.stderr
    samples = [json.loads(sample) for sample in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    own = [one for one in samples if one["operating_point"].startswith("margin")]
    assert sum(one["cheap_head_tokens"] for one in own) > 0
    for one in own:
        pairs = zip(one["token_ids"][1:], one["exit_layers"][1:], strict=True)
        assert all(token % 2 == 0 for token, layer in pairs if layer < 12)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    said = {"kind": "head", "name": "half", "distribution": "half-head", "version": "1.0"}
    assert any(said.items() <= plugin.items() for plugin in manifest["plugins"])
    report = forked("report", "out", cwd=tmp_path, env=os.environ | {"COLUMNS": "200"})  # without the package
    assert report.returncode == 0, report.stderr
    assert "is decided by a cheap head, half (every other token" in " ".join(report.stdout.split())
    missing = forked("run", "--strategy", "confidence:head=half", cwd=tmp_path)
    assert missing.returncode == 2
    assert "unknown head 'half'" in missing.stderr
