"""The page that ranks every strategy: what each brings at a setting that a promise stands behind, and at others."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from harness.config import BASELINE
from harness.records import OperatingPointRecord
from harness.records.estimate import MISSING, Estimate
from harness.replay.calibrate import document_losses, parse_target
from measured import (
    DECODING,
    OVER_TEXT,
    PREFIX,
    REQUEST,
    STREAMS,
    Found,
    Shown,
    bare,
    of_rows,
    rows_of,
    stream,
)
from reports.recorded import RecordedRun
from reports.statistics.risk_control import P_VALUES, certified_by_tests
from reports.tables.table import Column, Table

TARGET = "agreement=0.75"
CONFIDENCE = 0.95
STUDIES = {"ranking": "harness study docs/scripts/results/ranking.toml"}
LITTLE = 1.05  # layers skipped that would bring less, were deciding free, are too few to pay
NOT_BYTES = 1.05  # what a byte model may promise beyond what was measured before both are told

Setting = tuple[str, str, str]
"""Kind of text, strategy, and its options as JSON: what it runs with, however it was written."""


def family(strategy: str, options: Mapping[str, Any]) -> str:
    """Return what a strategy's settings have in common: its name, and what reads its checks if not the LM head."""
    head = options.get("head", "full") if strategy == "confidence" else "full"
    return strategy + ("" if head == "full" else f", {head}")


def setting(text: str, strategy: str, options: Mapping[str, Any]) -> Setting:
    """Return what tells an operating point from others."""
    return text, strategy, json.dumps(options, sort_keys=True)


def ranked_rows(found: Found) -> pd.DataFrame:
    """Return a row per kind of text and operating point, with its family, its setting and whether it is lossless."""
    rows = rows_of(found["ranking"])
    rows = rows[rows["operating_point"] != BASELINE].copy()
    options = [json.loads(text) for text in rows["options"]]
    rows["family"] = [family(*pair) for pair in zip(rows["strategy"], options, strict=True)]
    rows["setting"] = [setting(*each) for each in zip(rows["text"], rows["strategy"], options, strict=True)]
    rows["lossless"] = rows["decode"].str.startswith("lossless")
    return rows


def certified(runs: Iterable[RecordedRun]) -> set[Setting]:
    """Return the settings that a promise stands behind, each on the kind of text that it was tested on."""
    target, delta = parse_target(TARGET), 1 - CONFIDENCE
    sure = set()
    for run in runs:
        (task,) = run.manifest.tasks
        families: dict[str, list[OperatingPointRecord]] = {}
        for point in run.manifest.operating_points:
            if point.decode == "lossy" and point.strategy not in (BASELINE, "oracle"):
                families.setdefault(family(point.strategy, point.options), []).append(point)
        for points in families.values():  # from strict to lax, as they are declared
            losses = [document_losses(run.point(task.name, point.name), target) for point in points]
            drawn = [name for name in losses[0] if all(name in each for each in losses)]  # tests bet in this order
            table = np.array([[each[name] for name in drawn] for each in losses])
            tests = certified_by_tests(table, target.risk, delta, P_VALUES["empirical-bernstein"])
            text = stream(task.source, task.language)
            passed = [point for point, p in zip(points, tests, strict=False) if p <= delta]
            sure |= {setting(text, point.strategy, point.options) for point in passed}
    return sure


def together(
    rows: Sequence[pd.Series[Any] | None], name: str = REQUEST.name, choices: int = 1
) -> tuple[float, float, float]:
    """Return the geometric mean of a ratio over kinds of text and its interval; full depth (1) where there is no row.

    Streams are of different documents, so that the squares of half their intervals' logarithms add up.
    """
    logs = [0.0 if row is None else math.log(row[name]) for row in rows]
    halves = [
        0.0 if row is None else (math.log(row[f"{name}_high"]) - math.log(row[f"{name}_low"])) / 2 for row in rows
    ]
    mean, half = sum(logs) / len(logs), math.hypot(*halves) / len(logs)
    if choices > 1:
        freedom = sum(row.get(f"{name}_n", math.inf) - 1 for row in rows if row is not None)
        half *= stdtrit(freedom, 1 - 0.025 / choices) / stdtrit(freedom, 0.975)
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def _said(ratio: tuple[float, float, float]) -> str:
    value, low, high = ratio
    return Estimate.of(value, None if math.isnan(low) else (low, high)).text("{:.2f}×", "{:.2f}")


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


