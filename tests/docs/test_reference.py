"""The page of the Python interface has what pages let their readers import, and says what a run can be told."""

from __future__ import annotations

import ast
import pydoc
import re
from collections.abc import Iterator
from typing import Any

import pytest

from harness.config import RunConfig
from tests.docs.pages import NAMES, ROOT, blocks, script

PAGE = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"^::: (\S+)$", PAGE, re.M)
PACKAGES = "harness|strategies|tasks|reports"


def named(name: str) -> Iterator[str]:
    """Yield what a page's blocks import of this project, and what its sentences name by its whole path."""
    for block in blocks(name, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and re.match(rf"(?:{PACKAGES})\b", node.module or ""):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
    text = re.sub(r"^```.*?^```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.S | re.M)
    yield from re.findall(rf"`((?:{PACKAGES})(?:\.\w+)+)`", text)


def home(path: str) -> str:
    """Return where a class is defined; empty for what is none."""
    found: Any = pydoc.locate(path)
    return f"{found.__module__}.{found.__qualname__}" if isinstance(found, type) else ""


def test_every_class_that_a_page_names_is_there() -> None:
    pytest.importorskip("lm_eval")  # docs/lm-eval.md names a class that needs it
    paths = {path for name in NAMES for path in named(name)}
    missing = {path: where for path in paths if (where := home(path)) and where not in SHOWN}
    assert missing == {}
    assert {"harness.contracts.Strategy", "tasks.benchmark_task.BenchmarkTask", "tasks.rows.Rows"} <= paths


def test_what_is_there_exists() -> None:
    pytest.importorskip("lm_eval")
    assert [path for path in SHOWN if pydoc.locate(path) is None] == []
    assert len(SHOWN) == len(set(SHOWN))


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, tuple[str, str, str]]]:
    """Class → field → its type, default and meaning, as the page is built."""
    classes = re.split(r"^::: ", script("reference")["filled"](PAGE), flags=re.M)
    row = re.compile(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*) \|$", re.M)
    return {part.split("\n")[0]: {name: tuple(said) for name, *said in row.findall(part)} for part in classes}


def test_every_field_of_a_run_has_its_type_default_and_meaning(rows: dict[str, Any]) -> None:
    fields = rows["harness.config.run.RunConfig"]
    assert fields.keys() == RunConfig.model_fields.keys()
    assert [name for name, said in fields.items() if not all(said)] == []
    assert fields["limit"] == (r"int \| None", "`16`", "Samples per task, or documents of sessions; 0 for all.")
    assert fields["strategies"][:2] == (r"tuple\[str \| Strategy, ...\]", "`()`")
    assert fields["kv_input"][0] == r"'hidden' \| 'shortcut'"
    assert fields["draft_max"][0] == r"int \| tuple\[int, ...\]"
    assert fields["model"][1] == "`'smollm2-135m'`"
