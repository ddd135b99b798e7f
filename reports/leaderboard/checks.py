"""Conditions of publication and ranking: ``harness submit`` refuses a run that fails one, the leaderboard marks it.

Judged from the records alone, which must not contradict each other or say what cannot be: what was written by hand
shows there. Each ``_in_…`` returns the first such place in words, and nothing where there is none.
:data:`COMPUTED_AGAIN` says what is held against what, :data:`CANNOT_BE_CHECKED` what has to be believed.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

from harness.appearance.visible_text import shell_word
from harness.metering.contamination import CONTAMINATED
from harness.records import SampleRecord
from harness.records.record import Count, Record
from reports.recorded import RecordedRun
from reports.summary.admission import SUPERSEDED, refuse_sample, refuse_window
from reports.summary.measured import Measured
from reports.summary.notes import degenerate

COMPUTED_AGAIN = (
    "tables and intervals from the records; scores from texts, references and tokens; counts of tokens, samples and "
    "layers; times of requests within those of their windows; the tokens of lossless rows against full depth's"
)
CANNOT_BE_CHECKED = (
    "that times and energy are what clocks and sensors read; that these weights made the tokens, and that the texts "
    "are what the tokens spell; that prompts and references are the task's rows; what the manifest says of machine, "
    "packages and settings; scores of other packages, those that run tests, and those of a server's tokens"
)

_CLOSE = 1e-6  # how far two times (seconds) or scores may lie apart that are one, and as a share of them
_OVERLAP, _OVERLAP_S = 0.01, 1e-3
"""How far requests may reach beyond their window, as a share of it and in seconds: clocks are read in turn."""
_UNACCOUNTED, _UNACCOUNTED_S = 0.5, 0.25
"""How much of a window need not be its requests', as a share of it (0 to 9 % in honest runs) and in seconds besides."""

REMEASURE = "The records were changed, or are damaged: run again."
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ScoresAgain(Record):
    """The outcome of computing a run's recorded scores again."""

    again: tuple[str, ...] = ()  # names of scores that were
    believed: tuple[str, ...] = ()  # of those that cannot be
    place: Count | None = None  # of the first sample of the run that has another score than its record
    score: str = ""  # which, and both values
    recorded: float | None = None
    computed: float | None = None

    @property
    def told(self) -> str:
        """Which scores were computed again, and which are as recorded."""
        parts = [f"computed again: {', '.join(self.again)}"] if self.again else []
        parts += [f"as recorded: {', '.join(self.believed)}"] if self.believed else []
        return "; ".join(parts) or "none recorded"

    @staticmethod
    def differ(recorded: float | None, computed: float | None) -> bool:
        """Whether two values of a score are two."""
        if recorded is None or computed is None:
            return recorded is not computed
        return not math.isclose(recorded, computed, rel_tol=_CLOSE, abs_tol=_CLOSE)


Rescore = Callable[[RecordedRun], ScoresAgain]
"""Computes a run's scores again, from the texts that it holds."""


@dataclass(frozen=True, slots=True)
class Check:
    """One condition of publication, what was found (a phrase), and what to do where it does not hold (a sentence)."""

    name: str
    found: str
    remedy: str = ""

    @property
    def passed(self) -> bool:
        """Whether the condition holds."""
        return not self.remedy

    @property
    def detail(self) -> str:
        """The finding and, where the condition does not hold, the remedy."""
        return f"{self.found}. {self.remedy}" if self.remedy else self.found


