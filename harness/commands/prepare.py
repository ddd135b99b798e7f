"""``harness prepare``: all that a model needs to exit early, one command after the other, each said before it runs."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.commands.console import say, write
from harness.commands.options import configure, configured_by
from harness.errors import ConfigError, StoreError
from harness.training.options import PrepareOptions

DONE = "prepare.json"
"""Commands that are finished, in order, beside what they made."""


@dataclass(frozen=True)
class Step:
    """A command, and what it is for."""

    words: tuple[str, ...]
    why: str

    def resumed(self) -> tuple[str, ...]:
        """Return its words where it was begun before: a trace goes on, all else is made anew."""
        if self.words[0] == "trace":
            begun = (Path(self.words[self.words.index("--out") + 1]) / "index.json").is_file()
            return (*self.words, "--resume") if begun else self.words
        return (*self.words, "--overwrite") if self.words[0] == "train" else self.words

    def __str__(self) -> str:
        return shlex.join(("harness", *self.words))


def steps_of(options: PrepareOptions, out: Path, traces: Path) -> Iterator[Step]:
    """Yield the commands for a model, in the order in which one needs the other."""
    model = ("--model", options.model)
    documents = [word for task in options.tasks for word in ("--task", task)]
    documents += [word for source in options.sources for word in ("--source", source)]
    size = ("--documents", str(options.documents), "--length", str(options.length))
    threads = () if options.threads is None else ("--threads", str(options.threads))
    plain, read = str(traces / "plain"), str(traces / "exits")
    made = ("--artefacts", str(out))
    learn = (*model, "--traces", read, *made, "--out", str(out))
    module = ("--exit-module", options.exit_module, "--steps", str(options.steps))
    yield Step(
        ("suitability", *model, *documents, *threads),
        "minutes: what exits could bring at best, before any of it is made",
    )
    yield Step(
        ("trace", *model, "--exit-head", "shared", *documents, *size, *threads, "--out", plain),
        "one pass over the documents: states, and what full depth says behind each token",
    )
    yield Step(
        ("train", "shortcut", *model, "--traces", plain, *module, "--out", str(out)),
        "an exit module after each exit point that says what full depth would say; the longest step of a large model",
    )
    yield Step(
        ("trace", *model, *made, "--exit-head", "shortcut", *documents, *size, "--seed", "1", *threads, "--out", read),
        "a pass over other documents, read through those exits, which know too much of those that they learned from",
    )
    yield Step(("train", "classifier", *learn), "a rule that says when to leave; minutes at most")
    if options.agent:
        yield Step(("train", "rl", *learn), "an agent that decides as GREEN-CODE's does; minutes")


@configured_by(PrepareOptions, build=False)
def prepare(
    given: dict[str, Any],
    name: Annotated[str, typer.Argument(help="Catalogue name, hub id, folder or GGUF file.", metavar="MODEL")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands; run none.")] = False,
) -> None:
    """Make what a model needs to exit early: suitability, exits, a rule; the same command goes on after anything."""
    options = configure(PrepareOptions, {**_without_other(given, name), "model": name})
    out = options.out or Path("artefacts") / Path(options.model).name
    steps = list(steps_of(options, out, options.traces or Path("traces") / Path(options.model).name))
    if dry_run:
        for step in steps:
            write(f"# {step.why}\n{step}")
        return
    done = _finished(out)
    finished = 0
    while finished < min(len(done), len(steps)) and done[finished] == str(steps[finished]):
        finished += 1
    for number, step in enumerate(steps):
        where = f"{number + 1} of {len(steps)}"
        if number < finished:
            say(f"{where}, done: {step}")
            continue
        say(f"{where}, {step.why}: {step}")
        code = subprocess.run([sys.executable, "-m", "harness", *step.resumed()], check=False).returncode
        if code:
            say(f"Stopped at step {where}; finished steps are kept, and the same command goes on.")
            raise typer.Exit(code if code > 0 else 130)
        out.mkdir(parents=True, exist_ok=True)
        (out / DONE).write_text(
            json.dumps([str(one) for one in steps[: number + 1]], indent=1) + "\n", encoding="utf-8"
        )
    where = "" if options.out is None else f" --artefacts {shlex.quote(str(out))}"
    rules = " --strategy rl" if options.agent else ""
    use = f"harness run --model {shlex.quote(options.model)}{where}"
    say(f"{out} is ready: {use} --strategy classifier{rules} --strategy full@lossless+suffix")


def _without_other(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    if given.get("model", name) != name:
        raise ConfigError(f"'{name}' and --model '{given['model']}' are two models. Give one.")
    return dict(given)


def _finished(out: Path) -> Sequence[str]:
    """Return the commands that were finished; a folder that others made something in is refused.

    Raises:
        StoreError: it holds what no step of this made.
    """
    file = out / DONE
    if file.is_file():
        found: list[str] = json.loads(file.read_text(encoding="utf-8"))
        return found
    if out.is_dir() and any(out.iterdir()):
        raise StoreError(f"{out} holds artefacts that `harness prepare` did not make. Use another --out.")
    return ()
