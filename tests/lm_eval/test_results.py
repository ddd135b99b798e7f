"""The table of an evaluation: names are of whoever wrote the task, and are printed as they stand."""

from __future__ import annotations

import io

from harness.appearance.terminal import Console
from harness.lm_eval.results import render


def test_names_in_brackets_are_no_markup() -> None:
    facts = {"model": "tiny", "weights": "random", "num_layers": 12, "weights_format": "float32", "tasks": {}}
    values = {"results": {"mine[red]": {"acc,first[1]": 0.5}}, "config": {"early_exit": facts}}
    console = Console(file=io.StringIO(), width=100)
    console.print(render({"full": values, "[bold]mine:layer=4": values}))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert "mine[red]: acc,first[1]" in lines
    assert any(line.startswith("  [bold]mine:layer=4 ") for line in lines)
