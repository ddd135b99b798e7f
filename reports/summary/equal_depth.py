"""A strategy against fixed exit at the same mean depth: what deciding per token is worth.

Any strategy looks good beside full depth if it is allowed to be wrong, so the fair rival of one that runs 25.3 layers
a token is fixed exit at 25.3 layers. No such layer exists; the rival is the mixture of the two neighbouring fixed
operating points of the same run (full depth is the deepest of them) whose mean depth is the strategy's, which anybody
could deploy by tossing a coin per request. A fixed exit yields the same tokens under every KV policy that keeps a
cache, so the rival may be of another such policy where the run has none of the same. The difference is taken sample by
sample and its 95 % interval resamples them. The mixture's weight counts as known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reports.statistics.intervals import mean, mean_interval
from reports.summary.measured import Measured

__all__ = ["over_fixed"]


def over_fixed(cell: Measured, cells: Sequence[Measured], num_layers: int) -> dict[str, object]:
    """Return the fields ``agreement_over_fixed`` and ``edit_similarity_over_fixed`` with their intervals.

    ``None`` for fixed operating points themselves, and where the run has no fixed one at least as shallow.

    Args:
        cell: the operating point.
        cells: all operating points of the task, full depth first.
        num_layers: decoder layers of the model.
    """
    nothing: dict[str, object] = dict.fromkeys(
        f"{name}_over_fixed{suffix}" for name in ("agreement", "edit_similarity") for suffix in ("", "_ci")
    )
    anchors = {layer: other for other in cell.alike(cells) if (layer := other.constant_layer) is not None}
    here = _mean_layers(cell)
    if here is None or cell.constant_layer is not None:
        return nothing
    below = max((layer for layer in anchors if layer <= here), default=None)
    above = min((layer for layer in anchors if layer >= here), default=None)
    if below is None or above is None:
        return nothing
    share = 1.0 if above == below else (above - here) / (above - below)
    low, high, full = anchors[below], anchors[above], cells[0]
    found = dict(nothing)
    for name, values in (("agreement", _agreements), ("edit_similarity", _edit_similarities)):
        mine, shallow, deep = values(cell, full), values(low, full), values(high, full)
        differences = [
            mine[key] - share * shallow[key] - (1 - share) * deep[key] for key in mine if key in shallow and key in deep
        ]
        found[f"{name}_over_fixed"] = mean(differences)
        found[f"{name}_over_fixed_ci"] = mean_interval(differences)
    return found


def _mean_layers(cell: Measured) -> float | None:
    return mean(layer for sample in cell.samples.values() for layer in cell.decoded_layers(sample))


def _agreements(cell: Measured, full: Measured) -> Mapping[str, float]:
    """Share of full depth's tokens at the same place, by sample."""
    found = {}
    for sample_id, repeat in cell.shared(full):
        if repeat == 0:
            reference = full.samples[sample_id, 0].token_ids
            made = cell.samples[sample_id, 0].token_ids
            found[sample_id] = sum(a == b for a, b in zip(made, reference, strict=False)) / len(reference)
    return found


def _edit_similarities(cell: Measured, full: Measured) -> Mapping[str, float]:
    scores = {sample.sample_id: sample.scores.get("edit_similarity") for sample in cell.scored}
    return {sample_id: score for sample_id, score in scores.items() if score is not None}
