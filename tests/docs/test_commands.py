"""Every command that README or the documentation shows is one that the parser takes, strategies included."""

from __future__ import annotations

import itertools
import re
import shlex
from typing import Any

import pytest

from harness.cli import COMMANDS
from harness.commands.lazy import as_command
from harness.config import parse_strategies
from harness.config.options import build_strategy
from harness.registry import STRATEGIES
from tests.docs.pages import NAMES, ROOT, commands

THEIRS = {"norm-growth", "mean-difference", "every-nth", "turning", "head=first/2000", "NAME", "S"}
"""What pages themselves define, or leave open, of strategies and recipes."""


PERCENTILE = re.compile(r"\bq\d+\b")
"""A threshold that a run, a sweep or a calibration observes first."""


@pytest.mark.parametrize("name", [name for name in NAMES if any(commands(name))])
def test_its_commands_are_taken(name: str) -> None:
    for words in commands(name):
        if len(words) > 1 and "--help" not in words and not words[1].startswith("--") and words[1].islower():
            parsed(words[1], words[2:])
            for spec in strategies(words):
                for one in parse_strategies(PERCENTILE.sub("0.5", spec)):
                    build_strategy(one)


def parsed(command: str, rest: list[str]) -> None:
    """Parse, without running anything: unknown options, missing ones and values of another type are refused."""
    assert command in COMMANDS, command
    known = as_command(command, COMMANDS[command].load())
    if command == "train" and rest:
        recipe, *rest = rest
        if recipe in THEIRS:
            return
        known = as_command(recipe, known.load(recipe))
    optional = [word.strip("[]") for word in rest]  # `harness verify [--weights-format fp16]`
    if optional and optional[-1] == "…" and not optional[-2].startswith("--"):
        optional.pop()  # and so on; behind an option it is the value
    try:
        known.make_context(f"harness {command}", optional)
    except Exception as error:
        names_a_command_alone = not rest or not any(word.startswith("-") for word in rest)
        if not (names_a_command_alone and "Missing" in str(error)):
            raise AssertionError(f"{shlex.join(['harness', command, *rest])}: {error}") from error


def strategies(words: list[str]) -> list[str]:
    """Return what stands behind ``--strategy``, but for what pages define."""
    given = [value for flag, value in itertools.pairwise(words) if flag == "--strategy"]
    names = [spec.partition("@")[0] for spec in given]  # what follows @ belongs to the run
    return [spec for spec in names if spec and not THEIRS & set(spec.split(":"))]


def test_what_is_no_option_is_found() -> None:
    """The check above would fail where a page errs."""
    for words in (
        ["run", "--stratgy", "full"],
        ["run", "--limit", "many"],
        ["nosuch"],
        ["train", "lite", "--step", "1"],
    ):
        with pytest.raises((AssertionError, KeyError)):
            parsed(words[0], words[1:])
    spec: Any = "classifier:treshold=0.9"
    with pytest.raises(Exception, match="treshold"):
        [build_strategy(one) for one in parse_strategies(spec)]


def test_every_strategy_has_its_place_in_the_tutorial() -> None:
    text = (ROOT / "docs" / "tutorials" / "compare.md").read_text(encoding="utf-8")
    own = {entry.name for entry in STRATEGIES.entries() if not entry.is_plugin}
    assert {name for name in own if f"`{name}`" not in text} == set()
