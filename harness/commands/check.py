"""``harness doctor`` and ``verify``: how far numbers of this machine can be trusted, and whether tokens are exact."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.commands.console import print_tables, show_progress, write_json
from harness.commands.options import AsJson, configured_by, use_threads
from harness.errors import ConfigError, MeterError
from harness.verifying.options import VerifyOptions

if TYPE_CHECKING:
    from harness.config import RunConfig

WIDTH = 80
DEFECTS = 1


def doctor(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: torch's choice.")] = None,
    energy: Annotated[str, typer.Option(help="auto, nvml, rapl, estimate or none.")] = "auto",
    as_json: AsJson = False,
    self_test: Annotated[
        bool, typer.Option("--aa", help="Compare full depth with itself instead: do 95 % of the error bars cover 1?")
    ] = False,
    pairs: Annotated[
        int, typer.Option(help="With --aa: real comparisons of the same work under two names.", min=1)
    ] = 20,
    windows: Annotated[int, typer.Option(help="With --aa: paired windows of each, one sample a window.")] = 8,
    model: Annotated[str | None, typer.Option(help="With --aa: as of `harness run`. Default: smollm2-135m.")] = None,
    task: Annotated[str | None, typer.Option(help="With --aa: py150 or javacorpus. Default: py150.")] = None,
    source: Annotated[str | None, typer.Option(help="With --aa: embedded, hub or PATH. Default: embedded.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="With --aa: tokens of a window.")] = 4,
    seed: Annotated[int, typer.Option(help="With --aa: decides samples and order.")] = 0,
) -> None:
    """Say what this machine can measure and how far each metric can be trusted."""
    from harness.config import RunConfig

    given: dict[str, Any] = {"device": device, "dtype": dtype, "threads": threads, "energy": energy, "seed": seed}
    given |= {"model": model, "tasks": task and (task,), "source": source, "max_new_tokens": max_new_tokens}
    config = RunConfig.build({name: value for name, value in given.items() if value is not None})
    if self_test:
        from reports.statistics.intervals import MINIMUM_PAIRS

        if windows < MINIMUM_PAIRS:
            raise ConfigError(f"--windows {windows} is too small; at least {MINIMUM_PAIRS}: fewer have no interval.")
        _compare(config, pairs, windows, as_json=as_json)
    else:
        _examine(config, as_json=as_json)


def _examine(config: RunConfig, *, as_json: bool) -> None:
    from harness.doctor.verdicts import examination, judge
    from harness.host import environment
    from harness.host.libraries import resolve_device
    from harness.metering.examine import examine
    from harness.metering.sensors import look_for_sensors
    from harness.running.scoring import missing_scores

    device = resolve_device(config.device)
    use_threads(config.threads)
    surroundings = environment.describe()
    with show_progress(timer=False) as progress:
        progress.stage("looking for energy sensors")
        source, description, measured = _meter(config, device)
        sensors = look_for_sensors(device)
        facts = examine(
            device,
            config.dtype,
            meter=source,
            meter_description=description,
            meter_measured=measured,
            sensors=sensors,
            scores_missing=missing_scores(),
            environment=surroundings,
            stage=lambda what: progress.stage(f"measuring {what}"),
        )
    verdicts = judge(facts)
    line = environment.machine_line(surroundings)
    if as_json:
        found = {
            "machine": line,
            "facts": facts.model_dump(mode="json"),
            "environment": surroundings,
            "verdicts": [dataclasses.asdict(verdict) for verdict in verdicts],
        }
        write_json(found)
    else:
        print_tables(examination(line, facts, verdicts), WIDTH)


def _compare(config: RunConfig, pairs: int, windows: int, *, as_json: bool) -> None:
    from harness.doctor import self_test

    use_threads(config.threads)
    with show_progress(timer=False) as progress:
        real = self_test.compare_with_itself(config, pairs, windows, progress)
    if as_json:
        write_json({"real": dataclasses.asdict(real) | {"verdict": self_test.real_verdict(real)}})
    else:
        print_tables(self_test.real(real), WIDTH)


def _meter(config: RunConfig, device: str) -> tuple[str, str, bool]:
    """Return source and description of the meter a run would use, and whether it measures; one that fails is told."""
    from harness.contracts.meters import is_measured
    from harness.metering import open_meter

    try:
        meter, _ = open_meter(config.energy, device, config.tdp_w)
    except MeterError as error:
        return "none", str(error), False
    try:
        return meter.source, meter.description, is_measured(meter)
    finally:
        meter.close()


@configured_by(VerifyOptions)
def verify(
    options: VerifyOptions,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the certificate, with every difference.", metavar="FILE")
    ] = None,
) -> None:
    """Certify that tokens are those they must be, whatever weights format, batch or lossless decoding made them.

    Weights formats are held against float32, batches against rows alone, lossless decoding against full depth.

    Every difference is listed with the two logits. Exit code 1: one of them is more than rounding explains.
    """
    if json_file is not None and (json_file.is_dir() or not json_file.parent.is_dir()):
        raise ConfigError(f"--json {json_file}: give a file in a folder that exists.")

    from harness.host.files import replace_files
    from harness.verifying.certify import certify, tables

    use_threads(options.threads)
    with show_progress() as progress:
        found = certify(options, progress)
    if json_file is not None:
        replace_files({json_file: found.model_dump_json(indent=2).encode()})
    print_tables(tables(found))
    if found.defects:
        raise typer.Exit(DEFECTS)
