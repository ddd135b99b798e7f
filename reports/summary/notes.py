"""The sentences a table must carry, so that nobody can quote a number without its catch.

Each note states a fact of the run (random weights, a stand-in tokenizer, estimated energy, one repeat …) and
what it does to the numbers. Most misleading first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from harness.metering.contamination import CLOCK_CHANGE, CONTAMINATED, FOREIGN_SHARE, STOLEN_SHARE
from harness.metering.counters import INVALID_BELOW_PERIODS, SHORT_BELOW_PERIODS, WARMUP_DRIFT
from harness.records import Manifest, MeterRecord, SampleRecord, TaskRecord, WindowRecord
from harness.records.conditions import MIXED, REPLAY, graphs_of, layers_of
from harness.records.estimate import NoInterval
from harness.records.summary import SummaryRow
from reports.metrics.energy import ENERGY_PER_TOKEN, IDLE_POWER, MEAN_POWER, NET_ENERGY_PER_TOKEN
from reports.metrics.speedups import SPEEDUP, SPEEDUP_HIGHEST, SPEEDUP_LOWEST
from reports.metrics.vocabulary import EDIT_SIMILARITY_DIFFERENCE
from reports.statistics.intervals import MINIMUM_DIFFERING, MINIMUM_PAIRS, MINIMUM_SAMPLES
from reports.summary.admission import describe_left_out
from reports.summary.decoding_notes import decoding_notes, exactness_notes, oracle_notes
from reports.summary.measured import Measured, is_measured

_FLAGS = {
    "foreign-cpu": f"other processes took more than {100 * FOREIGN_SHARE:g} % of the machine's core-seconds",
    "stolen-cpu": f"the hypervisor gave more than {100 * STOLEN_SHARE:g} % of the machine's core-seconds to others",
    "throttled": "a processor lowered its clock because of heat or its power supply",
    "clock-change": f"the clock differed by more than {100 * CLOCK_CHANGE:g} % between the edges",
    "short-window": f"fewer than {SHORT_BELOW_PERIODS} ticks of the sensor",
    "invalid-window": f"fewer than {INVALID_BELOW_PERIODS} ticks of the sensor, so there is no energy",
}

_ENOUGH = 4
"""Completions of two tokens or more, of one token all of them, that are no chance."""

CONSTANT_POWER = 0.03  # mean powers closer than this are one power
IDLE_SHARE = 0.05  # gross and net energy further apart than this must both be read
PROJECTS = (
    "tuning has read none of these documents, and may have read others of their projects: nothing was split by project."
)
"""The limit of "not read", wherever it is said."""
FEW_TIMINGS = 100  # fewer latencies than this and the 99th percentile is close to the slowest one


def notes(
    manifest: Manifest,
    cells: Sequence[Measured],
    rows: Sequence[SummaryRow],
    windows: Sequence[WindowRecord] = (),
    samples: Sequence[SampleRecord] = (),
    missing_scores: Sequence[str] = (),
) -> tuple[str, ...]:
    """Return the notes of a run, each one sentence or two of plain text."""
    everything, cells = cells, [cell for cell in cells if not cell.point.never_exits]
    return (
        *_about_the_whole(manifest, cells),
        *exactness_notes(cells),
        *_about_model(manifest),
        *_about_data(manifest, rows, cells),
        *missing_scores,
        *_about_probes_and_baseline(manifest, everything),
        *describe_left_out(manifest, windows, samples),
        *_about_energy(manifest.meter, cells),
        *_about_windows(everything, windows),
        *_about_power(rows),
        *decoding_notes(manifest, cells),
        *_about_sample_size(cells, rows, manifest.operating_points[0].name),
        *_about_chance(rows),
        *oracle_notes(cells),
    )


def degenerate(manifest: Manifest, cells: Iterable[Measured]) -> str | None:
    """Say what is wrong with full depth on the first task where something is; ``None`` where nothing is.

    It may repeat one token, or fail throughout, as with weights that are damaged or overflow. Every exit then agrees
    with it, at any layer, so that the ordinary numbers are the best there are: the run does not rank.
    """
    for cell in cells:
        if cell.point.name == manifest.operating_points[0].name and (found := _wrong_with(cell)):
            return f"full depth on {cell.task.name} {found}"
    return None


def _wrong_with(full: Measured) -> str | None:
    failed = [sample.error for sample in full.failed.values() if sample.prompt_ids]  # the others are bad rows
    if failed and not full.samples:
        return f"failed on every sample (the first one: {str(failed[0]).rstrip('.')})"
    made = {token for sample in full.scored for token in sample.token_ids}
    if len(made) == 1 and sum(len(sample.token_ids) > 1 for sample in full.scored) >= _ENOUGH:
        return f"makes token {made.pop()} and no other, in all of its {len(full.scored)} completions"
    return None


def _about_the_whole(manifest: Manifest, cells: Sequence[Measured]) -> Iterator[str]:
    if (wrong := degenerate(manifest, cells)) is not None:
        yield (
            f"{wrong}: nothing can be compared with that, so agreement, speed-up and quality here mean nothing, no row "
            "is on the front and the run is never ranked. Check the weights, and --dtype float32 if they overflow."
        )
    if not manifest.timed:
        yield (
            "this run was not timed (untimed): other work may have shared its machine, so there are tokens, scores and "
            "counts of work here, and no time, speed-up or energy."
        )
    layers, graphs = layers_of(manifest), graphs_of(manifest)
    if layers:
        yield f"{layers} (--device-map): times and energy are of these places, and not of one device."
    if graphs:
        yield f"CUDA graphs: {graphs} (--graphs), not segments, which is the default: times and energy are of that."


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


def _about_data(manifest: Manifest, rows: Sequence[SummaryRow], cells: Sequence[Measured]) -> Iterator[str]:
    for task in manifest.tasks:
        if task.source_kind == "embedded":
            yield (
                f"{task.name}: the samples come from {task.source.removeprefix('embedded:').strip()}, not from the "
                f"published {task.name} test set; scores compare with nothing outside this run."
            )
        if task.bad_rows:
            yield f"{task.name}: {task.bad_rows} row(s) of the data could not become samples."
        yield from _about_duplicates(task, manifest)
    if manifest.model.weights == "tuned" or any(point.artefacts for point in manifest.operating_points):
        yield PROJECTS
    broken: Counter[str] = Counter()
    for cell in cells:
        broken[cell.task.name] += len(cell.broken)
    for name, failed in (+broken).items():
        yield (
            f"{name}: {failed} failure(s) over the operating points, counted as errors; they are neither scored "
            "nor timed; paired columns leave those samples out, and throughput, energy and ratios of requests their "
            "blocks."
        )
    for task in manifest.tasks:
        counts = {row.n for row in rows if row.task == task.name}
        if len(counts) > 1:
            yield (
                f"{task.name}: operating points finished {min(counts)} to {max(counts)} samples (an unfinished run, "
                "or errors), so unpaired columns cover different samples."
            )


def _about_duplicates(task: TaskRecord, manifest: Manifest) -> Iterator[str]:
    read = "near-duplicates of what tuning has read (20 tokens in a row, the next ones and the context before them)"
    if task.unindexed:
        yield (
            f"{task.name}: {', '.join(task.unindexed)} have no index of all they have read, so samples may be "
            f"{read}. Artefacts that are trained now have one."
        )
    elif task.duplicates is None and manifest.model.weights == "tuned":
        yield f"{task.name}: {read} were not looked for."
    if task.duplicates and manifest.config.get("duplicates") == "keep":
        yield (
            f"{task.name}: {task.duplicates} of {task.samples} samples are {read}, kept as asked. "
            "`harness report RUN_DIR --without-duplicates` shows the table without them."
        )
    elif task.duplicates:
        yield f"{task.name}: {task.duplicates} sample(s) were skipped as {read}."


def _about_probes_and_baseline(manifest: Manifest, cells: Sequence[Measured]) -> Iterator[str]:
    failed = sum(len(cell.broken) for cell in cells if cell.point.never_exits)
    if failed:
        yield f"{failed} failure(s) of probes that never exit: their blocks are missing in the attribution."
    for task in manifest.tasks:
        alike = [cell for cell in cells if cell.task.name == task.name and not cell.point.never_exits]
        if not task.samples:
            yield f"{task.name}: no sample was drawn, so it has no results. Check --limit and --source."
        elif alike and not alike[0].samples and any(cell.samples for cell in alike):
            why = "has no finished window" if not alike[0].windows else "finished no sample"
            yield (
                f"{task.name}: full depth {why}, so nothing is compared with it (speed-up, agreement, differences). "
                "Finish the run with `harness run --resume`."
            )


def _about_energy(meter: MeterRecord, cells: Sequence[Measured]) -> Iterator[str]:
    windows = [window for cell in cells for window in cell.windows.values()]
    sources = {window.energy_source for window in windows} or {meter.source}
    missing = "; ".join(f"{name}: {reason}" for name, reason in meter.unavailable.items())
    if sources == {"none"}:
        yield f"energy was not measured{' (' + missing.rstrip('.') + ')' if missing else ''}."
    elif REPLAY in sources:
        yield f"energy was replayed from a file ({meter.description.rstrip('.')}): it never decides the Pareto front."
    elif not all(is_measured(source, meter) for source in sources - {"none"}):
        yield (
            f"energy is an estimate, not a measurement ({meter.description.rstrip('.')}): it adds no evidence to the "
            "time columns and never decides the Pareto front."
            + (f" No sensor: {missing.rstrip('.')}." if missing else "")
        )
    elif missing:
        yield f"energy sensors that were not available: {missing.rstrip('.')}."
    if any(len({w.energy_source for w in cell.windows.values()}) > 1 for cell in cells):
        yield f"energy sources differ between the windows of a row ('{MIXED}'): such rows have no energy number."
    silent = [window for window in windows if window.energy_j is None and window.energy_source != "none"]
    if silent:
        reasons = sorted({window.energy_reason for window in silent if window.energy_reason})
        why = f" ({'; '.join(reasons)})" if reasons else ""
        yield f"{len(silent)} of {len(windows)} windows have no energy reading{why}: their rows show none."


def _about_power(rows: Sequence[SummaryRow]) -> Iterator[str]:
    """Say what energy adds to time, and how much of it is idling; only of sensors."""
    measured = [row for row in rows if row.value(MEAN_POWER) is not None and row.energy_measured]
    watts = [power for row in measured if (power := row.value(MEAN_POWER))]
    if len(watts) > 1 and max(watts) / min(watts) - 1 < CONSTANT_POWER:
        yield (
            f"energy saved ≈ time saved: power is constant (mean power of the rows is {min(watts):.3g} to "
            f"{max(watts):.3g} W, less than 3 % apart), so the energy columns are no evidence beside the time columns."
        )
    shares = [
        1 - net / gross
        for row in measured
        if (net := row.value(NET_ENERGY_PER_TOKEN)) is not None and (gross := row.value(ENERGY_PER_TOKEN))
    ]
    if shares and max(shares) > IDLE_SHARE:
        idle = next(power for row in measured if (power := row.value(IDLE_POWER)) is not None)
        yield (
            f"gross and net-of-idle energy differ by up to {100 * max(shares):.0f} %: with nothing running the machine "
            f"draws {idle:.3g} W. Gross is what the machine used; net is what decoding added."
        )
    if measured and not shares:
        yield "idle power was not measured (the run has no idle windows), so energy is gross: idle power is part of it."


def _about_chance(rows: Sequence[SummaryRow]) -> Iterator[str]:
    tested = (SPEEDUP.name, EDIT_SIMILARITY_DIFFERENCE)
    compared = [row for row in rows if any(one and one.p is not None for one in map(row.estimate, tested))]
    if compared:
        most = max(Counter(row.task for row in compared).values())
        yield (
            "differences to full depth are told from chance by paired permutation tests with Holm's correction. A "
            f"family is one column of one table: the hypotheses that each of its {most} tested operating point(s) "
            "equals full depth, at 5 % for any false alarm among them; columns and tables are not corrected for each "
            "other, and intervals not at all. Not distinguishable does not mean equal."
        )


def _about_sample_size(cells: Sequence[Measured], rows: Sequence[SummaryRow], baseline: str) -> Iterator[str]:
    measured = [row for row in rows if row.n]
    if not measured:
        failed = any(cell.failed for cell in cells)
        yield "every sample failed: there is nothing to score or to time." if failed else "no window has finished yet."
        return
    yield from _about_repeats(measured)
    fewest = min(row.n for row in measured)
    if fewest < MINIMUM_SAMPLES:
        yield f"few samples ({fewest}): below {MINIMUM_SAMPLES} a difference of scores has neither interval nor test."
    differences = filter(None, (row.estimate(EDIT_SIMILARITY_DIFFERENCE) for row in measured))
    if any(one.no_interval is NoInterval.FEW_DIFFERING for one in differences):
        yield (
            f"where fewer than {MINIMUM_DIFFERING} samples score differently, a difference of scores has neither "
            "interval nor test: that does not make it zero."
        )
    if min(len(cell.samples) for cell in cells if cell.samples) < FEW_TIMINGS:
        yield f"fewer than {FEW_TIMINGS} latencies per row: p99 is close to the slowest sample."
    compared = [row for row in measured if row.operating_point != baseline]
    if any((speedup := row.estimate(SPEEDUP)) is not None and speedup.interval is None for row in compared):
        yield f"a speed-up without an interval has fewer than {MINIMUM_PAIRS} independent pairs (blocks of samples)."


def _about_repeats(measured: Sequence[SummaryRow]) -> Iterator[str]:
    if any(row.repeats == 1 for row in measured):
        yield "single repeat: nothing here shows how much a second run would differ."
    spread = [
        (high / low, low, high, row.operating_point)
        for row in measured
        if (low := row.value(SPEEDUP_LOWEST)) is not None and (high := row.value(SPEEDUP_HIGHEST)) is not None
    ]
    if spread:
        most, low, high, name = max(spread, key=lambda found: found[0])
        yield (
            f"every repeat ran in a process of its own; between them a row's speed-up differed by up to "
            f"{100 * (most - 1):.1f} % ({name}: {low:.3f}× to {high:.3f}×). The intervals are over blocks "
            "of samples and do not contain this."
        )


def _about_windows(cells: Sequence[Measured], everything: Sequence[WindowRecord]) -> Iterator[str]:
    """Yield a sentence per flag of the windows that count, and per reason for which others do not."""
    counted = [window for cell in cells for window in cell.windows.values()]
    for flag, count in Counter(flag for window in counted for flag in window.flags).most_common():
        meaning = _FLAGS.get(flag)
        yield f"{count} of {len(counted)} windows are flagged '{flag}'{f': {meaning}' if meaning else ''}."
    superseded = [window for window in everything if window.superseded]
    if superseded:
        causes = ", ".join(sorted({flag for window in superseded for flag in window.flags if flag in CONTAMINATED}))
        yield (
            f"{len(superseded)} window(s), idle ones included, were contaminated ({causes}) and measured again "
            "(--strict); superseded, they are kept in windows.jsonl and left out of every number here."
        )
    warm_up = [window for window in everything if window.warmup]
    if any("not-settled" in window.flags for window in warm_up):
        yield (
            f"the machine had not settled when the warm-up ended (no three passes in a row came within "
            f"{100 * WARMUP_DRIFT:g} %): times drift or scatter, which the random order spreads over the operating "
            "points and the intervals show."
        )
