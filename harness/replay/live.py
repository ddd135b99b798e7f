"""The drift that replaying cannot show: some operating points of a sweep decoded live, side by side with their replay.

Live samples are other documents than the trace's. The *twin* is a replay on what full depth generated for those very
samples: twin against live is drift alone; sweep against twin is the choice of documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from harness.config import BASELINE, RunConfig
from harness.contracts import ModelInfo
from harness.decoding.engine import Engine
from harness.decoding.readings import Heads
from harness.errors import ConfigError, DataError
from harness.models.controllers import Observation
from harness.replay.records import DriftRow, Sweep, SweepRow
from harness.replay.replay import replay
from harness.replay.sweep import SweepResult
from harness.replay.tokens import TracedTokens, decided
from harness.running.operating_points import OperatingPoint
from harness.running.runner import execute
from harness.running.session import Observer
from harness.store.run_directory import RunDirectory
from harness.training.traces.reading import exit_maps
from harness.training.traces.record_trace import exit_columns
from reports.statistics.intervals import Pair, known, ratio_interval, share_bounds
from reports.summary.measured import Measured, select
from reports.summary.pareto import front


def with_drift(result: SweepResult, *, observer: Observer | None = None) -> Sweep:
    """Return the sweep with some operating points decoded live, in ``live`` of its folder or under ``runs/``."""
    options = result.options
    chosen = pick(result.sweep.rows, options.live_points)
    if not chosen:
        raise ConfigError("there is no operating point to decode live: give --strategy one that is not a bound, lossy.")
    out = None if options.out is None else options.out / "live"
    begun = out is not None and (out / "manifest.json").is_file()
    run = execute(_configuration(result, out, chosen), resume=out if begun else None, observer=observer)
    with RunDirectory.read(run.directory) as store:
        cells = select(store.manifest, store.windows(), store.samples())
    if observer is not None:
        observer.stage("replaying on the live samples")
    fulls = [cell for (_, name), cell in cells.items() if name == BASELINE]
    twin = _read_again(result, fulls)
    points = {point.name: point for point in result.points}
    drift = []
    for row in chosen:
        pairs = [(cells[full.task.name, row.operating_point], full) for full in fulls]
        drift.append(_drift(row, points[row.operating_point], pairs, twin, result.resolved.info))
    return result.sweep.model_copy(update={"drift": tuple(drift), "live_directory": str(run.directory)})


def pick(rows: Sequence[SweepRow], most: int) -> list[SweepRow]:
    """Return the requested operating points that drift, or an even choice along their front."""
    asked = [row for row in rows if not (row.reference or row.rehearsed or row.lossless)]
    asked = [row for row in asked if row.operating_point != BASELINE]
    if len(asked) > most:
        flags = front([(1 / row.expected_speedup, row.agreement) for row in asked])
        asked = [row for row, flag in zip(asked, flags, strict=True) if flag]
        asked.sort(key=lambda row: -row.exit_layer_mean)
    if len(asked) > most:
        asked = [asked[int((place + 0.5) * len(asked) / most)] for place in range(most)]
    return asked


def _configuration(result: SweepResult, out: Path | None, chosen: Sequence[SweepRow]) -> RunConfig:
    traces, info, options = result.traces, result.resolved.info, result.options
    tasks = sorted({str(document["stream"]).partition(",")[0] for document in traces.documents})
    tasks = [name for name in tasks if name in (options.tasks or tasks)]
    return RunConfig.build(
        {
            "strategies": tuple(row.operating_point for row in chosen),
            "model": result.model,
            "tasks": tuple(tasks),
            "source": options.source,
            "limit": options.live,
            "max_new_tokens": options.max_new_tokens,
            "kv": options.kv,
            "exit_points": ",".join(map(str, info.exit_points)),
            "dtype": info.dtype,
            "weights_format": info.weights_format,
            "weights": info.weights,
            "exit_head": info.exit_head.partition(":")[0],
            "artefacts": options.artefacts,
            "energy": "none",
            "seed": traces.index["seed"],
            "out": out,
        }
    )


def _read_again(result: SweepResult, fulls: Sequence[Measured]) -> TracedTokens:
    """Return the exits' columns on the tokens that full depth generated, without the one from prefill."""
    resolved = result.resolved
    samples = [sample for full in fulls for sample in full.scored if len(sample.token_ids) > 1]
    if not samples:
        raise DataError("no live sample has a second token: there is nothing to compare. Use --live with more samples.")
    engine = Engine(resolved.load("cpu").backbone, resolved.info)
    parts, documents = [], []
    for number, sample in enumerate(samples):
        read = [*sample.prompt_ids, *sample.token_ids[:-1]]
        columns = exit_columns(engine, read, len(sample.prompt_ids) - 1)
        count = len(columns["final"])
        parts.append({**columns, "document": torch.full((count,), number, dtype=torch.int32)})
        documents.append(f"{sample.task} {sample.sample_id}")
    shard = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    shortcuts = exit_maps(result.traces, resolved, Observation(state="exit"))
    rows = decided(shard["document"]).nonzero().squeeze(1)
    return TracedTokens(
        resolved.info.exit_points, [(shard, rows)], shortcuts, documents, generated=True, heads=Heads(engine.backbone)
    )


def _drift(
    row: SweepRow,
    point: OperatingPoint,
    pairs: Sequence[tuple[Measured, Measured]],
    twin: TracedTokens,
    model: ModelInfo,
) -> DriftRow:
    with torch.inference_mode():
        outcome = replay(point, twin, model)
    layers: list[Pair] = []
    same: list[Pair] = []
    prefix: list[Pair] = []
    for cell, full in pairs:
        for key in cell.shared(full):
            here, there = cell.samples[key], full.samples[key]
            if len(here.token_ids) > 1:
                layers.append(Pair(sum(here.exit_layers[1:]), len(here.exit_layers) - 1))
            if len(there.token_ids) > 1:
                equal = [a == b for a, b in zip(here.token_ids[1:], there.token_ids[1:], strict=False)]
                same.append(Pair(sum(equal), len(there.token_ids) - 1))
                alike = equal.index(False) if False in equal else len(equal)
                prefix.append(Pair(alike, alike + (False in equal)))
    prefix = [pair for pair in prefix if pair.other]
    if not layers or not prefix:
        raise DataError(f"{row.operating_point}: no live sample was finished. See the run's samples for the errors.")
    tokens = sum(int(pair.other) for pair in layers)
    return DriftRow(
        operating_point=row.operating_point,
        samples=len(layers),
        tokens=tokens,
        replayed_exit_layer=row.exit_layer_mean,
        replayed_agreement=row.agreement,
        twin_exit_layer=outcome.layers / outcome.count,
        twin_agreement=outcome.agreement,
        live_exit_layer=_share(layers),
        live_same_prefix=_share(prefix),
        live_agreement=_share(same),
        live_same_prefix_ci=known(share_bounds(prefix)),
        live_exit_layer_ci=known(ratio_interval(layers)),
        live_agreement_ci=known(share_bounds(same)),
    )


def _share(pairs: Sequence[Pair]) -> float:
    return sum(pair.baseline for pair in pairs) / sum(pair.other for pair in pairs)
