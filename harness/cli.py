"""The ``harness`` command. Results go to stdout, progress and logs to stderr.

Exit codes: 0 done; 1 a condition of ``compare --fail-if`` holds, ``verify`` found a defect, or ``check-plugin`` a
broken contract; 2 something that was asked for cannot be done (one line says what and the remedy, commands to paste
follow it), a condition that cannot be judged and a run all of whose samples failed included; 70 a defect, of the
harness or of a plug-in (with its traceback), or a run that lacks only a plug-in's scores; 130 interrupted; 141 the
reader of stdout went away. A command is imported when it is called, and what is heavy inside it, so that ``--help`` and
``list`` are instant.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path and os.path.join(sys.path[0], "harness", "cli.py") != __file__:
    del sys.path[0]  # `python -m` puts the working directory there, where a user's `tasks.py` would pass for ours

import errno
import logging
import re
import warnings
from collections.abc import MutableMapping, Sequence
from importlib.metadata import EntryPoint
from typing import Annotated, Any, NoReturn

import typer

from harness.appearance.visible_text import visible
from harness.commands.console import OneLine, print_defect, refuse, stderr
from harness.commands.lazy import SETTINGS, LazyGroup
from harness.errors import DEFECT, ConfigError, HarnessError
from harness.host.files import DEEPEST_PATH
from harness.registry import no_silent_end, plugin_at_fault, summary

SPINS = "3000"
"""Turns of the waiting loop: as fast as the default on a quiet machine, and up to ten times as fast beside others."""


def spin_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let the threads of this process and of those that it starts sleep sooner, unless the user has chosen a policy.

    GNU's OpenMP, which torch's CPU wheels bring, spins some ten milliseconds: longer than the kernel lets a thread run
    beside others, so that a thread that shares its core is waited for at full speed. The library reads the number when
    it is loaded: call this before torch is imported.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", SPINS)


READER_GONE = 141

# Base of the parser's complaints. typer exports this one of them, whichever click it is built on.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

_formatwarning = warnings.formatwarning

PANELS = {
    "Measure and compare": {
        "run": ("measure:run", "harness run --strategy confidence:threshold=0.8,0.9 --limit 50"),
        "report": ("report:report", "harness report runs/mine --out report"),
        "compare": ("measure:compare", "harness compare runs/before runs/after --fail-if 'speedup<-3%'"),
        "rescore": ("measure:rescore", "harness rescore runs/mine"),
        "calibrate": ("replay:calibrate", "harness calibrate --strategy confidence --target agreement=0.95"),
        "sweep": ("replay:sweep", "harness sweep --replay traces --strategy confidence:threshold=0.5,0.9"),
        "study": ("study:study", "harness study quick --dry-run"),
        "watch": ("study:watch", "harness watch studies/quick --once"),
    },
    "Learn exits": {
        "suitability": ("replay:suitability", "harness suitability smollm2-135m --documents 8"),
        "prepare": ("prepare:prepare", "harness prepare smollm2-360m --dry-run"),
        "trace": ("training:trace", "harness trace --task py150 --out traces"),
        "train": ("training:Recipes", "harness train classifier --traces traces"),
    },
    "Use and publish": {
        "lm-eval": ("use:lm_eval", "harness lm-eval --strategy classifier --tasks gsm8k"),
        "export": ("publish:export", "harness export tuned --model smollm2-135m"),
        "serve": ("use:serve", "harness serve --strategy classifier --port 8000"),
        "leaderboard": ("publish:leaderboard", "harness leaderboard runs --out site"),
        "convert": ("publish:convert", "harness convert runs/mine --to every-eval-ever --out records"),
        "submit": ("publish:submit", "harness submit runs/mine"),
    },
    "Look up and check": {
        "list": ("lookup:list_", "harness list strategies"),
        "show": ("lookup:show", "harness show classifier"),
        "doctor": ("check:doctor", "harness doctor"),
        "cache": ("lookup:cache", "harness cache list"),
        "verify": ("check:verify", "harness verify --weights-format fp16"),
    },
    "Extend": {
        "new": ("plugins:new", "harness new strategy my-strategy"),
        "check-plugin": ("plugins:check_plugin", "harness check-plugin my-strategy"),
    },
}
"""Panel of ``harness --help`` → its commands → where each is, and an example of it; the first one's is shown there."""

