"""No cell of a CSV file is a formula, and no number becomes text."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from reports.tables.frame import runs_to_csv, summary_csv
from reports.tables.writers import csv_text, inert

FORMULA = "=cmd|'/C calc'!A1"


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t=", " +", "\n@", "\uff1d"])
def test_text_that_begins_like_a_formula_is_shown(first: str) -> None:
    assert inert(f"{first}1") == f"'{first}1"


def test_nothing_is_hidden_in_a_cell_or_a_header() -> None:
    text = csv_text(["=a\x1b"], [{"=a\x1b": "\u202e\r\n\x00"}])
    assert list(csv.reader(io.StringIO(text))) == [[r"'=a\x1b"], ["\\u202e\n\\x00"]]


def test_a_value_without_a_column_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="b"):
        csv_text(["a"], [{"a": 1, "b": 2}])


@pytest.mark.parametrize("value", [-1.5, 0, None, "", "a=b", "'=1", '{"a": "=1"}'])
def test_everything_else_stays(value: object) -> None:
    assert inert(value) == value
    assert type(inert(value)) is type(value)


def test_numbers_are_written_as_numbers_and_missing_as_nothing() -> None:
    assert csv_text(["a", "b", "c"], [{"a": "-x", "b": -1.5}]) == "a,b,c\n'-x,-1.5,\n"


def test_names_of_runs_and_operating_points(build: Any) -> None:
    run = build(points=("full", FORMULA))
    for point in run.points:
        run.window(point, {"scores": {"edit_similarity": 0.5}})
    summary = run.summary()
    (line,) = [row for row in csv.DictReader(io.StringIO(summary_csv(summary))) if "cmd" in row["operating_point"]]
    assert line["operating_point"] == f"'{FORMULA}"
    lines = list(csv.DictReader(io.StringIO(runs_to_csv([("+one", summary)]))))
    assert {row["run"] for row in lines} == {"'+one"}
    assert lines[1]["operating_point"] == f"'{FORMULA}"
