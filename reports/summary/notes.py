"""The sentences a table must carry, so that nobody can quote a number without its catch; most misleading first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from harness.contracts import common_prefix
from harness.metering.contamination import CLOCK_CHANGE, CONTAMINATED, FOREIGN_SHARE, STOLEN_SHARE
from harness.metering.counters import INVALID_BELOW_PERIODS, SHORT_BELOW_PERIODS, WARMUP_DRIFT
from harness.records import Manifest, MeterRecord, SampleRecord, TaskRecord, WindowRecord
from harness.records.conditions import MIXED, REPLAY, graphs_of, layers_of
from harness.records.summary import SummaryRow
from reports.metrics.energy import ENERGY_PER_TOKEN, IDLE_POWER, MEAN_POWER, NET_ENERGY_PER_TOKEN
from reports.metrics.point import Point
from reports.metrics.speedups import SPEEDUP_HIGHEST, SPEEDUP_LOWEST
from reports.statistics.intervals import MINIMUM_SAMPLES
from reports.summary.admission import describe_left_out
from reports.summary.measured import Measured, full_depths, is_measured

_FLAGS = {
    "foreign-cpu": f"other processes took more than {100 * FOREIGN_SHARE:g} % of the machine's core-seconds",
    "stolen-cpu": f"the hypervisor gave more than {100 * STOLEN_SHARE:g} % of the machine's core-seconds to others",
    "throttled": "a processor lowered its clock because of heat or its power supply",
    "clock-change": f"the clock differed by more than {100 * CLOCK_CHANGE:g} % between the edges",
    "short-window": f"fewer than {SHORT_BELOW_PERIODS} ticks of the sensor",
    "invalid-window": f"fewer than {INVALID_BELOW_PERIODS} ticks of the sensor, so there is no energy",
}
_ENOUGH = 4  # completions of two tokens or more, of one token all of them, that are no chance
_CONSTANT_POWER = 0.03  # mean powers closer than this are one power
_IDLE_SHARE = 0.05  # gross and net energy further apart than this must both be read
_FEW_TIMINGS = 100  # fewer latencies than this and the 99th percentile is close to the slowest one
_KEPT = {
    "none": "nothing (cold)",
    "prompt": "the prompt's",
    "exact": "the prompt's and those of the completion that full depth computed",
    "all": "the prompt's and the completion's, also those that an exit filled in",
}
PROJECTS = (
    "tuning has read none of these documents, and may have read others of their projects: nothing was split by project."
)
"""The limit of "not read", wherever it is said."""


def notes(
    manifest: Manifest,
    cells: Sequence[Measured],
    rows: Sequence[SummaryRow],
    windows: Sequence[WindowRecord] = (),
    samples: Sequence[SampleRecord] = (),
    missing_scores: Sequence[str] = (),
) -> tuple[str, ...]:
    """Return the notes of a run, each one sentence or two of plain text.

    ``cells`` are all operating points, probes that never exit among them; ``windows`` and ``samples`` all of the run,
    to count what was left out; ``missing_scores`` sentences about scores that could not be made where it was scored.
    """
    everything, cells = cells, [cell for cell in cells if not cell.point.never_exits]
    return (
        *_about_the_whole(manifest, cells),
        *_about_lost_samples(cells),
        *_about_windows(everything, windows),
        *_about_sample_size(cells, rows),
        *_about_exactness(cells),
        *_about_model(manifest),
        *_about_data(manifest, rows, cells),
        *missing_scores,
        *describe_left_out(manifest, windows, samples),
        *_about_energy(manifest.meter, cells),
        *_about_power(rows),
        *_about_sessions(cells),
        *_about_decoding([cell for cell in cells if cell.point.black_box is None], manifest),
        *_about_black_boxes(cells),
        *_about_heads(cells),
        *_about_oracles(cells),
    )


def degenerate(manifest: Manifest, cells: Iterable[Measured]) -> str | None:
    """Say what is wrong with full depth on the first task where something is; ``None`` where nothing is.

    It may repeat one token, or fail throughout, as with weights that are damaged or overflow. Every exit then agrees
    with it, at any layer, so that the ordinary numbers are the best there are: the run does not rank.
    """
    for cell in cells:
        if cell.point.name != manifest.operating_points[0].name:
            continue
        failed = [sample.error for sample in cell.failed.values() if sample.prompt_ids]  # the others are bad rows
        made = {token for sample in cell.scored for token in sample.token_ids}
        if failed and not cell.samples:
            first = str(failed[0]).rstrip(".")
            return f"full depth on {cell.task.name} failed on every sample (the first one: {first})"
        if len(made) == 1 and sum(len(sample.token_ids) > 1 for sample in cell.scored) >= _ENOUGH:
            of = f"makes token {made.pop()} and no other, in all of its {len(cell.scored)} completions"
            return f"full depth on {cell.task.name} {of}"
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
    if layers := layers_of(manifest):
        yield f"{layers} (--device-map): times and energy are of these places, and not of one device."
    if graphs := graphs_of(manifest):
        yield f"CUDA graphs: {graphs} (--graphs), not segments, which is the default: times and energy are of that."


def _about_lost_samples(cells: Sequence[Measured]) -> Iterator[str]:
    """Name the operating points that lost samples, and why; a row of the data that was no prompt is none of them."""
    lost: dict[tuple[str, int, int, str], list[str]] = {}
    for cell in cells:
        first = next((str(sample.error) for sample in cell.failed.values() if sample.prompt_ids), None)
        if first is not None:
            count = len(cell.broken.union(sample_id for sample_id, _ in cell.samples))
            key = cell.task.name, len(cell.broken), count, first.rstrip(".")
            lost.setdefault(key, []).append(cell.point.name)
    for (task, broken, count, first), names in lost.items():
        yield f"{', '.join(names)} on {task} lost {broken} of {count} samples, the first with: {first}."


def _about_exactness(cells: Sequence[Measured]) -> Iterator[str]:
    """Yield whether lossless rows have full depth's tokens in their format, and what stop rules do to completions."""
    compared, wrong = 0, []
    for cell in cells:
        if not cell.point.lossless:
            continue
        full = full_depths(other for other in cells if other.task == cell.task)[cell.regime]
        for key in cell.shared(full):
            if key[1] == 0:
                compared += 1
                mine, reference = cell.samples[key].token_ids, full.samples[key].token_ids
                if cell.samples[key].finish_reason == "stop" and cell.point.stop:  # it would go on
                    reference = reference[: len(mine)]
                if mine != reference:
                    wrong.append(f"{cell.point.name} in {key[0]} at token {common_prefix(mine, reference) + 1}")
    if wrong:
        yield (
            f"lossless rows differ from full depth in {len(wrong)} of {compared} completions, first {wrong[0]}. "
            "Products of several rows may round otherwise than those of one, and tip a near-tie; anything else is a "
            "defect. `harness verify` tells one from the other."
        )
    elif compared:
        stops = any(cell.point.lossless and cell.point.stop for cell in cells)
        cut = ", up to where a stop rule ends them" if stops else ""
        yield f"lossless rows: the tokens are full depth's in all {compared} completions{cut}."
    for cell in cells:
        made, rule = list(cell.samples.values()), cell.point.stop.partition(":")[0]
        by_rule, lengths = rule and {one.stop_rule for one in made} == {rule}, {len(one.token_ids) for one in made}
        by_itself = {one.finish_reason for one in made} == {"strategy"}
        # a rule that reads states is not asked of the first token, whose state is the prompt's
        if (by_rule and lengths in ({1}, {2})) or (by_itself and lengths == {1}):
            yield (
                f"{cell.point.name} on {cell.task.name} always stops: the {'rule' if by_rule else 'strategy'} ended "
                f"all of its {len(made)} completions as early as it may, so that its savings mean nothing."
            )
    if any(cell.point.stop for cell in cells):
        yield (
            "stop rules: a completion that was ended early is scored against its whole reference, like any other, and "
            "what full depth goes on to say counts as missing in agreement. Tokens saved are of full depth's without a "
            "rule; speed-up, energy and latency of requests count the shorter completions, tokens per second do not."
        )


