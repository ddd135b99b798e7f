"""Costs that were put into a run come out of it: by the fit, by probes, and by both; lossless decoding too."""

from __future__ import annotations

import dataclasses
import functools
import random
from typing import Any

import pytest

from harness.contracts import KVFacts
from harness.records import DraftWork, Manifest, OperatingPointRecord, SampleRecord
from harness.records.cost import PARTS, PHASES, Attribution
from reports.summary.attribution import COMMON, attribute, counts_of
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


@functools.cache
def built(blocks: int, noise: float = 0.0, *, sensor: bool = False, **changes: float) -> list[Measured]:
    costs = COSTS | changes
    chance = random.Random(0)
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
    row = next(row for row in attribution.rows if row.operating_point == "confidence")
    assert row.overhead is not None
    assert row.overhead_of_run is not None
    # an LM head that became the output is no overhead
    assert row.overhead.value == pytest.approx(row.parts["exit_checks"].value + row.parts["check_heads"].value)
    assert row.overhead_of_run.value == pytest.approx(row.overhead.value / row.total)


def test_resamplings_in_which_nothing_was_asked_have_no_price() -> None:
    """Completions of one token: with a cache nobody is asked about it, and some draws hold nothing else."""
    cells = [dataclasses.replace(cell, samples=dict(cell.samples)) for cell in built(6)]
    for cell in cells:
        if cell.point.never_exits:
            for key, sample in list(cell.samples.items())[:3]:
                cell.samples[key] = sample.model_copy(update={"exit_checks": 0})
    found = {check.strategy: check.direct for check in only(attribute(cells)).checks}
    assert found["confidence"] is not None
    assert found["confidence"].interval is None


def test_both_ways_give_the_price_of_asking_with_its_lm_head() -> None:
    attribution = only(attribute(built(20, noise=0.01)))
    for row in attribution.rows:
        assert tuple(row.parts) == PARTS
        assert sum(part.value for part in row.parts.values()) == pytest.approx(row.total)
        assert "never" not in row.operating_point
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


def test_energy_is_attributed_where_a_sensor_read_every_window() -> None:
    time, energy = attribute(built(12, sensor=True))
    assert (time.quantity, energy.quantity, energy.source) == ("time", "energy", "rapl")
    for name, cost in time.unit_costs.items():
        assert energy.unit_costs[name] == pytest.approx(WATTS * cost, rel=1e-3), name
    assert [check.agree for check in energy.checks if check.direct] == [True, True]


def test_nothing_is_attributed_where_counts_or_windows_say_nothing() -> None:
    cells = built(6)
    assert attribute([cell for cell in cells if not cell.point.never_exits]) == (), "no probe"
    changes: tuple[dict[str, Any], ...] = ({"batch_size": 2}, {"kv_facts": KVFacts(keeps_cache=False)})
    for change in changes:
        conditions = dataclasses.replace(cells[0].conditions, **change)
        assert attribute([dataclasses.replace(cell, conditions=conditions) for cell in cells]) == (), change
    arrived = {key: one.model_copy(update={"arrival_s": 0.1}) for key, one in cells[0].samples.items()}
    assert attribute([dataclasses.replace(cells[0], samples=arrived), *cells[1:]]) == (), "windows hold idle time"
    few = only(attribute(built(4)))
    assert all(part.interval is None for row in few.rows for part in row.parts.values())


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


DRAFT_COSTS = {
    "request": 0.02, "prompt token": 0.001, "layer step": 0.0004, "layer row": 0.00003, "attended position": 1e-7,
    "LM head": 0.003, "LM head row": 0.0002, "draft head": 0.0005, "exit": 0.0001, "check classifier": 0.0002,
}  # fmt: skip
DRAFTS, LOOKED_UP = "classifier@lossless", "full@lossless+lookup"
DRAFT_POINTS = ("full", "fixed:layer=4", "classifier", DRAFTS, LOOKED_UP, "classifier (never exits)")
NAMES = (*COMMON, "check classifier")


def draft_work(passes: int, layers_read: int, exit_checks: int, lm_heads: int, cheap_head_tokens: int) -> DraftWork:
    return DraftWork(exit_checks, lm_heads, cheap_head_tokens, layers_read, passes)


