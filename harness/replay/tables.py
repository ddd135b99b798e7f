"""A sweep as people read it, its files, and the sentences that its numbers need: what was replayed, who knew it."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.appearance.visible_text import escape_json
from harness.contracts import ModelInfo
from harness.models.artefacts import look_into
from harness.models.model import ResolvedModel
from harness.records import UnitTimes
from harness.records.calibration import CALIBRATION, Calibration
from harness.records.estimate import Estimate, NoInterval
from harness.replay.options import SweepOptions
from harness.replay.records import Sweep, SweepRow
from harness.running.operating_points import OperatingPoint
from harness.training.traces.reading import matches
from harness.training.traces.store import Traces
from reports.files import write_files
from reports.statistics.intervals import MINIMUM_PAIRS
from reports.tables.table import Cell, Column, Line, Part, Table
from reports.tables.writers import csv_text

FILES = ("sweep.json", "sweep.csv", CALIBRATION)
_INTERVAL = "agreement_ci"
_JSON = frozenset({"options", "artefacts", "exits", "exit_points"})

LEGEND = (
    "● no other row has at least this agreement and this expected speed-up (chance is not considered)",
    "◇ an upper bound that looks at the answer, not a candidate",
    "agree: tokens equal to the last layer's, with the 95 % interval over documents",
    "expected: full depth's bytes per token over this row's, not a measurement",
    "of bound: share of the layers the bound skips that are skipped here too, by tokens that agree",
    "checks, heads: times the strategy is asked, LM-head evaluations, per token",
)
DRIFT = (
    "agree: up to the first token of a sample that is not full depth's, the only place where live and replayed can be "
    "compared token by token; to the end: at the same place, all that follows from it included; 95 % over samples"
)
SCORES = (
    "AUROC: how often a right token scores higher than a wrong one, over all exit points; 0.5 is chance; error: of a "
    "score that is a probability, its mean distance from the agreement observed"
)
DRAFTS = (
    "tokens: that came out of a verification; accepted: share of drafts that full depth agreed with; layers: read a "
    "token, one that several tokens ran in one pass once, and run for drafts that were discarded"
)
GROUPED = (
    "layers: up to the first exit that says what the last layer says, as the oracle leaves; agree: share of tokens "
    "whose exit says so; drafted: lossless, per token; accepted: share of the drafts that stood. Groups differ in more "
    "than their name"
)
_POINT = (Column(header="", kind="text"), Column(header="operating point", kind="label"))


def sweep_tables(sweep: Sweep, *, keep: float, calibration: Calibration | None = None) -> Iterator[Part]:
    """Yield what was found: first what keeps that agreement, and of the scores where they were judged."""
    names = dict.fromkeys(row.strategy for row in sweep.rows)
    letters = {name: string.ascii_uppercase[place] if place < 26 else "+" for place, name in enumerate(names)}
    yield Line("")
    yield Line(sweep.title, "strong")
    head = sweep.exit_head.partition(":")[0]
    yield Line(f"{sweep.model}, {sweep.weights} weights, {sweep.dtype}, exit head {head}", "faint")
    title = f"Shallowest that agrees on at least {100 * keep:g} % of tokens, replayed"
    yield _points(title, _keeping(sweep.rows, keep), letters)
    yield Line("  ".join(f"{letter} {strategy}" for strategy, letter in letters.items()), "faint")
    yield _points(f"All {len(sweep.rows)} operating points, replayed", sweep.rows, letters)
    if lossless := [row for row in sweep.rows if row.lossless]:
        yield _drafts(lossless, letters)
    if calibration is not None and calibration.scores:
        yield _scores(calibration)
    if calibration is not None and calibration.groups:
        yield groups_table(calibration)
    if sweep.drift:
        yield _drift(sweep)
    yield Line("")
    yield from (Line(line, "faint") for line in LEGEND)
    yield Line("")
    yield from (Line(note, bullet=True) for note in sweep.notes)


def _keeping(rows: Sequence[SweepRow], keep: float) -> list[SweepRow]:
    """Return each strategy's row of the fewest layers that agrees often enough."""
    best: dict[str, SweepRow] = {}
    for row in rows:
        if row.agreement >= keep and row.exit_layer_mean < best.get(row.strategy, row).exit_layer_mean + 1e-12:
            best[row.strategy] = row
    return sorted(best.values(), key=lambda row: row.exit_layer_mean)