def _about_model(manifest: Manifest) -> Iterator[str]:
    model = manifest.model
    yield {
        "random": "random weights: accuracy columns mean nothing. Time and work are those of the real shapes, with "
        "exit decisions that real weights would not make.",
        "tuned": "tuned weights: the model was fine-tuned for early exit, and full depth here is the tuned model's. "
        "What tuning cost or gained the last layer shows beside a run with --weights pretrained.",
    }.get(
        model.weights,
        "base weights: the model was not fine-tuned for early exit, so its early layers predict badly and exits cost "
        "more quality than they would after tuning.",
    )
    if model.weights != "random":
        yield f"weights: {model.weights_source}."
    if model.tokenizer_stand_in:
        yield f"tokenizer {model.tokenizer_source}. Token counts and texts are not the real model's."


def _about_data(manifest: Manifest, rows: Sequence[SummaryRow], cells: Sequence[Measured]) -> Iterator[str]:
    for task in manifest.tasks:
        here = [cell for cell in cells if cell.task.name == task.name]
        if task.source_kind == "embedded":
            yield (
                f"{task.name}: the samples come from {task.source.removeprefix('embedded:').strip()}, not from the "
                f"published {task.name} test set; scores compare with nothing outside this run."
            )
        if task.bad_rows:
            yield f"{task.name}: {task.bad_rows} row(s) of the data could not become samples."
        if task.prompt_tokens_mean is not None:
            lengths = f"; {task.detail['lengths']}" if "lengths" in task.detail else ""
            yield (
                f"{task.name}: prompts of {task.prompt_tokens_mean:.0f} tokens on average, median "
                f"{task.prompt_tokens_median:.0f}{lengths}."
            )
        yield from _about_duplicates(task, manifest)
        if manifest.model.weights == "tuned" or any(point.artefacts for point in manifest.operating_points):
            yield from _about_projects(task)
        if broken := sum(len(cell.broken) for cell in here):
            yield (
                f"{task.name}: {broken} failure(s) over the operating points, counted as errors; they are neither "
                "scored nor timed; paired columns leave those samples out, and throughput, energy and ratios of "
                "requests their blocks."
            )
        counts = {row.n for row in rows if row.task == task.name}
        if len(counts) > 1:
            yield (
                f"{task.name}: operating points finished {min(counts)} to {max(counts)} samples (an unfinished run, "
                "or errors), so unpaired columns cover different samples."
            )
        if not task.samples:
            yield f"{task.name}: no sample was drawn, so it has no results. Check --limit and --source."
        elif here and not here[0].samples and any(cell.samples for cell in here):
            yield (
                f"{task.name}: full depth finished no sample, so nothing is compared with it (speed-up, agreement, "
                "differences). Finish the run with `harness run --resume`."
            )


