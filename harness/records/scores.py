"""``scores.json``: the scores of a run's samples, computed again from the texts it recorded (``harness rescore``)."""

from __future__ import annotations

from pydantic import Field

from harness.records.record import Record

__all__ = ["SampleScores", "ScoresRecord"]


class SampleScores(Record):
    """Stands in place of the same fields of a :class:`harness.records.SampleRecord`.

    Attributes:
        scores: per-sample scores.
        score_failures: score → why it has no value, for those of plug-ins that failed on this completion.
    """

    scores: dict[str, float | None] = Field(default_factory=dict)
    score_failures: dict[str, str] = Field(default_factory=dict)


class ScoresRecord(Record):
    """Scores that are newer than the samples beside them; nothing that was measured is touched.

    Attributes:
        schema_version, run: as in ``manifest.json``.
        records: seal of the last window when they were computed; what was measured later keeps its own.
        computed: when, UTC.
        names: which scores were computed then.
        versions: package → version, of what computed them.
        samples: of each line of ``samples.jsonl`` up to there.
    """

    schema_version: int
    run: str
    records: str
    computed: str
    names: tuple[str, ...]
    versions: dict[str, str]
    samples: tuple[SampleScores, ...]
