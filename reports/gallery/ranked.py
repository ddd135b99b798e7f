"""The page that ranks every strategy: what each brings at a setting that a promise stands behind, and at others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.calibrating.targets import document_losses, parse_target
from harness.config import BASELINE
from reports.gallery.measured import (
    BYTES,
    DECODING,
    LOST,
    PREFIX,
    SKIPPED,
    STREAMS,
    Column,
    Found,
    Table,
    rows_of,
    stream,
)
from reports.statistics.risk_control import P_VALUES, certified_by_tests
from reports.tables.columns import MISSING
from reports.tables.markdown import markdown_code, markdown_row

TARGET = "agreement=0.75"
CONFIDENCE = 0.95
STUDIES = {
    "ranking": "harness study reports/gallery/results/ranking.toml",
    "ranking-calibration": "harness study reports/gallery/results/ranking-calibration.toml",
}
LETTERS = dict(zip(STREAMS, ("P", "J", "p", "j"), strict=True))
"""Kind of text → its sign in the table of settings."""
LITTLE = 1.05
"""Layers skipped that would bring less, were deciding free, are too few to pay."""
NOT_BYTES = 1.05
"""What a byte model may promise beyond what was measured before something else must take the time."""

HEADS = Column("LM heads / token", "lm_head_per_token", "{:.1f}")


def family(row: Mapping[str, Any]) -> str:
    """Return what a strategy's settings have in common: its name, and what reads its checks if not the LM head."""
    head = row["options"].get("head", "full") if row["strategy"] == "confidence" else "full"
    return str(row["strategy"]) + ("" if head == "full" else f", {head}")


@dataclass(frozen=True)
class Ranking:
    """What was measured, and what other documents certify.

    Attributes:
        found: runs of both studies.
    """

    found: Found

    @cached_property
    def rows(self) -> pd.DataFrame:
        """A row per kind of text and operating point, with ``family`` and whether it is ``lossless``."""
        rows = rows_of(self.found["ranking"])
        rows = rows[rows["operating_point"] != "full"].copy()
        rows["family"] = [family(dict(row)) for _, row in rows.iterrows()]
        rows["lossless"] = rows["decode"].str.startswith("lossless")
        return rows

    @cached_property
    def certified(self) -> set[tuple[str, str]]:
        """Kinds of text and operating points that a promise stands behind."""
        target, certified = parse_target(TARGET), set()
        for run in self.found["ranking-calibration"]:
            (task,) = run.manifest.tasks
            text = stream(task.source, task.language)
            families: dict[str, list[str]] = {}
            for point in run.manifest.operating_points:
                if point.strategy != BASELINE:
                    families.setdefault(family(vars(point)), []).append(point.name)
            for names in families.values():  # from strict to lax, as they are declared
                losses = [document_losses(run.point(task.name, name), target) for name in names]
                documents = set.intersection(*map(set, losses))
                table = np.array([[each[name] for name in sorted(documents)] for each in losses])
                delta = 1 - CONFIDENCE
                tests = certified_by_tests(table, target.risk, delta, P_VALUES["empirical-bernstein"])
                certified |= {(text, name) for name, p in zip(names, tests, strict=False) if p <= delta}
        return certified

    @cached_property
    def calibrated(self) -> set[str]:
        """Families whose settings were tested on other documents."""
        runs = self.found["ranking-calibration"]
        return {family(vars(point)) for run in runs for point in run.manifest.operating_points}

    def chosen(self, rows: pd.DataFrame, text: str) -> pd.Series[Any] | None:
        """Return a family's laxest certified setting on a kind of text."""
        rows = rows[rows["text"] == text]
        rows = rows[[(text, point) in self.certified for point in rows["operating_point"]]]
        return None if rows.empty else rows.iloc[-1]


def together(rows: Sequence[pd.Series[Any] | None], name: str = "decode_speedup") -> tuple[float, float, float]:
    """Return the geometric mean of a ratio over kinds of text and its interval; full depth (1) where there is no row.

    Streams are of different documents, so that the squares of half their intervals' logarithms add up.
    """
    logs = [0.0 if row is None else math.log(row[name]) for row in rows]
    halves = [
        0.0 if row is None else (math.log(row[f"{name}_high"]) - math.log(row[f"{name}_low"])) / 2 for row in rows
    ]
    mean, half = sum(logs) / len(logs), math.hypot(*halves) / len(logs)
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def _said(ratio: tuple[float, float, float]) -> str:
    return "{:.2f}× [{:.2f}, {:.2f}]".format(*ratio)


