"""Configuration of a server: flags of ``harness serve``, or a TOML file with the same names."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.config import ADVISED_DECODE
from harness.config.decode import DRAFT_MAX, DecodeText, DraftHead, DraftMax
from harness.config.model import File, KVName, ModelConfiguration, OperatingPoint, Placeholder
from harness.config.rules import NONE, PromptExitText, StopText
from harness.contracts import ModelInfo, Prefetch, Strategy
from harness.errors import ConfigError

DEFAULT_PROMPT_TOKENS = 2048

WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # nosec B104  # compared with, never bound to unasked


class ServeConfig(ModelConfiguration):
    """Everything that decides a server, beside the model's configuration."""

    strategies: tuple[OperatingPoint, ...] = Field(
        default=(),
        description="NAME[:option=value]… to load; the first is the default of requests that name none. "
        "Repeatable. Full depth is always loaded. Default: full depth, and those of a bare `harness run` for which the "
        "model has what they learned.",
    )
    kv: KVName = Field(
        default=Strategy.default_kv,
        description="K,V of skipped layers, for all requests: recompute, propagate, none, skip, or another of "
        "`harness list kv`.",
    )
    decode: Annotated[DecodeText, Placeholder("SPEC")] = Field(
        default=ADVISED_DECODE,
        description="Of requests that do not say: lossless (exits draft and full depth verifies: its tokens, in "
        "bursts), lossless+SOURCE[:option=value]… (a source of `harness list drafts` proposes first), or lossy (what "
        "exits say).",
    )
    draft_head: DraftHead = "auto"
    draft_max: DraftMax = Field(
        default=DRAFT_MAX, description="Tokens that lossless decoding drafts before it verifies."
    )
    stop: Annotated[StopText, Placeholder("RULE")] = Field(
        default=NONE,
        description="What ends completions of requests that do not say, beside their stop texts: none, or "
        "NAME[:option=value]… of `harness list stops`, as statement:language=python.",
    )
    prompt_exit: Annotated[PromptExitText, Placeholder("RULE")] = Field(
        default=NONE,
        description="How deep prompts are read: none (by all layers), or NAME[:option=value]… of `harness list "
        "prompts`, as layer=18:tail=64. Of lossy requests; lossless ones read their prompts whole.",
    )
    prefetch: Prefetch = Field(
        default="none",
        description="What is computed while no request waits or runs: none; deepen, which makes kept prompts exact "
        "that --prompt-exit left shallow; draft, which decodes on behind each API key's last answer, for lossless "
        "requests with a draft source; or all.",
    )
    host: str = Field(
        default="127.0.0.1", min_length=1, description="Address to listen at; 127.0.0.1 is this machine only."
    )
    port: int = Field(default=8080, ge=0, le=65535, description="TCP port; 0 takes a free one.")
    api_key_file: File | None = Field(
        default=None, description="File whose first line is the key that requests must bear. Default: no key."
    )
    insecure: bool = Field(default=False, description="Listen beyond this machine without a key.")
    cors_origins: tuple[Annotated[str, Placeholder("ORIGIN")], ...] = Field(
        default=(),
        description="Web origin whose pages may use the server; '*' only with a key. Repeatable. Default: none.",
    )
    batch_size: int = Field(default=8, ge=1, le=256, description="Requests decoded together; more wait.")
    prefill_tokens: int = Field(
        default=256,
        ge=16,
        le=65_536,
        description="Prompt tokens that are read between two tokens of running requests; longer prompts in pieces.",
    )
    kept_prompts: int = Field(
        default=4,
        ge=0,
        le=256,
        description="Free rows that keep their last prompt and completion, so that a prompt of the same API key that "
        "begins alike is read from where it differs; 0: every prompt is read whole.",
    )
    max_queue: int = Field(
        default=64, ge=0, le=100_000, description="Requests that may wait; one more is refused with 429."
    )
    max_new_tokens: int = Field(default=256, ge=1, le=4096, description="Cap on one completion's tokens.")
    max_prompt_tokens: int | None = Field(
        default=None,
        ge=8,
        description="Cap on one prompt's tokens. Default: 2048, or what the model's positions leave.",
    )
    max_body_bytes: int = Field(default=1 << 20, ge=1024, description="Cap on one request's bytes.")
    deadline_s: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="Seconds from its arrival after which a request ends.",
    )
    drain_s: float = Field(
        default=15.0,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="Seconds that running requests get to finish at a signal.",
    )
    suffix: Literal["refuse", "ignore"] = Field(
        default="refuse", description="What to do with the text after the cursor where the model cannot read it"
    )
    log_prompts: bool = Field(default=False, description="Write prompts and completions to the log.")

    @property
    def everywhere(self) -> bool:
        """Whether the host stands for every address of this machine."""
        return self.host.strip("[]") in WILDCARDS

    def url(self, port: int) -> str:
        """Return the address that a client on this machine uses."""
        host = self.host.strip("[]")
        name = WILDCARDS.get(host) or (f"[{host}]" if ":" in host else host)
        return f"http://{name}:{port}"


def prompt_cap(config: ServeConfig, info: ModelInfo) -> int:
    """Return the cap on a prompt's tokens with a model; refuse one that leaves no room in its positions."""
    room = info.max_positions - config.max_new_tokens
    cap = min(DEFAULT_PROMPT_TOKENS, room) if config.max_prompt_tokens is None else config.max_prompt_tokens
    if not 1 <= cap <= room:
        raise ConfigError(
            f"--max-new-tokens {config.max_new_tokens} leaves {max(room, 0)} of the {info.max_positions} positions of "
            f"{info.name} for a prompt. Lower it, or give a --max-prompt-tokens that fits."
        )
    return cap
