"""``harness calibrate``: a run, a promise, an operating point that a run takes, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.run_files import samples

Command = Callable[..., Any]

SETTINGS = ("confidence:threshold=0.99", "confidence:threshold=0.2", "confidence:threshold=0.05")


@pytest.fixture
def calibrate(cli: Command, tiny_llama: Path, rows_file: Path) -> Command:
    """``harness calibrate`` on the tiny model and six small documents; further arguments win."""

    def run(*arguments: object) -> Any:
        decoding = () if "--resume" in arguments else (
            *("--model", tiny_llama, "--source", rows_file, "--limit", 6, "--max-new-tokens", 5),
            *("--energy", "none", "--threads", 1, "--out", "run"),
        )  # fmt: skip
        return cli("calibrate", *decoding, *arguments)

    return run


def test_debug(calibrate: Command) -> None:
    ran = calibrate("--strategy", "confidence", "--points", 3, "--observe", 2, "--target", "agreement=0.3")
    print(ran)
    for name, each in samples(Path("run")).items():
        print(name, [s["token_ids"] for s in each.values()], [s["exit_layers"] for s in each.values()])
    assert 0
