"""The finished measurements of one operating point on one task, and how they pair: every definition starts here.

A sample that failed is counted, never scored and never timed; where two operating points are compared, only what both
finished is used. **Energy** is a total over windows and exists only when every window has a number from one source: an
estimate and a measurement are never added. Net of idle takes off what the machine draws with nothing running, measured
in idle windows of the same run and sensor; an estimate made of CPU time has no idle power.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, TypeAlias, TypeVar

from harness.metering.contamination import CONTAMINATED
from harness.records import Manifest, MeterRecord, OperatingPointRecord, SampleRecord, TaskRecord, WindowRecord
from harness.records.conditions import MIXED, REPLAY, Conditions
from reports.statistics.intervals import Pair, pooled, pooled_by, ratio
from reports.summary.admission import refuse_sample, refuse_window, without_false_reading

SampleKey: TypeAlias = tuple[str, int]  # sample id, repeat
Value = TypeVar("Value")


CorpusScorer: TypeAlias = Callable[[str, Sequence[str], Sequence[str]], dict[str, float | None]]
"""``(language, texts, references) -> scores``: every registered score of a corpus, by name."""


class Corpus(NamedTuple):
    """The completions of one operating point on one task, and their ground truths."""

    language: str
    texts: tuple[str, ...]
    references: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """One operating point on one task: windows that count, finished samples of every repeat, and those that failed."""

    task: TaskRecord
    point: OperatingPointRecord
    conditions: Conditions
    windows: dict[int, WindowRecord]
    samples: dict[SampleKey, SampleRecord]
    failed: dict[SampleKey, SampleRecord]
    units: Mapping[int, int]
    """Block → the independent unit of every statistic: itself, with those that have part of one of its sessions."""

    @property
    def regime(self) -> tuple[str, str]:
        """Weights format, and what requests leave to the next: what a full depth of its own is for."""
        return self.conditions.weights_format, self.conditions.keep

    def unit(self, sample: SampleRecord) -> int:
        """Return the independent unit that a sample belongs to."""
        return self.units[self.windows[sample.window].block]

    @property
    def flagged(self) -> list[WindowRecord]:
        """Windows in which something else moved the machine."""
        return [window for window in self.windows.values() if not CONTAMINATED.isdisjoint(window.flags)]

    @property
    def disturbed(self) -> bool:
        """Whether something else moved the machine in most of its windows: its costs are no evidence."""
        return 2 * len(self.flagged) > len(self.windows)

    def unflagged(self) -> Measured:
        """Return the same without those windows and their samples."""
        left_out = {window.window for window in self.flagged}
        windows = {number: window for number, window in self.windows.items() if number not in left_out}
        samples, failed = (
            {key: sample for key, sample in each.items() if sample.window not in left_out}
            for each in (self.samples, self.failed)
        )
        return replace(self, windows=windows, samples=samples, failed=failed)

    @property
    def scored(self) -> list[SampleRecord]:
        """Finished samples of the first repeat: later ones generate the same text again."""
        return [sample for (_, repeat), sample in self.samples.items() if repeat == 0]

    @property
    def corpus(self) -> Corpus:
        """Its completions, which are scored together."""
        texts, references = zip(*((one.text, one.reference) for one in self.scored), strict=True)
        return Corpus(self.task.language, texts, references)

    @property
    def errors(self) -> int:
        """Distinct samples that failed in any repeat."""
        return len({sample_id for sample_id, _ in self.failed})

    @property
    def broken(self) -> set[str]:
        """Samples whose completion failed in some repeat; a row of the data that could not become a prompt is none."""
        return {sample_id for (sample_id, _), sample in self.failed.items() if sample.prompt_ids}

    @property
    def repeats(self) -> int:
        """Repetitions that were timed."""
        return len({window.repeat for window in self.windows.values()})

    def decoded(self, by_token: Sequence[Value]) -> Sequence[Value]:
        """Leave out the first token, which with a KV cache comes from prefill."""
        return by_token[1:] if self.conditions.cached else by_token

    def decoded_layers(self, sample: SampleRecord) -> Sequence[int]:
        """Return the layers executed for each token that a strategy was, or could have been, asked about."""
        return self.decoded(sample.exit_layers)

    @cached_property
    def constant_layer(self) -> int | None:
        """The layer after which every decoded token stopped; ``None`` where depths mix."""
        layers = {layer for sample in self.samples.values() for layer in self.decoded_layers(sample)}
        return next(iter(layers)) if len(layers) == 1 else None

    def alike(self, cells: Sequence[Measured]) -> list[Measured]:
        """Return the operating points whose tokens may be held against this one's, those of the same conditions last.

        A constant depth yields the same tokens under every KV policy that keeps a cache: one such side is enough.
        """
        mine = self.conditions
        kept = [
            other
            for other in cells
            if mine != other.conditions and mine.same_but_for_kv(other.conditions)
            if mine.cached and other.conditions.cached
            if self.constant_layer is not None or other.constant_layer is not None
        ]
        return kept + [other for other in cells if other.conditions == mine]

    def shared(self, other: Measured) -> list[SampleKey]:
        """Return what both finished, in this one's order."""
        return [key for key in self.samples if key in other.samples]

    def by_block(self, values: Mapping[str, Value]) -> list[list[Value]]:
        """Sort what samples have, by sample id, into the independent units of every statistic."""
        found: dict[int, list[Value]] = defaultdict(list)
        for sample_id, value in values.items():
            found[self._units[sample_id]].append(value)
        return list(found.values())

    def energy_pairs(self, baseline: Measured, idle_w: float = 0.0) -> list[Pair]:
        """Return joules per block under the baseline and here, less ``idle_w`` times the windows' seconds."""

        def joules(_: Measured, window: WindowRecord) -> float | None:
            if window.energy_j is None or window.duration_s is None:
                return None
            return window.energy_j - idle_w * window.duration_s

        return list(self.block_pairs(baseline, joules).values())

    def decode_pairs(self, baseline: Measured, repeat: int | None = None) -> list[Pair]:
        """Return seconds and tokens after the first token under the baseline and here, by independent unit."""
        pairs: list[tuple[Hashable, Pair]] = []
        for key in self.shared(baseline):
            if repeat not in (None, key[1]):
                continue
            here, there = after_first(self.samples[key]), after_first(baseline.samples[key])
            if here is not None and there is not None:
                pairs.append((self.unit(self.samples[key]), Pair(there[0], here[0], there[1], here[1])))
        return pooled(pairs)

    def block_pairs(
        self,
        baseline: Measured,
        cost: Callable[[Measured, WindowRecord], float | None],
        repeat: int | None = None,
    ) -> dict[int, Pair]:
        """Pair windows by block and repeat, where both finished the same samples, and add up those of one unit."""
        others = {(window.block, window.repeat): window for window in baseline.windows.values()}
        mine, theirs = (
            {number: {sample.sample_id for sample in samples} for number, samples in cell.whole.items()}
            for cell in (self, baseline)
        )
        pairs: list[tuple[int, Pair]] = []
        for window in self.windows.values():
            other = others.get((window.block, window.repeat))
            if repeat not in (None, window.repeat):
                continue
            if other is None or not mine.get(window.window) or mine[window.window] != theirs.get(other.window):
                continue
            before, now = cost(baseline, other), cost(self, window)
            if before is not None and now is not None:
                pairs.append((self.units[window.block], Pair(before, now)))
        return pooled_by(pairs)

    def request_s(self, window: WindowRecord) -> float | None:
        """Return what the requests of a window took, seconds: the window's time, or the latencies of those that arrive.

        Requests of an editor session arrive: what others that typing overtook computed is nobody's wait.
        """
        samples = self._by_window.get(window.window, ())
        arrived = [sample for sample in samples if sample.arrival_s is not None or sample.session]
        if not arrived:
            return window.duration_s
        latencies = [sample.latency_s for sample in arrived if sample.latency_s is not None]
        return math.fsum(latencies) if len(latencies) == len(arrived) else None

    @cached_property
    def whole(self) -> Mapping[int, Sequence[SampleRecord]]:
        """Finished samples of the windows, by id, in which none failed: what these took of another is not known.

        A row that could not become a prompt failed before there was a window.
        """
        failed = {sample.window for sample in self.failed.values() if sample.prompt_ids}
        return {number: samples for number, samples in self._by_window.items() if number not in failed}

    @property
    def whole_windows(self) -> list[WindowRecord]:
        """The windows of :attr:`whole`."""
        return [self.windows[number] for number in self.whole]

    @cached_property
    def _units(self) -> dict[str, int]:
        return {sample_id: self.unit(sample) for (sample_id, _), sample in self.samples.items()}

    @cached_property
    def _by_window(self) -> dict[int, list[SampleRecord]]:
        found: dict[int, list[SampleRecord]] = defaultdict(list)
        for sample in self.samples.values():
            found[sample.window].append(sample)
        return dict(found)


