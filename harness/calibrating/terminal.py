"""A calibration in a terminal: the settings in the order tested, the promise, and whether it is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from harness.appearance.terminal import Line, Text
from harness.calibrating.checks import Elsewhere, Halves
from harness.records.estimate import Interval, NoInterval
from harness.records.guarantee import CalibratedPoint, Guarantee, TestedSetting

__all__ = ["render"]


def render(point: CalibratedPoint, here: Halves, others: Sequence[Elsewhere]) -> RenderableType:
    """Return a calibrated operating point as a rich renderable."""
    promised = point.guarantee
    return Group(
        Line(_head(promised), "bold"),
        _table(promised),
        Text(),
        Text(f"{point.strategy}: {promised.promise}.", "bold green"),
        Text(),
        Text(_halves(here, promised, "on the other half"), "dim"),
        *_elsewhere(promised, others),
    )


def _head(promised: Guarantee) -> str:
    left_out = f", {promised.left_out} left out" if promised.left_out else ""
    how = promised.method if promised.p_value is None else f"{promised.method}, {promised.p_value}"
    of_projects = f" of {len(promised.projects)} projects" if promised.unit == "project" else ""
    return (
        f"{promised.target} on {len(promised.documents)} documents{of_projects}{left_out}: {promised.task.name}, "
        f"{promised.task.source}; {promised.model}, {promised.weights_format}, kv {promised.kv}; {how}"
    )


def _table(promised: Guarantee) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    what = "p-value" if promised.confidence is not None else "bound"
    for column in (promised.option, "layers", "lost", what, ""):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for one in promised.tested:
        number = one.p_value if promised.confidence is not None else one.bound
        table.add_row(
            f"{one.value:g}",
            "–" if one.exit_layer_mean is None else f"{one.exit_layer_mean:.1f}",
            f"{one.risk:.4f}",
            "–" if number is None else f"{number:.2g}",
            _outcome(one, promised),
        )
    return table


def _outcome(one: TestedSetting, promised: Guarantee) -> Text:
    if one.passed:
        last = [each for each in promised.tested if each.passed][-1]
        return Text("chosen", "bold green") if one == last else Text("passed", "green")
    tested = one.p_value is not None or one.bound is not None
    return Text("failed", "red") if tested else Text("not tested", "dim")


def _halves(found: Halves, promised: Guarantee, where: str) -> str:
    """Say what became of the promise where it was tested."""
    said = (
        f"Of {found.rounds} random halves of {found.documents} {promised.unit}s {found.certified} certify some setting"
    )
    if found.risk is None:
        return f"{said}."
    broken = f"in {found.violated} of {found.rounds} it loses more than {promised.risk:g} {where}"
    return f"{said}; {broken} (mean {found.risk:.4f})."


def _elsewhere(promised: Guarantee, others: Sequence[Elsewhere]) -> Iterator[RenderableType]:
    risk = promised.risk
    for one in others:
        kept, style = ("kept", "green") if one.risk <= risk else ("broken", "red")
        lost = f"{one.risk:.4f}{_interval(one.interval)}"
        yield Text()
        yield Text(f"On {one.where}, {one.documents} {promised.unit}s: {kept}, {lost} lost of {risk:g} allowed.", style)
        yield Text(_halves(one.halves, promised, "there"), "dim")


def _interval(found: Interval | NoInterval) -> str:
    return "" if isinstance(found, NoInterval) else f" [{found[0]:.4f}, {found[1]:.4f}]"
