"""``harness sweep``: many operating points of many strategies from one trace, without running the model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.commands.console import stderr, stdout, write_json
from harness.commands.options import configure, configured_by
from harness.errors import ConfigError, StoreError
from harness.registry import KV_POLICIES
from harness.replay.options import SweepOptions


@configured_by(SweepOptions)
def sweep(
    given: dict[str, Any],
    as_json: Annotated[bool, typer.Option("--json", help="Print sweep.json instead of the tables.")] = False,
) -> None:
    """Replay strategies on a trace: depth, agreement and expected speed-up of every threshold, in seconds."""
    options = configure(SweepOptions, given)
    if not KV_POLICIES.load(options.kv).facts.keeps_cache:
        raise ConfigError(f"--kv '{options.kv}' cannot be replayed: it keeps no KV cache. Use another --kv.")

    from harness.commands.progress import RunProgress, TrainingProgress
    from harness.replay.sweep import sweep as replay_all
    from harness.replay.tables import FILES, sweep_tables, write_sweep
    from harness.training.traces.store import Traces
    from reports.tables.writers import to_terminal

    fixed = ",".join(map(str, Traces.open(options.replay, options.model or "").exit_points))
    if options.out is not None:
        _check_writable(options.out, {*FILES, "live"})
    errors = stderr()
    with TrainingProgress(errors) as progress:
        references = (f"fixed:layer={fixed}", "oracle") if options.references and fixed else ()
        result = replay_all(options, references, progress=progress)
    found, scores = result.sweep, result.calibration
    if options.out is not None:
        write_sweep(found, options.out, scores)  # before anything that takes minutes and can be interrupted
    if options.live:
        from harness.replay.live import with_drift

        with RunProgress(errors) as running:
            found = with_drift(result, observer=running)
        if options.out is not None:
            write_sweep(found, options.out)
    if as_json:
        write_json(found.model_dump_json(indent=2))
    else:
        stdout().print(to_terminal(sweep_tables(found, keep=options.keep, calibration=scores)))
    sys.stdout.flush()
    each = found.replay_s / (found.tokens * len(found.rows))
    judged = "" if scores is None else f", scores judged in {scores.seconds:.1f} s"
    written = "" if options.out is None else f" sweep.json, sweep.csv and calibration.json are in --out{judged}."
    errors.print(
        f"[dim]{len(found.rows):d} operating points × {found.tokens:d} tokens replayed in {found.replay_s:.1f} s "
        f"({each * 1e6:.2f} µs each).{written}[/]",
        soft_wrap=True, highlight=False,
    )  # fmt: skip


def _check_writable(folder: Path, own: set[str]) -> None:
    """Make the folder before any slow work; refuse one that cannot be made, or holds other files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted({path.name for path in folder.iterdir()} - own)
    except OSError as error:
        raise StoreError(f"cannot make {folder}: {error.strerror}. Use another --out.") from None
    if others:
        raise StoreError(f"{folder} holds other files ({others[0]}). Use another --out.")