def _about_projects(task: TaskRecord) -> Iterator[str]:
    if task.overlapping is None or task.unknown_projects is None:
        yield f"{task.name}: {PROJECTS}"
        return
    if task.overlapping:
        yield (
            f"{task.name}: of {task.overlapping} of {task.samples} samples tuning has read other files of the same "
            "project, drawn as asked."
        )
    if task.unknown_projects:
        yield (
            f"{task.name}: of {task.samples} samples {task.samples - task.overlapping - task.unknown_projects} are of "
            f"projects that tuning has not read, {task.unknown_projects} do not say which project they are of. Tuning "
            "may have read other files of it, so that they say nothing of new projects."
        )


def _about_duplicates(task: TaskRecord, manifest: Manifest) -> Iterator[str]:
    read = "near-duplicates of what tuning has read (20 tokens in a row, the next ones and the context before them)"
    if task.unindexed:
        yield f"{task.name}: {', '.join(task.unindexed)} have no index of all they have read, so samples may be {read}."
    elif task.duplicates is None and manifest.model.weights == "tuned":
        yield f"{task.name}: {read} were not looked for."
    if task.duplicates and manifest.config.get("duplicates") == "keep":
        yield (
            f"{task.name}: {task.duplicates} of {task.samples} samples are {read}, kept as asked. "
            "`harness report RUN_DIR --without-duplicates` shows the table without them."
        )
    elif task.duplicates:
        yield f"{task.name}: {task.duplicates} sample(s) were skipped as {read}."