def ranking(found: Found, _: Path) -> Iterator[Table]:
    """Yield a line per strategy at its fastest setting: lossless ones first, the faster before the slower."""
    rows = ranked_rows(found)
    rows = rows[rows["strategy"] != "oracle"]
    names = rows["family"] + ("@" + rows["decode"]).where(rows["lossless"], "")
    lines = []
    for (name, lossless), own in rows.groupby([names, rows["lossless"]], sort=False):
        speeds = {point: together(each) for point, each in _points(own)}
        fastest = max(speeds, key=lambda point: speeds[point][0])
        each = dict(_points(own))[fastest]
        best = together(each, choices=len(speeds))
        decoding = together(each, DECODING.name, choices=len(speeds))
        prefix = float(np.mean([row[PREFIX.name] for row in each]))
        if best[1] <= 1:
            told = f"{'costs more than it saves' if best[2] < 1 else 'no measurable gain'}: {why(each)}"
        elif "+" in each[0]["decode"] and each[0]["strategy"] != BASELINE:
            told = _beside_text(each)
        else:
            told = "worth using" if lossless else f"faster, with {1 - prefix:.0%} of the text lost"
        of_text = {row["text"]: bare(REQUEST, row) for row in each}
        cells = [of_text.get(text, MISSING) for text in STREAMS]
        setting = MISSING if each[0]["strategy"] == BASELINE else _options(fastest)
        words = [str(name), setting, _said(best), _said(decoding), told, f"{prefix:.2f}"]
        lines.append(((bool(lossless), best[0]), [*words, *cells]))
    heads: list[str | Column] = [
        Column(header="strategy", kind="label"),
        Column(header="its setting", kind="text"),
        REQUEST.header,
        DECODING.header,
        Column(header="verdict", kind="text"),
        PREFIX.header,
        *STREAMS,
    ]
    ordered = sorted(lines, key=lambda line: line[0], reverse=True)
    yield Table.of_rows("", heads, [cells for _, cells in ordered])


def _beside_text(rows: Sequence[pd.Series[Any]]) -> str:
    """Say whether exits behind drafts from text are worth using: held against the fastest such drafts alone."""
    held = together(rows, OVER_TEXT.name)
    told = "slows text drafts down" if held[2] < 1 else "no measurable gain over text drafts"
    return f"{'worth using' if held[1] > 1 else told}: {_said(held)} of text drafts alone"


def promised(found: Found, _: Path) -> Iterator[Table]:
    """Yield a line per lossy strategy that something is certified of: its laxest certified setting on each text."""
    rows, sure = ranked_rows(found), certified(found["ranking"])
    rows = rows[~rows["lossless"] & rows["setting"].isin(sure)]
    lines = []
    for name, own in rows.groupby("family", sort=False):
        last = {row["text"]: row for _, row in own.iterrows()}  # settings stand from strict to lax
        each = [last.get(text) for text in STREAMS]
        cells = [
            MISSING if row is None else f"{bare(REQUEST, row)} ({_options(row['operating_point'])})" for row in each
        ]
        lines.append((together(each), [str(name), *cells]))
    ordered = sorted(lines, key=lambda line: line[0], reverse=True)
    yield of_rows(["strategy", *STREAMS, "together"], [[*cells, _said(ratio)] for ratio, cells in ordered], label=True)


def _points(rows: pd.DataFrame) -> Iterator[tuple[str, list[pd.Series[Any]]]]:
    """Yield each operating point with its rows, one per kind of text."""
    for point, each in rows.groupby("operating_point", sort=False):
        yield str(point), [row for _, row in each.iterrows()]


def _options(point: str) -> str:
    """Return an operating point's options that are not the family's own."""
    options = [option for option in point.partition("@")[0].split(":")[1:] if not option.startswith("head=")]
    return ", ".join(options) or "as it ships"


TABLES = {
    "ranking": Shown(("ranking",), ranking),
    "ranking-promised": Shown(("ranking",), promised),
}
