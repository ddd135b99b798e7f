"""Files read back as what was written, and missing stays missing."""

from __future__ import annotations

import io
import json
import math

import pandas
import pytest

from harness.errors import StoreError
from harness.records.summary import Summary, SummaryRow
from reports.tables.frame import column_facts, summary_csv, to_frame
from reports.tables.report import FILES, to_json, write_report


@pytest.fixture
def summary(build) -> Summary:
    run = build(points=("full", "fixed:layer=5", "odd|name"), tasks=("py150", "javacorpus"), kv="none")
    for block in range(6):
        run.window("full", {"scores": {"edit_similarity": 0.5}}, block=block, duration=2.0)
        run.window("fixed:layer=5", {"scores": {"edit_similarity": 0.0}}, block=block, duration=1.0 + 0.1 * block)
    return run.summary()


def test_json_has_every_documented_field_and_no_metric_that_is_missing(summary) -> None:
    row = json.loads(to_json(summary))["rows"][0]
    assert set(row) == set(SummaryRow.model_fields)
    assert row["verdict"] == "the baseline"
    assert row["metrics"]["edit_similarity"]["value"] == 0.5
    assert not {"bleu", "energy_j"} & row["metrics"].keys()
    assert row["kv"] == "none"


def test_csv_reads_back_with_missing_as_nan_and_words_as_words(summary) -> None:
    frame = pandas.read_csv(io.StringIO(summary_csv(summary)))
    assert len(frame) == len(summary.rows)
    assert frame["bleu"].isna().all()
    assert frame.loc[0, "edit_similarity"] == 0.5
    assert frame.loc[1, "edit_similarity"] == 0.0
    assert set(frame["kv"]) == {"none"}
    assert set(frame["energy_source"]) == {"none"}
    assert json.loads(frame.loc[1, "options"]) == {"layer": "5"}
    low, high = summary.rows[1].estimate("speedup").interval or (0, 0)
    assert frame.loc[1, "speedup_low"] == pytest.approx(low)
    assert frame.loc[1, "speedup_high"] == pytest.approx(high)
    assert math.isnan(frame.loc[0, "speedup_low"])
    assert frame.loc[1, "verdict"] == summary.rows[1].verdict
    pandas.testing.assert_frame_equal(to_frame(summary).fillna(float("nan")), frame, check_dtype=False)


def test_every_column_is_documented(summary) -> None:
    facts = {fact.name: fact for fact in column_facts(summary.rows)}
    assert list(facts) == list(to_frame(summary).columns)
    assert all(fact.meaning for fact in facts.values())
    assert (facts["latency_p50_s"].unit, facts["latency_p50_s"].better) == ("s", "lower")
    assert facts["speedup_low"].meaning == "lower bound of the 95 % interval of speed-up"


def test_write_report_writes_three_files_and_nothing_else(summary, tmp_path) -> None:
    paths = write_report(summary, tmp_path)
    assert [path.name for path in paths] == list(FILES)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    assert Summary.model_validate_json(paths[0].read_text(encoding="utf-8")) == summary
    write_report(summary, tmp_path)  # again: replaced
    with pytest.raises(StoreError, match=r"cannot write .*summary\.json: No such file"):
        write_report(summary, tmp_path / "missing")
