"""Every table of a run. A new one is one function here: terminal, Markdown, LaTeX and the front page show it at once.

:data:`OF_RESULT` and :data:`OF_SUMMARY` list the functions, in reading order; they differ in what they need: the rows
that may be compared with each other, or a whole summary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from harness.records.cost import PARTS, PHASES, Attribution, Quantity
from harness.records.estimate import Estimate
from harness.records.summary import EXIT, Acceptance, Summary
from reports.completions.token_kinds import KINDS
from reports.metrics.drafts import ACCEPTANCE, DRAFTED, LAYERS_READ, TOKENS_PER_VERIFICATION
from reports.metrics.speedups import DECODE_SPEEDUP
from reports.recorded import RecordedRun
from reports.summary.measured import energy_origin
from reports.summary.pareto import unmarked, without_front
from reports.tables.plot import draw_front
from reports.tables.result import (
    ResultTable,
    columns_of,
    draft_families,
    headline_columns,
    mark,
    sections_with_columns,
    split_tables,
    tone,
)
from reports.tables.table import Column, Facts, Heading, Line, Part, Picture, Table

HEADLINE = "What each operating point gives and saves"
ACCEPTANCE_NOTE = (
    "Share of the drafted tokens that stood, of how many; one behind a replaced token did not, whatever it was. Kinds "
    "are those that drafted tokens would have been, by a small lexer that does not see the prompt. [too few]: "
    "fewer than five blocks of samples drafted such tokens, or fewer than eight stood or fell."
)
_NAMES = {
    "check_heads": "heads of checks, drafts",
    "output_head": "LM head",
    "kv_fill": "exits, KV fill",
}  # of parts of a request that their own name does not explain


def parts_of(run: RecordedRun) -> list[Part]:
    """Return every table of a run, with headings and what else stands beside them."""
    return list(of_summary(run.summary))


def of_summary(summary: Summary) -> Iterator[Part]:
    """Yield what a summary is enough for."""
    for make in OF_SUMMARY:
        yield from make(summary)


def results(summary: Summary) -> Iterator[Part]:
    """Yield what is said of each task, under a heading."""
    for table in split_tables(summary):
        yield Heading(table.heading)
        for make in OF_RESULT:
            yield from make(table)


def headline(table: ResultTable) -> Iterator[Part]:
    """Yield what was run on what, and the columns that matter most."""
    yield Facts(table.facts)
    yield _table(table, HEADLINE, headline_columns(table.rows, counts=table.uneven))


def front(table: ResultTable) -> Iterator[Part]:
    """Yield the Pareto front as a drawing, or why there is none."""
    draw = draw_front(table)
    if draw is None:
        yield from (Line(""), Line(f"No Pareto front: {without_front(table.rows)}.", "faint"))
        return
    legend = (
        Line(f"{mark(row)} {letter} {row.operating_point}", tone(row))
        for letter, row in zip(table.letters, table.rows, strict=True)
    )
    yield Picture("Pareto front", draw, tuple(legend), unmarked(table.rows))


def verdicts(table: ResultTable) -> Iterator[Part]:
    """Yield what may be said of each row against full depth."""
    cells = tuple(row.verdict or None for row in table.rows)
    if any(cells):
        words = Column(header="in words", cells=cells, kind="text", name="verdict", meaning="what may be said")
        yield _table(table, "Against full depth, in words", [words], wide=True)


def sections(table: ResultTable) -> Iterator[Part]:
    """Yield all numbers, by section; last the columns left out because no row has a value."""
    columns = columns_of(table.rows)
    for title, found in sections_with_columns(columns):
        yield _table(table, title, found, wide=True)
    absent = [column.term for column in columns.values() if column.empty]
    if absent:
        yield from (Line(""), Line(f"No row has a value, so no column: {', '.join(absent)}.", "faint"))


def acceptance_tables(table: ResultTable) -> Iterator[Table]:
    """Yield which drafts stood: by source and exit layer, and of each source by kind; none where none drafted."""
    keys = {_key(one) for row in table.rows for one in row.acceptances}
    sources = sorted({source for source, _, _ in keys if source is not None}, key=lambda name: (name == EXIT, name))
    layers = sorted({layer for _, layer, _ in keys if layer is not None})
    if not sources:
        return
    origins: list[tuple[str, _Key]] = [(name, (name, None, None)) for name in sources if name != EXIT]
    origins += [(f"exit at {layer}", (EXIT, layer, None)) for layer in layers]
    origins += [("exits", (EXIT, None, None))] if len(layers) > 1 else []
    yield _acceptances(table, "Drafts that stood, by what drafted them", origins)
    for source in sources:
        kinds: list[tuple[str, _Key]] = [(kind, key) for kind in KINDS if (key := (source, None, kind)) in keys]
        if kinds:
            named = "exits" if source == EXIT else source
            yield _acceptances(table, f"Drafts of {named} that stood, by kind of token", kinds)


def draft_lengths(table: ResultTable) -> Iterator[Table]:
    """Yield what longer drafts bring, of operating points that differ in the longest draft alone; none without."""
    families, columns = draft_families(table.rows), columns_of(table.rows)
    wanted = (TOKENS_PER_VERIFICATION, ACCEPTANCE, DRAFTED, LAYERS_READ, DECODE_SPEEDUP)
    shown = [column for metric in wanted if (column := columns.get(metric)) is not None and not column.empty]
    if families and shown:
        places = [place for family in families.values() for place in family]
        names = tuple(name for name, family in families.items() for _ in family)
        lengths = tuple(table.rows[place].draft_max for place in places)
        yield Table(
            title="What longer drafts bring",
            columns=(
                _label(names),
                Column(header="longest draft", cells=lengths, form=".0f"),
                *(replace(column.at(places), priority=0, needs_interval=False) for column in shown),
            ),
        )


def attributions(summary: Summary) -> Iterator[Part]:
    """Yield where time and energy of requests went."""
    for attribution in summary.attributions:
        yield Heading(f"{attribution.where} · where the {attribution.quantity} goes")
        yield from attribution_tables(attribution)
        yield from (Line(note, "faint", bullet=True) for note in _attribution_notes(attribution))


def attribution_tables(attribution: Attribution) -> Iterator[Table]:
    """Yield the tables of one task and quantity; parts that no operating point has are left out.

    The table of deciding has the form of GREEN-CODE's Table IV: the controller's overhead over the early-exit run and
    over full depth.
    """
    rows, quantity = attribution.rows, attribution.quantity
    scale, unit = _scale((row.total for row in rows), quantity)
    source = "" if quantity == "time" else f", {attribution.source}"

    def table(title: str, names: Iterable[str], *columns: Column) -> Iterator[Table]:
        if names := tuple(names):
            yield Table(title=title, columns=(_label(names), *columns))

    def numbers(header: str, cells: Iterable[Estimate | float | None], by: float = scale, form: str = ".1f") -> Column:
        return Column(header=header, cells=tuple(cells), scale=by, form=form)

    shown = [part for part in PARTS if any(row.parts[part].value for row in rows)]
    yield from table(
        f"Where the {quantity} of a request goes, {unit} (by the fit{source})",
        (row.operating_point for row in rows),
        numbers("total", (row.total for row in rows)),
        *(numbers(_NAMES.get(part, part.replace("_", " ")), (row.parts[part] for row in rows)) for part in shown),
    )
    verified = [row for row in rows if row.phases]
    yield from table(
        f"What lossless decoding does after the prompt, {unit} (by the fit{source})",
        (row.operating_point for row in verified),
        *(numbers(phase.replace("_", " "), (row.phases[phase] for row in verified)) for phase in PHASES),
    )
    decided = [row for row in rows if row.overhead is not None]
    yield from table(
        f"What deciding costs, {unit} (probe − full depth{source.replace(',', ';')}; the paper's Table IV)",
        (row.operating_point for row in decided),
        numbers("per request", (row.overhead for row in decided)),
        numbers("of this run, %", (row.overhead_of_run for row in decided), 100),
        numbers("of full depth, %", (row.overhead_of_full for row in decided), 100),
    )
    checks = [check for check in attribution.checks if check.direct or check.fitted]
    fine, small = _scale((check.direct.value for check in checks if check.direct), quantity)
    form = ".0f" if small.startswith("µ") else ".2f"
    agree = {None: None, True: "not distinguishable", False: "differ"}
    yield from table(
        f"One exit check, its LM heads included, {small}{f' ({attribution.source})' if source else ''}",
        (check.strategy for check in checks),
        numbers("probe − full depth", (check.direct for check in checks), fine, form),
        numbers("fit", (check.fitted for check in checks), fine, form),
        Column(header="the two", cells=tuple(agree[check.agree] for check in checks), kind="text"),
    )


OF_RESULT: tuple[Callable[[ResultTable], Iterator[Part]], ...] = (
    headline, front, verdicts, sections, acceptance_tables, draft_lengths,
)  # fmt: skip
OF_SUMMARY: tuple[Callable[[Summary], Iterator[Part]], ...] = (results, attributions)

_Key = tuple[str | None, int | None, str | None]  # source, layer, kind


def _table(table: ResultTable, title: str, columns: Iterable[Column], *, wide: bool = False) -> Table:
    """Return a table of all rows, each by its letter and, where there is room, by its name."""
    letters = tuple(f"{mark(row)} {letter}" for row, letter in zip(table.rows, table.letters, strict=True))
    names = replace(_label(row.operating_point for row in table.rows), priority=int(wide))
    return Table(
        title=title,
        columns=(Column(header="", cells=letters, kind="text", name="mark"), names, *columns),
        tones=tuple(map(tone, table.rows)),
        wide=wide,
    )


def _label(names: Iterable[str], header: str = "operating point") -> Column:
    return Column(header=header, cells=tuple(names), kind="label")


def _key(one: Acceptance) -> _Key:
    return one.source, one.layer, one.kind


def _acceptances(table: ResultTable, title: str, wanted: Sequence[tuple[str, _Key]]) -> Table:
    """Return the rows that drafted any such token, with how many there were behind each share."""
    found = [{_key(one): one for one in row.acceptances} for row in table.rows]
    columns = [
        Column(
            header=header,
            cells=tuple(one[key].share if key in one else None for one in found),
            form=".2f",
            unit="of tokens",
            marks=tuple(f"of {one[key].drafted}" if key in one else "" for one in found),
        )
        for header, key in wanted
    ]
    whole = _table(table, title, columns, wide=True)
    return replace(whole.at([place for place, one in enumerate(found) if one]), notes=(ACCEPTANCE_NOTE,))


def _attribution_notes(attribution: Attribution) -> Iterator[str]:
    left_out = attribution.blocks_left_out
    yield (
        f"{attribution.where}, {attribution.quantity}: the fit leaves {100 * attribution.residual:.1f} % of a window "
        f"unexplained (median); intervals resample {attribution.blocks} blocks"
        + (f" ({left_out} more were not finished by all)." if left_out else ".")
    )
    if not attribution.measured:
        yield f"energy here is {energy_origin(attribution.source)}, not measured, and adds nothing to the time columns."
    apart = [check.strategy for check in attribution.checks if check.agree is False]
    if apart:
        yield (
            f"{', '.join(apart)}: the probe and the fit differ about the cost of a check. Asking costs otherwise "
            "where tokens run to the end than where they leave, or the run is too short; trust the probe."
        )


def _scale(values: Iterable[float], quantity: Quantity) -> tuple[float, str]:
    """Return what to multiply by, and the unit then."""
    largest, unit = max(values, default=0.0), "s" if quantity == "time" else "J"
    return (1.0, unit) if largest >= 10 else (1e3, f"m{unit}") if largest >= 1e-2 else (1e6, f"µ{unit}")
