"""Private paths do not leave the machine, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.records.sample import AnswerRecord
from reports.leaderboard.redaction import private_paths, redact, redact_run
from reports.recorded import RecordedRun


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/alice/models/tiny", "…/tiny"),
        ("path: /home/alice b/data", "path: …/data"),
        ("~/data/rows.jsonl", "…/rows.jsonl"),
        ("/home/alice", "…"),
        ("/root/", "…"),
        ("file:///home/alice/rows.jsonl", "…/rows.jsonl"),
        ("cannot read /home/alice/x.jsonl: gone", "cannot read …/x.jsonl: gone"),
        ("PYTHONPATH:/home/alice/z", "PYTHONPATH:…/z"),
        ("sk@host:/home/alice/p", "sk@host:…/p"),
        ("a=/usr/lib:/home/alice/lib:/usr/x", "a=/usr/lib:…/lib:/usr/x"),
        ("\\\\server\\share\\alice\\m", "…/m"),
        ("\\\\server\\Users\\alice", "…"),
        ("\\\\?\\C:\\Users\\alice\\m", "…/m"),
        ("C:\\Users\\Alice Smith\\models\\tiny", "…/tiny"),
        ("cannot open 'C:\\\\Users\\\\alice\\\\m'", "cannot open '…/m'"),
        ("cannot open '\\\\\\\\server\\\\share\\\\alice\\\\m'", "cannot open '…/m'"),
        ("https://example.org:8080/home/x", "https://example.org:8080/home/x"),
        ("rl:agent=/srv/alice/agent.json", "rl:agent=…/agent.json"),
        ("/usr/lib/jvm/jdk/lib/src.zip", "/usr/lib/jvm/jdk/lib/src.zip"),
        ("rapl: /sys/class/powercap/intel-rapl is absent", "rapl: /sys/class/powercap/intel-rapl is absent"),
        ("meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.2-3B"),
        ("8 W / 2 logical cores", "8 W / 2 logical cores"),
        ("</script>", "</script>"),
        ("expected '\\n' or '\\t'", "expected '\\n' or '\\t'"),
        ("/usr/bin/python: can't open /home/alice/x.py", "/usr/bin/python: can't open …/x.py"),
    ],
)
def test_private_paths_are_shortened(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact(expected) == expected


def run_with(build: Any, **config: Any) -> RecordedRun:
    builder = build()
    for point in builder.points:
        builder.window(point, {"text": "open('/home/alice/x')", "sample_id": "a"})
    manifest = builder.manifest
    manifest = manifest.model_copy(update={"config": {**manifest.config, **config}})
    return RecordedRun(Path("one"), manifest, tuple(builder.windows), tuple(builder.samples), builder.summary())


def test_a_run_without_private_paths_stays_the_same(build: Any) -> None:
    run = run_with(build)
    assert redact_run(run).run is run


def test_the_manifest_is_cleaned_and_completions_are_kept(build: Any) -> None:
    redacted = redact_run(run_with(build, source="/home/alice/data", model="/home/alice/models/tiny"))
    assert redacted.places == ("manifest.config.source", "manifest.config.model")
    assert redacted.run.manifest.config["source"] == "…/data"
    assert "alice" not in redacted.run.manifest.model_dump_json()
    assert redacted.run.samples[0].text == "open('/home/alice/x')"
    assert not list(private_paths(redacted.run.manifest.model_dump(mode="json")))
    assert redact_run(redacted.run).places == ()


def test_errors_are_cleaned(build: Any) -> None:
    run = run_with(build)
    failed = run.samples[0].model_copy(update={"error": "cannot open /home/alice/cache/x"})
    redacted = redact_run(replace(run, samples=(failed, *run.samples[1:])))
    assert redacted.run.samples[0].error == "cannot open …/x"
    assert redacted.places == ("samples",)


def test_what_a_server_calls_its_model_is_cleaned(build: Any) -> None:
    run = run_with(build)
    answered = run.samples[0].model_copy(update={"answer": AnswerRecord(tokens=3, model="/home/alice/models/x")})
    redacted = redact_run(replace(run, samples=(answered, *run.samples[1:])))
    assert redacted.run.samples[0].answer == AnswerRecord(tokens=3, model="…/x")
    assert redacted.places == ("samples",)


def test_names_that_become_equal_are_reported(build: Any) -> None:
    run = run_with(build)
    one = run.samples[0].model_copy(update={"sample_id": "/home/alice/x.py"})
    other = run.samples[1].model_copy(update={"sample_id": "/home/bob/x.py"})
    assert redact_run(replace(run, samples=(one, other))).merged == ("/home/bob/x.py",)
