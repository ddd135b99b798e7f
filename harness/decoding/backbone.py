"""A decoder-only transformer as the engine sees it, whatever family it came from, and how values reach its device.

On an accelerator each read stops the host until the device has done all that was asked of it, and so does an upload
from ordinary memory. ``tests/decoding/test_host_reads.py`` counts both, per token and strategy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from harness.contracts import ExitModule, LinearMap
from harness.decoding.blocks import Block, HeadShape, LayerNorm, Linear, Norm, RMSNorm, Rotary
from harness.decoding.cache import KVCache
from harness.errors import ArtefactError

if TYPE_CHECKING:
    from harness.decoding.kernels.layers import CompiledLayers


def upload(values: Sequence[Any], device: torch.device) -> Tensor:
    """Return integers of the host as a tensor of a device, int64; work that uses it is queued behind it."""
    if device.type == "cpu":
        return torch.tensor(values, dtype=torch.int64)
    # The pinned memory is not used again before it has been copied: torch's allocator sees to that.
    return torch.tensor(values, dtype=torch.int64, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def pick(states: Tensor, places: Sequence[int]) -> Tensor:
    """Return some rows of a tensor, copied."""
    return states[upload(places, states.device)]


def near(*tensors: Tensor) -> list[Tensor]:
    """Return several tensors ``[n]`` on the host, and wait once at most.

    Token ids and activations of any precision are exact in float64, as which they cross.
    """
    far = [one for one in tensors if one.device.type != "cpu"]
    if not far:
        return list(tensors)
    if len(far) < 2:
        return [one.cpu() for one in tensors]
    together = torch.cat([one.double() for one in far]).cpu()
    parts = iter(torch.split(together, [len(one) for one in far]))
    return [one if one.device.type == "cpu" else next(parts).to(one.dtype) for one in tensors]


def read(*tensors: Tensor) -> list[list[Any]]:
    """Return several tensors ``[n]`` as lists of numbers, and wait once at most."""
    return [one.tolist() for one in near(*tensors)]


_UNKNOWN = torch.empty(0)


@dataclass(frozen=True)
class Embedding:
    """Token ids and positions → hidden states.

    Attributes:
        words: a row per token, ``[vocab_size, width]``, or a column of a panel, ``[panels, width, columns]``; may be
            narrower numbers than the activations.
        places: a row per position, or ``None`` where positions enter in attention alone (rotary).
        offset: row of position 0 in ``places``.
        project_in: map of word vectors to the hidden size (OPT-350m), or ``None``.
        dtype: of the activations, where ``words`` has another.
    """

    words: Tensor
    places: Tensor | None = None
    offset: int = 0
    project_in: LinearMap | None = None
    dtype: torch.dtype | None = None

    def __call__(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Return hidden states ``[n, hidden_size]`` of token ids ``[n]`` at positions ``[n]``."""
        columns = self.words.shape[2] if self.words.dim() == 3 else 0
        hidden = self.words[token_ids // columns, :, token_ids % columns] if columns else self.words[token_ids]
        if self.dtype is not None:
            hidden = hidden.to(self.dtype)
        if self.project_in is not None:
            hidden = self.project_in(hidden)
        return hidden if self.places is None else hidden + self.places[positions + self.offset]


def _nothing_trained(kind: str) -> Mapping[str, Tensor]:
    raise ArtefactError(f"there is no {kind} for this model.")


@dataclass(frozen=True)
class Backbone:
    """Weights and arithmetic of one model.

    Attributes:
        heads: attention geometry, the same in every layer.
        rotary: makes the rotary tables for so many positions; ``None`` for learned positions.
        final_norm: norm before the LM head, or ``None`` (post-norm models).
        project_out: map between final norm and LM head (OPT-350m), or ``None``.
        shortcuts: exit layer → what makes of its state the last layer's; empty with the shared exit head.
        like: an empty tensor of the activations' dtype and device; the LM head's as it was read when left out.
        trained: finds the tensors of an artefact of some kind, for heads that are made from one; it raises
            ``ArtefactError`` where there is none.
        compiled: these layers compiled for a few tokens; ``None`` where torch runs them. Whoever packs them sets it.
    """

    blocks: Sequence[Block]
    heads: HeadShape
    embed: Embedding
    rotary: Callable[[int], Rotary] | None
    final_norm: Norm | None
    project_out: LinearMap | None
    lm_head: LinearMap
    shortcuts: Mapping[int, ExitModule] = field(default_factory=dict)
    trained: Callable[[str], Mapping[str, Tensor]] = _nothing_trained
    like: Tensor = field(default_factory=lambda: _UNKNOWN)
    compiled: CompiledLayers | None = None

    def __post_init__(self) -> None:
        if self.like is _UNKNOWN:
            assert isinstance(self.lm_head, Linear)
            object.__setattr__(self, "like", self.lm_head.weight.new_empty(0))
        if self.compiled is not None and self.compiled.blocks is not self.blocks:  # of layers that were replaced
            object.__setattr__(self, "compiled", None)

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.like.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations."""
        return self.like.dtype

    def linear_maps(self) -> Iterator[LinearMap]:
        """Yield everything that decoding multiplies with, layer by layer."""
        if self.embed.project_in is not None:
            yield self.embed.project_in
        for block in self.blocks:
            yield from (block.qkv, block.output, block.mlp_in, block.mlp_out)
        for shortcut in self.shortcuts.values():
            yield from shortcut.maps.values()
        if self.project_out is not None:
            yield self.project_out
        yield self.lm_head

    def matrices(self) -> Iterator[Tensor]:
        """Yield what torch multiplies as a plain tensor, ``[out, in]`` each, and the part that fills K,V."""
        for block in self.blocks:
            if isinstance(block.qkv, Linear):
                yield block.qkv.rows(self.heads.query_width).weight
        yield from (part.weight for part in self.linear_maps() if isinstance(part, Linear))

    def exit_state(self, hidden: Tensor, layer: int) -> Tensor:
        """Return what the final norm reads at an exit, ``[n, hidden_size]`` → the same shape."""
        shortcut = self.shortcuts.get(layer)
        return hidden if shortcut is None else shortcut(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the LM head's logits of states before the final norm, ``[n, hidden_size]`` → ``[n, vocab_size]``."""
        return self.lm_head(self.head_states(hidden))

    def head_states(self, hidden: Tensor) -> Tensor:
        """Return what the LM head multiplies, from states before the final norm, ``[n, hidden_size]`` → ``[n, in]``."""
        if self.final_norm is not None:
            hidden = self.final_norm(hidden)
        return hidden if self.project_out is None else self.project_out(hidden)


@dataclass(frozen=True, slots=True)
class HeadModules:
    """The shared exit head as transformers modules, for training: gradients reach their parameters.

    Attributes:
        norm: final norm, or ``None`` (post-norm models).
        project_out: map between final norm and LM head (OPT-350m), or ``None``.
        lm_head: vocabulary projection, with ``weight`` ``[vocab_size, width]`` and perhaps ``bias``.
    """

    norm: nn.Module | None
    project_out: nn.Module | None
    lm_head: nn.Module

    def read(self, hidden: Tensor) -> Tensor:
        """Return what the LM head multiplies, from hidden states before the final norm."""
        if self.norm is not None:
            hidden = self.norm(hidden)
        return hidden if self.project_out is None else self.project_out(hidden)


def linear(module: nn.Module) -> Linear:
    """Take an ``nn.Linear``'s tensors, or a GPT-2 ``Conv1D``'s transposed; storage is shared."""
    weight, bias = _tensor(module, "weight"), _tensor(module, "bias")
    assert weight is not None
    if type(module).__name__ != "Conv1D":
        return Linear(weight, bias)
    rows = weight.t().contiguous()
    module.weight.data = rows.t()
    return Linear(rows, bias)


def table(module: nn.Module) -> Tensor:
    """Take an embedding's rows."""
    weight = _tensor(module, "weight")
    assert weight is not None
    return weight


def fuse(*modules: nn.Module) -> Linear:
    """Stack several ``nn.Linear`` of one input into one; the modules become views of the result.

    Weights stay in memory once, and the transformers model stays usable.
    """
    parts = [linear(module) for module in modules]
    weight = torch.cat([part.weight for part in parts])
    biases = [part.bias for part in parts if part.bias is not None]
    bias = torch.cat(biases) if len(biases) == len(parts) else None
    row = 0
    for module, part in zip(modules, parts, strict=True):
        end = row + part.weight.shape[0]
        module.weight.data = weight[row:end]
        if bias is not None:
            module.bias.data = bias[row:end]
        row = end
    return Linear(weight, bias)


def rms_norm(module: nn.Module) -> RMSNorm:
    """Take a transformers RMSNorm."""
    weight = _tensor(module, "weight")
    assert weight is not None
    return RMSNorm(weight, float(module.variance_epsilon))  # type: ignore[arg-type]


def layer_norm(module: nn.Module) -> LayerNorm:
    """Take an ``nn.LayerNorm``, with or without gain and bias."""
    assert isinstance(module, nn.LayerNorm)
    return LayerNorm(_tensor(module, "weight"), _tensor(module, "bias"), module.eps, module.normalized_shape[0])


def rotary_tables(module: nn.Module, heads: HeadShape, like: Tensor) -> Callable[[int], Rotary]:
    """Make rotary tables with transformers' own module, so that every scaling rule is its own."""
    like = like.new_empty(0)

    def make(positions: int) -> Rotary:
        cos, sin = module(like, torch.arange(positions, device=like.device).unsqueeze(0))
        return Rotary(cos[0], sin[0], heads)

    return make


def _tensor(module: nn.Module, name: str) -> Tensor | None:
    value = getattr(module, name, None)
    return None if value is None else value.detach()


class KVFiller:
    """Writes keys and values of skipped layers, for KV policies that fill them (``propagate``).

    CALM (Schuster 2022, arXiv 2207.07061, section 3): a token that exits after layer e leaves, for every deeper layer,
    the keys and values that layer would compute from the exit hidden state. Only the norm and the key and value
    projections run. Norms of one vector differ between layers in gain and bias alone, and rotation is the same in all
    of them, so both are done once for all layers; what remains is one matrix per layer, read at memory bandwidth;
    compiled layers do it in one call.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        norms = [block.attention_norm for block in backbone.blocks]
        first = backbone.blocks[0]
        self._joint = first.key_norm is None and not first.post_norm and all(n.weight is not None for n in norms)
        if self._joint:
            self._gain = torch.stack([cast("Tensor", norm.weight) for norm in norms]).unsqueeze(1)
            biases = [norm.bias for norm in norms if isinstance(norm, LayerNorm) and norm.bias is not None]
            self._shift = torch.stack(biases).unsqueeze(1) if biases else None

    @cached_property
    def _maps(self) -> list[LinearMap]:
        """K,V projections alone; made for the first fill, since a packed format cannot always share them."""
        return [block.qkv.rows(block.heads.query_width) for block in self._backbone.blocks]

    def fill(
        self,
        cache: KVCache,
        rotary: Rotary | None,
        layer: int,
        rows: Sequence[int],
        positions: Sequence[int],
        hidden: Tensor,
        final: Tensor | None = None,
    ) -> None:
        """Fill all layers from ``layer`` on.

        Args:
            cache: where to write.
            rotary: position tables, or ``None``.
            layer: exit layer; layers with 0-based index ≥ ``layer`` are filled.
            rows: rows of the slots.
            positions: their positions.
            hidden: exit hidden states, ``[n, hidden_size]``.
            final: estimates of the last layer's hidden states, same shape; each skipped layer is then filled from the
                point between the two where it stands, instead of from the exit hidden state.
        """
        if not rows:
            return
        if self._backbone.compiled is not None and final is None:
            slots = self._backbone.compiled.slots(cache, rotary, rows, positions)
            slots.fill(hidden, layer, self._backbone.num_layers)
            return
        device = hidden.device
        places = upload(positions, device)
        tables = None if rotary is None else rotary.tables(places)
        index = upload(rows, device)
        if not self._joint:
            for deeper in range(layer, self._backbone.num_layers):
                share = (deeper - layer) / (self._backbone.num_layers - layer)
                entered = hidden if final is None else torch.lerp(hidden, final, share)
                cache.write(deeper, index, places, self._backbone.blocks[deeper].fill(entered, rotary, tables))
            return
        entries = self._all_layers(layer, hidden, final)
        if rotary is not None and tables is not None:
            entries = rotary.turn(entries, self._backbone.heads.kv_part(tables))
        if len(rows) == 1:
            cache.entries[layer:, rows[0], :, positions[0]] = entries[:, 0]
        else:
            cache.entries[layer:, index, :, places] = entries.transpose(0, 1)

    def _all_layers(self, layer: int, hidden: Tensor, final: Tensor | None) -> Tensor:
        """Keys and values before rotation, ``[layers, n, 2 KV, head_dim]``."""
        if final is not None:  # the input of every skipped layer, [layers, n, hidden_size]
            left = self._backbone.num_layers - layer
            shares = torch.arange(left, dtype=hidden.dtype, device=hidden.device) / left
            hidden = torch.lerp(hidden.unsqueeze(0), final.unsqueeze(0), shares.view(-1, 1, 1))
        heads = self._backbone.heads
        norm = self._backbone.blocks[layer].attention_norm
        if isinstance(norm, RMSNorm):
            standard = norm.standardise(hidden)
        else:
            standard = F.layer_norm(hidden, (norm.width,), eps=norm.eps)
        normed = standard * self._gain[layer:]
        if self._shift is not None:
            normed = normed + self._shift[layer:]
        fused = torch.stack([project(x) for project, x in zip(self._maps[layer:], normed, strict=True)])
        return fused.view(len(fused), -1, 2 * heads.kv_heads, heads.head_dim)
