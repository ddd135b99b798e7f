"""What a window did, as counts of things that each have a price: the left side of the attribution of costs.

Lossless decoding is counted by passes, not by tokens. A pass that goes deep and verifies reads each layer and the LM
head once, for several rows; rows beyond the first are counted apart, since they cost little where weights are all that
takes time, and a lot where they are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.contracts import Amounts
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
    amounts = {"request": 1, "prompt token": len(sample.prompt_ids)} | sample.decode_amounts()
    did = _in_order(amounts, check, names)
    if not sample.verifications:
        nothing = np.zeros(len(names))
        return Counts(did, nothing, nothing, len(sample.exit_layers) - 1)
    drafting, rolled_back = (
        work.amounts(sample.middle) for work in (sample.drafting or DraftWork(), sample.rolled_back or DraftWork())
    )
    rows = {name: amounts[name] for name in ("layer row", "LM head row")}
    extra = amounts["LM head"] - sample.verifications  # evaluations of checks and drafts
    drafts = drafting | {name: amounts[name] for name in ("draft head", "check")} | {"LM head": extra}
    discarded = sample.layers_discarded // sample.exit_layers[0]
    share = discarded / rows["LM head row"] if discarded else 0.0  # of a verification's rows but one
    back = rolled_back | {name: share * count for name, count in rows.items()}
    return Counts(
        did,
        _in_order(drafts, check, names) - _in_order(rolled_back, check, names),
        _in_order(back, check, names),
        sample.verifications,
    )


def _in_order(did: Amounts, check: str, names: Sequence[str]) -> Array:
    return np.array([float(did.get("check" if name == check else name, 0)) for name in names])
