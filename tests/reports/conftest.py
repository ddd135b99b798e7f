"""Builds the records of tiny runs whose summaries can be worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness.records import (
    SCHEMA_VERSION,
    FormatRecord,
    Manifest,
    MeterRecord,
    ModelRecord,
    OperatingPointRecord,
    SampleRecord,
    TaskRecord,
    WindowRecord,
)
from harness.records.summary import Summary, SummaryRow
from harness.registry import WEIGHTS_FORMATS
from reports.recorded import RecordedRun
from reports.summary.summarise import summarise

LAYERS = 10


def no_corpus_scores(language: str, texts: Any, references: Any) -> dict[str, float | None]:
    return {}


@dataclass
class RunBuilder:
    """A run with a 10-layer model whose layer reads 100 bytes and whose LM head reads 200.

    In weights formats after the first of ``formats`` it is a quarter of that; they end the names of operating points.
    """

    points: tuple[str, ...] = ("full", "fixed:layer=5")
    tasks: tuple[str, ...] = ("py150",)
    kv: str = "propagate"
    batch_size: int = 1
    weights: str = "pretrained"
    tokenizer_source: str = "the model's own"
    source_kind: str = "path"
    source: str = "path: shared/data"
    bad_rows: int = 0
    meter: MeterRecord | None = None
    bandwidth: float | None = None
    probes: tuple[str, ...] = ()
    policies: dict[str, str] = field(default_factory=dict)
    formats: tuple[str, ...] = ()
    windows: list[WindowRecord] = field(default_factory=list)
    samples: list[SampleRecord] = field(default_factory=list)

    def window(
        self,
        point: str,
        *samples: dict[str, Any],
        duration: float = 1.0,
        block: int = 0,
        repeat: int = 0,
        task: str = "py150",
        **more: Any,
    ) -> None:
        """Add a window and its samples; a sample is what differs from :meth:`_sample`'s defaults."""
        window = len(self.windows)
        records = [
            self._sample(window, point, task, repeat, {"sample_id": f"{block}-{index}", **sample})
            for index, sample in enumerate(samples)
        ]
        self.samples.extend(records)
        self.windows.append(
            WindowRecord(
                window=window,
                task=task,
                block=block,
                repeat=repeat,
                operating_point=point,
                samples=len(records),
                tokens=sum(len(record.token_ids) for record in records),
                started="2025-01-01T00:00:00Z",
                duration_s=duration,
                cpu_time_s=duration,
                **more,
            )
        )

    def idle(self, *, energy_j: float | None, duration: float, **more: Any) -> None:
        """Add a window in which nothing ran."""
        self.window("", duration=duration, task="", energy_j=energy_j, idle=True, **more)

    def _sample(self, window: int, point: str, task: str, repeat: int, values: dict[str, Any]) -> SampleRecord:
        defaults: dict[str, Any] = {
            "window": window, "operating_point": point, "task": task, "repeat": repeat, "prompt_ids": (7,) * 4,
        }  # fmt: skip
        if values.get("error") is None:
            tokens = values.get("token_ids", (1, 2, 3))
            strategy, _, lossless = point.partition("@lossless")
            rule = strategy.partition(":")[0].partition("@")[0] not in ("full", "endpoint") and not lossless
            layers = values.get("exit_layers", (LAYERS, *(LAYERS - rule,) * (len(tokens) - 1)))
            decoded = layers if self.kv == "none" else layers[1:]
            defaults |= {
                "token_ids": tokens,
                "exit_layers": layers,
                "token_times_s": tuple(0.1 * (index + 1) for index in range(len(tokens))),
                "latency_s": 0.1 * len(tokens),
                "ttft_s": 0.1,
                "layers_executed": sum(decoded),
                "lm_head_evaluations": len(decoded),
                "text": "x",
                "reference": "x",
                "drafts": int("@lossless" in point),
            }
        return SampleRecord.model_validate(defaults | values)

    @property
    def manifest(self) -> Manifest:
        return Manifest.model_validate(
            {
                "schema_version": SCHEMA_VERSION,
                "created": "2025-01-01T00:00:00Z",
                "config": {"kv": self.kv, "batch_size": self.batch_size},
                "operating_points": [self._record(_point(name)) for name in self.points],
                "model": ModelRecord(
                    name="tiny",
                    family="llama",
                    weights=self.weights,  # type: ignore[arg-type]
                    weights_source="made up",
                    weights_sha256=None,
                    tokenizer_source=self.tokenizer_source,
                    tokenizer_stand_in=self.tokenizer_source.startswith("stand-in"),
                    num_layers=LAYERS,
                    hidden_size=8,
                    vocab_size=16,
                    exit_points=(2, 5, 8),
                    dtype="float32",
                    layer_bytes=100,
                    lm_head_bytes=200,
                    kv_projection_bytes=10,
                    kv_entry_bytes=1,
                    shortcut_bytes=30,
                    weights_format=self.formats[0] if self.formats else None,
                    weights_accuracy=WEIGHTS_FORMATS.load(self.formats[0]).facts.accuracy if self.formats else None,
                    other_formats=tuple(
                        FormatRecord(
                            weights_format=name,
                            weights_accuracy=WEIGHTS_FORMATS.load(name).facts.accuracy,
                            layer_bytes=25,
                            lm_head_bytes=50,
                            kv_projection_bytes=2,
                            shortcut_bytes=8,
                        )
                        for name in self.formats[1:]
                    ),
                ),
                "tasks": [
                    TaskRecord(
                        name=name,
                        language="python",
                        protocol="green-code",
                        source_kind=self.source_kind,  # type: ignore[arg-type]
                        source=self.source,
                        fingerprint="0",
                        samples=1,
                        bad_rows=self.bad_rows,
                    )
                    for name in self.tasks
                ],
                "meter": self.meter or self._meter(),
                "block_size": 1,
                "bandwidth_bytes_per_s": self.bandwidth,
                "environment": {"cpu": "Test CPU", "threads": 2, "os": "Linux"},
            }
        )

    def _meter(self) -> MeterRecord:
        """The meter that windows tell of; one that is named like a sensor is a sensor."""
        sources = [window.energy_source for window in self.windows if window.energy_source != "none"]
        source = sources[0] if sources else "none"
        measured = source in ("nvml", "rapl", "soc")
        return MeterRecord(source=source, description="made up", sensor_period_s=None, measured=measured)

    def _record(self, point: OperatingPointRecord) -> OperatingPointRecord:
        kv = self.policies.get(point.name, point.kv)
        stored = point.name.removesuffix(" (never exits)").rpartition("@")[2]
        stored, kv = (stored, None if kv == stored else kv) if stored in self.formats else ("", kv)
        changes = {"never_exits": point.name in self.probes, "kv": kv, "weights_format": stored}
        return point.model_copy(update=changes)

    def summary(self, score_corpus: Any = no_corpus_scores, **options: Any) -> Summary:
        return summarise(self.manifest, self.windows, self.samples, score_corpus, **options)

    def recorded(self, directory: str = "runs/one") -> RecordedRun:
        return RecordedRun(Path(directory), self.manifest, tuple(self.windows), tuple(self.samples), self.summary())

    def row(self, point: str, task: str = "py150", score_corpus: Any = no_corpus_scores) -> SummaryRow:
        rows = self.summary(score_corpus).rows
        return next(row for row in rows if row.operating_point == point and row.task == task)


