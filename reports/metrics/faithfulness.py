"""Agreement with full depth, which is faithfulness and says nothing about being right; and what deciding is worth.

Any strategy looks good beside full depth if it is allowed to be wrong, so the fair rival of one that runs 25.3 layers
a token is fixed exit at 25.3 layers. No such layer exists; the rival is the mixture of the two neighbouring fixed
operating points of the same run (full depth is the deepest of them) whose mean depth is the strategy's, which anybody
could deploy by tossing a coin per request. A fixed exit yields the same tokens under every KV policy that keeps a
cache, so the rival may be of another such policy where the run has none of the same. The difference is taken sample by
sample; the mixture's weight counts as known in its interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from harness.contracts import Metric
from harness.records.estimate import Estimate
from reports.metrics.point import Point
from reports.metrics.scores import EDIT_SIMILARITY
from reports.metrics.sections import EQUAL_DEPTH, FIGURES, HEADLINE, SCORES
from reports.statistics.intervals import mean, ratio, score_interval
from reports.summary.measured import Measured

__all__ = ["AGREEMENT", "AGREEMENT_OVER_FIXED", "EDIT_SIMILARITY_OVER_FIXED"]

_BySample = Callable[[Measured, Measured], Mapping[str, float]]


def _agreement(point: Point) -> float | None:
    """Share of full depth's tokens that stand at the same place here.

    Tokens over tokens, on the samples both finished. A completion that ended early disagrees at every missing place;
    what it has beyond full depth's end is not compared. With a KV cache the first token comes from prefill and always
    agrees.
    """
    same = total = 0
    for key in point.cell.shared(point.full):
        if key[1] == 0:
            reference = point.full.samples[key].token_ids
            same += sum(a == b for a, b in zip(point.cell.samples[key].token_ids, reference, strict=False))
            total += len(reference)
    return ratio(same, total)


def _over_fixed(values: _BySample, point: Point) -> Estimate | None:
    """The difference to fixed exit at the same mean depth.

    ``None`` for fixed operating points themselves, and where the run has no fixed one at least as shallow.
    """
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
    return None if value is None else Estimate.of(value, score_interval(units), n=len(units))


def _agreements(cell: Measured, full: Measured) -> Mapping[str, float]:
    """Share of full depth's tokens at the same place, by sample."""
    found = {}
    for sample_id, repeat in cell.shared(full):
        if repeat == 0:
            reference = full.samples[sample_id, 0].token_ids
            made = cell.samples[sample_id, 0].token_ids
            found[sample_id] = sum(a == b for a, b in zip(made, reference, strict=False)) / len(reference)
    return found


def _edit_similarities(cell: Measured, _: Measured) -> Mapping[str, float]:
    scores = {sample.sample_id: sample.scores.get(EDIT_SIMILARITY) for sample in cell.scored}
    return {sample_id: score for sample_id, score in scores.items() if score is not None}


AGREEMENT = Metric(
    name="agreement",
    header="agree-\nment",
    title="agreement with full depth",
    meaning="share of tokens that equal full depth's at the same place",
    compute=_agreement,
    kind="work",
    better="higher",
    form="fraction",
    sections={HEADLINE: 3, SCORES: 2.5, FIGURES: 2},
    priority=3,
)

_over = partial(Metric, interval=True, kind="score", better="higher", form="difference")

AGREEMENT_OVER_FIXED = _over(
    name="agreement_over_fixed",
    header="agreement over fixed",
    meaning="agreement minus that of fixed exits as deep, per sample",
    compute=partial(_over_fixed, _agreements),
    sections={EQUAL_DEPTH: 1},
)
EDIT_SIMILARITY_OVER_FIXED = _over(
    name="edit_similarity_over_fixed",
    header="edit sim. over fixed",
    meaning="edit similarity minus that of fixed exits as deep",
    compute=partial(_over_fixed, _edit_similarities),
    sections={EQUAL_DEPTH: 2},
)