COMMANDS = {
    name: EntryPoint(name, f"harness.commands.{module}", "harness.commands")
    for panel in PANELS.values()
    for name, (module, _) in panel.items()
}


class _Commands(LazyGroup):
    def names(self) -> Sequence[str]:
        return tuple(COMMANDS)

    def summary(self, name: str) -> str:
        return summary(COMMANDS[name])

    def load(self, name: str) -> Any:
        return COMMANDS[name].load()

    def panel(self, name: str) -> str:
        return next(title for title, of in PANELS.items() if name in of)

    def example(self, name: str) -> str:
        return next(of[name][1] for of in PANELS.values() if name in of)


app = typer.Typer(
    name="harness",
    cls=_Commands,
    help="Benchmark early-exit decoding of code language models: accuracy, time, energy and layers, compared fairly.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=SETTINGS,
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"early-exit-harness {version('early-exit-harness')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _complaint(error: Any) -> str:
    """Return what the parser complains of, as a sentence: what it says of pydantic's in plain words."""
    if possible := getattr(error, "possibilities", None):
        return f"No such option: {error.option_name}. Did you mean {' or '.join(sorted(possible))}?"
    message: str = error.format_message().replace("Value error, ", "")
    for kind, plainly in (("integer", "a whole number"), ("number", "a number")):
        message = re.sub(f"Input should be a valid {kind}.*", f"give {plainly}", message)
    message = message.replace("Input should be", "it should be")
    return message if message.endswith((".", "?")) else f"{message}."


def _called(error: Any) -> str:
    context = getattr(error, "ctx", None)
    if context is not None:
        return str(context.command_path)
    return " ".join(["harness", *(word for word in sys.argv[1:2] if word in COMMANDS)])


def _check_arguments() -> None:
    """Refuse what no name and no path can be, which Python meets in many places."""
    for text in (*sys.argv, os.environ.get("XDG_CACHE_HOME", "")):
        try:
            os.fsencode(text)
            wrong = "\0" in text or text.count("/") > DEEPEST_PATH
        except UnicodeEncodeError:
            wrong = True
        if wrong:
            raise ConfigError(
                f"an argument holds a NUL character, half of a surrogate pair, or more than {DEEPEST_PATH} folders "
                f"inside one another: {text[:40]!a}. Give another name."
            )


def _end_by_defect(error: BaseException) -> NoReturn:
    print_defect()
    whose = f"{at}, not of the harness" if (at := plugin_at_fault(error)) else "the harness, not of your input"
    refuse(f"this is a defect of {whose}: please report it with the lines above")
    sys.exit(DEFECT)


def main() -> None:
    """Run the command and turn refusals into one line, the commands that cure them, and an exit code."""
    spin_briefly()
    logging.lastResort = OneLine(stderr, logging.WARNING)  # for commands that draw no progress bar
    warnings.formatwarning = lambda *parts, **settings: visible(_formatwarning(*parts, **settings))
    try:
        _check_arguments()
        with no_silent_end():
            code = app(args=sys.argv[1:] or ["--help"], prog_name="harness", standalone_mode=False)
    except HarnessError as error:
        refuse(error.message, error.commands)
        sys.exit(error.exit_code)
    except _UsageError as error:
        refuse(f"{_complaint(error)} See `{_called(error)} --help`.")
        sys.exit(HarnessError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except SystemExit as left:
        if getattr(left.__context__, "errno", None) == errno.EPIPE:
            sys.exit(READER_GONE)  # whatever reads stdout has had enough of it
        if not plugin_at_fault(left):
            raise
        _end_by_defect(left)
    except OSError as error:
        if plugin_at_fault(error):
            _end_by_defect(error)
        where = f" {error.filename}" if error.filename else ""
        refuse(f"cannot use{where}: {error.strerror or error}. Make room, or give a path that can be used.")
        sys.exit(HarnessError.exit_code)
    except BaseException as error:  # a defect keeps its traceback and has its own code: 1 says that a condition holds
        _end_by_defect(error)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
