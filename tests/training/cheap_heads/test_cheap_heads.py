"""``harness train shortlist`` and ``lowrank``: counts by hand, a known optimum, and a run that finds what they made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harness.training.cheap_heads import rank, root_of


def test_streams_count_in_equal_shares_and_ties_go_to_the_smaller_id() -> None:
    many, few = torch.tensor([0, 90, 10, 0, 0]), torch.tensor([0, 0, 1, 1, 0])
    # shares: 0, .45, .05 + .25, .25, 0
    assert rank([many, few]).tolist() == [1, 2, 3, 0, 4]


def test_the_directions_are_those_of_the_least_squares_optimum() -> None:
    chance = torch.Generator().manual_seed(3)
    rows = torch.randn(50, 8, generator=chance)
    states = torch.randn(4000, 8, generator=chance) @ torch.randn(8, 8, generator=chance)
    root = root_of(rows, (states.t() @ states).double() / len(states))
    inverse = torch.linalg.inv(root)
    logits = states @ rows.t()
    values = torch.linalg.svdvals(logits)
    for size in (1, 3, 8):
        product = (states @ inverse[:size].t()) @ (rows @ root[:, :size]).t()
        best = float(values[size:].pow(2).sum())
        assert float((logits - product).pow(2).sum()) <= 1.001 * best + 1e-3 * float(values.pow(2).sum())
    torch.testing.assert_close(root @ root.t(), states.t() @ states / len(states), rtol=1e-3, atol=1e-3)


def test_what_they_make_is_found_by_a_run(
    cli: Callable[..., Any], tiny_llama: Path, rows_file: Path, unseen: Path, tmp_path: Path
) -> None:
    out = ("--model", tiny_llama, "--out", tmp_path / "made")
    ran = cli("train", "shortlist", *out, "--task", "py150", "--source", rows_file, "--size", 200)
    assert ran.code == 0, ran.err
    assert "in the first 200" in ran.out
    traced = cli(
        *("trace", "--model", tiny_llama, "--task", "py150", "--source", rows_file, "--length", 64),
        *("--weights", "pretrained", "--out", tmp_path / "trace"),
    )
    assert traced.code == 0, traced.err
    ran = cli("train", "lowrank", *out, "--traces", tmp_path / "trace")
    assert ran.code == 0, ran.err
    for kind in ("shortlist", "lowrank"):
        facts = json.loads((tmp_path / "made" / f"{kind}.json").read_text())
        assert facts["documents"]
        assert facts["order"] is False if kind == "shortlist" else facts["ngrams"]["complete"]
    ran = cli(
        *("run", "--model", tiny_llama, "--source", unseen, "--task", "py150", "--limit", 1, "--max-new-tokens", 6),
        *("--strategy", "confidence:threshold=0.01:head=shortlist/50,lowrank/8,int8", "--energy", "none"),
        *("--threads", 1, "--artefacts", tmp_path / "made", "--out", tmp_path / "run"),
    )
    assert ran.code == 0, ran.err
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    cheap = [sample for sample in samples if sample["operating_point"] != "full"]
    assert len({sample["operating_point"] for sample in cheap}) == 3
    assert all(sample["cheap_head_evaluations"] == sample["exit_checks"] > 0 for sample in cheap)
    assert "is decided by a cheap head, shortlist/50 (probabilities over the most frequent tokens" in " ".join(
        (tmp_path / "run" / "report.md").read_text().split()
    )
    ran = cli(
        *("sweep", "--model", tiny_llama, "--replay", tmp_path / "trace", "--artefacts", tmp_path / "made"),
        *("--strategy", "confidence:threshold=0.01,0.02:head=lowrank/32", "--out", tmp_path / "sweep"),
    )
    assert ran.code == 0, ran.err
    rows = [row for row in json.loads((tmp_path / "sweep" / "sweep.json").read_text())["rows"] if row["head_agreement"]]
    assert len(rows) == 2
    assert all(row["head_agreement"] > 0.98 and row["cheap_heads_per_token"] > 0 for row in rows)
