"""``harness run``: operating points over tasks, measured and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from harness.commands.console import escape, log_to, stderr, stdout
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

__all__ = ["run"]


def run(
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME[:option=value[,value…]]; a comma list makes one operating point each. Repeatable. "
            "Full depth is always added as the baseline.",
            metavar="SPEC",
        ),
    ] = None,
    model: Model = None,
    task: Annotated[list[str] | None, typer.Option(help="py150, javacorpus. Repeatable. Default: py150.")] = None,
    protocol: Annotated[
        str | None, typer.Option(help="A name of `harness list protocols`. Default: green-code.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="embedded, hub, or PATH of a JSONL file or dataset folder. Default: embedded.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Samples per task; 0 for all. Default: 16.")] = None,
    kv: Annotated[
        str | None,
        typer.Option(
            help="K,V of skipped layers: auto (recompute; propagate for fixed exits), recompute, propagate, none, "
            "skip, or another of `harness list kv`; a comma list compares. Default: auto."
        ),
    ] = None,
    kv_input: KVInput = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples decoded together. Default: 1.")] = None,
    dtype: DType = None,
    device: Device = None,
    threads: Threads = None,
    weights: Weights = None,
    exit_head: ExitHead = None,
    artefacts: Artefacts = None,
    energy: Energy = None,
    attribute: Annotated[
        bool | None,
        typer.Option("--attribute", help="Measure where the time goes: adds a run of each strategy that never exits."),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Repetitions of each block, each in a fresh process. Default: 1.")
    ] = None,
    arrival_rate: Annotated[
        float | None,
        typer.Option(help="Requests per second, at random times, with a queue. Default: one after the other."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides sampling, order and random strategies. Default: 0.")] = None,
    exit_points: ExitPoints = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Overrides the protocol's limit.")] = None,
    block_size: Annotated[
        int | None, typer.Option(help="Samples per interleaved block. Default: from the meter.")
    ] = None,
    tdp_w: TdpW = None,
    strict: Annotated[
        bool | None, typer.Option("--strict", help="Measure windows that other work contaminated again, up to 3 times.")
    ] = None,
    idle_s: Annotated[
        float | None,
        typer.Option(help="Seconds of idle power before and after the work; 0 for none. Default: from the sensor."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory. Default: runs/TIME-MODEL-TASK.", metavar="DIR")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue a run directory.", metavar="DIR")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file; flags win. Names as here, with underscores; strategies and tasks are lists.",
            metavar="FILE",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json instead of the table.")] = False,
) -> None:
    """Run operating points over a task and print the comparison. Without options: the demo."""
    given: dict[str, Any] = {
        "strategies": tuple(strategy) if strategy else None,
        "model": model,
        "tasks": tuple(task) if task else None,
        "protocol": protocol,
        "source": source,
        "limit": limit,
        "kv": kv,
        "kv_input": kv_input,
        "batch_size": batch_size,
        "dtype": dtype,
        "device": device,
        "threads": threads,
        "weights": weights,
        "exit_head": exit_head,
        "artefacts": artefacts,
        "energy": energy,
        "attribute": attribute,
        "repeats": repeats,
        "arrival_rate": arrival_rate,
        "seed": seed,
        "exit_points": exit_points,
        "max_new_tokens": max_new_tokens,
        "block_size": block_size,
        "tdp_w": tdp_w,
        "strict": strict,
        "idle_s": idle_s,
        "out": out,
    }
    from harness.running.settings import resolve_settings

    settings = resolve_settings(given, config, resume)
    console = stderr()
    log_to(console)
    from harness.commands.progress import RunProgress
    from harness.running.runner import execute
    from reports.tables.terminal import render

    with RunProgress(console) as progress:
        try:
            result = execute(settings, resume=resume, observer=progress)
        except KeyboardInterrupt:
            progress.interrupted()
            raise
    if as_json:
        print(result.summary.model_dump_json(indent=2))
    else:
        stdout().print(render(result.summary))
    console.print(
        f"[dim]Records, report.md, summary.csv and summary.json are in {escape(str(result.directory))}[/]",
        soft_wrap=True,
    )
