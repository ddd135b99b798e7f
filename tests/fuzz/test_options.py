"""Whatever stands on the command line or in a configuration file is taken, or refused in one line.

The flags are those that the commands declare; a new one is tried without a word here. Cases end before weights are
read.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from hypothesis import strategies as st

from tests.fuzz.cases import REFUSED, Ran, Warm
from tests.fuzz.hostile import SPECIAL, TEXTS, VALUES, Draw, as_json, changed_bytes, make_special, numbers

Fuzz = Callable[..., None]
Fresh = Callable[[], AbstractContextManager[Path]]
Workshop = Callable[[], AbstractContextManager[Path]]

TRACED = ("shortcut", "classifier", "lte", "rl", "lowrank", "hash", "predictor", "consistent", "sec", "excess")
RUN = {
    "model": "model", "source": "rows.jsonl", "limit": "2", "max_new_tokens": "2", "energy": "none", "threads": "1",
    "strategies": "full",
}  # fmt: skip
BASES: dict[str, dict[str, str]] = {
    "run": RUN,
    "serve": {"model": "model", "port": "0", "max_new_tokens": "8", "threads": "1", "energy": "none"},
    "trace": {"model": "model", "sources": "rows.jsonl", "tasks": "py150", "documents": "2", "threads": "1"},
    "sweep": {"replay": "trace", "strategies": "confidence", "model": "model"},
    "suitability": {"model": "model", "sources": "rows.jsonl", "tasks": "py150", "documents": "4", "threads": "1"},
    "doctor": {"threads": "1"},
    "calibrate": {**RUN, "strategies": "confidence:threshold=0.9,0.5", "limit": "8", "target": "agreement=0.3"},
    "verify": {"model": "model", "source": "rows.jsonl", "prompts": "2", "max_new_tokens": "4", "threads": "1"},
    "report": {"directories": "run"},
    "compare": {"a": "run", "b": "run"},
    "leaderboard": {"paths": "run", "out": "site"},
    "submit": {"directory": "run"},
    "rescore": {"directory": "run"},
    "export": {"directory": "site", "model": "model"},
    "convert": {"source": "run"},
    "new": {"kind": "score", "name": "mine"},
    "check-plugin": {},
    "list": {},
    "show": {"name": "confidence"},
    **{f"train {name}": {"model": "model", "traces": "folder"} for name in TRACED},
    "train lite": {"model": "model", "sources": "rows.jsonl", "tasks": "py150", "documents": "8"},
    "train shortlist": {"model": "model", "sources": "rows.jsonl", "tasks": "py150"},
    "train prompt-exit": {"model": "model", "sources": "rows.jsonl", "tasks": "py150", "layers": "2", "documents": "2"},
}
"""What a command is given beside what is tried; values lie in a case's folder. A new command goes without."""

ELSEWHERE = {
    *("study", "watch"),  # points are processes, which do not end before weights are read: tests/study
    "prepare",  # a process for each of its commands, which are tried themselves
    "cache",  # other tests live on what is kept
    "lm-eval",  # indexes thousands of files for a name that it does not know
}
"""Commands that are not tried."""

FILES = [*SPECIAL, "model", "rows.jsonl", "run", "site", "run/manifest.json", "model/config.json", "nowhere/below"]


@dataclass(frozen=True)
class Command:
    """A command with what it declares: parameters of the parser, by name, and what they are of."""

    name: str
    parameters: dict[str, Any]
    types: dict[str, set[Any]]

    def __repr__(self) -> str:
        return self.name

    def arguments(self, given: dict[str, Sequence[str]]) -> list[str]:
        """Return the command line for values of parameters; a flag without a value is spelled as the value says."""
        flags, positional = [], []
        for name, values in given.items():
            parameter = self.parameters.get(name)
            if parameter is None:
                continue
            for value in values:
                if parameter.param_type_name == "argument":
                    positional.append(value)
                elif getattr(parameter, "is_flag", False):
                    spellings = [*parameter.opts, *parameter.secondary_opts]
                    flags.append(spellings[len(value) % len(spellings)])
                else:
                    flags += [parameter.opts[0], value]
        return [*self.name.split(), *flags, *(["--", *positional] if positional else [])]


