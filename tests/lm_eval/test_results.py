"""The table of an evaluation: names are printed as they stand, and rows say where their numbers come from."""

from __future__ import annotations

import io
from typing import Any

import pytest

from harness.appearance.terminal import Console
from harness.lm_eval.results import tables
from reports.tables.writers import to_terminal

TINY = {"model": "tiny", "weights": "random", "num_layers": 12, "weights_format": "float32"}


def lines(results: dict[str, Any]) -> list[str]:
    console = Console(file=io.StringIO(), width=100)
    console.print(to_terminal(tables(results)))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_names_in_brackets_are_no_markup() -> None:
    values = {"results": {"mine[red]": {"acc,first[1]": 0.5}}, "config": {"early_exit": {**TINY, "tasks": {}}}}
    printed = lines({"full": values, "[bold]mine:layer=4": values})
    assert "mine[red]: acc,first[1]" in printed
    assert any(line.strip().startswith("[bold]mine:layer=4 ") for line in printed)


@pytest.mark.parametrize(
    ("task", "wanted"),
    [
        ("made", ["mine:layer=4"]),
        ("given", ["exit after layer 6"]),
        ("both", ["mine:layer=4; scored: exit after layer 6"]),
        ("group", ["mine:layer=4; scored: exit after layer 6"]),
        ("of groups", ["exit after layer 6"]),
    ],
)
def test_a_row_says_where_its_numbers_come_from(task: str, wanted: list[str]) -> None:
    tasks: dict[str, Any] = {
        "made": {"generated": {}},
        "given": {"scored": {}},
        "both": {"scored": {}, "generated": {}},
    }
    values = {
        "results": {task: {"acc,none": 0.5}},
        "group_subtasks": {"group": ["inner", "made"], "of groups": ["inner"], "inner": ["given"]},
        "config": {"early_exit": {**TINY, "loglikelihood_at": "exit after layer 6", "tasks": tasks}},
    }
    assert [line.rpartition("0.5")[0].strip() for line in lines({"mine:layer=4": values}) if "0.5" in line] == wanted
