"""Which records and numbers count, and why others do not: they are left out and counted in a note.

Left out is what was never meant to be summarised (warm-up, idle, superseded windows), what belongs to another run, and
what cannot be true. A sensor reading that cannot be true takes away the window's energy, not its time.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from harness.contracts.scores import registered_scores
from harness.records import Manifest, SampleRecord, WindowRecord
from harness.records.summary import Summary, SummaryRow
from reports.statistics.plausible import LARGEST, SMALLEST, all_plausible, is_measurable, numbers_of

SUPERSEDED = "a measurement that was repeated"
BACKWARDS = "a clock that stood still or ran backwards"
ABSURD = f"a number that no machine reaches (beyond {LARGEST:g}, or a time below {SMALLEST:g} s)"
UNTIMED = "no time in a run that was timed"
FOREIGN = "a task or operating point that the manifest does not name"
STRAY = "a window that was not committed"


def refuse_window(window: WindowRecord, manifest: Manifest) -> str | None:
    """Return why a measured window is left out; ``None`` when it counts. Warm-up and idle windows need no reason."""
    if window.superseded:
        return SUPERSEDED
    named = any(window.task == task.name for task in manifest.tasks)
    if not named or not any(window.operating_point == point.name for point in manifest.operating_points):
        return FOREIGN
    if window.duration_s is None:
        return UNTIMED if manifest.timed else None
    if not math.isfinite(window.duration_s) or window.duration_s <= 0:
        return BACKWARDS
    return None if is_measurable(window.duration_s) else ABSURD


def refuse_sample(sample: SampleRecord, manifest: Manifest) -> str | None:
    """Return why a finished sample is left out; ``None`` when it counts."""
    num_layers = manifest.model.num_layers
    times = sample.token_times_s
    told_s = (sample.latency_s, sample.ttft_s, sample.queue_s, sample.overtaken_s, sample.prefetch_s, *times)
    measured = [value for value in told_s if value is not None]
    scores = [score for score in sample.scores.values() if score is not None]
    if not all(map(math.isfinite, [*measured, *scores])):
        return "a number that is not finite"
    late = sample.latency_s is not None and sample.ttft_s is not None and sample.ttft_s > sample.latency_s
    if late or any(value < 0 for value in measured) or any(b < a for a, b in itertools.pairwise(times)):
        return BACKWARDS
    timed = [value for value in (sample.latency_s, sample.ttft_s, *times) if value is not None]
    if not all(map(is_measurable, timed)) or not all_plausible([*measured, *scores]):
        return ABSURD
    strange = (name for name, value in sample.scores.items() if value is not None and not is_a_score(name, value))
    if (name := next(strange, None)) is not None:
        return f"{name} outside 0…1, as only a score with a unit can be"
    counts = {len(sample.token_ids), len(sample.exit_layers)}
    if not manifest.timed:
        told = not measured and (bool(sample.token_ids) or sample.answer is not None)
    else:
        counts.add(len(times))
        told = bool(times) if sample.answer is None else sample.latency_s is not None and not times
    wrong = {
        "tokens, exit layers and times that are missing or not equally many": len(counts) > 1 or not told,
        "more tokens reused than the prompt has": sample.prompt_reused > len(sample.prompt_ids),
        f"an exit layer outside 1…{num_layers}": not all(1 <= layer <= num_layers for layer in sample.exit_layers),
    }
    return next((why for why, is_so in wrong.items() if is_so), None)


def without_false_reading(window: WindowRecord) -> WindowRecord:
    """Return a window whose energy is a number that can be true, or is missing with the reason."""
    if window.energy_j is None or is_measurable(window.energy_j):
        return window
    reason = f"the sensor read {window.energy_j:g} J"
    return window.model_copy(update={"energy_j": None, "energy_reason": reason})


def idle_windows(windows: Iterable[WindowRecord]) -> list[WindowRecord]:
    """Return the idle windows that count, each with a reading that can be true or none."""
    usable = (window for window in windows if window.idle and not window.superseded and not window.warmup)
    return [without_false_reading(one) for one in usable if one.duration_s and is_measurable(one.duration_s)]


def describe_left_out(
    manifest: Manifest, windows: Sequence[WindowRecord], samples: Sequence[SampleRecord]
) -> Iterator[str]:
    """Yield one sentence per reason for which windows or samples were left out, with their number."""
    measured = [window for window in windows if not window.warmup and not window.idle]
    refused: Counter[str] = Counter(reason for window in measured if (reason := refuse_window(window, manifest)))
    refused.pop(SUPERSEDED, None)  # counted with their causes in reports.summary.notes
    for reason, count in refused.most_common():
        yield f"{count} of {len(measured)} windows left out, with their samples: for {reason}."
    idle = [window for window in windows if window.idle and not window.superseded and not window.warmup]
    if unusable := len(idle) - len(idle_windows(idle)):
        yield f"{unusable} of {len(idle)} idle windows left out for {BACKWARDS} or {ABSURD}."
    known = {window.window: window for window in windows}
    strange: Counter[str] = Counter()
    for sample in samples:
        owner = known.get(sample.window)
        if owner is None or (owner.task, owner.operating_point) != (sample.task, sample.operating_point):
            strange[STRAY if owner is None else "a window of another task or operating point"] += 1
        elif not owner.warmup and not owner.idle and refuse_window(owner, manifest) is None and sample.error is None:
            strange.update(filter(None, [refuse_sample(sample, manifest)]))
    for reason, count in strange.most_common():
        yield f"{count} of {len(samples)} sample records left out for {reason}."


def is_a_score(name: str, value: float) -> bool:
    """Whether a score can have a value; of what is no score that is registered here nothing is known."""
    score = registered_scores().get(name)
    return score is None or score.allows(value)


def drop_implausible(summary: Summary) -> Summary:
    """Return a summary without the estimates and attributions that no machine can have reached, and a note of them."""

    def plausible(row: SummaryRow) -> SummaryRow:
        kept = {
            name: one
            for name, one in row.metrics.items()
            if all_plausible((one.value, one.low, one.high, one.p, one.p_holm)) and is_a_score(name, one.value)
        }
        return row if len(kept) == len(row.metrics) else row.model_copy(update={"metrics": kept})

    rows = tuple(map(plausible, summary.rows))
    attributions = tuple(one for one in summary.attributions if all_plausible(numbers_of(one.model_dump())))
    left_out = [
        *(name for row, kept in zip(summary.rows, rows, strict=True) for name in row.metrics.keys() - kept.metrics),
        *(f"where the {one.quantity} goes" for one in summary.attributions if one not in attributions),
    ]
    if not left_out:
        return summary
    note = (
        f"{len(left_out)} number(s) are left out, since they cannot be true (beyond {LARGEST:g} in their unit, or "
        f"no value of their score): {', '.join(sorted(set(left_out)))}. The records are damaged or foreign."
    )
    return summary.model_copy(update={"rows": rows, "attributions": attributions, "notes": (*summary.notes, note)})
