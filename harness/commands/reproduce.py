"""``harness reproduce``: a published experiment, measured again here, beside the published numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field

from harness.appearance.visible_text import one_line
from harness.commands.console import escape, stderr, stdout, write_json
from harness.commands.options import FigureWidth, configured_by, run_settings
from harness.config.model import Configuration, Folder, OperatingPoint, TaskName
from harness.errors import ConfigError

if TYPE_CHECKING:
    from harness.config import RunConfig

__all__ = ["reproduce"]

PAPERS = ("green-code",)
FIGURES = ("grid", "kv")
KV_POLICIES = "none,propagate,recompute"  # the first one's full depth is the baseline, as in the paper


class FigureOptions(Configuration):
    """What of a run's configuration a figure leaves to its reader; what is not given depends on figure and scale."""

    strategies: tuple[OperatingPoint, ...] = Field(
        default=(), description="kv: early exits to show. Repeatable. Default: rl, and fixed in the middle."
    )
    model: str | None = Field(
        default=None,
        description="Catalogue name, hub id or folder. Default: smollm2-135m; at full scale the paper's two.",
    )
    weights: str | None = Field(
        default=None, description="auto, tuned, pretrained or random. Default: auto; tuned at full scale."
    )
    artefacts: str | None = Field(
        default=None,
        description="Trained exits: a folder, or a shipped set (smollm2-135m-shared: the paper's one head).",
    )
    tasks: tuple[TaskName, ...] = Field(default=(), description="Repeatable. Default: py150; grid: both.")
    source: str | None = Field(
        default=None, description="embedded, hub, or PATH. Default: embedded; hub at full scale."
    )
    limit: int | None = Field(
        default=None, description="Samples per task; without a cache each takes seconds. Default: 16, or --scale's."
    )
    dtype: str | None = Field(
        default=None,
        description="float32, bfloat16 or float16. Default: float32; grid: bfloat16 where that is fast.",
    )
    energy: str | None = Field(default=None, description="auto, nvml, rapl, estimate or none. Default: auto.")
    threads: int | None = Field(default=None, description="CPU threads. Default: torch's choice.")
    out: Folder | None = Field(
        default=None, description="Folder. Default: runs/TIME-MODEL-TASK; grid: runs/TIME-green-code."
    )


@configured_by(FigureOptions)
def reproduce(
    given: dict[str, Any],
    paper: Annotated[str, typer.Argument(help="green-code.", metavar="PAPER")] = "green-code",
    figure: Annotated[
        str | None,
        typer.Option(
            help="grid: the paper's models, data and thresholds, point by point. kv: early exit without a KV cache, as "
            "published, beside full depth with one. Default: grid, or what --resume holds."
        ),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(
            help="grid: small (6 samples a task, a small model stands in), a fraction of the paper's 1,000 samples "
            "with that model, or full (its models and samples: days without a GPU). Default: small."
        ),
    ] = None,
    width: FigureWidth = None,
    resume: Annotated[Path | None, typer.Option(help="Continue a folder.", metavar="DIR")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure a published experiment again, here, and show both: the paper's numbers and ours, never mixed."""
    figure = figure or _figure_of(resume)
    for what, name, known in (("paper", paper, PAPERS), ("figure", figure, FIGURES)):
        if name not in known:
            raise ConfigError(f"unknown {what} '{name}'. Known: {', '.join(known)}.")
    if figure == "grid":
        from harness.commands.reproduce_grid import grid

        grid(given, scale, resume, width or "text", as_json=as_json)
        return
    if scale is not None:
        raise ConfigError("--scale belongs to --figure grid. Use --limit for the samples of --figure kv.")
    if width is not None:
        raise ConfigError("--width belongs to --figure grid. --figure kv draws nothing: omit it.")

    if resume is None:
        given["kv"] = KV_POLICIES
        given["strategies"] = given.get("strategies") or tuple(_early_exits(run_settings(given, None, None)))
    _kv(run_settings(given, None, resume), resume, as_json=as_json)


def _figure_of(resume: Path | None) -> str:
    """The figure that a folder to resume holds: the grid's has runs below it, the other one is a run."""
    return "kv" if resume is not None and (resume / "manifest.json").exists() else "grid"


def _early_exits(config: RunConfig) -> list[str]:
    """The model's agent where it has one, and the plainest exit halfway."""
    from harness.config import parse_all
    from harness.models.model import resolve
    from harness.running.operating_points import build_all, usable

    info = resolve(config.request(config.seed)).info
    if not info.exit_points:
        raise ConfigError(f"{info.name} has {info.num_layers} layers and no exit point. Name exits with --strategy.")
    middle = min(info.exit_points, key=lambda point: abs(point - info.num_layers / 2))
    wished = build_all(parse_all(["rl", f"fixed:layer={middle}"]))
    return [str(spec) for spec, _ in usable(wished, info)]


def _kv(config: RunConfig, resume: Path | None, *, as_json: bool) -> None:
    import dataclasses

    from harness.commands.progress import RunProgress
    from harness.running.runner import execute
    from reports.files import write_files
    from reports.green_code.kv_figure import kv_figure, kv_markdown, render_kv_figure

    with RunProgress(stderr()) as progress:
        try:
            result = execute(config, resume=resume, observer=progress)
        except KeyboardInterrupt:
            progress.interrupted()
            raise
    (file,) = write_files(result.directory, {"kv.md": kv_markdown(result.summary)})
    if as_json:
        tasks = dict.fromkeys(row.task for row in result.summary.rows)
        rows = {task: [dataclasses.asdict(row) for row in kv_figure(result.summary, task)] for task in tasks}
        write_json(rows)
        return
    console = stdout()
    console.print(render_kv_figure(result.summary, console.width))
    console.print(
        f"[dim]The same as Markdown: {escape(one_line(str(file)))}; every record beside it.[/]", soft_wrap=True
    )
