"""Agreement with full depth, which is faithfulness and says nothing about being right; and what deciding is worth.

**The exact prefix** is what stands before the first token that differs from full depth's; **own-text agreement** asks
at every place what full depth would choose given what was generated. Samples that both finished, first repeat, and
tokens that were decided count; every completion weighs the same. Where tokens are full depth's by definition,
agreement is 1 and has no interval.

**Over fixed exit**: the fair rival of a strategy that runs 25.3 layers a token is the mixture of the two neighbouring
fixed operating points of the run (full depth is the deepest) with that mean depth, which is an estimate, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain

from harness.contracts import Metric, common_prefix, first_line
from harness.records import SampleRecord
from harness.records.estimate import Estimate, Interval, NoInterval
from reports.metrics.point import Point, Units
from reports.metrics.vocabulary import AGREEMENTS, EDIT_SIMILARITY, EQUAL_DEPTH, FIGURES, HEADLINE
from reports.statistics.intervals import MINIMUM_DIFFERING, Pair, mean, ratio, score_interval, share_bounds
from reports.summary.measured import Measured

_BySample = Callable[[Measured, Measured], Mapping[str, float]]


def exact_prefixes(cell: Measured, full: Measured) -> Mapping[str, float]:
    """Return the share of full depth's tokens before the first that differs, by sample."""
    return {key: kept / total for key, (kept, total) in _kept_of(cell, full).items()}


def _kept_of(cell: Measured, full: Measured) -> dict[str, tuple[int, int]]:
    """Decided tokens before the first difference, and full depth's, by sample; one where nothing was decided has none.

    A completion whose first token already differs keeps none, also where that token is prefill's.
    """
    found = {}
    for mine, reference in _compared(cell, full):
        if mine.answer is not None:
            continue
        given = len(reference.token_ids) - len(cell.decoded(reference.token_ids))
        if len(reference.token_ids) > given:
            kept = max(common_prefix(mine.token_ids, reference.token_ids) - given, 0)
            found[mine.sample_id] = (kept, len(reference.token_ids) - given)
    return found


def _exact_lines(cell: Measured, full: Measured) -> Mapping[str, float]:
    """1 where the first line is full depth's, white space aside, else 0."""
    return {
        mine.sample_id: float(first_line(mine.text).split() == first_line(reference.text).split())
        for mine, reference in _compared(cell, full)
    }


def _exact_texts(cell: Measured, full: Measured) -> Mapping[str, float]:
    """Share of full depth's characters before the first that differs, by sample; all there is of a black box."""
    return {
        mine.sample_id: common_prefix(mine.text, reference.text) / len(reference.text)
        for mine, reference in _compared(cell, full)
        if reference.text
    }


def _own_text(cell: Measured, full: Measured) -> Mapping[str, float]:
    """Share of decided tokens that full depth would have chosen in their place, by sample; empty where nobody asked.

    Up to the first difference the context is full depth's own, so that its completion tells what it chose there.
    """
    found = {}
    for sample in cell.scored:
        if len(sample.full_depth_ids) != len(sample.token_ids):
            continue
        chosen = list(sample.full_depth_ids)
        reference = full.samples.get((sample.sample_id, 0))
        if reference is not None:
            known = reference.token_ids[: common_prefix(sample.token_ids, reference.token_ids) + 1]
            chosen[: len(known)] = known[: len(chosen)]  # one that was cut short is all alike
        same = [a == b for a, b in zip(cell.decoded(sample.token_ids), cell.decoded(chosen), strict=True)]
        if same:
            found[sample.sample_id] = sum(same) / len(same)
    return found


def _compared(cell: Measured, full: Measured) -> Iterator[tuple[SampleRecord, SampleRecord]]:
    """Each sample beside full depth's; first repeats alone, since later ones generate the same again."""
    for key in cell.shared(full):
        if key[1] == 0:
            yield cell.samples[key], full.samples[key]


def _agreement(point: Point) -> float | None:
    """Share of full depth's tokens that stand at the same place here, the first included; tokens over tokens."""
    same = total = 0
    for mine, reference in _compared(point.cell, point.full):
        same += sum(a == b for a, b in zip(mine.token_ids, reference.token_ids, strict=False))
        total += len(reference.token_ids)
    return ratio(same, total)


def _mean(values: _BySample, point: Point) -> Estimate | None:
    """The mean of shares over samples, with an interval where enough of them are neither 1 nor 0."""
    shares = values(point.cell, point.full)
    value, units = mean(shares.values()), point.cell.by_block(shares)
    if value is None:
        return None
    return Estimate.of(value, None if point.is_exact and value == 1 else _share_interval(units), n=len(units))


def _share_interval(units: Sequence[Sequence[float]]) -> Interval | NoInterval:
    shares = [share for unit in units for share in unit]
    if min(sum(share < 1 for share in shares), sum(share > 0 for share in shares)) < MINIMUM_DIFFERING:
        return NoInterval.FEW_DIFFERING
    return share_bounds([Pair(math.fsum(unit), len(unit)) for unit in units])


