"""What each table of the documentation shows, and of which runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import TypeAdapter

from harness.records.calibration import ALL, CALIBRATION, Calibration
from harness.records.estimate import MISSING, Estimate
from harness.records.summary import EXIT, Acceptance
from kept import Found, KeptRun, Tell, document
from reports.completions.token_kinds import KINDS
from reports.published.against import FULL, against_green_code, comparison_tables
from reports.recorded import RecordedRun
from reports.tables.frame import to_frame
from reports.tables.run_tables import attribution_tables
from reports.tables.table import Cell, Column, Line, Part, Table

STREAMS = ("Python's library", "JDK", "CodeXGLUE, Python", "CodeXGLUE, Java")
LOOKUP, SUFFIX = "full@lossless+lookup", "full@lossless+suffix"
EXITS, BOTH = (f"classifier:threshold=0.95@lossless{source}" for source in ("", "+suffix"))
STOPPED = (
    *("full", *(f"full@stop={rule}" for rule in ("line", "statement", "block", "excess"))),
    *(f"{point}{stop}" for point in ("classifier:threshold=0.95", LOOKUP) for stop in ("", "@stop=statement")),
)
COLD, WARM = "none", "exact"
"""What a request of a session leaves to the next."""


@dataclass(frozen=True)
class Shown:
    """What stands in the documentation under one name: tables, made of what is kept of studies."""

    studies: tuple[str, ...]
    parts: Callable[[Found], Iterable[Part]]


def _metric(header: str, name: str, form: str = ".2f", **more: Any) -> Column:
    """Return a metric as a column without rows; ``name`` is of :func:`reports.tables.frame.to_frame`."""
    return Column(header=header, name=name, form=form, cells=(), **more)


PREFIX = _metric("exact prefix", "exact_prefix")
EXACT = _metric("exact text", "exact_text")
OWN_TEXT = _metric("own text", "own_text_agreement", "fraction")
SIMILARITY = _metric("edit sim.", "edit_similarity", "fraction")
SKIPPED = _metric("layers skipped", "layers_skipped", "percent")
VERIFIED = _metric("tokens / verification", "tokens_per_verification")
ACCEPTED = _metric("accepted", "acceptance")
BYTES = _metric("byte model", "byte_model_speedup", "ratio")
DECODING = _metric("decoding", "decode_speedup", "ratio")
REQUEST = _metric("whole request", "speedup", "ratio")
SAVED = _metric("tokens saved", "tokens_saved", ".0f", scale=100, unit="%")
ENDED = _metric("stopped early", "stopped", ".0f", scale=100, unit="%")
KEPT = _metric("accepted characters", "accepted_prefix", ".1f")
PER_CHARACTER = _metric("time per accepted character", "accepted_character_s", ".1f", scale=1000, unit="ms")
OVER_FP16 = _metric("whole request", "speedup_over_fastest", "ratio")
OVER_WARM = _metric("over warm full depth", "speedup_over_first", "ratio")
DECODING_OVER_FP16 = _metric("decoding", "decode_speedup_over_fastest", "ratio")
OVER_TEXT = _metric("over the fastest text drafts", "speedup_over_lossless", "ratio")
PROMPT = _metric("prompt", "prefill_share", ".0f", scale=100, unit="%")
FIRST_TOKEN = _metric("first token, ms", "session_ttft_p50_s", ".0f", scale=1000)
LINE_S = _metric("line, ms", "session_latency_p50_s", ".0f", scale=1000)
COLD_S = _metric("request, ms", "latency_p50_s", ".0f", scale=1000)
WITHIN = _metric("≤ 200 ms", "within_200_ms")


def estimate(row: pd.Series[Any], name: str) -> Estimate | None:
    """Return a metric of a row with its interval; ``None`` where it was not measured."""
    value, low, high = (float(row.get(f"{name}{part}", math.nan)) for part in ("", "_low", "_high"))
    if math.isnan(value):
        return None
    return Estimate.of(value, None if math.isnan(low) or low == high else (low, high))


def text_of(column: Column, row: pd.Series[Any]) -> str:
    """Return what a metric's column would show of one row."""
    return replace(column, cells=(estimate(row, column.name),)).texts[0]


