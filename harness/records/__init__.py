"""The file formats of a run directory: what others may build on, versioned."""

from harness.records.discarded import DiscardedRecord
from harness.records.draft_work import DraftWork
from harness.records.run import (
    SCHEMA_VERSION,
    AnswerRecord,
    BlackBoxRecord,
    FormatChoiceRecord,
    FormatRecord,
    Manifest,
    MeterRecord,
    ModelRecord,
    ObservedThreshold,
    OperatingPointRecord,
    PluginRecord,
    SampleRecord,
    TaskRecord,
    WindowRecord,
)
from harness.records.unit_times import DraftTimes, UnitTimes

__all__ = [
    "SCHEMA_VERSION",
    "AnswerRecord",
    "BlackBoxRecord",
    "DiscardedRecord",
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
    "TaskRecord",
    "UnitTimes",
    "WindowRecord",
]