def why(rows: Sequence[pd.Series[Any]]) -> str:
    """Say in a few words what keeps a setting from gaining more.

    Args:
        rows: of it, one per kind of text.
    """
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
        return f"bytes read say {read:.2f}×, and deciding takes time beside them"
    return f"bytes read say {read:.2f}× as well"


def calibrated(found: Found, _: Path) -> Iterator[str]:
    """Yield a line per strategy: its fastest setting, whatever that loses, and its certified or lossless one."""
    ranking = Ranking(found)
    lines = []
    rows = ranking.rows[ranking.rows["strategy"] != "oracle"]
    names = rows["operating_point"].where(rows["lossless"], rows["family"])
    for (name, lossless), own in rows.groupby([names, rows["lossless"]], sort=False):
        settings = {
            str(point): [row for _, row in each.iterrows()]
            for point, each in own.groupby("operating_point", sort=False)
        }
        fastest = max(settings, key=lambda point: together(settings[point])[0])
        best = together(settings[fastest])
        each = settings[fastest] if lossless else [ranking.chosen(own, text) for text in STREAMS]
        kept = [row for row in each if row is not None]
        sure = together(each)
        if lossless or kept:
            told = "**worth using**" if sure[1] > 1 else _no_gain(sure, kept)
        elif best[1] > 1 and name in ranking.calibrated:
            told = f"gains only where more is lost than {TARGET.replace('=', ' ')} allows"
        else:
            told = _no_gain(best, settings[fastest])
        cells = [MISSING if row is None else f"{row['decode_speedup']:.2f}×" for row in each]
        prefix = f"{float(np.mean([row['exact_prefix'] for row in settings[fastest]])):.2f}"
        setting = MISSING if lossless else f"{best[0]:.2f}× ({_setting(fastest)})"
        order = (bool(kept), sure[0] if kept else best[0])
        lines.append(
            (order, [markdown_code(str(name)), setting, prefix, *cells, _said(sure) if kept else MISSING, told])
        )
    yield markdown_row(["strategy", "fastest of its settings", "exact prefix there", *STREAMS, "together", "verdict"])
    yield markdown_row([":--", ":--", *["--:"] * 6, ":--"])
    yield from (markdown_row(cells) for _, cells in sorted(lines, key=lambda line: line[0], reverse=True))


def _no_gain(ratio: tuple[float, float, float], rows: Sequence[pd.Series[Any]]) -> str:
    return f"{'costs more than it saves' if ratio[2] < 1 else 'no gain that can be told'}: {why(rows)}"


def _setting(point: str) -> str:
    """Return an operating point's options that are not the family's own."""
    options = [option for option in point.split(":")[1:] if not option.startswith("head=")]
    return ", ".join(options) or "its own"


def settings(found: Found, _: Path) -> Iterator[str]:
    """Yield a line per operating point, all kinds of text together."""
    ranking = Ranking(found)
    columns = (SKIPPED, HEADS, BYTES)
    yield markdown_row(
        [
            "operating point",
            *(one.title for one in columns),
            "decoding",
            "whole request",
            "exact prefix",
            LOST.title,
            "certified on",
        ]
    )
    yield markdown_row([":--", *["--:"] * 7, ":--"])
    for name, rows in ranking.rows.groupby("operating_point", sort=False):
        each = [row for _, row in rows.iterrows()]
        means = [one.cell(rows[[one.name]].mean()) for one in columns]
        speeds = [_said(together(each, metric)) for metric in (DECODING.name, "speedup")]
        kept = [f"{rows[PREFIX.name].mean():.2f}", f"{rows[LOST.name].mean():+.3f}".replace("-", "−")]
        sure = "".join(letter for text, letter in LETTERS.items() if (text, name) in ranking.certified)
        certified = (
            "full depth's text" if rows["lossless"].all() else "a bound" if name == "oracle" else sure or MISSING
        )
        yield markdown_row([markdown_code(str(name)), *means, *speeds, *kept, certified])


TABLES = {
    "ranking": Table(tuple(STUDIES), calibrated),
    "ranking-settings": Table(tuple(STUDIES), settings),
}