def bare(column: Column, row: pd.Series[Any]) -> str:
    """Return what a metric's column would show of one row without its interval."""
    found = estimate(row, column.name)
    return replace(column, cells=(None if found is None else Estimate.of(found.value, None),)).texts[0]


def stream(source: str, language: str) -> str:
    """Return the kind of text that a row is of, one of :data:`STREAMS`."""
    if source.startswith("embedded"):
        return STREAMS[language == "java"]
    return f"CodeXGLUE, {language.capitalize()}"


def rows_of(runs: Iterable[KeptRun], **more: str) -> pd.DataFrame:
    """Return the rows of runs, a stream after the other; ``more`` are columns with one value."""
    frames = [to_frame(run.summary) for run in runs]
    found = pd.concat(frames, ignore_index=True).copy().assign(**more)  # in one piece
    found["keep"] = found["keep"].fillna("")
    found["text"] = [stream(*pair) for pair in zip(found["source"], found["language"], strict=True)]
    return ordered(found, "text")


def ordered(rows: pd.DataFrame, *names: str) -> pd.DataFrame:
    """Sort rows by columns: kinds of text as in :data:`STREAMS`, what else there is as it comes first."""
    return rows.sort_values(
        list(names), kind="stable",
        key=lambda values: values.map(list(STREAMS if values.name == "text" else values.unique()).index),
    )  # fmt: skip


def listing(rows: pd.DataFrame, names: Mapping[str, str], columns: Sequence[Column]) -> Table:
    """Return a table with a line per row: columns of words (name → title), then metrics."""
    each = [row for _, row in rows.iterrows()]
    labels = ("operating_point", "kv")
    return Table(
        title="",
        columns=(
            *(
                Column(header=title, kind="label" if name in labels else "text", cells=tuple(map(str, rows[name])))
                for name, title in names.items()
            ),
            *(replace(one, cells=tuple(estimate(row, one.name) for row in each)) for one in columns),
        ),
    )  # fmt: skip


def of_rows(headers: Sequence[str], rows: Iterable[Sequence[Cell]], *, label: bool = False) -> Table:
    """Return a table of rows whose first cell says which; ``label`` where it is an operating point."""
    first = Column(header=headers[0], kind="label" if label else "text")
    return Table.of_rows("", [first, *headers[1:]], list(rows))


TEXT_AND_POINT = {"text": "text", "operating_point": "operating point"}


def points(study: str, columns: Sequence[Column], *only: str, texts: Sequence[str] = STREAMS) -> Shown:
    """Return a table with a line per stream and operating point, in the run's order; all of them unless named."""

    def parts(found: Found) -> Iterator[Table]:
        rows = rows_of(found[study].runs)
        rows = rows[rows["text"].isin(texts) & (rows["operating_point"].isin(only) | (not only))]
        yield listing(rows, TEXT_AND_POINT, columns)

    return Shown((study,), parts)


def worth(found: Found) -> Iterator[Table]:
    """Yield what early exit is worth: a line per stream, cold and in an editor; requests, decoding in brackets."""
    shown = {EXITS: "exits", LOOKUP: "look-up", SUFFIX: "suffix", BOTH: "exits behind suffix"}
    lines = []
    for text in STREAMS:
        for how, study, keep, latency in (("cold", "lines", "", COLD_S), ("warm", "sessions", WARM, LINE_S)):
            rows = rows_of(found[study].runs)
            rows = rows[(rows["text"] == text) & (rows["keep"] == keep)]
            by = {base_of(row["operating_point"]): row for _, row in rows.iterrows()}
            speeds = (f"{text_of(REQUEST, by[point])} ({bare(DECODING, by[point])})" for point in shown)
            lines.append((text, how, bare(latency, by["full"]), text_of(PROMPT, by["full"]), *speeds))
    heads = ("full depth, median ms", "prompt, % of all time", *shown.values())
    first = (Column(header="kind of text", kind="text"), Column(header="requests", kind="text"))
    yield Table.of_rows("", (*first, *heads), lines)


