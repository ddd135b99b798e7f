"""Products of a few rows are those of one row each, whichever kernel reads the matrix."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.decoding import blocks
from harness.decoding.blocks import RMSNorm, multiply


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_chosen", {})


@pytest.mark.crossed
@pytest.mark.parametrize("count", range(1, 11))
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    ("dtype", "kernel"), [(dtype, kernel) for dtype, kernels in blocks.KERNELS.items() for kernel in kernels]
)
def test_a_product_is_that_of_its_rows(
    count: int, with_bias: bool, dtype: torch.dtype, kernel: blocks.Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, shape = torch.get_num_threads(), torch.Size((80, 48))
    monkeypatch.setattr(blocks, "_chosen", {(dtype, shape, rows, threads): kernel for rows in blocks.COUNTS})
    draw = torch.Generator().manual_seed(count)
    rows, weight = (torch.randn(size, generator=draw).to(dtype) for size in ((count, 48), shape))
    bias = torch.randn(80, generator=draw).to(dtype) if with_bias else None
    product = multiply(rows, weight, bias)
    assert (product.shape, product.dtype) == ((count, 80), dtype)
    assert product.is_contiguous()
    exact = F.linear(rows.double(), weight.double(), None if bias is None else bias.double())
    near: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 5e-2}
    torch.testing.assert_close(product.double(), exact, **near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("faster", [0, 1])
def test_the_faster_kernel_multiplies(dtype: torch.dtype, faster: int, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def kernel(number: int) -> blocks.Kernel:
        def run(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            if number != faster:
                time.sleep(0.005)
            used.append(number)
            return F.linear(rows, weight, bias)

        return run

    monkeypatch.setattr(blocks, "KERNELS", {torch.float32: (kernel(0), kernel(1)), torch.bfloat16: (F.linear,) * 2})
    weight, small = torch.ones(512, 512, dtype=dtype), torch.ones(8, 8, dtype=dtype)
    blocks.choose([weight, small])
    tried = set(used)
    used.clear()
    for count in (1, 2, 3, 4, 5, 8, 9):
        multiply(torch.ones(count, 512, dtype=dtype), weight, None)
        multiply(torch.ones(count, 8, dtype=dtype), small, None)  # too small to be measured
    assert (tried, used) == (({0, 1}, [faster] * 6) if dtype is torch.float32 else (set(), []))
    blocks.choose([weight])  # known
    assert len(used) == (6 if dtype is torch.float32 else 0)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
def test_a_norm_of_few_rows_is_that_of_many(count: int) -> None:
    rows, gain = torch.randn(count, 64), torch.randn(64)
    norm = RMSNorm(gain, 1e-5)
    torch.testing.assert_close(norm(rows), gain * norm.standardise(rows))
