"""The house stands: imports point down, and what must start at once loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("harness", "strategies", "tasks", "reports")

HOUSE = (
    *("harness.errors", "harness.registry"),
    *("harness.contracts", "harness.host", "harness.appearance", "harness.records", "harness.config"),
    *("harness.decoding", "harness.models", "harness.metering", "harness.store"),
    *("strategies", "tasks", "reports"),
    *("harness.training", "harness.running", "harness.replay"),
    *("harness.doctor", "harness.verifying", "harness.serving", "harness.study", "harness.api", "harness.lm_eval"),
    *("harness.commands", "harness.cli", "harness.__main__"),
)
"""Every room, from the ground up, a line per floor; a room imports only from rooms named before it."""

SIBLINGS = {"strategies", "tasks", "reports"}  # never import each other
LEAVES = set(HOUSE[HOUSE.index("harness.doctor") : HOUSE.index("harness.commands")])
"""Only commands import them."""
FRONT_DOOR = "harness"  # its __init__ shows what a library caller needs; imported by nobody inside


@cache
def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(name: str, path: Path, *, at_run_time: bool = False) -> set[str]:
    """Names of everything a module imports, wherever the statement stands; ours as modules."""
    known = modules()
    found: set[str] = set()
    for node in _nodes(tree(path), at_run_time):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name if path.name == "__init__.py" else name.rpartition(".")[0]
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            inside = {f"{base}.{alias.name}" for alias in node.names}
            found |= (inside & known.keys()) or {base}
            if not inside <= known.keys():
                found.add(base)
    return found


def _nodes(node: ast.AST, at_run_time: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if at_run_time and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from _nodes(child, at_run_time)


def room(module: str) -> str:
    return ".".join(module.split(".")[: 2 if module.startswith("harness.") else 1])


def test_imports_point_down() -> None:
    wrong = []
    for name, path in modules().items():
        here = room(name)
        if name == FRONT_DOOR:
            continue
        if here not in HOUSE:
            wrong.append(f"{name} has no place in the house: see DESIGN.md, and add the room to HOUSE.")
            continue
        rooms = {room(target) for target in imports(name, path) if target.split(".")[0] in PACKAGES}
        for there in sorted(rooms - {here}):
            if there not in HOUSE[: HOUSE.index(here)]:
                wrong.append(f"{name} imports {there}, which stands above it: move what both need to a lower room.")
            elif {here, there} <= SIBLINGS:
                wrong.append(f"{name} looks into its neighbour {there}.")
            elif there in LEAVES and here != "harness.commands":
                wrong.append(f"{name} imports {there}, which is for its command only.")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", ["", "harness.decoding"])
def test_no_import_cycles(package: str) -> None:
    """Not even cycles that a function-local import hides; nor, in the engine, those of types alone."""
    known = {name: path for name, path in modules().items() if name.startswith(package)}
    graph = {
        name: {target for target in imports(name, path, at_run_time=not package) if target in known} - {name}
        for name, path in known.items()
        if name != FRONT_DOOR
    }
    for name, targets in graph.items():  # a package re-exports its modules: that is no cycle
        if known[name].name == "__init__.py":
            graph[name] = {target for target in targets if not target.startswith(f"{name}.")}
    assert list(TopologicalSorter(graph).static_order())


def test_the_front_door_opens_nothing_at_import() -> None:
    top_level = [node for node in tree(ROOT / "harness" / "__init__.py").body if isinstance(node, ast.ImportFrom)]
    assert {node.module for node in top_level} <= {"__future__", "typing"}


def test_serving_knows_no_reports() -> None:
    rooms = {name: path for name, path in modules().items() if room(name) == "harness.serving"}
    assert not [name for name, path in rooms.items() if "reports" in {room(target) for target in imports(name, path)}]


def loaded_by(code: str) -> set[str]:
    """Names of the modules a fresh interpreter has loaded after some code."""
    probe = f"import sys\n{code}\nprint('\\n'.join(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split("\n"))


def test_reports_and_what_reads_runs_load_no_torch() -> None:
    names = [name for name in modules() if name.split(".")[0] == "reports"]
    heavy = {"torch", "transformers", "tokenizers"}  # nowhere, inside of functions neither
    assert not [name for name in names if {target.split(".")[0] for target in imports(name, modules()[name])} & heavy]
    code = f"import {', '.join(names)}\nassert 'pandas' not in sys.modules"
    assert not loaded_by(f"{code}\nimport harness.running.reading, harness.running.repeats") & {"torch", "transformers"}


def test_importing_the_package_is_cheap() -> None:
    loaded = loaded_by("import harness")
    assert not loaded & {"torch", "pandas", "pydantic", "rich", "typer"}
    assert "torch" not in loaded_by("from harness import RunConfig; RunConfig()")


def test_help_and_list_load_no_torch() -> None:
    shown = [["--help"], ["run", "--help"], ["serve", "--help"], ["sweep", "--help"], ["train", "lite", "--help"]]
    code = f"""
import contextlib, io
from harness.cli import main
for words in {[*shown, ["list"]]}:
    sys.argv, said = ["harness", *words], io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main()
    assert "Usage" in said.getvalue() or "what it is" in said.getvalue(), words
"""
    loaded = loaded_by(code)
    assert "harness.errors" in loaded
    slow = "torch transformers numpy pandas datasets zeus fastapi starlette uvicorn prometheus_client asyncio"
    assert not {name.split(".")[0] for name in loaded} & set(slow.split())