@pytest.fixture(scope="session")
def commands() -> list[Command]:
    """Every command, those of ``harness train`` included."""
    from harness.cli import COMMANDS
    from harness.commands.lazy import as_command

    functions: dict[str, Callable[..., Any]] = {}
    for name, point in COMMANDS.items():
        thing = point.load()
        if isinstance(thing, type):
            group = as_command(name, thing)
            functions |= {f"{name} {each}": group.load(each) for each in group.names()}
        else:
            functions[name] = thing
    assert len(functions) > len(COMMANDS)
    found = []
    for name, function in functions.items():
        if name in ELSEWHERE:
            continue
        signature = inspect.signature(function, eval_str=True).parameters
        types = {each: set(_types(one.annotation)) for each, one in signature.items()}
        parsed = {one.name: one for one in as_command(name.split()[-1], function).params}
        assert parsed.keys() == types.keys()
        parsed.pop("dry_run", None)  # measures in a process of its own, as a study does
        found.append(Command(name, parsed, types))
    return found


def _types(annotation: Any) -> Iterator[Any]:
    parts = get_args(annotation)
    if get_origin(annotation) is Annotated:
        parts = parts[:1]
    if not parts:
        yield annotation
    for part in parts:
        yield from _types(part)


@pytest.fixture(scope="session")
def names() -> list[str]:
    """Every registered name, which options take here and there."""
    from harness.registry import REGISTRIES

    return sorted({name for registry in REGISTRIES.values() for name in registry.names()})


@pytest.fixture(scope="session")
def options() -> dict[str, list[str]]:
    """Strategy → its options."""
    from harness.config.options import option_facts
    from harness.registry import STRATEGIES

    return {name: [fact.name for fact in option_facts(name)] for name in STRATEGIES.names()}


@pytest.fixture(scope="session")
def workshop(
    warm: Warm, fresh: Fresh, model: Path, rows_file: Path, recorded: dict[str, Path], tmp_path_factory: Any
) -> Workshop:
    """``with workshop() as folder``: what :data:`BASES` and :data:`FILES` name lies in it, deep enough for ``..``."""
    traced = tmp_path_factory.mktemp("traced") / "trace"
    given = ("--model", model, "--source", rows_file, "--task", "py150", "--documents", 4, "--threads", 1)
    ran = warm.run("trace", *given, "--out", traced, cwd=traced.parent)
    assert ran.code == 0, ran

    @contextmanager
    def made() -> Any:
        with fresh() as outside:
            folder = outside / "in" / "side"
            shutil.copytree(model, folder / "model")
            shutil.copytree(recorded["one"], folder / "run")
            shutil.copyfile(rows_file, folder / "rows.jsonl")
            shutil.copytree(traced, folder / "trace")
            for kind in SPECIAL:
                make_special(folder / kind, kind)
            yield folder

    return made


