"""What a layer costs for several rows over what it costs for one: the price of catching up under ``recompute``.

Exited tokens catch up beside the next one that goes deeper, so that a pass multiplies each matrix with two, three or
more rows. Bytes say that this is free; whether it is depends on the kernels. Two tables, SmolLM2-135M's shapes, two
threads, medians of paired ratios to one row as the engine multiplies it:

- **the layer's matrices alone** (query-key-value, output, two of the MLP), all 30 layers in turn so that they come from
  memory: the engine's own product beside the ways that were tried;
- **the whole layer in the engine**, norms, attention and cache included: tokens that wait at layer 4 join the next
  token that goes to the last one. A decode step to layer 4 is taken off, LM head and all.

The tables are printed at the end of ``make bench`` and stand in ``extra_info``. Alone, on an idle machine:
``python -m pytest tests/benchmarks/test_rows.py -o addopts="" --benchmark-only -q``.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

import harness
from harness.contracts import LinearMap
from harness.decoding.blocks import Linear
from harness.decoding.engine import Engine

ROWS = (1, 2, 3, 4, 8)
ROUNDS = 12
WAITS, PROMPT = 4, 100
FORMATS = ("float32", "bfloat16", "fp16", "int8", "int4")

pytestmark = pytest.mark.model

Way = Callable[[Tensor, Any], Tensor]

ENGINE: dict[str, Way] = {"engine": lambda rows, matrix: matrix(rows)}
PLAIN: dict[str, Way] = {
    "F.linear": lambda rows, matrix: F.linear(rows, matrix.weight),
    "mv, row by row": lambda rows, matrix: torch.stack([torch.mv(matrix.weight, row) for row in rows]),
    "F.linear, padded to 4": lambda rows, matrix: F.linear(F.pad(rows, (0, 0, 0, -len(rows) % 4)), matrix.weight)[
        : len(rows)
    ],
    "weight × rowsᵀ": lambda rows, matrix: torch.mm(matrix.weight, rows.t()).t().contiguous(),
}
"""Ways to multiply with a plain tensor."""


@pytest.fixture(scope="module", params=FORMATS)
def engine(request: pytest.FixtureRequest) -> Engine:
    """The default model in one weights format, with the shared exit head."""
    torch.set_num_threads(2)
    loaded = harness.load("smollm2-135m", weights_format=request.param, exit_head="shared").loaded
    return Engine(loaded.backbone, loaded.info)


def seconds(multiplied: Way, matrices: list[LinearMap], rows: dict[int, Tensor]) -> float:
    start = time.perf_counter()
    for matrix in matrices:
        multiplied(rows[matrix.shape[1]], matrix)
    return time.perf_counter() - start


def test_matrices_of_several_rows(benchmark: Any, engine: Engine, row_tables: list[str]) -> None:
    blocks = engine.backbone.blocks
    matrices = [matrix for block in blocks for matrix in (block.qkv, block.output, block.mlp_in, block.mlp_out)]
    plain = isinstance(matrices[0], Linear)
    dtype = matrices[0].weight.dtype if isinstance(matrices[0], Linear) else torch.float32
    ways = ENGINE | (PLAIN if plain else {})
    inputs = {n: {width: torch.randn(n, width).to(dtype) for width in (576, 1536)} for n in ROWS}
    cells = [(way, n) for way in ways for n in ROWS]
    ratios: dict[tuple[str, int], list[float]] = {cell: [] for cell in cells}

    def alternate() -> None:
        random.shuffle(cells)
        for way, n in cells:
            before = seconds(ENGINE["engine"], matrices, inputs[1])
            taken = seconds(ways[way], matrices, inputs[n])
            after = seconds(ENGINE["engine"], matrices, inputs[1])
            ratios[way, n].append(2 * taken / (before + after))

    with torch.inference_mode():
        benchmark.pedantic(alternate, rounds=ROUNDS, warmup_rounds=1)
    found = {way: {n: statistics.median(ratios[way, n][1:]) for n in ROWS} for way in ways}
    row_tables.extend(written(f"{engine.info.weights_format}, a layer's matrices, over one row of the engine", found))
    benchmark.extra_info["rows over one row"] = found


def test_whole_layers_of_several_rows(benchmark: Any, engine: Engine, row_tables: list[str]) -> None:
    deepest = engine.info.num_layers
    prompt = list(range(100, 100 + PROMPT))
    deep: dict[int, list[float]] = {n: [] for n in ROWS}
    shallow: list[float] = []

    def alternate() -> None:
        for n in random.sample(ROWS, len(ROWS)):
            schedule = [deepest, *[*[WAITS] * (n - 1), deepest] * 2]
            (made,) = engine.replay([prompt], [schedule], kv="recompute", max_new_tokens=[len(schedule)])
            taken = [after - before for before, after in zip(made.token_times_s, made.token_times_s[1:], strict=False)]
            last = [step for step, layer in zip(taken, schedule[1:], strict=True) if layer == deepest]
            deep[n].append(statistics.fmean(last))
            if n > 1:
                shallow.extend(step for step, layer in zip(taken, schedule[1:], strict=True) if layer == WAITS)

    benchmark.pedantic(alternate, rounds=ROUNDS, warmup_rounds=1)
    base = statistics.median(shallow)
    layer_s = {n: (statistics.median(deep[n][1:]) - base) / (deepest - WAITS) for n in ROWS}
    found = {"engine": {n: layer_s[n] / layer_s[1] for n in ROWS}}
    title = f"{engine.info.weights_format}, a whole layer, over one row ({1e3 * layer_s[1]:.2f} ms)"
    row_tables.extend(written(title, found))
    benchmark.extra_info["ms per layer"] = {n: round(1e3 * value, 3) for n, value in layer_s.items()}
    assert found["engine"][2] < 2  # as dear as two passes, catching up would save nothing


def written(title: str, found: dict[str, dict[int, float]]) -> list[str]:
    """A table as lines: ways down, rows across."""
    head = f"{title:58}" + "".join(f"{f'{n} rows':>8}" for n in ROWS)
    return [head, *(f"  {way:56}" + "".join(f"{found[way][n]:8.2f}" for n in ROWS) for way in found)]
