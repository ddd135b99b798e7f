"""The A/A self-test in a terminal: coverage in numbers and in words."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.doctor.paired import RealCoverage
from harness.doctor.simulated import NOMINAL, Coverage, most_covered

__all__ = ["real_verdict", "render_real", "render_simulated", "simulated_verdict"]

FEWEST_COMPARISONS = 20


def simulated_verdict(found: Coverage) -> str:
    """Return the verdict on a simulated coverage in words."""
    low, high = found.share_ci
    if high < NOMINAL:
        return f"{100 * (NOMINAL - found.share):.1f} points short"
    if low > NOMINAL:
        return "wider than necessary"
    return "as promised"


def real_verdict(found: RealCoverage) -> str:
    """Return in words whether this machine's error bars can be trusted."""
    covered, total = found.coverage.covered, found.coverage.comparisons
    low, high = found.expected
    counted = f"{covered} of {total} intervals cover 1; correct ones stay between {low} and {high} (95 %)."
    if covered < low:
        return (
            f"{counted} The error bars are too narrow here: windows of the same work differ by more than chance. "
            "Stop other processes, use longer windows or more --repeats, and do not publish small differences."
        )
    if total < FEWEST_COMPARISONS:
        return f"{counted} Too few comparisons to tell; use --pairs {FEWEST_COMPARISONS} or more."
    return f"{counted} The error bars of windows measured next to each other can be trusted on this machine."


def render_simulated(found: Sequence[Coverage]) -> RenderableType:
    """Return the simulated part as a rich renderable."""
    table = _table("pairs", "comparisons", "cover 1", "95 % interval", "half-width", "")
    for one in found:
        low, high = one.share_ci
        table.add_row(
            str(one.pairs),
            f"{one.comparisons:,}",
            f"{one.share:.1%}",
            f"{low:.1%} to {high:.1%}",
            _half(one),
            simulated_verdict(one),
        )
    legend = "True ratio 1; noise of 2 % a window, drift, 2 % outliers. Expected: 95 %."
    lines: list[RenderableType] = [Text("Simulated A/A comparisons", "bold"), table, Text(legend, "dim")]
    for one in found:
        if most_covered(one.pairs) < NOMINAL:
            why = "all differences have one sign more often than that"
            lines.append(
                Text(f"Resampling {one.pairs} pairs covers {most_covered(one.pairs):.1%} at most: {why}.", "dim")
            )
    return Group(*lines)


def render_real(found: RealCoverage) -> RenderableType:
    """Return the real part as a rich renderable."""
    one, both = found.coverage, found.overall
    table = _table("pairs", "comparisons", "cover 1", "expected", "half-width", "window")
    table.add_row(
        str(one.pairs),
        str(one.comparisons),
        str(one.covered),
        f"{found.expected[0]} to {found.expected[1]}",
        _half(one),
        f"{found.window_s:.2f} s",
    )
    lines: list[RenderableType] = [Text(f"Real A/A comparisons: {found.model} at full depth", "bold"), table]
    if both.ratio is not None and both.interval is not None:
        low, high = both.interval
        chance = "" if low <= 1 <= high else " This one does not cover 1, as 1 correct one in 20."
        lines.append(Text(f"All windows together: ratio {both.ratio:.4f} [{low:.4f}, {high:.4f}].{chance}", "dim"))
    if found.foreign_share is not None and found.stolen_share is not None:
        lines.append(
            Text(
                f"Meanwhile other processes took {found.foreign_share:.1%} of the cores' time, "
                f"the hypervisor {found.stolen_share:.1%}.",
                "dim",
            )
        )
    lines += [Text(), Text(real_verdict(found))]
    return Group(*lines)


def _half(found: Coverage) -> str:
    return "—" if found.half_width is None else f"±{found.half_width:.1%}"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    return table
