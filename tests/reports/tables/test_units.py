"""A number, times the unit that stands over it, is the number that was recorded: in every table, at every size."""

from __future__ import annotations

import re
from typing import Any

import pytest

from harness.records.cost import PARTS, PHASES, Attribution, CheckCost, OperatingPointCost
from harness.records.estimate import Estimate
from reports.comparing.change import Change
from reports.comparing.document import _level
from reports.metrics.time import LATENCY_P50
from reports.tables.result import columns_of
from reports.tables.run_tables import attributions
from reports.tables.table import Column, Table

UNITS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "J": 1.0, "mJ": 1e-3, "µJ": 1e-6, "×": 1.0, "%": 1e-2}
SIZES = (3e-5, 0.002, 0.04, 0.7, 9.9, 10.1, 250.0)
NUMBER = re.compile(r"[−\d.,]+")


def read(text: str) -> tuple[float, float]:
    """The first number of a cell, and half of its last digit's unit."""
    digits = NUMBER.search(text)
    assert digits is not None, text
    written = digits[0].replace("−", "-").replace(",", "")
    return float(written), 0.51 * 10.0 ** -len(written.partition(".")[2])


def pieces(text: str) -> list[str]:
    """A number and the bounds of its interval."""
    return re.split(r" \[|, ", text.partition("]")[0])


def check(text: str, unit: str, value: float) -> None:
    number, rounded = read(text)
    assert number * UNITS[unit] == pytest.approx(value, rel=1e-9, abs=rounded * UNITS[unit]), (text, unit, value)


@pytest.mark.parametrize("size", SIZES)
def test_times_of_rows_are_in_the_unit_over_them(build: Any, size: float) -> None:
    run = build(points=("full", "fixed:layer=5"), bandwidth=1e4)
    for block in range(12):
        for place, point in enumerate(run.points):
            took = size * (1 + block / 20) / (1 + place)
            times = {"latency_s": took, "ttft_s": took / 4, "token_times_s": (took / 4, took / 2, took)}
            run.window(
                point, {**times, "queue_s": took / 8}, block=block, duration=took, energy_j=took, energy_source="rapl"
            )
    summary = run.summary()
    timed = {metric: column for metric, column in columns_of(summary.rows).items() if metric.form == "seconds"}
    assert len([column for column in timed.values() if not column.empty]) > 4
    for metric, column in timed.items():
        for row, text in zip(summary.rows, column.texts, strict=True):
            if (found := row.estimate(metric)) is not None:
                check(text, column.unit, found.value)
                for piece, end in zip(pieces(text)[1:], found.interval or (), strict=False):
                    check(piece, column.unit, end)


@pytest.mark.parametrize("quantity", ["time", "energy"])
@pytest.mark.parametrize("size", SIZES)
def test_attributed_costs_are_in_the_unit_of_the_title(build: Any, size: float, quantity: str) -> None:
    run = build()
    run.window("full", {})
    costs = {name: Estimate(value=size / (3 + place)) for place, name in enumerate(PARTS)}
    phases = {name: Estimate(value=size / (5 + place)) for place, name in enumerate(PHASES)}
    share = Estimate(value=0.0625, low=0.03, high=0.09)
    row = OperatingPointCost(operating_point="rule", total=size, parts=costs, phases=phases, overhead=costs["layers"],
                             overhead_of_run=share, overhead_of_full=share)  # fmt: skip
    asked = CheckCost(strategy="rule", direct=Estimate(value=size / 40), fitted=Estimate(value=size / 50), agree=True)
    one = Attribution(task="py150", quantity=quantity, source="clock" if quantity == "time" else "rapl", blocks=9,
                      residual=0.02, unit_costs={}, rows=(row,), checks=(asked,))  # fmt: skip
    summary = run.summary().model_copy(update={"attributions": (one,)})
    tables = [part for part in attributions(summary) if isinstance(part, Table)]
    assert len(tables) == 4
    expected = (
        {"total": size, **{name: cost.value for name, cost in costs.items()}},
        {name: cost.value for name, cost in phases.items()},
        {"per request": costs["layers"].value, "of this run, %": 0.0625, "of full depth, %": 0.0625},
        {"probe − full depth": size / 40, "fit": size / 50},
    )
    for table, values in zip(tables, expected, strict=True):
        unit = re.findall(r", (µ?m?[sJ])\b", table.title)[0]
        numbers = [column for column in table.columns if column.kind == "number"]
        for column, value in zip(numbers, values.values(), strict=True):
            check(column.texts[0], "%" if "%" in column.header else unit, value)


@pytest.mark.parametrize("size", SIZES)
def test_levels_of_a_comparison_name_their_unit(size: float) -> None:
    one = Change(LATENCY_P50, size, 1.2 * size)
    for value in (one.a, one.b):
        text = _level(one, value)
        check(text, text.rpartition(" ")[2], value)


@pytest.mark.parametrize("form", ["digits", "count", "fraction", "percent", "ratio", "difference", ".1f"])
@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_a_column_scales_a_number_its_bounds_and_its_neighbour_alike(form: str, scale: float) -> None:
    value, low, high = 0.375, 0.25, 0.625
    cells = (Estimate(value=value, low=low, high=high), value)
    estimated, plain = Column(header="x", cells=cells, form=form, scale=scale).texts
    factor = scale * (100 if form == "percent" else 1)
    assert estimated.startswith(plain)
    for text, number in zip(pieces(estimated), (value, low, high), strict=True):
        read_back, rounded = read(text)
        assert read_back == pytest.approx(number * factor, abs=rounded)
