"""Typed, lazy names over entry points: built-ins and third parties register in the same way.

Listing never imports what is registered, for a strategy imports torch: its summary is read from the source text.
"""

from __future__ import annotations

import ast
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import Distribution, EntryPoint, EntryPoints, entry_points
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar, cast

from harness.errors import RegistryError, UnknownNameError, is_out_of_memory, reason

logger = logging.getLogger(__name__)

OWN_DISTRIBUTION = "early-exit-harness"
OWN_PACKAGES = ("harness", "reports", "strategies", "tasks")

_PLUGIN_REMEDY = "Mend that package, or uninstall it."

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered name, its ``module:attribute``, the package that declared it, and its docstring's first line."""

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
        kind: what is registered, in words.
        members: what that has, so that anything else is refused when it is loaded.

    Attributes:
        left_out: name → why a plug-in's entry that nobody asked for cannot be used, as found so far.
    """

    def __init__(self, group: str, noun: str, kind: str = "", members: tuple[str, ...] = ()) -> None:
        self.group = group
        self.noun = noun
        self._kind, self._members = kind, members
        self.left_out: dict[str, str] = {}

    @cached_property
    def _points(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for point in _declared(self.group):
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

    def plugin(self, name: str) -> str:
        """Return the other project's package that registered a name; empty for this one's."""
        distribution = _distribution(self._point(name))
        return "" if distribution == OWN_DISTRIBUTION else distribution

    def entry(self, name: str) -> Entry:
        """Return one entry without importing its object."""
        point = self._point(name)
        version = point.dist.version if point.dist is not None else ""
        return Entry(name, point.value, _distribution(point), version, summary(point))

    def load(self, name: str) -> T:
        """Import and return the registered object.

        Raises:
            UnknownNameError: the name is not registered.
            RegistryError: its module cannot be imported, or what is there is of another kind.
        """
        point = self._point(name)
        which = f"the {self.noun} '{name}' of {_distribution(point)}"
        try:
            with without_exit(), keeping_folder(f"{which} was imported"):
                found = point.load()
        except Exception as error:  # the module is anybody's code
            if not self.plugin(name) and not isinstance(error, ImportError | AttributeError):
                raise
            raise RegistryError(
                f"{which} cannot be imported ({point.value}): {type(error).__name__}: {error}. {_PLUGIN_REMEDY}"
            ) from error
        if not all(hasattr(found, member) for member in self._members):
            raise RegistryError(f"{which} ({point.value}) is not {self._kind}. {_PLUGIN_REMEDY}")
        return cast("T", found)

    def usable(self) -> dict[str, T]:
        """Load every entry, by name, but for those of plug-ins that cannot be loaded (:meth:`leaving_out`)."""
        found: dict[str, T] = {}
        for name in self.names():
            with self.leaving_out(name):
                found[name] = self.load(name)
        return found

    @contextmanager
    def leaving_out(self, name: str) -> Iterator[None]:
        """Use an entry that nobody asked for: where a plug-in's fails, warn of it, once, and go on without."""
        try:
            with without_exit():
                yield
        except Exception as error:  # a plug-in's may raise anything
            package = self.plugin(name)
            if not package:
                raise
            why = reason(error)
            if not isinstance(error, RegistryError):
                why = f"the {self.noun} '{name}' of {package} fails: {why}"
            if self.left_out.get(name) != why:
                self.left_out[name] = why
                logger.warning("%s. It is left out: mend or uninstall that package", why)

    def _point(self, name: str) -> EntryPoint:
        try:
            return self._points[name]
        except KeyError:
            raise UnknownNameError(self.noun, name, self._points) from None


def _declared(group: str) -> EntryPoints:
    found: EntryPoints = _installed(tuple(sys.path)).select(group=group)
    return found


@lru_cache(maxsize=1)
def _installed(path: tuple[str, ...]) -> Any:  # of another class in Python 3.11
    """Return all that is declared on a search path: each look goes through everything that is installed."""
    return entry_points()


def _distribution(point: EntryPoint) -> str:
    return _name_of(point.dist) if point.dist is not None else "unknown distribution"


@lru_cache(maxsize=256)
def _name_of(distribution: Distribution) -> str:
    return distribution.name  # which parses all of its metadata each time


def summary(point: EntryPoint) -> str:
    """Return the first docstring line of ``module:attribute``, from the source text; empty where there is none.

    A class or function brings its own docstring; a module-level constant is described by the ``meaning`` it is made
    with, its third argument, or by the string literal that follows its assignment.
    """
    try:
        with without_exit():
            spec = importlib.util.find_spec(point.module)  # of a module in a package it imports that, anybody's code
        body = ast.parse(Path(spec.origin or "").read_bytes()).body if spec is not None else []
    except Exception:
        return ""
    for node, behind in zip(body, [*body[1:], None], strict=True):
        texts: list[Any] = []
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == point.attr:
            texts = [ast.get_docstring(node)]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if isinstance(targets[0], ast.Tuple) and isinstance(behind, ast.Expr):  # a line behind it for each name
                names = [getattr(target, "id", "") for target in targets[0].elts]
                if point.attr in names and isinstance(behind.value, ast.Constant):
                    return str(behind.value.value).strip().splitlines()[names.index(point.attr)].strip()
            if any(isinstance(target, ast.Name) and target.id == point.attr for target in targets):
                made = node.value if isinstance(node.value, ast.Call) else None
                values = [] if made is None else [*made.args[2:3]]
                values += [] if made is None else [word.value for word in made.keywords if word.arg == "meaning"]
                values += [behind.value] if isinstance(behind, ast.Expr) else []
                texts = [value.value for value in values if isinstance(value, ast.Constant)]
        if found := next((text for text in texts if text and isinstance(text, str)), ""):
            return found.strip().splitlines()[0]
    return ""


