"""Files others build on: what is promised stays, what is unknown is ignored, nothing is silently lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from harness.records import SampleRecord, WindowRecord
from harness.records.estimate import Estimate
from harness.records.summary import SUMMARY_VERSION, Summary, SummaryRow

SAMPLE: dict[str, Any] = {"window": 3, "operating_point": "full", "task": "py150", "sample_id": "a"}
WINDOW: dict[str, Any] = {
    "window": 3, "task": "py150", "block": 1, "repeat": 0, "operating_point": "full", "samples": 1, "tokens": 4,
    "started": "2026-01-01T00:00:00+00:00", "duration_s": 0.5, "cpu_time_s": 0.4,
}  # fmt: skip
ROW: dict[str, Any] = {
    "operating_point": "full", "strategy": "full", "options": {}, "task": "py150", "language": "python",
    "protocol": "green-code", "source": "here", "model": "tiny", "weights": "random", "kv": "none",
    "batch_size": 1, "dtype": "float32", "n": 2, "errors": 0, "repeats": 1,
}  # fmt: skip
SUMMARY: dict[str, Any] = {"schema_version": SUMMARY_VERSION, "machine": "m", "notes": ["one"], "rows": [ROW]}

RECORDS: list[tuple[Any, dict[str, Any]]] = [
    (SampleRecord, SAMPLE),
    (SampleRecord, {**SAMPLE, "text": "Grüße\u2028\n\t\0", "token_ids": [1, 2], "scores": {"bleu": 0.1, "x": None}}),
    (WindowRecord, WINDOW),
    (WindowRecord, {**WINDOW, "energy_j": 1e-9, "flags": ["short-window"], "energy_source": "rapl"}),
    (SummaryRow, ROW),
    (SummaryRow, {**ROW, "options": {"threshold": 0.9, "layers": [1, 2]}}),
    (Estimate, {"value": 1.5}),
    (Estimate, {"value": 1.5, "low": 1.2, "high": 1.9, "p": 0.03, "p_holm": 0.06, "n": 8}),
    (Summary, SUMMARY),
]


@pytest.mark.parametrize(("kind", "fields"), RECORDS)
def test_round_trip(kind: Any, fields: dict[str, Any]) -> None:
    adapter = TypeAdapter(kind)
    record = adapter.validate_python(fields)
    text = adapter.dump_json(record).decode()
    assert "\n" not in text  # a line of JSONL
    assert adapter.validate_json(text) == record
    written = json.loads(text)
    assert {key: written[key] for key in fields if key != "rows"} == {k: v for k, v in fields.items() if k != "rows"}


@pytest.mark.parametrize(("kind", "fields"), RECORDS)
def test_a_reader_ignores_what_a_later_version_adds(kind: Any, fields: dict[str, Any]) -> None:
    adapter = TypeAdapter(kind)
    assert adapter.validate_python({**fields, "added_later": 1}) == adapter.validate_python(fields)


@pytest.mark.parametrize(("kind", "fields"), RECORDS)
def test_a_record_lacks_nothing_it_needs(kind: Any, fields: dict[str, Any]) -> None:
    described = kind.__pydantic_fields__
    required = [name for name, field in described.items() if field.is_required()]
    assert required
    for name in required:
        with pytest.raises(ValidationError):
            TypeAdapter(kind).validate_python({key: value for key, value in fields.items() if key != name})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_json_cannot_hold_is_refused(value: float) -> None:
    for kind, fields in ((WindowRecord, {**WINDOW, "energy_j": value}), (Estimate, {"value": value})):
        with pytest.raises(ValidationError):
            TypeAdapter(kind).validate_python(fields)
    with pytest.raises(ValidationError):
        SampleRecord.model_validate({**SAMPLE, "scores": {"bleu": value}})


def test_what_was_not_measured_is_none_and_not_zero() -> None:
    row = SummaryRow.model_validate({**ROW, "metrics": {"speedup": {"value": 1.5, "low": 1.2, "high": 1.9}}})
    assert (row.value("energy_j"), row.estimate("energy_j")) == (None, None)
    speedup = row.estimate("speedup")
    assert speedup is not None
    assert (speedup.interval, speedup.p, speedup.n) == ((1.2, 1.9), None, None)
    window = WindowRecord.model_validate(WINDOW)
    assert window.energy_j is None


def test_records_do_not_change() -> None:
    with pytest.raises(ValidationError):
        WindowRecord.model_validate(WINDOW).energy_j = 0.0  # type: ignore[misc]
