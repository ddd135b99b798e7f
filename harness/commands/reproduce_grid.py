"""``harness reproduce green-code``: the paper's grid. Prepares, measures run by run, compares, and writes the files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.appearance.visible_text import one_line, shell_word
from harness.commands.console import escape, log_to, stderr, stdout, write_json
from harness.commands.progress import RunProgress
from harness.errors import ConfigError
from harness.green_code.grid import AGENTS, PAPER_MODELS, STAND_IN, GridSettings, fixed_layers, plan, read_scale
from harness.green_code.measure import GridProgress, measure, open_grid, read_settings
from harness.green_code.needs import available_tasks, check, facts, needs, weights_of
from harness.host.extras import require
from harness.store.run_directory import fresh_directory
from reports.figures.figure import save_figures
from reports.figures.layout import Width
from reports.files import write_files
from reports.green_code.compare import compare_grid
from reports.green_code.files import grid_csv, grid_json, grid_markdown
from reports.green_code.grid_figure import grid_figures
from reports.green_code.published_runs import THRESHOLDS
from reports.green_code.text import render_grid

__all__ = ["grid"]

FAST_BFLOAT16 = frozenset({"amx_bf16", "avx512_bf16"})
"""Processor flags: half precision is faster than single there, and slower without."""


def grid(given: Mapping[str, Any], scale: str | None, resume: Path | None, width: Width, *, as_json: bool) -> None:
    """Measure the grid, or go on with it, and show it beside the paper's.

    Args:
        given: flags by the names of a run's configuration.
        scale: as asked for; ``None`` for small.
        resume: folder of a grid.
        width: of the figures.
        as_json: print it as JSON.

    Raises:
        HarnessError: the grid cannot be made, or could not go on.
    """
    console = stderr()
    log_to(console)
    if given.get("strategies"):
        raise ConfigError("--strategy belongs to --figure kv; the grid's operating points are the paper's.")
    require("figures", "matplotlib")
    notes: tuple[str, ...] = ()
    if resume is not None:
        folder, settings = resume, read_settings(resume)
        _refuse_changes(given, scale, resume)
    else:
        settings, notes = _settings(given, scale or "small")
        folder = given.get("out") or fresh_directory("green-code")
    runs = plan(settings)
    for line in (*notes, *needs(settings, runs)):
        console.print(f"[dim]• {escape(one_line(line))}[/]", soft_wrap=True)
    check(settings)
    if resume is None:
        open_grid(folder, settings)
    progress = GridProgress(
        lambda line: console.print(escape(one_line(line)), soft_wrap=True), lambda: RunProgress(console)
    )
    try:
        measured = measure(folder, runs, progress)
    except KeyboardInterrupt:
        console.print(
            "Stopped; every finished window is kept. Continue with "
            f"`harness reproduce green-code --resume {escape(shell_word(folder))}`.",
            soft_wrap=True,
        )
        raise
    comparison = compare_grid(settings.thresholds, [(run.kind, run.stands_for, record) for run, record in measured])
    texts = {"grid.md": grid_markdown(comparison), "grid.csv": grid_csv(comparison), "grid.json": grid_json(comparison)}
    write_files(folder, texts)
    save_figures(grid_figures(comparison), folder, width)
    if as_json:
        write_json(texts["grid.json"].rstrip())
        return
    shown = stdout()
    shown.print(render_grid(comparison, shown.width))
    where = escape(one_line(str(folder)))
    console.print(f"[dim]grid.md, grid.csv, grid.json, the figures and every run are in {where}[/]", soft_wrap=True)


def _settings(given: Mapping[str, Any], scale: str) -> tuple[GridSettings, tuple[str, ...]]:
    """Decide what the flags leave open; also returns what was left out."""
    samples, papers_own = read_scale(scale)
    if "limit" in given:
        if given["limit"] < 1:
            raise ConfigError(f"--limit {given['limit']}: the grid needs 1 sample or more; see --scale.")
        samples = given["limit"]
    source = given.get("source") or ("hub" if papers_own else "embedded")
    tasks = tuple(given.get("tasks") or AGENTS)
    for name in tasks:
        if name not in AGENTS:
            raise ConfigError(f"--task {name} is not in the paper's grid. Use {' or '.join(AGENTS)}.")
    left_out: tuple[str, ...] = ()
    if "tasks" not in given:
        tasks, left_out = available_tasks(tasks, source)
    models: tuple[str, ...] = (
        (given["model"],) if "model" in given else tuple(PAPER_MODELS) if papers_own else (STAND_IN,)
    )
    layers = {}
    for model in models:
        info = facts(model, given.get("artefacts"))
        layers[model] = fixed_layers(info.exit_points, info.num_layers)
    values: dict[str, Any] = {
        "weights": "auto",
        "dtype": "bfloat16" if papers_own or _half_is_fast() else "float32",
        **{key: given[key] for key in ("weights", "dtype", "energy", "artefacts", "threads") if key in given},
    }
    if values["weights"] not in ("auto", "tuned", "pretrained", "random"):
        raise ConfigError(f"--weights {values['weights']} is unknown. Use auto, tuned, pretrained or random.")
    if values["weights"] == "auto":
        values["weights"] = weights_of(models[0], given.get("artefacts"))
    return GridSettings(
        scale=scale,
        samples=samples,
        models=models,
        tasks=tasks,
        thresholds=THRESHOLDS,
        agents={task: AGENTS[task] for task in tasks},
        fixed_layers=layers,
        source=source,
        **values,
    ), left_out


def _refuse_changes(given: Mapping[str, Any], scale: str | None, resume: Path) -> None:
    """A grid that goes on is the one that was begun: its folder knows the settings."""
    changed = [*given] + (["scale"] if scale else [])
    if changed:
        flag = {"tasks": "task", "strategies": "strategy"}.get(changed[0], changed[0])
        raise ConfigError(f"--{flag} cannot change when a grid is resumed: {resume} has its settings. Omit it.")


def _half_is_fast() -> bool:
    import torch

    if torch.cuda.is_available():
        return True
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return any(flag in text.split() for flag in FAST_BFLOAT16)