def _points(title: str, rows: Sequence[SweepRow], letters: dict[str, str]) -> Table:
    timed = any(row.expected_time_speedup is not None for row in rows)

    def few(row: SweepRow) -> bool:
        return row.agreement < 1 and row.documents < MINIMUM_PAIRS

    return Table.of_rows(
        title,
        (
            *_POINT,
            Column(header="mean layer", form=".2f"),
            Column(header="skipped", form=".1%", priority=4),
            Column(header="agree", form=".4f"),
            Column(header="of bound", form=".2f", priority=2),
            Column(header="expected speed-up", form="ratio"),
            *([Column(header="in time", form="ratio")] if timed else []),
            Column(header="checks", form=".1f", priority=5),
            Column(header="heads", form=".1f", priority=3),
        ),
        [
            (
                *_named(row, letters),
                row.exit_layer_mean,
                row.layers_skipped,
                Estimate.of(row.agreement, row.agreement_ci or (NoInterval.FEW_PAIRS if few(row) else None)),
                row.oracle_share,
                row.expected_speedup,
                *([row.expected_time_speedup] if timed else []),
                row.exit_checks_per_token,
                row.lm_head_per_token,
            )
            for row in rows
        ],
        tones=tuple("front" if row.pareto else "bound" if row.rehearsed else "" for row in rows),
    )


def _named(row: SweepRow, letters: dict[str, str]) -> tuple[str, str]:
    return f"{'●' if row.pareto else '◇' if row.rehearsed else ' '} {letters[row.strategy]}", row.operating_point


def _drafts(rows: Sequence[SweepRow], letters: dict[str, str]) -> Table:
    columns = {
        "tokens": "tokens_per_verification",
        "accepted": "acceptance",
        "drafted /token": "drafted_per_token",
        "layers read": "layers_read_per_token",
        "layers discarded": "layers_discarded_per_token",
    }
    return Table.of_rows(
        "Lossless decoding: what is drafted and verified, replayed",
        (*_POINT, *(Column(header=header, form=".2f") for header in columns)),
        [(*_named(row, letters), *(getattr(row, name) for name in columns.values())) for row in rows],
        notes=(DRAFTS,),
    )


def _scores(calibration: Calibration) -> Table:
    found = [(score.score, score.pooled) for score in calibration.scores]
    return Table.of_rows(
        f"How well scores tell right exits from wrong ones, {calibration.measurement}",
        ("score", Column(header="AUROC", form=".3f"), Column(header="error", form=".3f")),
        [(name, None if one.auroc is None else Estimate.of(one.auroc, one.auroc_ci), one.ece) for name, one in found],
        notes=(SCORES,),
    )


