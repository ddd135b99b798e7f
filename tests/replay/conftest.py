"""A tiny model, what its exits say of given tokens, small traces of it, their sweeps, and a run of six documents."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import RunConfig
from harness.config import parse_strategies
from harness.config.options import build_strategy
from harness.contracts import ModelInfo, ModelRequest
from harness.contracts.recipes import Silent
from harness.decoding.blocks import Linear
from harness.decoding.engine import Engine
from harness.decoding.exit_modules.linear import LinearExit
from harness.models.model import resolve
from harness.replay.options import SweepOptions
from harness.replay.sweep import SweepResult, sweep
from harness.replay.tokens import TracedTokens
from harness.running.operating_points import OperatingPoint, operating_point
from harness.running.reading import read_run
from harness.running.runner import execute
from harness.training.traces.record_trace import exit_columns
from reports.recorded import RecordedRun
from tests.training.tracing import trace_of

POINTS, LAYERS, WIDTH = (4, 6, 10), 12, 32
SETTINGS = ("confidence:threshold=0.99", "confidence:threshold=0.15", "confidence:threshold=0.05")
"""Never exits, exits sometimes, exits almost always."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclasses.dataclass(frozen=True)
class Tiny:
    """A model of 12 layers, with maps at its exits or without."""

    engine: Engine
    info: ModelInfo
    maps: dict[int, Linear]

    def tokens(self, prompts: Sequence[Sequence[int]], generated: Sequence[Sequence[int]]) -> TracedTokens:
        """What the exits say of tokens generated after prompts; those of prefill are left out."""
        parts = []
        for number, (prompt, made) in enumerate(zip(prompts, generated, strict=True)):
            columns = exit_columns(self.engine, [*prompt, *made[:-1]], len(prompt) - 1)
            parts.append({**columns, "document": torch.full((len(made),), number, dtype=torch.int32)})
        shard = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        ends = torch.tensor([0, *[len(made) for made in generated]]).cumsum(0)
        rows = torch.tensor([row for row in range(int(ends[-1])) if row not in ends.tolist()])
        names = [f"prompt {number}" for number in range(len(prompts))]
        return TracedTokens(self.info.exit_points, [(shard, rows)], self.maps, names, generated=True)


@pytest.fixture(scope="session", params=["shared head", "shortcuts"])
def tiny(request: pytest.FixtureRequest, tiny_llama: Path) -> Tiny:
    resolved = resolve(ModelRequest(str(tiny_llama), weights="pretrained", exit_head="shared"))
    backbone, info = resolved.load("cpu").backbone, resolved.info
    maps: dict[int, LinearExit] = {}
    if request.param == "shortcuts":
        chance = torch.Generator().manual_seed(3)
        maps = {
            point: LinearExit(
                {"": Linear(torch.eye(WIDTH) + 0.3 * torch.randn(WIDTH, WIDTH, generator=chance), torch.zeros(WIDTH))}
            )
            for point in POINTS
        }
        backbone = dataclasses.replace(backbone, shortcuts=maps)
        info = dataclasses.replace(info, exit_head="shortcut:test", shortcut_bytes=4 * WIDTH * (WIDTH + 1))
    return Tiny(Engine(backbone, info), info, maps)


@pytest.fixture(scope="session")
def point_of() -> Callable[[str, ModelInfo], OperatingPoint]:
    def make(text: str, info: ModelInfo) -> OperatingPoint:
        (spec,) = parse_strategies(text)
        return operating_point(spec, build_strategy(spec), info)

    return make


@pytest.fixture(scope="session")
def made() -> Callable[..., TracedTokens]:
    """``made(top=…, final=…, …)``: traced tokens with given columns at exits 4, 6 and 10, one document unless told."""

    def make(*, top: Any, final: Any, document: Any = None, position: Any = None, **columns: Any) -> TracedTokens:
        count = len(final)

        def halves(name: str) -> Tensor:
            return torch.as_tensor(columns.get(name, torch.zeros(count, len(POINTS)))).half()

        shard = {
            "hidden": torch.as_tensor(columns.get("hidden", torch.zeros(count, len(POINTS), WIDTH))).half(),
            "top": torch.as_tensor(top).int(),
            "final": torch.as_tensor(final).int(),
            "document": torch.as_tensor(document if document is not None else [0] * count).int(),
            "position": torch.as_tensor(position if position is not None else range(count)).int(),
            "input": torch.zeros(count, dtype=torch.int32),
            **{name: halves(name) for name in ("top1", "top2", "entropy")},
        }
        documents = [f"document {number}" for number in range(int(shard["document"].max()) + 1)]
        return TracedTokens(POINTS, [(shard, torch.arange(count))], {}, documents, generated=False)

    return make


@pytest.fixture(scope="session")
def info() -> ModelInfo:
    """Facts of a model whose bytes are round numbers."""
    return ModelInfo(
        "model", "llama", LAYERS, WIDTH, 50, POINTS, 100, "float32", "random", layer_bytes=1000, lm_head_bytes=500,
        kv_projection_bytes=100, kv_entry_bytes=1,
    )  # fmt: skip


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty Python files, all different."""
    file = tmp_path_factory.mktemp("source") / "rows.jsonl"
    lines = []
    for number in range(40):
        code = "\n".join(
            f"def {verb}_{number % 7}(items, limit={number}):\n    for item in items:\n        total = {number}\n"
            f"    return {verb}(total, limit)\n"
            for verb in ("load", "save", "merge", "count")
        )
        lines.append(json.dumps({"id": f"doc-{number}", "code": f"# {number}\n{code}"}))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def make_trace(tiny_llama: Path, source: Path) -> Callable[..., Path]:
    """``make_trace(folder, documents=…, new_tokens=…)``: a trace of the tiny model."""

    def make(folder: Path, **request: Any) -> Path:
        trace_of(tiny_llama, source, folder, length=64, **request)
        return folder

    return make


@pytest.fixture(scope="session")
def traced(make_trace: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of forty documents' own tokens."""
    return make_trace(tmp_path_factory.mktemp("traces") / "tiny", documents=40)


@pytest.fixture(scope="session")
def generated(make_trace: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of what the tiny model generates after twelve documents' beginnings."""
    return make_trace(tmp_path_factory.mktemp("traces") / "made", documents=12, new_tokens=12)


@pytest.fixture
def swept(tiny_llama: Path, traced: Path) -> Callable[..., SweepResult]:
    """``swept(*strategies, folder=…, references=…, **options)``."""

    def run(*strategies: str, folder: Path = traced, references: Sequence[str] = (), **given: Any) -> SweepResult:
        options = SweepOptions.build({"replay": folder, "strategies": strategies, "model": str(tiny_llama), **given})
        return sweep(options, references, progress=Silent())

    return run


@pytest.fixture(scope="session")
def decoded(tiny_llama: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> RecordedRun:
    """A strategy at three thresholds on six small documents, decoded once."""
    config = RunConfig(
        model=str(tiny_llama),
        source=str(rows_file),
        limit=6,
        max_new_tokens=5,
        energy="none",
        idle_s=0,
        threads=1,
        strategies=(SETTINGS[1], SETTINGS[2], SETTINGS[0]),
        out=tmp_path_factory.mktemp("decoded") / "run",
    )
    return read_run(execute(config).directory)
