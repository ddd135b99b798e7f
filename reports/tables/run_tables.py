"""Every table of a run. A new one is one function here: terminal, Markdown, LaTeX and the front page show it at once.

:data:`OF_RESULT` and :data:`OF_SUMMARY` list them in reading order; they differ in what they need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from harness.contracts import Metric
from harness.errors import UnknownNameError
from harness.records.cost import PARTS, PHASES, Attribution
from harness.records.estimate import Estimate
from harness.records.summary import EXIT, Summary
from reports.completions.token_kinds import KINDS
from reports.metrics.drafts import ACCEPTANCE, DRAFTED, LAYERS_READ, TOKENS_PER_VERIFICATION
from reports.metrics.speedups import DECODE_SPEEDUP
from reports.metrics.vocabulary import SESSIONS
from reports.recorded import RecordedRun
from reports.summary.measured import energy_origin
from reports.summary.pareto import choose_gain, coordinates, unmarked, without_front
from reports.tables.conclusion import conclusion
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
from reports.tables.table import Column, Facts, Heading, Line, Part, Table

HEADLINE = "What each operating point gives and saves"
ACCEPTANCE_NOTE = (
    "Share of the drafted tokens that stood, of how many; one behind a replaced token did not, whatever it was. Kinds "
    "are those that drafted tokens would have been, by a small lexer that does not see the prompt. [too few]: "
    "fewer than five blocks of samples drafted such tokens, or fewer than eight stood or fell."
)
_NAMES = {"check_heads": "heads of checks, drafts", "output_head": "LM head", "kv_fill": "exits, KV fill"}
"""Parts of a request that their own name does not explain."""

_Key = tuple[str | None, int | None, str | None]  # source, layer, kind


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


def chosen(summary: Summary, *, columns: Sequence[str] = (), sort: str = "", titled: str = "") -> Iterator[Part]:
    """Yield what is asked for of each task: one table of some metrics, or the tables whose titles have some words.

    With ``sort``, a metric's name, rows stand below full depth by its value, the best first, or the largest where
    neither direction is better.

    Raises:
        UnknownNameError: there is no such metric, or no such title.
    """
    for table in split_tables(summary):
        metrics = {metric.name: metric for metric in columns_of(table.rows)}
        for name in filter(None, (*columns, sort)):
            if name not in metrics:
                raise UnknownNameError("column", name, metrics)
        ordered = _sorted(table, metrics[sort]) if sort else table
        parts: list[Part] = [part for make in OF_RESULT for part in make(ordered)]
        if columns:
            shown = [columns_of(ordered.rows)[metrics[name]] for name in columns]
            parts = [_table(ordered, "", shown), Line(""), Facts(tuple((one.term, one.meaning) for one in shown))]
        elif titled:
            tables = [part for part in parts if isinstance(part, Table)]
            parts = [*(part for part in tables if titled.lower() in part.title.lower())]
            if not parts:
                raise UnknownNameError("table", titled, [one.title for one in tables])
        yield from (Heading(table.heading), *parts)


def _sorted(table: ResultTable, metric: Metric) -> ResultTable:
    """Return a table's rows by a metric, behind full depth; those without a value come last."""
    sign = 1 if metric.better == "lower" else -1
    full, *others = table.rows
    return replace(
        table,
        rows=(full, *sorted(others, key=lambda row: (row.value(metric) is None, sign * (row.value(metric) or 0.0)))),
    )


def headline(table: ResultTable) -> Iterator[Part]:
    """Yield what to use, what was run on what, and the columns that matter most."""
    yield from (Line(conclusion(table), "strong"), Line(""), Facts(table.facts))
    yield _table(table, HEADLINE, headline_columns(table.rows, counts=table.uneven))


def front(table: ResultTable) -> Iterator[Part]:
    """Yield why no row is marked as on the Pareto front; nothing where one is."""
    gain = choose_gain(table.rows)
    if gain is None or not any(coordinates(row, gain) for row in table.rows):
        yield from (Line(""), Line(f"No Pareto front: {without_front(table.rows)}.", "faint"))
    elif why := unmarked(table.rows):
        yield from (Line(""), Line(why, "faint"))


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
    kept = any(row.keep for row in table.rows)
    absent = [one.term for metric, one in columns.items() if one.empty and (kept or SESSIONS not in metric.sections)]
    if absent:
        yield from (Line(""), Line(f"No row has a value, so no column: {', '.join(absent)}.", "faint"))


