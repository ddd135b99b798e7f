"""The file formats of a run directory: what others may build on, versioned."""

from harness.records.discarded import DiscardedRecord
from harness.records.run import (
    SCHEMA_VERSION,
    FormatChoiceRecord,
    FormatRecord,
    Manifest,
    MeterRecord,
    ModelRecord,
    OperatingPointRecord,
    PluginRecord,
    SampleRecord,
    TaskRecord,
    WindowRecord,
)

__all__ = [
    "SCHEMA_VERSION",
    "DiscardedRecord",
    "FormatChoiceRecord",
    "FormatRecord",
    "Manifest",
    "MeterRecord",
    "ModelRecord",
    "OperatingPointRecord",
    "PluginRecord",
    "SampleRecord",
    "TaskRecord",
    "WindowRecord",
]
