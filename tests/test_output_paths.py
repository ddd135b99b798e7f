"""No way of a text to people avoids the one function of its medium: who writes what, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MEDIA = {
    "rich.console.Console": {"harness/appearance/terminal.py"},
    "rich.text": {"harness/appearance/terminal.py"},
    "rich.markup": {"harness/appearance/terminal.py"},
    "html": {"harness/appearance/pages.py"},
    "jinja2": {
        "harness/appearance/pages.py",
        "harness/serving/page.py",
    },  # the latter makes settings of editors, no HTML
    "csv": {"reports/tables/writers.py", "reports/published/numbers.py"},  # the latter reads
    "traceback": {
        "harness/commands/console.py",
        "harness/lm_eval/evaluate.py",
    },  # the latter looks whose frames they are
}
"""What makes text for a medium, and the modules that may use it."""

SPEAKERS = {
    "harness/commands/console.py",
    "harness/serving/server.py",  # one line, before there is a log
    "harness/running/repeats.py",  # JSON, to its parent process
    "harness/study/step_run.py",  # the last line of a step's log, after the command's own
}
"""Modules that may print."""

SPOKEN = {"print", "sys.stdout.write", "sys.stderr.write"}


@cache
def modules() -> list[tuple[str, ast.Module]]:
    packages = ("harness", "reports", "strategies", "tasks")
    files = sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))
    return [(path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))) for path in files]


def imported(tree: ast.Module) -> set[str]:
    """Names of what a module imports to use it; types alone do not count."""
    found: set[str] = set()
    for node in at_run_time(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)):
            yield child
            yield from at_run_time(child)


def calls(tree: ast.Module, name: str) -> list[int]:
    """Lines that call something by its name, whatever it belongs to."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [node.lineno for node in nodes if ast.unparse(node.func).rpartition(".")[2] == name]


@pytest.mark.parametrize("what", MEDIA)
def test_only_a_mediums_module_makes_text_for_it(what: str) -> None:
    makers = set()
    for path, tree in modules():
        found = imported(tree)
        # a console may be named as a type of what is printed on; making one is what counts
        if what == "rich.console.Console":
            if (what in found and calls(tree, "Console")) or ("rich.console" in found and path in MEDIA[what]):
                makers.add(path)
        elif what in found:
            makers.add(path)
    assert makers == MEDIA[what]


def test_nothing_else_prints() -> None:
    for path, tree in modules():
        if path in SPEAKERS:
            continue
        named = [
            node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in SPOKEN
        ]
        assert not named, f"{path}:{named}: use harness.commands.console"