def acceptance_tables(table: ResultTable) -> Iterator[Table]:
    """Yield which drafts stood: by source and exit layer, and of each source by kind; none where none drafted."""
    found = [{(one.source, one.layer, one.kind): one for one in row.acceptances} for row in table.rows]
    places = [place for place, one in enumerate(found) if one]
    keys = {key for one in found for key in one}
    sources = sorted({source for source, _, _ in keys if source is not None}, key=lambda name: (name == EXIT, name))
    layers = sorted({layer for _, layer, _ in keys if layer is not None})

    def shown(title: str, wanted: Iterable[tuple[str, _Key]]) -> Table:
        """Return the rows that drafted any such token, with how many there were behind each share."""
        columns = [
            Column(
                header=header,
                form=".2f",
                unit="of tokens",
                cells=tuple(one[key].share if key in one else None for one in found),
                marks=tuple(f"of {one[key].drafted}" if key in one else "" for one in found),
            )
            for header, key in wanted
        ]
        return replace(_table(table, title, columns, wide=True).at(places), notes=(ACCEPTANCE_NOTE,))

    if not sources:
        return
    origins: list[tuple[str, _Key]] = [(name, (name, None, None)) for name in sources if name != EXIT]
    origins += [(f"exit at {layer}", (EXIT, layer, None)) for layer in layers]
    origins += [("exits", (EXIT, None, None))] if len(layers) > 1 else []
    yield shown("Drafts that stood, by what drafted them", origins)
    for source in sources:
        kinds: list[tuple[str, _Key]] = [(kind, key) for kind in KINDS if (key := (source, None, kind)) in keys]
        if kinds:
            named = "exits" if source == EXIT else source
            yield shown(f"Drafts of {named} that stood, by kind of token", kinds)


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
    for one in summary.attributions:
        yield Heading(f"{one.where} · where the {one.quantity} goes")
        yield from attribution_tables(one)
        more = f" ({one.blocks_left_out} more were not finished by all)" if one.blocks_left_out else ""
        notes = [
            f"{one.where}, {one.quantity}: the fit leaves {100 * one.residual:.1f} % of a window unexplained (median); "
            f"intervals resample {one.blocks} blocks{more}."
        ]
        if not one.measured:
            said = energy_origin(one.source)
            notes.append(f"energy here is {said}, not measured, and adds nothing to the time columns.")
        if apart := [check.strategy for check in one.checks if check.agree is False]:
            notes.append(
                f"{', '.join(apart)}: the probe and the fit differ about the cost of a check. Asking costs otherwise "
                "where tokens run to the end than where they leave, or the run is too short; trust the probe."
            )
        yield from (Line(note, "faint", bullet=True) for note in notes)


def attribution_tables(attribution: Attribution) -> Iterator[Table]:
    """Yield the tables of one task and quantity; parts that no operating point has are left out.

    The table of deciding has the form of GREEN-CODE's Table IV: the controller's overhead over the early-exit run and
    over full depth.
    """
    rows, quantity = attribution.rows, attribution.quantity
    source = "" if quantity == "time" else f", {attribution.source}"

    def scaled(values: Iterable[float]) -> tuple[float, str]:
        """Return what to multiply by, and the unit then."""
        largest, unit = max(values, default=0.0), "s" if quantity == "time" else "J"
        return (1.0, unit) if largest >= 10 else (1e3, f"m{unit}") if largest >= 1e-2 else (1e6, f"µ{unit}")

    def table(title: str, names: Iterable[str], *columns: Column) -> Iterator[Table]:
        if names := tuple(names):
            yield Table(title=title, columns=(_label(names), *columns))

    scale, unit = scaled(row.total for row in rows)

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
    fine, small = scaled(check.direct.value for check in checks if check.direct)
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