STRATEGIES: Registry[Any] = Registry("harness.strategies", "strategy")
RECIPES: Registry[Any] = Registry("harness.recipes", "recipe")
TASKS: Registry[Any] = Registry("harness.tasks", "task", "a class of tasks", members=("__call__",))
PROTOCOLS: Registry[Any] = Registry("harness.protocols", "protocol", "a class of protocols", members=("wants",))
SCORES: Registry[Any] = Registry(
    "harness.scores",
    "score",
    "a subclass of harness.contracts.Score that has a title",
    members=("__mro__", "judges_all", "title"),
)
MODELS: Registry[Any] = Registry("harness.models", "model")
METERS: Registry[Any] = Registry("harness.meters", "meter", "a class of meters", members=("__call__",))
METRICS: Registry[Any] = Registry(
    "harness.metrics", "metric", "a harness.contracts.Metric", members=("of_sample", "compute", "term", "parts")
)
KV_POLICIES: Registry[Any] = Registry(
    "harness.kv", "KV policy", "a subclass of harness.contracts.KVPolicy", members=("facts",)
)
HEADS: Registry[Any] = Registry(
    "harness.heads", "head", "a subclass of harness.contracts.CheapHead with facts", members=("facts",)
)
EXIT_MODULES: Registry[Any] = Registry(
    "harness.exit_modules", "exit module", "a subclass of harness.contracts.ExitModule with facts", members=("facts",)
)
DRAFTS: Registry[Any] = Registry("harness.drafts", "draft source", "a class of draft sources", members=("proposes",))
STOPS: Registry[Any] = Registry("harness.stops", "stop rule")
PROMPT_RULES: Registry[Any] = Registry("harness.prompts", "prompt rule")
FAMILIES: Registry[Any] = Registry("harness.families", "model family")
WEIGHTS_FORMATS: Registry[Any] = Registry(
    "harness.weights_formats", "weights format", "a class of weights formats with facts", members=("facts",)
)
EXECUTORS: Registry[Any] = Registry("harness.executors", "executor")

_ALL = (
    *(STRATEGIES, RECIPES, KV_POLICIES, WEIGHTS_FORMATS, HEADS, EXIT_MODULES, DRAFTS, STOPS, PROMPT_RULES, TASKS),
    *(PROTOCOLS, SCORES, METRICS, MODELS, FAMILIES, METERS, EXECUTORS),
)
REGISTRIES: dict[str, Registry[Any]] = {registry.group.removeprefix("harness."): registry for registry in _ALL}
"""Everything that can be registered, by its plural."""


def plugin_at_fault(error: BaseException) -> str:
    """Return whose code raised an error where that is a plug-in's: ``PACKAGE (the strategy 'NAME')``; else nothing.

    The outermost code of a plug-in's package decides: what it called, of a library or of this project, failed on what
    it was given. Where that does not say which of several it is, the package is named alone.
    """
    frames, at = [], error.__traceback__
    while at is not None:
        frames.append(at.tb_frame)
        at = at.tb_next
    points = _plugins()
    for frame in frames:
        package = _top(frame.f_globals.get("__name__"))
        if theirs := [pair for pair in points if _top(pair[1].module) == package]:
            made = {type(call.f_locals.get("self")).__name__ for call in frames}
            (noun, point), *others = [pair for pair in theirs if pair[1].attr in made] or theirs
            return _distribution(point) + ("" if others else f" (the {noun} '{point.name}')")
    return ""


def is_plugin(kind: type) -> bool:
    """Whether a class is of another project's code, installed or not."""
    return _top(kind.__module__) not in OWN_PACKAGES


def package_of(kind: type) -> str:
    """Return the installed package of another project that registers what a class's module has; empty for none."""
    top = _top(kind.__module__)
    return next((_distribution(point) for _, point in _plugins() if _top(point.module) == top), "")


def _plugins() -> list[tuple[str, EntryPoint]]:
    return [
        (registry.noun, point)
        for registry in REGISTRIES.values()
        for point in _declared(registry.group)
        if _distribution(point) != OWN_DISTRIBUTION
    ]


def _top(module: object) -> str:
    return str(module).partition(".")[0]


@contextmanager
def keeping_folder(what: str) -> Iterator[None]:
    """Run code that may be a plug-in's, and come back to the working folder, on which every relative path stands."""
    home = Path.cwd()
    try:
        yield
    finally:
        if (now := Path.cwd()) != home:
            os.chdir(home)
            logger.warning("the working folder was changed to %s while %s, and is %s again", now, what, home)


@contextmanager
def without_exit() -> Iterator[None]:
    """Run code that may be a plug-in's: an exit of the process, or whatever else is no ``Exception``, is its failure.

    An interrupt stays one.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as left:
        said = f"sys.exit({left.code!r}) was called" if isinstance(left, SystemExit) else repr(left)
        raise RuntimeError(said).with_traceback(left.__traceback__) from None


@contextmanager
def no_silent_end() -> Iterator[None]:
    """Run a command that no plug-in's ``os._exit`` ends: it becomes a ``sys.exit``, in this process.

    Not of code that ends the process past Python, or took the function before: a run without ``summary.json`` is
    unfinished, whatever its exit code.
    """
    leave, process = os._exit, os.getpid()

    def ask(status: int) -> NoReturn:
        caller = _top(sys._getframe(1).f_globals.get("__name__"))
        if os.getpid() == process and any(_top(point.module) == caller for _, point in _plugins()):
            raise SystemExit(status)
        leave(status)

    os._exit = ask
    try:
        yield
    finally:
        os._exit = leave


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, and not in a plug-in, which fails for whatever reason it fails."""
    return is_out_of_memory(error) and not plugin_at_fault(error)
