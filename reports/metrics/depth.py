"""How deep tokens went, and what the decisions cost in work; totals over totals, all repeats."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from harness.contracts import Metric, Wording
from harness.records import SampleRecord
from reports.metrics.point import Point, Units, rates
from reports.metrics.vocabulary import AGREEMENTS, DEPTH, HEADLINE
from reports.statistics.intervals import ratio
from reports.summary.measured import Measured


def _exit_layer(point: Point) -> float | None:
    layers = [executed for sample in point.samples for executed in point.cell.decoded_layers(sample)]
    return ratio(sum(layers), len(layers))


def _layer_units(point: Point, *, skipped: bool) -> Units:
    def read(sample: SampleRecord) -> tuple[float, float] | None:
        layers = point.cell.decoded_layers(sample)
        if not layers:
            return None
        possible, ran = float(point.model.num_layers * len(layers)), float(sum(layers))
        return (possible - ran, possible) if skipped else (ran, float(len(layers)))

    return rates(point.cell, read)


def oracle_of(cells: Sequence[Measured], cell: Measured) -> Measured | None:
    """Return the oracle that an operating point is held against, one under its own conditions before another.

    One that ran under other than exact keys and values bounds nothing, nor does one that only drafts.
    """
    exact = [one for one in cells if one.point.rehearsed and one.conditions.kv_facts.exact and not one.point.lossless]
    alike = [one for one in exact if one.conditions.weights_format == cell.conditions.weights_format]
    return next((other for other in alike if other.conditions == cell.conditions), alike[0] if alike else None)


def _oracle_share(point: Point) -> float | None:
    """Of the layers that the oracle skips, the share skipped here too, by tokens that are full depth's.

    Σ over tokens that agree of min(skipped here, skipped by the oracle) ÷ Σ over the oracle's tokens of skipped, on the
    samples that full depth finished too: never above 1. The token of prefill counts on neither side where one of both
    has a cache.
    """
    cell, full, layers = point.cell, point.own_full, point.model.num_layers
    oracle = oracle_of(point.cells, cell)
    if oracle is None:
        return None
    first = int(cell.conditions.cached or oracle.conditions.cached)
    both = possible = 0
    for key in cell.shared(oracle):
        if key not in full.samples:
            continue
        best = [layers - layer for layer in oracle.samples[key].exit_layers[first:]]
        possible += sum(best)
        here, reference = cell.samples[key], full.samples[key].token_ids
        tokens = zip(here.token_ids[first:], reference[first:], here.exit_layers[first:], best, strict=False)
        both += sum(min(layers - layer, most) for token, right, layer, most in tokens if token == right)
    return ratio(both, possible)


def _counted(count: str, point: Point) -> float | None:
    tokens = sum(len(point.cell.decoded_layers(sample)) for sample in point.samples)
    return ratio(sum(getattr(sample, count) for sample in point.samples), tokens)


def _prompt_layers(sample: SampleRecord) -> tuple[float, float] | None:
    read = sample.prompt_layers + sample.prompt_layers_skipped
    return (float(sample.prompt_layers_skipped), float(read)) if read else None


def _prompt_units(point: Point) -> Units:
    return rates(point.cell, _prompt_layers) if point.cell.point.prompt_exit else {}


EXIT_LAYER = Metric(
    "exit_layer_mean",
    "layers\n/token",
    "decoder layers a decoded token ran",
    compute=_exit_layer,
    units=partial(_layer_units, skipped=False),
    kind="work",
    unit="layers",
    sections={DEPTH: 1},
)
LAYERS_SKIPPED = Metric(
    "layers_skipped",
    "layers\nskipped",
    "share of the model's layers a decoded token did not run",
    compute=lambda point: None if (executed := _exit_layer(point)) is None else 1 - executed / point.model.num_layers,
    units=partial(_layer_units, skipped=True),
    kind="work",
    form="percent",
    sections={HEADLINE: 4, DEPTH: 2},
    priority=5,
    change=Wording("skips {} more layers", "skips {} fewer layers"),
)
PROMPT_LAYERS_SKIPPED = Metric(
    "prompt_layers_skipped",
    "prompt layers\nskipped",
    "share of the layers that tokens of the prompt did not run, reused tokens apart",
    compute=lambda point: (
        ratio(*map(sum, zip(*units, strict=True))) if (units := _prompt_units(point).values()) else None
    ),
    units=_prompt_units,
    kind="work",
    form="percent",
    sections={HEADLINE: 4.1, DEPTH: 2.1},
    priority=6,
)
ORACLE_SHARE = Metric(
    "oracle_share",
    "of\noracle",
    "share of the layers the oracle skips that are skipped here too, by tokens that agree",
    compute=_oracle_share,
    kind="work",
    form="percent",
    sections={AGREEMENTS: 5.1},
    priority=7,
)
_work = partial(Metric, kind="work", better="lower")

EXIT_CHECKS, LM_HEADS, KV_FILLS = (
    _work(name, header, meaning, compute=partial(_counted, count), sections={DEPTH: place})
    for place, count, name, header, meaning in (
        (3, "exit_checks", "exit_checks_per_token", "checks\n/token", "times the strategy was asked"),
        (
            4,
            "lm_head_evaluations",
            "lm_head_per_token",
            "LM heads\n/token",
            "LM-head evaluations, the output's included",
        ),
        (
            5,
            "kv_fill_layers",
            "kv_fill_layers_per_token",
            "KV fills\n/token",
            "skipped layers whose keys, values were filled",
        ),
    )
)
"""times the strategy was asked
LM-head evaluations, the output's included
skipped layers whose keys, values were filled
"""
CHEAP_HEADS = _work(
    "cheap_heads_per_token",
    "cheap heads\n/token",
    "exits read by a cheap head instead of the LM head",
    compute=lambda point: _counted("cheap_head_evaluations", point) if point.cell.point.heads else None,
    sections={DEPTH: 4.5},
)
