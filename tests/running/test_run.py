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
    frame = run(RunConfig(**config | {"limit": 8, "block_size": 2}))
    points = ["full", "fixed:layer=4", "fixed:layer=6", "oracle"]
    assert list(frame["operating_point"]) == points
    assert [name for name in ROW_FIELDS if name not in frame] == []
    assert list(frame["n"]) == [8] * 4
    assert frame["energy_j"].isna().all()  # not measured is not zero
    out = tmp_path / "out"
    assert {"manifest.json", "samples.jsonl", "windows.jsonl", "summary.json"} <= {file.name for file in out.iterdir()}
    for row in rows(out).values():
        assert {name for name in ROW_FIELDS if name in SummaryRow.model_fields} <= row.keys()
        assert {"layers_skipped", "agreement", "edit_similarity", "chrf", "latency_p50_s", "tokens_per_s"} <= row.keys()
        assert row["energy_source"] == "none"
    orders = [[w["operating_point"] for w in group] for _, group in groupby(measured(out), key=lambda w: w["block"])]
    assert [sorted(order) for order in orders] == [sorted(points)] * 4  # each once, before the next block begins
    assert len(set(map(tuple, orders))) > 1
    assert {window["samples"] for window in measured(out)} == {2}
    assert [window["window"] for window in lines(out, "windows")] == list(range(len(lines(out, "windows"))))
    samples = lines(out, "samples")
    assert len(samples) == 8 * 4
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
    for size in (1, 3):
        changes = {"batch_size": size, "out": tmp_path / str(size), "strategies": strategies, "kv": kv, "limit": 4}
        changes |= {"untimed": True, "weights_format": "float32"}
        run(RunConfig(**config | changes))
    alone = outcomes(tmp_path / "1")
    assert len(alone) == 4 * 7
    assert len({content[1] for content in alone.values()}) > 3  # exits do differ
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
def test_a_run_that_was_killed_and_interrupted_goes_on_where_it_was(
    cli: Command, tmp_path: Path, tiny_llama: Path, rows_file: Path
) -> None:
    arguments: list[object] = [
        *("--model", tiny_llama, "--source", rows_file, "--limit", 8, "--max-new-tokens", 16, "--threads", 1),
        *("--energy", "none", "--strategy", "random:probability=0.4", "--strategy", "oracle"),
    ]
    out = tmp_path / "out"

    def started(*given: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "harness.cli", "run", *map(str, given)], cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - background jobs ignore it
        )  # fmt: skip

    process = started(*arguments, "--out", "out")
    wait_for_windows(process, out / "windows.jsonl", 12)  # of 34, ten of them warm-up
    process.send_signal(signal.SIGSTOP)  # it holds still, and the lock
    assert "not empty" in cli("run", *arguments, "--out", "out").error
    assert "in use by another process" in cli("run", "--resume", "out").error
    assert cli("report", "out").code == 0  # reading is allowed meanwhile
    process.kill()
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    killed = lines(out, "windows")

    process = started("--resume", "out")
    wait_for_windows(process, out / "windows.jsonl", len(killed) + 12)
    process.send_signal(signal.SIGINT)
    printed, err = process.communicate(timeout=300)
    assert (process.returncode, printed) == (130, "")
    assert "Traceback" not in err
    assert "harness run --resume out" in err.splitlines()[-1]
    kept = lines(out, "windows")
    assert kept[: len(killed)] == killed
    assert 4 <= len(measured(out)) < 8 * 3  # it was indeed in the middle, twice

    ran = cli("run", "--resume", "out")
    assert ran.code == 0, ran.err
    assert lines(out, "windows")[: len(kept)] == kept
    assert cli("run", *arguments, "--out", "whole").code == 0
    assert outcomes(out) == outcomes(tmp_path / "whole")
    order = [[(w["block"], w["operating_point"]) for w in measured(each)] for each in (out, tmp_path / "whole")]
    assert order[0] == order[1]
    assert len(order[0]) == 8 * 3


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.usefixtures("smollm2")
def test_the_real_model_completes_what_everybody_knows(tmp_path: Path, cli: Command) -> None:
    known = {"import numpy as": "np", "import os\nimport numpy as np\nimport pandas as": "pd"}
    known_rows = (json.dumps({"id": prompt, "input": prompt, "gt": answer}) for prompt, answer in known.items())
    (tmp_path / "known.jsonl").write_text("\n".join(known_rows))
    ran = cli(
        *("run", "--model", "smollm2-135m", "--source", "known.jsonl", "--protocol", "codexglue-line", "--limit", 2),
        *("--max-new-tokens", 4, "--threads", 1, "--energy", "none", "--kv", "recompute", "--out", "out", "--json"),
        *("--strategy", "fixed:layer=22", "--strategy", "oracle"),
        *("--weights", "pretrained", "--exit-head", "shared", "--weights-format", "float32", "--untimed"),
    )
    assert ran.code == 0, ran.err
    found = rows(tmp_path / "out")
    assert len(found) == 3
    full, fixed, oracle = (found["py150", name] for name in ("full", "fixed:layer=22", "oracle"))
    assert full["exact_match"] == 1
    assert fixed["exit_layer_mean"] == 22
    assert oracle["agreement"] == 1
    assert oracle["exact_match"] == 1