def value(types: set[Any], names: list[str], specs: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Return what a parameter is tried with; most is of its kind, and some of that is honest."""
    if types & {int, float}:
        return st.one_of(st.sampled_from(["0", "1", "2", "3", "0.5"]), numbers(), numbers(), TEXTS)
    files = st.sampled_from(FILES)
    if Path in types:
        return st.one_of(files, files, TEXTS)
    listed = st.lists(st.one_of(st.sampled_from(names), numbers()), min_size=1, max_size=4).map(",".join)
    words = st.sampled_from([*names, "auto", "all", "paper", "hub", "random", "tuned", "pretrained", "cpu", "cuda:7"])
    return st.one_of(words, words, specs, TEXTS, files, listed, numbers(), files.map("replay:{}".format))


def spec(options: dict[str, list[str]]) -> st.SearchStrategy[str]:
    """Return operating points as written, most of them nearly right."""
    values = st.one_of(st.sampled_from(["0", "0.5", "0.9", "1", "2", "4"]), numbers(), TEXTS)
    known = st.sampled_from(sorted(options)).flatmap(
        lambda name: st.tuples(st.just(name), st.lists(st.sampled_from([*options[name], "threshold"]), max_size=2))
    )
    wild = st.tuples(TEXTS, st.lists(TEXTS, max_size=2))
    signs, joins = st.sampled_from(["=", "=", "=", "=", "", "=="]), st.sampled_from([":", ":", ":", ":", ",", "::"])

    def written(parts: tuple[tuple[str, list[str]], list[tuple[str, list[str]]], str]) -> str:
        (name, keys), given, join = parts
        pairs = zip(keys, given, strict=False)
        return join.join([name, *(key + sign + ",".join(found) for key, (sign, found) in pairs)])

    given = st.lists(st.tuples(signs, st.lists(values, min_size=1, max_size=2)), min_size=2, max_size=2)
    return st.tuples(st.one_of(known, known, known, wild), given, joins).map(written)


def judged(ran: Ran) -> Ran:
    comparing = ran.argv[0] == "compare"  # a condition holds; each that cannot be judged has its line
    ran.judge(codes=(1,) if comparing else (), refusals=99 if comparing else 1)
    return ran


@pytest.mark.slow
def test_every_command_does_what_cases_start_from(warm: Warm, workshop: Workshop, commands: list[Command]) -> None:
    """Else nothing below would say anything. Trainings find no trace, since they would train on one."""
    for command in commands:
        given = {name: [text] for name, text in BASES[command.name].items()}
        with workshop() as folder:
            ran = judged(warm.run(*command.arguments(given), cwd=folder, until="weights"))
        alike = command.name == "compare"  # a run with itself
        assert (ran.code == REFUSED) == ("traces" in given or alike) or command.name == "submit", ran


@pytest.mark.slow
def test_no_flag_breaks_a_command(
    fuzz: Fuzz, warm: Warm, workshop: Workshop, commands: list[Command], names: list[str], options: dict[str, list[str]]
) -> None:
    specs = spec(options)

    def case(draw: Draw) -> Ran:
        command = draw(st.sampled_from(commands))
        tried = draw(st.lists(st.sampled_from(sorted(command.parameters)), min_size=1, max_size=3, unique=True))
        given = {name: [text] for name, text in BASES.get(command.name, {}).items()}
        for name in tried:
            parameter = command.parameters[name]
            times = 2 if getattr(parameter, "multiple", False) or parameter.nargs != 1 else 1
            tries = value(command.types[name], names, specs)
            given[name] = draw(st.lists(tries, min_size=1, max_size=times))
        with workshop() as folder:
            return judged(warm.run(*command.arguments(given), cwd=folder, until="weights"))

    fuzz("options", case, cases=40)


DOCUMENTS = [
    *(
        b"a = " + b"[" * 20_000 + b"]" * 20_000,
        b"a = " + b"{a = " * 5000 + b"1" + b"}" * 5000,
        b"limit = " + b"9" * 5000,
    ),
    *(b"[" + b".".join([b"a"] * 20_000) + b"]", b'model = "' + b"x" * 3_000_000 + b'"', b"[[limit]]\n" * 100_000),
    *(b'model = "\xff\xfe"', b"seed = 1979-05-27T07:32:00Z", b"\x00" * 1000, b"[run]\nlimit = 1", b"= 1"),
]
"""Whole files that somebody may give for a configuration."""


@pytest.mark.slow
def test_no_configuration_file_breaks_a_command(
    fuzz: Fuzz, warm: Warm, workshop: Workshop, commands: list[Command], names: list[str]
) -> None:
    configured = [command for command in commands if "config" in command.parameters]
    assert configured
    fits = st.one_of(st.sampled_from([1, 2, 0.5, True, "auto", *names]), st.lists(st.sampled_from(names), max_size=2))

    def case(draw: Draw) -> Ran:
        command = draw(st.sampled_from(configured))
        keys = draw(st.lists(st.sampled_from(sorted(command.parameters)), min_size=1, max_size=3, unique=True))
        # JSON's texts, numbers and lists are TOML's; the rest is what TOML has not
        text = "".join(f"{key} = {as_json(draw(st.one_of(fits, VALUES)))}\n" for key in keys).encode(
            "utf-8", "surrogatepass"
        )
        kind = draw(st.sampled_from(["values", "values", "values", "damaged", "document", "special"]))
        if kind == "damaged":
            text, _ = changed_bytes(draw, text)
        elif kind == "document":
            text = draw(st.sampled_from(DOCUMENTS))
        with workshop() as folder:
            (folder / "given.toml").write_bytes(text)
            file = draw(st.sampled_from(SPECIAL)) if kind == "special" else "given.toml"
            base = {key: [one] for key, one in BASES.get(command.name, {}).items() if key not in keys}
            return judged(warm.run(*command.arguments(base), "--config", file, cwd=folder, until="weights"))

    fuzz("options: configuration files", case, cases=25)
