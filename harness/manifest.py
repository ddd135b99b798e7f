"""The manifest of a run: what ran, on what, from what, gathered before the first sample."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from harness import environment
from harness.contracts import Meter
from harness.errors import OutOfMemoryError
from harness.metering import measure_bandwidth
from harness.models.loading import LoadedModel, load
from harness.plan import Plan
from harness.records import SCHEMA_VERSION, Manifest, MeterRecord, ModelRecord

__all__ = ["describe_run", "is_out_of_memory", "load_model", "utc_now"]


def utc_now() -> str:
    """Return the time as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the CPU or on a GPU."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def load_model(plan: Plan) -> LoadedModel:
    """Load a plan's weights.

    Raises:
        ModelError: they cannot be had.
        OutOfMemoryError: they do not fit.
    """
    try:
        return load(plan.model, device=plan.device, seed=plan.config.seed)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"out of memory loading {plan.model.info.name} in {plan.config.dtype}. "
            "Use --dtype bfloat16 or a smaller --model."
        ) from error


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
        before: the manifest of a run to resume, whose measured bandwidth is kept.
    """
    info = plan.model.info
    bandwidth, detail = _bandwidth(plan) if before is None else (before.bandwidth_bytes_per_s, before.bandwidth_detail)
    return Manifest(
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
            tokenizer_source=plan.codec_source,
            tokenizer_stand_in=plan.codec_source.startswith("stand-in"),
            num_layers=info.num_layers,
            hidden_size=info.hidden_size,
            vocab_size=info.vocab_size,
            exit_points=info.exit_points,
            fingerprint=info.fingerprint,
            exit_head=info.exit_head,
            shortcut_bytes=info.shortcut_bytes,
            dtype=info.dtype,
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
            unavailable=unavailable,
        ),
        block_size=block_size,
        bandwidth_bytes_per_s=bandwidth,
        bandwidth_detail=detail,
        environment=environment.describe(),
    )


def _bandwidth(plan: Plan) -> tuple[float | None, dict[str, Any]]:
    try:
        reading = measure_bandwidth(plan.config.dtype, plan.device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None, {"reason": "no memory left for the measurement"}
    detail = {
        "kernel": reading.kernel,
        "buffer_bytes": reading.buffer_bytes,
        "cache_bytes": reading.cache_bytes,
        "limited_by": reading.limited_by,
        "threads": reading.threads,
    }
    return reading.bytes_per_s, detail
