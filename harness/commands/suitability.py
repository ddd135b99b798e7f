"""``harness suitability``: whether early exit can pay for a model here."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from harness.commands.console import show_progress, stdout, write_json
from harness.commands.options import configure, configured_by
from harness.errors import ConfigError
from harness.replay.options import SuitabilityOptions


@configured_by(SuitabilityOptions)
def suitability(
    given: dict[str, Any],
    name: Annotated[str | None, typer.Argument(help="The model; as --model.", metavar="MODEL")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print suitability.json instead of the tables.")] = False,
) -> None:
    """Say before any work whether early exit can pay for a model here, and which family of strategies: minutes."""
    if name is not None and given.get("model", name) != name:
        raise ConfigError(f"'{name}' and --model '{given['model']}' are two models. Give one.")
    options = configure(SuitabilityOptions, given if name is None else {**given, "model": name})

    import torch

    from harness.replay.suitability import assess
    from harness.replay.verdict import suitability_tables
    from reports.tables.writers import to_terminal

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with show_progress() as progress:
        found = assess(options, progress)
    if as_json:
        write_json(found.model_dump_json(indent=2))
    else:
        stdout().print(to_terminal(suitability_tables(found)))
