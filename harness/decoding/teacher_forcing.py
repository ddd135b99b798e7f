"""What full depth would choose along a completion that is already written, whoever wrote it.

The prompt is read once and its keys and values are kept; each completion then runs behind it in one pass, whose rows
see exactly the keys and values of full depth. Products of several rows and of one differ in their last bits, so that a
near-tie can fall otherwise than in decoding: of full depth's own tokens this finds all in float32 and some 99 % in
bfloat16 (``tests/decoding/test_teacher_forcing.py`` counts them).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.decoding.cache import KVCache
from harness.decoding.choice import best, choices, not_finite
from harness.decoding.engine import Engine
from harness.decoding.passes import PrefixPass

__all__ = ["TeacherForcing"]


class TeacherForcing:
    """A prompt that full depth has read.

    Args:
        engine: of the model.
        prompt: its tokens, at least one.
        new_tokens: longest completion that will be asked about.

    Attributes:
        nbytes: memory that its keys and values take.

    Raises:
        ModelError: prompt and completion do not fit the model's positions, or full depth's logits are not finite.
    """

    @torch.inference_mode()
    def __init__(self, engine: Engine, prompt: Sequence[int], new_tokens: int) -> None:
        reach = engine.check([prompt], [new_tokens])
        self._backbone, self._rotary, self._start = engine.backbone, engine.rotary(reach), len(prompt)
        of = engine.backbone  # nothing is recorded here: a cache that is keeps its graphs for decoding
        self._cache = KVCache(of.num_layers, 1, reach, of.heads, of.like)
        self._first = self._backbone.logits(
            PrefixPass(self._backbone, self._rotary, [prompt], [0], cache=self._cache).read()
        )
        self._choices(self._first, 1)
        self.nbytes = self._cache.entries.nbytes

    @torch.inference_mode()
    def choices(self, completion: Sequence[int]) -> list[int]:
        """Return full depth's token at every place of a completion, given the prompt and the tokens before the place.

        Args:
            completion: generated tokens, at least one, at most ``new_tokens``.

        Raises:
            ModelError: full depth's logits are not finite at one of them.
        """
        later = self._later(completion)
        return [*self._choices(self._first, 1), *([] if later is None else self._choices(later, 2))]

    @torch.inference_mode()
    def logits(self, completion: Sequence[int]) -> Tensor:
        """Return full depth's logits at every place of a completion, ``[tokens, vocab_size]``.

        Args:
            completion: as for :meth:`choices`.
        """
        later = self._later(completion)
        return self._first if later is None else torch.cat((self._first, later))

    def _later(self, completion: Sequence[int]) -> Tensor | None:
        """Return the logits of all places but the first; ``None`` where there are none."""
        read = completion[:-1]
        if not read:
            return None
        behind = PrefixPass(self._backbone, self._rotary, [read], [0], cache=self._cache, start=self._start)
        behind.advance(self._backbone.num_layers)
        return self._backbone.logits(behind.states()[0])

    def _choices(self, logits: Tensor, place: int) -> list[int]:
        """Return full depth's tokens from the one at a place on."""
        chosen = choices(best(logits))
        for token, (_, logit) in enumerate(chosen, place):
            if not math.isfinite(logit):
                raise not_finite("logits", self._backbone.num_layers, token, self._backbone.dtype)
        return [token for token, _ in chosen]
