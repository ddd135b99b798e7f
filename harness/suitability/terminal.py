"""A model's suitability in a terminal: what exits know, what families of strategies could gain, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from harness.appearance.terminal import Line, Text
from harness.suitability.record import Chance, HeadFacts, Suitability
from harness.suitability.verdict import PAYS

__all__ = ["render"]


def render(found: Suitability) -> RenderableType:
    """Return it as a rich renderable."""
    head = (
        f"{found.model} ({found.weights}, {found.weights_format}), {found.tokens:,} tokens of {found.documents} "
        f"documents: {'; '.join(found.streams)}"
    )
    return Group(Line(head, "bold"), *_exits(found), Text(), *_chances(found), Text(), *_verdict(found))


def _exits(found: Suitability) -> Iterator[RenderableType]:
    table = _table()
    table.add_column("\nlayer", justify="right", no_wrap=True)
    for head in found.heads:
        for column, above in (
            ("agrees", f" {head.name.partition(' ')[0].removesuffix('-form')}"),
            ("entropy", ""),
            ("rank", ""),
        ):
            table.add_column(f"{above}\n{column}", justify="right", no_wrap=True)
    for place, layer in enumerate(found.exit_points):
        table.add_row(f"{layer}", *(cell for head in found.heads for cell in _cells(head, place)))
    skips = "; ".join(f"{head.name}{' (its own)' if head.own else ''} {head.oracle_skip:.1%}" for head in found.heads)
    yield table
    yield Text(f"An oracle would skip, of {found.num_layers} layers: {skips}.")
    yield Text(
        "agrees: share of tokens at which the exit's best token is the last layer's; entropy of what it says, in nats; "
        "rank: median of the last layer's token there. Teacher-forced. trained, closed: behind such linear maps. "
        "Closed-form maps are fitted on other documents than those they are judged on.",
        "dim",
    )


def _cells(head: HeadFacts, place: int) -> tuple[str, ...]:
    one = head.exits[place]
    return f"{one.agreement:.1%}", f"{one.entropy:.2f}", f"{one.rank_median:,.0f}"


def _chances(found: Suitability) -> Iterator[RenderableType]:
    table = _table()
    for column in ("family", "exits read by", "kept", "layers", "bytes", "time"):
        table.add_column(column, justify="left" if column in ("family", "exits read by") else "right", no_wrap=True)
    before: Chance | None = None
    shown: set[str] = set()
    for one in found.chances:
        if one.family in shown:  # with another head, which is slower
            continue
        shown.add(one.family)
        if before is None or before.lossless != one.lossless:
            table.add_row(Text("lossless" if one.lossless else "lossy", "dim"))
        before = one
        timed = "–" if one.time_speedup is None else f"{'≤ ' if one.bound else ''}{one.time_speedup:.2f}×"
        table.add_row(
            f"  {one.family}",
            one.head,
            "all" if one.lossless else f"{one.agreement:.1%}",
            f"{one.layers:.1f}",
            f"{'≤ ' if one.bound else ''}{one.bytes_speedup:.2f}×",
            Text(timed, "bold" if one.speedup >= PAYS and not one.bound else ""),
        )
    yield table
    yield Text(
        f"The fastest setting of each family, with its best head, that keeps {found.keep:.0%} of full depth's tokens; "
        "exact keys and values, batch 1. ≤: a bound, granted for nothing what it cannot have: the answer (oracle), a "
        "check (learned check), or a head of 4,096 rows that decides as the whole one does (short head). by bytes: of "
        "weights and cache read; by time: of parts measured here.",
        "dim",
    )


def _verdict(found: Suitability) -> Iterator[RenderableType]:
    for sentence in found.verdict:
        yield Text(sentence, "bold" if sentence.startswith(("Lossy", "Lossless")) else "")


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
