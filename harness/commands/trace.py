"""``harness trace``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.commands.console import say, show_progress
from harness.commands.options import configure, configured_by
from harness.training.options import TraceCommand, TraceRequest


@configured_by(TraceCommand)
def trace(given: dict[str, Any]) -> None:
    """Run a model once at full depth and keep what its exits said, for everything that learns from it."""
    options = configure(TraceCommand, given)
    import torch

    from harness.contracts.recipes import Silent
    from harness.host.libraries import resolve_device
    from harness.training.processes import is_main, own_device
    from harness.training.traces.record_trace import trace as record

    folder = options.out or Path("traces") / Path(options.model).name
    request = TraceRequest.part_of(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with show_progress() as progress:
        try:
            traces = record(
                options.model, options.tasks, options.sources, folder, request, weights=options.weights,
                exit_head=options.exit_head, artefacts=options.artefacts, exit_points=options.exit_points,
                dtype=options.dtype, device=own_device(resolve_device(options.device)), resume=options.resume,
                progress=progress if is_main() else Silent(), device_map=options.device_map,
            )  # fmt: skip
        except KeyboardInterrupt:
            say(f"Stopped; finished shards are kept. Go on with the same command and --resume. ({folder})")
            raise
    if is_main():
        say(f"{traces.tokens} tokens of {len(traces.documents)} documents are in {folder}")