ONE: dict[str, Any] = {
    # Five tokens after a prompt of eight. Prefill says one; a draft of three (after 4, 4 and 6 of ten layers, asked
    # once, once and twice) of which one stands, verified by a pass that the fourth token's two checks let go deep: two
    # tokens; then two passes that are asked twice and go deep. A shortlist read the drafts.
    "prompt_ids": (7,) * 8, "token_ids": (1,) * 5, "exit_layers": (LAYERS,) * 5,
    "drafted_at": (None, 4, 4, None, None), "accepted": (False, True, False, False, False),
    "drafts": 3, "verifications": 3, "exit_checks": 4 + 2 + 4,
    "layers_read": 4 + 4 + 6 + 10 + 20, "layers_executed": 4 * 10 + 20, "layers_discarded": 20,
    "lm_head_evaluations": 6, "cheap_head_evaluations": 3, "cheap_head_tokens": 3,
    "drafting": draft_work(3, 14, 4, 0, 3), "rolled_back": draft_work(2, 10, 3, 0, 2),
}  # fmt: skip


def sample(**changes: Any) -> SampleRecord:
    return SampleRecord(window=0, operating_point=DRAFTS, task="py150", sample_id="0", **(ONE | changes))


def test_one_draft_is_counted_as_it_was_made() -> None:
    found = counts_of(sample(), "check classifier", NAMES)
    middle = 8 + 1 + 2
    assert dict(zip(NAMES, found[0], strict=True)) == {
        "request": 1, "prompt token": 8, "layer step": 44, "layer row": 16, "attended position": 44 * middle,
        "LM head": 3, "LM head row": 3, "draft head": 3, "exit": 3, "KV fill": 0, "check classifier": 10,
    }  # fmt: skip
    # Two of the three places beyond each verification's first were discarded.
    assert dict(zip(NAMES, found[2], strict=True)) == {
        **dict.fromkeys(NAMES, 0), "layer step": 10, "attended position": 10 * middle, "layer row": 16 * 2 / 3,
        "LM head row": 2, "draft head": 2, "exit": 2, "check classifier": 3,
    }  # fmt: skip
    assert dict(zip(NAMES, found[1], strict=True)) == {
        **dict.fromkeys(NAMES, 0), "layer step": 4, "attended position": 4 * middle, "draft head": 1, "exit": 1,
        "check classifier": 7,
    }  # fmt: skip


# ----------------------------------------------------------------------------------- a run of known prices


def drafted(chance: random.Random, *, by_exits: bool) -> dict[str, Any]:
    """Decode losslessly by chance: up to three tokens are drafted after 4 or 7 of ten layers, or looked up."""
    made = dict.fromkeys(("drafts", "verifications", "exit_checks", "layers_read", "layers_discarded"), 0)
    works, back, tokens = DraftWork(), DraftWork(), 1
    while tokens < 13:
        draft = []
        for _ in range(chance.randint(0, 3)):
            layer = chance.choice([4, 7])
            draft.append(draft_work(1, layer, 1 if layer == 4 else 2, 0, 1) if by_exits else DraftWork())
        asked = 0 if len(draft) == 3 or not by_exits else 2  # at most three: then it is due
        stands = chance.randint(0, len(draft))
        works, back = sum(draft, works), sum(draft[stands:], back)
        made["exit_checks"] += asked + sum(one.exit_checks for one in draft)
        made["layers_read"] += LAYERS + sum(one.layers_read for one in draft)
        made["layers_discarded"] += LAYERS * (len(draft) - stands)
        made["verifications"] += 1
        made["drafts"] += len(draft)
        tokens += stands + 1
    executed = LAYERS * (tokens - 1) + made["layers_discarded"]
    return {
        "token_ids": (1,) * tokens, "exit_layers": (LAYERS,) * tokens, "drafted_at": (None,) * tokens,
        "accepted": (False,) * tokens, "lm_head_evaluations": executed // LAYERS, "cheap_head_tokens": works.passes,
        "layers_executed": executed, "drafting": works, "rolled_back": back, **made,
    }  # fmt: skip


def decoded(name: str, chance: random.Random) -> dict[str, Any]:
    if name in (DRAFTS, LOOKED_UP):
        return drafted(chance, by_exits=name == DRAFTS)
    layers, checks, taken = [], 0, 0
    for _ in range(12):
        layer = 4 if name.startswith("fixed") else chance.choice([4, 7, LAYERS]) if name == "classifier" else LAYERS
        layers.append(layer)
        checks += 0 if name == "full" else 1 if layer == 4 else 2
        taken += chance.randint(0, 5) if name == "classifier" else 0  # rows that waited
    return {
        "token_ids": (1,) * 13, "exit_layers": (LAYERS, *layers), "layers_read": sum(layers), "exit_checks": checks,
        "layers_executed": sum(layers) + taken, "lm_head_evaluations": 12,
    }  # fmt: skip


