"""Logits and cheap heads read: which token they choose, whether they choose one at all, and how sure they are.

To ``argmax`` NaN is the greatest of all, and infinity is greater than any number. So the logit of the token that it
finds is finite only where the row has no such logit: whoever reads it beside the token knows, and nobody looks at the
vocabulary again. (``Tensor.max``, which gives both, takes half as long again as ``argmax`` on a CPU.)

Logits of any float type are widened to float32 before rules compare what they make of them; a trace holds the same
numbers, so that a rule that asks for these instead of logits can be replayed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from harness.contracts import CheapHead, HeadChoice, HeadLogits, LinearMap, LMHead, WeightsFormat
from harness.decoding.backbone import Backbone, read
from harness.decoding.kernels import FP16
from harness.decoding.packing import pack_near_exact
from harness.errors import ModelError
from harness.registry import HEADS, WEIGHTS_FORMATS

CHUNK = 256
"""Positions whose logits are in memory together where a text is scored."""

COLUMNS = 64
"""Columns of the LM head that are read out at a time."""


def scores(backbone: Backbone, states: Tensor, tokens: Sequence[int], layer: int) -> Iterator[tuple[float, int, float]]:
    """Yield of each token of a text its log-probability after the state at its place, the most probable one, and that
    one's.

    Args:
        backbone: the model.
        states: after so many layers, of the tokens before, ``[n, hidden_size]``.
        tokens: n of them.
        layer: whose head reads them.

    Raises:
        ModelError: they are not finite.
    """
    wanted = torch.tensor(tokens, dtype=torch.long, device=states.device)
    for rows, some in zip(torch.split(states, CHUNK), torch.split(wanted, CHUNK), strict=True):
        read_states = rows if layer == backbone.num_layers else backbone.exit_state(rows, layer)
        logits = backbone.logits(read_states).float().log_softmax(-1)
        values, (best, choices) = logits.gather(1, some[:, None])[:, 0].tolist(), logits.max(-1)
        if not all(map(math.isfinite, values)):
            raise not_finite("logits", layer, 1, backbone.dtype)
        yield from zip(values, choices.tolist(), best.tolist(), strict=True)


class Heads:
    """The cheap heads of a model.

    Args:
        backbone: the model; its ``trained`` finds the artefacts that heads are made from.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._made: dict[HeadChoice, CheapHead] = {}
        self._lm_head: LMHead | None = None
        self._rows = torch.empty(0)

    def __getitem__(self, choice: HeadChoice) -> CheapHead:
        """Return a head, made when it is first asked for.

        Raises:
            UnknownNameError: no such head.
            ArtefactError: the artefact it is made from is missing, or not of this model.
        """
        found = self._made.get(choice)
        if found is None:
            made: type[CheapHead] = HEADS.load(choice.name)
            facts = made.facts
            tensors = self._backbone.trained(facts.artefact) if facts.artefact else {}
            with torch.inference_mode():
                found = made(lm_head_of(self._backbone), choice.size or facts.default_size, tensors)
            self._made[choice] = found
        return found

    def read(self, choice: HeadChoice, exit_states: Tensor) -> HeadLogits:
        """Read exit states, ``[n, hidden_size]``."""
        head = self[choice]
        return head(self._backbone.head_states(exit_states.to(self._backbone.dtype)).float())

    @torch.inference_mode()
    def logits_of(self, token_ids: Tensor, exit_states: Tensor) -> Tensor:
        """Return the LM head's logits of some tokens of each row, ``[n, k]`` → ``[n, k]`` float32.

        From the second call on only their rows are read; the first makes a float32 copy of the head to read them from.
        """
        if self._lm_head is None:
            self._lm_head = lm_head_of(self._backbone)
            self._rows = self._lm_head.rows(None)
        states = self._backbone.head_states(exit_states.to(self._backbone.dtype)).float()
        logits = (self._rows[token_ids] * states.unsqueeze(1)).sum(-1)
        return logits if self._lm_head.bias is None else logits + self._lm_head.bias[token_ids]

    def row_bytes(self) -> int:
        """Bytes of one row that :meth:`logits_of` reads."""
        return self._rows.shape[1] * self._rows.element_size()


