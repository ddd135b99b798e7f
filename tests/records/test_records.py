"""Files others build on: what is promised stays, what is unknown is ignored, nothing is silently lost."""

from __future__ import annotations

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

RECORDS: list[tuple[Any, dict[str, Any]]] = [
    (SampleRecord, {**SAMPLE, "text": "Grüße\u2028\n\t\0", "token_ids": [1, 2], "scores": {"bleu": 0.1, "x": None}}),
    (WindowRecord, {**WINDOW, "energy_j": 1e-9, "flags": ["short-window"], "energy_source": "rapl"}),
    (SummaryRow, {**ROW, "options": {"threshold": 0.9, "layers": [1, 2]}}),
    (Estimate, {"value": 1.5, "low": 1.2, "high": 1.9, "p": 0.03, "p_holm": 0.06, "n": 8}),
    (Summary, {"schema_version": SUMMARY_VERSION, "machine": "m", "notes": ["one"], "rows": [ROW]}),
]


def test_a_record_is_a_line_and_a_reader_ignores_what_a_later_version_adds() -> None:
    for kind, fields in RECORDS:
        adapter = TypeAdapter(kind)
        record = adapter.validate_python(fields)
        text = adapter.dump_json(record).decode()
        assert "\n" not in text
        assert adapter.validate_json(text) == adapter.validate_python({**fields, "added_later": 1}) == record


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_json_cannot_hold_is_refused(value: float) -> None:
    for kind, fields in (
        (WindowRecord, {**WINDOW, "energy_j": value}),
        (Estimate, {"value": value}),
        (SampleRecord, {**SAMPLE, "scores": {"bleu": value}}),
    ):
        with pytest.raises(ValidationError):
            TypeAdapter(kind).validate_python(fields)


def test_what_was_not_measured_is_none_and_not_zero() -> None:
    row = SummaryRow.model_validate({**ROW, "metrics": {"speedup": {"value": 1.5, "low": 1.2, "high": 1.9}}})
    assert (row.value("energy_j"), row.estimate("energy_j")) == (None, None)
    speedup = row.estimate("speedup")
    assert speedup is not None
    assert (speedup.interval, speedup.p, speedup.n) == ((1.2, 1.9), None, None)
