"""One completion: what the engine gets, what comes back, what every answer says of it, and how it fails."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasPath, BaseModel, BeforeValidator, ConfigDict, Field

from harness.config.decode import LOSSY, DecodeSpec
from harness.config.rules import BuiltRule, BuiltStop
from harness.contracts import Lossless, PromptRule, Strategy
from harness.decoding.generation import Token
from harness.errors import HarnessError
from harness.records import Work

Ending = Literal["eos", "stop", "length", "strategy", "deadline"]
"""Why a completion ended: the end token, a stop text or rule, the limit of new tokens, its strategy, or time is up."""


class ServingError(HarnessError):
    """Root of the failures of an answer: HTTP status, TGI's ``error_type``, seconds until a client may try again."""

    status, kind = 500, "internal"
    retry_s: int | None = None
    param: str | None = None  # the field that is at fault, where one is


class InvalidRequestError(ServingError):
    """A request that cannot be served as it is written."""

    status, kind = 400, "validation"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class GenerationError(ServingError):
    """The engine failed on this request; the next one works."""

    status, kind = 424, "generation"


class OverloadedError(ServingError):
    """The queue is full, or the request waited in it until its deadline."""

    status, kind, retry_s = 429, "overloaded", 1


class LoadingError(ServingError):
    """The model is still loading, or could not be loaded."""

    status, kind, retry_s = 503, "loading", 5


class DrainingError(ServingError):
    """The server is shutting down and accepts no new requests."""

    status, kind = 503, "draining"


