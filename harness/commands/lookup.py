"""``harness list``, ``show`` and ``cache``: what is registered, third-party packages included, and what is kept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.appearance.terminal import paragraphs
from harness.appearance.visible_text import one_line
from harness.commands.console import escape, note, stdout, write_json
from harness.commands.lazy import LazyGroup
from harness.errors import UnknownNameError
from harness.host.cache import KINDS, cache_folder, clear, kept
from harness.registry import PROTOCOLS, REGISTRIES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.appearance.terminal import Console
    from harness.config.options import OptionFacts
    from harness.contracts import Metric, Score

_EXAMPLES = {"strategies": "--strategy ", "drafts": "--decode lossless+", "stops": "--stop "}
"""Plug-ins with options, and how a run names them."""


def list_(
    kind: Annotated[
        str | None, typer.Argument(help=f"One of {', '.join(REGISTRIES)}; all of them when left out.", metavar="KIND")
    ] = None,
) -> None:
    """List what is registered, third-party packages included."""
    from rich.table import Table

    if kind is not None and kind not in REGISTRIES:
        raise UnknownNameError("kind of thing", kind, REGISTRIES)
    console = stdout()
    for noun in [kind] if kind else list(REGISTRIES):
        table = Table(title=noun, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2))
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
        if noun == "metrics":
            _show_facts(console, _metric_facts(thing))
        else:
            _show_table(console, _fields(thing))
    if noun == "tasks":
        _show_table(console, _task_facts(thing()))
    if noun in _EXAMPLES:
        _show_options(console, noun, name)
    if noun == "strategies" and (shipped := _shipped(name)):
        console.print(
            f"\nShipped with the package ([dim]harness/shipped/SET/{escape(name)}*.json[/]):", highlight=False
        )
        _show_table(console, {folder: ", ".join(names) for folder, names in shipped.items()})
    if noun == "scores":
        _show_facts(console, _score_facts(thing()))
    if noun == "recipes":
        console.print(f"\n[dim]harness train {escape(name)} --help[/] lists its options.", highlight=False)
    console.print()


def _show_facts(console: Console, facts: Mapping[str, Any]) -> None:
    for fact, value in facts.items():
        if value:
            console.print(f"  [dim]{escape(fact)}[/] {escape(value)}", highlight=False)


def _show_table(console: Console, facts: Mapping[str, Any]) -> None:
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


def _fields(thing: Any) -> dict[str, Any]:
    """Return the fields of a catalogue entry, those within them beside their own."""
    import dataclasses
    from collections.abc import Mapping

    if not dataclasses.is_dataclass(thing):
        return {}
    found: dict[str, Any] = {}
    for field in dataclasses.fields(thing):
        value = getattr(thing, field.name)
        if dataclasses.is_dataclass(value):
            found |= {f"{field.name} {key}": one for key, one in _fields(value).items()}
        elif isinstance(value, Mapping):
            for key, one in value.items():
                found |= (
                    {f"{key} {name}": each for name, each in one.items()} if isinstance(one, Mapping) else {key: one}
                )
        elif field.name != "name":
            found[field.name] = value
    return found


def _task_facts(task: Any) -> dict[str, Any]:
    """Return what a task can be drawn under and from; what one of another shape does not say is left out."""
    from tasks.code_completion import CodeCompletion

    default = getattr(task, "default_protocol", "")
    fitting = task.protocols() if isinstance(task, CodeCompletion) else (default,)
    protocols = [PROTOCOLS.entry(name) for name in fitting if name in PROTOCOLS]
    named = {"whole files": "documents", "lines": "lines"}
    datasets = {what: getattr(task, name, None) for what, name in named.items()}
    return {
        **{f"protocol {one.name}{' (default)' if one.name == default else ''}": one.summary for one in protocols},
        "--source PATH": getattr(task, "row_format", ""),
        **{f"--source hub, {what}": getattr(one, "repository", "") for what, one in datasets.items()},
    }


def _shipped(name: str) -> dict[str, list[str]]:
    """Return what is shipped of a strategy's trained parts: set → their names, the model's own first."""
    from harness.models.artefacts import SHIPPED

    found = {
        folder.name: sorted(
            (file.stem for file in folder.glob("*.json") if file.stem.partition("-")[0] == name), key=len
        )
        for folder in sorted(SHIPPED.iterdir())
    }
    return {folder: names for folder, names in found.items() if names}


def _metric_facts(metric: Metric) -> dict[str, Any]:
    of = "a sample" if metric.of_sample else "an operating point"
    return {
        "header": metric.term,
        "title": metric.title,
        "unit": metric.unit,
        "better": metric.better,
        "of": f"{of}, percentile {metric.percentile:g}" if metric.percentile is not None else of,
        "against full depth": metric.paired and f"a {metric.paired}, with interval and test",
        "in": ", ".join(metric.sections),
    }


def _score_facts(score: Score) -> dict[str, Any]:
    of = [
        what
        for what, is_defined in (("samples", score.scores_samples), ("corpora", score.scores_corpora))
        if is_defined
    ]
    return {
        "title": score.title,
        "unit": score.unit or "0…1",
        "better": score.better,
        "of": " and ".join(of),
        "languages": ", ".join(sorted(score.languages)) or "all",
        "unavailable": score.unavailable(),
    }


def _show_options(console: Console, noun: str, name: str) -> None:
    from rich.table import Table

    from harness.config.options import option_facts

    facts = option_facts(name, REGISTRIES[noun])
    if not facts:
        console.print("\nNo options.")
        return
    table = Table(title="Options", title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2))
    for column in ("option", "type", "range", "default", "meaning"):
        table.add_column(column, style="cyan" if column == "option" else "", overflow="fold")
    for fact in facts:
        default = "" if fact.default is None else fact.default
        table.add_row(*map(escape, (fact.name, fact.kind, fact.limits, default, fact.description)))
    console.print()
    console.print(table)
    console.print(f"\n[dim]harness run {escape(_EXAMPLES[noun] + name + _example(facts))}[/]")


def _example(facts: Sequence[OptionFacts]) -> str:
    """Return the options of an example that a run takes: those that are needed, else the first one's default."""
    if needed := [fact.name for fact in facts if fact.required]:
        return "".join(f":{option}=…" for option in needed)
    first, default = facts[0].name, facts[0].default
    plain = isinstance(default, int | float) or (isinstance(default, str) and re.fullmatch(r"[\w./-]+", default))
    return f":{first}={default}" if plain else ""