def _about_energy(meter: MeterRecord, cells: Sequence[Measured]) -> Iterator[str]:
    windows = [window for cell in cells for window in cell.windows.values()]
    sources = {window.energy_source for window in windows} or {meter.source}
    missing = "; ".join(f"{name}: {reason}" for name, reason in meter.unavailable.items()).rstrip(".")
    how = meter.description.rstrip(".")
    if sources == {"none"}:
        yield f"energy was not measured{f' ({missing})' if missing else ''}."
    elif REPLAY in sources:
        yield f"energy was replayed from a file ({how}): it never decides the Pareto front."
    elif not all(is_measured(source, meter) for source in sources - {"none"}):
        yield (
            f"energy is an estimate, not a measurement ({how}): it adds no evidence to the time columns and never "
            f"decides the Pareto front.{f' No sensor: {missing}.' if missing else ''}"
        )
    elif missing:
        yield f"energy sensors that were not available: {missing}."
    if any(len({w.energy_source for w in cell.windows.values()}) > 1 for cell in cells):
        yield f"energy sources differ between the windows of a row ('{MIXED}'): such rows have no energy number."
    silent = [window for window in windows if window.energy_j is None and window.energy_source != "none"]
    if silent:
        reasons = "; ".join(sorted({window.energy_reason for window in silent if window.energy_reason}))
        why = f" ({reasons})" if reasons else ""
        yield f"{len(silent)} of {len(windows)} windows have no energy reading{why}: their rows show none."


def _about_power(rows: Sequence[SummaryRow]) -> Iterator[str]:
    """Say what energy adds to time, and how much of it is idling; only of sensors."""
    measured = [row for row in rows if row.value(MEAN_POWER) is not None and row.energy_measured]
    watts = [power for row in measured if (power := row.value(MEAN_POWER))]
    if len(watts) > 1 and max(watts) / min(watts) - 1 < _CONSTANT_POWER:
        yield (
            f"energy saved ≈ time saved: power is constant (mean power of the rows is {min(watts):.3g} to "
            f"{max(watts):.3g} W, less than 3 % apart), so the energy columns are no evidence beside the time columns."
        )
    shares = [
        1 - net / gross
        for row in measured
        if (net := row.value(NET_ENERGY_PER_TOKEN)) is not None and (gross := row.value(ENERGY_PER_TOKEN))
    ]
    if shares and max(shares) > _IDLE_SHARE:
        idle = next(power for row in measured if (power := row.value(IDLE_POWER)) is not None)
        yield (
            f"gross and net-of-idle energy differ by up to {100 * max(shares):.0f} %: with nothing running the machine "
            f"draws {idle:.3g} W. Gross is what the machine used; net is what decoding added."
        )
    if measured and not shares:
        yield "idle power was not measured (the run has no idle windows), so energy is gross: idle power is part of it."


def _about_windows(cells: Sequence[Measured], everything: Sequence[WindowRecord]) -> Iterator[str]:
    """Yield a sentence per flag of the windows that count, and per reason for which others do not."""
    counted = [window for cell in cells for window in cell.windows.values()]
    for flag, count in Counter(flag for window in counted for flag in window.flags).most_common():
        meaning = f": {_FLAGS[flag]}" if flag in _FLAGS else ""
        yield f"{count} of {len(counted)} windows are flagged '{flag}'{meaning}."
    superseded = [window for window in everything if window.superseded]
    if superseded:
        causes = ", ".join(sorted({flag for window in superseded for flag in window.flags if flag in CONTAMINATED}))
        yield (
            f"{len(superseded)} window(s), idle ones included, were contaminated ({causes}) and measured again "
            "(--strict); superseded, they are kept in windows.jsonl and left out of every number here."
        )
    if any(window.warmup and "not-settled" in window.flags for window in everything):
        yield (
            f"the machine had not settled when the warm-up ended (no three passes in a row came within "
            f"{100 * WARMUP_DRIFT:g} %): times drift or scatter, which the intervals show."
        )