def base_of(point: str) -> str:
    """Return an operating point's label without what a session keeps."""
    return "@".join(part for part in point.split("@") if not part.startswith("keep="))


Drafts = Mapping[tuple[str, str], Mapping[tuple[str | None, int | None, str | None], Acceptance]]
"""Stream and operating point → source, layer and kind → what stood."""


def drafts(runs: Iterable[KeptRun]) -> Drafts:
    """Return what stood of the drafts of each stream and operating point."""
    rows = [row for run in runs for row in run.summary.rows]
    return {
        (stream(row.source, row.language), row.operating_point): {
            (one.source, one.layer, one.kind): one for one in row.acceptances
        }
        for row in rows
    }


def stood(found: Sequence[Acceptance | None]) -> str:
    """Return the share of drafts that stood, and how many there were; with its interval where it is of one stream."""
    known = [one for one in found if one is not None]
    drafted = sum(one.drafted for one in known)
    if not drafted:
        return MISSING
    share = f"{sum(one.accepted for one in known) / drafted:.2f}"
    interval = known[0].share.interval if len(found) == 1 else None
    return f"{share}{f' [{interval[0]:.2f}, {interval[1]:.2f}]' if interval else ''} ({drafted:,})"


def draft_sources(found: Found) -> Iterator[Table]:
    """Yield which drafts stood, by what drafted them."""
    of = drafts(found["lines"].runs)
    wanted = [
        ("look-up", LOOKUP, ("lookup", None, None)),
        ("suffix", SUFFIX, ("suffix", None, None)),
        ("exits behind suffix", BOTH, (EXIT, None, None)),
        ("exits alone", EXITS, (EXIT, None, None)),
    ]
    lines = []
    for title, point, key in wanted:
        each = [of[text, point].get(key) for text in STREAMS]
        lines.append((title, *(stood([one]) for one in each), stood(each)))
    yield of_rows(("", *STREAMS, "all"), lines)


def draft_kinds(found: Found) -> Iterator[Table]:
    """Yield which drafts stood, by kind of token, all streams together."""
    of = drafts(found["lines"].runs)
    lines = [
        (kind, *(
            stood([of[text, point].get((source, None, kind)) for text in STREAMS])
            for point, source in ((EXITS, EXIT), (SUFFIX, "suffix"))
        ))
        for kind in KINDS
    ]  # fmt: skip
    shown = [line for line in lines if line[1:] != (MISSING, MISSING)]
    yield of_rows(("kind of token", "exits alone", "suffix"), shown)


def beside(study: str, label: str, by: str, groups: Mapping[str, tuple[str, Sequence[Column]]]) -> Shown:
    """Return a line per stream and ``label`` that has every value of ``by``, a group of columns for each."""

    def parts(found: Found) -> Iterator[Table]:
        rows = rows_of(found[study].runs)
        rows["operating_point"] = rows["operating_point"].map(base_of)
        rows = rows[rows.groupby(["text", label])[by].transform("nunique") == len(groups)]
        columns: list[Column] = []
        for value, (how, metrics) in groups.items():
            words = {} if columns else {"text": "text", label: label.replace("_", " ")}
            titled = [replace(one, header=f"{how}: {one.header}") for one in metrics]
            columns += listing(rows[rows[by] == value], words, titled).columns
        yield Table(title="", columns=tuple(columns))

    return Shown((study,), parts)


RIVALS = {
    **{
        f"{point}{form}": f"{name}, {form[1:]}"
        for form in ("@fp16", "@w8a8")
        for point, name in (("full", "full depth"), (LOOKUP, "look-up"), (SUFFIX, "suffix"))
    },
    **{
        f"endpoint:url=http://127.0.0.1:{port}/completion": name
        for port, name in (
            (8103, "transformers, float32"),
            (8104, "transformers, its look-up"),
            (8101, "llama.cpp"),
            (8102, "llama.cpp, its look-up"),
            (8105, "llama.cpp, Q4_0"),
        )
    },
}
"""Operating points of the studies beside other engines → what they are called."""


