"""``harness suitability``: one pass over a few documents, what its exits know, and what that is worth here."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from harness.config import StrategySpec
from harness.config.options import build_strategy
from harness.contracts.recipes import Progress
from harness.decoding.backbone import Backbone
from harness.decoding.blocks import Linear
from harness.decoding.engine import Engine
from harness.decoding.readings import best, choices, lm_head_of
from harness.decoding.unit_costs import Timing
from harness.host.files import replace_files
from harness.host.libraries import resolve_device
from harness.metering.window import synchronise
from harness.suitability.exits import describe, read_all, readings, sampled
from harness.suitability.options import SuitabilityOptions
from harness.suitability.record import Suitability
from harness.suitability.settings import SHORT, Prices, best_settings
from harness.suitability.verdict import verdict
from harness.sweep.tokens import COLUMNS
from harness.training.traces.reading import open_traces
from harness.training.traces.record_trace import trace
from harness.training.traces.store import Traces

SUITABILITY = "suitability.json"
ROUNDS = 9


def assess(options: SuitabilityOptions, progress: Progress) -> Suitability:
    """Judge a model, and write ``suitability.json`` where there is a folder for it.

    Args:
        options: model and documents.
        progress: is told how it goes on.

    Raises:
        HarnessError: anything that cannot be done, in one line with the remedy.
    """
    if options.traces is not None:
        traces = Traces.open(options.traces, options.model)
        named = "model" in options.model_fields_set
        return _judged(options, options.model if named else str(traces.index["model"]), traces, progress)
    if options.out is not None:
        return _judged(options, options.model, _trace(options, options.out / "trace", progress), progress)
    with TemporaryDirectory(prefix="suitability-") as folder:
        return _judged(options, options.model, _trace(options, Path(folder) / "trace", progress), progress)


def _trace(options: SuitabilityOptions, folder: Path, progress: Progress) -> Traces:
    return trace(
        options.model,
        options.tasks,
        options.sources,
        folder,
        options.traced,
        weights=options.weights,
        exit_head=options.exit_head,
        artefacts=options.artefacts,
        exit_points=options.exit_points,
        dtype=options.dtype,
        device=resolve_device(options.device),
        resume=(folder / "index.json").is_file(),
        progress=progress,
    )


def _judged(options: SuitabilityOptions, model: str, traces: Traces, progress: Progress) -> Suitability:
    progress.stage("reading the trace")
    traces, resolved = open_traces(model, traces.folder, artefacts=options.artefacts)
    columns = sampled(traces, *COLUMNS, "last", seed=options.seed)
    progress.stage(f"loading {resolved.info.name}")
    (loaded, *_) = resolved.load_all(resolve_device(options.device), progress.stage, (options.weights_format,))
    info, backbone = loaded.info, loaded.backbone
    points = len(traces.exit_points)
    progress.begin("reading exits, plain and mapped", readings(resolved.shortcut is not None, points))
    reads = list(read_all(columns, traces, resolved, backbone, progress.step))
    prices, short_bytes = None, SHORT * info.lm_head_bytes // info.vocab_size if info.vocab_size > 2 * SHORT else 0
    if options.measure_costs:
        progress.stage("measuring what parts take here")
        prices = _prices(Engine(backbone, info, timing=Timing()), backbone)
    progress.begin("replaying strategies", len(reads))
    found = best_settings(
        reads, info, prices,
        keep=options.keep, map_bytes=info.hidden_size * (info.hidden_size + 1) * 4, short_bytes=short_bytes,
        step=progress.step,
    )  # fmt: skip
    costs = (info.lm_head_bytes, info.layer_bytes) if prices is None else (prices.times.head_s, prices.times.layer_s)
    numbers = sorted(set(columns["document"].tolist()))
    result = Suitability(
        model=info.name,
        weights=info.weights,
        exit_head=info.exit_head,
        weights_format=info.weights_format,
        num_layers=info.num_layers,
        exit_points=info.exit_points,
        fingerprint=info.fingerprint,
        documents=len(numbers),
        tokens=len(columns["final"]),
        streams=tuple(sorted({str(traces.documents[number]["stream"]) for number in numbers})),
        keep=options.keep,
        heads=tuple(describe(read, info) for read in reads),
        head_in_layers=costs[0] / costs[1],
        row_share=None if prices is None else prices.times.layer_row_s / prices.times.layer_s,
        times=None if prices is None else prices.times,
        chances=tuple(found),
    )
    result = result.model_copy(update={"verdict": tuple(verdict(result))})
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        replace_files({options.out / SUITABILITY: result.model_dump_json(indent=2).encode()})
    return result


def _prices(engine: Engine, backbone: Backbone) -> Prices:
    """Measure layers, LM head, asking about it, a map, and a head of fewer rows."""
    found = engine.times(build_strategy(StrategySpec("confidence")), None)
    assert found is not None  # it measures
    times, draft = found
    lm_head = lm_head_of(backbone)
    width, device = lm_head.width, str(backbone.device)
    some = torch.arange(min(SHORT, lm_head.vocab_size), device=backbone.device)
    short = lm_head.pack(lm_head.rows(some))
    state = torch.ones(1, width, device=backbone.device)
    square = Linear(
        torch.ones(width, width, device=backbone.device) / width, torch.zeros(width, device=backbone.device)
    )
    with torch.inference_mode():
        return Prices(
            times=times.model_copy(update={"drafts": {}}),
            check=draft.check_s,
            map=_least(lambda: square(state), device),
            short=_least(lambda: choices(best(short(state))), device),
        )


def _least(once: Callable[[], object], device: str) -> float:
    """Return the least seconds of several rounds, besides a first one, until the device has done what it was given."""
    once()
    seconds = []
    for _ in range(ROUNDS):
        synchronise(device)
        started = time.perf_counter()
        once()
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
