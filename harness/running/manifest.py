"""The manifest of a run: what ran, on what, from what, gathered before the first sample."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from harness.contracts import Meter
from harness.contracts.meters import is_measured
from harness.errors import is_out_of_memory
from harness.host import environment
from harness.metering.examine import examine
from harness.metering.sensors import sensors_of_meter
from harness.models.model import LoadedModel
from harness.records import SCHEMA_VERSION, FormatChoiceRecord, Manifest, MeterRecord, ModelRecord
from harness.records.machine import MachineRecord
from harness.registry import WEIGHTS_FORMATS
from harness.running.plan import Plan
from harness.running.plugins import used_plugins
from harness.running.scoring import missing_scores, score_names

__all__ = ["describe_run", "is_out_of_memory", "utc_now"]


def utc_now() -> str:
    """Return the time as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe_run(
    plan: Plan,
    loaded: LoadedModel,
    meter: Meter,
    unavailable: dict[str, str],
    block_size: int,
    before: Manifest | None,
) -> Manifest:
    """Return the manifest.

    Args:
        plan: what runs.
        loaded: the weights.
        meter: the meter in use.
        unavailable: why better meters are not.
        block_size: samples per interleaved block.
        before: the manifest of a run to resume, whose measured machine and bandwidth are kept.
    """
    info = loaded.info
    surroundings = environment.describe()
    machine = before.machine if before is not None else _examine(plan, meter, unavailable, surroundings)
    if before is not None:
        bandwidth, detail = before.bandwidth_bytes_per_s, before.bandwidth_detail
    else:
        assert machine is not None
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
            weights_source=loaded.weights_source,
            weights_sha256=loaded.weights_sha256,
            tokenizer_source=plan.model.tokenizer.source,
            tokenizer_stand_in=plan.model.tokenizer.stand_in,
            num_layers=info.num_layers,
            hidden_size=info.hidden_size,
            vocab_size=info.vocab_size,
            exit_points=info.exit_points,
            fingerprint=info.fingerprint,
            exit_head=info.exit_head,
            shortcut_bytes=info.shortcut_bytes,
            dtype=info.dtype,
            weights_format=info.weights_format,
            weights_accuracy=WEIGHTS_FORMATS.load(info.weights_format).facts.accuracy,
            format_choice=_choice(loaded, before),
            layer_bytes=info.layer_bytes,
            lm_head_bytes=info.lm_head_bytes,
            kv_projection_bytes=info.kv_projection_bytes,
            kv_entry_bytes=info.kv_entry_bytes,
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
    )
    scores = score_names(task.language for task in manifest.tasks)
    return manifest.model_copy(update={"plugins": used_plugins(manifest, scores)})


def _choice(loaded: LoadedModel, before: Manifest | None) -> FormatChoiceRecord | None:
    """Why ``auto`` took the weights format; ``None`` where one was asked for."""
    if before is not None:
        return before.model.format_choice
    if loaded.info.asked.weights_format != "auto":
        return None
    choice = loaded.format_choice
    return FormatChoiceRecord(seconds_per_byte=dict(choice.seconds), left_out=dict(choice.left_out))


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
