"""What a run must be to be published and ranked: ``harness submit`` refuses another, the leaderboard marks it.

Judged from the records alone, which must not contradict each other (:mod:`reports.leaderboard.contradictions`). What
only a run directory or its packed copy can show, ``harness submit`` adds.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from harness.appearance.visible_text import shell_word
from harness.metering.contamination import CONTAMINATED
from reports.leaderboard.contradictions import ScoresAgain, in_records, in_scores, in_times, in_tokens, in_work
from reports.recorded import RecordedRun
from reports.summary.degenerate import degenerate

__all__ = ["Check", "Rescore", "conditions"]

Rescore = Callable[[RecordedRun], ScoresAgain]
"""Computes a run's scores again, from the texts that it holds."""

REMEASURE = "The records were changed, or are damaged: run again."

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Check:
    """One condition of publication.

    Attributes:
        name: what was looked at.
        found: what it is like, a phrase without its period.
        remedy: what to do where the condition does not hold, a sentence; empty where it does.
    """

    name: str
    found: str
    remedy: str = ""

    @property
    def passed(self) -> bool:
        """Whether the condition holds."""
        return not self.remedy

    @property
    def detail(self) -> str:
        """What was found and, where the condition does not hold, the remedy."""
        return f"{self.found}. {self.remedy}" if self.remedy else self.found


def conditions(run: RecordedRun, rescore: Rescore | None = None) -> tuple[Check, ...]:
    """Return every condition that a run's records can show, in order.

    Args:
        run: as read.
        rescore: ``None`` believes its scores.
    """
    return (
        _finished(run),
        _samples(run),
        _full_depth(run),
        _weights(run),
        _artefacts(run),
        _data(run),
        _windows(run),
        _agree("records", in_records(run), "none that cannot be true", REMEASURE),
        _agree("work", in_work(run), "tokens, samples and layers are as many as can be", REMEASURE),
        _agree("times", in_times(run), "requests fill their windows" if run.manifest.timed else "none", REMEASURE),
        _agree("tokens", in_tokens(run), "one prompt, one first token; the same tokens, the same text", REMEASURE),
        _scores(run, rescore),
    )


def _agree(name: str, contradiction: str, otherwise: str, remedy: str) -> Check:
    return Check(name, contradiction, remedy) if contradiction else Check(name, otherwise)


def _scores(run: RecordedRun, rescore: Rescore | None) -> Check:
    if rescore is None:
        return Check("scores", "as recorded; none was computed again")
    found = rescore(run)
    remedy = f"Compute its scores anew with `harness rescore {shell_word(run.directory)}`, or run again."
    return _agree("scores", in_scores(run, found), found.told, remedy)


def _finished(run: RecordedRun) -> Check:
    if run.state:
        return Check("finished", run.state, run.remedy)
    return Check("finished", f"all {run.windows_expected} windows")


def _samples(run: RecordedRun) -> Check:
    empty = [f"{row.operating_point} on {row.task}" for row in run.summary.rows if not row.n]
    failed = sum(row.errors for row in run.summary.rows)
    if empty:
        return Check("samples", f"no sample of {empty[0]} was finished", "Run again without it.")
    return Check("samples", f"{failed} failed, which the results say" if failed else "none failed")


def _full_depth(run: RecordedRun) -> Check:
    wrong = degenerate(run.manifest, run.cells.values())
    if wrong is not None:
        return Check("full depth", wrong, "Check the weights, and run again with --dtype float32 if they overflow.")
    return Check("full depth", "neither failed throughout nor repeats one token")


def _weights(run: RecordedRun) -> Check:
    model = run.manifest.model
    if model.weights == "random" and "seed" in run.manifest.config:
        return Check("weights", f"random, seed {run.manifest.config['seed']}")
    if _SHA256.fullmatch(model.weights_sha256 or ""):
        return Check("weights", f"SHA-256 {str(model.weights_sha256)[:12]}…")
    return Check("weights", "the manifest has no SHA-256 of the weights", "Run again with this version.")


def _artefacts(run: RecordedRun) -> Check:
    hashes = {name: digest for point in run.manifest.operating_points for name, digest in point.artefacts.items()}
    wrong = [name for name, digest in hashes.items() if not _SHA256.fullmatch(digest)]
    if wrong:
        return Check("artefacts", f"{wrong[0]} has no SHA-256", "Train it again with `harness train`.")
    return Check("artefacts", f"{len(hashes)} with SHA-256" if hashes else "none used")


def _data(run: RecordedRun) -> Check:
    wrong = [task.name for task in run.manifest.tasks if not _SHA256.fullmatch(task.fingerprint)]
    if wrong:
        return Check("data", f"{wrong[0]} has no fingerprint of its rows", "Run again with this version.")
    return Check("data", ", ".join(f"{task.name} {task.fingerprint[:12]}…" for task in run.manifest.tasks))


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
