"""The grid's tables as text cells, and what must be said beside them; terminal and Markdown share them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.records.conditions import MIXED
from reports.green_code.numbers import Estimate, Numbers
from reports.green_code.table import QUANTITIES, GridComparison, GridPoint, GridTable, MatchedPoint
from reports.tables.columns import MISSING

__all__ = [
    "TextTable",
    "absolute_table",
    "caveats",
    "estimate",
    "heading",
    "matched_table",
    "quantity_tables",
    "remarks",
]

_CAVEATS = (
    "no cache: as published, the whole prefix again for every token. With a cache: the same points as run in practice",
    "agent over own time, own energy: cost of the checks, as a share of the operating point's own cost. Ours is the "
    "price of a check (asked and never obeyed, less full depth) times the checks; the paper's was measured by nesting "
    "sensor windows (Table IV; JavaCorpus from its result files)",
    "asked, never exits: the paper's runs at threshold 0.94 on JavaCorpus, where its agent never left",
    "CodeBLEU is a score of the whole corpus and has no interval; the paper's counts missing data flow as 1",
    "untuned full depth: ours is a run of its own, with a cache, not interleaved with the others; the paper's untuned "
    "Python runs have other references, so no score of theirs is kept",
    "≠ nothing measured skips as many layers, give or take 5 % of them",
    "– not measured, not published, or not defined",
)

SETTINGS = {
    "layers_skipped": ("agent",),
    "time_saving": ("base", "agent", "never"),
    "energy_saving": ("base", "agent", "never"),
    "rouge_l_kept": ("base", "agent"),
    "codebleu_kept": ("base", "agent"),
    "overhead_time": ("agent",),
    "overhead_energy": ("agent",),
    "overhead_time_of_full": ("agent",),
    "overhead_energy_of_full": ("agent",),
}
"""Which settings a quantity says something about."""

NO_SCORES = "random weights here, so scores mean nothing"
"""Why a random run has no score."""


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table that is ready to print: title, header of as many cells as each row; the first column is text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


HERE = ("here,\nno cache", "here,\nwith a cache")


def caveats(comparison: GridComparison) -> tuple[str, ...]:
    """Say how to read the numbers, those of the runs' weights included: one point a line."""
    weights = " or ".join(dict.fromkeys(table.weights for table in comparison.tables)) or "no run"
    shares = (
        "every share but the agent's over own cost is of the same system's own full depth under the same KV policy "
        f"(the paper's: tuned; here: {weights}); in brackets 95 % intervals (ROUGE-L kept has "
        "one from 50 samples on, 8 of which differ). Published: one run each, no interval "
        "(the spread over samples is in the table of absolute numbers)"
    )
    return (shares, *_CAVEATS)


def heading(table: GridTable) -> tuple[str, ...]:
    """Say what was run, and what stands in for what: one sentence a line."""
    named = " and ".join(table.stands_for)
    dataset = {"java": "JavaCorpus", "python": "PY150"}.get(table.language, table.task)
    lines = [f"paper: {named} on {dataset}, about 1,000 samples, Quadro RTX 8000"]
    weights = f"{table.weights} weights, {table.dtype}, exit head {table.exit_head.partition(':')[0]}"
    lines.append(f"here: {table.model} ({weights}) on {table.source}, {table.samples} samples, {table.machine}")
    standing = []
    if not _is_the_papers(table):
        standing.append(f"{table.model} for {named}")
    standing.append(f"our agent {table.agent} for theirs")
    if table.source_kind == "embedded":
        standing.append(f"{table.source.removeprefix('embedded: ')} for {dataset}")
    lines.append(f"stands in: {'; '.join(standing)}")
    return tuple(lines)


def remarks(table: GridTable) -> tuple[str, ...]:
    """Return what this table needs said: the cache, thresholds that mean something else, estimated energy."""
    found = [_about_the_cache(table)]
    if table.weights == "random":
        found.append(f"{NO_SCORES}: there is no ROUGE-L or CodeBLEU of ours, and none is kept")
    if table.thresholds_differ:
        found.append(
            "the same thresholds are not the same settings: our agent's probabilities are calibrated differently, and "
            f"at the paper's thresholds it skips {_span(table, 'uncached')} % of the layers where theirs skips "
            f"{_span(table, 'published')} %. Compare at matched depth"
        )
    if not table.energy_measured:
        said = {
            "estimate": "~ energy that no sensor read here: an estimate from processor time, which adds no evidence of "
            "its own",
            MIXED: "energy here is of several sources, which are not added up, so there is none",
        }
        found.append(said.get(table.energy_source, f"energy source here: {table.energy_source}"))
    return tuple(found)


def quantity_tables(table: GridTable, *, every: bool = True, decimals: int = 1) -> Iterator[TextTable]:
    """Yield a table per relative quantity, in percent: settings down, the paper's models and ours across.

    Args:
        table: what is shown.
        every: also the agent's share of full depth's cost.
        decimals: of intervals' bounds.
    """
    for quantity, title in QUANTITIES.items():
        if quantity.endswith("_of_full") and not every:
            continue
        rows = []
        for point in table.points:
            kind = point.key if point.key in ("base", "full", "never") else "agent"
            cells = _cells(table, point, quantity, decimals)
            if kind in SETTINGS[quantity] and any(cell != MISSING for cell in cells):
                rows.append((point.label, *cells))
        if rows:
            names = ("paper,\n" + name.replace("-", "-\n", 1) for name in table.stands_for)
            yield TextTable(f"{title}, %", ("", *names, *HERE), tuple(rows))


