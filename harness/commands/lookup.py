"""``harness list``, ``show`` and ``cache``: what is registered, third-party packages included, and what is kept."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.appearance.terminal import paragraphs
from harness.appearance.visible_text import one_line
from harness.commands.console import escape, note, stdout, write_json
from harness.commands.options import AsJson
from harness.errors import UnknownNameError
from harness.host.cache import KINDS, cache_folder, clear, kept
from harness.registry import PROTOCOLS, REGISTRIES

if TYPE_CHECKING:
    from rich.table import Table

    from harness.appearance.terminal import Console

_EXAMPLES = {
    "strategies": "--strategy ",
    "drafts": "--decode lossless+",
    "stops": "--stop ",
    "prompts": "--prompt-exit ",
}
"""Plug-ins with options, and how a run names them."""

_METRIC = ("term", "title", "unit", "better", "percentile", "paired", "sections")
_SCORE = ("title", "unit", "better", "languages", "sections")


def list_(
    kind: Annotated[
        str | None, typer.Argument(help=f"One of {', '.join(REGISTRIES)}; all of them when left out.", metavar="KIND")
    ] = None,
) -> None:
    """List what is registered, third-party packages included."""
    if kind is not None and kind not in REGISTRIES:
        raise UnknownNameError("kind of thing", kind, REGISTRIES)
    console = stdout()
    for noun in [kind] if kind else list(REGISTRIES):
        table = _table(noun)
        table.add_column("name", style="cyan", no_wrap=True)
        table.add_column("what it is", overflow="fold")
        table.add_column("from", style="dim", overflow="fold")
        for entry in REGISTRIES[noun].entries():
            what = next(paragraphs(entry.summary), "")
            table.add_row(*map(escape, (entry.name, what, entry.distribution)))
        console.print(table)
        console.print()


def show(name: Annotated[str, typer.Argument(help="A name that `harness list` lists.", metavar="NAME")]) -> None:
    """Show what one name stands for: source paper, options, ranges and defaults."""
    holders = [noun for noun, registry in REGISTRIES.items() if name in registry]
    if not holders:
        known = dict.fromkeys(known for registry in REGISTRIES.values() for known in registry.names())
        raise UnknownNameError("name", name, known, "See `harness list`.")
    for noun in holders:
        _show_entry(noun, name)


def _show_entry(noun: str, name: str) -> None:
    import inspect

    registry = REGISTRIES[noun]
    entry, console = registry.entry(name), stdout()
    origin = escape(f"({registry.noun} from {entry.distribution}, {entry.target})")
    console.print(f"[bold cyan]{escape(name)}[/] [dim]{origin}[/]")
    thing = registry.load(name)
    if isinstance(thing, type):
        for number, paragraph in enumerate(paragraphs(inspect.getdoc(thing) or "")):
            console.print(("\n" if number else "") + escape(paragraph), highlight=False)
    else:
        console.print(escape(entry.summary), highlight=False)
        _show_facts(console, _told(thing, _METRIC) if noun == "metrics" else _fields(thing))
    if noun == "tasks":
        _show_facts(console, _task_facts(thing()))
    if noun == "scores":
        score = thing()
        _show_facts(console, {**_told(score, _SCORE), "unavailable": score.unavailable()})
    if noun in _EXAMPLES:
        _show_options(console, noun, name)
    if noun == "strategies" and (shipped := _shipped(name)):
        console.print(
            f"\nShipped with the package ([dim]harness/shipped/SET/{escape(name)}*.json[/]):", highlight=False
        )
        _show_facts(console, shipped)
    if noun == "recipes":
        console.print(f"\n[dim]harness train {escape(name)} --help[/] lists its options.", highlight=False)
    console.print()


def _show_facts(console: Console, facts: Mapping[str, Any]) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for fact, value in facts.items():
        if value not in (None, "", {}, ()):
            table.add_row(escape(fact.replace("_", " ")), escape(value))
    if table.row_count:
        console.print()
        console.print(table)


def _fields(thing: Any, prefix: str = "") -> dict[str, Any]:
    """Return the fields of a catalogue entry, and items of its mappings, those within them beside their own."""
    if dataclasses.is_dataclass(thing):
        parts = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing) if field.name != "name"}
    elif isinstance(thing, Mapping):
        parts = dict(thing)
    else:
        return {prefix: thing} if prefix else {}
    found: dict[str, Any] = {}
    for name, value in parts.items():
        within = dataclasses.is_dataclass(thing) and isinstance(value, Mapping)
        found |= _fields(value, "" if within else f"{prefix} {name}".strip())
    return found


def _task_facts(task: Any) -> dict[str, Any]:
    """Return what a task can be drawn under and from; what one of another shape does not say is left out."""
    from tasks.code_completion import CodeCompletion

    default = getattr(task, "default_protocol", "")
    fitting = task.protocols() if isinstance(task, CodeCompletion) else (default,)
    protocols = [PROTOCOLS.entry(name) for name in fitting if name in PROTOCOLS]
    datasets = {what: getattr(task, of, None) for what, of in (("whole files", "documents"), ("lines", "lines"))}
    return {
        **{f"protocol {one.name}{' (default)' if one.name == default else ''}": one.summary for one in protocols},
        "--source PATH": getattr(task, "row_format", ""),
        **{f"--source hub, {what}": getattr(one, "repository", "") for what, one in datasets.items()},
    }


def _shipped(name: str) -> dict[str, str]:
    """Return what is shipped of a strategy's trained parts: set → their names, the model's own first."""
    from harness.models.artefacts import SHIPPED

    found = {}
    for folder in sorted(SHIPPED.iterdir()):
        names = [file.stem for file in folder.glob("*.json") if file.stem.partition("-")[0] == name]
        found[folder.name] = ", ".join(sorted(names, key=len))
    return {folder: names for folder, names in found.items() if names}


def _told(thing: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return attributes of a metric or a score; of several values in one all of them."""
    found = {name: getattr(thing, name) for name in names}
    listed = (frozenset, Mapping, tuple)
    return {name: ", ".join(sorted(value)) if isinstance(value, listed) else value for name, value in found.items()}