def rivals(found: Found) -> Iterator[Table]:
    """Yield a line per engine and way of decoding: how fast it is, exact text in brackets."""
    rows = rows_of(found["rivals"].runs)
    by = {(row["operating_point"], row["text"]): row for _, row in rows.iterrows()}
    lines = [
        (name, *(f"{text_of(OVER_FP16, row)} ({bare(EXACT, row)})" for row in (by[point, text] for text in STREAMS)))
        for point, name in RIVALS.items()
    ]
    yield Table.of_rows("", (Column(header="", kind="text"), *STREAMS), lines)


def attribution(found: Found) -> Iterator[Table]:
    """Yield where the time goes, and what deciding costs."""
    for one in (one for run in found["attribution"].runs for one in run.summary.attributions if one.quantity == "time"):
        yield from attribution_tables(one)


_TABLE: TypeAdapter[Table] = TypeAdapter(Table)


def tell_green_code(runs: Sequence[RecordedRun], _: Path) -> tuple[Sequence[RecordedRun], Mapping[str, Any]]:
    """Return what stands beside GREEN-CODE's numbers, which pairs windows: a table for each task."""
    tables = [next(iter(comparison_tables(replace(one, notes=())))) for one in against_green_code(runs)]
    return runs, {"comparisons": [_TABLE.dump_python(each, mode="json") for each in tables]}


def green_code(found: Found) -> Iterator[Part]:
    """Yield GREEN-CODE's numbers and ours, at the settings that its pages are about."""
    for kept in found["green-code"].documents["comparisons"]:
        table = _TABLE.validate_python(kept)
        begins, of, setting = dict(table.groups), list[str](), ""
        for place in range(table.rows):
            setting = begins.get(place, setting)
            of.append(setting)
        wanted = (FULL, "threshold 0.6", "threshold 0.9", "fixed:layer=14")
        table = table.at([place for place, each in enumerate(of) if each in wanted])
        columns = ("", "layers_skipped", "time_of_uncached", "time_saving")
        yield replace(table, columns=tuple(each for each in table.columns if each.name in columns))
        yield Line(f"Also measured: {', '.join(dict.fromkeys(each for each in of if each not in wanted))}.")


def tell_scores(_: Sequence[RecordedRun], folder: Path) -> tuple[Sequence[RecordedRun], Mapping[str, Any]]:
    """Return the documents of a sweep over one trace."""
    return (), {"calibration": document(folder / CALIBRATION), "sweep": document(folder / "sweep.json")}


def tell_by_token(_: Sequence[RecordedRun], folder: Path) -> tuple[Sequence[RecordedRun], Mapping[str, Any]]:
    """Return the calibrations of four traces, by name."""
    return (), {name: document(folder / name / CALIBRATION) for name in ("base", "shared", "tuned", "generated")}


def scores(found: Found) -> Iterator[Part]:
    """Yield how well each score tells right exits from wrong ones, the best first."""
    documents = found["scores"].documents
    lines = []
    for one in sorted(documents["calibration"]["scores"], key=lambda one: -(one["pooled"]["auroc"] or 0)):
        pooled = one["pooled"]
        auroc, ece = (None if pooled[name] is None else Estimate.of(pooled[name], None) for name in ("auroc", "ece"))
        if auroc is not None and pooled["auroc_ci"]:
            auroc = Estimate.of(auroc.value, tuple(pooled["auroc_ci"]))
        lines.append((one["score"], auroc, ece))
    table = of_rows(("score", "AUROC", "calibration error"), lines, label=True)
    yield replace(table, columns=tuple(replace(column, form="fraction") for column in table.columns))
    sweep = documents["sweep"]
    yield Line(f"{sweep['tokens']:,} tokens of {sweep['documents']:,} documents, replayed: no time is in it.")


