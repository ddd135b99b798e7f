"""Computes the scores of a recorded run again, from the texts and references that its samples hold.

Scores of other packages are left as they are recorded, and so are those that need what no record holds: the tests of a
program, or the tokens of a black box's text.
"""

from __future__ import annotations

from collections import defaultdict

from harness.contracts import Completion
from harness.records import SampleRecord, TaskRecord
from harness.registry import SCORES
from harness.running.kept_summaries import kept
from harness.running.scoring import Scores, score_sample
from reports.leaderboard.contradictions import ScoresAgain
from reports.recorded import RecordedRun

__all__ = ["rescored", "scores_of_record"]


def rescored(run: RecordedRun) -> ScoresAgain:
    """Return what became of a run's scores; kept in the user's cache as its summary is."""
    return kept(run.summary.records, ScoresAgain, lambda: _rescored(run))


def scores_of_record(sample: SampleRecord, task: TaskRecord) -> Scores:
    """Return the scores of this project that a finished sample's record decides, by name.

    A black box's tokens are not recorded: what scores otherwise with other tokens is left out.
    """
    found = _scores(sample, task, sample.token_ids)
    if sample.answer is None:
        return found
    other = _scores(sample, task, sample.reference_ids)
    return {name: value for name, value in found.items() if other[name] == value}


def _scores(sample: SampleRecord, task: TaskRecord, token_ids: tuple[int, ...]) -> Scores:
    made = Completion(sample.text, sample.reference, token_ids, sample.reference_ids, task.language, task.protocol)
    found = score_sample(made).items()
    return {name: value for name, value in found if not (SCORES.plugin(name) or isinstance(value, str))}


def _rescored(run: RecordedRun) -> ScoresAgain:
    tasks = {task.name: task for task in run.manifest.tasks}
    finished = [(place, sample) for place, sample in enumerate(run.samples) if sample.error is None]
    recorded: dict[str, set[str]] = defaultdict(set)
    for _, sample in finished:
        recorded[sample.task] |= sample.scores.keys()
    known: dict[tuple[object, ...], Scores] = {}  # repeats and lossless rows say the same again
    again: set[str] = set()
    first: tuple[int, str, float | None, float | None] | None = None
    for place, sample in finished:
        key = sample.task, sample.text, sample.reference, sample.token_ids, sample.reference_ids, sample.answer is None
        if key not in known:
            known[key] = scores_of_record(sample, tasks[sample.task])
        for name in recorded[sample.task] & known[key].keys():
            again.add(name)
            there, here = sample.scores.get(name), known[key][name]
            if first is None and ScoresAgain.differ(there, here):
                first = place, name, there, here
    names = set().union(*recorded.values())
    found = ScoresAgain(again=tuple(sorted(again)), believed=tuple(sorted(names - again)))
    if first is None:
        return found
    place, name, there, here = first
    return found.model_copy(update={"place": place, "score": name, "recorded": there, "computed": here})
