"""Repeats have processes of their own, and whatever happens to one of them loses nothing."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import RunConfig
from harness.errors import HarnessError
from harness.records import WindowRecord
from harness.running.runner import execute
from harness.store.run_directory import lock_folder
from tests.run_files import cut, lines

TALKS = """\
def talk():
    while True:
        time.sleep(0.02)
        print('hello', flush=True)
threading.Thread(target=talk, daemon=True).start()
os.write(1, b'a line that is not end')
"""
"""What prints in the process of a repeat must not be taken for what it says to its parent."""


class Intruder:
    """Remembers what an observer is told, and tries at each stage to write into the run directory."""

    def __init__(self, out: Path) -> None:
        self.out, self.total = out, 0
        self.stages: list[str] = []
        self.windows: list[WindowRecord] = []
        self.refused: list[str] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)
        if self.out.exists():
            with pytest.raises(HarnessError) as error:
                lock_folder(self.out).close()
            self.refused.append(str(error.value))

    def begin(self, total: int, done: int, directory: Path) -> None:
        self.total = total

    def window(self, record: WindowRecord) -> None:
        self.windows.append(record)


@pytest.mark.slow
def test_each_repeat_has_its_own_process_and_one_that_was_lost_is_made_again(
    cli: Callable[..., Any], tiny_llama: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os, sys, threading, time\nif 'harness.running.runner' in sys.orig_argv:\n"
        + textwrap.indent(TALKS, "    ")
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    out = tmp_path / "out"
    config = RunConfig(
        model=str(tiny_llama), source=str(rows_file), limit=2, max_new_tokens=3, energy="none", threads=1,
        strategies=("fixed:layer=4",), repeats=2, out=out,
    )  # fmt: skip
    watched = Intruder(out)
    result = execute(config, observer=watched)
    assert watched.total == len(watched.windows) == 2 * 2 * 2  # repeats, blocks, operating points
    assert [record.repeat for record in watched.windows] == [0] * 4 + [1] * 4
    assert any(stage.startswith("repeat 2, in a fresh process: loading") for stage in watched.stages)
    assert len(watched.refused) > 2  # while the repeat loads and warms up, and while scores are made
    assert set(watched.refused) == {f"the run directory {out} is in use by another process. Stop it or wait for it."}
    whole = lines(out, "windows")
    order = [("warm-up" if window["warmup"] else window["repeat"]) for window in whole]
    changes = [now for before, now in zip([None, *order], order, strict=False) if now != before]
    assert changes == ["warm-up", 0, "warm-up", 1]
    assert {row.repeats for row in result.summary.rows} == {2}
    tokens: dict[tuple[str, str], set[str]] = {}
    for sample in lines(out, "samples"):
        tokens.setdefault((sample["operating_point"], sample["sample_id"]), set()).add(str(sample["token_ids"]))
    assert all(len(found) == 1 for found in tokens.values())

    cut(out, next(window["window"] for window in whole if window["repeat"] == 1 and not window["warmup"]) + 1)
    again = Intruder(tmp_path / "elsewhere")  # nobody holds it until it is known what to resume
    execute(config, resume=out, observer=again)
    assert len(again.windows) == 8 - 5
    keys = [
        {(one["block"], one["repeat"], one["operating_point"]) for one in found if not one["warmup"]}
        for found in (whole, lines(out, "windows"))
    ]
    assert keys[0] == keys[1]
