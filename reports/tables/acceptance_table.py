"""Which drafts stood, as tables of text: by what drafted them, and by kind of token. All formats share them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from harness.records.acceptance import EXIT, Acceptance
from reports.completions.token_kinds import KINDS
from reports.tables.attribution_table import TextTable
from reports.tables.columns import MISSING

__all__ = ["ACCEPTANCE_COLUMNS", "ACCEPTANCE_NOTE", "acceptance_lines", "acceptance_tables", "without_intervals"]

ACCEPTANCE_COLUMNS = (*Acceptance.model_fields, "low", "high")
ACCEPTANCE_NOTE = (
    "Accepted: the share of drafted tokens that stood; one behind a replaced token did not, whatever it was. Kinds are "
    "those that drafted tokens would have been, by a small lexer that does not see the prompt. Brackets: 95 % "
    "bootstrap intervals over blocks of samples; none where fewer than five blocks drafted, or fewer than eight tokens "
    "stood or fell."
)


def acceptance_tables(acceptances: Iterable[Acceptance]) -> Iterator[tuple[str, tuple[TextTable, ...]]]:
    """Yield each task with its tables: of each operating point one by source and layer, and one by kind."""
    for task, of_task in groupby(acceptances, key=lambda one: one.task):
        tables = [
            table
            for name, of_point in groupby(of_task, key=lambda one: one.operating_point)
            for table in _of_point(name, list(of_point))
        ]
        yield task, tuple(tables)


def acceptance_lines(acceptances: Iterable[Acceptance]) -> Iterator[dict[str, object]]:
    """Yield lines of CSV, by :data:`ACCEPTANCE_COLUMNS`; what is missing, or all, has none."""
    for one in acceptances:
        share = one.share.model_dump(include={"low", "high"}, exclude_none=True)
        yield {**one.model_dump(exclude={"share"}, exclude_none=True), "share": one.share.value, **share}


def without_intervals(table: TextTable) -> TextTable:
    """Return a table without its intervals, for narrow screens; the files have them."""
    return replace(table, rows=tuple(tuple(cell.partition(" [")[0] for cell in row) for row in table.rows))


def _of_point(name: str, found: Sequence[Acceptance]) -> Iterator[TextTable]:
    whole = [one for one in found if one.kind is None]
    sources = list(dict.fromkeys(one.source for one in whole))
    if len(sources) == 2:  # one, and all of them
        sources = sources[:1]
    layers = [one for one in whole if one.layer is not None]
    yield TextTable(
        f"Which drafts of {name} stood",
        ("drafted by", "tokens", "accepted", "share"),
        tuple(
            (_label(one), str(one.drafted), str(one.accepted), _share(one))
            for one in whole
            if one.source in sources and not (one.source == EXIT and one.layer is None and len(layers) == 1)
        ),
    )
    by_kind = {(one.source, one.kind): one for one in found if one.layer is None}
    kinds = [kind for kind in KINDS if (None, kind) in by_kind]
    if kinds:
        yield TextTable(
            f"The same by kind of token, {name}",
            ("kind", *(f"{_named(source)},\n{what}" for source in sources for what in ("tokens", "accepted"))),
            tuple(
                (kind, *(cell for source in sources for cell in _cells(by_kind.get((source, kind))))) for kind in kinds
            ),
        )


def _label(one: Acceptance) -> str:
    return _named(one.source) if one.layer is None else f"exit at {one.layer}"


def _named(source: str | None) -> str:
    return "all" if source is None else "exits" if source == EXIT else source


def _cells(one: Acceptance | None) -> tuple[str, str]:
    return (MISSING, MISSING) if one is None else (str(one.drafted), _share(one))


def _share(one: Acceptance) -> str:
    text = f"{one.share.value:.2f}"
    return text if one.share.interval is None else f"{text} [{one.share.low:.2f}, {one.share.high:.2f}]"
