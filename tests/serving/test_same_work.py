"""A prompt is decoded alike, and to the same account, by a run, from Python and by the server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import harness

STRATEGIES = ("confidence:threshold=0.6", "fixed:layer=4", "patience:patience=3")
NEW = 14


@pytest.mark.parametrize("decode", ["lossy", "lossless"])
def test_tokens_and_counters_are_the_same_through_every_door(
    tiny_run: Callable[..., Any], tiny_llama: Path, server: Any, tmp_path: Path, decode: str
) -> None:
    asked = [part for strategy in STRATEGIES for part in ("--strategy", strategy)]
    tiny_run(
        *("--out", "run", "--limit", 2, "--max-new-tokens", NEW, "--kv", "recompute", "--decode", decode, *asked),
        *("--untimed", "--weights-format", "float32"),
    )
    points = {
        point["name"]: point for point in json.loads((tmp_path / "run/manifest.json").read_text())["operating_points"]
    }
    model = harness.load(tiny_llama, weights_format="float32", threads=1)
    samples = list(map(json.loads, (tmp_path / "run/samples.jsonl").read_text().splitlines()))
    assert len(samples) == 2 * (1 + len(STRATEGIES))
    for sample in samples:
        point, new = points[sample["operating_point"]], len(sample["token_ids"])
        assert sample["finish_reason"] in ("length", "eos")  # of what else ends one, only a run knows
        text = sample["operating_point"].partition("@")[0]
        made = model.generate(sample["prompt_ids"], text, kv="recompute", decode=point["decode"], max_new_tokens=new)
        assert made.tokens.token_id.tolist() == sample["token_ids"]
        assert made.tokens.exit_layer.tolist() == sample["exit_layers"]
        shared = made.counts.keys() & sample.keys()
        assert shared >= {"exit_checks", "lm_head_evaluations", "layers_executed", "layers_read", "kv_fill_layers"}
        assert {name: made.counts[name] for name in shared} == {name: sample[name] for name in shared}

        control = {"strategy": point["strategy"], "decode": point["decode"]}
        body = {"prompt": sample["prompt_ids"], "max_tokens": new, "early_exit": control}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()
        report = answer["x_early_exit"]
        for counted in ("exit_layers", "exit_checks", "lm_head_evaluations"):
            assert report[counted] == sample[counted], (point["name"], counted)
        assert report["decode_layers"] == sample["layers_executed"]
        if point["decode"] != "lossy":
            drafts = report["drafts"]
            for counted in drafts.keys() & sample.keys():
                assert drafts[counted] == sample[counted], (point["name"], counted)
            assert sample["verifications"] > 0
