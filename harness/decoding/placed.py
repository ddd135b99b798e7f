"""Matrices on another device than activations: rows go to them, and what they make comes back.

Keys and values, attention, norms and the LM head stay on the model's own device. A layer elsewhere costs it eight
transfers of a few rows, and saves it the memory of four matrices.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.config.device_map import DISK
from harness.decoding.backbone import Backbone
from harness.decoding.blocks import Block, LayerNorm, Linear, Norm, RMSNorm

__all__ = ["PlacedLinear", "placed"]


@dataclass(frozen=True, slots=True)
class PlacedLinear:
    """A matrix on a device of its own. Implements :class:`harness.contracts.LinearMap`."""

    matrix: Linear

    def __call__(self, x: Tensor) -> Tensor:
        """Map ``[n, in]`` to ``[n, out]``, on the device of ``x``."""
        return self.matrix(x.to(self.matrix.weight.device)).to(x.device)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of the result and of the input: ``(out, in)``."""
        return self.matrix.shape

    @property
    def nbytes(self) -> int:
        """Bytes read to apply it once."""
        return self.matrix.nbytes

    def rows(self, start: int) -> PlacedLinear:
        """Return the map restricted to output columns from ``start`` on, sharing storage."""
        return PlacedLinear(self.matrix.rows(start))


def placed(backbone: Backbone, elsewhere: Sequence[str | None], folder: Path | None = None) -> Backbone:
    """Return a model some of whose layers were read on other devices, ready to decode on its own.

    Args:
        backbone: its layers' matrices each on the device where they shall stay, all else on the model's own.
        elsewhere: of each layer, its device where that is not the model's own.
        folder: receives the matrices of layers on :data:`~harness.config.device_map.DISK`; nothing else may be in it.
    """
    blocks = [
        block if where is None else _placed(block, backbone.device, f"{number}", folder if where == DISK else None)
        for number, (block, where) in enumerate(zip(backbone.blocks, elsewhere, strict=True))
    ]
    return replace(backbone, blocks=blocks)


def _placed(block: Block, device: torch.device, name: str, folder: Path | None) -> Block:
    def there(part: str) -> PlacedLinear:
        matrix = getattr(block, part)
        assert isinstance(matrix, Linear)
        weight = matrix.weight if folder is None else _on_disk(matrix.weight, folder / f"{name}.{part}")
        return PlacedLinear(Linear(weight, matrix.bias))

    def here(norm: Norm | None) -> Norm | None:
        if isinstance(norm, RMSNorm):
            return RMSNorm(norm.weight.to(device), norm.eps)
        if isinstance(norm, LayerNorm):
            weight, bias = (None if part is None else part.to(device) for part in (norm.weight, norm.bias))
            return LayerNorm(weight, bias, norm.eps, norm.width)
        return None

    parts: dict[str, Any] = {part: there(part) for part in ("qkv", "output", "mlp_in", "mlp_out")}
    parts |= {part: here(getattr(block, part)) for part in ("attention_norm", "mlp_norm", "query_norm", "key_norm")}
    return replace(block, **parts)


def _on_disk(weight: Tensor, file: Path) -> Tensor:
    """Write a matrix and return it mapped from the file, whose pages memory may drop and whose name is gone."""
    weight.detach().contiguous().view(torch.uint8).numpy().tofile(file)
    there = torch.from_file(str(file), shared=True, size=weight.numel(), dtype=weight.dtype).view(weight.shape)
    with contextlib.suppress(PermissionError):  # Windows keeps the name of what is mapped
        file.unlink()
    return there
