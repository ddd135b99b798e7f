"""``harness train NAME``: everything that is registered as a recipe, third-party packages included."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import typer

from harness.commands.console import log_to, say, stderr, write
from harness.commands.lazy import LazyGroup
from harness.errors import RegistryError
from harness.registry import RECIPES


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
        from harness.commands.options import flag

        fields = RECIPES.load(name).model_fields
        needed = [(flag(field, of), field) for field, of in fields.items() if of.is_required()]
        return shlex.join(["harness", "train", name, *chain.from_iterable(needed)])


def _command(name: str) -> Callable[..., None]:
    """Return the command of a recipe: its options as flags, its docstring as help."""
    from harness.commands.options import configure, configured_by
    from harness.commands.progress import TrainingProgress
    from harness.config.model import Configuration
    from harness.contracts.recipes import TrainingRun

    recipe = RECIPES.load(name)
    if not (isinstance(recipe, type) and issubclass(recipe, Configuration) and hasattr(recipe, "train")):
        raise RegistryError(
            f"recipe '{name}' is not a configuration with a train method: subclass "
            "harness.training.options.TrainingOptions and add one."
        )

    def train(given: dict[str, Any]) -> None:
        options: Any = configure(recipe, given)
        console = stderr()
        log_to(console)
        with TrainingProgress(console) as progress:
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
