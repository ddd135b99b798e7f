"""``harness lm-eval`` and ``serve``: early exits where others decode, in lm-evaluation-harness and behind HTTP."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.commands.console import log_to, print_tables, say, stderr, write, write_json
from harness.commands.options import AsJson, configured_by, named_by_flag
from harness.errors import ConfigError
from harness.host.libraries import require
from harness.lm_eval.options import LmEvalOptions
from harness.serving.config import ServeConfig, prompt_cap

INTERRUPTED = 130

EXTRA = ("fastapi", "prometheus_client", "uvicorn")


@configured_by(LmEvalOptions)
def lm_eval(options: LmEvalOptions, as_json: AsJson = False) -> None:
    """Run tasks of lm-evaluation-harness at full depth and with early exits; writes a run directory."""
    require("lm-eval", "lm_eval")
    console = stderr()
    log_to(console)
    os.environ.setdefault("TQDM_DISABLE", "1")  # one progress bar is enough, and none inside a window
    from harness.commands.progress import RunProgress
    from harness.lm_eval.evaluate import evaluate
    from harness.lm_eval.results import FOLDER, tables

    with RunProgress(console) as progress:
        found = evaluate(options, progress)
    if as_json:
        from lm_eval.utils import handle_non_serializable

        write_json(found.results, default=handle_non_serializable)
    else:
        print_tables(tables(found.results))
    where = f"lm-eval's results are in {found.directory}/{FOLDER}."
    if found.run is None:
        say(f"{where} No task generates, so there is no run for `harness report`.")
    else:
        say(f"Records, report.md, summary.csv and summary.json are in {found.directory}; {where}")


@configured_by(ServeConfig, build=False)
def serve(
    given: dict[str, Any],
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
            help="Print the settings of a client for this server (llm-vscode, continue, llama.vim or openai), and "
            "start nothing.",
            metavar="CLIENT",
        ),
    ] = None,
) -> None:
    """Serve completions over HTTP, with early exit: TGI, OpenAI, Ollama and llama.cpp clients, a page, and metrics.

    SIGTERM or Ctrl-C lets running answers finish; a second one stops at once.
    """
    before = ServeConfig.read_toml(config) if config is not None else {}
    with named_by_flag(ServeConfig, given):  # what a file says is named as there
        settings = ServeConfig.of_file(before, given)
    if print_config is not None:
        write(_snippet(print_config, settings), end="")
        return
    require("serve", *EXTRA)
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


def _snippet(client: str, settings: ServeConfig) -> str:
    """Return the settings of a client, as the running server would hand them out; no weights are read."""
    from harness.models.fill_in_the_middle import fill_in_the_middle
    from harness.models.model import resolve
    from harness.serving.page import clients, snippet

    if settings.port == 0:
        raise ConfigError("--print-config needs to know the port, and --port 0 takes any. Give a fixed one.")
    fim, cap = None, 0
    if client in clients():
        model = resolve(settings.request())
        fim, cap = fill_in_the_middle(model.tokenizer), prompt_cap(settings, model.info)
    name = Path(settings.model).name if Path(settings.model).is_dir() else settings.model
    text = snippet(client, settings, settings.url(settings.port), name, fim, cap)
    if settings.everywhere:
        say("On another machine, write this machine's address for 127.0.0.1.")
    return f"{text}\n"
