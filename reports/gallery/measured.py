"""What each table of the documentation shows, and of which runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import HarnessError
from harness.records.acceptance import EXIT, Acceptance
from harness.records.calibration import CALIBRATION
from harness.running.reading import read_run
from reports.completions.token_kinds import KINDS
from reports.green_code.kv_figure import kv_markdown
from reports.recorded import RecordedRun
from reports.tables.columns import MISSING
from reports.tables.frame import to_frame
from reports.tables.markdown import markdown_code, markdown_row
from reports.tables.run_tables import attribution_tables
from reports.tables.writers import to_markdown

STREAMS = ("Python's library", "JDK", "CodeXGLUE starts, Python", "CodeXGLUE starts, Java")
DRAFTED = ("full@lossless+lookup", "classifier:threshold=0.95@lossless", "classifier:threshold=0.95@lossless+lookup")
LOOKUP, EXITS, BOTH = DRAFTED
LOSSLESS = ("classifier:threshold=0.95", *DRAFTED, "layerskip:layer=8:length=4@lossless")

Found = Mapping[str, Sequence[RecordedRun]]
"""Study → its runs."""


class MissingRunsError(HarnessError):
    """Runs of a table are not there, or not finished."""


@dataclass(frozen=True)
class Table:
    """A table of the documentation.

    Attributes:
        studies: whose runs it is made of.
        lines: yields its lines in Markdown, given those runs and the folder of all studies.
    """

    studies: tuple[str, ...]
    lines: Callable[[Found, Path], Iterable[str]]


@dataclass(frozen=True)
class Column:
    """A metric as a column.

    Attributes:
        title: of the column.
        name: of the metric, a column of :func:`reports.tables.frame.to_frame`.
        form: of its value and of both ends of its interval.
        unit: what follows the value. scale: what all are multiplied by.
    """

    title: str
    name: str
    form: str = "{:.2f}"
    unit: str = ""
    scale: float = 1.0

    def cell(self, row: pd.Series[Any]) -> str:
        """Return a value with its interval; a dash where it was not measured."""
        value, low, high = (row.get(f"{self.name}{part}", float("nan")) for part in ("", "_low", "_high"))
        if pd.isna(value):
            return MISSING
        if pd.isna(low) or low == high:
            return self._said(value) + self.unit
        return f"{self._said(value)}{self.unit} [{self._said(low)}, {self._said(high)}]"

    def _said(self, value: float) -> str:
        return self.form.format(value * self.scale).replace("-", "−")


PREFIX = Column("exact prefix", "exact_prefix")
OWN_TEXT = Column("own text", "own_text_agreement", "{:.3f}")
LINE = Column("exact line", "exact_line")
SIMILARITY = Column("edit sim.", "edit_similarity", "{:.3f}")
MATCH = Column("exact match", "exact_match")
SKIPPED = Column("layers skipped", "layers_skipped", "{:.1f}", " %", 100)
VERIFIED = Column("tokens / verification", "tokens_per_verification")
ACCEPTED = Column("accepted", "acceptance")
READ = Column("layers read / token", "layers_read_per_token", "{:.1f}")
BYTES = Column("byte model", "byte_model_speedup", unit="×")
DECODING = Column("decoding", "decode_speedup", unit="×")
REQUEST = Column("whole request", "speedup", unit="×")
LOST = Column("to full depth's", "edit_similarity_difference", "{:+.3f}")
SAVED = Column("tokens saved", "tokens_saved", "{:.0f}", " %", 100)
ENDED = Column("stopped early", "stopped", "{:.0f}", " %", 100)
KEPT = Column("accepted characters", "accepted_prefix", "{:.1f}")
PER_CHARACTER = Column("time per accepted character", "accepted_character_s", "{:.1f}", " ms", 1000)
PREFIX_OVER = Column("exact prefix over a fixed exit", "exact_prefix_over_fixed", "{:+.2f}")
SIMILARITY_OVER = Column("edit sim. over it", "edit_similarity_over_fixed", "{:+.3f}")


def stream(source: str, language: str) -> str:
    """Return the kind of text that a row is of, one of :data:`STREAMS`."""
    if source.startswith("embedded"):
        return STREAMS[language == "java"]
    return f"CodeXGLUE starts, {language.capitalize()}"


def rows_of(runs: Iterable[RecordedRun], **more: str) -> pd.DataFrame:
    """Return the rows of runs, a stream after the other; ``more`` are columns with one value."""
    frames = [to_frame(run.summary) for run in runs]
    found = pd.concat(frames, ignore_index=True).copy().assign(**more)  # in one piece
    found["text"] = [stream(*pair) for pair in zip(found["source"], found["language"], strict=True)]
    return ordered(found, "text")


def ordered(rows: pd.DataFrame, *names: str) -> pd.DataFrame:
    """Sort rows by columns: kinds of text as in :data:`STREAMS`, what else there is as it comes first."""
    return rows.sort_values(
        list(names), kind="stable",
        key=lambda values: values.map(list(STREAMS if values.name == "text" else values.unique()).index),
    )  # fmt: skip


def listing(rows: pd.DataFrame, names: Mapping[str, str], columns: Sequence[Column]) -> Iterator[str]:
    """Yield a table with a line per row: columns of words (name → title), then metrics."""
    yield markdown_row([*names.values(), *(column.title for column in columns)])
    yield markdown_row([":--"] * len(names) + ["--:"] * len(columns))
    for _, row in rows.iterrows():
        words = [markdown_code(row[name]) if name in ("operating_point", "kv") else str(row[name]) for name in names]
        yield markdown_row([*words, *(column.cell(row) for column in columns)])


TEXT_AND_POINT = {"text": "text", "operating_point": "operating point"}


def points(study: str, columns: Sequence[Column], *only: str, texts: Sequence[str] = STREAMS) -> Table:
    """Return a table with a line per stream and operating point, in the run's order; all of them unless named."""

    def lines(found: Found, _: Path) -> Iterator[str]:
        rows = rows_of(found[study])
        rows = rows[rows["text"].isin(texts) & (rows["operating_point"].isin(only) | (not only))]
        return listing(rows, TEXT_AND_POINT, columns)

    return Table((study,), lines)


