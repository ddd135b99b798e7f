"""Exits for the prompt: most of its tokens stop at a layer, and maps of their states stand in for the layers above.

Reading a prompt is arithmetic, which no exit of a decoded token saves. A token that stops after layer e leaves in
layer e + 1 the keys and values of its own state, exact, and in the layers above those that a linear map makes of that
state and of the one before it: SwiftKV (Qiao 2024, arXiv 2410.03960) with maps in place of the layers' projections,
fitted in closed form and distilled (``harness train prompt-exit``). The tokens that go on attend to what is there; so
do those that are decoded.

What was read so can become exact later: the states at the exit are exact and are kept, so that
:func:`deepen` runs them through the layers above, a piece at a time, and overwrites what the maps made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from harness.contracts import ModelInfo, PromptRule
from harness.decoding.backbone import Backbone, pick, upload
from harness.decoding.blocks import Linear, Rotary
from harness.decoding.cache import KVCache
from harness.decoding.step import COMPILED, PlainSlots, PrefixPass, SlotRunner
from harness.errors import ArtefactError, OptionError

KIND = "prompt-exit"
"""Of the artefact that holds the maps."""
PARTS = ("read", "made", "bias")
"""Of a map, ``LAYER.read`` and so on: ``[rank, n × hidden_size]``, which reads the states of a token and of the n − 1
before it; ``[layers above × 2 KV × D, rank]``; ``[layers above × 2 KV × D]``."""


@dataclass(frozen=True)
class Tail(PromptRule):
    """Read the first few tokens and the last ones by all layers; the others stop after one layer."""

    layer: Annotated[int, Field(ge=1, description="after which the tokens between stop")]
    tail: Annotated[int, Field(ge=1, description="last tokens of the prompt that are read by all layers")] = 64
    first: Annotated[
        int, Field(ge=0, description="first tokens likewise: attention sinks (Xiao 2023, arXiv 2309.17453)")
    ] = 4

    def exits(self, model: ModelInfo) -> tuple[int, ...]:
        """The one layer."""
        if self.layer >= model.num_layers:
            raise OptionError(
                f"prompts cannot exit at layer={self.layer}: {model.name} has {model.num_layers}. Name one from 1 to "
                f"{model.num_layers - 1}."
            )
        return (self.layer,)

    def depths(self, prompt: Sequence[int], model: ModelInfo) -> list[int]:
        """The layer between the first tokens and the tail, counted from the prompt's end."""
        end = max(self.first, len(prompt) - self.tail)
        return [self.layer if self.first <= position < end else model.num_layers for position in range(len(prompt))]


@dataclass(frozen=True)
class Importance(Tail):
    """Read the first tokens, the last ones and those that these attend to most by all layers; the others stop early.

    LazyLLM (Fu 2024, arXiv 2407.14057) keeps at each of several layers the tokens to which the prompt's last one pays
    most attention, mean over heads, and drops the others there. Here it is decided once, at the exit, by the last
    ``tail`` tokens, as SnapKV (Li 2024, arXiv 2404.14469) observes, and nothing is dropped: others leave mapped keys
    and values.
    """

    tail: Annotated[int, Field(ge=1, description="last tokens, read by all layers: their attention decides")] = 32
    keep: Annotated[float, Field(ge=0, le=1, description="share of the tokens between that go on")] = 0.1

    def observers(self) -> int:
        """The tail."""
        return self.tail

    def chosen(self, attention: Tensor, depths: Sequence[int]) -> list[int]:
        """A share of the tokens between, rounded up, whatever reused ones have run already."""
        end = max(self.first, len(depths) - self.tail)
        between = attention[self.first : end]
        best = between.topk(math.ceil(self.keep * len(between))).indices + self.first
        return sorted(best.tolist())