def _point(name: str) -> OperatingPointRecord:
    written, *said = name.removesuffix(" (never exits)").split("@")
    decode = next((one for one in said if one.startswith("lossless")), "lossy")
    length = next((one for one in said if one.startswith("draft=")), "draft=16")
    stop = next((one for one in said if one.startswith("stop=")), "")
    keep = next((one for one in said if one.startswith("keep=")), "")
    shallow = next((one for one in said if one.startswith("prompt=")), "")
    ahead = next((one for one in said if one.startswith("prefetch=")), "")
    kv = next((one for one in said if one not in (decode, length, stop, keep, shallow, ahead)), None)
    strategy, _, rest = written.partition(":")
    options = dict(part.split("=") for part in rest.split(":")) if rest else {}
    return OperatingPointRecord(
        name=name,
        strategy=strategy,
        options=options,
        exit_points=(2, 5, 8),
        rehearsed=strategy == "oracle",
        kv=kv,
        decode=decode,
        stop=stop.removeprefix("stop="),
        keep=keep.removeprefix("keep="),
        prompt_exit=shallow.removeprefix("prompt="),
        prefetch=ahead.removeprefix("prefetch="),
        draft_max=None if decode == "lossy" else int(length.removeprefix("draft=")),
        draft_sources=tuple(decode.split("+")[1:]),
    )


@pytest.fixture
def build() -> type[RunBuilder]:
    """The builder class: a test makes its own run."""
    return RunBuilder