def worth(found: Found, _: Path) -> Iterator[str]:
    """Yield what early exit is worth: a line per stream."""
    by = {(row["text"], row["operating_point"]): row for _, row in rows_of(found["exits"]).iterrows()}
    lossy = LOSSLESS[0]
    yield "| kind of text | lossy exits¹ | exact prefix kept | exits, lossless | look-up, lossless | both, lossless |"
    yield "|:--|--:|--:|--:|--:|--:|"
    for text in STREAMS:
        speed = {point: by[text, point] for point in (lossy, EXITS, LOOKUP, BOTH)}
        cells = {point: f"{DECODING.cell(row)} ({REQUEST.cell(row)})" for point, row in speed.items()}
        yield markdown_row([text, cells[lossy], PREFIX.cell(speed[lossy]), cells[EXITS], cells[LOOKUP], cells[BOTH]])


Drafts = Mapping[tuple[str, str], Mapping[tuple[str | None, int | None, str | None], Acceptance]]
"""Stream and operating point → source, layer and kind → what stood."""


def drafts(runs: Iterable[RecordedRun]) -> Drafts:
    """Return what stood of the drafts of each stream and operating point."""
    return {
        (stream(row.source, row.language), row.operating_point): {
            (one.source, one.layer, one.kind): one for one in row.acceptances
        }
        for run in runs
        for row in run.summary.rows
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


def draft_sources(found: Found, _: Path) -> Iterator[str]:
    """Yield which drafts stood, by what drafted them and where."""
    of = drafts(found["exits"])
    layers = sorted({key[1] for (_, point), keys in of.items() if point == EXITS for key in keys if key[1] is not None})
    wanted = [
        ("look-up alone", LOOKUP, ("lookup", None, None)),
        ("look-up, exits behind it", BOTH, ("lookup", None, None)),
        ("exits behind look-up", BOTH, (EXIT, None, None)),
        ("exits alone", EXITS, (EXIT, None, None)),
        *((f"… after layer {layer}", EXITS, (EXIT, layer, None)) for layer in layers),
    ]
    yield markdown_row(["", *STREAMS, "all"])
    yield markdown_row([":--", *["--:"] * (len(STREAMS) + 1)])
    for title, point, key in wanted:
        each = [of[text, point].get(key) for text in STREAMS]
        yield markdown_row([title, *(stood([one]) for one in each), stood(each)])


def draft_kinds(found: Found, _: Path) -> Iterator[str]:
    """Yield which drafts stood, by kind of token, all streams together."""
    of = drafts(found["exits"])
    yield "| kind of token | exits alone | look-up alone |"
    yield "|:--|--:|--:|"
    for kind in KINDS:
        cells = [
            stood([of[text, point].get((source, None, kind)) for text in STREAMS])
            for point, source in ((EXITS, EXIT), (LOOKUP, "lookup"))
        ]
        if cells != [MISSING, MISSING]:
            yield markdown_row([kind, *cells])


def draft_lengths(found: Found, _: Path) -> Iterator[str]:
    """Yield a line per stream, draft source and longest draft."""
    rows = rows_of(found["draft-lengths"])
    rows = rows[rows["strategy"] != "full"].assign(
        drafts=lambda f: f["decode"].map({"lossless": "exits", "lossless+lookup": "look-up, then exits"}),
        most=lambda f: f["draft_max"].map("{:.0f}".format),
    )
    rows = ordered(rows, "text", "drafts", "draft_max")
    names = {"text": "text", "drafts": "drafts", "most": "at most"}
    return listing(rows, names, (VERIFIED, ACCEPTED, BYTES, DECODING))


def kv(found: Found, _: Path) -> Iterator[str]:
    """Yield a line per stream, strategy and KV policy."""
    rows = rows_of(found["kv"])
    names = {"text": "text", "strategy": "strategy", "kv": "KV"}
    return listing(rows[rows["strategy"] != "full"], names, (PREFIX, OWN_TEXT, LINE, SKIPPED, DECODING))


def duplicates(found: Found, _: Path) -> Iterator[str]:
    """Yield each row twice: of all samples, and of those that tuning has not read."""
    runs = found["duplicates"]
    without = [
        read_run(run.directory, duplicates=False) if any(sample.duplicate for sample in run.samples) else run
        for run in runs
    ]
    rows = pd.concat([rows_of(runs, rows="all"), rows_of(without, rows="without")], ignore_index=True)
    rows["n"] = rows["n"].map("{:.0f}".format)
    rows = ordered(rows, "text", "operating_point", "rows")
    names = {"text": "text", "rows": "rows", "operating_point": "operating point", "n": "files"}
    return listing(rows, names, (PREFIX, MATCH, SIMILARITY, SKIPPED, DECODING))


def weights(found: Found, _: Path) -> Iterator[str]:
    """Yield full depth and exits of the base model, of one shared head and of a map per exit."""
    kinds = {"untuned": "base", "shared-head": "tuned, one head", "exits": "tuned, a map per exit"}
    rows = pd.concat([rows_of(found[study], kind=kind) for study, kind in kinds.items()], ignore_index=True)
    rows = rows[rows["operating_point"].isin(["full", "fixed:layer=26", "rl"])]
    rows = ordered(rows, "text")
    names = {"text": "text", "kind": "weights", "operating_point": "operating point"}
    return listing(rows, names, (SIMILARITY, PREFIX, OWN_TEXT, SKIPPED))


def attribution(found: Found, _: Path) -> Iterator[str]:
    """Yield where the time goes, and what deciding costs: each table under what it is of."""
    for one in (one for run in found["attribution"] for one in run.summary.attributions if one.quantity == "time"):
        for place, table in enumerate(attribution_tables(one)):
            yield from ([""] if place else [])
            yield f"{table.title}:"
            yield from to_markdown([replace(table, title="")])


def published_cache(found: Found, _: Path) -> Iterator[str]:
    """Yield early exit without a cache, published and measured, beside full depth with one."""
    for run in found["green-code-kv"]:
        # the site would show the backslash
        yield from (line.replace(r"\~", "~") for line in kv_markdown(run.summary).splitlines() if line.startswith("|"))


def published_grid(found: Found, folder: Path) -> Iterator[str]:
    """Yield the grid's agents at the ends of the paper's thresholds, and what the cache saves."""
    tables = _document(folder / "green-code-grid" / "grid.json")["tables"]
    yield "| | layers skipped, the paper's | ours | time saved without a cache | with a cache |"
    yield "|:--|--:|--:|--:|--:|"
    for table in tables:
        for point in table["points"]:
            if point["key"] in ("0.6", "0.9"):
                paper = [one["layers_skipped"]["value"] for one in point["published"].values() if one["layers_skipped"]]
                ends = dict.fromkeys(f"{100 * share:.0f}" for share in sorted(paper)[:: max(1, len(paper) - 1)])
                span = f"{' to '.join(ends)} %" if ends else MISSING
                ours = [_percent(point, *where) for where in _OURS]
                yield markdown_row([f"{table['language'].capitalize()}, threshold {point['key']}", span, *ours])
        time = _percent({"cache": {"time": table["cache"][0]}}, "cache", "time")
        yield markdown_row([f"{table['language'].capitalize()}, switching the cache on", "", "", "", time])


_OURS = (("uncached", "layers_skipped"), ("uncached", "time_saving"), ("cached", "time_saving"))


def _percent(point: Mapping[str, Any], side: str, quantity: str) -> str:
    estimate = (point[side] or {}).get(quantity)
    if estimate is None:
        return MISSING
    shown = Column("", "share", "{:z.0f}", " %", 100)
    return shown.cell(
        pd.Series({"share": estimate["value"], "share_low": estimate["low"], "share_high": estimate["high"]})
    )


def scores(_: Found, folder: Path) -> Iterator[str]:
    """Yield how well each score tells right exits from wrong ones, the best first."""
    found = _document(folder / "scores" / CALIBRATION)["scores"]
    yield "| score | AUROC | calibration error |"
    yield "|:--|--:|--:|"
    for one in sorted(found, key=lambda one: -(one["pooled"]["auroc"] or 0)):
        low, high = one["pooled"]["auroc_ci"] or (float("nan"),) * 2
        row = pd.Series(
            {"auroc": one["pooled"]["auroc"], "auroc_low": low, "auroc_high": high, "ece": one["pooled"]["ece"]}
        )
        cells = [Column("", name, "{:.3f}").cell(row.astype("float64")) for name in ("auroc", "ece")]
        yield markdown_row([markdown_code(one["score"]), *cells])
    sweep = _document(folder / "scores" / "sweep.json")
    yield from ("", f"{sweep['tokens']:,} tokens of {sweep['documents']:,} documents, replayed: no time is in it.")


def _document(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise MissingRunsError(f"there is no {file}")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


_FOLDER = "reports/gallery/results"
_STUDIES = (
    "attribution", "draft-lengths", "duplicates", "exits", "float32", "heads", "kv", "shared-head",
    "stopping", "untuned",
)  # fmt: skip
STUDIES = {
    **{name: f"harness study {_FOLDER}/{name}.toml" for name in _STUDIES},
    "green-code-kv": "harness reproduce green-code --figure kv --limit 16",
    "green-code-grid": "harness reproduce green-code --figure grid",
    "scores": "harness sweep --replay traces/smollm2-135m --strategy confidence --strategy margin --strategy entropy "
    "--strategy saturation --strategy classifier --strategy lte --points 94",
}
"""Folder → the command that makes it."""

_EXITS = (PREFIX, SIMILARITY, LOST, SKIPPED, DECODING, REQUEST, PREFIX_OVER, SIMILARITY_OVER)
_ALONE = (
    *("full", "fixed:layer=14", "fixed:layer=22", "fixed:layer=26", "confidence:threshold=0.9", "entropy"),
    *("classifier", "lte", "rl", "rl:agent=rl-python", "oracle"),
)
TABLES = {
    "worth": Table(("exits",), worth),
    "lossless": points("exits", (PREFIX, DECODING, REQUEST, VERIFIED, ACCEPTED, READ, BYTES), *LOSSLESS),
    "lossless-float32": points("float32", (PREFIX, DECODING, REQUEST, VERIFIED, ACCEPTED, BYTES), *LOSSLESS),
    "draft-sources": Table(("exits",), draft_sources),
    "draft-kinds": Table(("exits",), draft_kinds),
    "draft-lengths": Table(("draft-lengths",), draft_lengths),
    "exits-files": points("exits", _EXITS, *_ALONE, texts=STREAMS[:2]),
    "exits-rows": points("exits", _EXITS, *_ALONE, texts=STREAMS[2:]),
    "weights": Table(("exits", "shared-head", "untuned"), weights),
    "scores": Table(("scores",), scores),
    "kv": Table(("kv",), kv),
    "duplicates": Table(("duplicates",), duplicates),
    "attribution": Table(("attribution",), attribution),
    "heads": points("heads", (PREFIX, BYTES, DECODING, REQUEST)),
    "stopping": points("stopping", (SAVED, ENDED, KEPT, SIMILARITY, REQUEST, PER_CHARACTER), texts=STREAMS[:2]),
    "green-code-kv": Table(("green-code-kv",), published_cache),
    "green-code-grid": Table(("green-code-grid",), published_grid),
}
"""Name in the documentation → table."""
