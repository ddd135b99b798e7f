"""``harness cache``: what is kept so that the next run need not make it again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any

import typer

from harness.appearance.visible_text import one_line
from harness.commands.console import escape, stdout, write_json
from harness.commands.lazy import LazyGroup
from harness.errors import UnknownNameError
from harness.host.cache import KINDS, cache_folder, clear, kept


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
    console = stdout()
    console.print(table)
    for kind, facts in KINDS.items():
        held = [one.size_bytes for one in found if one.kind == kind]
        if held:
            count = f"{len(held):d}" if facts.most is None else f"{len(held):d} of at most {facts.most:d}"
            console.print(
                escape(f"{kind}: {facts.what}; {_size(sum(held))} in {count}."), highlight=False, soft_wrap=True
            )
    if not found:
        console.print("Nothing is kept.")


def _clear(
    kinds: Annotated[
        list[str] | None,
        typer.Argument(help="converted, packed, observed, summaries. Default: all.", metavar="KIND"),
    ] = None,
) -> None:
    """Delete what is kept; whoever needs it next makes it again."""
    for kind in kinds or ():
        if kind not in KINDS:
            raise UnknownNameError("kind", kind, KINDS)
    size = _size(clear(frozenset(kinds or KINDS)))
    stdout().print(f"{size} freed.", highlight=False)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


class Cache(LazyGroup):
    """List or clear what is kept so that the next run need not make it again."""

    _commands: dict[str, Callable[..., Any]] = {"list": _list, "clear": _clear}  # noqa: RUF012  # typer's class

    def names(self) -> Sequence[str]:
        """Actions."""
        return tuple(self._commands)

    def summary(self, name: str) -> str:
        """The action."""
        return (self._commands[name].__doc__ or "").splitlines()[0]

    def load(self, name: str) -> Callable[..., Any]:
        """Its command."""
        return self._commands[name]

    def example(self, name: str) -> str:
        """How it is called."""
        return {"list": "harness cache list", "clear": "harness cache clear summaries"}[name]
