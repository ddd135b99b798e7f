"""Run directories as reports read them: whatever of many can be read, and what is wrong with the rest."""

from __future__ import annotations

import fcntl
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import StoreError
from harness.records.summary import SUMMARY_VERSION
from harness.running.reading import read_run, read_runs
from harness.store.run_directory import LOCK
from tests.run_files import cut, unseal

Command = Callable[..., Any]


def test_a_finished_run_has_nothing_to_say(finished: Path) -> None:
    run = read_run(finished)
    assert run.state == ""
    assert run.name == "one"
    assert run.windows_finished == run.windows_expected == 3
    assert read_run(finished, stored=True).summary == run.summary


def test_a_stored_summary_that_cannot_be_read_or_is_of_before_or_of_other_records_is_made_again(finished: Path) -> None:
    whole = read_run(finished).summary
    earlier = json.loads(whole.model_dump_json()) | {"schema_version": SUMMARY_VERSION - 1}
    earlier["rows"][0]["metrics"]["roofline_speedup"] = {"value": 9.0}  # an earlier name
    stale = json.loads(whole.model_dump_json()) | {"records": "0" * 64, "notes": ["of other records"]}
    for text in ("{", json.dumps(earlier), json.dumps(stale)):
        (finished / "summary.json").write_text(text)
        for stored in (True, False):
            assert read_run(finished, stored=stored).summary == whole


def test_a_run_without_codebleu_is_reported_with_the_reason(tiny_run: Command, tmp_path: Path) -> None:
    reason = "the package codebleu is not installed (pip install --no-deps codebleu==0.7.0)"
    with pytest.MonkeyPatch.context() as absent:
        absent.setitem(sys.modules, "codebleu", None)
        ran = tiny_run("--out", tmp_path / "without")
    assert ran.code == 0
    assert reason in " ".join((tmp_path / "without" / "report.md").read_text().split())
    summary = read_run(tmp_path / "without", stored=True).summary
    assert [note for note in summary.notes if reason in note] == [
        f"not shown: CodeBLEU, data flow, flow defined, syntax: {reason}."
    ]
    absent = {"codebleu", "syntax", "dataflow", "dataflow_defined"}
    assert not any(absent & row.metrics.keys() for row in summary.rows)
    assert all("bleu" in row.metrics for row in summary.rows)
    summary = read_run(tmp_path / "without").summary
    assert not any("codebleu" in note for note in summary.notes)
    assert all("codebleu" in row.metrics for row in summary.rows)


def test_a_run_that_lacks_windows_says_so(finished: Path) -> None:
    file = finished / "windows.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    assert read_run(finished).state == "not finished: 2 of 3 windows"
    with (finished / LOCK).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read_run(finished).state == "still being written: 2 of 3 windows"


def test_the_rest_is_read_when_one_cannot_be(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "damaged").mkdir()
    (tmp_path / "runs" / "damaged" / "manifest.json").write_text("{")
    runs, refused = read_runs([tmp_path / "runs", finished, tmp_path / "nothing"])
    assert [run.directory for run in runs] == [finished]
    assert [refusal.directory.name for refusal in refused] == ["damaged", "nothing"]
    assert "not JSON" in refused[0].reason
    assert "does not exist" in refused[1].reason


def test_a_run_without_a_window_is_refused(finished: Path) -> None:
    cut(finished, 0)
    with pytest.raises(StoreError, match="no finished window yet"):
        read_run(finished)


def test_values_that_mean_nothing_are_one_refusal(finished: Path) -> None:
    unseal(finished)
    file = finished / "manifest.json"
    whole = json.loads(file.read_text())
    for part, name, value, reason in (
        (None, "block_size", 0, "block_size"),
        ("config", "repeats", "many", "no usable 'repeats'"),
        ("config", "batch_size", "wide", "no usable 'kv' and 'batch_size'"),
        ("environment", "cpu", 5, "cannot be understood"),
        ("model", "num_layers", 0, "num_layers"),
    ):
        changed = {name: value} if part is None else {part: whole[part] | {name: value}}
        file.write_text(json.dumps(whole | changed))
        runs, (refusal,) = read_runs([finished])
        assert not runs
        assert reason in refusal.reason
        assert str(finished) in refusal.reason


def test_a_window_may_claim_as_many_samples_as_it_likes(finished: Path) -> None:
    unseal(finished)
    file = finished / "windows.jsonl"
    *rest, last = file.read_text().splitlines()
    file.write_text("\n".join([*rest, json.dumps(json.loads(last) | {"samples": 10**15})]) + "\n")
    began = time.monotonic()
    with pytest.raises(StoreError, match="whole lines where"):
        read_run(finished)
    assert time.monotonic() - began < 5


def test_what_lost_its_manifest_or_is_a_file_is_spoken_of(finished: Path, tmp_path: Path) -> None:
    (finished / "manifest.json").rename(tmp_path / "manifest")
    runs, refused = read_runs([tmp_path / "runs", tmp_path / "manifest"])
    assert not runs
    assert ["holds no manifest.json" in refused[0].reason, "is a file" in refused[1].reason] == [True, True]
