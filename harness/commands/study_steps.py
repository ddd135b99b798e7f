"""Refusals of a step's command line, found before a study begins."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import typer

from harness.calibrating.options import CalibrateOptions
from harness.commands.calibrate import calibrate
from harness.commands.lazy import as_command
from harness.commands.options import configure
from harness.commands.trace import trace
from harness.commands.training import Recipes
from harness.config.model import Configuration
from harness.errors import ConfigError
from harness.registry import RECIPES
from harness.study.steps import Step
from harness.training.traces.options import TraceCommand

__all__ = ["check_steps"]

_UsageError: Any = typer.BadParameter.__mro__[1]


def check_steps(steps: Iterable[Step]) -> None:
    """Read every command line as the command would, and run none.

    Raises:
        ConfigError: an option that does not exist, lacks, or has a value that is not allowed; names the step.
    """
    for step in steps:
        first, *rest = step.command.words
        name, options = first, CalibrateOptions if first == "calibrate" else TraceCommand
        thing: Any = calibrate if first == "calibrate" else trace
        if first == "train":
            recipe, *rest = rest
            name, options, thing = f"train {recipe}", RECIPES.load(recipe), Recipes().load(recipe)
        try:
            _check(as_command(name, thing), rest, options)
        except _UsageError as error:
            said = error.format_message().partition(" (Possible")[0].rstrip(".")
            raise ConfigError(f"{step.title}: {said}. See `harness {name} --help`.") from None
        except ConfigError as error:
            raise ConfigError(f"{step.title}: {error.message}", error.commands) from None


def _check(command: Any, arguments: list[str], options: type[Configuration]) -> None:
    given = command.make_context(command.name, list(arguments)).params
    said = {name: value for name, value in given.items() if name in options.model_fields}
    configure(options, {name: value for name, value in said.items() if value not in (None, (), [])})
