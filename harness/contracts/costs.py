"""The one cost model of decoding: amounts of work, what one unit of each costs, and the sum of their products.

Its users differ in where costs come from, and with that in which units have one:

- **bytes** of weights and of the cache (:func:`harness.records.work.bytes_read`): every LM-head evaluation counts,
  whoever wanted it (``LM head``), and asking is free;
- **seconds** measured on a machine, or bytes where nothing was measured (:class:`UnitCosts`): a ``check`` includes the
  head that it reads, so that heads count where full depth says a token (``deep head``) or an ``exit`` does;
- **seconds or joules** fitted to the windows of a run (:mod:`reports.summary.attribution`): requests and prompts count,
  too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

Amounts = Mapping[str, float]
"""Unit → how many.

``layer step``: a layer whose weights a pass reads. ``layer row``: one more token that it takes along.
``attended position``: a position that a layer attends to. ``LM head``: an evaluation. ``LM head row``: one more row of
it, at a verification. ``deep head``: an evaluation that a pass through all layers needs. ``draft head``: a cheap head
that reads a draft. ``cheap head byte``: read by cheap heads. ``exit``: a token that leaves early. ``shortcut``: an
exit's map. ``KV fill``: a layer whose keys and values are filled. ``check``: asking the strategy once.
"""


def price(work: Amounts, costs: Mapping[str, float]) -> float:
    """Return what work costs, in the costs' unit: bytes, seconds or joules; what has no cost among them is free."""
    total: float = 0
    for unit, amount in work.items():
        if unit in costs:
            total += amount * costs[unit]
    return total


@dataclass(frozen=True, slots=True)
class UnitCosts:
    """Costs of the parts of a token's pass, all in one unit."""

    layer: float  # one decoder layer, for one token
    head: float  # one evaluation of the LM head
    shortcut: float  # an exit's shortcut; 0 with the shared head, and where reading a draft includes it
    source: str  # the unit and where the numbers come from, in words
    # reading the token that an exit drafts, shortcut apart; None where that is an LM head
    draft_head: float | None = None
    check: float = 0.0  # asking the strategy at an exit point; 0 where nobody knows
    asked_at: tuple[int, ...] = ()  # the exit points at which it is asked
    layer_row: float = 0.0  # a layer for one more token of the same pass; 0 where weights are all that costs
    head_row: float = 0.0  # the LM head for one more
    passes: tuple[tuple[int, float], ...] = ()  # rows, from 1, and what a pass of them through all of it costs

    @property
    def per_unit(self) -> Mapping[str, float]:
        """Cost of one of each, for :func:`price`."""
        return {
            "check": self.check,
            "layer step": self.layer,
            "layer row": self.layer_row,
            "deep head": self.head,
            "LM head row": self.head_row,
            "exit": self.shortcut + (self.head if self.draft_head is None else self.draft_head),
        }

    def deep(self, num_layers: int, rows: int = 1) -> float:
        """Return the cost of a pass through all layers, of one token or of several.

        Kernels take rows in blocks, so that a pass's cost climbs in steps: what was measured counts, and between two
        measurements the line from one to the other.
        """
        if rows == 1 or len(self.passes) < 2:
            more = {"layer row": num_layers * (rows - 1), "LM head row": rows - 1}
            return price({"layer step": num_layers, "deep head": 1, **more}, self.per_unit)
        after = min(max(bisect_right(self.passes, (rows, 0.0)), 1), len(self.passes) - 1)
        (low, less), (high, more_) = self.passes[after - 1 : after + 1]
        return less + (more_ - less) * (rows - low) / (high - low)

    def draft(self, layer: int, num_layers: int) -> float:
        """Return what a token that is drafted adds to the cost of a draft, until it is verified with the others.

        Args:
            layer: after which it is drafted.
            num_layers: of the model; the pass that verifies takes the token through those that are left.
        """
        checks = bisect_right(self.asked_at, layer)
        drafted = {"layer step": layer, "check": checks, "exit": 1}
        return price({**drafted, "layer row": num_layers - layer, "LM head row": 1}, self.per_unit)
