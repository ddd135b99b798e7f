"""The house stands: imports point down, and what must start at once loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("harness", "strategies", "tasks", "reports")

FLOORS: dict[str, int] = {
    "harness.cli": 5,
    "harness.commands": 5,
    "harness.repeat_process": 5,
    "harness.progress": 5,
    "harness.pytest_plugin": 5,
    "harness.reproduction": 5,
    "harness.runner": 4,
    "harness.plan": 4,
    "harness.operating_points": 4,
    "harness.repeats": 4,
    "harness.settings": 4,
    "harness.interpreter": 0,
    "harness.arrivals": 4,
    "harness.completions": 4,
    "harness.session": 4,
    "harness.windows": 4,
    "harness.scoring": 4,
    "harness.reading": 4,
    "harness.submission": 4,
    "harness.packed_run": 2,
    "harness.manifest": 4,
    "harness.doctor": 4,
    "harness.sweep": 4,
    "harness.serving": 4,
    "harness.training": 4,
    "strategies": 3,
    "tasks": 3,
    "reports": 3,
    "harness.decoding": 2,
    "harness.models": 2,
    "harness.metering": 2,
    "harness.store": 2,
    "harness.same_run": 2,
    "harness.record_files": 2,
    "harness.hub": 2,
    "harness.environment": 2,
    "harness.processor": 2,
    "harness.options": 2,
    "harness.artefacts": 2,
    "harness.controllers": 2,
    "harness.contracts": 1,
    "harness.records": 1,
    "harness.record": 0,
    "harness.cost_records": 1,
    "harness.summary": 1,
    "harness.calibration_records": 1,
    "harness.loss_weights": 1,
    "harness.machine": 1,
    "harness.config": 1,
    "harness.configuration": 1,
    "harness.errors": 0,
    "harness.registry": 0,
}
"""Room → floor, as in DESIGN.md. A room is a module or a package."""

FRONT_DOOR = "harness"  # its __init__ shows what a library caller needs; imported by nobody inside

SIDEWAYS = {
    ("harness.models", "harness.decoding"),
    ("harness.store", "harness.same_run"),
    ("harness.store", "harness.record_files"),
    ("harness.models", "harness.hub"),
    ("harness.models", "harness.artefacts"),
    ("harness.controllers", "harness.artefacts"),
}
"""On floors 2 and 3 a room may not look into its neighbours, but for these: (importer, imported)."""

ORCHESTRATION = [room for room, floor in FLOORS.items() if floor == 4]


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


def room(module: str) -> str | None:
    parts = module.split(".")
    return next((head for n in range(len(parts), 0, -1) if (head := ".".join(parts[:n])) in FLOORS), None)


def is_ours(module: str) -> bool:
    return module.partition(".")[0] in PACKAGES


def test_every_module_lives_on_a_floor() -> None:
    homeless = [name for name in modules() if name != FRONT_DOOR and room(name) is None]
    assert not homeless, (
        f"{homeless} belong to no floor. Decide where they live (DESIGN.md, 'The house') and add the room to FLOORS in "
        "tests/test_floors.py."
    )


@pytest.mark.parametrize("name", [name for name in modules() if name != FRONT_DOOR])
def test_imports_point_down(name: str) -> None:
    here = room(name)
    assert here is not None, "see test_every_module_lives_on_a_floor"
    for target in imports(name, modules()[name]):
        if not is_ours(target):
            continue
        there = room(target)
        assert there is not None, f"{name} imports {target}: the package's front door is for callers outside"
        if here == there:
            continue
        assert FLOORS[there] <= FLOORS[here], (
            f"{name} (floor {FLOORS[here]}) imports {target} (floor {FLOORS[there]}): imports point down. "
            "Move the type that both need to a lower floor."
        )
        if FLOORS[there] == FLOORS[here] and FLOORS[here] in (2, 3):
            assert (here, there) in SIDEWAYS, f"{name} looks into its neighbour {target} on floor {FLOORS[here]}."


def test_no_import_cycles() -> None:
    """Not even cycles that a function-local import hides."""
    known = modules()
    graph = {
        name: {target for target in imports(name, path, at_run_time=True) if target in known} - {name}
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


@pytest.mark.parametrize("name", [name for name in modules() if name.split(".")[0] == "reports"])
def test_reports_know_no_tensors(name: str) -> None:
    heavy = {"torch", "transformers", "tokenizers"}
    assert not {target.split(".")[0] for target in imports(name, modules()[name])} & heavy


@pytest.mark.parametrize("name", [name for name in modules() if room(name) in ORCHESTRATION])
def test_orchestration_names_nothing_concrete(name: str) -> None:
    names = {
        point.name for kind in ("strategies", "tasks", "models") for point in entry_points(group=f"harness.{kind}")
    } - {"random", "full", "entropy"}  # a value of --weights, one of --method, and a column of traces as well
    assert {"confidence", "py150", "smollm2-135m"} <= names
    literals = {
        node.value
        for node in ast.walk(tree(modules()[name]))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert not literals & names


def loaded_by(code: str) -> set[str]:
    """Names of the modules a fresh interpreter has loaded after some code."""
    probe = f"import sys\n{code}\nprint('\\n'.join(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split("\n"))


def test_importing_strategies_loads_no_orchestration() -> None:
    names = [name for name in modules() if name.split(".")[0] == "strategies"]
    loaded = loaded_by(f"import {', '.join(names)}")
    assert set(names) <= loaded
    heavy = {"pandas", "transformers", "datasets", "fastapi", "uvicorn", *ORCHESTRATION}
    assert not loaded & heavy


def test_importing_reports_loads_no_torch() -> None:
    names = [name for name in modules() if name.split(".")[0] == "reports"]
    assert not loaded_by(f"import {', '.join(names)}") & {"torch", "transformers", "pandas"}


def test_importing_the_package_is_cheap() -> None:
    loaded = loaded_by("import harness")
    assert not loaded & {"torch", "pandas", "pydantic", "rich", "typer"}
    assert "torch" not in loaded_by("from harness import RunConfig; RunConfig()")


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["serve", "--help"], ["list"], ["list", "strategies"], ["list", "models"]],
)
def test_help_and_list_load_no_torch(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "harness.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "harness.errors" in loaded
    assert not {name.split(".")[0] for name in loaded} & {
        "torch",
        "transformers",
        "numpy",
        "pandas",
        "datasets",
        "zeus",
        "fastapi",
        "starlette",
        "uvicorn",
        "prometheus_client",
        "asyncio",
    }
    assert "Usage" in done.stdout or "what it is" in done.stdout
