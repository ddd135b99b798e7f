"""Full depth's choices along a completion that is already written, whoever wrote it.

The prompt is read once and its keys and values are kept; each completion then runs behind it in one pass, whose rows
see exactly the keys and values of full depth. Products of several rows and of one differ in their last bits, so that a
near-tie can fall otherwise than in decoding: of full depth's own tokens this finds all in float32 and some 99 % in
bfloat16 (``tests/decoding/test_teacher_forcing.py`` counts them).

And what rounding may do to a model's logits: a bound, found without asking whoever rounds. A weights format says how
far its products may be off (``WeightsFacts.relative_error``), and a model decides what that does to its logits: sharp
attention turns a small error into a large one, a flat one averages it out, thirty layers add theirs up. So the same
model is run once more with every product off by as much, in a random direction (:func:`disturbed`). How far its logits
then move bounds what the format may do; a defect, of a kernel or of keys and values, moves them further, however it
looks on its own. Not promised: a proof. Noise is drawn once, and a format's error can be larger than it says on rows
unlike Gaussian ones; ``tests/decoding/test_teacher_forcing.py`` holds the bound against every format and family.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.contracts import LinearMap, PromptRule, WeightsFacts
from harness.decoding.backbone import Backbone
from harness.decoding.cache import KVCache
from harness.decoding.engine import Engine
from harness.decoding.prompt_exits import ShallowPrompt, read_shallow
from harness.decoding.readings import best, choices, not_finite
from harness.decoding.step import PrefixPass


class TeacherForcing:
    """A prompt that full depth has read.

    Args:
        prompt: its tokens, at least one.
        new_tokens: longest completion that will be asked about.
        rule: how deep the prompt is read, where it has exits: choices are then those behind what they left.

    Attributes:
        nbytes: memory that its keys and values take.

    Raises:
        ModelError: prompt and completion do not fit the model's positions, or full depth's logits are not finite.
    """

    @torch.inference_mode()
    def __init__(self, engine: Engine, prompt: Sequence[int], new_tokens: int, rule: PromptRule | None = None) -> None:
        reach = engine.check([prompt], [new_tokens])
        self._backbone, self._rotary, self._start = engine.backbone, engine.rotary(reach), len(prompt)
        of = engine.backbone  # nothing is recorded here: a cache that is keeps its graphs for decoding
        self._cache = KVCache(of.num_layers, 1, reach, of.heads, of.like)
        shallow = None if rule is None else ShallowPrompt.begun(rule, prompt, engine.info, of.like)
        if shallow is None:
            state = PrefixPass(of, self._rotary, [prompt], [0], cache=self._cache).read()
        else:
            read = read_shallow(of, self._rotary, self._cache, engine.prompt_maps, 0, prompt, shallow)
            assert read is not None  # it is the whole prompt
            state = read
        self._first = of.logits(state)
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
        chosen = choices(best(logits))
        for token, (_, logit) in enumerate(chosen, place):
            if not math.isfinite(logit):
                raise not_finite("logits", self._backbone.num_layers, token, self._backbone.dtype)
        return [token for token, _ in chosen]


FLOAT32_ERROR = 1e-6
"""Of a product in float32, over its norm: sums of other order differ by as much."""

STANDARD_DEVIATIONS = 6.0
"""Of the disturbed logits, that a format's may be off anywhere in a completion. int4 and bfloat16 reach 4.4 in tiny
models of every family, fp16 1.9."""


def product_error(facts: WeightsFacts) -> float:
    """Return the bound on the error of a format's products, over their norm."""
    return max(facts.relative_error, FLOAT32_ERROR)


def disturbed(backbone: Backbone, error: float, seed: int = 0) -> Backbone:
    """Return a model each of whose products is off by a share of its norm, in random directions; weights are shared.

    Args:
        backbone: the model.
        error: the share.
        seed: of the directions.
    """
    generator = torch.Generator(backbone.device).manual_seed(seed)

    def off(product: LinearMap) -> LinearMap:
        return _Disturbed(product, error, generator)

    return replace(
        backbone,
        blocks=[block.packed(off) for block in backbone.blocks],
        project_out=None if backbone.project_out is None else off(backbone.project_out),
        lm_head=off(backbone.lm_head),
    )


def largest_error(logits: Tensor, moved: Tensor) -> float:
    """Return what rounding may do to any one logit of a completion.

    Args:
        logits: of its places, ``[tokens, vocab_size]``.
        moved: the same of the disturbed model. A shift of a place's logits together moves no token and does not count.
    """
    return STANDARD_DEVIATIONS * float((moved - logits).float().std(-1).max())


@dataclass(frozen=True, slots=True, eq=False)
class _Disturbed:
    product: LinearMap
    error: float
    generator: torch.Generator

    def __call__(self, x: Tensor) -> Tensor:
        exact = self.product(x)
        size = exact.float().square().mean(-1, keepdim=True).sqrt() * self.error
        noise = torch.randn(exact.shape, generator=self.generator, device=exact.device)
        return (exact + noise * size).to(exact.dtype)

    def rows(self, start: int) -> _Disturbed:
        return _Disturbed(self.product.rows(start), self.error, self.generator)

    @property
    def shape(self) -> tuple[int, int]:
        return self.product.shape

    @property
    def nbytes(self) -> int:
        return self.product.nbytes
