"""The steps of a study: commands of the harness whose folders its points, and other steps, are made with.

A step is known by a hash of its command line, with the identities of the steps that it names in their place: one
that is changed is made anew, and so is all that is made of it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from harness.config.model import DEFAULT_MODEL, Configuration, Threads
from harness.contracts.executors import Command
from harness.errors import ConfigError, UnknownNameError, did_you_mean
from harness.registry import RECIPES

COMMANDS = ("trace", "train", "calibrate")
"""Commands that a step may run: those that leave a folder, and time nothing."""

_OF_THE_STUDY = ("--out", "--resume", "--file", "--help", "-h", "--")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,79}", re.ASCII)
_NAMED = re.compile(r"\{([^{}]*)\}")
_SHORT = 10
FOLDERS = ("model", "artefacts")
"""Settings of a run that may name a step, beside ``strategies``: there it is ``@{NAME}/FILE``."""


class StepConfig(Configuration):
    """A step as the file of a study declares it."""

    name: str = Field(description="By which settings and other steps name its folder, as {NAME}.")
    command: str = Field(description="As one types it, without --out; {NAME} is the folder of a step before it.")
    begin_with: str | None = Field(
        default=None, description="{NAME} of a step before it, whose files its folder begins with."
    )
    threads: Threads = None

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError("input should be a plain file name: letters, digits, and . _ - after the first")
        return value


@dataclass(frozen=True)
class Step:
    """One step of a study."""

    name: str
    command: Command
    steps: Mapping[str, Step]
    place: ClassVar = "steps"

    @property
    def identity(self) -> str:
        """Hash over the command, 64 hexadecimal digits."""
        return self.command.identity

    @property
    def short(self) -> str:
        """The beginning of the identity, by which its folder is found whatever the step is called."""
        return self.identity[:_SHORT]

    @property
    def title(self) -> str:
        """Its label, where points are listed beside it."""
        return f"step {self.name}"

    @property
    def folder(self) -> str:
        """The name of a new folder of it."""
        return f"{self.name}-{self.short}"

    @property
    def model(self) -> tuple[str, ...]:
        """Resources that a machine must have for it."""
        return ("step", option(self.command.words, "--model") or DEFAULT_MODEL)


def steps_of(declared: Iterable[StepConfig]) -> tuple[Step, ...]:
    """Return the steps of a study, each behind those that it names."""
    declared = tuple(declared)
    known: dict[str, Step] = {}
    names: dict[str, str] = {}
    for one in declared:
        if one.name in known:
            raise ConfigError(f"two steps are called {one.name}. Give each a name of its own.")
        known[one.name] = made = _step(one, known, {each.name for each in declared})
        if (same := names.setdefault(made.identity, one.name)) != one.name:
            raise ConfigError(f"steps {same} and {one.name} are the same. Omit one of them.")
    return tuple(known.values())


def _step(one: StepConfig, before: Mapping[str, Step], every: Set[str]) -> Step:
    words = _words(one)
    begin_with = ""
    if one.begin_with is not None:
        if words[0] == "calibrate":
            raise ConfigError(f"step {one.name}: a calibration begins with an empty folder. Omit begin_with.")
        found = _NAMED.fullmatch(one.begin_with)
        if found is None:
            raise ConfigError(f"step {one.name}: begin_with = '{one.begin_with}' names no step. Write {{NAME}}.")
        begin_with = found[1]
    named = [*(name for word in words for name in _NAMED.findall(word)), *([begin_with] if begin_with else [])]
    for name in named:
        if name not in before:
            hint = " Move it up." if name in every and name != one.name else did_you_mean(name, before)
            raise ConfigError(f"step {one.name} names {{{name}}}, and no step before it has that name.{hint}")
    steps = {name: before[name] for name in named}
    identities = {name: step.identity for name, step in steps.items()}
    said: dict[str, Any] = {"command": [filled(word, identities) for word in words]}
    if begin_with:
        said["begin_with"] = identities[begin_with]
    identity = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    threads = one.threads
    if (text := option(words, "--threads")) is not None:
        if threads is not None:
            raise ConfigError(f"step {one.name} says twice how many threads it has. Omit `threads` or --threads.")
        threads = int(text) if text.isdigit() and int(text) else None  # the command refuses it
    return Step(one.name, Command(words, identity, begin_with, threads), steps)


def _words(one: StepConfig) -> tuple[str, ...]:
    """Return the words of a step's command line, as a shell would have them; none is run."""
    try:
        words = shlex.split(one.command)
    except ValueError as error:
        raise ConfigError(f"step {one.name}: cannot read the command `{one.command}`: {error}.") from None
    if words[:1] == ["harness"]:
        del words[0]
    if not words or words[0] not in COMMANDS:
        said = f"'{words[0]}'" if words else "nothing"
        raise ConfigError(f"step {one.name} runs {said}, and a step is trace, train NAME or calibrate.")
    if words[0] == "train":
        name = words[1] if len(words) > 1 else ""
        if name not in RECIPES.names():
            raise UnknownNameError("recipe", name, RECIPES.names(), f"Step {one.name} trains it.")
    for flag in (word.partition("=")[0] for word in words):
        if flag in _OF_THE_STUDY:
            raise ConfigError(f"step {one.name} gives {flag}: where its folder is, the study decides. Omit it.")
    if words[0] == "calibrate" and "--untimed" not in words:
        raise ConfigError(
            f"step {one.name} would time what it decodes, beside other steps. Add --untimed --energy none "
            "--weights-format FORMAT: a promise is about tokens."
        )
    return tuple(words)


def option(words: Sequence[str], flag: str) -> str | None:
    """Return the value that a command line gives a flag last; ``None`` where it gives none."""
    found: str | None = None
    for word, following in zip(words, [*words[1:], None], strict=True):
        name, equals, value = word.partition("=")
        if name == flag:
            found = value if equals else following
    return found


def filled(text: str, values: Mapping[str, str] | Mapping[str, Path]) -> str:
    """Return a text with the value of each ``{NAME}`` that has one in its place."""
    return _NAMED.sub(lambda found: str(values.get(found[1], found[0])), text)


def filled_settings(settings: Mapping[str, Any], values: Mapping[str, str] | Mapping[str, Path]) -> dict[str, Any]:
    """Return the settings of a run with values in the places of the steps that it names."""
    found = dict(settings)
    if values:
        found |= {name: filled(found[name], values) for name in FOLDERS if isinstance(found.get(name), str)}
        if "strategies" in found:
            found["strategies"] = [filled(given, values) if _is_file(given) else given for given in found["strategies"]]
    return found


def _is_file(strategy: Any) -> bool:
    return isinstance(strategy, str) and strategy.startswith("@")


def steps_in(settings: Mapping[str, Any], known: Mapping[str, Step]) -> dict[str, Step]:
    """Return those of a study's steps that the settings of a run name."""
    if not known:  # braces are braces in a study without steps
        return {}
    named: dict[str, Step] = {}
    for setting, value in settings.items():
        for text in value if isinstance(value, list) else [value]:
            names = _NAMED.findall(text) if isinstance(text, str) else ()
            if setting in FOLDERS or (setting == "strategies" and _is_file(text)):
                for name in names:
                    if name not in known:
                        hint = did_you_mean(name, known)
                        raise ConfigError(f"a point names {{{name}}}, and no [[step]] has that name.{hint}")
                    named[name] = known[name]
            elif not known.keys().isdisjoint(names):
                raise ConfigError(
                    f"{setting} = {text!r} names a step where none is read. Use {{NAME}} in model or artefacts, or "
                    "@{NAME}/FILE in strategies."
                )
    return named