def after_first(sample: SampleRecord) -> tuple[float, int] | None:
    """Return seconds and tokens after the first token; ``None`` where no second one was timed."""
    times = sample.token_times_s
    return (times[-1] - times[0], len(times) - 1) if len(times) >= 2 else None


def full_depths(cells: Iterable[Measured]) -> dict[tuple[str, str], Measured]:
    """Return the full depth of each regime, the run's own first; of several, as KV policies have, the first."""
    found: dict[tuple[str, str], Measured] = {}
    for cell in cells:
        point = cell.point
        if point.strategy == "full" and not (point.never_exits or point.lossless or point.stop or point.prompt_exit):
            found.setdefault(cell.regime, cell)
    return found


def independent_units(windows: Iterable[WindowRecord], samples: Iterable[SampleRecord]) -> dict[int, int]:
    """Return block → independent unit of one task: blocks that share an editor session, by the first of them."""
    blocks = {window.window: window.block for window in windows}
    found = {block: block for block in blocks.values()}

    def first(block: int) -> int:
        while found[block] != block:
            block = found[block]
        return block

    began: dict[str, int] = {}
    for sample in samples:
        if sample.session and sample.window in blocks:
            here, there = first(blocks[sample.window]), first(began.setdefault(sample.session, blocks[sample.window]))
            found[max(here, there)] = min(here, there)
    return {block: first(block) for block in found}


