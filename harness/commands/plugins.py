"""``harness new`` and ``check-plugin``: a package that plugs in, and whether what plugs in keeps its contract."""

from __future__ import annotations

import re
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree
from typing import Annotated

import typer

from harness.commands.console import note, say, write_json
from harness.commands.options import AsJson
from harness.errors import ConfigError, StoreError, UnknownNameError
from harness.host.files import replace_files
from harness.registry import REGISTRIES

BROKEN = 1

TEMPLATES = {
    "strategy": (
        "strategies",
        '''from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from harness.contracts import ExitView, Strategy


@dataclass(frozen=True)
class {made}(Strategy):
    """Exit where the hidden state is nearly as large as at the exit point before."""

    threshold: Annotated[float, Field(ge=0, le=10, description="largest growth of the norm that goes")] = 1.05

    def should_exit(self, view: ExitView) -> Tensor:
        """Answer for every row of the batch, at each exit point."""
        before = view.hidden_state if view.previous is None else view.previous.hidden_state
        growth = view.hidden_state.norm(dim=-1) / before.norm(dim=-1)
        return (growth <= self.threshold) & (view.previous is not None)
''',
        "harness run --strategy {name}:threshold=1.02,1.1",
    ),
    "score": (
        "scores",
        '''from harness.contracts import Completion, Score


class {made}(Score):
    """Share of the reference's words that stand in a completion."""

    title = "{name}"

    def sample(self, completion: Completion) -> float | None:
        """Score one completion; None where nothing can be said."""
        words = set(completion.reference.split())
        return len(words & set(completion.text.split())) / len(words) if words else None
''',
        "harness run --strategy fixed:layer=22 --limit 8",
    ),
    "task": (
        "tasks",
        '''from tasks.code_completion import CodeCompletion
from tasks.languages import PYTHON
from tasks.rows import RecordRows, Rows


class {made}(CodeCompletion):
    """Functions that bake, in Python."""

    name = "{name}"
    code = PYTHON

    def embedded(self) -> Rows:
        """Return the documents that come with the task, one record each."""
        records = [
            {{"id": dough, "code": f"def bake_{{dough}}(oven):\\n    return oven.put('{{dough}}')\\n" * 9}}
            for dough in ("rye", "oat", "spelt")
        ]
        return RecordRows("embedded", "embedded: {name}", len(records), records.__getitem__)
''',
        "harness run --task {name} --strategy fixed:layer=22",
    ),
    "drafts": (
        "drafts",
        '''from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from harness.contracts import Batch, Draft, DraftRule, DraftSource, ModelInfo


@dataclass(frozen=True)
class {made}(DraftSource):
    """Propose what followed the last token the time before, token by token."""

    k: Annotated[int, Field(ge=1, le=16, description="tokens proposed at most")] = 4

    def start(self, model: ModelInfo, batch: Batch) -> DraftRule:
        """Return the rule of a batch."""
        return Following(self.k)


class Following(DraftRule):
    def __init__(self, k: int) -> None:
        self.k = k

    def propose(self, draft: Draft, max_tokens: int) -> Sequence[int]:
        """Propose tokens before any layer runs; full depth verifies them."""
        text = [*draft.prompt, *draft.token_ids, *draft.tokens]
        follows = dict(zip(text, text[1:], strict=False))
        said: list[int] = []
        while len(said) < min(self.k, max_tokens) and (last := (said or text)[-1]) in follows:
            said.append(follows[last])
        return said
''',
        "harness run --strategy full --decode lossless,lossless+{name}",
    ),
    "stop": (
        "stops",
        '''from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from harness.contracts import Cursor, RowStop, Stop


@dataclass(frozen=True)
class {made}(Stop):
    """End a completion with the first line that is long enough."""

    characters: Annotated[int, Field(ge=1, description="least length of the line")] = 8

    def start(self, cursor: Cursor) -> RowStop:
        """Return the rule of one completion."""
        return Lines(cursor, self.characters)


class Lines(RowStop):
    def __init__(self, cursor: Cursor, characters: int) -> None:
        self.cursor, self.characters = cursor, characters

    def over(self, token_ids: Sequence[int]) -> bool:
        """Say whether the completion ends with the last of its tokens."""
        ended, newline, _ = self.cursor.text(token_ids).rpartition("\\n")
        return bool(newline) and any(len(line.strip()) >= self.characters for line in ended.split("\\n"))
''',
        "harness run --strategy full --stop none,{name}",
    ),
    "kv": (
        "kv",
        '''from harness.contracts import KVFacts, KVPolicy, Leaving


class {made}(KVPolicy):
    """Leave zeros as keys and values of skipped layers."""

    facts = KVFacts(note="skipped layers hold zeros, which take a share of the attention and add nothing.")

    def leave(self, leaving: Leaving) -> None:
        """Say what later tokens find in the layers that these tokens skip."""
        for row, position in zip(leaving.rows, leaving.positions, strict=True):
            self.batch.entries[leaving.layer :, row, :, position] = 0
''',
        "harness run --strategy classifier --kv recompute,{name}",
    ),
}
"""What can be begun → its entry-point group, its module, and a command that uses it."""

