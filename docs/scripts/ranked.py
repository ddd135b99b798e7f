"""The page that ranks every strategy: what each brings at a setting that a promise stands behind, and at others.

Settings are certified, chosen and timed on documents of three sets, in the order of ``skip``. No set has a document of
a later one, nor a file of its projects: certifying and choosing leave out what timing has.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from harness.config import BASELINE
from harness.records import OperatingPointRecord, SampleRecord
from harness.records.estimate import MISSING, Estimate
from harness.replay.calibrate import document_losses, parse_target
from kept import Found, MissingRunsError, Tell
from measured import (
    DECODING,
    OVER_TEXT,
    PREFIX,
    REQUEST,
    STREAMS,
    Shown,
    bare,
    of_rows,
    rows_of,
    stream,
    text_of,
)
from reports.metrics.speedups import speedup_pairs
from reports.recorded import RecordedRun
from reports.statistics.intervals import paired_ratio
from reports.statistics.risk_control import P_VALUES, certified_by_tests
from reports.tables.table import Column, Line, Part, Table

TARGET = "agreement=0.75"
CONFIDENCE = 0.95
STUDIES = {"ranking": "harness study docs/scripts/results/ranking.toml"}
SETS = ("certify", "choose", "time")
NOT_CERTIFIED = "not certified"
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
    rows = rows_of(found["ranking"].runs)
    rows = rows[rows["operating_point"] != BASELINE].copy()
    options = [json.loads(text) for text in rows["options"]]
    rows["family"] = [family(*pair) for pair in zip(rows["strategy"], options, strict=True)]
    rows["setting"] = [setting(*each) for each in zip(rows["text"], rows["strategy"], options, strict=True)]
    rows["lossless"] = rows["decode"].str.startswith("lossless")
    return rows


def origins(run: RecordedRun) -> Set[tuple[str, str]]:
    """Return the documents of a run, and the projects that they name."""
    return {origin for sample in run.samples for origin in _origins(sample)}


def _origins(sample: SampleRecord) -> Set[tuple[str, str]]:
    document = ("document", sample.document or sample.sample_id)
    return {document} if sample.project is None else {document, ("project", sample.project)}


def without(run: RecordedRun, known: Set[tuple[str, str]]) -> RecordedRun:
    """Return a run without the windows that hold a document, or a file of a project, of another set."""
    out = {sample.window for sample in run.samples if known & _origins(sample)}
    windows = tuple(window for window in run.windows if window.window not in out)
    return replace(run, windows=windows, samples=tuple(one for one in run.samples if one.window not in out))


def disjoint_sets(runs: Iterable[RecordedRun]) -> dict[str, tuple[RecordedRun, ...]]:
    """Return the three sets of each kind of text, in the order of :data:`SETS`."""
    by_text: dict[str, list[RecordedRun]] = {}
    for run in runs:
        (task,) = run.manifest.tasks
        by_text.setdefault(stream(task.source, task.language), []).append(run)
    found: dict[str, tuple[RecordedRun, ...]] = {}
    for text, each in by_text.items():
        each.sort(key=lambda run: run.manifest.config.get("skip") or 0)
        if len(each) != len(SETS):
            raise MissingRunsError(f"{text} has {len(each)} runs, and to {', '.join(SETS)} takes one each")
        certify, choose, time = each
        chosen = without(choose, origins(time))
        found[text] = (without(certify, origins(time) | origins(chosen)), chosen, time)
    return found


def tell(runs: Sequence[RecordedRun], _: Path) -> tuple[Sequence[RecordedRun], Mapping[str, Any]]:
    """Return the runs that were timed; what is certified and chosen on others, and how many documents each set has."""
    sets = disjoint_sets(runs)
    return [time for *_, time in sets.values()], {
        "certified": sorted(certified([certify for certify, *_ in sets.values()])),
        "chosen": chosen([choose for _, choose, _ in sets.values()]),
        "documents": {
            text: [len({sample.sample_id for sample in run.samples}) for run in each] for text, each in sets.items()
        },
    }


def certified(runs: Iterable[RecordedRun]) -> set[Setting]:
    """Return the settings that a promise stands behind, each on the kind of text that it was tested on.

    A family's settings are tested in order; over families the level is Bonferroni's, so that all promises about a kind
    of text hold together.
    """
    target = parse_target(TARGET)
    sure = set()
    for run in runs:
        (task,) = run.manifest.tasks
        families: dict[str, list[OperatingPointRecord]] = {}
        for point in run.manifest.operating_points:
            if point.decode == "lossy" and point.strategy not in (BASELINE, "oracle"):
                families.setdefault(family(point.strategy, point.options), []).append(point)
        for points in families.values():  # from strict to lax, as they are declared
            delta = (1 - CONFIDENCE) / len(families)
            losses = [document_losses(run.point(task.name, point.name), target) for point in points]
            drawn = [name for name in losses[0] if all(name in each for each in losses)]  # tests bet in this order
            if not drawn:
                continue
            table = np.array([[each[name] for name in drawn] for each in losses])
            tests = certified_by_tests(table, target.risk, delta, P_VALUES["betting"])
            text = stream(task.source, task.language)
            passed = [point for point, p in zip(points, tests, strict=False) if p <= delta]
            sure |= {setting(text, point.strategy, point.options) for point in passed}
    return sure


def chosen(runs: Iterable[RecordedRun]) -> dict[str, str]:
    """Return the operating point of each line of the ranking, the one whose requests are fastest over all texts."""
    speeds: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for (task, name), cell in run.cells.items():
            record = cell.point
            if record.name == BASELINE or record.never_exits:
                continue
            found = paired_ratio(speedup_pairs(run.point(task, name)))
            speeds.setdefault(line_of(record.strategy, record.options, record.decode), {}).setdefault(name, []).append(
                math.log(found or 1.0)
            )
    return {line: max(each, key=lambda name: sum(each[name])) for line, each in speeds.items()}


def line_of(strategy: str, options: Mapping[str, Any], decode: str) -> str:
    """Return which line of the ranking an operating point may stand for."""
    return family(strategy, options) + (f"@{decode}" if decode.startswith("lossless") else "")


def together(rows: Sequence[pd.Series[Any]], name: str = REQUEST.name, tests: int = 1) -> tuple[float, float, float]:
    """Return the geometric mean of a ratio over kinds of text and its interval, wider by Bonferroni's for more tests.

    Streams are of different documents, so that the squares of half their intervals' logarithms add up.
    """
    logs = [math.log(row[name]) for row in rows]
    halves = [(math.log(row[f"{name}_high"]) - math.log(row[f"{name}_low"])) / 2 for row in rows]
    mean, half = sum(logs) / len(logs), math.hypot(*halves) / len(logs)
    if tests > 1:
        freedom = sum(row.get(f"{name}_n", math.inf) - 1 for row in rows)
        half *= stdtrit(freedom, 1 - 0.025 / tests) / stdtrit(freedom, 0.975)
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


def ranking(found: Found) -> Iterator[Part]:
    """Yield a line per strategy at the setting chosen for it: lossless ones first, the faster before the slower."""
    rows = ranked_rows(found)
    rows = rows[rows["strategy"] != "oracle"]
    names = rows["family"] + ("@" + rows["decode"]).where(rows["lossless"], "")
    documents = found["ranking"].documents
    lines, tests = [], names.nunique()
    for (name, lossless), own in rows.groupby([names, rows["lossless"]], sort=False):
        point = documents["chosen"][name]
        each = dict(_points(own))[point]
        best = together(each, tests=tests)
        decoding = together(each, DECODING.name, tests=tests)
        prefix = float(np.mean([row[PREFIX.name] for row in each]))
        if best[1] <= 1:
            told = f"{'costs more than it saves' if best[2] < 1 else 'no measurable gain'}: {why(each)}"
        elif "+" in each[0]["decode"] and each[0]["strategy"] != BASELINE:
            told = _beside_text(each, tests)
        else:
            told = "worth using" if lossless else f"faster, with {1 - prefix:.0%} of the text lost"
        of_text = {row["text"]: bare(REQUEST, row) for row in each}
        cells = [of_text.get(text, MISSING) for text in STREAMS]
        setting = MISSING if each[0]["strategy"] == BASELINE else _options(point)
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
    yield _sets(documents["documents"])


def _sets(documents: Mapping[str, Sequence[int]]) -> Line:
    counts = (f"{text} {' / '.join(map(str, each))}" for text, each in documents.items())
    return Line(f"Documents to {' / '.join(SETS)}, of other projects each where they name one: {', '.join(counts)}.")


def _beside_text(rows: Sequence[pd.Series[Any]], tests: int) -> str:
    """Say whether exits behind drafts from text are worth using: held against the fastest such drafts alone."""
    held = together(rows, OVER_TEXT.name, tests)
    told = "slows text drafts down" if held[2] < 1 else "no measurable gain over text drafts"
    return f"{'worth using' if held[1] > 1 else told}: {_said(held)} of text drafts alone"


def promised(found: Found) -> Iterator[Part]:
    """Yield a line per lossy strategy that something is certified of: its laxest certified setting on each text.

    What is not certified on a kind of text has no speed there, and no part in what stands for several.
    """
    rows, documents = ranked_rows(found), found["ranking"].documents
    sure = set(map(tuple, documents["certified"]))
    rows = rows[~rows["lossless"] & rows["setting"].isin(sure)]
    lines = []
    for name, own in rows.groupby("family", sort=False):
        last = {row["text"]: row for _, row in own.iterrows()}  # settings stand from strict to lax
        each = {text: last.get(text) for text in documents["documents"]}
        cells = [
            NOT_CERTIFIED if row is None else f"{text_of(REQUEST, row)} ({_options(row['operating_point'])})"
            for row in each.values()
        ]
        ratio = together(list(last.values()), tests=rows["family"].nunique())
        lines.append((ratio, [str(name), *cells, f"{len(last)} of {len(each)}", _said(ratio)]))
    ordered = sorted(lines, key=lambda line: line[0], reverse=True)
    heads = ["strategy", *documents["documents"], "certified on", "together, where certified"]
    yield of_rows(heads, [cells for _, cells in ordered], label=True)
    yield _sets(documents["documents"])


def _points(rows: pd.DataFrame) -> Iterator[tuple[str, list[pd.Series[Any]]]]:
    """Yield each operating point with its rows, one per kind of text."""
    for point, each in rows.groupby("operating_point", sort=False):
        yield str(point), [row for _, row in each.iterrows()]


def _options(point: str) -> str:
    """Return an operating point's options that are not the family's own."""
    options = [option for option in point.partition("@")[0].split(":")[1:] if not option.startswith("head=")]
    return ", ".join(options) or "as it ships"


TELLS: Mapping[str, Tell] = {"ranking": tell}

TABLES = {
    "ranking": Shown(("ranking",), ranking),
    "ranking-promised": Shown(("ranking",), promised),
}