def _about_sample_size(cells: Sequence[Measured], rows: Sequence[SummaryRow]) -> Iterator[str]:
    measured = [row for row in rows if row.n]
    if not measured:
        failed = any(cell.failed for cell in cells)
        yield "every sample failed: there is nothing to score or to time." if failed else "no window has finished yet."
        return
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
            f"{100 * (most - 1):.1f} % ({name}: {low:.3f}× to {high:.3f}×), which intervals do not contain."
        )
    fewest = min(row.n for row in measured)
    if fewest < MINIMUM_SAMPLES:
        yield f"few samples ({fewest}): below {MINIMUM_SAMPLES} a difference of scores has neither interval nor test."
    if min(len(cell.samples) for cell in cells if cell.samples) < _FEW_TIMINGS:
        yield f"fewer than {_FEW_TIMINGS} latencies per row: p99 is close to the slowest sample."


def _about_decoding(cells: Sequence[Measured], manifest: Manifest) -> Iterator[str]:
    seen, model = [cell.conditions for cell in cells], manifest.model
    several, policies = len(model.formats) > 1, {one.kv: one.kv_facts.note for one in seen}
    if len(policies) > 1:
        full = "full depth" if several else cells[0].point.name
        yield (
            f"operating points differ in their KV policy; all are compared with {full} (kv {seen[0].kv}), and "
            "fixed exits of the same policy are their measure where the run has them."
        )
    if several:
        yield from _about_formats(manifest, cells)
    yield from (f"kv {name}: {note}" for name, note in policies.items() if note)
    if any(one.prompt_exit for one in seen):
        yield (
            "prompt exits: most tokens of the prompt stop early, and maps of their states stand in for keys and values "
            "of the layers above, which later tokens read: the texts are not full depth's."
        )
    batch = max((one.batch_size for one in seen), default=1)
    if batch > 1:
        yield (
            f"batch {batch}: rows share each read of the weights, so the byte model does not apply; "
            "latency counts from the start of the batch."
        )
    for one in map(model.stored, model.formats):
        stored = f"matrices are stored in {one.weights_format}, which"
        if one.weights_accuracy == "near-exact" and model.dtype == "float32":
            yield f"{stored} keeps float32's tokens but for near-ties."
        elif one.weights_accuracy == "lossy":
            alone = "the row of its full depth says what that alone changes"
            same = "agreement and speed-ups are against full depth in the same format, and say nothing of float32"
            yield f"{stored} is lossy: {alone if several else same}."
    cached = any(one.cached for one in seen)
    arrived = any(sample.arrival_s is not None for cell in cells for sample in cell.samples.values())
    if cached:
        yield (
            "the first token of a completion comes from prefill at full depth: it counts in scores, latency and "
            "positionwise agreement, not in the exact prefix, own-text agreement, layers, work or decoding speed."
        )
    if cached and batch == 1 and len(cells) > 1 and manifest.timed and not arrived:
        yield (
            "speed-ups of whole requests count for each prompt its mean time over the operating points, which all read "
            f"{'as much of ' * any(one.keep for one in seen)}it in the same pass; latencies are as they were measured."
        )
    if arrived:
        yield (
            "requests arrive at a fixed rate: latency, TTFT and speed-up count from the arrival, waiting included; "
            "tokens per second and energy include idling between requests."
        )


def _about_formats(manifest: Manifest, cells: Sequence[Measured]) -> Iterator[str]:
    """Say which full depth is held against what, where a run compares weights formats."""
    model, chosen, keeping = manifest.model, dict[str, list[str]](), False
    for task in manifest.tasks:
        table = [cell for cell in cells if cell.task.name == task.name]
        point = Point(table[0], table, manifest)
        keeping |= point.keeps_tokens(point.fastest_full)
        chosen.setdefault(point.fastest_full.point.name, []).append(task.name)
    by_task = "; ".join(f"{name} on {', '.join(tasks)}" for name, tasks in chosen.items())
    over = by_task if len(chosen) > 1 else "".join(chosen)
    yield (
        f"operating points differ in their weights format: @{' and @'.join(model.formats)}. Tokens and scores of all "
        f"are compared with {cells[0].point.name}. Speed-up and energy ratio are over full depth in the row's own "
        "format: what the strategy gives."
    )
    yield (
        f"what is stated over fastest is over {over}, the fastest full depth in a format that keeps the model's "
        "tokens, near-ties apart: what format and strategy give together."
        if keeping
        else f"no format of this run keeps the tokens of the model as it was read: what is stated over fastest is over "
        f"{over}, the first. Add auto to --weights-format for one that does."
    )


