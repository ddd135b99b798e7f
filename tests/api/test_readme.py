"""The README's Python section runs as written, on the real default model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SECTION = re.search(r"^## From Python\n(.*?)^## ", (ROOT / "README.md").read_text(encoding="utf-8"), re.S | re.M)
BLOCKS: list[str] = re.findall(r"```python\n(.*?)```", SECTION.group(1), re.S) if SECTION else []


def test_there_are_four_short_ones() -> None:
    assert len(BLOCKS) == 4
    assert max(sum(bool(line.strip()) for line in block.splitlines()) for block in BLOCKS) <= 10


@pytest.mark.model
def test_they_run_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    threads = torch.get_num_threads()
    try:
        for number, block in enumerate(BLOCKS, start=1):
            exec(compile(block, f"README.md, From Python, block {number}", "exec"), names)
    finally:
        torch.set_num_threads(threads)
    assert len(names["answer"].tokens) == 24
    assert set(names["exits"].exit_layer) == {4, 6, 8, 10, 12, 14, 18, 22, 26, 30}
    assert names["rows"].operating_point.tolist() == ["full", "__main__:Sure:least=0.8", "fixed:layer=22"]
    assert Path(names["rows"].attrs["run_dir"], "summary.json").is_file()
