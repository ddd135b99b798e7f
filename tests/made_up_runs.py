"""Runs of made-up records, of any size: texts are lines of Python's standard library, no two operating points alike."""

from __future__ import annotations

import random
from pathlib import Path

from harness.contracts import Completion
from harness.records import (
    SCHEMA_VERSION,
    Manifest,
    MeterRecord,
    ModelRecord,
    OperatingPointRecord,
    SampleRecord,
    TaskRecord,
    WindowRecord,
)
from harness.running.reading import read_run
from harness.running.scoring import score_sample
from harness.store.committed import sealed_records
from harness.store.record_files import write_document
from harness.store.run_directory import SUMMARY

__all__ = ["Run", "made_up_run", "write_runs"]

TOKENS, LAYERS, PROMPT = 15, 30, 400

Run = tuple[Manifest, list[WindowRecord], list[SampleRecord]]


def write_runs(folder: Path, count: int, samples: int = 16, points: int = 11) -> None:
    """Write so many different runs, by default each as large as the demo's, with one run's summary in each."""
    manifest, windows, records = made_up_run(samples, points)
    summary = None
    for number in range(count):
        path = folder / f"{number:04d}"
        path.mkdir(parents=True)
        one = manifest.model_copy(update={"run": f"{number:016x}", "created": f"2026-01-01T00:00:00.{number:06d}"})
        sealed = sealed_records(one, windows, records)
        for name, content in sealed.files.items():
            (path / name).write_bytes(content)
        summary = summary or read_run(path).summary
        write_document(path / SUMMARY, summary.model_copy(update={"records": sealed.seal}))


def made_up_run(samples: int, points: int) -> Run:
    """Return the records of a run of one task, a sample in each window."""
    chance = random.Random(0)
    source = Path(random.__file__).parent
    files = [source / name for name in ("argparse.py", "ast.py", "typing.py", "tarfile.py", "inspect.py")]
    lines = [line.strip() for file in files for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    references = ["\n".join(chance.sample(lines, 2)) for _ in range(samples)]
    names = ["full", *(f"confidence:threshold={index / points}" for index in range(1, points))]
    windows: list[WindowRecord] = []
    records: list[SampleRecord] = []
    for block, reference in enumerate(references):
        wanted = tuple(chance.choices(range(50), k=TOKENS))
        for name in names:
            duration = chance.uniform(0.9, 1.1)
            text = reference[: len(reference) // 2] + chance.choice(lines)
            times = tuple(duration * (index + 1) / TOKENS for index in range(TOKENS))
            tokens, windowed = (block % 50, *chance.choices(range(50), k=TOKENS - 1)), len(windows)
            layers = (LAYERS, *chance.choices((14, 22, 30), k=TOKENS - 1))
            windows.append(
                WindowRecord(
                    window=windowed, task="py150", block=block, repeat=0, operating_point=name, samples=1,
                    tokens=TOKENS, started="", duration_s=duration, cpu_time_s=duration, energy_j=20 * duration,
                    energy_source="rapl",
                )
            )  # fmt: skip
            records.append(
                SampleRecord(
                    window=windowed, operating_point=name, task="py150", sample_id=str(block), prompt_ids=(1,) * PROMPT,
                    token_ids=tokens, token_texts=tuple(map(str, tokens)), reference_ids=wanted,
                    exit_layers=layers,
                    token_times_s=times, text=text, reference=reference, latency_s=times[-1], ttft_s=times[0],
                    scores=score_sample(Completion(text, reference, tokens, wanted, "python")),
                    lm_head_evaluations=20, layers_executed=sum(layers[1:]),
                )
            )  # fmt: skip
    return _manifest(names, samples), windows, records


def _manifest(names: list[str], samples: int) -> Manifest:
    return Manifest(
        schema_version=SCHEMA_VERSION, created="", config={"kv": "propagate", "batch_size": 1},
        operating_points=tuple(
            OperatingPointRecord(name=name, strategy=name.partition(":")[0], options={}, exit_points=(14, 22))
            for name in names
        ),
        model=ModelRecord(
            name="m", family="llama", weights="tuned", weights_source="none", weights_sha256=None, tokenizer_source="",
            num_layers=LAYERS, hidden_size=8, vocab_size=50, exit_points=(14, 22), dtype="float32", layer_bytes=100,
            lm_head_bytes=100, kv_projection_bytes=1, kv_entry_bytes=1,
        ),
        tasks=(
            TaskRecord(
                name="py150", language="python", protocol="green-code", source_kind="path", source="made up",
                fingerprint="0", samples=samples, bad_rows=0,
            ),
        ),
        meter=MeterRecord(source="rapl", description="made up", sensor_period_s=0.001, measured=True),
        block_size=1, bandwidth_bytes_per_s=1e9, environment={},
    )  # fmt: skip
