"""``harness trace``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.commands.training_options import (
    Artefacts,
    Model,
    Sources,
    Tasks,
    check_choice,
    check_least,
    check_seed,
    check_split,
    say,
    show_progress,
)

__all__ = ["trace"]

WEIGHTS = ("auto", "tuned", "pretrained", "random")

Weights = Annotated[str, typer.Option(help="auto (tuned where there is an adapter), tuned, pretrained or random.")]
ExitHead = Annotated[str, typer.Option(help="auto (shortcut where there are maps), shared or shortcut.")]


def trace(
    model: Model = "smollm2-135m",
    task: Tasks = None,
    source: Sources = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the trace. Default: traces/MODEL.", metavar="DIR")] = None,
    documents: Annotated[int, typer.Option(help="Documents of each task and source; 0 for all.")] = 100,
    split: Annotated[str, typer.Option(help="Part of each dataset: train, validation or test.")] = "train",
    length: Annotated[int, typer.Option(help="Tokens a document is cut at.")] = 640,
    new_tokens: Annotated[
        int, typer.Option(help="Trace so many generated tokens per document; 0: the document's own tokens.")
    ] = 0,
    weights: Weights = "auto",
    exit_head: ExitHead = "auto",
    artefacts: Artefacts = None,
    exit_points: Annotated[str, typer.Option(help="paper, all, or layers such as 4,8,12.")] = "paper",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    seed: Annotated[int, typer.Option(help="Decides which documents, and the contexts.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the trace in --out.")] = False,
) -> None:
    """Run a model once at full depth and keep what its exits said, for everything that learns from it."""
    from harness.running.plan import resolve_device
    from harness.training.traces.record_trace import TraceRequest
    from harness.training.traces.record_trace import trace as make

    check_choice("dtype", dtype, ("float32", "bfloat16", "float16"))
    head = check_choice("exit-head", exit_head, ("auto", "shared", "shortcut"))
    start = check_choice("weights", weights, WEIGHTS)
    check_least(("documents", documents, 0), ("length", length, 16), ("new-tokens", new_tokens, 0))
    check_seed(seed)
    folder = out or Path("traces") / Path(model).name
    request = TraceRequest(documents or None, length, new_tokens, check_split(split), seed)
    with show_progress() as progress:
        try:
            traces = make(
                model, task or ["py150", "javacorpus"], source or ["embedded"], folder, request, weights=start,
                exit_head=head, artefacts=artefacts, exit_points=exit_points, dtype=dtype,
                device=resolve_device(device), resume=resume, watch=progress,
            )  # fmt: skip
        except KeyboardInterrupt:
            say(f"Stopped; finished shards are kept. Go on with the same command and --resume. ({folder})")
            raise
    say(f"{traces.tokens} tokens of {len(traces.documents)} documents are in {folder}")