def publication_checks(run: RecordedRun, rescore: Rescore | None = None) -> tuple[Check, ...]:
    """Return every condition that a run's records can show, in order; without ``rescore`` its scores are believed."""
    timed, cells = run.manifest.timed, run.cells.values()
    work = next((found for cell in cells for found in _work_of(run, cell)), "")
    times = next((found for cell in cells if timed for found in _times_of(cell)), "")
    checks = [
        *_facts(run),
        _agree("records", _in_records(run), "none that cannot be true", REMEASURE),
        _agree("work", work, "tokens, samples and layers are as many as can be", REMEASURE),
        _agree("times", times, "requests fill their windows" if timed else "none", REMEASURE),
        _agree("tokens", _in_tokens(run), "one prompt, one first token; the same tokens, the same text", REMEASURE),
    ]
    if rescore is None:
        return (*checks, Check("scores", "as recorded; none was computed again"))
    again, wrong = rescore(run), ""
    if again.place is not None:
        recorded = "not recorded" if again.recorded is None else f"{again.recorded:g}"
        computed = "not defined" if again.computed is None else f"{again.computed:g}"
        named = _named(run.samples[again.place])
        wrong = f"{again.score} of {named} is {recorded} and, computed again, {computed}"
    remedy = f"Compute its scores anew with `harness rescore {shell_word(run.directory)}`, or run again."
    return (*checks, _agree("scores", wrong, again.told, remedy))


def _agree(name: str, contradiction: str, otherwise: str, remedy: str) -> Check:
    return Check(name, contradiction, remedy) if contradiction else Check(name, otherwise)


def _facts(run: RecordedRun) -> Iterator[Check]:
    manifest = run.manifest
    yield _agree("finished", run.state, f"all {run.windows_expected} windows", run.remedy)
    empty = [f"{row.operating_point} on {row.task}" for row in run.summary.rows if not row.n]
    failed = sum(row.errors for row in run.summary.rows)
    lost = f"no sample of {empty[0]} was finished" if empty else ""
    found = f"{failed} failed, which the results say" if failed else "none failed"
    yield _agree("samples", lost, found, "Run again without it.")
    wrong = degenerate(manifest, run.cells.values()) or ""
    remedy = "Check the weights, and run again with --dtype float32 if they overflow."
    yield _agree("full depth", wrong, "neither failed throughout nor repeats one token", remedy)
    again, digest = "Run again with this version.", manifest.model.weights_sha256 or ""
    if manifest.model.weights == "random" and "seed" in manifest.config:
        yield Check("weights", f"random, seed {manifest.config['seed']}")
    else:
        lost = "" if _SHA256.fullmatch(digest) else "the manifest has no SHA-256 of the weights"
        yield _agree("weights", lost, f"SHA-256 {digest[:12]}…", again)
    hashes = {name: digest for point in manifest.operating_points for name, digest in point.artefacts.items()}
    bare = next((f"{name} has no SHA-256" for name, digest in hashes.items() if not _SHA256.fullmatch(digest)), "")
    found = f"{len(hashes)} with SHA-256" if hashes else "none used"
    yield _agree("artefacts", bare, found, "Train it again with `harness train`.")
    bare = next((one.name for one in manifest.tasks if not _SHA256.fullmatch(one.fingerprint)), "")
    found = ", ".join(f"{task.name} {task.fingerprint[:12]}…" for task in manifest.tasks)
    yield _agree("data", f"{bare} has no fingerprint of its rows" if bare else "", found, again)
    yield _windows(run)


def _windows(run: RecordedRun) -> Check:
    if not run.manifest.timed:
        return Check("windows", "the run was not timed", "Run again without --untimed.")
    counted = [window for cell in run.cells.values() for window in cell.windows.values()]
    flagged = [window for window in counted if CONTAMINATED & set(window.flags)]
    if flagged:
        causes = ", ".join(sorted({flag for window in flagged for flag in window.flags} & CONTAMINATED))
        found = f"{len(flagged)} of {len(counted)} windows that count are contaminated ({causes})"
        return Check("windows", found, "Free the machine and run again with --strict.")
    observed = any(window.foreign_cpu_s is not None for window in counted)
    unknown = "" if observed else "; what else ran could not be observed on this machine"
    return Check("windows", f"none of {len(counted)} is flagged as contaminated{unknown}")


