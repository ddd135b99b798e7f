"""``harness prepare``: all that a model needs to exit early, one command after the other, each said before it runs."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.commands.console import say, write
from harness.commands.options import configure, configured_by, one_model
from harness.errors import ConfigError, OutOfReachError, StoreError
from harness.host.files import require_writable
from harness.host.libraries import require
from harness.registry import TASKS
from harness.training.options import PrepareOptions

DONE = "prepare.json"
"""Commands that are finished, in order, beside what they made."""
WIDEST = 512
"""Inner units of an exit module that nobody chose, where the model is as wide."""
DECISIONS_PER_TOKEN, MOST_DECISIONS = 8, 2_000_000
"""An agent's budget: what the shipped one learned from, 2,000,000 decisions on 253,000 tokens, is the most."""


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


def steps_of(options: PrepareOptions, exit_module: str, out: Path, traces: Path) -> Iterator[Step]:
    """Yield the commands for a model, in the order in which one needs the other."""
    model = ("--model", options.model)
    documents = [word for task in options.tasks for word in ("--task", task)]
    documents += [word for source in options.sources for word in ("--source", source)]
    size = ("--documents", str(options.documents), "--length", str(options.length))
    threads = () if options.threads is None else ("--threads", str(options.threads))
    plain, read = str(traces / "plain"), str(traces / "exits")
    made = ("--artefacts", str(out))
    learn = (*model, "--traces", read, *made, "--out", str(out))
    module = ("--exit-module", exit_module, "--steps", str(options.steps))
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
        tokens = options.documents * options.length * len(options.tasks) * len(options.sources)
        budget = ("--steps", str(min(MOST_DECISIONS, DECISIONS_PER_TOKEN * tokens)))
        yield Step(("train", "rl", *learn, *budget), "an agent that decides as GREEN-CODE's does; minutes")


@configured_by(PrepareOptions, build=False)
def prepare(
    given: dict[str, Any],
    name: Annotated[str | None, typer.Argument(help="The model; as --model.", metavar="MODEL")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands; run none.")] = False,
) -> None:
    """Make what a model needs to exit early: suitability, exits, a rule; the same command goes on after anything."""
    options = configure(PrepareOptions, one_model(given, name))
    out = options.out or Path("artefacts") / Path(options.model).name
    traces = options.traces or Path("traces") / Path(options.model).name
    for task in options.tasks:
        TASKS.load(task)
    if not dry_run:
        require_writable(out, ConfigError)
        require_writable(traces, ConfigError, "Use other --traces.")
    steps = list(steps_of(options, _exit_module(options, dry_run), out, traces))
    if dry_run:
        for step in steps:
            write(f"# {step.why}\n{step}")
        return
    if options.agent:
        require("train", "stable_baselines3", "gymnasium")
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


def _exit_module(options: PrepareOptions, dry_run: bool) -> str:
    """Return the exit module, once the model and it are known to fit; a dry run may be of a model that is not here."""
    from harness.models.configuration import read_shape
    from harness.models.exit_modules import shapes_of
    from harness.models.source import find_spec

    try:
        width = read_shape(find_spec(options.model), "auto").hidden_size
    except OutOfReachError:
        if not dry_run:
            raise
        return options.exit_module or f"mlp/{WIDEST}"
    module = options.exit_module or f"mlp/{min(WIDEST, width // 2 * 2)}"
    shapes_of(module, width)
    return module


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
