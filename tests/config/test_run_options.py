"""An option of runs is declared once, and read in few places."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from harness.config import RunConfig
from harness.config.model import ModelConfiguration

ROOT = Path(__file__).resolve().parents[2]
MOST = 4
"""Modules that name an option, its declaration among them, beside those that measure by it."""
MEASURES = {"harness/running/runner.py", "harness/running/session.py"}


def test_an_option_of_runs_is_named_in_few_modules() -> None:
    shared = {"batch_size", *ModelConfiguration.model_fields}  # with commands that make no run
    options = set(RunConfig.panels["How it is measured"]) - shared
    assert options
    named = {option: {"harness/config/run.py"} for option in options}
    for path in sorted(file for part in ("harness", "reports") for file in (ROOT / part).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "manifest" in text or any(name in text for name in ("RunConfig", "running.plan")):
            for option in options.intersection(_asked(ast.parse(text))):
                named[option] |= {path.relative_to(ROOT).as_posix()} - MEASURES
    assert not {option: sorted(modules) for option, modules in named.items() if len(modules) > MOST}


def _asked(tree: ast.Module) -> Iterator[str]:
    """Yield what is asked of a configuration: ``config.NAME``, ``config["NAME"]`` or ``config.get("NAME")``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_configuration(node.value):
            yield node.attr
        elif isinstance(node, ast.Subscript) and _is_configuration(node.value) and isinstance(node.slice, ast.Constant):
            yield str(node.slice.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_configuration(node.func.value):
            yield from (str(given.value) for given in node.args[:1] if isinstance(given, ast.Constant))


def _is_configuration(node: ast.expr) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name in ("config", "settings")
