"""The counters of what a generation did, declared once.

**To add a counter**: declare it in :class:`Work`, count it where the engine does what it counts, and show it by a
metric; records, served answers (``counts``) and frames have it then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from harness.contracts import ModelInfo
from harness.records.manifest import ModelRecord
from harness.records.record import Count


@dataclass
class PassWork:
    """The counters that are also kept of some passes alone, see :class:`DraftWork`."""

    exit_checks: Annotated[Count, Field(description="times the strategy was asked")] = 0
    lm_head_evaluations: Annotated[Count, Field(description="LM-head evaluations, the outputs' own included")] = 0
    cheap_head_tokens: Annotated[Count, Field(description="tokens that a cheap head chose")] = 0
    layers_read: Annotated[Count, Field(description="layers executed, those that tokens shared counted once")] = 0


@dataclass
class DraftWork(PassWork):
    """The work of passes that ended in a draft: lossless decoding without full depth's own and its verifying."""

    passes: Annotated[Count, Field(description="passes that drafted a token at an exit, one each")] = 0

    @classmethod
    def so_far(cls, made: PassWork) -> DraftWork:
        """Return what passes have done so far, to take the difference of two such."""
        return cls(*_OF_PASSES(made))

    def amounts(self, position: float) -> dict[str, float]:
        """Return it for :func:`harness.contracts.price`, each pass attending to as many positions."""
        return {
            "check": self.exit_checks,
            "layer step": self.layers_read,
            "attended position": self.layers_read * position,
            "LM head": self.lm_head_evaluations,
            "draft head": self.cheap_head_tokens,
            "exit": self.passes,
        }

    def __add__(self, other: DraftWork) -> DraftWork:
        return DraftWork(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def __sub__(self, other: DraftWork) -> DraftWork:
        return DraftWork(**{name: value - getattr(other, name) for name, value in vars(self).items()})


_OF_PASSES = attrgetter(*(one.name for one in fields(PassWork)))


@dataclass(frozen=True, slots=True)
class Discarded:
    """Drafted tokens that were rejected: the one that full depth replaced, and those behind it.

    Attributes:
        place: of the first of them in the completion, 0-based; the token there is what full depth said instead.
        token_ids: the tokens.
        drafted_at: for each the decoder layers that ran before it was drafted, 0 where a source proposed it.
        token_texts: what each would have added to the text; empty until they are spelled.
    """

    place: Count
    token_ids: tuple[Count, ...]
    drafted_at: tuple[Count, ...]
    token_texts: tuple[str, ...] = ()


SHORT = 8
"""Values of a list that the text of a work still shows."""


@dataclass(repr=False)
class Work(PassWork):
    """The work of one completion: its prompt's layers, and all that came after prefill.

    With a cache, the first token comes from prefill: at full depth, and no strategy is asked for it. Without one there
    is no prefill, and a layer over a prefix counts as one. What is said of drafts is of lossless decoding, and empty
    else.
    """

    prompt_layers: Annotated[
        Count, Field(description="decoder layers run for each token of the prompt that was read")
    ] = 0
    prompt_layers_skipped: Annotated[
        Count, Field(description="those that prompt exits spared it, whose keys and values a map of its state made")
    ] = 0
    layers_executed: Annotated[Count, Field(description="decoder layers run, recomputation included")] = 0
    kv_fill_layers: Annotated[Count, Field(description="layers whose keys and values an exit's state filled")] = 0
    shortcut_evaluations: Annotated[Count, Field(description="times an exit's shortcut was applied")] = 0
    cheap_head_evaluations: Annotated[Count, Field(description="times a cheap head was read, not the LM head")] = 0
    cheap_head_bytes: Annotated[Count, Field(description="weights that those read, at batch 1")] = 0
    cheap_head_misses: Annotated[
        Count, Field(description="exits whose token no cheap head that was read put first")
    ] = 0
    drafts: Annotated[Count, Field(description="tokens drafted, discarded ones included")] = 0
    verifications: Annotated[Count, Field(description="passes through all layers that verified a draft")] = 0
    layers_discarded: Annotated[Count, Field(description="layers run for drafted tokens that were discarded")] = 0
    exit_layers: Annotated[
        Sequence[Count], AfterValidator(tuple), Field(description="layers executed for each generated token")
    ] = ()
    drafted_at: Annotated[
        Sequence[Count | None],
        AfterValidator(tuple),
        Field(description="for each token the layers before a draft of its place was made; 0: by a source; null: none"),
    ] = ()
    accepted: Annotated[
        Sequence[bool],
        AfterValidator(tuple),
        Field(description="for each token whether it is the draft's; else full depth said it"),
    ] = ()
    discarded: Annotated[
        Sequence[Discarded], AfterValidator(tuple), Field(description="drafted tokens that were rejected, in order")
    ] = ()
    drafting: Annotated[DraftWork | None, Field(description="what passes did that drafted tokens at exits")] = None
    rolled_back: Annotated[DraftWork | None, Field(description="the same of those whose tokens were rejected")] = None

    def __repr__(self) -> str:
        """Return the counters that are not 0, then its lists: those of many values by their number."""
        counted = [f"{name}={count}" for name, count in self.counts.items() if count]
        others = ((one.name, getattr(self, one.name)) for one in fields(Work) if one.name not in COUNTERS)
        for name, value in others:
            if isinstance(value, Sequence) and len(value) > SHORT:
                counted.append(f"{name}=<{len(value)} values>")
            elif value:
                counted.append(f"{name}={value!r}")
        return f"Work({', '.join(counted)})"

    @classmethod
    def of(cls, made: Work) -> Work:
        """Return the work alone of what holds it, a completion or a record."""
        values: dict[str, Any] = {}
        for name in _FIELDS:
            value = getattr(made, name)
            values[name] = tuple(value) if isinstance(value, list) else value
        if not made.lossless:
            values["drafting"] = values["rolled_back"] = None
        return cls(**values)

    def __add__(self, other: Work) -> Work:
        """Return the counters of both, and nothing of single tokens."""
        return Work(**{name: count + getattr(other, name) for name, count in self.counts.items()})

    def amounts(self, *, tokens: int, exits: int, attended: int, num_layers: int) -> dict[str, float]:
        """Return it for :func:`harness.contracts.price`."""
        passes, places = self.verifications or tokens, tokens + self.layers_discarded // num_layers
        read = self.layers_read or self.layers_executed
        return {
            "check": self.exit_checks,
            "layer step": read,
            "layer row": self.layers_executed - read,
            "attended position": attended,
            "LM head": self.lm_head_evaluations - places + passes,
            "deep head": passes if self.verifications else tokens - exits,
            "LM head row": places - passes,
            "draft head": self.cheap_head_tokens if self.verifications else 0,
            "exit": exits,
            "shortcut": self.shortcut_evaluations,
            "cheap head byte": self.cheap_head_bytes,
            "KV fill": self.kv_fill_layers,
        }

    @property
    def prompt_amounts(self) -> dict[str, float]:
        """What reading the prompt did, for :func:`harness.contracts.price`: a map is as large as K,V projections."""
        return {"layer step": self.prompt_layers, "KV fill": self.prompt_layers_skipped}

    @property
    def counts(self) -> dict[str, int]:
        """Every counter by its name."""
        return {name: getattr(self, name) for name in COUNTERS}

    @property
    def exits(self) -> Counter[int]:
        """Exit layer → tokens that left there."""
        return Counter(self.exit_layers)

    @property
    def lossless(self) -> bool:
        """Whether its tokens were drafted and verified."""
        return bool(self.accepted)

    @property
    def drafted_tokens(self) -> int:
        """Tokens drafted, discarded ones included."""
        return self.drafts

    @property
    def accepted_tokens(self) -> int:
        """Drafted tokens that full depth agreed with."""
        return sum(self.accepted)

    @property
    def acceptance(self) -> float | None:
        """Share of the drafted tokens that was accepted; ``None`` where nothing was drafted."""
        return self.accepted_tokens / self.drafts if self.drafts else None

    @property
    def tokens_per_verification(self) -> float | None:
        """Tokens that a verification yielded on average, 1 without drafts; ``None`` where only prefill made one."""
        return (len(self.exit_layers) - 1) / self.verifications if self.verifications else None


_FIELDS = tuple(one.name for one in fields(Work))
COUNTERS = tuple(one.name for one in fields(Work) if isinstance(one.default, int))
"""Names of the counters of :class:`Work`, in the order they are declared."""


def bytes_read(model: ModelInfo | ModelRecord) -> dict[str, int]:
    """Return the bytes that one unit of work reads at batch 1, for :func:`harness.contracts.price`."""
    return {
        "layer step": model.layer_bytes,
        "attended position": model.kv_entry_bytes,
        "LM head": model.lm_head_bytes,
        "cheap head byte": 1,
        "shortcut": model.shortcut_bytes,
        "KV fill": model.kv_projection_bytes,
    }
