"""An operating point's name in two parts: the strategy, for a legend, and its setting, which stands at the point."""

from __future__ import annotations

from collections.abc import Sequence

from harness.appearance.visible_text import one_line
from harness.records.summary import SummaryRow

__all__ = ["settings"]

_LONGEST_VALUE = 12


def settings(rows: Sequence[SummaryRow]) -> tuple[dict[str, str], list[str]]:
    """Return strategy → its text in a legend, and the setting of each row.

    Options that a strategy has one value of stand in the legend, those that it has several of at the points; where it
    has one value of each, its points say them all. For example ``rl:threshold=0.9:seed=1`` and
    ``rl:threshold=0.5:seed=1@lossless`` are *rl: threshold (seed=1)*, with *0.9* and *0.5 lossless*.
    """
    parsed = [_parsed(row.operating_point) for row in rows]
    seen: dict[str, dict[str, set[str]]] = {}
    for row, (options, _) in zip(rows, parsed, strict=True):
        known = seen.setdefault(row.strategy, {})
        for key, value in options.items():
            known.setdefault(key, set()).add(value)
    shown = {strategy: _shown(strategy, known, rows, parsed) for strategy, known in seen.items()}
    legend = {}
    for strategy, known in seen.items():
        fixed = [f"{key}={_short(next(iter(values)))}" for key, values in known.items() if key not in shown[strategy]]
        named = f": {', '.join(shown[strategy])}" if shown[strategy] else ""
        legend[strategy] = f"{strategy}{named}" + (f" ({', '.join(fixed)})" if fixed else "")
    labels = [
        " ".join([*(_short(options[key]) for key in shown[row.strategy] if key in options), *suffixes])
        for row, (options, suffixes) in zip(rows, parsed, strict=True)
    ]
    return legend, labels


def _shown(
    strategy: str,
    known: dict[str, set[str]],
    rows: Sequence[SummaryRow],
    parsed: Sequence[tuple[dict[str, str], list[str]]],
) -> list[str]:
    """Return the options that tell the points of a strategy apart; all where none does."""
    own = [options for row, (options, _) in zip(rows, parsed, strict=True) if row.strategy == strategy]
    differ = [key for key, values in known.items() if len(values) > 1 or any(key not in options for options in own)]
    return differ or list(known)


def _parsed(name: str) -> tuple[dict[str, str], list[str]]:
    """Take ``strategy:key=value:…@suffix@…`` apart."""
    head, *suffixes = one_line(name).split("@")
    options = dict(part.partition("=")[::2] for part in head.split(":")[1:])
    return options, list(map(_short, suffixes))


def _short(text: str, longest: int = _LONGEST_VALUE) -> str:
    return text if len(text) <= 2 * longest else f"{text[: longest - 1]}…{text[-longest:]}"
