"""What decides a server: flags of ``harness serve``, or a TOML file with the same names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from harness.config.kv import KVName
from harness.config.model import ModelConfiguration
from harness.contracts import ModelInfo, Strategy
from harness.errors import ConfigError

__all__ = ["ServeConfig", "prompt_cap"]

DEFAULT_PROMPT_TOKENS = 2048


class ServeConfig(ModelConfiguration):
    """Everything that decides a server, beside the model's configuration.

    Attributes:
        strategies: strategies to load, ``NAME[:option=value]…``; the first is the default of requests that name none.
            ``full`` is always loaded. None stands for all that run on this model, a learned one first.
        kv: name of the KV policy, what happens to K,V of skipped layers, for all requests.
        host: address to listen at.
        port: TCP port; 0 takes a free one.
        api_key_file: file whose first line is the key that requests must bear; ``None`` asks for none.
        insecure: listen beyond this machine without a key.
        cors_origins: web origins that may read answers.
        batch_size: requests decoded together; more wait in the queue.
        max_queue: requests that may wait; one more is refused with 429.
        max_new_tokens: cap on the tokens of one completion.
        max_prompt_tokens: cap on the tokens of one prompt; ``None`` for 2048, or what the model's positions leave.
        max_body_bytes: cap on the bytes of one request.
        deadline_s: seconds from its arrival after which a request ends where it is, or is refused if it still waits.
        drain_s: seconds that running requests get to finish when the server is told to stop.
        suffix: what to do with the text after the cursor where the model has no fill-in-the-middle tokens: ``refuse``
            it, or ``ignore`` it and say so.
        log_prompts: write prompts and completions to the log.
    """

    strategies: tuple[str, ...] = ()
    kv: KVName = Strategy.default_kv
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    api_key_file: Path | None = None
    insecure: bool = False
    cors_origins: tuple[str, ...] = ()
    batch_size: Annotated[int, Field(ge=1, le=256)] = 8
    max_queue: Annotated[int, Field(ge=0, le=100_000)] = 64
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 256
    max_prompt_tokens: Annotated[int, Field(ge=8)] | None = None
    max_body_bytes: Annotated[int, Field(ge=1024)] = 1 << 20
    deadline_s: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] = 60.0
    drain_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 15.0
    suffix: Literal["refuse", "ignore"] = "refuse"
    log_prompts: bool = False


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
