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

Command = Callable[..., Any]


class Watched:
    """Remembers what an observer is told."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.total = 0
        self.windows: list[WindowRecord] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def begin(self, total: int, done: int, directory: Path) -> None:
        self.total = total

    def window(self, record: WindowRecord) -> None:
        self.windows.append(record)


@pytest.fixture
def config(cli: Command, tiny_llama: Path, rows_file: Path, tmp_path: Path) -> RunConfig:
    return RunConfig(
        model=str(tiny_llama), source=str(rows_file), limit=2, max_new_tokens=3, energy="none", threads=1,
        strategies=("fixed:layer=4",), repeats=3, out=tmp_path / "out",
    )  # fmt: skip


@pytest.mark.slow
def test_each_repeat_has_its_own_process_and_one_that_was_lost_is_made_again(config: RunConfig, tmp_path: Path) -> None:
    watched, out = Watched(), tmp_path / "out"
    result = execute(config, observer=watched)
    assert watched.total == len(watched.windows) == 3 * 2 * 2  # repeats, blocks, operating points
    assert [record.repeat for record in watched.windows] == [0] * 4 + [1] * 4 + [2] * 4
    assert any(stage.startswith("repeat 3, in a fresh process: loading") for stage in watched.stages)
    whole = lines(out, "windows")
    order = [("warm-up" if window["warmup"] else window["repeat"]) for window in whole]
    changes = [now for before, now in zip([None, *order], order, strict=False) if now != before]
    assert changes == ["warm-up", 0, "warm-up", 1, "warm-up", 2]
    assert {row.repeats for row in result.summary.rows} == {3}
    tokens: dict[tuple[str, str], set[str]] = {}
    for sample in lines(out, "samples"):
        tokens.setdefault((sample["operating_point"], sample["sample_id"]), set()).add(str(sample["token_ids"]))
    assert all(len(found) == 1 for found in tokens.values())

    cut(out, next(window["window"] for window in whole if window["repeat"] == 1 and not window["warmup"]) + 1)
    again = Watched()
    execute(config, resume=out, observer=again)
    assert len(again.windows) == 12 - 5
    keys = [
        {(one["block"], one["repeat"], one["operating_point"]) for one in found if not one["warmup"]}
        for found in (whole, lines(out, "windows"))
    ]
    assert keys[0] == keys[1]


@pytest.mark.slow
def test_nobody_else_writes_between_two_repeats(config: RunConfig, tmp_path: Path) -> None:
    refused: list[str] = []

    class Intruder(Watched):
        def stage(self, text: str) -> None:
            super().stage(text)
            if (tmp_path / "out").exists():
                with pytest.raises(HarnessError) as error:
                    lock_folder(tmp_path / "out").close()
                refused.append(str(error.value))

    execute(config, observer=Intruder())
    assert len(refused) > 4  # while each repeat loads and warms up, and while scores are made
    assert set(refused) == {
        f"the run directory {tmp_path / 'out'} is in use by another process. Stop it or wait for it."
    }


TALKS = """\
def talk():
    while True:
        time.sleep(0.02)
        print('hello', flush=True)
threading.Thread(target=talk, daemon=True).start()
os.write(1, b'a line that is not end')
"""


@pytest.mark.slow
def test_what_prints_in_a_repeat_does_not_speak_to_the_parent(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, sys, threading, time\nif 'harness.running.runner' in sys.orig_argv:\n"
        + textwrap.indent(TALKS, "    ")
    )
    monkeypatch.syspath_prepend(str(folder))
    watched = Watched()
    execute(config.model_copy(update={"repeats": 2}), observer=watched)
    assert len(watched.windows) == 8
