"""The sentences a table must carry, so that nobody can quote a number without its catch.

Each note states a fact of the run (random weights, a stand-in tokenizer, estimated energy, one repeat …) and
what it does to the numbers. Most misleading first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from harness.contracts import KVPolicy
from harness.metering.contamination import CLOCK_CHANGE, CONTAMINATED, FOREIGN_SHARE, STOLEN_SHARE
from harness.metering.counters import INVALID_BELOW_PERIODS, SHORT_BELOW_PERIODS
from harness.metering.pacing import WARMUP_DRIFT
from harness.records import Manifest, MeterRecord, SummaryRow, WindowRecord
from reports.cost import MIXED
from reports.measured import Measured, Regime
from reports.statistics import MINIMUM_PAIRS
from reports.tables import is_candidate

__all__ = ["notes"]

FEW_SAMPLES = 30
FLAGS = {
    "foreign-cpu": f"other processes took more than {100 * FOREIGN_SHARE:g} % of the machine's core-seconds",
    "stolen-cpu": f"the hypervisor gave more than {100 * STOLEN_SHARE:g} % of the machine's core-seconds to others",
    "throttled": "a processor lowered its clock because of heat or its power supply",
    "clock-change": f"the clock differed by more than {100 * CLOCK_CHANGE:g} % between the edges",
    "short-window": f"fewer than {SHORT_BELOW_PERIODS} ticks of the sensor",
    "invalid-window": f"fewer than {INVALID_BELOW_PERIODS} ticks of the sensor, so there is no energy",
}
FEW_TIMINGS = 100  # fewer latencies than this and the 99th percentile is close to the slowest one


def notes(
    manifest: Manifest, cells: Sequence[Measured], rows: Sequence[SummaryRow], windows: Sequence[WindowRecord] = ()
) -> tuple[str, ...]:
    """Return the notes of a run, each one sentence or two of plain text.

    Args:
        manifest: what ran.
        cells: what counts.
        rows: the results.
        windows: everything that was committed, what does not count included.
    """
    regime = Regime.of(manifest)
    return (
        *_about_model(manifest),
        *_about_data(manifest, rows),
        *_about_energy(manifest.meter, cells),
        *_about_windows(cells, windows),
        *_about_regime(regime, manifest),
        *_about_sample_size(cells, rows, manifest.operating_points[0].name),
        *_about_oracle(rows),
    )


def _about_model(manifest: Manifest) -> Iterator[str]:
    model = manifest.model
    if model.weights == "random":
        yield (
            "random weights: accuracy columns mean nothing. Time and work are those of the real shapes, with "
            "exit decisions that real weights would not make."
        )
    elif model.weights == "tuned":
        yield (
            "tuned weights: the model was fine-tuned for early exit, and full depth here is the tuned model's. What "
            "tuning cost or gained the last layer shows beside a run with --weights pretrained."
        )
    else:
        yield (
            "base weights: the model was not fine-tuned for early exit, so its early layers predict badly and "
            "exits cost more quality than they would after tuning."
        )
    if model.weights != "random":
        yield f"weights: {model.weights_source}."
    if model.tokenizer_stand_in:
        yield f"tokenizer {model.tokenizer_source}. Token counts and texts are not the real model's."


def _about_data(manifest: Manifest, rows: Sequence[SummaryRow]) -> Iterator[str]:
    for task in manifest.tasks:
        if task.source_kind == "embedded":
            yield (
                f"{task.name}: the samples come from {_without_kind(task.source)}, not from the published "
                f"{task.name} test set; scores compare with nothing outside this run."
            )
        if task.bad_rows:
            yield f"{task.name}: {task.bad_rows} row(s) of the data could not become samples."
    for task_name, failed in _totals((row.task, row.errors) for row in rows):
        yield (
            f"{task_name}: {failed} failure(s) over the operating points, counted as errors; they are neither "
            "scored nor timed, and paired columns leave those samples out."
        )
    for task in manifest.tasks:
        counts = {row.n for row in rows if row.task == task.name}
        if len(counts) > 1:
            yield (
                f"{task.name}: operating points finished {min(counts)} to {max(counts)} samples (an unfinished run, "
                "or errors), so unpaired columns cover different samples."
            )


def _about_energy(meter: MeterRecord, cells: Sequence[Measured]) -> Iterator[str]:
    windows = [window for cell in cells for window in cell.windows.values()]
    sources = {window.energy_source for window in windows} or {meter.source}
    missing = "; ".join(f"{name}: {reason}" for name, reason in meter.unavailable.items())
    if "estimate" in sources:
        yield (
            f"energy is an estimate, not a measurement ({meter.description.rstrip('.')}): a function of CPU time, so "
            "it adds no evidence to the time columns and never decides the Pareto front."
            + (f" No sensor: {missing.rstrip('.')}." if missing else "")
        )
    elif "replay" in sources:
        yield f"energy is none of this run's ({meter.description.rstrip('.')}): it never decides the Pareto front."
    elif sources == {"none"}:
        yield f"energy was not measured{' (' + missing.rstrip('.') + ')' if missing else ''}."
    elif missing:
        yield f"energy sensors that were not available: {missing.rstrip('.')}."
    if any(len({w.energy_source for w in cell.windows.values()}) > 1 for cell in cells):
        yield f"energy sources differ between the windows of a row ('{MIXED}'): such rows have no energy number."
    silent = [window for window in windows if window.energy_j is None and window.energy_source != "none"]
    if silent:
        reasons = sorted({window.energy_reason for window in silent if window.energy_reason})
        why = f" ({'; '.join(reasons)})" if reasons else ""
        yield f"{len(silent)} of {len(windows)} windows have no energy reading{why}: their rows show none."


def _about_windows(cells: Sequence[Measured], everything: Sequence[WindowRecord]) -> Iterator[str]:
    """Flags of the windows that count, and what was measured and does not count."""
    counted = [window for cell in cells for window in cell.windows.values()]
    for flag, count in Counter(flag for window in counted for flag in window.flags).most_common():
        meaning = FLAGS.get(flag)
        yield f"{count} of {len(counted)} windows are flagged '{flag}'{f': {meaning}' if meaning else ''}."
    superseded = [window for window in everything if window.superseded]
    if superseded:
        causes = ", ".join(sorted({flag for window in superseded for flag in window.flags if flag in CONTAMINATED}))
        yield (
            f"{len(superseded)} window(s), idle ones included, were contaminated ({causes}) and measured again "
            "(--strict); they are kept in windows.jsonl and left out of every number here."
        )
    warm_up = [window for window in everything if window.warmup]
    if any("not-settled" in window.flags for window in warm_up):
        yield (
            f"the machine had not settled when the warm-up ended (no three passes in a row came within "
            f"{100 * WARMUP_DRIFT:g} %): times drift or scatter, which the random order spreads over the operating "
            "points and the intervals show."
        )


def _about_regime(regime: Regime, manifest: Manifest) -> Iterator[str]:
    if regime.kv is KVPolicy.NONE:
        yield (
            "kv none: every token runs its whole prefix again, which is compute-bound, so the roofline columns "
            "(bytes moved) do not apply. A KV cache saves more than any exit strategy: compare with a cached run."
        )
    elif regime.kv is KVPolicy.RECOMPUTE:
        yield "kv recompute: layers an exited token skipped are run later, beside the next token that goes deeper."
    elif regime.kv is KVPolicy.SKIP:
        yield "kv skip: exited tokens leave holes in the cache, a lossy control."
    if regime.batch_size > 1:
        yield (
            f"batch {regime.batch_size}: rows share each read of the weights, so the roofline columns do not apply; "
            "latency counts from the start of the batch."
        )
    if regime.cached:
        yield (
            "the first token of a completion comes from prefill at full depth: it counts in agreement, scores and "
            "latency, not in layers, work or decoding speed."
        )
    if manifest.bandwidth_bytes_per_s is None and regime.cached and regime.batch_size == 1:
        yield "memory bandwidth was not measured, so the share of it that decoding reached is unknown."


def _about_sample_size(cells: Sequence[Measured], rows: Sequence[SummaryRow], baseline: str) -> Iterator[str]:
    measured = [row for row in rows if row.n]
    if not measured:
        yield "no window has finished yet."
        return
    if any(row.repeats == 1 for row in measured):
        yield "single repeat: nothing here shows how much a second run would differ."
    fewest = min(row.n for row in measured)
    if fewest < FEW_SAMPLES:
        yield f"few samples ({fewest}): differences between scores may well be chance."
    if min(len(cell.samples) for cell in cells if cell.samples) < FEW_TIMINGS:
        yield f"fewer than {FEW_TIMINGS} latencies per row: p99 is close to the slowest sample."
    compared = [row for row in measured if row.operating_point != baseline]
    if any(row.speedup is not None and row.speedup_ci is None for row in compared):
        yield f"a speed-up without an interval has fewer than {MINIMUM_PAIRS} independent pairs."


def _about_oracle(rows: Sequence[SummaryRow]) -> Iterator[str]:
    for name in dict.fromkeys(row.operating_point for row in rows if row.n and not is_candidate(row)):
        yield (
            f"{name} leaves at the first exit point that has full depth's token and pays nothing to know it: an "
            "upper bound, never on the Pareto front."
        )


def _totals(pairs: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    totals: Counter[str] = Counter()
    for name, count in pairs:
        totals[name] += count
    return [(name, count) for name, count in totals.items() if count]


def _without_kind(source: str) -> str:
    return source.removeprefix("embedded:").strip()
