"""How deep tokens went, and what the decisions cost in work; totals over totals, all repeats."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from harness.contracts import Metric, Wording
from harness.records import SampleRecord
from reports.metrics.point import Point
from reports.metrics.sections import BYTE_MODEL, DEPTH, HEADLINE
from reports.metrics.units import Units, rates
from reports.statistics.intervals import ratio
from reports.summary.measured import Measured, SampleKey

__all__ = ["EXIT_CHECKS", "EXIT_LAYER", "KV_FILLS", "LAYERS_SKIPPED", "LM_HEADS", "ORACLE_FRACTION"]


def _mean_layers(cell: Measured, keys: Iterable[SampleKey]) -> float | None:
    layers = [executed for key in keys for executed in cell.decoded_layers(cell.samples[key])]
    return ratio(sum(layers), len(layers))


def _exit_layer(point: Point) -> float | None:
    return _mean_layers(point.cell, point.cell.samples)


def _skipped(point: Point) -> float | None:
    executed = _exit_layer(point)
    return None if executed is None else 1 - executed / point.model.num_layers


def _layer_units(point: Point, *, skipped: bool) -> Units:
    def read(sample: SampleRecord) -> tuple[float, float] | None:
        layers = point.cell.decoded_layers(sample)
        if not layers:
            return None
        possible, ran = float(point.model.num_layers * len(layers)), float(sum(layers))
        return (possible - ran, possible) if skipped else (ran, float(len(layers)))

    return rates(point.cell, read)


def _oracle_fraction(point: Point) -> float | None:
    """Layers skipped over what the oracle skipped, on the samples both finished; ``None`` where that is nothing."""
    cell, layers = point.cell, point.model.num_layers
    oracle = next((other for other in reversed(cell.alike(point.cells)) if other.point.rehearsed), None)
    if oracle is None:
        return None
    both = cell.shared(oracle)
    here, best = _mean_layers(cell, both), _mean_layers(oracle, both)
    return None if here is None or best is None else ratio(1 - here / layers, 1 - best / layers)


def _counted(count: Callable[[SampleRecord], int], point: Point) -> float | None:
    """A count per decoded token."""
    tokens = sum(len(point.cell.decoded_layers(sample)) for sample in point.samples)
    return ratio(sum(count(sample) for sample in point.samples), tokens)


EXIT_LAYER = Metric(
    name="exit_layer_mean",
    header="layers\n/token",
    meaning="decoder layers a decoded token ran",
    compute=_exit_layer,
    units=partial(_layer_units, skipped=False),
    kind="work",
    unit="layers",
    sections={DEPTH: 1},
)
LAYERS_SKIPPED = Metric(
    name="layers_skipped",
    header="layers\nskipped",
    meaning="share of the model's layers a decoded token did not run",
    compute=_skipped,
    units=partial(_layer_units, skipped=True),
    kind="work",
    form="percent",
    sections={HEADLINE: 4, DEPTH: 2},
    priority=5,
    change=Wording("skips {} more layers", "skips {} fewer layers"),
)
ORACLE_FRACTION = Metric(
    name="oracle_fraction",
    header="of\noracle",
    meaning="layers skipped over what the oracle skips (above 100 %: exits before any layer is right)",
    compute=_oracle_fraction,
    kind="work",
    form="percent",
    sections={HEADLINE: 5, BYTE_MODEL: 7},
    priority=7,
)
EXIT_CHECKS = Metric(
    name="exit_checks_per_token",
    header="checks\n/token",
    meaning="times the strategy was asked",
    compute=partial(_counted, lambda sample: sample.exit_checks),
    kind="work",
    better="lower",
    sections={DEPTH: 3},
)
LM_HEADS = Metric(
    name="lm_head_per_token",
    header="LM heads\n/token",
    meaning="LM-head evaluations, the output's included",
    compute=partial(_counted, lambda sample: sample.lm_head_evaluations),
    kind="work",
    better="lower",
    sections={DEPTH: 4},
)
KV_FILLS = Metric(
    name="kv_fill_layers_per_token",
    header="KV fills\n/token",
    meaning="skipped layers whose keys, values were filled",
    compute=partial(_counted, lambda sample: sample.kv_fill_layers),
    kind="work",
    better="lower",
    sections={DEPTH: 5},
)
