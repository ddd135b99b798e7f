"""``harness trace`` and ``train NAME``: what exits are learned from, and every registered recipe."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import typer

from harness.commands.console import log_to, say, show_progress, stderr, write
from harness.commands.lazy import LazyGroup
from harness.commands.options import configured_by, flag, use_threads
from harness.config.model import Configuration
from harness.errors import ConfigError, RegistryError
from harness.host.files import require_writable
from harness.registry import RECIPES
from harness.training.options import TraceCommand


@configured_by(TraceCommand)
def trace(options: TraceCommand) -> None:
    """Run a model once at full depth and keep what its exits said, for everything that learns from it."""
    from harness.contracts.recipes import Silent
    from harness.training.processes import is_main
    from harness.training.traces.record_trace import trace as record

    if is_main():
        require_writable(options.folder, ConfigError)
    use_threads(options.threads)
    with show_progress() as progress:
        try:
            traces = record(options, progress if is_main() else Silent())
        except KeyboardInterrupt:
            say(f"Stopped; finished shards are kept. Go on with the same command and --resume. ({options.folder})")
            raise
    if is_main():
        say(f"{traces.tokens} tokens of {len(traces.documents)} documents are in {options.folder}")


class Recipes(LazyGroup):
    """Train what early exits need: exit-capable weights, exit heads, classifiers, RL agents."""

    def names(self) -> Sequence[str]:
        """Every registered recipe."""
        return RECIPES.names()

    def summary(self, name: str) -> str:
        """The trained artefact."""
        return RECIPES.entry(name).summary

    def load(self, name: str) -> Callable[..., Any]:
        """Its command."""
        return _command(name)

    def example(self, name: str) -> str:
        """Exactly the inputs it needs."""
        fields = RECIPES.load(name).model_fields
        needed = [(flag(field, of), field) for field, of in fields.items() if of.is_required()]
        return shlex.join(["harness", "train", name, *chain.from_iterable(needed)])


def _command(name: str) -> Callable[..., None]:
    """Return the command of a recipe: its options as flags, its docstring as help."""
    from harness.contracts.recipes import TrainingRun

    recipe = RECIPES.load(name)
    if not (isinstance(recipe, type) and issubclass(recipe, Configuration) and hasattr(recipe, "train")):
        raise RegistryError(
            f"recipe '{name}' is not a configuration with a train method: subclass "
            "harness.training.options.TrainingOptions and add one."
        )

    def train(options: Any) -> None:
        from harness.training.processes import is_main

        log_to(stderr())
        if is_main() and (folder := getattr(options, "folder", None)) is not None:
            require_writable(folder, ConfigError)
        with show_progress() as progress:
            trained = options.train(TrainingRun(name, shlex.join(["harness", *sys.argv[1:]]), progress))
        if not trained.finished:
            say(f"Stopped; the checkpoint is kept. Go on with the same command and --resume. ({options.folder})")
            raise typer.Exit(130)
        if trained.report:
            write(trained.report)
        if trained.note:
            say(trained.note)

    train.__doc__ = recipe.__doc__
    return configured_by(recipe)(train)
