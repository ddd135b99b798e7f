"""The tensors of a packed model by name, and a model from such tensors: what a file of packed weights holds.

Everything that is no tensor (shapes, activations, position tables) comes from the family that reads a model without
weights; see :func:`harness.models.weights.without_weights`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.contracts import LinearMap, WeightsFormat
from harness.decoding.backbone import Backbone
from harness.decoding.blocks import LayerNorm, Linear, Norm, RMSNorm
from harness.decoding.packing import with_compiled_layers

__all__ = ["KINDS", "Packed", "filled", "tensors_of"]

KINDS = ("Fp16", "Int8", "Int4")
"""How compiled rows may be stored: classes of :mod:`harness.decoding.kernels.lanes`."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A tensor of a packed model.

    Attributes:
        tensor: its numbers, or rows of a packed matrix as bytes.
        kind: of these rows, one of :data:`KINDS`; empty for numbers.
    """

    tensor: Tensor
    kind: str = ""


def tensors_of(backbone: Backbone) -> dict[str, Packed] | None:
    """Return every tensor of a packed model by name; ``None`` where a matrix is not in rows that are compiled here."""
    from harness.decoding.kernels.matrix import CompiledLinear

    found: dict[str, Packed] = {}
    strange: list[str] = []

    def matrix(name: str, linear: LinearMap) -> LinearMap:
        if not isinstance(linear, CompiledLinear) or linear.bits.__name__ not in KINDS:
            strange.append(name)
            return linear
        found[name] = Packed(linear.data, linear.bits.__name__)
        if linear.bias is not None:
            found[f"{name}.bias"] = Packed(linear.bias)
        return linear

    def numbers(name: str, tensor: Tensor) -> Tensor:
        found[name] = Packed(tensor)
        return tensor

    _replaced(backbone, matrix, numbers)
    return None if strange else found


def filled(skeleton: Backbone, made: WeightsFormat, tensors: Mapping[str, Packed]) -> Backbone:
    """Return a packed model.

    Args:
        skeleton: the model as its family reads it, float32, with tensors that hold nothing.
        made: its format.
        tensors: what :func:`tensors_of` returned.

    Raises:
        ValueError: a tensor is missing, or of another shape, type or kind than the model's; a phrase that says which.
    """
    from harness.decoding.kernels import lanes
    from harness.decoding.kernels.matrix import CompiledLinear

    def take(name: str, shape: tuple[int, ...], dtype: torch.dtype, kinds: tuple[str, ...] = ("",)) -> Packed:
        one = tensors.get(name)
        if one is None:
            raise ValueError(f"{name} is missing")
        if (tuple(one.tensor.shape), one.tensor.dtype) != (shape, dtype) or one.kind not in kinds:
            raise ValueError(f"{name} is {one.kind} {tuple(one.tensor.shape)} of {one.tensor.dtype}")
        return one

    def matrix(name: str, linear: LinearMap) -> LinearMap:
        assert isinstance(linear, Linear)
        kind = tensors[name].kind if name in tensors else ""
        bits: type[lanes.Bits] = getattr(lanes, kind) if kind in KINDS else lanes.Fp16
        count, width = linear.shape
        size = bits.header_bytes + bits.step_bytes * math.ceil(width / lanes.STEP)
        rows = take(name, (count, size), torch.uint8, KINDS).tensor
        bias = None if linear.bias is None else take(f"{name}.bias", (count,), torch.float32).tensor
        return CompiledLinear(bits, rows, width, bias)

    def numbers(name: str, tensor: Tensor) -> Tensor:
        dtype = getattr(torch, made.facts.table) if name == "words" and made.facts.table else tensor.dtype
        return take(name, tuple(tensor.shape), dtype).tensor

    return with_compiled_layers(_replaced(skeleton, matrix, numbers))


def _replaced(
    backbone: Backbone, matrix: Callable[[str, LinearMap], LinearMap], numbers: Callable[[str, Tensor], Tensor]
) -> Backbone:
    """Return a model with what two functions of a name return in place of its matrices and its other tensors."""

    def normed(name: str, norm: Norm | None) -> Norm | None:
        if isinstance(norm, RMSNorm):
            return RMSNorm(numbers(f"{name}.weight", norm.weight), norm.eps)
        if norm is None:
            return None
        parts = (("weight", norm.weight), ("bias", norm.bias))
        weight, bias = (None if part is None else numbers(f"{name}.{what}", part) for what, part in parts)
        return LayerNorm(weight, bias, norm.eps, norm.width)

    blocks = []
    for layer, block in enumerate(backbone.blocks):
        maps = {what: matrix(f"{layer}.{what}", getattr(block, what)) for what in _MATRICES}
        norms = {what: normed(f"{layer}.{what}", getattr(block, what)) for what in _NORMS}
        blocks.append(replace(block, **maps, **norms))  # type: ignore[arg-type]
    embed, project_out = backbone.embed, backbone.project_out
    lm_head = matrix("lm_head", backbone.lm_head)
    words = numbers("words", embed.words)
    return replace(
        backbone,
        blocks=blocks,
        embed=replace(
            embed,
            words=words,
            places=None if embed.places is None else numbers("places", embed.places),
            project_in=None if embed.project_in is None else matrix("project_in", embed.project_in),
            dtype=backbone.dtype if words.dtype is not backbone.dtype else embed.dtype,
        ),
        final_norm=normed("final_norm", backbone.final_norm),
        project_out=None if project_out is None else matrix("project_out", project_out),
        lm_head=lm_head,
        shortcuts={layer: matrix(f"shortcut.{layer}", shortcut) for layer, shortcut in backbone.shortcuts.items()},
    )


_MATRICES = ("qkv", "output", "mlp_in", "mlp_out")
_NORMS = ("attention_norm", "mlp_norm", "query_norm", "key_norm")
