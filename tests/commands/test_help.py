"""``--help`` of every command: all that is declared, word for word, and an example that can be pasted."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from harness.cli import COMMANDS, PANELS
from harness.commands.lazy import LazyGroup, as_command

Command = Callable[..., Any]


def commands() -> Iterator[tuple[list[str], Any, str]]:
    """Every command as (its words, what the parser makes of it, its example), those of groups included."""
    for of in PANELS.values():
        for name, (_, example) in of.items():
            command = as_command(name, COMMANDS[name].load())
            yield [name], command, example
            for below in command.names() if isinstance(command, LazyGroup) else ():
                yield [name, below], as_command(below, command.load(below)), command.example(below)


def declared(command: Any) -> str:
    """What a command says of itself and of its parameters."""
    texts = [command.help, *(param.help for param in command.params)]
    if isinstance(command, LazyGroup):
        texts += [*command.names(), *map(command.summary, command.names())]
    options = [param for param in command.params if param.param_type_name == "option"]
    return " ".join([*texts, *(flag for option in options for flag in (*option.opts, *option.secondary_opts))])


@pytest.mark.slow
@pytest.mark.parametrize("columns", [60, 120])
def test_a_help_holds_every_word_that_is_declared(cli: Command, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for words, command, example in commands():
        ran = cli(*words, "--help")
        assert (ran.code, ran.err) == (0, "")
        assert max(map(len, ran.out.splitlines())) <= max(columns, len(f"Example: {example}"))
        if columns == 60:  # a column may be too narrow for a word, which then goes on in the next line
            body = re.sub(r"[│╭╮╰╯─\s]", "", ran.out)
            assert all(re.sub(r"[│╭╮╰╯─\s]", "", word) in body for word in (command.help or "").split()), words
            continue
        said = Counter(re.sub("[│╭╮╰╯]", " ", ran.out).split())
        assert Counter(declared(command).split()) - said == Counter(), words
        assert not re.search(r"\[\]|<bool>|<list|\\\[", ran.out), words


def test_a_help_has_panels_and_an_example_that_can_be_pasted(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words, command, example in commands():
        said = cli(*words, "--help").out
        assert "╭─ " in said
        assert f"\nExample: {example}\n" in said  # in one line, which fits
        assert len(f"Example: {example}") <= 80
        program, *rest = shlex.split(example)
        assert [program, *rest[: len(words)]] == ["harness", *words]
        arguments = rest[len(words) :]
        called = command
        if isinstance(command, LazyGroup):
            below, *arguments = arguments
            called = as_command(below, command.load(below))
        called.make_context(" ".join(words), arguments)  # which refuses unknown flags and missing ones


def test_a_summary_is_a_whole_sentence(cli: Command) -> None:
    said = " ".join(re.sub("[│╭╮╰╯]", " ", cli("--help").out).split())
    for name, point in COMMANDS.items():
        first = as_command(name, point.load()).help.partition("\n\n")[0]
        assert f" {name} {' '.join(first.split())} " in said
