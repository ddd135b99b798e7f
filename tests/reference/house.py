"""``python -m tests.reference.house FOLDER …``: count what the house is made of, a column for each checkout."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PRODUCT = ("harness", "strategies", "tasks", "reports")
COUNTERS = (
    "cheap_head_bytes",
    "exit_checks",
    "lm_head_evaluations",
    "verifications",
    "layers_discarded",
    "kv_fill_layers",
)
"""Of a generation; how many product files name each is what a new one costs."""
OPTIONS = ("graphs", "draft_max", "kv_input")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Module:
    """A file of Python and what its text is."""

    path: str
    source: str
    tree: ast.Module = field(init=False)
    docstrings: set[int] = field(default_factory=set)
    comments: set[int] = field(default_factory=set)
    code: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.tree = ast.parse(self.source)
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Module | ast.ClassDef | Function):
                self._docstrings_of(node)
        skipped = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
        lines = iter(self.source.splitlines(keepends=True))
        for token in tokenize.generate_tokens(lambda: next(lines, "")):
            span = range(token.start[0], token.end[0] + 1)
            if token.type == tokenize.COMMENT:
                self.comments.update(span)
            elif token.type not in skipped:
                self.code.update(line for line in span if line not in self.docstrings)
        self.comments -= self.code

    def _docstrings_of(self, node: ast.Module | ast.ClassDef | Function) -> None:
        """Those of modules, classes and functions, and the strings below assignments that document them."""
        for statement in node.body:
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                self.docstrings.update(range(statement.lineno, (statement.end_lineno or 0) + 1))

    @property
    def lines(self) -> int:
        return len(self.source.splitlines())

    @property
    def name(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def module_docstring(self) -> int:
        first = self.tree.body[0] if self.tree.body else None
        return _span(first) if first is not None and ast.get_docstring(self.tree) is not None else 0

    def functions(self) -> Iterator[Function]:
        yield from (node for node in ast.walk(self.tree) if isinstance(node, Function))


def count(folder: Path) -> dict[str, str]:
    """Return what is counted → its number, as text."""
    tracked = subprocess.run(["git", "ls-files"], cwd=folder, capture_output=True, text=True, check=True)
    files = tracked.stdout.splitlines()
    modules = [
        Module(file, (folder / file).read_text(encoding="utf-8"))
        for file in files
        if file.endswith(".py") and file.split("/")[0] in PRODUCT
    ]
    lines = [module.lines for module in modules]
    functions = [function for module in modules for function in module.functions()]
    lengths = sorted(map(_span, functions))
    imports, exported = _imports(modules), _exported(modules)
    one_caller = _one_caller(modules)
    one_importer = _one_importer(modules, (folder / "pyproject.toml").read_text())
    tests = [(folder / file).read_text() for file in files if file.startswith("tests/") and file.endswith(".py")]
    tests_left = [file for file in files if file.startswith("tests/") and file.endswith(".py")]
    scaffold = [file.startswith("tests/reference/") for file in tests_left]
    prose = [file for file in files if file.endswith(".md") and (file.startswith("docs/") or "/" not in file)]
    changelog = folder / "CHANGELOG.md"
    top = sum(isinstance(node, Function) for module in modules for node in module.tree.body)
    own = sum(_own_imports_inside(module) for module in modules)
    found = {
        "product files": len(modules),
        "product lines": sum(lines),
        "  harness": sum(module.lines for module in modules if module.path.startswith("harness/")),
        "  reports": sum(module.lines for module in modules if module.path.startswith("reports/")),
        "  strategies, tasks": sum(module.lines for module in modules if module.path.startswith(("strat", "tasks/"))),
        "code lines": sum(len(module.code) for module in modules),
        "docstring lines": sum(len(module.docstrings) for module in modules),
        "  of modules": sum(module.module_docstring for module in modules),
        "comment-only lines": sum(len(module.comments) for module in modules),
        "import lines": imports,
        "__all__ lines": exported,
        "lines per file, mean / median": f"{statistics.mean(lines):.0f} / {statistics.median(lines):.0f}",
        "modules < 40 / < 60 / < 80 lines": " / ".join(
            str(sum(line < most for line in lines)) for most in (40, 60, 80)
        ),
        "modules of 150 to 500 lines": sum(150 <= line <= 500 for line in lines),
        "functions and methods / classes": f"{len(functions)} / {_classes(modules)}",
        "function length, mean / median / > 50": (
            f"{statistics.mean(lengths):.1f} / {statistics.median(lengths):.0f} / {sum(each > 50 for each in lengths)}"
        ),
        "module-level functions": top,
        "  with exactly one caller / their lines": f"{len(one_caller)} / {sum(map(_span, one_caller))}",
        "  of these ≤ 5 lines": sum(_span(function) <= 5 for function in one_caller),
        "modules with one importer / lines": f"{len(one_importer)} / {sum(module.lines for module in one_importer)}",
        "own imports inside functions": own,
        "raise / except": f"{_nodes(modules, ast.Raise)} / {_nodes(modules, ast.ExceptHandler)}",
        'docstrings that begin with "What"': sum(_docstring(node).startswith("What ") for node in _documented(modules)),
        "names ending in _said": sum(function.name.endswith("_said") for function in functions),
        "tests: files / lines": _of_tests(tests, scaffold),
        "docs, README, CONTRIBUTING: words": sum(
            len((folder / file).read_text().split()) for file in prose if file != "CHANGELOG.md"
        ),
        "CHANGELOG bytes": changelog.stat().st_size if changelog.exists() else 0,
    }
    for name in (*COUNTERS, *OPTIONS):
        found[f"product files that name {name}"] = sum(
            bool(re.search(rf"\b{name}\b", module.source)) for module in modules
        )
    return {name: str(value) for name, value in found.items()}


def _of_tests(sources: list[str], scaffold: list[bool]) -> str:
    kept = [len(source.splitlines()) for source, left_out in zip(sources, scaffold, strict=True) if not left_out]
    return f"{len(kept)} / {sum(kept)}"


def _span(node: ast.AST) -> int:
    return int(getattr(node, "end_lineno", 0)) - int(getattr(node, "lineno", 0)) + 1


def _nodes(modules: list[Module], kind: type[ast.AST]) -> int:
    return sum(isinstance(node, kind) for module in modules for node in ast.walk(module.tree))


def _classes(modules: list[Module]) -> int:
    return _nodes(modules, ast.ClassDef)


def _documented(modules: list[Module]) -> Iterator[ast.Module | ast.ClassDef | Function]:
    for module in modules:
        yield from (node for node in ast.walk(module.tree) if isinstance(node, ast.Module | ast.ClassDef | Function))


def _docstring(node: ast.Module | ast.ClassDef | Function) -> str:
    return ast.get_docstring(node) or ""


def _imports(modules: list[Module]) -> int:
    kinds = ast.Import | ast.ImportFrom
    return sum(_span(node) for module in modules for node in ast.walk(module.tree) if isinstance(node, kinds))


def _exported(modules: list[Module]) -> int:
    return sum(
        _span(node)
        for module in modules
        for node in module.tree.body
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == "__all__" for to in node.targets)
    )


def _one_caller(modules: list[Module]) -> list[Function]:
    """Module-level functions that exactly one other function, class or module body of the product names.

    A name that is imported elsewhere counts where it is used; a decorated function has callers that nobody can see and
    is left out, as is what is imported under another name.
    """
    defined = {
        (module.name, node.name): node
        for module in modules
        for node in module.tree.body
        if isinstance(node, Function) and not node.decorator_list
    }
    users: defaultdict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
    for module in modules:
        origin = {name: (module.name, name) for of, name in defined if of == module.name}
        packages: dict[str, str] = {}
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    origin[alias.asname or alias.name] = (node.module, alias.name)
                    packages[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        for owner, body in _owners(module):
            for node in ast.walk(body):
                key = None
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                    key = origin.get(node.id)
                elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    key = (packages.get(node.value.id, ""), node.attr)
                if key in defined and key != (module.name, owner):
                    users[key].add((module.name, owner))
    return [node for key, node in defined.items() if len(users[key]) == 1]


def _owners(module: Module) -> Iterator[tuple[str, ast.AST]]:
    """Each function of the module, a class's methods one by one, and each other statement."""
    for node in module.tree.body:
        if isinstance(node, ast.ClassDef):
            for below in node.body:
                yield f"{node.name}.{getattr(below, 'name', '')}", below
        elif not isinstance(node, ast.Import | ast.ImportFrom):
            yield getattr(node, "name", "<module>"), node


