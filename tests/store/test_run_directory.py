"""The run directory keeps what it promised, whatever moment a run dies at."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.errors import StoreError
from harness.records import (
    SCHEMA_VERSION,
    Manifest,
    MeterRecord,
    ModelRecord,
    OperatingPointRecord,
    PluginRecord,
    SampleRecord,
    TaskRecord,
    WindowRecord,
)
from harness.store.packed_run import pack_folder, unpack_folder
from harness.store.run_directory import RunDirectory


def make_manifest(**changes: Any) -> Manifest:
    full = OperatingPointRecord(name="full", strategy="full", options={}, exit_points=())
    early = OperatingPointRecord(
        name="confidence:threshold=0.9", strategy="confidence", options={"threshold": 0.9}, exit_points=(1, 2)
    )
    model = ModelRecord(
        name="tiny", family="llama", weights="pretrained", weights_source="a folder", weights_sha256="ab" * 32,
        tokenizer_source="the same folder", end_ids=(2,), num_layers=4, hidden_size=8, vocab_size=16,
        exit_points=(1, 2), dtype="float32", layer_bytes=1, lm_head_bytes=1, kv_projection_bytes=1,
        kv_entry_bytes=1, fingerprint="ab",
    )  # fmt: skip
    task = TaskRecord(
        name="py150", language="python", protocol="green-code", source_kind="path", source="a file",
        fingerprint="cd" * 32, samples=4, bad_rows=0,
    )  # fmt: skip
    environment = {
        "cpu": "Some CPU", "logical_cores": 2, "gpus": [], "torch_threads": 2, "load_average": [0.1, 0.1, 0.1],
        "usable_cores": 2, "quota_cores": None, "instructions": "AVX512", "arithmetic": {}, "compiled": None,
        "packages": {"torch": "2.13.0", "numpy": "2.4.6"}, "code": {"harness": "ab", "tasks": "ab"},
    }  # fmt: skip
    fields: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "created": "2026-01-01T00:00:00Z",
        "config": {"model": "tiny", "kv": "propagate", "seed": 0, "out": None, "limit": 16},
        "operating_points": (full, early),
        "model": model,
        "plugins": (PluginRecord(kind="stop", name="theirs", distribution="their-package", version="1.0", code="cd"),),
        "tasks": (task,),
        "meter": MeterRecord(source="none", description="energy not measured", sensor_period_s=None),
        "block_size": 2,
        "bandwidth_bytes_per_s": 1e10,
        "environment": environment,
    }
    return Manifest(**(fields | changes))


def make_window(number: int, *, samples: int = 2, **changes: Any) -> tuple[WindowRecord, list[SampleRecord]]:
    fields: dict[str, Any] = {
        "window": number,
        "task": "py150",
        "block": number,
        "repeat": 0,
        "operating_point": "full",
        "samples": samples,
        "tokens": 3 * samples,
        "started": "2026-01-01T00:00:00Z",
        "duration_s": 0.5,
        "cpu_time_s": 0.9,
    }
    window = WindowRecord(**(fields | changes))
    records = [
        SampleRecord(
            window=window.window,
            operating_point=window.operating_point,
            task=window.task,
            sample_id=f"{number}-{index}",
            repeat=window.repeat,
            token_ids=(1, 2, 3),
            text=f'def f():\n\treturn "naïve – {number}\u2028"',
        )
        for index in range(samples)
    ]
    return window, records


def run_of(path: Path, windows: int) -> list[tuple[WindowRecord, list[SampleRecord]]]:
    written = [make_window(number) for number in range(windows)]
    with RunDirectory.create(path, make_manifest()) as run:
        for window, samples in written:
            run.commit(window, samples)
    return written


def contents(run: RunDirectory) -> tuple[list[WindowRecord], list[SampleRecord]]:
    return list(run.windows()), list(run.samples())


def test_what_was_committed_is_read_back(tmp_path: Path) -> None:
    written = run_of(tmp_path / "new" / "run", 3)
    run = RunDirectory.read(tmp_path / "new" / "run")
    assert run.manifest.model_copy(update={"run": ""}) == make_manifest()
    assert contents(run) == ([window for window, _ in written], [each for _, samples in written for each in samples])
    assert run.next_window == 3
    assert run.finished() == {("py150", block, 0, "full") for block in range(3)}


def test_idle_and_superseded_windows_finish_nothing(tmp_path: Path) -> None:
    """A window to be measured again must not stop its own repetition, before or after a resume."""
    key = ("py150", 0, 0, "full")
    with RunDirectory.create(tmp_path, make_manifest()) as run:
        run.commit(*make_window(0, samples=0, idle=True, task="", operating_point="", block=0))
        run.commit(*make_window(1, superseded=True, block=0))
        assert (run.finished(), run.attempts(key)) == (frozenset(), 1)
    with RunDirectory.resume(tmp_path, make_manifest()) as run:
        run.commit(*make_window(2, superseded=True, block=0))
        assert (run.finished(), run.attempts(key)) == (frozenset(), 2)
        run.commit(*make_window(3, block=0))
        assert run.finished() == {key}
        for late in (make_window(4, block=0), make_window(4, superseded=True, block=0)):
            with pytest.raises(StoreError, match="which is finished"):
                run.commit(*late)
        run.commit(*make_window(4, samples=0, idle=True, task="", operating_point="", block=0))
        assert [each.window for each in run.samples()] == [1, 1, 2, 2, 3, 3]
    assert RunDirectory.read(tmp_path).finished() == {key}


def moments_of_last_commit(path: Path) -> Iterator[tuple[int, int]]:
    """File sizes (samples, windows) in the order in which the last commit brings them about; every seventh byte of a
    line, and those around its end.
    """
    sizes: dict[str, list[int]] = {}
    for name, new in (("samples.jsonl", 2), ("windows.jsonl", 1)):
        data = (path / name).read_bytes()
        before = sum(map(len, data.splitlines(keepends=True)[:-new]))
        ends = [at for at in range(before, len(data) + 1) if at == len(data) or b"\n" in data[at - 2 : at + 1]]
        sizes[name] = sorted({*ends, *range(before, len(data), 7)})
    samples, windows = sizes.values()
    yield from ((size, windows[0]) for size in samples)
    yield from ((samples[-1], size) for size in windows)


def test_resume_after_a_kill_at_any_byte_loses_nothing_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # the disk is not what is tested here
    written = run_of(tmp_path / "whole", 3)
    whole = {name: (tmp_path / "whole" / name).read_bytes() for name in ("samples.jsonl", "windows.jsonl")}
    (tmp_path / "run").mkdir()
    shutil.copy(tmp_path / "whole" / "manifest.json", tmp_path / "run")
    for samples_size, windows_size in moments_of_last_commit(tmp_path / "whole"):
        (tmp_path / "run" / "samples.jsonl").write_bytes(whole["samples.jsonl"][:samples_size])
        (tmp_path / "run" / "windows.jsonl").write_bytes(whole["windows.jsonl"][:windows_size])
        committed = 3 if windows_size == len(whole["windows.jsonl"]) else 2
        expected = [window for window, _ in written[:committed]]
        assert list(RunDirectory.read(tmp_path / "run").windows()) == expected
        with RunDirectory.resume(tmp_path / "run", make_manifest()) as run:
            assert list(run.windows()) == expected
            assert len(run.finished()) == run.next_window == committed
            for window, samples in written[run.next_window :]:
                run.commit(window, samples)
        for name, data in whole.items():
            assert (tmp_path / "run" / name).read_bytes() == data


def test_uncommitted_lines_that_are_garbage_are_cut_off(tmp_path: Path) -> None:
    written = run_of(tmp_path, 2)
    before = {name: (tmp_path / name).read_bytes() for name in ("samples.jsonl", "windows.jsonl")}
    with (tmp_path / "samples.jsonl").open("ab") as file:  # whole lines, and pages that never reached the disk
        file.write(b'{"window": 2}\nnot json\n' + bytes(100))
    with (tmp_path / "windows.jsonl").open("ab") as file:
        file.write(bytes(100))
    assert len(list(RunDirectory.read(tmp_path).samples())) == 4
    with RunDirectory.resume(tmp_path, make_manifest()) as run:
        assert list(run.windows()) == [window for window, _ in written]
        assert {name: (tmp_path / name).read_bytes() for name in before} == before


WRITER = """
import importlib.util, itertools, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("store_tests", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
path = Path(sys.argv[2])
open_run = tests.RunDirectory.resume if (path / "manifest.json").exists() else tests.RunDirectory.create
run = open_run(path, tests.make_manifest())
for number in itertools.count(run.next_window):
    window, samples = tests.make_window(number, samples=20)
    run.commit(window, samples)
    print(number, flush=True)
"""
"""A process that commits windows for ever."""


def test_a_killed_process_leaves_a_directory_that_goes_on_and_that_nobody_else_had_opened(tmp_path: Path) -> None:
    path = tmp_path / "run"
    last = -1
    for delay_s in (0.0, 0.0137):
        command = [sys.executable, "-c", WRITER, __file__, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(3):
                assert int(writer.stdout.readline()) == last + 1  # repeats nothing, loses nothing
                last += 1
            with pytest.raises(StoreError, match="in use by another process"):
                RunDirectory.resume(path, make_manifest())
            time.sleep(delay_s)
            writer.send_signal(signal.SIGKILL)
            announced = [int(line) for line in writer.stdout.read().split()]
        next_window = RunDirectory.read(path).next_window
        assert next_window - 1 - max([last, *announced]) in {0, 1}  # killed between the commit and its announcement
        last = next_window - 1
    with RunDirectory.resume(path, make_manifest()) as run:
        windows, samples = contents(run)
    assert [window.window for window in windows] == list(range(last + 1))
    assert [sample.sample_id for sample in samples] == [f"{n}-{i}" for n in range(last + 1) for i in range(20)]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writes beyond ``size`` fail with an OSError in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("file", ["samples.jsonl", "windows.jsonl"])
def test_a_full_disk_keeps_what_was_finished(tmp_path: Path, file: str) -> None:
    with RunDirectory.create(tmp_path, make_manifest()) as run:
        # many small windows make windows.jsonl the longer file, so that its write is the one that fails
        for number in range(4):
            run.commit(*make_window(number, samples=2 if file == "samples.jsonl" else 0))
        before = {name: (tmp_path / name).read_bytes() for name in ("samples.jsonl", "windows.jsonl")}
        next_window = make_window(4, samples=2)
        with (
            file_size_limit(len(before[file]) + 100),
            pytest.raises(StoreError, match=r"make room.*--resume") as caught,
        ):
            run.commit(*next_window)
        assert "\n" not in str(caught.value)
        assert {name: (tmp_path / name).read_bytes() for name in before} == before
        run.commit(*next_window)
    with RunDirectory.resume(tmp_path, make_manifest()) as run:
        assert run.next_window == 5


def test_samples_reach_the_disk_before_their_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sizes() -> tuple[int, int]:
        return (tmp_path / "samples.jsonl").stat().st_size, (tmp_path / "windows.jsonl").stat().st_size

    with RunDirectory.create(tmp_path, make_manifest()) as run:
        run.commit(*make_window(0))
        before, at_flush = sizes(), []
        monkeypatch.setattr(os, "fsync", lambda descriptor: at_flush.append(sizes()))
        run.commit(*make_window(1))
        after = sizes()
    assert at_flush == [(after[0], before[1]), after]
    assert before[0] < after[0]
    assert before[1] < after[1]


def test_an_occupied_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=rf"not empty.*--resume {tmp_path}.*--out"):
        RunDirectory.create(tmp_path, make_manifest())
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(StoreError, match="cannot make the run directory"):
        RunDirectory.create(tmp_path / "notes.txt", make_manifest())


DAMAGED: tuple[tuple[bytes | None, str], ...] = (
    (None, "no manifest.json"),
    (b"", "damaged: it is not JSON"),
    (b'{"schema_version": 1, "crea', "damaged: it is not JSON"),
    (b"[1]", "foreign"),
    (b'{"name": "package.json"}', "foreign"),
    (b'{"schema_version": 1}', "damaged: created: Field required"),
    (b'{"schema_version": 99}', "schema_version 99 and this harness reads 1"),
)


def refusals(path: Path) -> list[str]:
    """What reading a directory and going on with it say, a line each."""
    said = []
    for open_run in (RunDirectory.read, lambda path: RunDirectory.resume(path, make_manifest())):
        with pytest.raises(StoreError) as caught:
            open_run(path)
        said.append(str(caught.value))
    assert "\n" not in "".join(said)
    return said


def test_a_damaged_or_foreign_manifest_is_refused_in_one_line(tmp_path: Path) -> None:
    for content, message in DAMAGED:
        if content is not None:
            (tmp_path / "manifest.json").write_bytes(content)
        assert all(message in said for said in refusals(tmp_path))


def test_a_missing_folder_is_refused_and_not_made(tmp_path: Path) -> None:
    for name, made in (("gone", "harness run"), ("gone.tar.gz", "harness submit RUN")):
        with pytest.raises(StoreError, match=rf"{name} does not exist\. Make it with `{made} --out .*{name}`\."):
            RunDirectory.resume(tmp_path / name, make_manifest())
        assert not (tmp_path / name).exists()


def test_damage_in_the_middle_names_file_and_line(tmp_path: Path) -> None:
    run_of(tmp_path, 3)
    for file, line in (("samples.jsonl", 3), ("windows.jsonl", 2)):
        whole = (tmp_path / file).read_bytes()
        lines = whole.splitlines(keepends=True)
        for garbage in (b"\x00\x00", b"{}", b'{"window": NaN}', b""):
            (tmp_path / file).write_bytes(b"".join([*lines[: line - 1], garbage + b"\n", *lines[line:]]))
            assert all(f"{file}, line {line} is damaged" in said for said in refusals(tmp_path))
        (tmp_path / file).write_bytes(whole)


def test_records_that_contradict_the_run_are_not_written(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path, make_manifest()) as run:
        run.commit(*make_window(0))
        window, samples = make_window(1)
        changes: tuple[tuple[dict[str, Any], str], ...] = (
            ({"window": 3}, "number 3 where 1 is next"),
            ({"samples": 5}, "announces 5 samples"),
            ({"failed": 1}, "1 failed"),
            ({"block": 0}, "repeats"),
            ({"task": "javacorpus"}, "samples of another window"),
        )
        for change, message in changes:
            with pytest.raises(StoreError, match=message):
                run.commit(window.model_copy(update=change), samples)
        run.commit(window, samples)


def changed(path: str, value: Any) -> Manifest:
    """The manifest with one leaf changed, for example ``model.weights_sha256``."""
    document = json.loads(make_manifest().model_dump_json())
    *parents, leaf = (int(part) if part.isdigit() else part for part in path.split("."))
    inner = document
    for part in parents:
        inner = inner[part]
    inner[leaf] = value
    return Manifest.model_validate(document)


OTHER: tuple[tuple[str, Any, str], ...] = (
    ("config.kv", "recompute", r'config\.kv was "propagate", now "recompute"'),
    ("config.limit", 5, r"config\.limit was 16, now 5"),
    ("operating_points.1.options.threshold", 0.8, r"operating_points\[1\]\.options\.threshold was 0\.9, now 0\.8"),
    ("operating_points", [], r"operating_points was .*, now \[\]"),
    ("model.weights_sha256", "ee", r"model\.weights_sha256 was \"abab"),
    ("tasks.0.fingerprint", "ee", r"tasks\[0\]\.fingerprint was \"cdcd"),
    ("model.end_ids", [2, 7], r"model\.end_ids was \[2\], now \[2, 7\]"),
    ("block_size", 3, "block_size was 2, now 3"),
    ("meter.source", "rapl", r'meter\.source was "none", now "rapl"'),
    ("environment.cpu", "Other", r"another environment: environment\.cpu was \"Some CPU\", now \"Other\".*two"),
    ("environment.gpus", ["H100"], r"environment\.gpus was \[\], now \[\"H100\"\]"),
    ("environment.usable_cores", 1, r"environment\.usable_cores was 2, now 1"),
    ("environment.quota_cores", 0.5, r"environment\.quota_cores was null, now 0\.5"),
    ("environment.instructions", "AVX2", r"environment\.instructions was \"AVX512\", now \"AVX2\""),
    ("environment.arithmetic", {"X": "1"}, r"environment\.arithmetic\.X was null, now \"1\""),
    ("environment.compiled", "ee", r"environment\.compiled was null, now \"ee\""),
    ("environment.code.tasks", "ee", r"other code: tasks was ab, now ee\. .* or start a new run with"),
    ("plugins.0.code", "ee", r"other code: their-package was cd, now ee\. .*restore that code"),
    ("model.fingerprint", "ee", r"config\.json, tokenizer, end tokens\) was \"ab\", now \"ee\""),
    ("tasks.0.prompts", "ee", r"tasks\[0\]\.prompts was \"\", now \"ee\""),
    ("environment.packages.torch", "2.14.0", r"environment\.packages\.torch was \"2\.13\.0\", now \"2\.14\.0\""),
)
ALIKE: tuple[tuple[str, Any], ...] = (
    ("config.out", "runs/elsewhere"),
    ("created", "2027-01-01T00:00:00Z"),
    ("bandwidth_bytes_per_s", 2e10),
    ("model.weights_source", "another copy of the same file"),
    ("tasks.0.detail", {"path": "moved"}),
    ("environment.load_average", [9.0, 9.0, 9.0]),
)


def test_another_configuration_is_refused_with_both_values_and_what_decides_no_result_may_change(
    tmp_path: Path,
) -> None:
    run_of(tmp_path, 1)
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    for path, value, message in OTHER:
        with pytest.raises(StoreError, match=message) as caught:
            RunDirectory.resume(tmp_path, changed(path, value))
        assert "\n" not in str(caught.value)
    for path, value in ALIKE:
        with RunDirectory.resume(tmp_path, changed(path, value)) as run:
            assert run.next_window == 1
            assert run.manifest.model_copy(update={"run": ""}) == make_manifest()
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before


def test_a_task_s_archive_stays_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "there" / "sub").mkdir(parents=True)
    (tmp_path / "there" / "sub" / "one.txt").write_text("1")
    archive = pack_folder(tmp_path / "there", ["sub/one.txt"])
    unpack_folder(archive, tmp_path / "here")
    assert [path.name for path in (tmp_path / "here").rglob("*")] == ["sub", "one.txt"]
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        tar.add(tmp_path / "there" / "sub" / "one.txt", "../outside.txt")
    with pytest.raises(tarfile.TarError):
        unpack_folder(content.getvalue(), tmp_path / "here")
    assert not (tmp_path / "outside.txt").exists()
