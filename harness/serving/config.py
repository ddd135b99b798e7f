"""What decides a server: flags of ``harness serve``, or a TOML file with the same names."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.config.model import File, ModelConfiguration, OperatingPoint, Placeholder
from harness.contracts import KVPolicy, ModelInfo
from harness.errors import ConfigError

__all__ = ["ServeConfig", "prompt_cap"]

DEFAULT_PROMPT_TOKENS = 2048


class ServeConfig(ModelConfiguration):
    """Everything that decides a server, beside the model's configuration."""

    strategies: Annotated[
        tuple[OperatingPoint, ...],
        Field(
            description="NAME[:option=value]… to load; the first is the default of requests that name none. "
            "Repeatable. Full depth is always loaded. Default: all that run on the model, a learned one first."
        ),
    ] = ()
    kv: Annotated[
        KVPolicy,
        Field(description="K,V of skipped layers, for all requests: propagate, recompute, none or skip."),
    ] = KVPolicy.RECOMPUTE
    host: Annotated[str, Field(min_length=1, description="Address to listen at; 127.0.0.1 is this machine only.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Field(ge=0, le=65535, description="TCP port; 0 takes a free one.")] = 8080
    api_key_file: File | None = Field(
        default=None, description="File whose first line is the key that requests must bear. Default: no key."
    )
    insecure: Annotated[bool, Field(description="Listen beyond this machine without a key.")] = False
    cors_origins: Annotated[
        tuple[Annotated[str, Placeholder("ORIGIN")], ...],
        Field(description="Web origin whose pages may use the server; '*' only with a key. Repeatable. Default: none."),
    ] = ()
    batch_size: Annotated[int, Field(ge=1, le=256, description="Requests decoded together; more wait.")] = 8
    max_queue: Annotated[
        int, Field(ge=0, le=100_000, description="Requests that may wait; one more is refused with 429.")
    ] = 64
    max_new_tokens: Annotated[int, Field(ge=1, le=4096, description="Cap on one completion's tokens.")] = 256
    max_prompt_tokens: Annotated[int, Field(ge=8)] | None = Field(
        default=None, description="Cap on one prompt's tokens. Default: 2048, or what the model's positions leave."
    )
    max_body_bytes: Annotated[int, Field(ge=1024, description="Cap on one request's bytes.")] = 1 << 20
    deadline_s: Annotated[
        float,
        Field(gt=0, le=3600, allow_inf_nan=False, description="Seconds from its arrival after which a request ends."),
    ] = 60.0
    drain_s: Annotated[
        float,
        Field(
            ge=0,
            le=3600,
            allow_inf_nan=False,
            description="Seconds that running requests get to finish at a signal.",
        ),
    ] = 15.0
    suffix: Annotated[
        Literal["refuse", "ignore"],
        Field(description="What to do with the text after the cursor where the model cannot read it"),
    ] = "refuse"
    log_prompts: Annotated[bool, Field(description="Write prompts and completions to the log.")] = False


def prompt_cap(config: ServeConfig, info: ModelInfo) -> int:
    """Return the cap on a prompt's tokens with a model.

    Raises:
        ConfigError: prompt and completion do not fit its positions.
    """
    room = info.max_positions - config.max_new_tokens
    if room < 1:
        raise ConfigError(
            f"--max-new-tokens {config.max_new_tokens} leaves no room for a prompt: {info.name} has "
            f"{info.max_positions} positions."
        )
    if config.max_prompt_tokens is None:
        return min(DEFAULT_PROMPT_TOKENS, room)
    if config.max_prompt_tokens > room:
        raise ConfigError(
            f"--max-prompt-tokens {config.max_prompt_tokens} and --max-new-tokens {config.max_new_tokens} need more "
            f"than the {info.max_positions} positions of {info.name}. Use at most {room}."
        )
    return config.max_prompt_tokens
