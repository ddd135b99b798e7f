"""A rule that reads the whole LM head once a token, and only its likeliest rows at later exits."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast

from pydantic import Field
from torch import Tensor

from harness.config import StrategySpec
from harness.config.options import build_strategy, effective_options
from harness.contracts import Batch, ExitRule, ExitView, HeadChoice, ModelInfo, Reading, Strategy
from harness.contracts.asking import ask_rule
from harness.decoding.readings import entropy, top_probability, two_best
from harness.errors import OptionError


@dataclass(frozen=True)
class Shortlist(Strategy):
    """Ask another strategy, and let it see only the k likeliest tokens of a token's first check from then on.

    Rule: that of ``rule``, with the logits of the first exit point whole, and at later ones softmax over the k tokens
    that were best there. Cost per check: an LM head at the first exit point, k of its rows at later ones.

    Source: Vincenti et al., "Dynamic Vocabulary Pruning in Early-Exit LLMs", 2024, arXiv 2410.18952. What
    differs: the paper prunes at a layer of its choice, here it is the first exit point; the last layer reads the whole
    head. With ``token=kept`` an exit's token is the best of the kept ones, as in the paper; with ``token=full`` the
    whole head is run once more. Of k tokens entropy and probabilities are those among the kept ones, which makes rules
    surer than the whole vocabulary would.
    """

    rule: Annotated[str, Field(description="which strategy is asked: one that reads the LM head")] = "confidence"
    threshold: Annotated[
        float | None, Field(ge=0, le=1, description="of that strategy; its own default when left out")
    ] = None
    size: Annotated[int, Field(ge=2, description="k, tokens that are kept")] = 64
    token: Annotated[
        str, Field(pattern="^(kept|full)$", description="where an exit's token comes from: the kept ones, or all")
    ] = "kept"

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        """Those of the strategy that is asked.

        Raises:
            OptionError: it does not decide by logits at exit points alone.
        """
        inner = self._inner()
        if inner.upper_bound or inner.default_decode != "lossy" or isinstance(inner, Shortlist):
            raise OptionError(f"shortlist:rule={self.rule} cannot be asked of fewer tokens. Use rule=confidence.")
        return inner.exit_points(model)

    def artefacts(self, model: ModelInfo) -> Mapping[str, str]:
        """Those of the strategy that is asked."""
        return self._inner().artefacts(model)

    def trained_defaults(self, model: ModelInfo) -> Mapping[str, Any]:
        """The threshold of the strategy that is asked, where it has one."""
        inner = self._inner()
        return effective_options(inner, inner.trained_defaults(model))

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        """Start the strategy that is asked."""
        return _Wrapped(self._inner().start(model, batch), self)

    def should_exit(self, view: ExitView) -> Tensor:
        """Ask it as one without state."""
        return _Wrapped(self._inner(), self).should_exit(view)

    def _inner(self) -> Strategy:
        given = () if self.threshold is None else (("threshold", str(self.threshold)),)
        return build_strategy(StrategySpec(self.rule, given))


@dataclass(frozen=True, slots=True)
class _Wrapped:
    rule: ExitRule
    options: Shortlist

    def should_exit(self, view: ExitView) -> Tensor:
        """Ask the rule of the kept tokens; where there are none yet, of all."""
        if view.previous is None:
            return ask_rule(self.rule, view)
        kept = _Kept(view, self.options.size)
        answer = ask_rule(self.rule, cast("ExitView", kept))
        if self.options.token == "kept" and answer.any():
            view.answer_with(kept.top_token, kept.top_probability)
        return answer


class _Kept:
    """A view whose logits are those of the kept tokens. Implements :class:`harness.contracts.ExitView`."""

    def __init__(self, view: ExitView, size: int) -> None:
        self._view, self._size = view, size

    def __getattr__(self, name: str) -> object:
        return getattr(self._view, name)  # all that is not of the vocabulary

    @property
    def _tokens(self) -> Tensor:
        first = self._view
        while first.previous is not None:
            first = first.previous
        return first.once(("shortlist: tokens", self._size), lambda: first.best_tokens(self._size))

    @property
    def logits(self) -> Tensor:
        return self._view.once(("shortlist: logits", self._size), lambda: self._view.logits_of(self._tokens))

    @property
    def vocab_size(self) -> int:
        return int(self._tokens.shape[1])

    @property
    def top_token(self) -> Tensor:
        return self._tokens.gather(1, self.logits.argmax(-1, keepdim=True)).squeeze(1)

    @property
    def top_probability(self) -> Tensor:
        return top_probability(self.logits)

    @property
    def second_probability(self) -> Tensor:
        return two_best(self.logits)[:, 1]

    @property
    def entropy(self) -> Tensor:
        return entropy(self.logits)

    def best_tokens(self, count: int) -> Tensor:
        places = self.logits.topk(min(count, self.vocab_size), dim=-1).indices
        return self._tokens.gather(1, places)

    def read(self, head: HeadChoice) -> Reading:
        """The kept tokens stand for every head."""
        return self

    @property
    def previous(self) -> ExitView | None:
        """The exit point before, of the kept tokens, too; the first one whole."""
        before = self._view.previous
        if before is None or before.previous is None:
            return before
        return cast("ExitView", _Kept(before, self._size))

    def once(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Keep apart what the rule makes of the kept tokens."""
        return self._view.once(("shortlist", self._size, key), compute)
