"""Generation settings of a task, each refused unless it changes nothing of a greedy text; and an evaluation's table."""

from __future__ import annotations

import io
from typing import Any

import pytest

from harness.appearance.terminal import Console
from harness.errors import ConfigError
from harness.lm_eval.requests import NEUTRAL, read_generation
from harness.lm_eval.results import tables
from reports.tables.writers import to_terminal

GREEDY = {"until": ["\n"], "do_sample": False, "temperature": 0.0, "top_p": 0.9, "max_gen_toks": 5}


def read(**settings: object) -> tuple[tuple[str, ...], int]:
    return read_generation("odd", GREEDY | settings, 256, "<eos>")


def test_what_changes_nothing_of_a_greedy_text_is_taken_and_all_else_refused() -> None:
    for name, value in (
        *(("num_beams", 1), ("repetition_penalty", 1.0), ("no_repeat_ngram_size", 0), ("min_length", None)),
        *(("presence_penalty", 0.0), ("early_stopping", False), ("renormalize_logits", None)),  # the last is in no list
    ):
        assert read(**{name: value}) == (("\n", "<eos>"), 5)
    for name, value in (
        *(("num_beams", 2), ("num_beams", 0), ("repetition_penalty", 0), ("repetition_penalty", 1.2)),
        *(("no_repeat_ngram_size", 1), ("min_new_tokens", 1), ("min_length", 1.0), ("penalty_alpha", 1)),
        *(("early_stopping", True), ("renormalize_logits", 0), ("suppress_tokens", []), ("some_new_setting", 1)),
        *((name, True) for name in sorted(NEUTRAL)),  # equal to 1 in Python
    ):
        with pytest.raises(ConfigError, match=rf"the task odd sets {name} in its generation_kwargs"):
            read(**{name: value})
    with pytest.raises(ConfigError, match=r"sets min_new_tokens, num_beams in its generation_kwargs"):
        read(num_beams=4, min_new_tokens=1, repetition_penalty=1)


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


def test_a_row_says_where_its_numbers_come_from() -> None:
    tasks: dict[str, Any] = {"made": {"generated": {}}, "given": {"scored": {}}}
    scored = "exit after layer 6"
    for task, wanted in (("made", "mine:layer=4"), ("given", scored), ("group", f"mine:layer=4; scored: {scored}")):
        facts = {**TINY, "loglikelihood_at": scored, "tasks": tasks}
        values = {"results": {task: {"acc,none": 0.5}}, "group_subtasks": {"group": ["given", "made"]}}
        shown = lines({"mine:layer=4": values | {"config": {"early_exit": facts}}})
        assert [line.rpartition("0.5")[0].strip() for line in shown if "0.5" in line] == [wanted]
