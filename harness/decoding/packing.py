"""A model's matrices in another format or on another device, and which format is the fastest that keeps its tokens.

What a file of packed weights holds is here, too: the tensors of a packed model by name, and a model from such tensors.
Everything that is no tensor (shapes, activations, position tables) comes from the family that reads a model without
weights; see :mod:`harness.models.skeleton`.

Of a model some of whose matrices are on another device (:func:`placed`), keys and values, attention, norms and the LM
head stay on its own. A layer elsewhere costs it eight transfers of a few rows, and saves it the memory of four
matrices.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.config.model import DISK
from harness.contracts import OWN_FORMAT, LinearMap, WeightsFormat
from harness.decoding.backbone import Backbone
from harness.decoding.blocks import Block, Linear, choose
from harness.decoding.kernels import COLUMNS, FP16, KINDS
from harness.errors import ModelError
from harness.registry import WEIGHTS_FORMATS

ROWS = (1, 4, 16)  # of the products that are timed
ROUNDS = 5
GAIN = 0.9  # of the time of the activations' own format, to be preferred to it
ENOUGH = 48 << 20  # bytes of float32 matrices, below which what is timed is not the reading


@dataclass(frozen=True, slots=True)
class FormatChoice:
    """Why a format was taken.

    Attributes:
        seconds: format → what it took at 1, 4 and 16 rows, per float32 byte of the matrices; empty where nothing was
            timed.
        left_out: format → why it was not tried.
        measured: day on which an earlier process timed them; empty where this one did.
    """

    name: str
    seconds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    measured: str = ""


def usable(name: str, device: str) -> WeightsFormat:
    """Return a format that this machine can decode with.

    Raises:
        ModelError: it cannot; says why, and what it can.
        UnknownNameError: it is not registered.
    """
    made: WeightsFormat = WEIGHTS_FORMATS.load(name)()
    kind = torch.device(device).type
    obstacle = made.obstacle(kind)
    if obstacle is None:
        return made
    others = [other for other, one in WEIGHTS_FORMATS.usable().items() if one().obstacle(kind) is None]
    raise ModelError(f"--weights-format {name} cannot be used here: {obstacle}. Use one of {', '.join(others)}.")


def prepare(names: Iterable[str | None], nbytes: float, device: str) -> None:
    """Let formats that may be used begin what needs no weights, where a model's matrices have so many bytes.

    Args:
        names: formats, ``auto`` among them; ``None`` is ignored.
        nbytes: of its layers, in the activations' dtype.
        device: torch device.
    """
    wanted = {name for name in names if name}
    if "auto" in wanted:
        wanted.update(near_exact())
    kind = torch.device(device).type
    for name in sorted(wanted & set(WEIGHTS_FORMATS.names())) if nbytes >= ENOUGH else ():
        made = WEIGHTS_FORMATS.load(name)()
        if made.obstacle(kind) is None:
            made.prepare(kind)


def pack(backbone: Backbone, name: str, device: str) -> Backbone:
    """Return a model with its matrices in a format; as :func:`pack_all`."""
    return pack_all(backbone, [name], device)[name]


def pack_all(backbone: Backbone, names: Iterable[str], device: str) -> dict[str, Backbone]:
    """Return a model with its matrices in each of several formats.

    What two formats store alike they share: word embeddings, and the LM head with all that is stored as it is. So do
    word embeddings and an LM head that are the same weights, where its format holds them as plain numbers. Where a
    format keeps word embeddings in numbers of its own, it shares nothing with the model that was read, so that the file
    that this lies in can be let go.

    Raises:
        ModelError: a format cannot be used here, or does not hold the weights.
        UnknownNameError: it is not registered.
    """
    heads: dict[tuple[type[WeightsFormat], int], LinearMap] = {}
    words: dict[torch.dtype, Tensor] = {}
    return {name: _packed(backbone, name, device, heads, words) for name in names}


def _packed(
    backbone: Backbone,
    name: str,
    device: str,
    heads: dict[tuple[type[WeightsFormat], int], LinearMap],
    words: dict[torch.dtype, Tensor],
) -> Backbone:
    """Pack one format; heads (by format and the matrix they were) and word embeddings that are there are taken."""
    made = usable(name, device)

    def packed(matrix: LinearMap, stored: WeightsFormat = made) -> LinearMap:
        assert isinstance(matrix, Linear)
        _check_range(matrix.weight, name, made)
        return stored.pack(matrix.weight, None if matrix.bias is None else matrix.bias.clone())

    def packed_head(matrix: LinearMap) -> LinearMap:
        key = (type(made.head), id(matrix))
        if key not in heads:
            heads[key] = packed(matrix, made.head)
        return heads[key]

    embed, lm_head = backbone.embed, packed_head(backbone.lm_head)
    if embed.places is not None:
        embed = replace(embed, places=embed.places.clone())
    if embed.project_in is not None:
        embed = replace(embed, project_in=packed_head(embed.project_in))
    table = getattr(torch, made.facts.table) if made.facts.table else backbone.dtype
    if table is not backbone.dtype:
        if table not in words:
            head, own = backbone.lm_head, embed.words
            tied = isinstance(head, Linear) and head.weight.data_ptr() == own.data_ptr() and head.shape == own.shape
            shared = made.head.words(lm_head) if tied else None
            words[table] = embed.words.to(table) if shared is None or shared.dtype is not table else shared
        embed = replace(embed, words=words[table], dtype=backbone.dtype)
    else:  # one that is read as it is asked for becomes a tensor
        embed = replace(embed, words=embed.words.to(table))
    return with_compiled_layers(
        backbone,
        blocks=[backbone.blocks[at].packed(packed) for at in range(backbone.num_layers)],  # one at a time in memory
        embed=embed,
        final_norm=None if backbone.final_norm is None else backbone.final_norm.mapped(lambda _, part: part.clone()),
        project_out=None if backbone.project_out is None else packed_head(backbone.project_out),
        lm_head=lm_head,
        shortcuts={
            layer: shortcut.mapped(lambda _, one: packed_head(one)) for layer, shortcut in backbone.shortcuts.items()
        },
    )


def with_compiled_layers(backbone: Backbone, **changes: Any) -> Backbone:
    """Return a model with some changes, its layers compiled where they are what is compiled here."""
    changed = replace(backbone, **changes)
    if changed.dtype is not torch.float32 or isinstance(changed.blocks[0].qkv, Linear):
        return changed
    from harness.decoding.kernels.layers import CompiledLayers  # loads Numba, as whatever packed the layers did

    return replace(changed, compiled=CompiledLayers.of(changed.blocks))


def pack_near_exact(weight: Tensor) -> LinearMap:
    """Return a float32 matrix ``[out, in]`` in fp16, where this machine multiplies that and it holds the weights."""
    made: WeightsFormat = WEIGHTS_FORMATS.load("fp16")()
    if made.obstacle(weight.device.type) is None and weight.abs().max() <= made.facts.largest:
        return made.pack(weight, None)
    return Linear(weight)


def _check_range(weight: Tensor, name: str, made: WeightsFormat) -> None:
    if math.isinf(made.facts.largest) or weight.is_meta:  # whose weights were looked at before they were packed
        return
    largest = max(abs(end.item()) for end in weight.aminmax())
    if largest > made.facts.largest:
        raise ModelError(
            f"--weights-format {name} holds numbers up to {made.facts.largest:g}, and the weights reach "
            f"{largest:g}. Use --weights-format float32 or bfloat16."
        )


def near_exact() -> list[str]:
    """Return the formats that ``auto`` may take."""
    found = []
    for name, made in WEIGHTS_FORMATS.usable().items():
        with WEIGHTS_FORMATS.leaving_out(name):
            made()
            found += [name] if made.facts.accuracy != "lossy" else []
    return found


def fastest(backbone: Backbone, device: str) -> FormatChoice:
    """Return the fastest format with which a model yields float32's tokens, as far as rounding lets it.

    Products of its first layers are timed at 1, 4 and 16 rows, with other numbers where a model's are not read.
    Activations of another dtype than float32 have a format of their own, and models too small to tell keep float32.
    """
    own = OWN_FORMAT[str(backbone.dtype).removeprefix("torch.")]
    matrices = list(_first_matrices(backbone))
    if own != "float32" or torch.device(device).type != "cpu":
        return FormatChoice(own)
    names = near_exact()
    if sum(matrix.nbytes for matrix in matrices) < ENOUGH:
        return FormatChoice(own, left_out={name: "the model is too small to tell" for name in names if name != own})
    left_out: dict[str, str] = {}
    tried: dict[str, list[LinearMap]] = {}
    for name in names:
        try:
            made = usable(name, device)
            for matrix in backbone.linear_maps():
                assert isinstance(matrix, Linear)
                _check_range(matrix.weight, name, made)
        except ModelError as error:
            left_out[name] = str(error)
            continue
        tried[name] = [made.pack(matrix, None) for matrix in matrices]
    choose(matrices)
    seconds = _time_all(tried, matrices)
    best = min(seconds, key=lambda name: math.prod(seconds[name]))
    share = statistics.geometric_mean(mine / owns for mine, owns in zip(seconds[best], seconds[own], strict=True))
    return FormatChoice(best if share < GAIN else own, seconds, left_out)


def _first_matrices(backbone: Backbone) -> Iterator[Tensor]:
    """Yield matrices of the first layers, ``ENOUGH`` bytes of them where there are so many."""
    read = 0
    for block in backbone.blocks:
        for matrix in (block.qkv, block.output, block.mlp_in, block.mlp_out):
            assert isinstance(matrix, Linear)
            weight = matrix.weight
            yield torch.full(weight.shape, 0.01, dtype=weight.dtype) if weight.is_meta else weight
            read += matrix.weight.nbytes
        if read >= ENOUGH:
            return


def _time_all(tried: Mapping[str, list[LinearMap]], matrices: list[Tensor]) -> dict[str, tuple[float, ...]]:
    """Return the least seconds of several rounds per format and count of rows, per byte of the matrices."""
    size = sum(matrix.nbytes for matrix in matrices)
    least = dict.fromkeys(itertools.product(tried, ROWS), math.inf)
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for name, count in least:
                rows = {matrix.shape[1]: torch.ones((count, matrix.shape[1])) for matrix in matrices}
                started = time.perf_counter()
                for product, matrix in zip(tried[name], matrices, strict=True):
                    product(rows[matrix.shape[1]])
                least[name, count] = min(least[name, count], time.perf_counter() - started)
    return {name: tuple(least[name, count] / size for count in ROWS) for name in tried}


@dataclass(frozen=True, slots=True)
class Packed:
    """A tensor of a packed model.

    Attributes:
        tensor: its numbers, or panels of a packed matrix as bytes.
        kind: of these panels, a name of :data:`harness.decoding.kernels.KINDS`; empty for numbers.
    """

    tensor: Tensor
    kind: str = ""


def tensors_of(backbone: Backbone) -> dict[str, Packed] | None:
    """Return every tensor of a packed model by name; ``None`` where a matrix is not in rows that are compiled here."""
    from harness.decoding.kernels.layers import CompiledLinear

    found: dict[str, Packed] = {}
    strange: list[str] = []

    def matrix(name: str, linear: LinearMap) -> LinearMap:
        if not isinstance(linear, CompiledLinear):
            strange.append(name)
            return linear
        found[name] = Packed(linear.data, linear.kind.name)
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
    from harness.decoding.kernels.layers import CompiledLinear

    def take(name: str, shape: tuple[int, ...], dtype: torch.dtype, kind: str = "") -> Packed:
        one = tensors.get(name)
        if one is None:
            raise ValueError(f"{name} is missing")
        if (tuple(one.tensor.shape), one.tensor.dtype) != (shape, dtype) or one.kind != kind:
            raise ValueError(f"{name} is {one.kind} {tuple(one.tensor.shape)} of {one.tensor.dtype}")
        return one

    def matrix(name: str, linear: LinearMap) -> LinearMap:
        assert isinstance(linear, Linear)
        kind = KINDS.get(tensors[name].kind if name in tensors else "", FP16)
        count, width = linear.shape
        data = take(name, (math.ceil(count / COLUMNS), kind.panel_bytes(width)), torch.uint8, kind.name).tensor
        bias = None if linear.bias is None else take(f"{name}.bias", (count,), torch.float32).tensor
        return CompiledLinear(kind, data, (count, width), bias)

    def numbers(name: str, tensor: Tensor) -> Tensor:
        dtype, shape = tensor.dtype, tuple(tensor.shape)
        if name == "words" and made.facts.table:
            dtype = getattr(torch, made.facts.table)
            if name in tensors and tensors[name].tensor.dim() == 3:  # of a tied LM head
                shape = math.ceil(shape[0] / COLUMNS), shape[1], COLUMNS
        return take(name, shape, dtype).tensor

    return with_compiled_layers(_replaced(skeleton, matrix, numbers))


def _replaced(
    backbone: Backbone, matrix: Callable[[str, LinearMap], LinearMap], numbers: Callable[[str, Tensor], Tensor]
) -> Backbone:
    """Return a model with what two functions of a name return in place of its matrices and its other tensors."""
    blocks = [
        block.mapped(
            lambda what, linear, at=at: matrix(f"{at}.{what}", linear),  # type: ignore[misc]
            lambda what, tensor, at=at: numbers(f"{at}.{what}", tensor),  # type: ignore[misc]
        )
        for at, block in enumerate(backbone.blocks)
    ]
    embed, project_out, norm = backbone.embed, backbone.project_out, backbone.final_norm
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
        final_norm=None if norm is None else norm.mapped(lambda what, part: numbers(f"final_norm.{what}", part)),
        project_out=None if project_out is None else matrix("project_out", project_out),
        lm_head=lm_head,
        shortcuts={
            layer: shortcut.mapped(lambda prefix, one, layer=layer: matrix(f"shortcut.{layer}.{prefix}", one))  # type: ignore[misc]
            for layer, shortcut in backbone.shortcuts.items()
        },
    )


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
        folder: receives the matrices of layers on :data:`~harness.config.model.DISK`; nothing else may be in it.
    """
    blocks = [
        block if where is None else _placed(block, backbone.device, f"{number}", folder if where == DISK else None)
        for number, (block, where) in enumerate(zip(backbone.blocks, elsewhere, strict=True))
    ]
    return replace(backbone, blocks=blocks)


def _placed(block: Block, device: torch.device, name: str, folder: Path | None) -> Block:
    def there(part: str, matrix: LinearMap) -> PlacedLinear:
        assert isinstance(matrix, Linear)
        weight = matrix.weight if folder is None else _on_disk(matrix.weight, folder / f"{name}.{part}")
        return PlacedLinear(Linear(weight, matrix.bias))

    return block.mapped(there, lambda _, tensor: tensor.to(device))


def _on_disk(weight: Tensor, file: Path) -> Tensor:
    """Write a matrix and return it mapped from the file, whose pages memory may drop and whose name is gone."""
    weight.detach().contiguous().view(torch.uint8).numpy().tofile(file)
    there = torch.from_file(str(file), shared=True, size=weight.numel(), dtype=weight.dtype).view(weight.shape)
    with contextlib.suppress(PermissionError):  # Windows keeps the name of what is mapped
        file.unlink()
    return there
