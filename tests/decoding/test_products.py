"""Products of a few rows are those of one row each, whichever kernel reads the matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from harness.decoding import products
from harness.decoding.blocks import RMSNorm
from harness.decoding.products import multiply


@pytest.mark.parametrize("count", range(1, 11))
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mv", [False, True])
def test_a_product_is_that_of_its_rows(
    count: int, with_bias: bool, dtype: torch.dtype, mv: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_mv_is_faster", lambda: mv)
    draw = torch.Generator().manual_seed(count)
    rows, weight = (torch.randn(shape, generator=draw).to(dtype) for shape in ((count, 48), (80, 48)))
    bias = torch.randn(80, generator=draw).to(dtype) if with_bias else None
    product = multiply(rows, weight, bias)
    assert (product.shape, product.dtype) == ((count, 80), dtype)
    assert product.is_contiguous()
    exact = F.linear(rows.double(), weight.double(), None if bias is None else bias.double())
    near: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 5e-2}
    torch.testing.assert_close(product.double(), exact, **near)


@pytest.mark.parametrize(
    ("flags", "mv"),
    [
        ({"avx512_bf16"}, False),
        ({"avx512f"}, True),
        (set(), True),
        ({"avx512_bf16", "amx_bf16"}, True),
    ],
)
def test_one_bfloat16_row_takes_the_kernel_of_its_processor(
    flags: set[str], mv: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "instructions", lambda: frozenset(flags))
    products._mv_is_faster.cache_clear()
    assert products._mv_is_faster() is mv
    products._mv_is_faster.cache_clear()


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
def test_a_norm_of_few_rows_is_that_of_many(count: int) -> None:
    rows, gain = torch.randn(count, 64), torch.randn(64)
    norm = RMSNorm(gain, 1e-5)
    torch.testing.assert_close(norm(rows), gain * norm.standardise(rows))
