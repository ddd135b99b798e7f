"""Labels of replayed numbers: which documents they are of, who learned from those, what is left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.contracts import ModelInfo
from harness.models.artefacts import look_into
from harness.models.model import ResolvedModel
from harness.records import UnitTimes
from harness.replay.options import SweepOptions
from harness.replay.records import SweepRow
from harness.running.operating_points import OperatingPoint
from harness.training.traces.reading import matches
from harness.training.traces.store import Traces


def title_of(traces: Traces, options: SweepOptions, tokens: int, documents: int) -> str:
    """Return what was replayed, in one line."""
    streams = sorted({str(d["stream"]).partition(",")[0] for d in traces.documents if matches(d, options.tasks)})
    held_out = options.document_split == "held-out"
    which = "held-out documents" if held_out else "documents, those the heads learned from included"
    return f"replayed: {' + '.join(streams)}, {tokens:,} tokens of {documents} {which}"


def notes_of(
    traces: Traces,
    resolved: ResolvedModel,
    points: Sequence[OperatingPoint],
    rows: Sequence[SweepRow],
    tokens: Tensor,
    options: SweepOptions,
    times: UnitTimes | None,
) -> tuple[str, ...]:
    """Return the sentences that the numbers need.

    Args:
        traces: what was replayed.
        resolved: the model.
        points: operating points.
        rows: their rows.
        tokens: replayed tokens by document, ``[documents]``.
        options: of the sweep.
        times: what parts take; ``None`` where that was not measured.
    """
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
        given = set(facts.get("documents", ()))
        if apart := set(facts.get("held_out_documents", ())):
            if learned := (given - apart) & replayed:
                notes.append(f"{name} learned from {len(learned)} of the {len(replayed)} documents that are replayed.")
        elif given & replayed and not (held_out and _same_split(traces, facts, seed)):
            notes.append(
                f"{name} was trained with seed {facts.get('seed')} on {len(given)} documents, "
                f"{len(given & replayed)} of these among them; it may have learned from some of what is replayed."
            )
    notes += (
        f"{row.operating_point}: {row.head_agreement:.2%} of its checks decide as they would by the LM head; "
        f"{row.cheap_heads_per_token:.1f} a token read a cheap one."
        for row in rows
        if row.head_agreement is not None
    )
    if any(row.lossless for row in rows):
        notes.append(
            "Lossless rows: tokens are full depth's, and tokens per verification are those of live decoding, but for "
            "stop rules. A trace does not hold what exits say behind a wrong draft; until that is verified and "
            "discarded, strategies are taken to do what they do at the same places of full depth's text. Drafts, "
            "acceptance, layers and the expected speed-up rest on that."
        )
    if times is not None:
        notes.append(
            "Expected speed-up in time: counts of layers, heads, checks and readings times what each takes here (a "
            f"layer {times.layer_s * 1e6:,.0f} µs and {times.layer_row_s * 1e6:,.0f} for a further row, LM head "
            f"{times.head_s * 1e6:,.0f} µs and {times.head_row_s * 1e6:,.0f}; {resolved.info.weights_format} weights, "
            f"{times.positions} positions read), full depth's over each; prefill apart, and no row whose K,V are "
            "filled."
        )
    return tuple(notes)


def _same_split(traces: Traces, facts: Mapping[str, Any], seed: int) -> bool:
    """Tell whether a controller that does not say what it held out must have held out what this trace does."""
    keys = {str(document["key"]) for document in traces.documents}
    streams = {str(document["stream"]) for document in traces.documents}
    trained_on = facts.get("trained_on") or {}
    trained = set(trained_on.get("streams", streams))  # an agent of one task drew its tenth from that task's alone
    return set(facts.get("documents", ())) == keys and trained == streams and facts.get("seed") == seed


def _trained(model: ModelInfo, points: Sequence[OperatingPoint]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the artefacts that operating points run on, as far as they lie where artefacts are looked for."""
    hashes = {digest for point in points for digest in point.record.artefacts.values()}
    for folder in model.artefacts:
        for file in sorted(Path(folder).glob("*.json")):
            facts = look_into(file)
            if facts.get("sha256") in hashes:
                hashes.discard(facts["sha256"])
                yield file.name, facts
