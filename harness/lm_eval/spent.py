"""Cost of a task's requests: depth, time and energy, with the source of the energy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from harness.contracts import EnergyReading
from harness.records.summary import SummaryRow


@dataclass(slots=True)
class Spent:
    """Sums over the windows of one task's requests.

    Attributes:
        requests: answered.
        tokens: generated, or scored.
        seconds: that it took, prompts included.
        joules: the same; ``None`` where one window has no number.
        layers: decoder layers executed, summed over ``decoded`` tokens.
        decoded: tokens whose depth counts: with a KV cache not the first of a completion, which the prompt yields.
        known_requests, known_tokens: those of another task, too, which had been scored for it: no window has them.
        source: of the energy. measured: a sensor measured it.
        flags: quality remarks on its windows. reason: why there are no joules.
    """

    source: str
    measured: bool
    requests: int = 0
    tokens: int = 0
    seconds: float = 0.0
    joules: float | None = 0.0
    layers: int = 0
    decoded: int = 0
    known_requests: int = 0
    known_tokens: int = 0
    flags: set[str] = field(default_factory=set)
    reason: str | None = None

    def count(self, requests: int, tokens: int, layers: Iterable[int], *, known: bool = False) -> None:
        """Count requests and tokens, the layers that each decoded one ran, and whether another task's window has it."""
        depths = list(layers)
        self.requests, self.tokens = self.requests + requests, self.tokens + tokens
        self.layers, self.decoded = self.layers + sum(depths), self.decoded + len(depths)
        if known:
            self.known_requests, self.known_tokens = self.known_requests + requests, self.known_tokens + tokens

    def add(self, reading: EnergyReading) -> None:
        """Add a window."""
        self.seconds += reading.duration_s
        self.joules = None if self.joules is None or reading.energy_j is None else self.joules + reading.energy_j
        self.flags.update(reading.flags)
        self.reason = self.reason or reading.reason

    def facts(self) -> dict[str, Any]:
        """Return the facts of a result; what was not measured is ``None``."""
        read = self.tokens - self.known_tokens
        facts = _facts(
            self.requests,
            self.tokens,
            self.layers / self.decoded if self.decoded else None,
            self.seconds / read if read else None,
            self.joules / read if read and self.joules is not None else None,
            self.source,
            self.measured,
        )
        return facts | {
            "known_requests": self.known_requests,
            "known_tokens": self.known_tokens,
            "energy_flags": sorted(self.flags),
            "energy_reason": self.reason or (None if read or not self.tokens else "scored for another task"),
        }


def facts_of_row(row: SummaryRow, tokens: int) -> dict[str, Any]:
    """Return the same facts from a row of a run's summary.

    Args:
        row: one operating point on one task.
        tokens: that it generated.
    """
    speed = row.value("tokens_per_s")
    return _facts(
        row.n,
        tokens,
        row.value("exit_layer_mean"),
        1 / speed if speed else None,
        row.value("energy_j_per_token"),
        row.energy_source,
        row.energy_measured,
    )


def _facts(
    requests: int,
    tokens: int,
    depth: float | None,
    seconds: float | None,
    joules: float | None,
    source: str,
    measured: bool,
) -> dict[str, Any]:
    return {
        "requests": requests,
        "tokens": tokens,
        "exit_layer_mean": depth,
        "s_per_token": seconds,
        "j_per_token": joules,
        "energy_source": source,
        "energy_measured": measured,
    }
