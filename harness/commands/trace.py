"""``harness trace``."""

from __future__ import annotations

from typing import Any

from harness.commands.console import say, show_progress
from harness.commands.options import configure, configured_by
from harness.training.options import TraceCommand


@configured_by(TraceCommand)
def trace(given: dict[str, Any]) -> None:
    """Run a model once at full depth and keep what its exits said, for everything that learns from it."""
    options = configure(TraceCommand, given)
    import torch

    from harness.contracts.recipes import Silent
    from harness.training.processes import is_main
    from harness.training.traces.record_trace import trace as record

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with show_progress() as progress:
        try:
            traces = record(options, progress if is_main() else Silent())
        except KeyboardInterrupt:
            say(f"Stopped; finished shards are kept. Go on with the same command and --resume. ({options.folder})")
            raise
    if is_main():
        say(f"{traces.tokens} tokens of {len(traces.documents)} documents are in {options.folder}")
