"""The manifest of a run: what ran, on what, from what, gathered before the first sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from harness.contracts import Meter
from harness.contracts.meters import is_measured
from harness.errors import is_out_of_memory
from harness.host import environment
from harness.metering.examine import examine
from harness.metering.sensors import sensors_of_meter
from harness.models.model import LoadedModel
from harness.records import (
    SCHEMA_VERSION,
    FormatChoiceRecord,
    FormatRecord,
    Manifest,
    MeterRecord,
    ModelRecord,
    UnitTimes,
)
from harness.records.machine import MachineRecord
from harness.registry import WEIGHTS_FORMATS
from harness.running.observing import ObservedText
from harness.running.plan import Plan
from harness.running.plugins import code_of_objects, used_plugins
from harness.running.scoring import missing_scores, score_names

__all__ = ["describe_run", "is_out_of_memory", "utc_now"]


def utc_now() -> str:
    """Return the time as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe_run(
    plan: Plan,
    loaded: Sequence[LoadedModel],
    meter: Meter,
    unavailable: dict[str, str],
    block_size: int,
    before: Manifest | None,
    unit_times: Mapping[str, UnitTimes | None],
) -> Manifest:
    """Return the manifest.

    Args:
        plan: what runs.
        loaded: the model in each weights format, the run's own first.
        meter: the meter in use.
        unavailable: why better meters are not.
        block_size: samples per interleaved block.
        before: the manifest of a run to resume, whose measured machine and bandwidth are kept.
        unit_times: by weights format, what strategies and draft rules were told that parts of decoding take.
    """
    own, *others = (
        _in_format(one, plan.config.weights_formats, before, unit_times[one.info.weights_format]) for one in loaded
    )
    info = loaded[0].info
    surroundings = environment.describe()
    surroundings["code"] = {**code_of_objects(point.record for point in plan.points), **surroundings["code"]}
    if before is not None:
        machine, bandwidth, detail = before.machine, before.bandwidth_bytes_per_s, before.bandwidth_detail
    elif plan.config.untimed:
        machine, bandwidth, detail = None, None, {"reason": "the run was not timed"}
    else:
        machine = _examine(plan, meter, unavailable, surroundings)
        bandwidth, detail = machine.bandwidth_bytes_per_s, _bandwidth_detail(machine)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        created=utc_now(),
        config=plan.config.model_dump(mode="json"),
        operating_points=tuple(point.record for point in plan.points),
        model=ModelRecord(
            name=info.name,
            family=info.family,
            weights=info.weights,
            weights_source=loaded[0].weights_source,
            weights_sha256=loaded[0].weights_sha256,
            tokenizer_source=plan.model.tokenizer.source,
            tokenizer_stand_in=plan.model.tokenizer.stand_in,
            end_ids=tuple(sorted(plan.model.tokenizer.eos_token_ids)),
            num_layers=info.num_layers,
            hidden_size=info.hidden_size,
            vocab_size=info.vocab_size,
            exit_points=info.exit_points,
            fingerprint=info.fingerprint,
            exit_head=info.exit_head,
            dtype=info.dtype,
            kv_entry_bytes=info.kv_entry_bytes,
            **dict(own),
            other_formats=tuple(others),
        ),
        tasks=tuple(task.record for task in plan.tasks),
        meter=MeterRecord(
            source=meter.source,
            description=meter.description,
            sensor_period_s=meter.sensor_period_s,
            measured=is_measured(meter),
            unavailable=unavailable,
        ),
        block_size=block_size,
        bandwidth_bytes_per_s=bandwidth,
        bandwidth_detail=detail,
        environment=surroundings,
        machine=machine,
        observed_thresholds=tuple(one.observed for one in plan.config.strategies if isinstance(one, ObservedText)),
    )
    scores = score_names(task.language for task in manifest.tasks)
    return manifest.model_copy(update={"plugins": used_plugins(manifest, scores)})


def _in_format(
    loaded: LoadedModel, asked: Sequence[str], before: Manifest | None, unit_times: UnitTimes | None
) -> FormatRecord:
    """Describe a model in one weights format, and why ``auto`` took it where it did."""
    info, choice = loaded.info, loaded.format_choice
    why = None
    if before is not None:
        why = before.model.stored(info.weights_format).format_choice
    elif "auto" in asked and info.weights_format not in asked:
        why = FormatChoiceRecord(seconds_per_byte=dict(choice.seconds), left_out=dict(choice.left_out))
    return FormatRecord(
        weights_format=info.weights_format,
        weights_accuracy=WEIGHTS_FORMATS.load(info.weights_format).facts.accuracy,
        format_choice=why,
        layer_bytes=info.layer_bytes,
        lm_head_bytes=info.lm_head_bytes,
        kv_projection_bytes=info.kv_projection_bytes,
        shortcut_bytes=info.shortcut_bytes,
        unit_times=unit_times,
    )


def _examine(plan: Plan, meter: Meter, unavailable: dict[str, str], surroundings: dict[str, Any]) -> MachineRecord:
    return examine(
        plan.device,
        plan.config.dtype,
        meter=meter.source,
        meter_description=meter.description,
        meter_measured=is_measured(meter),
        sensors=sensors_of_meter(meter, unavailable, plan.device),
        scores_missing=missing_scores({task.record.language for task in plan.tasks}),
        environment=surroundings,
    )


def _bandwidth_detail(machine: MachineRecord) -> dict[str, Any]:
    if machine.bandwidth_bytes_per_s is None:
        return {"reason": machine.missing["bandwidth"]}
    return {
        "kernel": machine.bandwidth_kernel,
        "buffer_bytes": machine.bandwidth_buffer_bytes,
        "cache_bytes": machine.bandwidth_cache_bytes,
        "limited_by": machine.bandwidth_limited_by,
        "threads": machine.threads,
    }
