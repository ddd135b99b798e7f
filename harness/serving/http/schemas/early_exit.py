"""Early-exit facts in every answer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from harness.serving.jobs import Ending

__all__ = ["Accepted", "Answer", "DraftReport", "DraftedAt", "EarlyExitReport"]


class Answer(BaseModel):
    """Base of answers: every key is documented."""

    model_config = ConfigDict(extra="forbid", frozen=True)


DraftedAt = Annotated[
    int | None,
    Field(
        description="Lossless: decoder layers that ran before a draft of this place was made, 0 where a draft source "
        "proposed it; null without a draft, and of lossy decoding."
    ),
]

Accepted = Annotated[
    bool | None,
    Field(
        description="Lossless: whether the token is the draft's; else full depth said it, in place of the draft if "
        "there was one. null of lossy decoding."
    ),
]


class DraftReport(Answer):
    """Drafts of lossless decoding and how many were accepted."""

    model_config = ConfigDict(from_attributes=True)

    drafted_at: Annotated[list[int | None], Field(description="For each token, see drafted_at of a token.")]
    accepted: Annotated[list[bool], Field(description="For each token, see accepted of a token.")]
    drafted_tokens: Annotated[int, Field(description="Discarded ones included.")]
    accepted_tokens: Annotated[int, Field(description="Those that full depth agreed with.")]
    verifications: Annotated[int, Field(description="Passes through all layers after prefill.")]
    layers_discarded: Annotated[int, Field(description="Decoder layers run for drafted tokens that were discarded.")]
    acceptance: Annotated[float | None, Field(description="Accepted of drafted tokens; null without any.")]
    tokens_per_verification: Annotated[
        float | None, Field(description="Tokens after prefill's per verification; null without any.")
    ]


class EarlyExitReport(Answer):
    """``x_early_exit``: the effective setting and what it did."""

    strategy: str
    options: Annotated[dict[str, str | int | float | bool | None], Field(description="Every option with its value.")]
    kv: Annotated[str, Field(description="What became of K,V of skipped layers.")]
    decode: Annotated[str, Field(description="lossy, or lossless with its draft source: full depth's tokens.")]
    draft_max: Annotated[int | None, Field(description="Longest draft; null of lossy decoding.")]
    draft_head: Annotated[
        str | None, Field(description="What reads the tokens that exits draft; null of lossy decoding.")
    ]
    stop_rule: Annotated[str | None, Field(description="Rule that might end it beside its stop texts; null without.")]
    stopped_by: Annotated[str | None, Field(description="Name of that rule if it ended it; null for anything else.")]
    drafts: Annotated[DraftReport | None, Field(description="null of lossy decoding.")]
    num_layers: Annotated[int, Field(description="Decoder layers of the model.")]
    exit_layers: Annotated[list[int], Field(description="Decoder layers executed for each token.")]
    layers_executed: Annotated[int, Field(description="Their sum.")]
    layers_skipped: Annotated[int, Field(description="What full depth would have executed on top.")]
    decode_layers: Annotated[
        int, Field(description="Decoder layers run after prefill, catch-up work of kv = recompute included.")
    ]
    exit_checks: Annotated[int, Field(description="Times the strategy was asked.")]
    lm_head_evaluations: Annotated[int, Field(description="After prefill, the outputs' own included.")]
    counts: Annotated[
        dict[str, int], Field(description="Every counter of this completion by the name it has in samples.jsonl.")
    ]
    ending: Ending
    prompt_tokens: int
    prompt_tokens_reused: Annotated[
        int, Field(description="Of these, not read again: an earlier prompt of the same API key began with them.")
    ]
    prompt_tokens_truncated: Annotated[int, Field(description="Cut off the prompt's beginning.")]
    suffix: Annotated[
        Literal["none", "used", "ignored"], Field(description="What became of the text after the cursor.")
    ]
    queue_s: Annotated[float, Field(description="Seconds in the queue.")]
    ttft_s: Annotated[float, Field(description="Seconds from arrival to the first token.")]
    total_s: Annotated[float, Field(description="Seconds from arrival to the last token.")]
    energy_j: Annotated[
        float | None, Field(description="This request's share, joules, measured or estimated; null without a number.")
    ]
    energy_source: Annotated[str, Field(description="A sensor, or an estimate, or none.")]
