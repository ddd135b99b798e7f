"""``harness sweep``: many operating points of many strategies from one trace, without running the model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.commands.console import stderr, stdout, write_json
from harness.commands.options import configure, configured_by
from harness.errors import ConfigError, UnknownNameError
from harness.registry import KV_POLICIES
from harness.sweep.options import SweepOptions

if TYPE_CHECKING:
    from harness.appearance.terminal import Console
    from harness.sweep.records import Sweep
    from harness.sweep.replay_sweep import SweepResult


@configured_by(SweepOptions)
def sweep(
    given: dict[str, Any],
    as_json: Annotated[bool, typer.Option("--json", help="Print sweep.json instead of the tables.")] = False,
) -> None:
    """Replay strategies on a trace: depth, agreement and expected speed-up of every threshold, in seconds."""
    options = configure(SweepOptions, given)
    if not KV_POLICIES.load(options.kv).facts.keeps_cache:
        raise ConfigError(f"--kv '{options.kv}' cannot be replayed: it keeps no KV cache. Use another --kv.")

    from harness.commands.progress import TrainingProgress
    from harness.sweep.files import check_writable, write_sweep
    from harness.sweep.replay_sweep import SweepRequest
    from harness.sweep.replay_sweep import sweep as replay_all
    from harness.sweep.tables import tables
    from harness.training.traces.store import Traces
    from reports.tables.writers import to_terminal

    traces = Traces.open(options.replay, options.model or "")
    out = options.out
    if out is not None:
        check_writable(out)
    fixed = ",".join(map(str, traces.exit_points))
    request = SweepRequest(
        strategies=options.strategies,
        references=(f"fixed:layer={fixed}", "oracle") if options.references and fixed else (),
        points=options.points,
        documents=options.document_split,
        tasks=options.tasks,
        kv=options.kv,
        decodes=options.decodes,
        draft_max=options.draft_max,
        seed=options.seed,
        measure_costs=options.measure_costs,
        calibrate=out is not None,
    )
    errors = stderr()
    with TrainingProgress(errors) as progress:
        name = options.model or str(traces.index["model"])
        try:
            result = replay_all(name, traces.folder, request, artefacts=options.artefacts, progress=progress)
        except UnknownNameError as error:
            if options.model is not None or f"'{name}'" not in str(error):
                raise
            raise ConfigError(
                f"the trace {options.replay} is of '{name}', which is no known model. Say where it is: --model DIR."
            ) from None
    found = result.sweep
    if out is not None:
        write_sweep(found, out, result.calibration)  # before anything that takes minutes and can be interrupted
    if options.live:
        found = _decode_live(result, options, errors)
    if as_json:
        write_json(found.model_dump_json(indent=2))
    else:
        stdout().print(to_terminal(tables(found, keep=options.keep, calibration=result.calibration)))
    sys.stdout.flush()
    each = found.replay_s / (found.tokens * len(found.rows))
    written = "" if out is None else f" {_written(result)}"
    errors.print(
        f"[dim]{len(found.rows):d} operating points × {found.tokens:d} tokens replayed in {found.replay_s:.1f} s "
        f"({each * 1e6:.2f} µs each).{written}[/]",
        soft_wrap=True, highlight=False,
    )  # fmt: skip


def _written(result: SweepResult) -> str:
    judged = result.calibration
    scores = f", scores judged in {judged.seconds:.1f} s" if judged is not None else ""
    return f"sweep.json, sweep.csv and calibration.json are in --out{scores}."


def _decode_live(result: SweepResult, options: SweepOptions, errors: Console) -> Sweep:
    """Decode some operating points live; with a folder, the files are written again."""
    from harness.commands.progress import RunProgress
    from harness.sweep.files import write_sweep
    from harness.sweep.live import LiveRequest, with_drift

    folder = None if options.out is None else options.out / "live"
    request = LiveRequest(
        options.live, options.live_points, options.source, options.max_new_tokens, options.artefacts, folder
    )
    with RunProgress(errors) as progress:
        found = with_drift(result, request, observer=progress)
    if request.out is not None:
        write_sweep(found, request.out.parent)
    return found
