"""One decoder layer as plain tensors: the arithmetic every family shares.

A family adapter (``families/``) reads a transformers model into these parts; the engine then runs
them over *slots*: a flat list of (row, position) pairs, ``[n, …]`` instead of ``[batch, length, …]``,
so that a prompt, one token per row, and ragged catch-up work all take the same path. Query, key and
value projections are fused into one matrix and so are gate and up, since at one token a time the
number of kernel launches is what separates an engine from the memory bandwidth.

One matrix times a few rows takes the kernel that reads it fastest on this machine, by precision, shape and rows.
Decoding reads each matrix for one row; where exited tokens catch up, and in a batch, for a few. All that takes time is
the reading, so eight rows should cost little more than one. Which kernel comes near that differs between processors
and shapes (``make bench`` prints them all, ``tests/benchmarks/test_rows.py``): on an AMD EPYC of the fifth generation
MKL reads a float32 matrix with one thread for one row, and with all threads, twice as fast, for two rows from the
other side; ``torch.mv`` takes half the time of ``F.linear`` in bfloat16 on an Intel Xeon, and twice the time there. So
:func:`choose` tries them on a model's own matrices when it is loaded, in a few tenths of a second.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.contracts import LinearMap

Activation: TypeAlias = Callable[[Tensor], Tensor]
Tables: TypeAlias = tuple[Tensor, Tensor]

_ZERO = torch.zeros(())


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Attention geometry: query heads, key/value heads, width of one head."""

    query_heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: Any) -> HeadShape:
        """Read it from a transformers configuration, which need not name all three."""
        heads: int = config.num_attention_heads
        grouped, dim = (getattr(config, name, None) for name in ("num_key_value_heads", "head_dim"))
        return cls(heads, grouped or heads, dim or config.hidden_size // heads)

    @property
    def query_width(self) -> int:
        """Columns of the query projection."""
        return self.query_heads * self.head_dim

    @property
    def grouped(self) -> bool:
        """Whether several query heads share one key/value head."""
        return self.query_heads != self.kv_heads

    @property
    def fused(self) -> tuple[int, int]:
        """Heads and width of the fused projection: queries, keys, values."""
        return self.query_heads + 2 * self.kv_heads, self.head_dim

    def kv_part(self, tables: Tables) -> Tables:
        """Return the part of rotary tables that belongs to keys and values."""
        return tables[0][:, self.query_heads :], tables[1][:, self.query_heads :]


@dataclass(frozen=True, slots=True)
class Linear:
    """``x @ weight.T + bias`` as torch multiplies it; ``weight`` is ``[out, in]``.

    Implements :class:`harness.contracts.LinearMap`. Families are read into these; what a weights format makes of them
    is used alike.
    """

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Map ``[n, in]`` to ``[n, out]``; rows of another dtype than the weights' are rounded to theirs."""
        if x.dtype is self.weight.dtype:
            return multiply(x, self.weight, self.bias)
        return multiply(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of the result and of the input: ``(out, in)``."""
        return self.weight.shape[0], self.weight.shape[1]

    def to(self, dtype: torch.dtype) -> Linear:
        """Return the same map in another dtype; itself where it has that one."""
        return Linear(self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))

    def rows(self, start: int) -> Linear:
        """Return the map restricted to output columns from ``start`` on, sharing storage."""
        return Linear(self.weight[start:], None if self.bias is None else self.bias[start:])

    @property
    def nbytes(self) -> int:
        """Bytes read to apply it once."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """Root-mean-square norm over the last axis, statistics in float32 as transformers computes them."""

    weight: Tensor
    eps: float
    _gain: Tensor = field(init=False, repr=False)
    _floor: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # x · w / √(‖x‖²/n + ε) = x · w√n / √(‖x‖² + nε): four kernels for few rows
        width = self.weight.shape[-1]
        object.__setattr__(self, "_gain", self.weight * math.sqrt(width))
        object.__setattr__(self, "_floor", self.weight.new_tensor(math.sqrt(width * self.eps)))

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise the last axis of ``x``."""
        if x.dim() == 2 and x.shape[0] <= FEW and x.dtype is torch.float32 and x.device.type == "cpu":
            # Few rows: torch's CPU kernels are five here, and each runs on cold caches after a streamed
            # matrix. A dot product, a scalar root and one fused product take half the time.
            width = x.shape[1]
            if x.shape[0] == 1:
                scale = 1.0 / math.sqrt(torch.dot(x[0], x[0]).item() / width + self.eps)
                return torch.addcmul(_ZERO, x, self.weight, value=scale)
            length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
            return (x * self._gain).div_(torch.hypot(length, self._floor))
        return self.weight * self.standardise(x)

    def mapped(self, change: Callable[[str, Tensor], Tensor]) -> RMSNorm:
        """Return the same norm with its tensors changed, each by its name and itself."""
        return RMSNorm(change("weight", self.weight), self.eps)

    def standardise(self, x: Tensor) -> Tensor:
        """Normalise without the gain, which is all that differs between layers."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Mean-and-variance norm over the last axis; gain and bias may be absent."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    width: int

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise the last axis of ``x``."""
        return F.layer_norm(x, (self.width,), self.weight, self.bias, self.eps)

    def mapped(self, change: Callable[[str, Tensor], Tensor]) -> LayerNorm:
        """Return the same norm with its tensors changed, each by its name and itself."""
        parts = {"weight": self.weight, "bias": self.bias}
        weight, bias = (None if part is None else change(name, part) for name, part in parts.items())
        return LayerNorm(weight, bias, self.eps, self.width)


Norm: TypeAlias = RMSNorm | LayerNorm
MATRICES = ("qkv", "output", "mlp_in", "mlp_out")
NORMS = ("attention_norm", "mlp_norm", "query_norm", "key_norm")
"""Fields of a :class:`Block`."""


class Rotary:
    """Rotary position embedding (Su 2021, arXiv 2104.09864) from precomputed tables.

    Queries, keys and values leave one fused projection side by side, so all of them are turned in one
    go: the tables hold cosine 1 and sine 0 for values, and for dimensions that do not turn (GPT-NeoX).

    Args:
        cos: ``[positions, rotary_dim]``, halves repeated as transformers lays them out.
    """

    def __init__(self, cos: Tensor, sin: Tensor, heads: HeadShape) -> None:
        half = cos.shape[-1] // 2
        self._cos, self._heads, self._dim = cos.contiguous(), heads, cos.shape[-1]
        self._sin = torch.cat((-sin[:, :half], sin[:, half:]), dim=-1)
        self._partial = self._dim != heads.head_dim

    @property
    def plain(self) -> Tables:
        """Cosines and signed sines of every position, ``[positions, rotary_dim]``."""
        return self._cos, self._sin

    def tables(self, positions: Tensor) -> Tables:
        """Return cosines and signed sines of all heads at ``positions`` ``[n]``, each ``[n, H + 2 KV, rotary_dim]``."""
        turning = self._heads.query_heads + self._heads.kv_heads
        cos = self._cos[positions].unsqueeze(1).expand(-1, turning, -1)
        sin = self._sin[positions].unsqueeze(1).expand(-1, turning, -1)
        still = cos.new_ones((len(positions), self._heads.kv_heads, self._dim))
        return torch.cat((cos, still), dim=1), torch.cat((sin, torch.zeros_like(still)), dim=1)

    def turn(self, heads: Tensor, tables: Tables) -> Tensor:
        """Rotate ``[…, n, heads, head_dim]`` by tables of the same heads; leading axes broadcast."""
        cos, sin = tables
        if not self._partial:
            return torch.addcmul(heads * cos, heads.roll(self._dim // 2, -1), sin)
        turned, rest = heads[..., : self._dim], heads[..., self._dim :]
        turned = torch.addcmul(turned * cos, turned.roll(self._dim // 2, -1), sin)
        return torch.cat((turned, rest), dim=-1)


@dataclass(frozen=True, slots=True)
class Block:
    """One decoder layer.

    Attributes:
        attention_norm, mlp_norm: norms before attention and MLP (after them when ``post_norm``).
        qkv: fused projection, rows ordered query, key, value.
        query_norm, key_norm: per-head norms (Qwen3), or ``None``.
        mlp_in: fused gate and up when ``gated``, else the first MLP matrix.
        gated: ``activation(gate) * up`` instead of ``activation(up)``.
        parallel: MLP reads the layer's input beside attention (GPT-NeoX).
        post_norm: norms come after the residual sum (OPT-350m).
    """

    heads: HeadShape
    scale: float
    attention_norm: Norm
    mlp_norm: Norm
    qkv: LinearMap
    output: LinearMap
    mlp_in: LinearMap
    mlp_out: LinearMap
    activation: Activation
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    gated: bool = False
    parallel: bool = False
    post_norm: bool = False

    def packed(self, pack: Callable[[LinearMap], LinearMap]) -> Block:
        """Return the layer with its matrices in another format, and norms that share nothing with it."""
        return self.mapped(lambda _, matrix: pack(matrix), lambda _, tensor: tensor.clone())

    def mapped(self, matrix: Callable[[str, LinearMap], LinearMap], numbers: Callable[[str, Tensor], Tensor]) -> Block:
        """Return the layer with its matrices, and its norms' tensors, changed, each by its name and itself."""
        changed: dict[str, Any] = {name: matrix(name, getattr(self, name)) for name in MATRICES}
        for name in NORMS:
            norm: Norm | None = getattr(self, name)
            if norm is not None:
                changed[name] = norm.mapped(lambda part, tensor, name=name: numbers(f"{name}.{part}", tensor))  # type: ignore[misc]
        return replace(self, **changed)

    def project(self, hidden: Tensor, rotary: Rotary | None, tables: Tables | None) -> tuple[Tensor, Tensor]:
        """Return queries ``[n, H, D]`` and keys with values ``[n, 2 KV, D]`` of hidden states ``[n, hidden]``."""
        shape = self.heads
        fused = self.qkv(hidden if self.post_norm else self.attention_norm(hidden)).view(-1, *shape.fused)
        if self.query_norm is not None and self.key_norm is not None:
            queries, entries = fused[:, : shape.query_heads], fused[:, shape.query_heads :]
            keys, values = entries.chunk(2, dim=1)
            fused = torch.cat((self.query_norm(queries), self.key_norm(keys), values), dim=1)
        if rotary is not None and tables is not None:
            fused = rotary.turn(fused, tables)
        queries, entries = torch.split(fused, [shape.query_heads, 2 * shape.kv_heads], 1)
        return queries, entries

    def fill(self, hidden: Tensor, rotary: Rotary | None, tables: Tables | None) -> Tensor:
        """Return only keys and values ``[n, 2 KV, D]``: what a token that skips this layer leaves behind."""
        shape = self.heads
        normed = hidden if self.post_norm else self.attention_norm(hidden)
        fused = self.qkv.rows(shape.query_width)(normed).view(-1, 2 * shape.kv_heads, shape.head_dim)
        if self.key_norm is not None:
            keys, values = fused.chunk(2, dim=1)
            fused = torch.cat((self.key_norm(keys), values), dim=1)
        if rotary is not None and tables is not None:
            fused = rotary.turn(fused, shape.kv_part(tables))
        return fused

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output from its input and the attention result, both ``[n, …]``."""
        attention = self.output(attended)
        if self.parallel:
            return self._mlp(self.mlp_norm(hidden)) + attention + hidden
        hidden = hidden + attention
        if self.post_norm:
            hidden = self.attention_norm(hidden)
            return self.mlp_norm(hidden + self._mlp(hidden))
        return hidden + self._mlp(self.mlp_norm(hidden))

    def _mlp(self, x: Tensor) -> Tensor:
        pieces = -(-x.element_size() * len(x) * self.mlp_in.shape[0] // KEPT)
        if pieces > 1 and x.device.type == "cpu":
            return torch.cat([self._mlp(rows) for rows in x.chunk(pieces)])
        inner = self.mlp_in(x)
        if self.gated:
            gate, up = inner.chunk(2, dim=-1)
            return self.mlp_out(self.activation(gate) * up)
        return self.mlp_out(self.activation(inner))


KEPT = 32 << 20
"""Bytes of the largest piece of memory that glibc can be told to keep when it is freed; a layer meets others anew."""

FEW = 8  # rows, up to which a product takes the time of reading its matrix
COUNTS = (1, 2, 4, 8)  # rows that are tried; three are four, five to seven are eight
ROUNDS = 4
GAIN = 0.9  # of the time of F.linear, to be preferred to it: of two as fast, every run shall take the same
SMALLEST = 1 << 18  # bytes of a matrix, below which what a kernel costs is not the reading
ENOUGH = 32 << 20  # bytes of matrices of one shape; those of other shapes in between empty the caches

Kernel: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def from_the_left(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product as weight × rowsᵀ: one row padded to two, three to four, and eight as two times four."""
    if rows.shape[0] > 4:
        return torch.cat([from_the_left(part, weight, bias) for part in torch.split(rows, 4)])
    count = rows.shape[0]
    columns = (F.pad(rows, (0, 0, 0, 1)) if count in (1, 3) else rows).t()
    product = torch.mm(weight, columns) if bias is None else torch.addmm(bias.unsqueeze(1), weight, columns)
    return product.t()[:count].contiguous()


def row_by_row(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A matrix × vector product for each row."""
    product = torch.stack([torch.mv(weight, row) for row in rows])
    return product if bias is None else product + bias


KERNELS: dict[torch.dtype, tuple[Kernel, ...]] = {
    torch.float32: (F.linear, from_the_left),
    torch.bfloat16: (F.linear, row_by_row),
}
"""Kernels on a CPU, the default first."""

_chosen: dict[tuple[torch.dtype, torch.Size, int, int], Kernel] = {}
"""Dtype, shape, rows and threads → the fastest kernel in this process."""


def multiply(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``rows @ weight.T + bias``, ``[n, in]`` by ``[out, in]`` → ``[n, out]``."""
    count = rows.shape[0]
    if count <= FEW and rows.device.type == "cpu":
        tried = count if count < 3 else 4 if count < 5 else 8
        kernel = _chosen.get((weight.dtype, weight.shape, tried, torch.get_num_threads()), F.linear)
        return kernel(rows, weight, bias)
    return F.linear(rows, weight, bias)


def choose(weights: Iterable[Tensor]) -> None:
    """Find the fastest kernels for products with a model's matrices, with as many threads as torch has now.

    Args:
        weights: matrices ``[out, in]``; those on an accelerator or of another precision keep ``F.linear``.
    """
    threads = torch.get_num_threads()
    groups: dict[tuple[torch.dtype, torch.Size], list[Tensor]] = {}
    for weight in weights:
        known = (weight.dtype, weight.shape, 1, threads) in _chosen
        if not known and weight.device.type == "cpu" and weight.nbytes >= SMALLEST and weight.dtype in KERNELS:
            groups.setdefault((weight.dtype, weight.shape), []).append(weight)
    seconds: dict[tuple[torch.dtype, torch.Size, int, Kernel], list[float]] = {}
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for (dtype, shape), matrices in groups.items():
                for count in COUNTS:
                    rows = torch.ones((count, shape[1]), dtype=dtype)
                    for kernel in KERNELS[dtype]:
                        seconds.setdefault((dtype, shape, count, kernel), []).append(_time(kernel, rows, matrices))
    for dtype, shape in groups:
        for count in COUNTS:
            default, *others = KERNELS[dtype]
            best = min(others, key=lambda kernel: min(seconds[dtype, shape, count, kernel]))
            gains = min(seconds[dtype, shape, count, best]) < GAIN * min(seconds[dtype, shape, count, default])
            _chosen[dtype, shape, count, threads] = best if gains else default


def choices() -> dict[str, str]:
    """Return which kernels were chosen for products with as many threads as torch has now, for :func:`choose_again`."""
    mine = ((key, kernel) for key, kernel in _chosen.items() if key[3] == torch.get_num_threads())
    return {_product(dtype, shape, count): kernel.__name__ for (dtype, shape, count, _), kernel in mine}


def choose_again(choices: Mapping[str, str]) -> None:
    """Take the kernels of another process in place of one's own: of two that are as fast, a run keeps what it took."""
    for dtype, shape, count, threads in [key for key in _chosen if key[3] == torch.get_num_threads()]:
        named = choices.get(_product(dtype, shape, count))
        kernel = next((kernel for kernel in KERNELS[dtype] if kernel.__name__ == named), None)
        if kernel is not None:
            _chosen[dtype, shape, count, threads] = kernel


def _product(dtype: torch.dtype, shape: torch.Size, rows: int) -> str:
    return f"{dtype} {tuple(shape)} × {rows}"


def _time(kernel: Kernel, rows: Tensor, matrices: list[Tensor]) -> float:
    read = 0
    started = time.perf_counter()
    for matrix in matrices:
        kernel(rows, matrix, None)
        read += matrix.nbytes
        if read >= ENOUGH:
            break
    return (time.perf_counter() - started) / read