def _list(
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """List what is kept: kind, size, when it was last used."""
    found = list(kept())
    if as_json:
        rows = [{"kind": one.kind, "path": str(one.path), "bytes": one.size_bytes, "used": one.used} for one in found]
        write_json(rows)
        return
    from rich.table import Table

    table = Table(box=None, title=one_line(str(cache_folder())), title_justify="left")
    table.add_column("kind")
    table.add_column("name", overflow="fold")
    table.add_column("size", justify="right")
    table.add_column("used")
    for one in found:
        used = datetime.fromtimestamp(one.used).strftime("%Y-%m-%d %H:%M")
        table.add_row(one.kind, escape(one_line(one.path.name)), _size(one.size_bytes), used)
    stdout().print(table)
    for kind, facts in KINDS.items():
        held = [one.size_bytes for one in found if one.kind == kind]
        if held:
            count = f"{len(held):d}" if facts.most is None else f"{len(held):d} of at most {facts.most:d}"
            note(f"{kind}: {facts.what}; {_size(sum(held))} in {count}.")
    if not found:
        note("Nothing is kept.")


def _clear(
    kinds: Annotated[
        list[str] | None,
        typer.Argument(help=f"{', '.join(KINDS)}. Default: all.", metavar="KIND"),
    ] = None,
) -> None:
    """Delete what is kept; whoever needs it next makes it again."""
    for kind in kinds or ():
        if kind not in KINDS:
            raise UnknownNameError("kind", kind, KINDS)
    size = _size(clear(frozenset(kinds or KINDS)))
    note(f"{size} freed.")


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


class Cache(LazyGroup):
    """List or clear what is kept so that the next run need not make it again."""

    of = {"list": (_list, "harness cache list"), "clear": (_clear, "harness cache clear summaries")}  # noqa: RUF012
