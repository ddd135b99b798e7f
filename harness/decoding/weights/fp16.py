"""Weights in half precision: multiplied with float32 activations on a CPU, by torch's own product on an accelerator."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from harness.contracts import LinearMap, WeightsFacts, WeightsFormat
from harness.decoding import kernels
from harness.decoding.blocks import Linear


class Fp16(WeightsFormat):
    """16 bits a weight, 10 of them mantissa, with float32 activations on a CPU."""

    facts: ClassVar[WeightsFacts] = WeightsFacts(
        bits=16,
        accuracy="near-exact",
        table="float16",
        largest=torch.finfo(torch.float16).max,
        relative_error=1e-3,
        invariant=True,  # compiled; torch's product is not
    )

    def obstacle(self, device: str) -> str | None:
        """On a CPU its products are compiled."""
        return kernels.obstacle() if device == "cpu" else None

    def prepare(self, device: str) -> None:
        """Compile its products."""
        if device == "cpu":
            kernels.prepare(kernels.FP16)

    def pack(self, weight: Tensor, bias: Tensor | None) -> LinearMap:
        """Round a matrix."""
        if weight.device.type != "cpu":
            return Linear(weight, bias).to(torch.float16)
        from harness.decoding.kernels import layers

        return layers.CompiledLinear.of(kernels.FP16, weight, bias, lambda rows: [layers.in_panels(rows.half())])

    def words(self, head: LinearMap) -> Tensor | None:
        """Its matrix; of a compiled one its panels, ``[panels, in, columns]``, without what inputs are padded with."""
        if isinstance(head, Linear):
            return head.weight
        from harness.decoding.kernels import layers

        if not isinstance(head, layers.CompiledLinear):
            return None
        return head.data.view(torch.float16).view(len(head.data), -1, kernels.COLUMNS)[:, : head.shape[1]]