def _in_records(run: RecordedRun) -> str:
    """Name the first window or sample that cannot be true, or is not of the window that commits it."""
    owners = {window.window: window for window in run.windows}
    for window in run.windows:
        why = None if window.warmup or window.idle else refuse_window(window, run.manifest)
        if why not in (None, SUPERSEDED):
            return f"window {window.window} of {window.operating_point} on {window.task} does not count: {why}"
    for sample in run.samples:
        owner = owners[sample.window]
        theirs = owner.task, owner.operating_point, owner.repeat
        if (sample.task, sample.operating_point, sample.repeat) != theirs:
            return f"{_named(sample)} is of another task, operating point or repeat than its window"
        if sample.error is None and not owner.superseded and (why := refuse_sample(sample, run.manifest)):
            return f"{_named(sample)} does not count: {why}"
    return ""


def _in_tokens(run: RecordedRun) -> str:
    """Name the first completion that cannot be of this prompt and these tokens.

    With a cache the first token comes from the pass over the whole prompt, which is the same for every operating point
    of a weights format that reads it as deep. Later tokens of lossless rows may differ by near-ties, where products of
    several rows round otherwise than those of one; such rows do not rank as lossless
    (:func:`reports.leaderboard.ranking.is_exact`).
    """
    first, spelled, given = (dict[tuple[object, ...], SampleRecord]() for _ in range(3))
    for cell in run.cells.values():
        for sample in cell.samples.values():
            key = sample.task, sample.sample_id
            other = given.setdefault(key, sample)
            asked, theirs = ((one.prompt_ids, one.reference, one.reference_ids) for one in (sample, other))
            if asked != theirs:
                return f"{_named(sample)} has another prompt or reference than {_named(other)}"
            if sample.answer is not None:
                continue
            if cell.conditions.cached and not sample.prompt_reused:  # what requests left may round otherwise
                work = cell.conditions.weights_format, cell.conditions.prompt_exit
                other = first.setdefault((*key, sample.repeat, *work), sample)
                if sample.token_ids[0] != other.token_ids[0]:
                    return (
                        f"the first token of {_named(sample)} is {sample.token_ids[0]} and that of {_named(other)} "
                        f"{other.token_ids[0]}, though both are full depth's of one prompt"
                    )
            other = spelled.setdefault((*key, sample.token_ids, sample.finish_reason == "eos"), sample)
            if sample.text != other.text:
                return f"{_named(sample)} has the tokens of {_named(other)} and another text"
    return ""


def _named(sample: SampleRecord) -> str:
    return f"sample {sample.sample_id} of {sample.operating_point} on {sample.task} (window {sample.window})"


def _work_of(run: RecordedRun, cell: Measured) -> Iterator[str]:
    """Yield what cannot be of an operating point on a task."""
    where = f"{cell.point.name} on {cell.task.name}"
    twice = Counter((window.block, window.repeat) for window in cell.windows.values()).most_common(1)
    if twice and twice[0][1] > 1:
        yield f"{where} has {twice[0][1]} windows that count of block {twice[0][0][0]}, repeat {twice[0][0][1]}"
    if not run.state:
        per_repeat = Counter(repeat for _, repeat in (*cell.samples, *cell.failed))
        wanted = cell.task.samples + cell.task.bad_rows
        for repeat, count in per_repeat.items():
            if count < wanted:
                yield f"{where} has {count} of {wanted} samples in repeat {repeat}"
    failed = Counter(sample.window for sample in cell.failed.values())
    for number, window in cell.windows.items():
        if window.failed != failed[number]:
            yield f"window {number} of {where} counts {window.failed} failed samples and holds {failed[number]}"
        made = [
            len(sample.token_ids) if sample.answer is None else sample.answer.tokens
            for sample in cell.whole.get(number, ())
        ]
        known = [count for count in made if count is not None]
        if made and window.tokens != (sum(known) if len(known) == len(made) else None):
            yield f"window {number} of {where} counts {window.tokens} tokens and its samples {sum(known)}"
    for sample in cell.samples.values():
        if sample.answer is None:
            yield from _work_of_sample(run, cell, sample)


