"""What stop rules do to a table, in words, and whether one ends everything at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reports.summary.measured import Measured

__all__ = ["about_stops"]


def about_stops(cells: Sequence[Measured]) -> Iterator[str]:
    """Warn of rules that always stop, and say what the shorter completions of the others are held against."""
    stopping = [cell for cell in cells if cell.point.stop]
    for cell in stopping:
        rule = cell.point.stop.partition(":")[0]
        made = list(cell.samples.values())
        first = sum(sample.stop_rule == rule and len(sample.token_ids) == 1 for sample in made)
        if made and first == len(made):
            yield (
                f"{cell.point.name} on {cell.task.name} always stops: the rule ended all of its {len(made)} "
                "completions with their first token, so that its savings mean nothing. Check the rule and its options."
            )
    if stopping:
        yield (
            "stop rules: a completion that was ended early is scored against its whole reference, like any other, and "
            "what full depth goes on to say counts as missing in agreement. Tokens saved are of full depth's without a "
            "rule; speed-up, energy and latency of requests count the shorter completions, tokens per second do not."
        )
