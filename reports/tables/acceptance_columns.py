"""Which drafts stood, as columns beside the operating points: by what drafted them, and by kind of token.

Terminal, Markdown, LaTeX and the leaderboard share them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.records.acceptance import EXIT, Acceptance
from harness.records.estimate import Estimate
from harness.records.summary import Summary, SummaryRow
from reports.completions.token_kinds import KINDS
from reports.tables.columns import MISSING, Column
from reports.tables.result import ResultTable

__all__ = ["ACCEPTANCE_COLUMNS", "ACCEPTANCE_NOTE", "acceptance_lines", "acceptance_sections"]

ACCEPTANCE_COLUMNS = ("task", "operating_point", *Acceptance.model_fields, "low", "high")
ACCEPTANCE_NOTE = (
    "Share of the drafted tokens that stood, of how many; one behind a replaced token did not, whatever it was. Kinds "
    "are those that drafted tokens would have been, by a small lexer that does not see the prompt. No interval: fewer "
    "than five blocks of samples drafted such tokens, or fewer than eight stood or fell."
)
_Key = tuple[str | None, int | None, str | None]  # source, layer, kind


def acceptance_sections(table: ResultTable) -> Iterator[tuple[str, list[Column]]]:
    """Yield title and columns: drafts by source and exit layer, and of each source by kind; none where none drafted."""
    keys = {_key(one) for row in table.rows for one in row.acceptances}
    sources = sorted({source for source, _, _ in keys if source is not None}, key=lambda name: (name == EXIT, name))
    layers = sorted({layer for _, layer, _ in keys if layer is not None})
    if not sources:
        return
    origins: list[tuple[str, _Key]] = [(name, (name, None, None)) for name in sources if name != EXIT]
    origins += [(f"exit at {layer}", (EXIT, layer, None)) for layer in layers]
    origins += [("exits", (EXIT, None, None))] if len(layers) > 1 else []
    yield "Drafts that stood, by what drafted them", _columns(table.rows, origins)
    for source in sources:
        kinds: list[tuple[str, _Key]] = [(kind, key) for kind in KINDS if (key := (source, None, kind)) in keys]
        if kinds:
            named = "exits" if source == EXIT else source
            yield f"Drafts of {named} that stood, by kind of token", _columns(table.rows, kinds)


def acceptance_lines(summary: Summary) -> Iterator[dict[str, object]]:
    """Yield lines of CSV, by :data:`ACCEPTANCE_COLUMNS`; what is missing, or all, has none."""
    for row in summary.rows:
        for one in row.acceptances:
            share = dict(zip(("low", "high"), one.share.interval or (), strict=False))
            counts = one.model_dump(exclude={"share"}, exclude_none=True)
            yield {
                "task": row.task, "operating_point": row.operating_point, **counts, "share": one.share.value, **share,
            }  # fmt: skip


def _columns(rows: Sequence[SummaryRow], wanted: Sequence[tuple[str, _Key]]) -> list[Column]:
    found = [{_key(one): one for one in row.acceptances} for row in rows]
    return [
        Column(header, header, tuple(_cell(of_row.get(key)) for of_row in found), "", "[95 %] of tokens", left=True)
        for header, key in wanted
    ]


def _key(one: Acceptance) -> _Key:
    return one.source, one.layer, one.kind


def _cell(one: Acceptance | None) -> str:
    return MISSING if one is None else f"{_share(one.share)} of {one.drafted}"


def _share(share: Estimate) -> str:
    text = f"{share.value:.2f}"
    return text if share.interval is None else f"{text} [{share.low:.2f}, {share.high:.2f}]"
