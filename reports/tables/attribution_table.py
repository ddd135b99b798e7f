"""An attribution as tables of text: what a request's parts cost, what deciding costs, and whether two ways differ.

The table of deciding has the form of GREEN-CODE's Table IV: the controller's overhead over the early-exit run and over
full depth. Terminal and Markdown share these tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from harness.records.cost import PARTS, PHASES, Attribution, OperatingPointCost, Quantity
from harness.records.estimate import Estimate
from reports.summary.energy import energy_origin
from reports.tables.columns import MISSING

__all__ = ["TextTable", "attribution_notes", "attribution_tables", "without_plus_minus"]

NAMES = {
    "prefill": "prefill",
    "layers": "layers",
    "exit_checks": "exit\nchecks",
    "check_heads": "heads of\nchecks, drafts",
    "output_head": "LM\nhead",
    "kv_fill": "exits,\nKV fill",
    "rest": "rest",
}


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table that is ready to print.

    Attributes:
        title: what it answers.
        header: one cell per column, of one line or two; the first column is text, the others are numbers.
        rows: as many cells each.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def attribution_tables(attribution: Attribution) -> tuple[TextTable, ...]:
    """Return the tables of one task and quantity; parts that no operating point has are left out."""
    scale, unit = _scale((row.total for row in attribution.rows), attribution.quantity)
    source = "" if attribution.quantity == "time" else f", {attribution.source}"
    label = "" if attribution.quantity == "time" else f"; {attribution.source}"
    shown = [part for part in PARTS if any(row.parts[part].value for row in attribution.rows)]
    parts = TextTable(
        f"Where the {attribution.quantity} of a request goes, {unit} (by the fit{source}; ± half of the 95 % interval)",
        ("operating point", "total", *(NAMES[part] for part in shown)),
        tuple(
            (row.operating_point, f"{row.total * scale:.1f}", *(_plus_minus(row.parts[part], scale) for part in shown))
            for row in attribution.rows
        ),
    )
    verified = [row for row in attribution.rows if row.phases]
    phases = TextTable(
        f"What lossless decoding does after the prompt, {unit} (by the fit{source}; ± half of the 95 % interval)",
        ("operating point", *(phase.replace("_", "\n") for phase in PHASES)),
        tuple((row.operating_point, *(_plus_minus(row.phases[one], scale) for one in PHASES)) for row in verified),
    )
    decided = [row for row in attribution.rows if row.overhead is not None]
    overhead = TextTable(
        f"What deciding costs, {unit} (probe − full depth{label}; the paper's Table IV)",
        ("operating point", "per request", "of this\nrun, %", "of full\ndepth, %"),
        tuple(_overhead(row, scale) for row in decided),
    )
    costs = (check.direct.value for check in attribution.checks if check.direct)
    fine, small = _scale(costs, attribution.quantity)
    decimals = 0 if small.startswith("µ") else 2
    checks = TextTable(
        f"One exit check, its LM heads included, {small}{label and f' ({attribution.source})'}",
        ("strategy", "probe −\nfull depth", "fit", "the two"),
        tuple(
            (
                check.strategy,
                _interval(check.direct, fine, decimals),
                _interval(check.fitted, fine, decimals),
                {None: MISSING, True: "not distinguishable", False: "differ"}[check.agree],
            )
            for check in attribution.checks
            if check.direct or check.fitted
        ),
    )
    return tuple(table for table in (parts, phases, overhead, checks) if table.rows)


def without_plus_minus(table: TextTable) -> TextTable:
    """Return a table without its ± figures, for narrow screens; the files have them."""
    rows = tuple(tuple(cell.partition(" ± ")[0] for cell in row) for row in table.rows)
    return TextTable(table.title.replace("; ± half of the 95 % interval", ""), table.header, rows)


def attribution_notes(attribution: Attribution) -> Iterator[str]:
    """Yield what must stand under the tables."""
    yield (
        f"{attribution.where}, {attribution.quantity}: the fit leaves {100 * attribution.residual:.1f} % of a window "
        f"unexplained (median); intervals resample {attribution.blocks} blocks"
        + (f" ({attribution.blocks_left_out} more were not finished by all)." if attribution.blocks_left_out else ".")
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


def _plus_minus(part: Estimate, scale: float) -> str:
    if part.interval is None:
        return f"{part.value * scale:.1f}"
    return f"{part.value * scale:.1f} ± {(part.interval[1] - part.interval[0]) / 2 * scale:.1f}"


def _interval(part: Estimate | None, scale: float, decimals: int) -> str:
    return MISSING if part is None else part.text(f"{{:.{decimals}f}}", factor=scale).replace("-", "−")


def _overhead(row: OperatingPointCost, scale: float) -> tuple[str, ...]:
    def percent(share: Estimate | None) -> str:
        return _interval(share, 100, 1)

    return (
        row.operating_point,
        _interval(row.overhead, scale, 1),
        percent(row.overhead_of_run),
        percent(row.overhead_of_full),
    )