def _show_options(console: Console, noun: str, name: str) -> None:
    from harness.config.options import option_facts

    facts = option_facts(name, REGISTRIES[noun])
    if not facts:
        console.print("\nNo options.")
        return
    table = _table("Options")
    for column in ("option", "type", "range", "default", "meaning"):
        table.add_column(column, style="cyan" if column == "option" else "", overflow="fold")
    for fact in facts:
        default = "" if fact.default is None else fact.default
        table.add_row(*map(escape, (fact.name, fact.kind, fact.limits, default, fact.description)))
    console.print()
    console.print(table)
    first, default = facts[0].name, facts[0].default
    needed = [f":{fact.name}=…" for fact in facts if fact.required]
    plain = isinstance(default, int | float) or (isinstance(default, str) and re.fullmatch(r"[\w./-]+", default))
    example = "".join(needed) or (f":{first}={default}" if plain else "")
    console.print(f"\n[dim]harness run {escape(_EXAMPLES[noun] + name + example)}[/]")


def _table(title: str) -> Table:
    from rich.table import Table

    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2))


def cache(
    what: Annotated[str, typer.Argument(help="list or clear.", metavar="WHAT")] = "list",
    kinds: Annotated[
        list[str] | None, typer.Argument(help=f"To clear: {', '.join(KINDS)}. Default: all.", metavar="KIND")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List or clear what is kept so that the next run need not make it again."""
    if what not in ("list", "clear"):
        raise UnknownNameError("word", what, ("list", "clear"))
    for kind in kinds or ():
        if kind not in KINDS:
            raise UnknownNameError("kind", kind, KINDS)
    if what == "clear":
        note(f"{_size(clear(frozenset(kinds or KINDS)))} freed.")
        return
    found = [one for one in kept() if not kinds or one.kind in kinds]
    if as_json:
        rows = [{"kind": one.kind, "path": str(one.path), "bytes": one.size_bytes, "used": one.used} for one in found]
        write_json(rows)
        return
    table = _table(one_line(str(cache_folder())))
    for column in ("kind", "name", "size", "used"):
        table.add_column(column, overflow="fold", justify="right" if column == "size" else "left")
    for one in found:
        used = datetime.fromtimestamp(one.used).strftime("%Y-%m-%d %H:%M")
        table.add_row(one.kind, escape(one_line(one.path.name)), _size(one.size_bytes), used)
    stdout().print(table)
    for kind, facts in KINDS.items():
        if held := [one.size_bytes for one in found if one.kind == kind]:
            most = f" of at most {facts.most}" if facts.most is not None else ""
            note(f"{kind}: {facts.what}; {_size(sum(held))} in {len(held)}{most}.")
    if not found:
        note("Nothing is kept.")


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