class RefusedError(ServingError):
    """A refusal with a status of HTTP's own."""

    def __init__(self, message: str, status: int, kind: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt as the model reads it."""

    token_ids: tuple[int, ...]
    truncated: int = 0  # tokens cut off because they did not fit
    begun: int = 0  # first tokens that the server put before what was sent
    suffix: Literal["none", "used", "ignored"] = "none"  # ignored where the model cannot read it and the server may
    before: tuple[int, ...] | None = None  # tokens of the text before a gap; None where the prompt is all there is
    end_token_ids: frozenset[int] = frozenset()  # of its completion


@dataclass(frozen=True, slots=True)
class Setting:
    """The effective early-exit setting of a request."""

    name: str
    options: Mapping[str, object]  # every option that a request may set, with the value in effect
    strategy: Strategy
    decode: DecodeSpec = LOSSY
    lossless: Lossless | None = None  # the same as built; None where it takes what exits say
    stop: BuiltStop | None = None
    prompt: BuiltRule[PromptRule] | None = None  # None where all layers read the prompt


@dataclass(frozen=True, slots=True)
class Job:
    """One completion to be made, for the engine."""

    prompt: Prompt
    setting: Setting
    max_new_tokens: int  # at least 1, the server's cap applied
    stop: tuple[str, ...] = ()
    keep_stop: bool = False  # whether the text that ended it belongs to it
    generate_s: float | None = None  # seconds after its first token when it ends, once there is a line break
    seed: int = 0
    scored: bool = False  # whether what full depth says of the prompt's tokens is wanted
    owner: str | None = None  # K,V of prompts that begin alike are reused where it is the same; None: neither


@dataclass(frozen=True, slots=True)
class Echoed:
    """A token of the prompt, and what full depth says of it: nothing of the first token of all."""

    text: str
    logprob: float | None
    best: str = ""  # text of the most probable token at its place
    best_logprob: float = 0.0


@dataclass(frozen=True, slots=True)
class Finished:
    """The ending of a completion, after its last token: the one source of everything that is said of it."""

    text: str  # the texts of the tokens and rest, joined
    rest: str  # text held back until now, since it might have become a stop text
    ending: Ending
    tokens: tuple[Token, ...]
    prompt: Prompt
    prompt_reused: int  # first tokens of the prompt that were not read, since their K,V were there
    setting: Setting
    kv: str
    num_layers: int
    work: Work
    queue_s: float  # from submission to the start of prefill
    ttft_s: float  # from submission to the first token
    total_s: float  # from submission to the last token
    energy_j: float | None  # this request's share of what was used while it ran; None without a number
    energy_source: str
    stopped_by: str = ""  # name of the stop rule that ended it
    echoed: tuple[Echoed, ...] = ()  # the prompt as it was sent, where that was scored
    prompt_shallow: int = 0  # tokens of the prompt whose K,V were not full depth's

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt.token_ids)

    @property
    def prompt_computed(self) -> int:
        """Of these, those that were read."""
        return self.prompt_tokens - self.prompt_reused

    @property
    def new_tokens(self) -> int:
        """Tokens of the completion."""
        return len(self.tokens)

    @property
    def prefill_s(self) -> float:
        """Seconds of reading the prompt, out of which the first token comes."""
        return self.ttft_s - self.queue_s

    @property
    def decode_s(self) -> float:
        """Seconds of the other tokens."""
        return self.total_s - self.ttft_s

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds per token after the first; ``None`` of one token."""
        return self.decode_s / (self.new_tokens - 1) if self.new_tokens > 1 else None

    @property
    def layers_executed(self) -> int:
        """Decoder layers executed for its tokens, those of prefill's included."""
        return sum(self.work.exit_layers)

    @property
    def layers_skipped(self) -> int:
        """Decoder layers that full depth would have executed on top."""
        return len(self.work.exit_layers) * self.num_layers - self.layers_executed

    @property
    def drafts(self) -> Work | None:
        """The work, where it is that of lossless decoding."""
        return self.work if self.work.lossless else None


def _said(meaning: str, of: str | None = None, default: Any = ...) -> Any:
    """A field of a report, read from an attribute of :class:`Finished`, or from one of that, where it is named so."""
    return Field(default, validation_alias=None if of is None else AliasPath(*of.split(".")), description=meaning)


def _option(value: object) -> object:
    """Return an option's value as JSON has it: a path or an infinite number as its text."""
    infinite = isinstance(value, float) and not math.isfinite(value)
    return value if not infinite and isinstance(value, str | int | float | None) else str(value)


Option = Annotated[str | int | float | bool | None, BeforeValidator(_option)]
Seconds = Annotated[float, AfterValidator(lambda value: round(value, 6))]
Written = Annotated[str | None, BeforeValidator(lambda value: str(value) if value else None)]


class Report(BaseModel):
    """Base of what answers say: read from attributes, every key documented."""

    model_config = ConfigDict(from_attributes=True, populate_by_name=True, extra="forbid", frozen=True)


class DraftReport(Report):
    """Drafts of lossless decoding and how many were accepted."""

    drafted_at: list[int | None] = _said(
        "For each token the decoder layers that ran before a draft of its place was made, 0 where a draft source "
        "proposed it; null without a draft."
    )
    accepted: list[bool] = _said("For each token whether it is the draft's; else full depth said it.")
    drafted_tokens: int = _said("Discarded ones included.")
    accepted_tokens: int = _said("Those that full depth agreed with.")
    verifications: int = _said("Passes through all layers after prefill.")
    layers_discarded: int = _said("Decoder layers run for drafted tokens that were discarded.")
    acceptance: float | None = _said("Accepted of drafted tokens; null without any.")
    tokens_per_verification: float | None = _said("Tokens after prefill's per verification; null without any.")


class EarlyExitReport(Report):
    """``x_early_exit`` of every answer: the effective setting and what it did."""

    strategy: str = _said("Its name.", "setting.name")
    options: dict[str, Option] = _said("Every option with its value.", "setting.options")
    kv: str = _said("What became of K,V of skipped layers.")
    decode: Written = _said("lossy, or lossless with its draft source: full depth's tokens.", "setting.decode")
    draft_max: int | None = _said("Longest draft; null of lossy decoding.", "setting.lossless.draft_max", None)
    draft_head: Written = _said("What reads the tokens that exits draft; null if lossy.", "setting.lossless.head", None)
    stop_rule: str | None = _said(
        "Rule that might end it beside its stop texts, or null.", "setting.stop.written", None
    )
    stopped_by: Written = _said("Name of that rule if it ended it; null for anything else.")
    drafts: DraftReport | None = _said("null of lossy decoding.")
    num_layers: int = _said("Decoder layers of the model.")
    exit_layers: list[int] = _said("Decoder layers executed for each token.", "work.exit_layers")
    layers_executed: int = _said("Their sum.")
    layers_skipped: int = _said("What full depth would have executed on top.")
    decode_layers: int = _said("Run after prefill, catch-up work of kv = recompute included.", "work.layers_executed")
    exit_checks: int = _said("Times the strategy was asked.", "work.exit_checks")
    lm_head_evaluations: int = _said("After prefill, the outputs' own included.", "work.lm_head_evaluations")
    counts: dict[str, int] = _said("Every counter by the name it has in samples.jsonl.", "work.counts")
    ending: Ending
    prompt_tokens: int
    prompt_tokens_reused: int = _said(
        "Of these, not read again: an earlier prompt of the same API key began with them.", "prompt_reused"
    )
    prompt_exit: str | None = _said("How deep the prompt is read; null for all layers.", "setting.prompt.written", None)
    prompt_tokens_shallow: int = _said("Of the prompt's, those whose K,V were not full depth's.", "prompt_shallow")
    prompt_tokens_truncated: int = _said("Cut off the prompt's beginning.", "prompt.truncated")
    suffix: Literal["none", "used", "ignored"] = _said("What became of the text after the cursor.", "prompt.suffix")
    queue_s: Seconds = _said("Seconds in the queue.")
    ttft_s: Seconds = _said("Seconds from arrival to the first token.")
    total_s: Seconds = _said("Seconds from arrival to the last token.")
    energy_j: Seconds | None = _said("This request's share, measured or estimated; null without a number.")
    energy_source: str = _said("A sensor, or an estimate, or none.")


def early_exit_report(done: Finished) -> dict[str, Any]:
    """Return ``x_early_exit`` of an answer."""
    return EarlyExitReport.model_validate(done).model_dump()