def _work_of_sample(run: RecordedRun, cell: Measured, sample: SampleRecord) -> Iterator[str]:
    layers, point = run.manifest.model.num_layers, cell.point
    if strange := set(sample.exit_layers) - {*point.exit_points, layers}:
        yield f"{_named(sample)} left after layer {min(strange)}, which is no exit point of it"
    if cell.conditions.cached and sample.exit_layers[0] != layers:
        yield f"the first token of {_named(sample)} left after layer {sample.exit_layers[0]}: it is the prompt's"
    decoded = cell.decoded_layers(sample)
    more = (sample.finish_reason == "strategy") + (0 if point.draft_max is None else point.draft_max + 1)
    least, most = sum(decoded), layers * (len(decoded) + more) + sample.layers_discarded
    if point.draft_max is not None:  # a draft rule may run layers again, for all places of a draft each time
        most = max(most, sample.layers_read * (point.draft_max + 1))
    if not least <= sample.layers_executed <= most:
        yield (
            f"{_named(sample)} counts {sample.layers_executed} layers for {len(decoded)} tokens, which take {least} to "
            f"{most}"
        )
    if sample.layers_read > sample.layers_executed:
        yield f"{_named(sample)} read {sample.layers_read} layers and executed {sample.layers_executed}"
    read, new = sample.prompt_layers + sample.prompt_layers_skipped, len(sample.prompt_ids) - sample.prompt_reused
    if read not in (0, layers * new):
        yield f"{_named(sample)} counts {read} layers for {new} tokens of its prompt, which have {layers * new}"


def _times_of(cell: Measured) -> Iterator[str]:
    """Yield what cannot be of an operating point on a task."""
    where = f"{cell.point.name} on {cell.task.name}"
    for sample in cell.samples.values():
        if sample.token_times_s:
            waited = sample.queue_s or 0.0
            for name, told, made in (
                ("first token", sample.ttft_s, sample.token_times_s[0]),
                ("latency", sample.latency_s, sample.token_times_s[-1]),
            ):
                if told is None or not math.isclose(told, waited + made, rel_tol=_CLOSE, abs_tol=_CLOSE):
                    yield f"{_named(sample)} has a {name} of {told} s where its tokens say {waited + made:g} s"
    shares: dict[int, float] = {}
    for number, samples in cell.whole.items():
        window, size = cell.windows[number], cell.conditions.batch_size
        assert window.duration_s is not None
        if all(sample.arrival_s is not None for sample in samples):
            busy = max((sample.arrival_s or 0.0) + (sample.latency_s or 0.0) for sample in samples)
        else:  # requests of a batch last together
            batches = (samples[start : start + size] for start in range(0, len(samples), size))
            busy = math.fsum(max(sample.latency_s or 0.0 for sample in batch) for batch in batches)
            busy += math.fsum((sample.overtaken_s or 0.0) + (sample.prefetch_s or 0.0) for sample in samples)
        both = f"window {number} of {where} took {window.duration_s:g} s and its requests {busy:g} s"
        if busy > window.duration_s * (1 + _OVERLAP) + _OVERLAP_S:
            yield both
        if window.duration_s * (1 - _UNACCOUNTED) > busy + _UNACCOUNTED_S:
            yield both
        shares[number] = busy / window.duration_s
    if shares and median(shares.values()) < 1 - _UNACCOUNTED:
        worst = min(shares, key=shares.__getitem__)
        yield (
            f"most windows of {where} are more than {1 / (1 - _UNACCOUNTED):g} times as long as their requests, window "
            f"{worst} {1 / shares[worst] if shares[worst] else math.inf:.3g} times"
        )