def select(
    manifest: Manifest, windows: Iterable[WindowRecord], samples: Iterable[SampleRecord]
) -> dict[tuple[str, str], Measured]:
    """Sort a run's records by (task, operating point), in the manifest's order; probes that never exit included.

    A record that appears twice (a window cut off by a kill and run again) counts once, the last time.
    """
    windows, samples = tuple(windows), tuple(samples)
    units = {
        task.name: independent_units(
            (window for window in windows if window.task == task.name),
            (sample for sample in samples if sample.task == task.name),
        )
        for task in manifest.tasks
    }
    cells = {
        (task.name, point.name): Measured(
            task, point, Conditions.of(manifest, task, point), {}, {}, {}, units[task.name]
        )
        for task in manifest.tasks
        for point in manifest.operating_points
    }
    for window in windows:
        if not window.warmup and not window.idle and refuse_window(window, manifest) is None:
            cells[window.task, window.operating_point].windows[window.window] = without_false_reading(window)
    for sample in samples:
        cell = cells.get((sample.task, sample.operating_point))
        if cell is None or sample.window not in cell.windows:
            continue
        key = (sample.sample_id, sample.repeat)
        cell.samples.pop(key, None)
        cell.failed.pop(key, None)
        if sample.error is not None:
            cell.failed[key] = sample
        elif refuse_sample(sample, manifest) is None:
            cell.samples[key] = sample
    return cells


def is_measured(source: str, meter: MeterRecord) -> bool:
    """Whether an energy was measured by a sensor, in this run."""
    return meter.measured and source == meter.source


def energy_origin(source: str) -> str:
    """Say in a few words where an energy comes from that no sensor of this run measured."""
    known = {"none": "not measured", REPLAY: "not of this run", MIXED: "of several sources"}
    known["estimate"] = "estimated from CPU time"
    return known.get(source, f"estimated by {source}")


def has_energy(cell: Measured, baseline: Measured) -> bool:
    """Whether two operating points have an energy each, from one and the same source."""
    (source, here), (other, there) = total(cell.windows.values()), total(baseline.windows.values())
    return here is not None and there is not None and source == other


def idle_power_w(cell: Measured, idle: Sequence[WindowRecord], meter: MeterRecord) -> float | None:
    """Return watts with nothing running, by the sensor that measured this operating point; ``None`` without one."""
    source, _ = total(cell.windows.values())
    if not is_measured(source, meter):
        return None
    read = [window for window in idle if window.energy_source == source and window.energy_j is not None]
    return ratio(
        math.fsum(window.energy_j or 0.0 for window in read), math.fsum(window.duration_s or 0.0 for window in read)
    )


def total(windows: Iterable[WindowRecord]) -> tuple[str, float | None]:
    """Return source and joules; no joules when a reading is missing or the sources differ."""
    windows = list(windows)
    sources = {window.energy_source for window in windows}
    source = MIXED if len(sources) > 1 else next(iter(sources), "none")
    readings = [window.energy_j for window in windows if window.energy_j is not None]
    complete = readings and len(readings) == len(windows) and source != MIXED
    return source, math.fsum(readings) if complete else None
