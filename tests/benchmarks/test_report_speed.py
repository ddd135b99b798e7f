"""How long a report of a large run takes: scoring, CodeBLEU included, and all statistics.

One task, 1,000 samples, 20 operating points, made-up records: texts are lines of Python's standard library, each
operating point with other ones changed, so that no score can be taken from another. Figures are printed beside their
targets, not asserted: a shared machine would make such a test lie. Run with ``make bench``.
"""

from __future__ import annotations

import random
import statistics
from pathlib import Path
from typing import Any

import pytest

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
from harness.running.scoring import CorpusScores, score_sample
from reports.summary.quality import corpora
from reports.summary.summarise import candidates, summarise

SAMPLES, POINTS, TOKENS, LAYERS = 1_000, 20, 15, 30

Run = tuple[Manifest, list[WindowRecord], list[SampleRecord]]


@pytest.fixture(scope="module")
def run() -> Run:
    chance = random.Random(0)
    source = Path(random.__file__).parent
    files = [source / name for name in ("argparse.py", "ast.py", "typing.py", "tarfile.py", "inspect.py")]
    lines = [line.strip() for file in files for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    references = ["\n".join(chance.sample(lines, 2)) for _ in range(SAMPLES)]
    names = ["full", *(f"confidence:threshold={index / POINTS}" for index in range(1, POINTS))]
    windows: list[WindowRecord] = []
    samples: list[SampleRecord] = []
    for block, reference in enumerate(references):
        for name in names:
            duration = chance.uniform(0.9, 1.1)
            text = reference[: len(reference) // 2] + chance.choice(lines)
            times = tuple(duration * (index + 1) / TOKENS for index in range(TOKENS))
            tokens, windowed = tuple(chance.choices(range(50), k=TOKENS)), len(windows)
            windows.append(
                WindowRecord(
                    window=windowed, task="py150", block=block, repeat=0, operating_point=name, samples=1,
                    tokens=TOKENS, started="", duration_s=duration, cpu_time_s=duration, energy_j=20 * duration,
                    energy_source="rapl",
                )
            )  # fmt: skip
            samples.append(
                SampleRecord(
                    window=windowed, operating_point=name, task="py150", sample_id=str(block), prompt_ids=(1,) * 200,
                    token_ids=tokens, reference_ids=tokens, exit_layers=(LAYERS, *chance.choices((14, 22, 30), k=14)),
                    token_times_s=times, text=text, reference=reference, latency_s=times[-1], ttft_s=times[0],
                    scores=score_sample(Completion(text, reference, tokens, tokens, "python")),
                    lm_head_evaluations=20, layers_executed=300,
                )
            )  # fmt: skip
    return _manifest(names), windows, samples


def _manifest(names: list[str]) -> Manifest:
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
                fingerprint="0", samples=SAMPLES, bad_rows=0,
            ),
        ),
        meter=MeterRecord(source="rapl", description="made up", sensor_period_s=0.001),
        block_size=1, bandwidth_bytes_per_s=1e9, environment={},
    )  # fmt: skip


def report(benchmark: Any, what: str, seconds: float, target: str) -> None:
    benchmark.extra_info[what] = round(seconds, 3)
    print(f"\n  {what}: {seconds:.1f} s  (target {target})")
    assert seconds > 0


def median(benchmark: Any) -> float:
    return statistics.median(benchmark.stats.stats.data)


def test_statistics_alone(benchmark: Any, run: Run) -> None:
    summary = benchmark.pedantic(summarise, (*run, lambda *_: {}), rounds=3, warmup_rounds=1)
    assert len(summary.rows) == POINTS
    report(benchmark, "statistics of 1,000 samples × 20 operating points", median(benchmark), "part of 60 s")


@pytest.mark.parametrize("processes", [1, 2])
def test_scoring_and_statistics(benchmark: Any, run: Run, processes: int) -> None:
    def whole() -> Any:
        return summarise(*run, CorpusScores(corpora(candidates(*run)), processes))

    summary = benchmark.pedantic(whole, rounds=2)
    assert all(
        row.value("codebleu") is not None and row.estimate("speedup").p_holm is not None for row in summary.rows[1:]
    )
    target = "≤ 60 s on two cores" if processes == 2 else "none"
    report(benchmark, f"scoring and statistics in {processes} process(es)", median(benchmark), target)
