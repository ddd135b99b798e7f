"""The file formats of a run directory: what others may build on, versioned.

``manifest.json`` (:class:`Manifest`), ``samples.jsonl`` (one :class:`SampleRecord` a line), ``windows.jsonl`` (one
:class:`WindowRecord` a line), ``scores.json`` (:class:`ScoresRecord`, after ``harness rescore``) and ``summary.json``
(:class:`harness.records.summary.Summary`, with a version of its own). Readers ignore fields they do not know; a change
that would mislead an older reader raises ``SCHEMA_VERSION``.
``None`` always means "not measured" or "not defined", never zero.
"""

from harness.records.machine import DraftTimes, UnitTimes
from harness.records.manifest import (
    SCHEMA_VERSION,
    BlackBoxRecord,
    FormatChoiceRecord,
    FormatRecord,
    Manifest,
    MeterRecord,
    ModelRecord,
    ObservedThreshold,
    OperatingPointRecord,
    PluginRecord,
    TaskRecord,
)
from harness.records.sample import AnswerRecord, SampleRecord, SampleScores, ScoresRecord, WindowRecord
from harness.records.work import Discarded, DraftWork, Work

__all__ = [
    "SCHEMA_VERSION",
    "AnswerRecord",
    "BlackBoxRecord",
    "Discarded",
    "DraftTimes",
    "DraftWork",
    "FormatChoiceRecord",
    "FormatRecord",
    "Manifest",
    "MeterRecord",
    "ModelRecord",
    "ObservedThreshold",
    "OperatingPointRecord",
    "PluginRecord",
    "SampleRecord",
    "SampleScores",
    "ScoresRecord",
    "TaskRecord",
    "UnitTimes",
    "WindowRecord",
    "Work",
]