def once(kept: dict[Any, Tensor], key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
    """Return what is kept under a key; computed, and kept, when it is first asked for."""
    found = kept.get(key)
    if found is None:
        found = kept[key] = compute()
    return found


class HeadReading:
    """A cheap head's reading of some rows. Implements :class:`harness.contracts.Reading`.

    Args:
        read: makes the logits when they are first needed, and is let go of then: it holds the view, and its cache.
        once: computes what belongs to a key at most once for these rows.
    """

    __slots__ = ("_logits", "_once", "_read")

    def __init__(self, read: Callable[[], HeadLogits], once: Callable[[str, Callable[[], Tensor]], Tensor]) -> None:
        self._read: Callable[[], HeadLogits] | None = read
        self._once = once
        self._logits: HeadLogits | None = None

    @classmethod
    def of(cls, logits: HeadLogits) -> HeadReading:
        """Return a reading of logits that are there."""
        return cls(lambda: logits, partial(once, {}))

    @property
    def is_made(self) -> bool:
        """Whether the logits are there."""
        return self._logits is not None

    def of_rows(self, index: Tensor) -> HeadLogits:
        """Return the logits of some of the rows."""
        found = self._found
        return HeadLogits(found.logits[index], found.token_ids, None if found.rest is None else found.rest[index])

    @property
    def _found(self) -> HeadLogits:
        if self._logits is None:
            assert self._read is not None
            self._logits, self._read = self._read(), None
        return self._logits

    @property
    def top_token(self) -> Tensor:
        """The best token, ``[n]``."""
        return self._once("token", lambda: self._ids(self._found.logits.argmax(-1)))

    @property
    def top_probability(self) -> Tensor:
        """Its probability, ``[n]``."""
        return self._once("top", self._top)

    @property
    def second_probability(self) -> Tensor:
        """Probability of the second token, ``[n]``."""
        return self._once("second", self._second)

    @property
    def entropy(self) -> Tensor:
        """Entropy in nats, all that is not read taken as one token, ``[n]``."""
        return self._once("entropy", self._entropy)

    def best_tokens(self, count: int) -> Tensor:
        """Return the best tokens of each row, ``[n, count]``."""
        logits = self._found.logits
        return self._ids(logits.topk(min(count, logits.shape[-1]), dim=-1).indices)

    def _ids(self, columns: Tensor) -> Tensor:
        return columns if self._found.token_ids is None else self._found.token_ids[columns]

    def _top(self) -> Tensor:
        return (self._found.logits.amax(-1) - _log_total(self._found)).exp()

    def _second(self) -> Tensor:
        first, second = self._found.logits.topk(2, dim=-1).values.unbind(-1)
        total = _log_total(self._found)
        self._once("top", (first - total).exp)
        return (second - total).exp()

    def _entropy(self) -> Tensor:
        found, total = self._found, _log_total(self._found)
        logs = found.logits - total.unsqueeze(-1)
        parts = (logs.exp() * logs).sum(-1)
        if found.rest is not None:
            rest = found.rest - total
            parts = parts + rest.exp() * rest
        return -parts


def _log_total(found: HeadLogits) -> Tensor:
    """Return log Σ exp over everything, ``[n]``."""
    total = found.logits.logsumexp(-1)
    return total if found.rest is None else torch.logaddexp(total, found.rest)


def lm_head_of(backbone: Backbone) -> LMHead:
    """Return what heads are made of, whatever format the LM head is stored in."""
    vocab_size, width = backbone.lm_head.shape
    bias = backbone.lm_head(torch.zeros((1, width), dtype=backbone.dtype, device=backbone.device))[0].float()
    return LMHead(
        vocab_size,
        width,
        str(backbone.device),
        partial(_rows, backbone),
        bias if bias.any() else None,
        pack_near_exact,
    )


def _rows(backbone: Backbone, token_ids: Tensor | None) -> Tensor:
    """Return rows of the LM head, float32: its products with unit vectors are its columns."""
    linear, (vocab_size, width) = backbone.lm_head, backbone.lm_head.shape
    plain = _plain_rows(linear)
    if plain is not None:
        index = torch.arange(vocab_size) if token_ids is None else token_ids
        return plain[index // plain.shape[2], :, index % plain.shape[2]].float()
    count = vocab_size if token_ids is None else len(token_ids)
    rows = torch.empty((count, width), device=backbone.device)
    units = torch.eye(width, dtype=backbone.dtype, device=backbone.device)
    bias = linear(torch.zeros_like(units[:1]))
    for start in range(0, width, COLUMNS):
        columns = linear(units[start : start + COLUMNS]) - bias
        rows[:, start : start + COLUMNS] = (columns if token_ids is None else columns[:, token_ids]).t()
    return rows


def _plain_rows(linear: LinearMap) -> Tensor | None:
    """Return panels of numbers in half precision, ``[panels, in, columns]``; ``None`` where a matrix has others."""
    from harness.decoding.kernels.layers import CompiledLinear

    if not isinstance(linear, CompiledLinear) or linear.kind is not FP16 or linear.first:
        return None
    made: WeightsFormat = WEIGHTS_FORMATS.load("fp16")()
    return made.words(linear)


def top_probability(logits: Tensor) -> Tensor:
    """Return the probability of the best token, ``[n, vocab_size]`` → ``[n]`` float32."""
    logits = logits.float()
    return (logits.amax(-1) - logits.logsumexp(-1)).exp()


def two_best(logits: Tensor) -> Tensor:
    """Return the probabilities of the best and the second token, ``[n, vocab_size]`` → ``[n, 2]`` float32."""
    logits = logits.float()
    return (logits.topk(2, dim=-1).values - logits.logsumexp(-1, keepdim=True)).exp()


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy in nats, ``[n, vocab_size]`` → ``[n]`` float32.

    H = log Σ eˣ − Σ x·eˣ / Σ eˣ over logits x shifted by their maximum.
    """
    shifted = logits.float()
    shifted = shifted - shifted.amax(-1, keepdim=True)
    weights = shifted.exp()
    total = weights.sum(-1)
    return total.log() - (shifted * weights).sum(-1) / total


Best: TypeAlias = tuple[Tensor, Tensor]
"""Tokens, ``[n]`` int64, and their logits, ``[n]``."""

Scores: TypeAlias = tuple[int, list[int], Tensor]
"""A layer, rows of the batch, and a number for each of them, ``[n]``."""


def best(logits: Tensor) -> Best:
    """Return the best token of each row and its logit, ``[n, vocab_size]`` → ``[n]`` twice."""
    tokens = logits.argmax(-1, keepdim=True)
    return tokens.squeeze(-1), logits.gather(-1, tokens).squeeze(-1)


def choices(found: Best) -> list[tuple[int, float]]:
    """Return best tokens and their logits to the host."""
    return list(zip(*read(*found), strict=True))


def undefined(scores: Sequence[Scores]) -> Iterator[tuple[int, int]]:
    """Yield (row, layer) of every score that is NaN, which compares with nothing; all come to the host at once."""
    for (layer, rows, _), numbers in zip(scores, read(*(numbers for _, _, numbers in scores)), strict=True):
        yield from ((row, layer) for row, number in zip(rows, numbers, strict=True) if math.isnan(number))


def not_finite(what: str, layer: int, token: int, dtype: torch.dtype) -> ModelError:
    """Return the refusal of a row that cannot go on.

    Args:
        what: what is not finite, in the plural.
        layer: decoder layers executed.
        token: which new token, from 1.
        dtype: of the activations.
    """
    name = str(dtype).removeprefix("torch.")
    if dtype is torch.float32:
        cause = "weights or activations are NaN or overflow. Check the model's files, or fetch them again"
    else:
        cause = f"weights or activations overflow in {name}. Try --dtype float32"
    return ModelError(f"{what} of layer {layer} are not finite at token {token}: {cause}.")