def _one_importer(modules: list[Module], project: str) -> list[Module]:
    """Modules that exactly one other of the product imports and that no entry point names; packages' files left out."""
    names = {module.name for module in modules}
    importers: defaultdict[str, set[str]] = defaultdict(set)
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                wanted = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                wanted = {alias.name for alias in node.names}
            else:
                continue
            for name in wanted & names - {module.name}:
                importers[name].add(module.name)
    pointed = set(re.findall(r'"([\w.]+):\w+"', project)) | set(re.findall(r'= "([\w.]+)"', project))
    files = [module for module in modules if not module.path.endswith("__init__.py")]
    return [module for module in files if len(importers[module.name]) == 1 and module.name not in pointed]


def _own_imports_inside(module: Module) -> int:
    found = Counter(
        id(node)
        for function in module.functions()
        for node in ast.walk(function)
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PRODUCT)
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] in PRODUCT for alias in node.names))
    )
    return len(found)


def main() -> None:
    """Print the table."""
    folders = [Path(argument) for argument in sys.argv[1:]] or [Path()]
    columns = [count(folder) for folder in folders]
    commits = [
        subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        for folder in folders
    ]
    rows = [("", *(commit.stdout.strip() for commit in commits))]
    rows += [(name, *(column[name] for column in columns)) for name in columns[0]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = (f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
        print(f"{first:<{widths[0]}}  {'  '.join(cells)}")


if __name__ == "__main__":
    main()
