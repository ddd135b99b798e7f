"""The upper bound no strategy can pass without changing tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from harness.contracts import ExitView, Strategy


@dataclass(frozen=True)
class Oracle(Strategy):
    """Exit at the first exit point whose token is the one full depth would give.

    Rule: exit when argmax p_l = argmax p_L, with p_L from running the remaining layers. It looks at the answer, so it
    is an upper bound: its decisions are made once outside the measured window and replayed inside it at no cost, under
    exact keys and values only (``recompute``, or ``none``), whatever ``--kv`` says for others. Every state is then full
    depth's, so no strategy with these exit points can skip more and change no token. Under ``propagate`` the same rule
    skips less than learned exits do and changes tokens: it bounds nothing there. Source: optimal exit of GREEN-CODE
    (2025), section IV-D, ℓ_opt; "oracle" of CALM (Schuster 2022, arXiv 2207.07061).
    """

    upper_bound: ClassVar[bool] = True

    def should_exit(self, view: ExitView) -> Tensor:
        """Compare this exit head's token with the last layer's."""
        return view.top_token == view.full_depth_token
