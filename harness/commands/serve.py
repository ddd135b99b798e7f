"""``harness serve``: the model as an HTTP endpoint that editors and API clients can use."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.commands.console import log_to, stderr
from harness.commands.model_options import (
    Artefacts,
    Device,
    DType,
    Energy,
    ExitHead,
    ExitPoints,
    KVInput,
    Model,
    TdpW,
    Threads,
    Weights,
)
from harness.errors import ConfigError

__all__ = ["serve"]

INTERRUPTED = 130

EXTRA = ("fastapi", "prometheus_client", "uvicorn")


def serve(
    model: Model = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME[:option=value]… to load; the first is the default of requests that name none. Repeatable. "
            "Full depth is always loaded. Default: all that run on the model, a learned one first.",
            metavar="SPEC",
        ),
    ] = None,
    kv: Annotated[
        str | None,
        typer.Option(
            help="K,V of skipped layers: recompute, propagate, none, skip, or another of `harness list kv`. "
            "Default: recompute."
        ),
    ] = None,
    kv_input: KVInput = None,
    exit_points: ExitPoints = None,
    dtype: DType = None,
    device: Device = None,
    threads: Threads = None,
    weights: Weights = None,
    exit_head: ExitHead = None,
    artefacts: Artefacts = None,
    energy: Energy = None,
    tdp_w: TdpW = None,
    host: Annotated[str | None, typer.Option(help="Address to listen at. Default: 127.0.0.1, this machine.")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port; 0 takes a free one. Default: 8080.")] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="File whose first line is the key that requests must bear. Default: no key.", metavar="FILE"),
    ] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Listen beyond this machine without a key.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Web origin whose pages may use the server; '*' only with a key. Repeatable. Default: none.",
            metavar="ORIGIN",
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Requests decoded together. Default: 8.")] = None,
    max_queue: Annotated[
        int | None, typer.Option(help="Requests that may wait; one more is refused with 429. Default: 64.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Cap on one completion's tokens. Default: 256.")] = None,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(help="Cap on one prompt's tokens. Default: 2048, or what the model's positions leave.")
    ] = None,
    max_body_bytes: Annotated[int | None, typer.Option(help="Cap on one request's bytes. Default: 1048576.")] = None,
    deadline_s: Annotated[
        float | None, typer.Option(help="Seconds from its arrival after which a request ends. Default: 60.")
    ] = None,
    drain_s: Annotated[
        float | None, typer.Option(help="Seconds that running requests get to finish at a signal. Default: 15.")
    ] = None,
    suffix: Annotated[
        str | None,
        typer.Option(
            help="Text after the cursor, where the model cannot read it: refuse, or ignore. Default: refuse.",
            metavar="refuse|ignore",
        ),
    ] = None,
    log_prompts: Annotated[
        bool | None, typer.Option("--log-prompts", help="Write prompts and completions to the log.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file; flags win. Names as here, with underscores; strategies and cors_origins are lists.",
            metavar="FILE",
        ),
    ] = None,
    print_config: Annotated[
        str | None,
        typer.Option(
            help="Print the settings of a client for this server, and start nothing.",
            metavar="llm-vscode|continue|llama.vim|openai",
        ),
    ] = None,
) -> None:
    """Serve completions over HTTP, with early exit: TGI, OpenAI, Ollama and llama.cpp clients, a page, and metrics.

    SIGTERM or Ctrl-C lets running answers finish; a second one stops at once.
    """
    given: dict[str, Any] = {
        "model": model,
        "strategies": tuple(strategy) if strategy else None,
        "kv": kv,
        "kv_input": kv_input,
        "exit_points": exit_points,
        "dtype": dtype,
        "device": device,
        "threads": threads,
        "weights": weights,
        "exit_head": exit_head,
        "artefacts": artefacts,
        "energy": energy,
        "tdp_w": tdp_w,
        "host": host,
        "port": port,
        "api_key_file": api_key_file,
        "insecure": insecure,
        "cors_origins": tuple(cors_origin) if cors_origin else None,
        "batch_size": batch_size,
        "max_queue": max_queue,
        "max_new_tokens": max_new_tokens,
        "max_prompt_tokens": max_prompt_tokens,
        "max_body_bytes": max_body_bytes,
        "deadline_s": deadline_s,
        "drain_s": drain_s,
        "suffix": suffix,
        "log_prompts": log_prompts,
    }
    from harness.serving.config import ServeConfig

    flags = {name: value for name, value in given.items() if value is not None}
    settings = ServeConfig.build({**(ServeConfig.read_toml(config) if config is not None else {}), **flags})
    if print_config is not None:
        print(_snippet(print_config, settings), end="")
        return
    _check_extra()
    log_to(stderr())
    if settings.log_prompts:
        import logging

        logging.getLogger("harness.serving.prompts").setLevel(logging.INFO)
    from harness.serving.server import serve as run

    try:
        ended, code = run(settings), 0
    except KeyboardInterrupt:
        ended, code = False, INTERRUPTED
    if not ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # the engine's thread is still at work, see `harness.serving.server.serve`


def _snippet(client: str, settings: Any) -> str:
    """Return the settings of a client, as the running server would hand them out; no weights are read.

    Raises:
        ConfigError: no such client, or any free port.
        ModelError: the model is unknown or out of reach.
    """
    from harness.serving.binding import everywhere, url_of
    from harness.serving.client_settings import CLIENTS, snippet

    if settings.port == 0:
        raise ConfigError("--print-config needs to know the port, and --port 0 takes any. Give a fixed one.")
    fim, cap = _reads(settings) if client in CLIENTS else (None, 0)
    text: str = snippet(
        client,
        url=url_of(settings.host, settings.port),
        model=Path(settings.model).name if Path(settings.model).is_dir() else settings.model,
        key=settings.api_key_file is not None,
        max_new_tokens=settings.max_new_tokens,
        fim=fim is not None,
        markers=None if fim is None else fim.family.texts,
        max_prompt_tokens=cap,
        ignored=settings.suffix == "ignore",
    )
    if everywhere(settings.host):
        stderr().print("[dim]On another machine, write this machine's address for 127.0.0.1.[/]", soft_wrap=True)
    return text if text.endswith("\n") else f"{text}\n"


def _reads(settings: Any) -> tuple[Any, int]:
    """Return how the model's tokenizer fills in the middle, ``None`` when it cannot, and the cap on a prompt."""
    from harness.models.model import resolve
    from harness.serving.config import prompt_cap
    from harness.serving.fill_in_the_middle import fill_in_the_middle

    model = resolve(settings.request())
    return fill_in_the_middle(model.tokenizer.wrapped), prompt_cap(settings, model.info)


def _check_extra() -> None:
    from importlib.util import find_spec

    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise ConfigError(f"serving needs {', '.join(missing)}: pip install 'early-exit-harness[serve]'")
