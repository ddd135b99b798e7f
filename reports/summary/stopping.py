"""What stop rules do to a table, in words, and whether one ends everything at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reports.summary.measured import Measured

__all__ = ["about_stops"]


def about_stops(cells: Sequence[Measured]) -> Iterator[str]:
    """Warn of rules that always stop, and say what the shorter completions of the others are held against."""
    for cell in cells:
        yield from _always(cell)
    if any(cell.point.stop for cell in cells):
        yield (
            "stop rules: a completion that was ended early is scored against its whole reference, like any other, and "
            "what full depth goes on to say counts as missing in agreement. Tokens saved are of full depth's without a "
            "rule; speed-up, energy and latency of requests count the shorter completions, tokens per second do not."
        )


def _always(cell: Measured) -> Iterator[str]:
    """Warn where a rule, or a strategy, ended every completion as early as it may.

    A rule may with the first token; one that reads states with the second, as the first one's is the prompt's; and a
    strategy, which is asked of the second token, in its place.
    """
    made = list(cell.samples.values())
    rule = cell.point.stop.partition(":")[0]
    by_rule = bool(rule) and all(sample.stop_rule == rule for sample in made)
    if not made or not (by_rule or all(sample.finish_reason == "strategy" for sample in made)):
        return
    lengths = {len(sample.token_ids) for sample in made}
    if lengths in ({1}, {2} if by_rule else {1}):
        yield (
            f"{cell.point.name} on {cell.task.name} always stops: the {'rule' if by_rule else 'strategy'} ended all of "
            f"its {len(made)} completions with their {'first' if lengths == {1} else 'second'} token, so that its "
            "savings mean nothing. Check it and its options."
        )