def _units(values: _BySample, point: Point) -> Units:
    return {frozenset([key]): (value, 1.0) for key, value in values(point.cell, point.full).items()}


def _over_fixed(values: _BySample, point: Point) -> Estimate | None:
    """The difference to fixed exit at the same mean depth; ``None`` of fixed ones, and where none is as shallow."""
    cell, full = point.cell, point.full
    here = mean(layer for sample in cell.samples.values() for layer in cell.decoded_layers(sample))
    if here is None or cell.constant_layer is not None:
        return None
    anchors = {layer: other for other in cell.alike(point.cells) if (layer := other.constant_layer) is not None}
    below = max((layer for layer in anchors if layer <= here), default=None)
    above = min((layer for layer in anchors if layer >= here), default=None)
    if below is None or above is None:
        return None
    share = 1.0 if above == below else (above - here) / (above - below)
    mine, shallow, deep = (values(one, full) for one in (cell, anchors[below], anchors[above]))
    differences = {
        key: mine[key] - share * shallow[key] - (1 - share) * deep[key]
        for key in mine
        if key in shallow and key in deep
    }
    value, units = mean(differences.values()), cell.by_block(differences)
    if value is None:
        return None
    slope = 0.0 if above == below else sum(deep[key] - shallow[key] for key in differences) / len(differences)
    moved = [-slope / max(above - below, 1) * depth for depth in _moved_depth(cell, differences)]
    return Estimate.of(value, score_interval(units, moved), n=len(units))


def _moved_depth(cell: Measured, samples: Iterable[str]) -> list[float]:
    """How much each block of these samples moves the mean depth of a decided token."""
    layers = {key: cell.decoded_layers(cell.samples[key, 0]) for key in samples}
    blocks = [list(chain(*block)) for block in cell.by_block(layers)]
    tokens = max(sum(map(len, blocks)), 1)
    mean_depth = sum(map(sum, blocks)) / tokens
    return [(sum(block) - mean_depth * len(block)) / tokens for block in blocks]


def _edit_similarities(cell: Measured, _: Measured) -> Mapping[str, float]:
    scores = {sample.sample_id: sample.scores.get(EDIT_SIMILARITY) for sample in cell.scored}
    return {sample_id: score for sample_id, score in scores.items() if score is not None}


_share = partial(Metric, kind="work", better="higher", form="fraction")

EXACT_PREFIX = _share(
    "exact_prefix",
    "exact prefix",
    "share of full depth's tokens before the first that differs, prefill's left out",
    compute=partial(_mean, exact_prefixes),
    units=partial(_units, exact_prefixes),
    interval=True,
    sections={HEADLINE: 1, AGREEMENTS: 1, FIGURES: 2},
    priority=2,
)
EXACT_PREFIX_TOKENS = Metric(
    "exact_prefix_tokens",
    "in\ntokens",
    "tokens before that difference, the analogue of a draft's accepted length; full depth's row: of how many",
    title="exact prefix in tokens",
    compute=lambda point: mean(kept for kept, _ in _kept_of(point.cell, point.full).values()),
    kind="work",
    better="higher",
    unit="tokens",
    sections={AGREEMENTS: 2},
)
EXACT_LINE = _share(
    "exact_line",
    "exact\nline",
    "share of completions whose first line is full depth's, white space aside",
    black_box=True,
    compute=lambda point: mean(_exact_lines(point.cell, point.full).values()),
    units=partial(_units, _exact_lines),
    sections={HEADLINE: 1.5, AGREEMENTS: 3},
    priority=3,
)
EXACT_TEXT = _share(
    "exact_text",
    "exact\ntext",
    "share of full depth's characters before the first that differs, of what is scored",
    compute=partial(_mean, _exact_texts),
    units=partial(_units, _exact_texts),
    interval=True,
    black_box=True,
    sections={AGREEMENTS: 3.5},
)
OWN_TEXT = _share(
    "own_text_agreement",
    "own text",
    "share of generated tokens that full depth would choose after the same tokens, prefill's left out",
    title="own-text agreement",
    compute=partial(_mean, _own_text),
    units=partial(_units, _own_text),
    interval=True,
    sections={AGREEMENTS: 4},
)
AGREEMENT = _share(
    "agreement",
    "position-\nwise",
    "share of full depth's tokens that stand at the same place, prefill's included",
    title="positionwise agreement",
    compute=_agreement,
    sections={AGREEMENTS: 5},
)

EXACT_PREFIX_OVER_FIXED, EDIT_SIMILARITY_OVER_FIXED = (
    Metric(
        f"{name}_over_fixed",
        f"{header} over fixed",
        f"{meaning} minus that of fixed exits as deep, per sample",
        compute=partial(_over_fixed, values),
        interval=True,
        kind="score",
        better="higher",
        form="difference",
        sections={EQUAL_DEPTH: place},
    )
    for place, name, header, meaning, values in (
        (1, "exact_prefix", "exact prefix", "exact prefix", exact_prefixes),
        (2, EDIT_SIMILARITY, "edit sim.", "edit similarity", _edit_similarities),
    )
)
"""exact prefix minus that of fixed exits as deep, per sample
edit similarity minus that of fixed exits as deep
"""