def groups_table(found: Calibration) -> Table:
    """Return where exits pay: a line per group of tokens, with the first, the middle and the last exit point."""
    places = sorted({0, len(found.exit_points) // 2, len(found.exit_points) - 1})
    points = [one.operating_point for one in found.groups[0].drafts]
    names = [f"{name} " for name in points] if len(points) > 1 else [""] * len(points)
    firsts = {one.by: place for place, one in reversed([*enumerate(found.groups)])}
    return Table.of_rows(
        "Where exits pay, by token, replayed",
        (
            Column(header="", kind="text"),
            Column(header="tokens", form="count"),
            Column(header="layers", form=".1f"),
            *(Column(header=f"agree at {found.exit_points[place]}", form=".2f") for place in places),
            *(Column(header=f"{name}{what}", form=".2f") for name in names for what in ("drafted", "accepted")),
        ),
        [
            (
                one.name,
                one.tokens,
                Estimate.of(one.sufficient_layer, one.sufficient_layer_ci),
                *(Estimate.of(one.agreement[place], one.agreement_ci[place]) for place in places),
                *chain.from_iterable((each.drafted / one.tokens, each.share) for each in one.drafts),
            )
            for one in found.groups
        ],
        groups=tuple((place, by) for by, place in sorted(firsts.items(), key=lambda item: item[1])[1:]),
        notes=(GROUPED,),
    )


def _drift(sweep: Sweep) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for row in sweep.drift:
        rows += [
            ("replayed, trace", row.replayed_exit_layer, row.replayed_agreement, None),
            ("replayed, live samples", row.twin_exit_layer, row.twin_agreement, None),
            (
                f"live, {row.samples} samples",
                Estimate.of(row.live_exit_layer, row.live_exit_layer_ci),
                Estimate.of(row.live_same_prefix, row.live_same_prefix_ci),
                Estimate.of(row.live_agreement, row.live_agreement_ci),
            ),
        ]
    each = len(rows) // len(sweep.drift)
    return Table.of_rows(
        "Drift: the same operating points decoded live",
        (
            "operating point",
            Column(header="mean layer", form=".2f"),
            Column(header="agree", form=".3f"),
            Column(header="to the end", form=".3f"),
        ),
        rows,
        notes=(DRIFT,),
        groups=tuple((each * place, row.operating_point) for place, row in enumerate(sweep.drift)),
    )


def write_sweep(sweep: Sweep, folder: Path, calibration: Calibration | None = None) -> tuple[Path, ...]:
    """Write the sweep's two files, and that of its scores if there is one, each replaced whole; return their paths.

    In ``sweep.csv`` an interval is two columns, options and exits are JSON text.
    """
    names = [column for name in SweepRow.model_fields for column in _columns(name)]
    csv = csv_text(
        ["model", "traces", *names], ({"model": sweep.model, "traces": sweep.traces} | _flat(row) for row in sweep.rows)
    )
    found = [sweep] if calibration is None else [sweep, calibration]
    first, *rest = (escape_json(one.model_dump_json(indent=2)) + "\n" for one in found)
    folder.mkdir(parents=True, exist_ok=True)
    return write_files(folder, dict(zip(FILES, (first, csv, *rest), strict=False)))


def _columns(name: str) -> tuple[str, ...]:
    return (f"{name}_low", f"{name}_high") if name == _INTERVAL else (name,)


def _flat(row: SweepRow) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in row.model_dump(mode="json").items():
        plain = json.dumps(value, sort_keys=True) if name in _JSON else value
        each = (value or (None, None)) if name == _INTERVAL else (plain,)
        values |= dict(zip(_columns(name), each, strict=True))
    return values


# --------------------------------------------------------------------------------------- its sentences


def title_of(traces: Traces, options: SweepOptions, tokens: Tensor) -> str:
    """Return what was replayed, in one line; ``tokens`` are those replayed by document, ``[documents]``."""
    streams = sorted({str(d["stream"]).partition(",")[0] for d in traces.documents if matches(d, options.tasks)})
    held_out = options.document_split == "held-out"
    which = "held-out documents" if held_out else "documents, those the heads learned from included"
    return f"replayed: {' + '.join(streams)}, {int(tokens.sum()):,} tokens of {int((tokens > 0).sum())} {which}"


def notes_of(
    traces: Traces,
    resolved: ResolvedModel,
    points: Sequence[OperatingPoint],
    rows: Sequence[SweepRow],
    tokens: Tensor,
    options: SweepOptions,
    times: UnitTimes | None,
) -> tuple[str, ...]:
    """Return the sentences that must stand beside the numbers; ``tokens`` are those replayed by document."""
    held_out, seed = options.document_split == "held-out", options.seed
    replayed = {str(traces.documents[number]["key"]) for number in tokens.nonzero().squeeze(1).tolist()}
    whose = "what the model generated at full depth" if traces.index.get("new_tokens") else "the documents' own"
    bound = next((f" (the bound's: {point.kv})" for point in points if point.strategy.upper_bound), "")
    notes = [
        f"Every row is replayed: tokens are {whose}, so the drift that real exits cause is not included. "
        "Final numbers come from live decoding (`harness run`, or --live N here).",
        "Expected speed-up: bytes that full depth reads per token over bytes read here, batch 1, kv "
        f"{options.kv}{bound}; what memory traffic alone would allow, not a measurement. Learned exit heads' own "
        "weights are not counted.",
        "The trace holds probabilities as float16: thresholds closer than 0.0005 to each other near 1 decide alike.",
    ]
    if held_out:
        notes.append(
            f"Documents: the tenth that heads trained on this trace with seed {seed} never learned from; they are of "
            f"the {traces.index.get('split', 'traced')} split."
        )
    else:
        notes.append("Documents: all of the trace. It includes documents the heads learned from.")
    if (tuned_on := resolved.tuned_on) is not None:
        known = len(replayed & tuned_on)
        notes.append(f"{known} of these {len(replayed)} documents were among those the weights were tuned on.")
    for name, facts in _trained(resolved.info, points):
        learned = (set(facts.get("documents", ())) - set(facts.get("held_out_documents", ()))) & replayed
        if learned:
            notes.append(f"{name} learned from {len(learned)} of the {len(replayed)} documents that are replayed.")
    notes += (
        f"{row.operating_point}: {row.head_agreement:.2%} of its checks decide as they would by the LM head; "
        f"{row.cheap_heads_per_token:.1f} a token read a cheap one."
        for row in rows
        if row.head_agreement is not None
    )
    if any(row.lossless for row in rows):
        notes.append(
            "Lossless rows: tokens are full depth's, and tokens per verification those of live decoding without stop "
            "rules. What exits say behind a wrong draft is not in a trace: strategies are taken to do there what they "
            "do at the same places of full depth's text. Drafts, acceptance, layers and the speed-up rest on that."
        )
    if times is not None:
        notes.append(
            "Expected speed-up in time: counts of layers, heads, checks and readings times what each takes here (a "
            f"layer {times.layer_s * 1e6:,.0f} µs and {times.layer_row_s * 1e6:,.0f} for a further row, LM head "
            f"{times.head_s * 1e6:,.0f} µs and {times.head_row_s * 1e6:,.0f}; {times.positions} positions read), full "
            "depth's over each; prefill apart, and no row whose K,V are filled."
        )
    return tuple(notes)


def _trained(model: ModelInfo, points: Sequence[OperatingPoint]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the artefacts that operating points run on, as far as they lie where artefacts are looked for."""
    hashes = {digest for point in points for digest in point.record.artefacts.values()}
    for folder in model.artefacts:
        for file in sorted(Path(folder).glob("*.json")):
            facts = look_into(file)
            if facts.get("sha256") in hashes:
                hashes.discard(facts["sha256"])
                yield file.name, facts
