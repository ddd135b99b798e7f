"""The sentences a table must carry, so that nobody can quote a number without its catch.

Each note states a fact of the run (random weights, a stand-in tokenizer, estimated energy, one repeat …) and
what it does to the numbers. Most misleading first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from harness.records import Manifest, MeterRecord, ModelRecord, SampleRecord, TaskRecord, WindowRecord
from harness.records.conditions import MIXED, REPLAY, graphs_of, layers_of
from harness.records.estimate import NoInterval
from harness.records.summary import SummaryRow
from reports.metrics.energy import ENERGY_PER_TOKEN, IDLE_POWER, MEAN_POWER, NET_ENERGY_PER_TOKEN
from reports.metrics.point import Point
from reports.metrics.scores import EDIT_SIMILARITY_DIFFERENCE
from reports.metrics.speedups import SPEEDUP, SPEEDUP_HIGHEST, SPEEDUP_LOWEST
from reports.statistics.intervals import MINIMUM_DIFFERING, MINIMUM_PAIRS, MINIMUM_SAMPLES
from reports.summary.admission import describe_left_out
from reports.summary.degenerate import degenerate
from reports.summary.energy import is_measured
from reports.summary.lossless import about_lossless
from reports.summary.measured import Measured
from reports.summary.stopping import about_stops
from reports.summary.window_notes import about_windows

__all__ = ["notes"]

CONSTANT_POWER = 0.03  # mean powers closer than this are one power
IDLE_SHARE = 0.05  # gross and net energy further apart than this must both be read
PROJECTS = (
    "tuning has read none of these documents, and may have read others of their projects: nothing was split by project."
)
"""What "not read" leaves open, wherever it is said."""
FEW_TIMINGS = 100  # fewer latencies than this and the 99th percentile is close to the slowest one


def notes(
    manifest: Manifest,
    cells: Sequence[Measured],
    rows: Sequence[SummaryRow],
    windows: Sequence[WindowRecord] = (),
    samples: Sequence[SampleRecord] = (),
    missing_scores: Sequence[str] = (),
) -> tuple[str, ...]:
    """Return the notes of a run, each one sentence or two of plain text.

    Args:
        manifest: of the run.
        cells: all operating points, probes that never exit among them; those count for windows and failures only.
        rows: what they became.
        windows: all of the run, to count what was left out.
        samples: all of the run, likewise.
        missing_scores: sentences about scores that could not be made where the run was scored.
    """
    everything, cells = cells, [cell for cell in cells if not cell.point.never_exits]
    return (
        *_about_full_depth(manifest, cells),
        *_about_time(manifest),
        *_about_devices(manifest),
        *about_lossless(cells),
        *about_stops(cells),
        *_about_model(manifest),
        *_about_data(manifest, rows, cells),
        *missing_scores,
        *_about_probes(everything),
        *_about_baseline(manifest, cells),
        *describe_left_out(manifest, windows, samples),
        *_about_energy(manifest.meter, cells),
        *about_windows(everything, windows),
        *_about_power(rows),
        *_about_decoding([cell for cell in cells if cell.point.black_box is None], manifest),
        *_about_black_boxes(cells),
        *_about_heads(cells),
        *_about_sample_size(cells, rows, manifest.operating_points[0].name),
        *_about_chance(rows),
        *_about_oracle(cells),
    )


def _about_full_depth(manifest: Manifest, cells: Sequence[Measured]) -> Iterator[str]:
    wrong = degenerate(manifest, cells)
    if wrong is not None:
        yield (
            f"{wrong}: nothing can be compared with that, so agreement, speed-up and quality here mean nothing, no row "
            "is on the front and the run is never ranked. Check the weights, and --dtype float32 if they overflow."
        )


def _about_time(manifest: Manifest) -> Iterator[str]:
    if not manifest.timed:
        yield (
            "this run was not timed (untimed): other work may have shared its machine, so there are tokens, scores and "
            "counts of work here, and no time, speed-up or energy."
        )


def _about_devices(manifest: Manifest) -> Iterator[str]:
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
                f"{task.name}: the samples come from {_without_kind(task.source)}, not from the published "
                f"{task.name} test set; scores compare with nothing outside this run."
            )
        if task.bad_rows:
            yield f"{task.name}: {task.bad_rows} row(s) of the data could not become samples."
        yield from _about_duplicates(task, manifest)
    if manifest.model.weights == "tuned" or any(point.artefacts for point in manifest.operating_points):
        yield PROJECTS
    for task_name, failed in _totals((cell.task.name, len(cell.broken)) for cell in cells):
        yield (
            f"{task_name}: {failed} failure(s) over the operating points, counted as errors; they are neither scored "
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


def _about_probes(cells: Sequence[Measured]) -> Iterator[str]:
    probes = [cell for cell in cells if cell.point.never_exits]
    failed = sum(len(cell.broken) for cell in probes)
    if failed:
        yield f"{failed} failure(s) of probes that never exit: their blocks are missing in the attribution."


def _about_energy(meter: MeterRecord, cells: Sequence[Measured]) -> Iterator[str]:
    windows = [window for cell in cells for window in cell.windows.values()]
    sources = {window.energy_source for window in windows} or {meter.source}
    missing = "; ".join(f"{name}: {reason}" for name, reason in meter.unavailable.items())
    if sources == {"none"}:
        yield f"energy was not measured{' (' + missing.rstrip('.') + ')' if missing else ''}."
    elif REPLAY in sources:
        yield f"energy is none of this run's ({meter.description.rstrip('.')}): it never decides the Pareto front."
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
    """What energy says beside time, and what idling has to do with it; only of sensors."""
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


def _about_decoding(cells: Sequence[Measured], manifest: Manifest) -> Iterator[str]:
    seen = [cell.conditions for cell in cells]
    policies = {one.kv: one.kv_facts.note for one in seen}
    if len(policies) > 1:
        full = cells[0].point.name if len(manifest.model.formats) == 1 else "full depth"
        yield (
            f"operating points differ in their KV policy; all are compared with {full} (kv {seen[0].kv}), and "
            "fixed exits of the same policy are their measure where the run has them."
        )
    yield from _about_formats(manifest, cells)
    yield from (f"kv {name}: {note}" for name, note in policies.items() if note)
    batch = max((one.batch_size for one in seen), default=1)
    if batch > 1:
        yield (
            f"batch {batch}: rows share each read of the weights, so the byte model does not apply; "
            "latency counts from the start of the batch."
        )
    yield from _of_weights(manifest.model)
    cached = any(one.cached for one in seen)
    if cached:
        yield (
            "the first token of a completion comes from prefill at full depth: it counts in scores, latency and "
            "positionwise agreement, not in the exact prefix, own-text agreement, layers, work or decoding speed."
        )
    arrived = any(sample.arrival_s is not None for cell in cells for sample in cell.samples.values())
    if cached and batch == 1 and len(cells) > 1 and manifest.timed and not arrived:
        yield (
            "speed-ups of whole requests count for each prompt its mean time over the operating points, which all read "
            "it in the same pass; latencies are as they were measured."
        )
    own_text = any(sample.full_depth_ids for cell in cells for sample in cell.scored)
    if own_text and manifest.model.dtype != "float32":
        yield (
            f"own-text agreement reads a completion in one pass, where {manifest.model.dtype} rounds otherwise than in "
            "decoding: after the first difference full depth's choice can flip (on CPU, bfloat16 flips 1 % of them)."
        )
    if manifest.bandwidth_bytes_per_s is None and cached and batch == 1:
        yield "memory bandwidth was not measured, so the share of it that decoding reached is unknown."
    if arrived:
        yield (
            "requests arrive at a fixed rate: latency, TTFT and speed-up count from the arrival, waiting included; "
            "tokens per second and energy include idling between requests."
        )


def _about_black_boxes(cells: Sequence[Measured]) -> Iterator[str]:
    for point in {cell.point.name: cell.point for cell in cells if cell.point.black_box}.values():
        answers = [
            sample.answer
            for cell in cells
            if cell.point.name == point.name
            for sample in cell.scored
            if sample.answer is not None
        ]
        models = sorted({answer.model for answer in answers if answer.model})
        named = f" It calls its model {', '.join(models)}." if models else ""
        counts = answers and all(answer.tokens is not None for answer in answers)
        tokens = "Its tokens are its own count." if counts else "It does not count its tokens, so nothing is per token."
        yield (
            f"{point.name} is a black box: it gets the prompt as text and makes tokens of it itself, and times are its "
            "client's. What only the engine knows (layers, own tokens, exact prefix) is missing; scores of tokens read "
            f"its text.{named} {tokens}"
        )


def _about_heads(cells: Sequence[Measured]) -> Iterator[str]:
    for point in {cell.point.name: cell.point for cell in cells if cell.point.heads}.values():
        samples = [sample for cell in cells if cell.point.name == point.name for sample in cell.samples.values()]
        read = sum(sample.cheap_head_evaluations for sample in samples)
        if not read:
            continue
        megabytes = sum(sample.cheap_head_bytes for sample in samples) / read / 1e6
        own = sum(sample.cheap_head_tokens for sample in samples)
        left = sum(layer < sample.exit_layers[0] for sample in samples for layer in sample.exit_layers[1:])
        missed = sum(sample.cheap_head_misses for sample in samples)
        heads = "; ".join(f"{head} ({note})" for head, note in point.heads.items())
        if point.lossless:
            yield (
                f"{point.name}: a cheap head, {heads}, of {megabytes:.1f} MB a reading, reads what exits draft; the LM "
                "head verifies it, so that nothing is lost."
            )
            continue
        tokens = (
            f"{own} of its tokens were chosen by it and not by the LM head: a loss like any other"
            if own
            else f"the LM head chose its tokens, {missed} of {left} otherwise than the checked head would have"
        )
        yield f"{point.name} is decided by a cheap head, {heads}, of {megabytes:.1f} MB a reading; {tokens}."


def _about_baseline(manifest: Manifest, cells: Sequence[Measured]) -> Iterator[str]:
    for task in manifest.tasks:
        alike = [cell for cell in cells if cell.task.name == task.name]
        if not task.samples:
            yield f"{task.name}: no sample was drawn, so it has no results. Check --limit and --source."
        elif alike and not alike[0].samples and any(cell.samples for cell in alike):
            why = "has no finished window" if not alike[0].windows else "finished no sample"
            yield (
                f"{task.name}: full depth {why}, so nothing is compared with it (speed-up, agreement, differences). "
                "Finish the run with `harness run --resume`."
            )


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


def _about_oracle(cells: Sequence[Measured]) -> Iterator[str]:
    found = {
        cell.point.name: cell.conditions
        for cell in cells
        if cell.samples and cell.point.rehearsed and not cell.point.lossless
    }
    for name, conditions in found.items():
        first = f"{name} leaves at the first exit point that has full depth's token and pays nothing to know it"
        if conditions.kv_facts.exact:
            yield (
                f"{first}: an upper bound on the layers that can be skipped with no token changed, never on the Pareto "
                "front. It runs under exact keys and values, whatever --kv says."
            )
        else:
            yield (
                f"{first}, but it ran under kv {conditions.kv}, where it changes tokens and bounds nothing: no row is "
                "held against it. Newer runs give it exact keys and values."
            )


def _totals(pairs: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    totals: Counter[str] = Counter()
    for name, count in pairs:
        totals[name] += count
    return [(name, count) for name, count in totals.items() if count]


def _without_kind(source: str) -> str:
    return source.removeprefix("embedded:").strip()


def _of_weights(model: ModelRecord) -> Iterator[str]:
    """Say what weights formats other than float32 do to tokens and speed-ups."""
    several = len(model.formats) > 1
    for one in map(model.stored, model.formats):
        stored = f"matrices are stored in {one.weights_format}, which"
        if one.weights_accuracy == "near-exact" and model.dtype == "float32":
            over = "" if several else "; speed-ups are over full depth in the same format"
            yield f"{stored} keeps float32's tokens but for near-ties{over}."
        elif one.weights_accuracy == "lossy" and several:
            yield f"{stored} is lossy: the row of its full depth says what that alone changes."
        elif one.weights_accuracy == "lossy":
            yield (
                f"{stored} is lossy: agreement and speed-ups are against full depth in the same format, and say "
                "nothing of float32; scores do."
            )


def _about_formats(manifest: Manifest, cells: Sequence[Measured]) -> Iterator[str]:
    """Say which full depth is held against what, where a run compares weights formats."""
    model = manifest.model
    if len(model.formats) < 2:
        return
    yield (
        f"operating points differ in their weights format: @{' and @'.join(model.formats)}. Tokens and scores of all "
        f"are compared with {cells[0].point.name}. Speed-up and energy ratio are over full depth in the row's own "
        "format: what the strategy gives."
    )
    chosen: dict[str, list[str]] = {}
    for task in manifest.tasks:
        table = [cell for cell in cells if cell.task.name == task.name]
        fastest = Point(table[0], table, manifest).fastest_full
        if fastest is not None:
            chosen.setdefault(fastest.point.name, []).append(task.name)
    near = [name for name in model.formats if model.stored(name).keeps_tokens]
    for name, tasks in chosen.items():
        on = f" on {', '.join(tasks)}" if len(chosen) > 1 else ""
        which = (
            f"the fastest of those ({', '.join(near)}) that keep" if len(near) > 1 else "the only one here that keeps"
        )
        yield (
            f"what is stated over fastest is over {name}{on}: its format is {which} the tokens of the model as it was "
            "read, near-ties apart. That is what format and strategy give together."
        )
    if not chosen:
        yield (
            "no format of this run keeps the tokens of the model as it was read, so there is no speed-up over the "
            "fastest full depth. Add auto to --weights-format for one that does."
        )