def matched_table(table: GridTable, *, cached: bool = True) -> TextTable:
    """Return published points beside the measured ones that skip the most similar share of layers: paper / here.

    Args:
        table: what is shown.
        cached: with a column of what ours saves when it keeps a cache.
    """
    header = (
        "paper",
        "here, nearest",
        "layers\nskipped, %",
        "time\nsaved, %",
        "ROUGE-L\nkept, %",
        "time saved,\nwith a cache",
    )
    rows = tuple(_matched_row(point, table) for point in table.matched)
    columns = len(header) - (0 if cached else 1)
    return TextTable(
        "At matched depth, no cache: paper / here, whatever the strategy",
        header[:columns],
        tuple(row[:columns] for row in rows),
    )


def absolute_table(table: GridTable) -> TextTable:
    """Return means per sample with the standard deviation over samples: two machines, nothing to compare across."""
    energy = f"J ({table.energy_source})"
    header = (
        "per sample",
        *(f"{name}\n{unit}" for name in table.stands_for for unit in ("s", "J")),
        *(f"{where}\n{unit}" for where in ("no cache", "cache") for unit in ("s", energy)),
    )
    rows = []
    for point in table.points:
        numbers = [*(point.published.get(name) for name in table.stands_for), point.uncached, point.cached]
        cells = (cell for one in numbers for cell in _costs(one))
        rows.append((point.label, *cells))
    return TextTable(
        "Absolute, mean ± standard deviation over samples: two machines, not to be compared", header, tuple(rows)
    )


def estimate(value: Estimate | None, *, mark: str = "", decimals: int = 1) -> str:
    """Return a fraction as percent with its interval, bounds with so many decimals; ``–`` for a missing one."""
    if value is None:
        return MISSING
    text = mark + _percent(value.value, 1)
    if value.low is not None and value.high is not None:
        text += f" [{_percent(value.low, decimals)}, {_percent(value.high, decimals)}]"
    return text


def _percent(value: float, decimals: int) -> str:
    rounded = round(100 * value, decimals) + 0.0  # no negative zero
    return f"{rounded:.{decimals}f}".replace("-", "−")


def _cells(table: GridTable, point: GridPoint, quantity: str, decimals: int) -> list[str]:
    mark = "~" if "energy" in quantity and not table.energy_measured else ""
    published = [
        estimate(getattr(numbers, quantity)) if numbers else MISSING
        for numbers in (point.published.get(name) for name in table.stands_for)
    ]
    ours = [
        estimate(getattr(numbers, quantity), mark=mark, decimals=decimals) if numbers else MISSING
        for numbers in (point.uncached, point.cached)
    ]
    return [*published, *ours]


def _matched_row(point: MatchedPoint, table: GridTable) -> tuple[str, ...]:
    def pair(quantity: str) -> str:
        theirs, ours = getattr(point.published, quantity), getattr(point.uncached, quantity)
        return " / ".join(estimate(Estimate(one.value) if one else None) for one in (theirs, ours))

    name = (
        f"{point.paper_model}, {point.threshold:g}" if len(table.stands_for) > 1 else f"threshold {point.threshold:g}"
    )
    ours = point.operating_point.replace(f"rl:agent={table.agent}:threshold=", f"{table.agent} ")
    return (
        name,
        ours if point.near else f"{ours} ≠",
        pair("layers_skipped"),
        pair("time_saving"),
        pair("rouge_l_kept"),
        estimate(point.cached.time_saving) if point.cached else MISSING,
    )


def _about_the_cache(table: GridTable) -> str:
    published = ", ".join(f"{100 * time_s:.0f} % ({name})" for name, (time_s, _) in table.published_cache.items())
    here = f"{estimate(table.cache[0])} %" if table.cache[0] else "not measured"
    return (
        f"switching the cache on, without early exit, saves time: paper {published}, with longer prompts; here {here}"
    )


def _span(table: GridTable, whose: str) -> str:
    agent = [point for point in table.points if point.key not in ("base", "full", "never")]
    numbers: list[Numbers] = (
        [one for point in agent for one in point.published.values()]
        if whose == "published"
        else [point.uncached for point in agent if point.uncached]
    )
    values = [100 * one.layers_skipped.value for one in numbers if one.layers_skipped]
    return f"{min(values):.0f} to {max(values):.0f}"


def _costs(numbers: Numbers | None) -> tuple[str, str]:
    if numbers is None:
        return MISSING, MISSING
    return _spread(numbers.time_s, numbers.time_std_s), _spread(numbers.energy_j, numbers.energy_std_j)


def _spread(value: float | None, deviation: float | None) -> str:
    if value is None:
        return MISSING
    decimals = 0 if value >= 100 else 2
    return f"{value:.{decimals}f}" + ("" if deviation is None else f" ± {deviation:.{decimals}f}")


def _is_the_papers(table: GridTable) -> bool:
    return len(table.stands_for) == 1