def by_token(kept: Found) -> Iterator[Part]:
    """Yield where exits of three models pay, by groups of the same tokens; what was drafted is of generated ones."""
    names = {"base": "base", "shared": "one head", "tuned": "exit modules"}
    found = {name: Calibration.model_validate(kept["by-token"].documents[name]) for name in (*names, "generated")}
    groups = {name: {(one.by, one.name): one for one in of.groups} for name, of in found.items()}
    tuned, made = found["tuned"], found["generated"]
    shown = [0, len(tuned.exit_points) // 2, len(tuned.exit_points) - 1]
    layers = " / ".join(str(tuned.exit_points[place]) for place in shown)
    lines = []
    for group, one in groups["tuned"].items():
        each = [groups[name][group] for name in names]
        drafted = groups["generated"].get(group)
        lines.append(
            (
                one.name if one.by == ALL else f"{one.by}: {one.name}",
                one.tokens,
                *(Estimate.of(of.sufficient_layer, of.sufficient_layer_ci) for of in each),
                " / ".join(f"{one.agreement[place]:.2f}" for place in shown),
                None if drafted is None else drafted.drafts[0].share,
            )
        )
    columns: Sequence[str | Column] = (
        Column(header="tokens", kind="text"),
        Column(header="number", form="count"),
        *(Column(header=f"layers until right: {title}", form=".1f") for title in names.values()),
        f"right at {layers}: {names['tuned']}",
        Column(header="drafts accepted: exit modules", form=".2f"),
    )
    yield Table.of_rows("", columns, lines)
    yield Line(
        f"{tuned.tokens:,} tokens of {tuned.documents} documents of the test splits, teacher-forced; drafts of "
        f"{made.groups[0].drafts[0].operating_point} on {made.tokens:,} tokens generated behind {made.documents} "
        "others, most of which tuning has read. Replayed: no time is in it."
    )


_FOLDER = "docs/scripts/results"
_STUDIES = ("attribution", "formats", "kv", "lines", "rivals", "second", "sessions", "stopping")
STUDIES = {
    **{name: f"harness study {_FOLDER}/{name}.toml" for name in _STUDIES},
    "green-code": "harness study green-code --only model=smollm2-135m --limit 8",
    "scores": "harness sweep --replay traces/smollm2-135m --strategy confidence --strategy margin --strategy entropy "
    "--strategy saturation --strategy classifier --strategy lte --points 94",
    "by-token": "harness sweep --replay traces/by-token/tuned --strategy confidence:threshold=0.9 --document-split all",
}
"""Folder → the command that makes it."""

TELLS: Mapping[str, Tell] = {"green-code": tell_green_code, "scores": tell_scores, "by-token": tell_by_token}
"""Folder → what else than summaries is kept of it."""

TABLES = {
    "worth": Shown(("lines", "sessions"), worth),
    "lossless": points(
        "lines",
        (PREFIX, REQUEST, DECODING, OVER_TEXT, VERIFIED, ACCEPTED, BYTES),
        *(LOOKUP, SUFFIX, EXITS, BOTH, EXITS.partition("@")[0], "oracle"),
    ),
    "second": points("second", (COLD_S, PROMPT, REQUEST, DECODING)),
    "formats": points("formats", (PREFIX, SIMILARITY, OVER_FP16, DECODING_OVER_FP16)),
    "rivals": Shown(("rivals",), rivals),
    "draft-sources": Shown(("lines",), draft_sources),
    "draft-kinds": Shown(("lines",), draft_kinds),
    "sessions": beside(
        "sessions",
        "operating_point",
        "keep",
        {
            COLD: ("cold", (LINE_S, REQUEST, OVER_WARM)),
            WARM: ("warm", (FIRST_TOKEN, LINE_S, WITHIN, REQUEST, DECODING)),
        },
    ),
    "scores": Shown(("scores",), scores),
    "by-token": Shown(("by-token",), by_token),
    "kv": beside(
        "kv",
        "strategy",
        "kv",
        {
            "propagate": ("propagate", (PREFIX, SKIPPED, DECODING)),
            "recompute": ("recompute", (PREFIX, SKIPPED, DECODING, OWN_TEXT)),
        },
    ),
    "attribution": Shown(("attribution",), attribution),
    "stopping": points("stopping", (SAVED, ENDED, KEPT, REQUEST, PER_CHARACTER), *STOPPED, texts=STREAMS[:2]),
    "green-code": Shown(("green-code",), green_code),
}
"""Name in the documentation → table."""
