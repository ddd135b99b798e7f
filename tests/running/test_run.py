"""A whole run: from a configuration to the files others build on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from harness import RunConfig, run
from harness.errors import DataError
from harness.records import Manifest, SampleRecord, WindowRecord
from harness.records.summary import Summary, SummaryRow
from harness.running.resolve import resolve
from tests.run_files import lines

Command = Callable[..., Any]

ROW_FIELDS = [
    "operating_point", "strategy", "options", "task", "protocol", "source", "model", "weights", "kv", "batch_size",
    "n", "errors", "exit_layer_mean", "layers_skipped", "exact_prefix", "exact_line", "own_text_agreement",
    "agreement", "token_accuracy", "exact_match",
    "edit_similarity", "bleu", "rouge_l", "codebleu", "syntax", "dataflow", "dataflow_defined", "chrf", "energy_j",
    "energy_j_per_token", "energy_source", "latency_p50_s", "latency_p90_s", "latency_p99_s", "ttft_p50_s",
    "tpot_p50_s", "tokens_per_s", "speedup", "speedup_low", "byte_model_speedup", "oracle_share", "pareto",
]  # fmt: skip
"""What issue 2 promises of a summary: of the rows of ``summary.json``, their metrics, and the frame."""

SAMPLE_FIELDS = [
    "operating_point", "task", "sample_id", "prompt_ids", "token_ids", "exit_layers", "text", "reference", "scores",
    "latency_s", "ttft_s", "error",
]  # fmt: skip
"""What issue 2 promises of ``samples.jsonl``."""


def measured(folder: Path) -> list[dict[str, Any]]:
    return [window for window in lines(folder, "windows") if not window["warmup"]]


def rows(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    flat = [{**row, **{name: one["value"] for name, one in row["metrics"].items()}} for row in summary["rows"]]
    return {(row["task"], row["operating_point"]): row for row in flat}


def outcomes(folder: Path) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """What was decoded, without the times; fails when anything is there twice."""
    found = {}
    for record in lines(folder, "samples"):
        key = (record["task"], record["operating_point"], record["repeat"], record["sample_id"])
        assert key not in found
        content = ("token_ids", "exit_layers", "text", "reference", "scores", "finish_reason", "prompt_ids", "error",
                   "full_depth_ids")  # fmt: skip
        found[key] = tuple(json.dumps(record[name]) for name in content)
    return found


@pytest.fixture
def config(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"strategies": ("fixed:layer=4,6", "oracle")}


def test_the_run_directory_holds_what_was_promised(config: dict[str, Any], tmp_path: Path) -> None:
    frame = run(RunConfig(**config))
    assert list(frame["operating_point"]) == ["full", "fixed:layer=4", "fixed:layer=6", "oracle"]
    assert [name for name in ROW_FIELDS if name not in frame] == []
    assert list(frame["n"]) == [3, 3, 3, 3]
    assert frame["energy_j"].isna().all()  # not measured is not zero
    out = tmp_path / "out"
    assert {"manifest.json", "samples.jsonl", "windows.jsonl", "summary.json"} <= {file.name for file in out.iterdir()}
    for row in rows(out).values():
        assert {name for name in ROW_FIELDS if name in SummaryRow.model_fields} <= row.keys()
        assert {"layers_skipped", "agreement", "edit_similarity", "chrf", "latency_p50_s", "tokens_per_s"} <= row.keys()
        assert row["energy_source"] == "none"
    samples = lines(out, "samples")
    assert len(samples) == 3 * 4
    for sample in samples:
        assert set(SAMPLE_FIELDS) <= sample.keys()
        assert len(sample["exit_layers"]) == len(sample["token_ids"]) == len(sample["token_times_s"])
        assert sample["token_times_s"] == sorted(sample["token_times_s"])
        assert sample["latency_s"] >= sample["ttft_s"] > 0
        assert 1 <= len(sample["token_ids"]) <= 4
    for kind, name in ((Manifest, "manifest"), (Summary, "summary")):
        text = (out / f"{name}.json").read_text(encoding="utf-8")
        written = json.loads(text)
        assert len(written.pop("sha256")) == 64  # the seal is not of the record
        assert json.loads(kind.model_validate_json(text).model_dump_json()) == written
    for kind, name in ((SampleRecord, "samples"), (WindowRecord, "windows")):
        for line in (out / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            record, seal, _ = line.partition(',"run":"')
            assert seal
            assert kind.model_validate_json(line).model_dump_json() == record + "}"


@pytest.mark.slow
def test_operating_points_are_interleaved_and_their_order_differs(config: dict[str, Any], tmp_path: Path) -> None:
    run(RunConfig(**config | {"limit": 4, "repeats": 2, "block_size": 2}))
    windows = measured(tmp_path / "out")
    points = {"full", "fixed:layer=4", "fixed:layer=6", "oracle"}
    orders = []
    for _, group in groupby(windows, key=lambda window: (window["block"], window["repeat"])):
        order = [window["operating_point"] for window in group]
        assert sorted(order) == sorted(points)  # each once, before the next block begins
        orders.append(tuple(order))
    assert len(orders) == 2 * 2
    assert len(set(orders)) > 1
    assert {window["samples"] for window in windows} == {2}
    assert [window["window"] for window in lines(tmp_path / "out", "windows")] == list(
        range(len(lines(tmp_path / "out", "windows")))
    )


def test_what_is_skipped_is_what_a_run_with_that_limit_draws(config: dict[str, Any], tmp_path: Path) -> None:
    def drawn(skip: int, limit: int) -> tuple[list[str], str]:
        plan = resolve(RunConfig(**config | {"limit": limit, "skip": skip}))
        (task,) = plan.tasks
        assert task.record.samples == len(task.data.samples)
        return [sample.sample_id for sample in task.data.samples], task.record.fingerprint

    (six, whole), (first, _), (later, after) = drawn(0, 6), drawn(0, 2), drawn(2, 4)
    assert six == first + later
    assert drawn(2, 4)[1] == after != whole  # other documents have another fingerprint
    assert drawn(2, 0)[0][:4] == later
    with pytest.raises(DataError, match="--skip 1000 leaves none"):
        drawn(1000, 2)


@pytest.mark.parametrize("kv", ["propagate", "recompute", "none", "skip"])
def test_a_batch_decodes_what_its_samples_decode_alone(config: dict[str, Any], tmp_path: Path, kv: str) -> None:
    strategies = ("fixed:layer=4", "confidence:threshold=0.15,0.4", "random:probability=0.4", "patience", "oracle")
    for size in (1, 2, 3):
        changes = {"batch_size": size, "out": tmp_path / str(size), "strategies": strategies, "kv": kv, "limit": 4}
        run(RunConfig(**config | changes))
    alone = outcomes(tmp_path / "1")
    assert len(alone) == 4 * 7
    assert len({content[1] for content in alone.values()}) > 3  # exits do differ
    assert outcomes(tmp_path / "2") == alone
    assert outcomes(tmp_path / "3") == alone


def test_what_a_kill_left_before_the_first_record_does_not_block_a_run(tiny_run: Command, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").touch()
    (tmp_path / "out" / ".manifest.json.part").write_bytes(b'{"schema_')
    assert tiny_run("--out", "out").code == 0
    again = tiny_run("--out", "out")
    assert again.code == 2
    assert "out is not empty. Continue it with `harness run --resume out`" in again.err


def wait_for_windows(process: subprocess.Popen[str], file: Path, count: int) -> None:
    give_up = time.monotonic() + 300  # seconds of importing, on a busy machine
    while not file.exists() or file.read_bytes().count(b"\n") < count:
        if process.poll() is not None or time.monotonic() > give_up:
            pytest.fail(f"the run never came so far: {process.communicate()}")
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_where_it_was(
    cli: Command, tmp_path: Path, tiny_llama: Path, rows_file: Path, stop: signal.Signals
) -> None:
    arguments: list[object] = [
        *("--model", tiny_llama, "--source", rows_file, "--limit", 4, "--max-new-tokens", 16, "--threads", 1),
        *("--energy", "none", "--repeats", 2, "--strategy", "random:probability=0.4", "--strategy", "oracle"),
    ]
    command = [sys.executable, "-m", "harness.cli", "run", *map(str, arguments), "--out", "out"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - background jobs ignore it
    )
    early = 12  # of 22 windows of the first repeat, ten of them warm-up: between repeats nobody holds the lock
    wait_for_windows(process, tmp_path / "out" / "windows.jsonl", early)
    if stop is signal.SIGKILL:
        process.send_signal(signal.SIGSTOP)  # it holds still, and the lock
        assert "not empty" in cli("run", *arguments, "--out", "out").error
        assert "in use by another process" in cli("run", "--resume", "out").error
        assert cli("report", "out").code == 0  # reading is allowed meanwhile
    process.send_signal(stop)
    out, err = process.communicate(timeout=300)
    assert out == ""
    if stop is signal.SIGINT:
        assert process.returncode == 130
        assert "Traceback" not in err
        assert "harness run --resume out" in err.splitlines()[-1]
    else:
        assert process.returncode == -signal.SIGKILL
    kept = lines(tmp_path / "out", "windows")
    assert early <= len(kept) < 22  # it was indeed in the middle

    ran = cli("run", "--resume", "out")
    assert ran.code == 0, ran.err
    assert lines(tmp_path / "out", "windows")[: len(kept)] == kept
    assert len(measured(tmp_path / "out")) == 4 * 2 * 3
    keys = {tuple(w[k] for k in ("task", "block", "repeat", "operating_point")) for w in measured(tmp_path / "out")}
    assert len(keys) == 4 * 2 * 3

    assert cli("run", *arguments, "--out", "whole").code == 0
    assert outcomes(tmp_path / "out") == outcomes(tmp_path / "whole")
    uninterrupted = [(w["block"], w["repeat"], w["operating_point"]) for w in measured(tmp_path / "whole")]
    assert [(w["block"], w["repeat"], w["operating_point"]) for w in measured(tmp_path / "out")] == uninterrupted


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.usefixtures("smollm2")
def test_the_real_model_completes_what_everybody_knows(tmp_path: Path, cli: Command) -> None:
    known = {"import numpy as": "np", "import os\nimport numpy as np\nimport pandas as": "pd"}
    known_rows = (json.dumps({"id": prompt, "input": prompt, "gt": answer}) for prompt, answer in known.items())
    (tmp_path / "known.jsonl").write_text("\n".join(known_rows))
    ran = cli(
        *("run", "--model", "smollm2-135m", "--source", "known.jsonl", "--protocol", "codexglue-line", "--limit", 2),
        *("--max-new-tokens", 4, "--threads", 1, "--energy", "estimate", "--kv", "recompute", "--out", "out", "--json"),
        *("--strategy", "fixed:layer=22", "--strategy", "oracle", "--strategy", "entropy:threshold=0.1"),
        *("--weights", "pretrained", "--exit-head", "shared"),
    )
    assert ran.code == 0, ran.err
    found = rows(tmp_path / "out")
    assert len(found) == 4
    full, fixed, oracle = (found["py150", name] for name in ("full", "fixed:layer=22", "oracle"))
    assert full["exact_match"] == 1
    assert full["energy_source"] == "estimate"
    assert full["energy_j"] > 0
    assert fixed["exit_layer_mean"] == 22
    assert oracle["agreement"] == 1
    assert oracle["exact_match"] == 1
    assert oracle["tpot_p50_s"] > 0
