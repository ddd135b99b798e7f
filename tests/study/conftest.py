"""A small study of a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.study import step_run

from .made_up import Commands

Declare = Callable[..., Path]


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure points in this process."""
    from harness.study.executors.local import Local

    from .inline import Inline

    monkeypatch.setattr(Local, "open", Inline.open)


@pytest.fixture
def declare(tmp_path: Path, tiny_llama: Path, rows_file: Path) -> Declare:
    """``declare(seed=[0, 1])`` writes a study's file with this grid; ``run=`` adds what all runs share."""

    def write(*, run: dict[str, Any] | None = None, more: str = "", **grid: list[Any]) -> Path:
        shared = {
            "model": str(tiny_llama),
            "source": str(rows_file),
            "limit": 2,
            "max_new_tokens": 4,
            "energy": "none",
            "threads": 1,
            "strategies": ["fixed:layer=4"],
            "weights_format": "float32",
            **(run or {}),
        }
        tables = {"run": shared, "grid": grid}
        lines = []
        for table, values in tables.items():
            lines += [f"[{table}]", *(f"{name} = {json.dumps(value)}" for name, value in values.items())]
        file = tmp_path / "tiny.toml"
        file.write_text("\n".join([*lines, more]) + "\n")
        return file

    return write


@pytest.fixture
def steps(tiny_llama: Path, rows_file: Path) -> Callable[..., str]:
    """``steps(heads=True)`` declares a trace of the small documents, and heads that are trained on it."""

    def declared(source: Path = rows_file, options: str = "--documents 4 --length 64", *, heads: bool = True) -> str:
        trace = f"trace --model {tiny_llama} --task py150 --source {source} --threads 1 {options}"
        train = f"train classifier --model {tiny_llama} --traces {{traces}} --epochs 2 --hidden 8 --observation paper"
        lines = ["[[step]]", 'name = "traces"', f"command = {json.dumps(trace)}"]
        if heads:
            lines += ["[[step]]", 'name = "heads"', f"command = {json.dumps(train)}", "threads = 1"]
        return "\n".join([*lines, ""])

    return declared


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Run no command of a step."""
    made = Commands()
    monkeypatch.setattr(step_run, "_run", made)
    return made