def draft_point(name: str) -> OperatingPointRecord:
    strategy = name.partition(":")[0].partition(" ")[0].partition("@")[0]
    asked = {"full": (), "fixed": (4,)}.get(strategy, (4, 7))
    decode = name.partition("@")[2] or "lossy"
    return OperatingPointRecord(
        name=name, strategy=strategy, options={}, exit_points=asked, never_exits="never" in name, decode=decode
    )


@functools.cache
def built_drafts(blocks: int, noise: float = 0.0) -> list[Measured]:
    chance = random.Random(0)
    run = RunBuilder(points=DRAFT_POINTS)
    prices = [DRAFT_COSTS.get(name, 0.0) for name in (*COMMON, "check classifier", "check fixed")]
    for block in range(blocks):
        prompt = chance.randint(20, 400)
        for name in DRAFT_POINTS:
            prefill = DRAFT_COSTS["request"] + DRAFT_COSTS["prompt token"] * prompt
            made = decoded(name, chance) | {"prompt_ids": (7,) * prompt}
            made["token_times_s"] = tuple(prefill + 1e-3 * step for step in range(len(made["token_ids"])))
            record = SampleRecord(window=0, operating_point=name, task="py150", sample_id="0", **made)
            check = f"check {draft_point(name).strategy}"
            did = counts_of(record, check, (*COMMON, "check classifier", "check fixed"))[0]
            seconds = float(did @ prices) * (1 + noise * chance.gauss(0, 1))
            run.window(name, made, block=block, duration=seconds)
    manifest: Manifest = run.manifest.model_copy(
        update={"operating_points": tuple(draft_point(name) for name in DRAFT_POINTS)}
    )
    return list(select(manifest, run.windows, run.samples).values())


def attributed(cells: list[Measured]) -> Attribution:
    (attribution,) = attribute(cells)
    return attribution


def test_prices_and_phases_of_drafting_and_verifying_are_what_was_put_in() -> None:
    cells = built_drafts(12)
    attribution = attributed(cells)
    assert attribution.residual < 1e-9
    for name, cost in DRAFT_COSTS.items():
        assert attribution.unit_costs[name] == pytest.approx(cost, rel=1e-5), name
    cell = next(cell for cell in cells if cell.point.lossless)
    row = next(row for row in attribution.rows if row.operating_point == DRAFTS)
    samples = list(cell.samples.values())
    prices = {**dict.fromkeys(COMMON, 0.0), **DRAFT_COSTS}

    def priced(work: DraftWork, one: SampleRecord) -> float:
        middle = len(one.prompt_ids) + 1 + (len(one.token_ids) - 1) // 2
        return (
            (prices["layer step"] + middle * prices["attended position"]) * work.layers_read
            + prices["check classifier"] * work.exit_checks + prices["draft head"] * work.cheap_head_tokens
            + prices["exit"] * work.passes
        )  # fmt: skip

    drafting = rolled_back = 0.0
    for one in samples:
        assert one.drafting is not None
        assert one.rolled_back is not None
        deep_checks = one.exit_checks - one.drafting.exit_checks
        drafting += priced(one.drafting - one.rolled_back, one) + prices["check classifier"] * deep_checks
        lost = one.layers_discarded // LAYERS
        further = len(one.token_ids) - 1 + lost - one.verifications
        rows = prices["layer row"] * (one.layers_executed - one.layers_read) + prices["LM head row"] * further
        rolled_back += priced(one.rolled_back, one) + (rows * lost / further if lost else 0)
    found = {phase: row.phases[phase].value for phase in PHASES}
    assert found["drafting"] == pytest.approx(drafting / len(samples))
    assert found["rolled_back"] == pytest.approx(rolled_back / len(samples))
    assert min(found.values()) > 0
    assert sum(found.values()) == pytest.approx(row.total - row.parts["prefill"].value - row.parts["rest"].value)


def test_the_table_has_lossless_rows_alone() -> None:
    attribution = attributed(built_drafts(12, noise=0.01))
    (table,) = [one for one in attribution_tables(attribution) if "lossless" in one.title]
    names, *numbers = table.columns
    assert names.cells == (DRAFTS, LOOKED_UP)
    assert [column.header for column in numbers] == ["drafting", "verifying", "rolled back"]
    assert all("[" in column.texts[0] for column in numbers)
    assert numbers[0].texts[1].startswith("0.0 ")  # nothing is run to look something up
