"""``harness verify``: a certificate of exactness."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from harness.commands.console import show_progress, stdout
from harness.commands.options import configure, configured_by
from harness.errors import ConfigError
from harness.verifying.options import VerifyOptions

DEFECTS = 1


@configured_by(VerifyOptions)
def verify(
    given: dict[str, Any],
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Also write the certificate, with every difference.", metavar="FILE"),
    ] = None,
) -> None:
    """Certify that tokens are those they must be, whatever weights format, batch or lossless decoding made them.

    Weights formats are held against float32, batches against rows alone, lossless decoding against full depth.

    Every difference is listed with the two logits. Exit code 1: one of them is more than rounding explains.
    """
    options = configure(VerifyOptions, given)
    if json_file is not None and (json_file.is_dir() or not json_file.parent.is_dir()):
        raise ConfigError(f"--json {json_file}: give a file in a folder that exists.")

    import torch

    from harness.host.files import replace_files
    from harness.verifying.certify import certify, tables
    from reports.tables.writers import to_terminal

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with show_progress() as progress:
        found = certify(options, progress)
    if json_file is not None:
        replace_files({json_file: found.model_dump_json(indent=2).encode()})
    stdout().print(to_terminal(tables(found)))
    if found.defects:
        raise typer.Exit(DEFECTS)