class PromptMaps:
    """Writes keys and values of the layers above a token's exit.

    Args:
        tensors: of the artefact (:data:`KIND`).

    Raises:
        ArtefactError: a map is of another shape.
    """

    def __init__(self, backbone: Backbone, tensors: Mapping[str, Tensor]) -> None:
        self._backbone = backbone
        self._maps: dict[int, tuple[Linear, Linear]] = {}
        width, hidden_size = 2 * backbone.heads.kv_heads * backbone.heads.head_dim, backbone.blocks[0].qkv.shape[1]
        for layer in range(1, backbone.num_layers - 1):
            found = [tensors[name] for part in PARTS if (name := f"{layer}.{part}") in tensors]
            if not found:
                continue
            rows = width * (backbone.num_layers - layer - 1)
            shapes = [tuple(part.shape) for part in found]
            if [len(shape) for shape in shapes] != [2, 2, 1] or not (
                shapes[0][1] % hidden_size == 0 < shapes[0][1] and shapes[1:] == [(rows, shapes[0][0]), (rows,)]
            ):
                raise ArtefactError(f"the prompt-exit map of layer {layer} does not fit the model. Train it again.")
            read, made, bias = found
            self._maps[layer] = Linear(read).to(backbone.dtype), Linear(made, bias).to(backbone.dtype)

    def before(self, layer: int) -> int:
        """Return how many tokens before it an exit's map reads beside a token."""
        above = self._maps.get(layer)
        return 0 if above is None else above[0].shape[1] // self._backbone.blocks[layer].qkv.shape[1] - 1

    @staticmethod
    def read(backbone: Backbone, layer: int, states: Tensor, reach: Sequence[Sequence[int]]) -> Tensor:
        """Return what an exit's map multiplies: what the next layer's projections do, of a token and those before it.

        Args:
            backbone: the model.
            layer: the exit.
            states: after it, ``[m, hidden_size]``.
            reach: for each token and each one before it that is read, the rows of ``states``, ``n`` lists of tokens.

        Returns:
            ``[tokens, n × hidden_size]``.
        """
        block = backbone.blocks[layer]
        states = states if block.post_norm else block.attention_norm(states)
        return torch.cat([pick(states, rows) for rows in reach], dim=1)

    def fill(
        self, cache: KVCache, rotary: Rotary | None, row: int, positions: Sequence[int], layer: int,
        known: Sequence[int], states: Tensor,
    ) -> None:  # fmt: skip
        """Write keys and values of the layers above ``layer`` at some positions of a row.

        Args:
            cache: where to write.
            rotary: position tables, or ``None``.
            row: of the cache.
            positions: ascending.
            layer: after which the tokens stopped; the layer behind it gets its own keys and values.
            known: positions whose states are there, these and perhaps others, ascending.
            states: theirs, ``[known, hidden_size]``.

        Raises:
            ArtefactError: there is no map for the layer.
        """
        if not positions:
            return
        backbone, heads, above = self._backbone, self._backbone.heads, self._maps.get(layer)
        places, at = upload(positions, backbone.device), {position: place for place, position in enumerate(known)}
        tables = None if rotary is None else rotary.tables(places)
        own = pick(states, [at[position] for position in positions])
        cache.entries[layer, row, :, places] = backbone.blocks[layer].fill(own, rotary, tables).transpose(0, 1)
        if layer == backbone.num_layers - 1:
            return
        if above is None:
            raise ArtefactError(f"there is no prompt-exit map for layer {layer}. Make it: harness train prompt-exit.")
        reach = [[at[position] for position in positions]]
        for back in range(1, self.before(layer) + 1):  # where one is not known, the next one stands for it
            reach.append([at.get(position - back, next_) for position, next_ in zip(positions, reach[-1], strict=True)])
        read, made = above
        entries = made(read(self.read(backbone, layer, states, reach)))
        entries = entries.view(len(positions), -1, 2 * heads.kv_heads, heads.head_dim).transpose(0, 1)
        if rotary is not None and tables is not None:
            entries = rotary.turn(entries, heads.kv_part(tables))
        cache.entries[layer + 1 :, row, :, places] = entries.transpose(1, 2)


