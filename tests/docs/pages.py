"""README and the documentation as their readers see them: pages, and the blocks of code on them."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
NAMES = tuple(page.relative_to(ROOT).as_posix() for page in PAGES)


def blocks(name: str, language: str) -> list[str]:
    """Return the blocks of a page in one language; ``""`` for those of the shell."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return [code for said, code in re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M) if said == language]


def commands(name: str, *, in_sentences: bool = True) -> Iterator[list[str]]:
    """Yield the words of every ``harness`` command that a page shows, in a block or within a sentence."""
    text = (ROOT / name).read_text(encoding="utf-8")
    shown = [line for block in blocks(name, "") for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    if in_sentences:
        shown += [" ".join(code.split()) for code in re.findall(r"(?<!`)`(harness [^`]+)`", prose)]
    for line in shown:
        for part in line.removeprefix("$ ").split(";"):
            if part.strip().startswith("harness "):
                yield shlex.split(part, comments=True)


def script(name: str) -> dict[str, Any]:
    """Return what one of the scripts of the documentation defines."""
    sys.path.insert(0, str(folder := ROOT / "docs" / "scripts"))  # they import each other
    try:
        return runpy.run_path(str(folder / f"{name}.py"))
    finally:
        sys.path.remove(str(folder))
