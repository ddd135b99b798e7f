"""What a window did, as counts of things that each have a price: the left side of the attribution of costs.

Lossless decoding is counted by passes, not by tokens. A pass that goes deep and verifies reads each layer and the LM
head once, for several rows; rows beyond the first are counted apart, since they cost little where weights are all that
takes time, and a lot where they are not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.records import DraftWork, SampleRecord

__all__ = ["COMMON", "PREFILL", "Counts", "counts_of"]

Array = NDArray[np.float64]

PREFILL = ("request", "prompt token")
COMMON = (
    *(*PREFILL, "layer step", "layer row", "attended position", "LM head", "LM head row", "draft head", "exit"),
    "KV fill",
)
"""Counts that every operating point has; each strategy adds its checks.

A layer step is a layer that a pass runs, a layer row one more token that it takes along; likewise with the LM head,
whose rows are the places of a verification. A draft head is a cheap head that reads a draft. An exit costs something
once, however deep it lies (the map to the exit head, starting the fill, waiting). Without a count of its own that price
falls to the checks, which happen where exits do and never exit under a probe: the fit then exceeds the probe for every
cheap check. Exits that draft take a draft head each and make a row of the LM head each: what tells the two apart is an
operating point that drafts without exits, as ``full@lossless+lookup``.
"""


@dataclass(frozen=True, slots=True)
class Counts:
    """What was done, each by the names of the attribution, ``[names]``.

    Attributes:
        all: everything.
        drafting: of lossless decoding, what drafted, or decided not to: passes that ended in a draft, checks, and heads
            that neither prefill nor a verification read; less what was rolled back.
        rolled_back: of lossless decoding, the same of drafts that did not stand, and their rows in verifications.
        free_heads: LM heads that any decoding needs: one per decoded token, or verification.
    """

    all: Array
    drafting: Array
    rolled_back: Array
    free_heads: float

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.all + other.all,
            self.drafting + other.drafting,
            self.rolled_back + other.rolled_back,
            self.free_heads + other.free_heads,
        )


def counts_of(sample: SampleRecord, check: str, names: Sequence[str]) -> Counts:
    """Return what one sample did.

    Args:
        sample: with a KV cache, alone in its batch.
        check: name of its strategy's checks.
        names: of the counts.
    """
    did = {"request": 1, "prompt token": len(sample.prompt_ids), "KV fill": sample.kv_fill_layers}
    if sample.exit_checks:
        did[check] = sample.exit_checks
    if sample.verifications:
        return _lossless(sample, check, names, did)
    layers = sample.exit_layers[1:]
    first = len(sample.prompt_ids) + 1
    read = sample.layers_read or sample.layers_executed  # older runs do not say
    did |= {
        "layer step": read,
        "layer row": sample.layers_executed - read,
        "attended position": sum(layer * (first + step) for step, layer in enumerate(layers)),
        "LM head": sample.lm_head_evaluations,
        "exit": sum(layer < sample.exit_layers[0] for layer in layers),  # the first is of full depth
    }
    nothing = np.zeros(len(names))
    return Counts(_in_order(did, names), nothing, nothing, len(layers))


def _lossless(sample: SampleRecord, check: str, names: Sequence[str], did: dict[str, int]) -> Counts:
    depth, tokens = sample.exit_layers[0], len(sample.token_ids) - 1
    middle = len(sample.prompt_ids) + 1 + tokens // 2  # where the completion is half made
    discarded = sample.layers_discarded // depth
    places = tokens + discarded
    extra = sample.lm_head_evaluations - places  # of checks and drafts
    drafting, rolled_back = sample.drafting or DraftWork(), sample.rolled_back or DraftWork()
    rows = {"layer row": sample.layers_executed - sample.layers_read, "LM head row": places - sample.verifications}
    did |= rows | {
        "layer step": sample.layers_read,
        "attended position": sample.layers_read * middle,
        "LM head": extra + sample.verifications,
        "draft head": sample.cheap_head_tokens,
        "exit": drafting.passes,
    }
    share = discarded / rows["LM head row"] if discarded else 0.0  # of a verification's rows but one
    back = _by_name(rolled_back, check, middle) | {name: share * count for name, count in rows.items()}
    drafts = _by_name(drafting, check, middle) | {
        "LM head": extra,
        "draft head": sample.cheap_head_tokens,
        check: sample.exit_checks,
    }
    work = _by_name(rolled_back, check, middle)
    return Counts(
        _in_order(did, names),
        _in_order(drafts, names) - _in_order(work, names),
        _in_order(back, names),
        sample.verifications,
    )


def _by_name(work: DraftWork, check: str, middle: int) -> dict[str, float]:
    return {
        "layer step": work.layers_read,
        "attended position": work.layers_read * middle,
        "LM head": work.lm_head_evaluations,
        "draft head": work.cheap_head_tokens,
        "exit": work.passes,
        check: work.exit_checks,
    }


def _in_order(did: Mapping[str, float], names: Sequence[str]) -> Array:
    return np.array([did.get(name, 0.0) for name in names])