@dataclass(slots=True)
class ShallowPrompt:
    """A prompt that is read, or is being read, with exits.

    Attributes:
        rule: says how deep, and which tokens go on by attention.
        layer: after which the first of its tokens stop, and all of them have run exactly.
        wanted: layers that each token is to run.
        depths: layers that each of those has run that are read.
        exact: positions from the first on whose keys and values are full depth's.
        states: of the positions behind those that are read, after ``layer`` layers, ``[n, hidden_size]``.
    """

    rule: PromptRule
    layer: int
    wanted: list[int]
    depths: list[int]
    exact: int
    states: Tensor

    @classmethod
    def begun(cls, rule: PromptRule, prompt: Sequence[int], model: ModelInfo, like: Tensor) -> ShallowPrompt | None:
        """Return a prompt of which nothing is read; ``None`` where the rule has all layers read it."""
        wanted = [*rule.depths(prompt, model)[:-1], model.num_layers]
        if min(wanted) == model.num_layers:
            return None
        return cls(rule, min(wanted), wanted, [], 0, like.new_empty((0, model.hidden_size)))

    def reusable(self, length: int, other: ShallowPrompt | None) -> int:
        """Return how many of the first ``length`` positions serve another prompt; ``None``: one of all layers.

        Never one that is shallower than is wanted.
        """
        end = min(length, self.exact)
        if other is None or other.layer != self.layer:
            return end
        length = min(length, len(self.depths))
        while end < length and self.depths[end] >= other.wanted[end]:
            end += 1
        return end

    def reuse(self, length: int, earlier: ShallowPrompt | None) -> None:
        """Begin with the first positions of an earlier prompt; ``None``: one of all layers."""
        self.exact = length if earlier is None else min(length, earlier.exact)
        self.depths = [max(self.wanted)] * self.exact
        if earlier is not None:
            self.depths += earlier.depths[self.exact : length]
            self.states = earlier.states[: length - self.exact]

    def is_exact(self, reused: int) -> bool:
        """Whether a prompt, read to its end, is full depth's: what was reused of it, and no token behind stopped."""
        return reused == self.exact and min(self.depths[reused:]) == max(self.wanted)

    @property
    def waiting(self) -> list[int]:
        """Positions that are read to the exit and are to go on."""
        if self.rule.observers() and len(self.depths) < len(self.wanted):
            return []
        read = zip(self.depths[self.exact :], self.wanted[self.exact :], strict=False)
        return [position for position, (ran, wanted) in enumerate(read, self.exact) if ran < wanted]


@torch.inference_mode()
def read_shallow(
    backbone: Backbone,
    rotary: Rotary | None,
    cache: KVCache,
    maps: PromptMaps,
    row: int,
    tokens: Sequence[int],
    prompt: ShallowPrompt,
    max_tokens: int | None = None,
) -> Tensor | None:
    """Read the next piece of a prompt with exits.

    Where attention decides which tokens go on, all of it is read to the exit first, and they go on in further pieces.

    Args:
        backbone: the model.
        rotary: position tables, or ``None``.
        cache: keys and values of all layers.
        maps: fill the layers above an exit.
        row: of the cache.
        tokens: the next ones; none where all are at the exit, and some are to go on.
        prompt: what is read of it, and how deep; it is brought up to date.
        max_tokens: that go on in this call at most; all of them when left out.

    Returns:
        The state of the prompt's last token after all layers, ``[1, hidden_size]``; ``None``: call again.
    """
    if tokens:
        start, layer, observers = len(prompt.depths), prompt.layer, prompt.rule.observers()
        current = PrefixPass(backbone, rotary, [tokens], [row], cache=cache, start=start)
        current.advance(layer)
        state = current.states()[0]
        prompt.states = torch.cat((prompt.states, state))
        prompt.depths += [layer] * len(tokens)
        going = set(() if observers else prompt.waiting)  # attention looks at the keys of all
        stops = [position for position in range(start, len(prompt.depths)) if position not in going]
        begin = max(prompt.exact, start - maps.before(layer))
        found = prompt.states[begin - prompt.exact :]
        maps.fill(cache, rotary, row, stops, layer, range(begin, len(prompt.depths)), found)
        if observers and len(prompt.depths) == len(prompt.wanted):
            last = max(prompt.exact, len(prompt.wanted) - observers)
            attention = _attention(backbone, rotary, cache, row, last, layer, prompt.states[last - prompt.exact :])
            known = [max(pair) for pair in zip(prompt.depths, prompt.wanted, strict=True)]
            for position in prompt.rule.chosen(attention, known):
                prompt.wanted[position] = backbone.num_layers
    return _go_on(backbone, rotary, cache, maps, row, prompt, prompt.waiting[:max_tokens])


