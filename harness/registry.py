"""Typed, lazy names over entry points.

Built-ins and third parties register in the same way: a distribution declares an entry point in
one of the groups below and the name appears in ``harness list``. Listing never imports the
registered module (a strategy imports torch, and ``harness list`` must stay instant): the one-line
summary is read from the source text.
"""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from harness.errors import RegistryError, UnknownNameError

__all__ = [
    "DRAFTS",
    "EXECUTORS",
    "FAMILIES",
    "HEADS",
    "KV_POLICIES",
    "METERS",
    "METRICS",
    "MODELS",
    "PROTOCOLS",
    "RECIPES",
    "REGISTRIES",
    "SCORES",
    "STOPS",
    "STRATEGIES",
    "TASKS",
    "WEIGHTS_FORMATS",
    "Entry",
    "Registry",
    "summary",
]

OWN_DISTRIBUTION = "early-exit-harness"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered name.

    Attributes:
        name: what the user types.
        target: ``module:attribute`` that holds the object.
        distribution: the installed package that declared it. version: of that package.
        summary: first line of the object's docstring, read without importing it; may be empty.
    """

    name: str
    target: str
    distribution: str
    version: str
    summary: str

    @property
    def is_plugin(self) -> bool:
        """Whether another project than this one declared it."""
        return self.distribution != OWN_DISTRIBUTION


class Registry(Generic[T]):
    """Lazy name → object for one entry-point group.

    Args:
        group: entry-point group, for example ``harness.strategies``.
        noun: what an entry is called in messages, for example ``strategy``.
    """

    def __init__(self, group: str, noun: str) -> None:
        self.group = group
        self.noun = noun

    @cached_property
    def _points(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group):
            other = found.get(point.name)
            if other is not None and other.value != point.value:
                raise RegistryError(
                    f"two packages register the {self.noun} '{point.name}': "
                    f"{_distribution(other)} ({other.value}) and {_distribution(point)} ({point.value}). "
                    "Uninstall one of them."
                )
            found[point.name] = point
        if not found:
            raise RegistryError(
                f"no entry points in group '{self.group}': the package is not installed. "
                "Run `pip install -e .` in the project folder."
            )
        return found

    def names(self) -> tuple[str, ...]:
        """Return every registered name, sorted."""
        return tuple(sorted(self._points))

    def __contains__(self, name: object) -> bool:
        return name in self._points

    def entries(self) -> tuple[Entry, ...]:
        """Return what is registered, sorted by name, without importing any of it."""
        return tuple(self.entry(name) for name in self.names())

    @cached_property
    def has_plugins(self) -> bool:
        """Whether another project than this one registers a name."""
        return any(_distribution(point) != OWN_DISTRIBUTION for point in self._points.values())

    def entry(self, name: str) -> Entry:
        """Return one entry without importing its object.

        Raises:
            UnknownNameError: the name is not registered.
        """
        point = self._point(name)
        version = point.dist.version if point.dist is not None else ""
        return Entry(name, point.value, _distribution(point), version, summary(point))

    def load(self, name: str) -> T:
        """Import and return the registered object.

        Raises:
            UnknownNameError: the name is not registered.
            RegistryError: its module cannot be imported.
        """
        point = self._point(name)
        try:
            return cast("T", point.load())
        except Exception as error:  # the module is anybody's code
            if _distribution(point) == OWN_DISTRIBUTION and not isinstance(error, ImportError | AttributeError):
                raise
            raise RegistryError(
                f"the {self.noun} '{name}' of {_distribution(point)} cannot be imported ({point.value}): "
                f"{type(error).__name__}: {error}"
            ) from error

    def _point(self, name: str) -> EntryPoint:
        try:
            return self._points[name]
        except KeyError:
            raise UnknownNameError(self.noun, name, self._points) from None


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "unknown distribution"


def summary(point: EntryPoint) -> str:
    """Return the first docstring line of ``module:attribute``, from the source text; empty where there is none.

    A class or function brings its own docstring; a module-level constant is described by the ``meaning`` it is made
    with, or by the string literal that follows its assignment.
    """
    try:
        spec = importlib.util.find_spec(point.module)
    except (ImportError, ValueError):
        return ""
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return ""
    try:
        body = ast.parse(Path(spec.origin).read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return ""
    for index, node in enumerate(body):
        text: str | None = None
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == point.attr:
            text = ast.get_docstring(node)
        elif _assigns(node, point.attr):
            text = _meaning(node) or (_literal(body[index + 1]) if index + 1 < len(body) else None)
        if text:
            return text.strip().splitlines()[0]
    return ""


def _assigns(node: ast.stmt, name: str) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def _meaning(node: ast.stmt) -> str | None:
    call = getattr(node, "value", None)
    keywords = call.keywords if isinstance(call, ast.Call) else []
    found = (word.value.value for word in keywords if word.arg == "meaning" and isinstance(word.value, ast.Constant))
    return next((text for text in found if isinstance(text, str)), None)


def _literal(node: ast.stmt) -> str | None:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return node.value.value
    return None


STRATEGIES: Registry[Any] = Registry("harness.strategies", "strategy")
RECIPES: Registry[Any] = Registry("harness.recipes", "recipe")
TASKS: Registry[Any] = Registry("harness.tasks", "task")
PROTOCOLS: Registry[Any] = Registry("harness.protocols", "protocol")
SCORES: Registry[Any] = Registry("harness.scores", "score")
MODELS: Registry[Any] = Registry("harness.models", "model")
METERS: Registry[Any] = Registry("harness.meters", "meter")
METRICS: Registry[Any] = Registry("harness.metrics", "metric")
KV_POLICIES: Registry[Any] = Registry("harness.kv", "KV policy")
HEADS: Registry[Any] = Registry("harness.heads", "head")
DRAFTS: Registry[Any] = Registry("harness.drafts", "draft source")
STOPS: Registry[Any] = Registry("harness.stops", "stop rule")
FAMILIES: Registry[Any] = Registry("harness.families", "model family")
WEIGHTS_FORMATS: Registry[Any] = Registry("harness.weights_formats", "weights format")
EXECUTORS: Registry[Any] = Registry("harness.executors", "executor")

REGISTRIES: dict[str, Registry[Any]] = {
    registry.group.removeprefix("harness."): registry
    for registry in (
        *(STRATEGIES, RECIPES, KV_POLICIES, WEIGHTS_FORMATS, HEADS, DRAFTS, STOPS, TASKS, PROTOCOLS, SCORES, METRICS),
        MODELS,
        FAMILIES,
        METERS,
        EXECUTORS,
    )
}
"""Everything that can be registered, by its plural."""