def _about_sessions(cells: Sequence[Measured]) -> Iterator[str]:
    """Say of editor sessions what requests leave to the next, what is waited for, and over which full depth."""
    seen = list(dict.fromkeys(cell.conditions.keep for cell in cells if cell.conditions.keep))
    if not seen:
        return
    meanings = "; ".join(f"{keep}, {_KEPT[keep]}" if keep in _KEPT else keep for keep in seen)
    yield (
        "editor sessions: a request's prompt is the one before but for a few tokens. Keep is which keys and values it "
        f"leaves to the next: {meanings}. All intervals are over sessions, since the requests of one are alike."
    )
    yield (
        "waiting is the latency of requests that were waited for; speed-ups count it and nothing else. Requests that "
        "typing overtook are cancelled: what they computed is waste, part of energy and of tokens per second."
    )
    if any(cell.conditions.prefetch for cell in cells):
        yield (
            "prefetch: while the user types, deepen makes exact what prompt exits left, and draft decodes on behind "
            "the last answer, for later requests to verify. Nobody waits for it, but its energy is part of the "
            "window's and of every column of energy; what no request accepted of it is waste."
        )
    if len(seen) > 1:
        yield (
            f"operating points differ in what they keep. Tokens and scores of all are compared with "
            f"{cells[0].point.name}. Speed-up and energy ratio are over full depth of the row's own keep: what the "
            "strategy gives. What is stated over first is over the run's first full depth: what keeping and strategy "
            "give together."
        )


def _about_black_boxes(cells: Sequence[Measured]) -> Iterator[str]:
    for name in dict.fromkeys(cell.point.name for cell in cells if cell.point.black_box):
        scored = [sample for cell in cells if cell.point.name == name for sample in cell.scored]
        models = ", ".join(sorted({one.answer.model for one in scored if one.answer is not None and one.answer.model}))
        yield (
            f"{name} is a black box: it gets the prompt as text and makes tokens of it itself, and times are its "
            "client's. What only the engine knows (layers, own tokens, exact prefix) is missing; scores of tokens read "
            f"its text.{f' It calls its model {models}.' if models else ''}"
        )


def _about_heads(cells: Sequence[Measured]) -> Iterator[str]:
    for point in {cell.point.name: cell.point for cell in cells if cell.point.heads}.values():
        samples = [sample for cell in cells if cell.point.name == point.name for sample in cell.samples.values()]
        heads = "; ".join(f"{head} ({note})" for head, note in point.heads.items())
        own = sum(sample.cheap_head_tokens for sample in samples)
        if point.lossless:
            reads = "reads what exits draft; the LM head verifies it, so that nothing is lost"
            yield f"{point.name}: a cheap head, {heads}, {reads}."
        elif any(sample.cheap_head_evaluations for sample in samples):
            said = f"{own} of its tokens were chosen by it and not by the LM head: a loss like any other"
            said = said if own else "the LM head chose its tokens"
            yield f"{point.name} is decided by a cheap head, {heads}; {said}."


def _about_oracles(cells: Sequence[Measured]) -> Iterator[str]:
    bounds = [cell for cell in cells if cell.samples and cell.point.rehearsed and not cell.point.lossless]
    for name in dict.fromkeys(cell.point.name for cell in bounds if cell.conditions.kv_facts.exact):
        yield (
            f"{name} leaves at the first exit point that has full depth's token and pays nothing to know it: an upper "
            "bound on the layers that can be skipped with no token changed, never on the Pareto front. It runs under "
            "exact keys and values, whatever --kv says."
        )