PYPROJECT = """[build-system]
requires = ["setuptools>=68"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "0.1.0"
description = "A plug-in of early-exit-harness"
requires-python = ">=3.11"
dependencies = ["early-exit-harness"]

[project.entry-points."harness.{group}"]
{name} = "{module}:{made}"

[tool.setuptools]
py-modules = ["{module}"]
"""


def new(
    kind: Annotated[str, typer.Argument(help=f"What it adds: {', '.join(TEMPLATES)}.", metavar="KIND")],
    name: Annotated[str, typer.Argument(help="Its name, and the folder's: lower case, with hyphens.", metavar="NAME")],
) -> None:
    """Begin a package that adds a strategy, score, task …: it runs as it is, and is yours to change."""
    if kind not in TEMPLATES:
        raise UnknownNameError("kind", kind, TEMPLATES)
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ConfigError(
            f"'{name}' is no name of a plug-in: give lower-case letters and digits, with hyphens between."
        )
    folder, module = Path(name), name.replace("-", "_")
    if folder.exists():
        raise StoreError(f"{folder} exists. Give another name, or remove it.")
    group, text, use = TEMPLATES[kind]
    if any(registry.group == f"harness.{group}" and name in registry for registry in REGISTRIES.values()):
        raise ConfigError(f"there is a {kind} '{name}' already (`harness show {name}`). Give another name.")
    if find_spec(module) is not None:
        raise ConfigError(f"'{module}' is a module that is installed already. Give another name.")
    words = {"name": name, "module": module, "group": group, "made": name.title().replace("-", "")}
    said = f'"""A {kind} for early-exit-harness."""\n\n'
    files = {"pyproject.toml": PYPROJECT, f"{module}.py": said + text}
    folder.mkdir()
    try:
        replace_files({folder / file: content.format(**words).encode() for file, content in files.items()})
    except OSError:
        rmtree(folder)
        raise
    say(f"{folder / module}.py is yours to change. Then:")
    for command in (f"pip install --no-deps -e {name}", f"harness check-plugin {name}", use):
        note(f"  {command.format(**words)}")


def check_plugin(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Registered names or packages. Default: all of other packages.", metavar="NAME"),
    ] = None,
    model: Annotated[str, typer.Option(help="The model that decodes.")] = "smollm2-135m",
    as_json: AsJson = False,
) -> None:
    """Check that what other packages plug in keeps its contract: batches, lossless decoding, ranges, draws.

    Exit code 1: something does not.
    """
    from harness.api.check_plugins import check_plugins

    found = []
    for one in check_plugins(names or (), model):
        found.append(one)
        if as_json:
            continue
        what = f"{one.kind}: {one.entry.name} ({one.entry.distribution})"
        held = ", ".join(one.held) or "nothing"
        if one.problem:
            note(f"broken  {what}: {one.problem}. Held before: {held}.")
        elif one.unchecked:
            note(f"partly  {what}: {held}. Not checked further: {one.unchecked}")
        else:
            note(f"ok      {what}: {held}.")
    if as_json:
        write_json([asdict(one) for one in found])
    elif not found:
        say("No other package registers anything. `harness new strategy NAME` begins one.")
    if any(one.problem for one in found):
        raise typer.Exit(BROKEN)