def _go_on(
    backbone: Backbone, rotary: Rotary | None, cache: KVCache, maps: PromptMaps, row: int, prompt: ShallowPrompt,
    running: list[int],
) -> Tensor | None:  # fmt: skip
    """Run some positions from the exit on, each as deep as is wanted; return the last token's state if it is there."""
    layer, last = prompt.layer, backbone.num_layers - 1
    state = prompt.states[[position - prompt.exact for position in running]]
    # behind the last layer nobody asks for a token but the prompt's last: the others leave only keys and values there
    ends = {position: min(prompt.wanted[position], last) for position in running}
    if running and running[-1] == len(prompt.wanted) - 1:
        ends[running[-1]] = backbone.num_layers
    for position in running:
        prompt.depths[position] = prompt.wanted[position]
    for depth in sorted(set(ends.values())):
        state = _slots(backbone, rotary, cache, row, running).run(state, layer, depth)
        layer = depth
        if depth == backbone.num_layers:
            return state
        stops = torch.tensor([ends[position] == depth for position in running], device=state.device)
        leaving = [position for position in running if ends[position] == depth]
        maps.fill(cache, rotary, row, leaving, depth, running, state)
        running, state = [position for position in running if ends[position] > depth], state[~stops]
    return None


def _attention(
    backbone: Backbone, rotary: Rotary | None, cache: KVCache, row: int, start: int, layer: int, states: Tensor
) -> Tensor:
    """Return what each position is paid by those from ``start`` to the end, mean over them and over heads, ``[n]``."""
    block, end = backbone.blocks[layer], start + len(states)
    positions = torch.arange(start, end, device=states.device)
    queries, _ = block.project(states, rotary, None if rotary is None else rotary.tables(positions))
    keys, _ = cache.gather(layer, slice(row, row + 1), end)
    grouped = queries.view(len(states), keys.shape[1], -1, keys.shape[-1])
    scores = torch.einsum("qkgd,kpd->kgqp", grouped, keys[0]) * block.scale + cache.mask(positions, end)
    return scores.float().softmax(-1).mean((0, 1, 2))


@torch.inference_mode()
def deepen(
    backbone: Backbone, rotary: Rotary | None, cache: KVCache, maps: PromptMaps, row: int, prompt: ShallowPrompt,
    max_tokens: int,
) -> None:  # fmt: skip
    """Run the next positions of a prompt through the layers above its exit, so that they hold full depth's entries."""
    states = prompt.states[:max_tokens]
    positions, last = list(range(prompt.exact, prompt.exact + len(states))), backbone.num_layers - 1
    deep = _slots(backbone, rotary, cache, row, positions).run(states, prompt.layer, last)
    maps.fill(cache, rotary, row, positions, last, positions, deep)
    prompt.exact += len(states)
    prompt.states = prompt.states[len(states) :]


def _slots(backbone: Backbone, rotary: Rotary | None, cache: KVCache, row: int, positions: Sequence[int]) -> SlotRunner:
    """Return positions of one row, ascending, as runs that follow each other."""
    if backbone.compiled is not None and len(positions) <= COMPILED:
        return backbone.compiled.slots(cache, rotary, [row] * len(positions), positions)
    among = set(positions)
    starts = [position for position in positions if position - 1 not in among]
    ends = [position for position in positions if position + 1 not in among]
    return PlainSlots(backbone, rotary, cache, [row] * len(starts), starts, ends)
