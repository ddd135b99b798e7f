"""``harness sweep``: many operating points of many strategies from one trace, without running the model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.commands.console import stderr, stdout
from harness.errors import ConfigError, UnknownNameError
from harness.registry import KV_POLICIES

if TYPE_CHECKING:
    from rich.console import Console

    from harness.sweep.records import Sweep
    from harness.sweep.replay_sweep import SweepResult

__all__ = ["sweep"]


def sweep(
    replay: Annotated[Path, typer.Option(help="Folder that `harness trace` made.", metavar="DIR")],
    strategy: Annotated[
        list[str],
        typer.Option(
            help="NAME:option=value[,value…], one operating point each; NAME alone is swept over its threshold. "
            "Repeatable.",
            metavar="SPEC",
        ),
    ],
    points: Annotated[
        int, typer.Option(help="Thresholds of a swept strategy, at quantiles of the scores observed.")
    ] = 20,
    document_split: Annotated[
        str, typer.Option(help="held-out (documents that heads never learned from) or all.")
    ] = "held-out",
    task: Annotated[list[str] | None, typer.Option(help="Only these tasks' documents. Repeatable.")] = None,
    references: Annotated[
        bool, typer.Option("--references/--no-references", help="Add fixed exits and the oracle's bound.")
    ] = True,
    model: Annotated[str | None, typer.Option(help="Whose trace it is. Default: the model the trace names.")] = None,
    artefacts: Annotated[str | None, typer.Option(help="Folder of `harness train`, or a shipped set.")] = None,
    kv: Annotated[
        str,
        typer.Option(
            help="K,V of skipped layers, for the expected speed-up: a policy that keeps a cache, see `harness list kv`."
        ),
    ] = "recompute",
    keep: Annotated[float, typer.Option(help="Agreement that the first table asks for.")] = 0.98,
    live: Annotated[
        int, typer.Option(help="Also decode operating points of the front live on so many samples a task.")
    ] = 0,
    live_points: Annotated[int, typer.Option(help="At most so many of them.")] = 4,
    source: Annotated[str, typer.Option(help="Where live samples come from: embedded, hub, or PATH.")] = "embedded",
    max_new_tokens: Annotated[int | None, typer.Option(help="Of a live sample; overrides the protocol's.")] = None,
    seed: Annotated[int, typer.Option(help="Decides which documents are held out; the heads' own is 0.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for sweep.json, sweep.csv and calibration.json.", metavar="DIR")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print sweep.json instead of the tables.")] = False,
) -> None:
    """Replay strategies on a trace: depth, agreement and expected speed-up of every threshold, in seconds."""
    if document_split not in ("held-out", "all"):
        raise ConfigError(f"--document-split '{document_split}' is unknown. Use held-out or all.")
    if not KV_POLICIES.load(kv).facts.keeps_cache:
        raise ConfigError(f"--kv '{kv}' cannot be replayed: it keeps no KV cache. Use another --kv.")
    for flag, value, least, most in (
        ("points", points, 1, 1000),
        ("live", live, 0, 100_000),
        ("live-points", live_points, 1, 100),
        ("seed", seed, 0, 2**32 - 1),
    ):
        if not least <= value <= most:
            raise ConfigError(f"--{flag} {value} is out of range; {least} to {most}.")
    if not 0 < keep <= 1:
        raise ConfigError(f"--keep {keep} is out of range; above 0, at most 1.")

    from harness.commands.progress import TrainingProgress
    from harness.sweep.files import check_writable, write_sweep
    from harness.sweep.replay_sweep import SweepRequest
    from harness.sweep.replay_sweep import sweep as replay_all
    from harness.sweep.terminal import render
    from harness.training.traces.store import Traces

    traces = Traces.open(replay)
    if out is not None:
        check_writable(out)
    fixed = ",".join(map(str, traces.exit_points))
    request = SweepRequest(
        strategies=tuple(strategy),
        references=(f"fixed:layer={fixed}", "oracle") if references and fixed else (),
        points=points,
        documents="held-out" if document_split == "held-out" else "all",
        tasks=tuple(task or ()),
        kv=kv,
        seed=seed,
        calibrate=out is not None,
    )
    errors = stderr()
    with TrainingProgress(errors) as progress:
        name = model or str(traces.index["model"])
        try:
            result = replay_all(name, traces.folder, request, artefacts=artefacts, watch=progress)
        except UnknownNameError as error:
            if model is not None or f"'{name}'" not in str(error):
                raise
            raise ConfigError(
                f"the trace {replay} is of '{name}', which is no known model. Say where it is: --model DIR."
            ) from None
    found = result.sweep
    if out is not None:
        write_sweep(found, out, result.calibration)  # before anything that takes minutes and can be interrupted
    if live:
        folder = None if out is None else out / "live"
        found = _decode_live(result, (live, live_points, source, max_new_tokens, artefacts, folder), errors)
    if as_json:
        print(found.model_dump_json(indent=2))
    else:
        console = stdout()
        console.print(render(found, keep=keep, width=console.width, calibration=result.calibration))
    sys.stdout.flush()
    each = found.replay_s / (found.tokens * len(found.rows))
    errors.print(
        f"[dim]{len(found.rows)} operating points × {found.tokens} tokens replayed in {found.replay_s:.1f} s "
        f"({each * 1e6:.2f} µs each).{'' if out is None else f' {_written(result)}'}[/]",
        soft_wrap=True, highlight=False,
    )  # fmt: skip


def _written(result: SweepResult) -> str:
    judged = result.calibration
    scores = f", scores judged in {judged.seconds:.1f} s" if judged is not None else ""
    return f"sweep.json, sweep.csv and calibration.json are in --out{scores}."


def _decode_live(result: SweepResult, asked: tuple[Any, ...], errors: Console) -> Sweep:
    """Decode some operating points live; with a folder, the files are written again."""
    from harness.commands.progress import RunProgress
    from harness.sweep.files import write_sweep
    from harness.sweep.live import LiveRequest, with_drift

    request = LiveRequest(*asked)
    with RunProgress(errors) as progress:
        found = with_drift(result, request, observer=progress)
    if request.out is not None:
        write_sweep(found, request.out.parent)
    return found
