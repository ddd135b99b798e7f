"""The page that ranks every strategy at one setting, chosen on other documents than those on which it is timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from harness.config import BASELINE
from harness.records.estimate import MISSING, Estimate
from kept import Found
from measured import DECODING, OVER_TEXT, PREFIX, REQUEST, STREAMS, Shown, bare, rows_of
from reports.tables.table import Column, Table

STUDIES = {"ranking": "harness study docs/scripts/results/ranking.toml"}
LITTLE = 1.05  # layers skipped that would bring less, were deciding free, are too few to pay
NOT_BYTES = 1.05  # what a byte model may promise beyond what was measured before both are told


Scale = tuple[Callable[[float], float], Callable[[float], float]]
"""What a mean is taken of, and back."""
RATIO: Scale = (math.log, math.exp)
SHARE: Scale = (float, float)


def together(
    rows: Sequence[pd.Series[Any]], name: str = REQUEST.name, *, tests: int = 1, scale: Scale = RATIO
) -> tuple[float, float, float]:
    """Return a metric's mean over kinds of text and its interval, wider by Bonferroni's for more tests.

    A ratio's mean is geometric. Kinds of text are of different documents, so that the squares of half their intervals
    add up.
    """
    there, back = scale
    each = [tuple(there(row[f"{name}{part}"]) for part in ("", "_low", "_high")) for row in rows]
    mean = sum(value for value, _, _ in each) / len(each)
    half = math.hypot(*((high - low) / 2 for _, low, high in each)) / len(each)
    if tests > 1:
        freedom = sum(row.get(f"{name}_n", math.inf) - 1 for row in rows)
        half *= stdtrit(freedom, 1 - 0.025 / tests) / stdtrit(freedom, 0.975)
    return back(mean), back(mean - half), back(mean + half)


def _said(found: tuple[float, float, float], unit: str = "×") -> str:
    value, low, high = found
    known = None if math.isnan(low) or math.isclose(low, high) else (low, high)
    return Estimate.of(value, known).text(f"{{:.2f}}{unit}", "{:.2f}")


def why(rows: Sequence[pd.Series[Any]]) -> str:
    """Say in a few words what keeps a setting from gaining more."""
    skipped, heads, read, measured = (
        float(np.mean([row[name] for row in rows]))
        for name in ("layers_speedup", "lm_head_per_token", "byte_model_speedup", "decode_speedup")
    )
    if rows[0]["lossless"]:
        told = f"{float(np.mean([row['acceptance'] for row in rows])):.0%} of its drafts stand"
        return f"{told}, and bytes read say {read:.2f}×"
    if skipped < LITTLE:
        return f"the layers it skips would bring {skipped:.2f}× were deciding free"
    if read < 1:
        return f"it reads {heads:.1f} LM heads a token to skip layers worth {skipped:.2f}×"
    if read > NOT_BYTES * measured:
        return f"bytes read say {read:.2f}×, the clock {measured:.2f}×"
    return f"bytes read say {read:.2f}× as well"


def ranking(found: Found) -> Iterator[Table]:
    """Yield a line per strategy: lossless ones first, the faster before the slower."""
    rows = rows_of(found["ranking"].runs)
    rows = rows[rows["operating_point"] != BASELINE].assign(lossless=rows["decode"].str.startswith("lossless"))
    lines, tests = [], rows["operating_point"].nunique()
    for point, own in rows.groupby("operating_point", sort=False):
        each = [row for _, row in own.iterrows()]
        (strategy, lossless, decode), *_ = zip(own["strategy"], own["lossless"], own["decode"], strict=True)
        best, decoding = (together(each, column.name, tests=tests) for column in (REQUEST, DECODING))
        prefix = together(each, PREFIX.name, scale=SHARE)
        if best[1] <= 1:
            told = f"{'costs more than it saves' if best[2] < 1 else 'no measurable gain'}: {why(each)}"
        elif "+" in decode and strategy != BASELINE:
            told = _beside_text(each, tests)
        else:
            told = "worth using" if lossless else f"faster, with {1 - prefix[0]:.0%} of the text lost"
        of_text = {row["text"]: bare(REQUEST, row) for row in each}
        options = ", ".join(str(point).partition("@")[0].split(":")[1:]) or MISSING
        name = f"{strategy}@{decode}" if lossless else strategy
        cells = [of_text.get(text, MISSING) for text in STREAMS]
        lines.append(
            ((lossless, best[0]), [name, options, _said(best), _said(decoding), told, _said(prefix, ""), *cells])
        )
    heads: list[str | Column] = [
        Column(header="strategy", kind="label"),
        Column(header="its setting", kind="text"),
        REQUEST.header,
        DECODING.header,
        Column(header="verdict", kind="text"),
        PREFIX.header,
        *STREAMS,
    ]
    yield Table.of_rows("", heads, [cells for _, cells in sorted(lines, key=lambda line: line[0], reverse=True)])


def _beside_text(rows: Sequence[pd.Series[Any]], tests: int) -> str:
    """Say whether exits behind drafts from text are worth using: held against the fastest such drafts alone."""
    held = together(rows, OVER_TEXT.name, tests=tests)
    told = "slows text drafts down" if held[2] < 1 else "no measurable gain over text drafts"
    return f"{'worth using' if held[1] > 1 else told}: {_said(held)} of text drafts alone"


TABLES = {"ranking": Shown(("ranking",), ranking)}
