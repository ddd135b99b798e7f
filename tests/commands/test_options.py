"""One declaration of an option is its flag: name, type, default, range, help, and what refuses a wrong value."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
import typer
from pydantic import Field

from harness.commands.lazy import as_command
from harness.commands.options import configure, configured_by
from harness.config.model import Configuration, Folder, WithPresets
from harness.errors import ConfigError


class Base(Configuration):
    out: Folder | None = Field(default=None, description="Where to. Default: here.")


class Options(Base, WithPresets):
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"small": {"careful": True}, "large": {"steps": 9}}

    entries: tuple[str, ...] = Field(description="Named. Repeatable.")
    steps: Annotated[int, Field(ge=1, le=9, description="How many.")] = 3
    share: Annotated[float, Field(gt=0)] | None = Field(default=None, description="Of all. Default: the rest.")
    mode: Annotated[Literal["fast", "exact"], Field(description="How")] = "fast"
    kind: Annotated[Literal["only"], Field(description="Nobody can choose.")] = "only"
    quiet: Annotated[bool, Field(description="Say nothing.")] = False
    careful: Annotated[bool, Field(description="Look twice.")] = False


def called(*arguments: str) -> dict[str, Any]:
    """What a command of these options and one of its own receives."""
    received: dict[str, Any] = {}

    @configured_by(Options, build=False)
    def command(given: dict[str, Any], own: Annotated[str, typer.Option(help="Its own.")] = "x") -> None:
        """Do it."""
        received.update(given, own=own)

    as_command("do", command).main(list(arguments), standalone_mode=False)
    return received


def helps(model: type[Configuration]) -> dict[str, str]:
    def command(given: dict[str, Any]) -> None: ...

    parameters = inspect.signature(configured_by(model)(command)).parameters.values()
    options = [parameter.annotation.__metadata__[0] for parameter in parameters]
    return {option.default: option.help for option in options}


def test_only_what_was_given_arrives() -> None:
    assert called("--entry", "a", "--entry", "b") == {"entries": ["a", "b"], "own": "x"}
    assert called("--entry", "a", "--steps", "0", "--quiet", "--no-careful", "--own", "y", "--out", "o") == {
        "entries": ["a"],
        "steps": 0,
        "quiet": True,
        "careful": False,
        "own": "y",
        "out": Path("o"),
    }


def test_help_says_choices_defaults_and_ranges() -> None:
    assert helps(Options) == {
        "--entry": "Named. Repeatable.",
        "--steps": "How many. Default: 3 (small), 9 (large) (≥ 1, ≤ 9).",
        "--share": "Of all. Default: the rest (> 0).",
        "--mode": "How: fast or exact. Default: fast.",
        "--quiet": "Say nothing.",
        "--careful/--no-careful": "Look twice. Default: on (small), off (large).",
        "--out": "Where to. Default: here.",  # of the base, so behind
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"entries": ["a"], "steps": 0}, "--steps 0: input should be greater than or equal to 1."),
        ({"entries": ["a"], "mode": "odd"}, "--mode 'odd': input should be 'fast' or 'exact'."),
        ({"entries": [3]}, "--entry 3: input should be a valid string."),
        ({"entries": ["a"], "share": 0.0}, "--share 0: input should be greater than 0."),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_flag(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        configure(Options, given)
    assert str(refused.value) == said


def test_a_preset_fills_in_what_was_not_given() -> None:
    options = configure(Options, {"entries": ["a"], "steps": 4})
    assert (options.under("large").steps, options.under("small").careful, options.careful) == (4, True, False)
    assert configure(Options, {"entries": ["a"]}).under("large").steps == 9


Command = Callable[..., Any]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("rnu",), "No such command 'rnu'. Did you mean 'run'? See `harness --help`."),
        (("run", "--limt", 3), "No such option: --limt. Did you mean --limit? See `harness run --help`."),
        (("run", "--limit", "three"), "'--limit': give a whole number. See `harness run --help`."),
        (("run", "--idle-s", "long"), "'--idle-s': give a number. See `harness run --help`."),
        (("run", "--dtype", "float"), "error: --dtype 'float': input should be 'float32', 'bfloat16' or 'float16'."),
        (("serve", "--port", 99999), "error: --port 99999: input should be less than or equal to 65535."),
        (("run", "--strategy"), "'--strategy' requires an argument. See `harness run --help`."),
        (("run", "--out", ""), "error: --out is empty. Name a file or folder"),
        (("run", "--resume="), "error: --resume is empty. Name a file or folder"),
        (("report", ""), "error: RUN_DIR is empty. Name a file or folder"),
        (("report", "x", "--width", "colum"), "'--width': 'colum' is not one of 'column', 'text'."),
        (("watch", "x", "--every", 0.1), "'--every': it should be greater than or equal to 0.5."),
    ],
)
def test_a_mistake_is_named_as_it_was_typed(
    cli: Command, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], says: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["harness", *map(str, arguments)])
    assert says in cli(*arguments).error


def test_a_value_of_a_file_is_named_as_the_file_names_it(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("limit = -1\n")
    assert "limit = -1: input should be greater than or equal to 0." in cli("run", "--config", "run.toml").error
