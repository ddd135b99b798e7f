"""The A/A self-test in a terminal: coverage in numbers and in words."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from harness.appearance.terminal import Line, Text
from harness.doctor.paired import RealCoverage
from harness.doctor.simulated import COVERAGE_BOUNDS, CaseCoverage, Coverage

__all__ = ["real_verdict", "render_real", "render_simulated", "simulated_verdict"]

FEWEST_COMPARISONS = 20


def simulated_verdict(found: CaseCoverage) -> str:
    """Return the verdict on the simulated coverages of one case in words."""
    least, most = COVERAGE_BOUNDS
    if any(one.share_ci[1] < least for one in found.coverages):
        return "too narrow"
    if any(one.share_ci[0] > most for one in found.coverages):
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


def render_simulated(found: Sequence[CaseCoverage]) -> RenderableType:
    """Return the simulated part as a rich renderable."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("% that cover, by pairs", no_wrap=True)
    for one in found[0].coverages:
        table.add_column(str(one.pairs), justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for case in found:
        name = case.case if case.regular else f"({case.case})"
        table.add_row(name, *(f"{100 * one.share:.1f}" for one in case.coverages), simulated_verdict(case))
    least, most = COVERAGE_BOUNDS
    legend = (
        f"{found[0].coverages[0].comparisons:,} comparisons each; {100 * least:.0f} to {100 * most:.0f} % is as "
        "promised. In brackets: noise with heavy tails or spikes, where intervals may be wider."
    )
    return Group(Text("Simulated comparisons", "bold"), table, Text(legend, "dim"))


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
    lines: list[RenderableType] = [Line(f"Real A/A comparisons: {found.model} at full depth", "bold"), table]
    if both.ratio is not None and isinstance(both.interval, tuple):
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
