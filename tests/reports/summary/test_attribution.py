"""Costs that were put into a run come out of it: by the fit, by the probes, and by both alike."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from harness.contracts import KVFacts
from harness.records import Manifest, OperatingPointRecord
from harness.records.cost import PARTS, Attribution
from reports.summary.attribution import attribute
from reports.summary.measured import Measured, select
from reports.tables.run_tables import attribution_tables
from tests.reports.conftest import LAYERS, RunBuilder

COSTS = {
    "request": 0.02, "prompt": 0.001, "layer": 0.0004, "position": 1e-7, "head": 0.003, "fill": 0.00005,
    "confidence": 0.0002, "classifier": 0.0001,
}  # fmt: skip
POINTS = ("full", "fixed:layer=4", "fixed:layer=7", "confidence", "classifier", "confidence (never exits)",
          "classifier (never exits)")  # fmt: skip
TOKENS = 12
WATTS = 40.0


def point(name: str) -> OperatingPointRecord:
    strategy = name.partition(":")[0].partition(" ")[0]
    asked = {"full": (), "fixed": (4,)}.get(strategy, (4, 7))
    return OperatingPointRecord(
        name=name, strategy=strategy, options={}, exit_points=asked, never_exits="never" in name
    )


def decode(name: str, chance: random.Random) -> tuple[list[int], int, int]:
    """Layers of each later token, checks and LM-head evaluations under an operating point."""
    layers, checks, heads = [], 0, 0
    for _ in range(TOKENS - 1):
        if name.startswith("fixed"):
            layer = int(name[-1])
            checks += 1
        elif name == "full":
            layer = LAYERS
        else:
            never = "never" in name
            layer = LAYERS if never else chance.choice([4, 7, LAYERS])
            asked = 1 if layer == 4 else 2
            checks += asked
            if name.startswith("confidence"):
                heads += asked - (layer != LAYERS)
        layers.append(layer)
        heads += 1
    return layers, checks, heads


def built(blocks: int, noise: float = 0.0, seed: int = 0, *, sensor: bool = False, **changes: float) -> list[Measured]:
    costs = COSTS | changes
    chance = random.Random(seed)
    run = RunBuilder(points=POINTS)
    for block in range(blocks):
        prompt = chance.randint(20, 400)
        for name in POINTS:
            layers, checks, heads = decode(name, chance)
            fills = 0 if "never" in name else sum(LAYERS - layer for layer in layers)
            positions = sum(layer * (prompt + 1 + step) for step, layer in enumerate(layers))
            strategy = name.partition(" ")[0]
            prefill = costs["request"] + costs["prompt"] * prompt
            seconds = (
                prefill + costs["layer"] * sum(layers)
                + costs["position"] * positions + costs["head"] * heads + costs["fill"] * fills
                + costs.get(strategy, 0.0) * checks + costs.get("exit", 0.0) * sum(layer < LAYERS for layer in layers)
                + (costs.get("secret", 0.0) * checks if "never" in name else 0.0)
            )  # fmt: skip
            sample: dict[str, Any] = {
                "prompt_ids": (7,) * prompt, "token_ids": (1,) * TOKENS, "exit_layers": (LAYERS, *layers),
                "layers_executed": sum(layers), "exit_checks": checks, "lm_head_evaluations": heads,
                "kv_fill_layers": fills, "token_times_s": tuple(prefill + 1e-3 * step for step in range(TOKENS)),
            }  # fmt: skip
            measured = seconds * (1 + noise * chance.gauss(0, 1))
            joules = {"energy_j": WATTS * measured, "energy_source": "rapl"} if sensor else {}
            run.window(name, sample, block=block, duration=measured, **joules)
    manifest: Manifest = run.manifest.model_copy(update={"operating_points": tuple(point(name) for name in POINTS)})
    return list(select(manifest, run.windows, run.samples).values())


def only(found: tuple[Attribution, ...]) -> Attribution:
    (attribution,) = found
    return attribution


def test_costs_that_were_put_in_come_out() -> None:
    attribution = only(attribute(built(12)))
    assert attribution.residual < 1e-9
    units = attribution.unit_costs
    assert units["layer step"] == pytest.approx(COSTS["layer"], rel=1e-6)
    assert units["attended position"] == pytest.approx(COSTS["position"], rel=1e-6)
    assert units["LM head"] == pytest.approx(COSTS["head"], rel=1e-6)
    assert units["KV fill"] == pytest.approx(COSTS["fill"], rel=1e-6)
    assert units["check confidence"] == pytest.approx(COSTS["confidence"], rel=1e-6)


def test_resamplings_in_which_nothing_was_asked_have_no_price() -> None:
    """Completions of one token: with a cache nobody is asked about it, and some draws hold nothing else."""
    cells = built(6)
    for cell in cells:
        if cell.point.never_exits:
            for key, sample in list(cell.samples.items())[:3]:
                cell.samples[key] = sample.model_copy(update={"exit_checks": 0})
    found = {check.strategy: check.direct for check in only(attribute(cells)).checks}
    assert found["confidence"] is not None
    assert found["confidence"].interval is None


def test_parts_add_up_to_what_was_measured() -> None:
    for row in only(attribute(built(8, noise=0.05))).rows:
        assert tuple(row.parts) == PARTS
        assert sum(part.value for part in row.parts.values()) == pytest.approx(row.total)
        assert "never" not in row.operating_point


def test_both_ways_give_the_price_of_asking_with_its_lm_head() -> None:
    attribution = only(attribute(built(20, noise=0.01)))
    expected = {"confidence": COSTS["confidence"] + COSTS["head"], "classifier": COSTS["classifier"]}
    found = {check.strategy: check for check in attribution.checks}
    for strategy, cost in expected.items():
        check = found[strategy]
        assert check.agree
        assert check.direct is not None
        assert check.direct.interval is not None
        assert check.direct.interval[0] <= cost <= check.direct.interval[1]
    assert found["fixed"].direct is None  # it has no probe here
    assert found["fixed"].agree is None


def test_a_probe_that_costs_more_than_the_fit_says_contradicts_it() -> None:
    attribution = only(attribute(built(20, noise=0.001, secret=0.01)))
    assert {check.strategy: check.agree for check in attribution.checks if check.direct} == {
        "confidence": False, "classifier": False,
    }  # fmt: skip


@pytest.mark.parametrize(("secret", "said"), [(0.0, "not distinguishable"), (0.01, "differ")])
def test_two_ways_are_never_said_to_agree(secret: float, said: str) -> None:
    attribution = only(attribute(built(20, noise=0.001, secret=secret)))
    *_, checks = attribution_tables(attribution)
    assert dict(zip(checks.columns[0].cells, checks.columns[-1].cells, strict=True)) == {
        "confidence": said,
        "classifier": said,
    }


def test_what_an_exit_costs_once_is_not_charged_to_its_checks() -> None:
    """Probes never exit: charged to checks, it would make the fit exceed the probe for every cheap check."""
    attribution = only(attribute(built(12, exit=0.0005)))
    assert attribution.unit_costs["exit"] == pytest.approx(0.0005, rel=1e-4)
    for check in attribution.checks:
        if check.direct:
            assert check.fitted is not None
            assert check.fitted.value == pytest.approx(check.direct.value, rel=1e-4)
    row = next(row for row in attribution.rows if row.operating_point == "fixed:layer=4")
    fills = (TOKENS - 1) * (LAYERS - 4)
    assert row.parts["kv_fill"].value == pytest.approx((TOKENS - 1) * 0.0005 + fills * COSTS["fill"], rel=1e-3)


def test_an_lm_head_that_became_the_output_is_no_overhead() -> None:
    cells = built(8)
    attribution = only(attribute(cells))
    row = next(row for row in attribution.rows if row.operating_point == "confidence")
    assert row.overhead is not None
    assert row.overhead.value == pytest.approx(row.parts["exit_checks"].value + row.parts["check_heads"].value)
    assert row.overhead_of_run is not None
    assert row.overhead_of_run.value == pytest.approx(row.overhead.value / row.total)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    truth = COSTS["confidence"] + COSTS["head"]
    hits = 0
    for seed in range(40):
        attribution = only(attribute(built(12, noise=0.02, seed=seed)))
        check = next(check for check in attribution.checks if check.strategy == "confidence")
        assert check.direct is not None
        assert check.direct.interval is not None
        hits += check.direct.interval[0] <= truth <= check.direct.interval[1]
    assert hits >= 34  # 5 % of binomial(40, 0.95) is below 36; 34 leaves no doubt


@pytest.mark.parametrize("change", [{"batch_size": 2}, {"kv_facts": KVFacts(keeps_cache=False)}])
def test_nothing_is_attributed_where_counts_say_nothing(change: dict[str, Any]) -> None:
    cells = built(6)
    conditions = dataclasses.replace(cells[0].conditions, **change)
    assert attribute([dataclasses.replace(cell, conditions=conditions) for cell in cells]) == ()


def test_energy_is_attributed_where_a_sensor_read_every_window() -> None:
    time, energy = attribute(built(12, sensor=True))
    assert (time.quantity, energy.quantity, energy.source) == ("time", "energy", "rapl")
    for name, cost in time.unit_costs.items():
        assert energy.unit_costs[name] == pytest.approx(WATTS * cost, rel=1e-3), name
    assert [check.agree for check in energy.checks if check.direct] == [True, True]


def test_nothing_is_attributed_without_a_probe() -> None:
    assert attribute([cell for cell in built(6) if not cell.point.never_exits]) == ()


def test_nothing_is_attributed_where_windows_hold_idle_time() -> None:
    cells = built(6)
    arrived = {
        key: sample.model_copy(update={"arrival_s": 0.1, "queue_s": 0.0}) for key, sample in cells[0].samples.items()
    }
    assert attribute([dataclasses.replace(cells[0], samples=arrived), *cells[1:]]) == ()


def test_a_repeat_that_only_some_finished_counts_for_nobody() -> None:
    whole = built(8)
    again = []
    for cell in whole:
        windows, samples = dict(cell.windows), dict(cell.samples)
        if not cell.point.never_exits:  # killed in the second repeat, before the probes
            for number, window in cell.windows.items():
                windows[number + 1000] = window.model_copy(update={"window": number + 1000, "repeat": 1})
            for (sample_id, _), sample in cell.samples.items():
                samples[sample_id, 1] = sample.model_copy(update={"window": sample.window + 1000, "repeat": 1})
        again.append(dataclasses.replace(cell, windows=windows, samples=samples))
    assert attribute(again) == attribute(whole)


def test_blocks_that_only_some_finished_are_counted() -> None:
    cells = built(8)
    windows = dict(list(cells[2].windows.items())[:-3])
    samples = {key: sample for key, sample in cells[2].samples.items() if sample.window in windows}
    attribution = only(
        attribute([*cells[:2], dataclasses.replace(cells[2], windows=windows, samples=samples), *cells[3:]])
    )
    assert (attribution.blocks, attribution.blocks_left_out) == (5, 3)


def test_few_blocks_give_no_interval() -> None:
    attribution = only(attribute(built(4)))
    assert all(part.interval is None for row in attribution.rows for part in row.parts.values())
