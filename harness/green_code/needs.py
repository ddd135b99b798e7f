"""What a grid needs, reported before it starts, and what is missing, in one line with the commands that make it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.appearance.visible_text import shell_word
from harness.config import parse_all
from harness.contracts import ModelInfo, ModelRequest, WeightsChoice
from harness.errors import ArtefactError, ConfigError, DataError, ModelError, UnknownNameError
from harness.green_code.grid import PAPER_MODELS, GridRun, GridSettings
from harness.models.model import resolve
from harness.registry import TASKS
from harness.running.operating_points import build_all
from reports.green_code.published_runs import green_code

__all__ = ["available_tasks", "check", "facts", "needs", "weights_of"]


def facts(model: str, artefacts: str | None = None) -> ModelInfo:
    """Return the facts of a model that need no weights; a catalogue model needs neither hub nor files."""
    return _resolve(model, "random", "float32", artefacts)


def weights_of(model: str, artefacts: str | None = None) -> WeightsChoice:
    """Return ``tuned`` where a model has an adapter, as the paper's two must, else ``pretrained``.

    Raises:
        ModelError: its weights are unavailable.
    """
    return "tuned" if model in PAPER_MODELS else _resolve(model, "auto", "float32", artefacts).weights


def needs(settings: GridSettings, runs: Sequence[GridRun]) -> tuple[str, ...]:
    """Return the cost of the grid, in sentences: requests, weights, memory, artefacts, hours.

    Hours are the paper's own mean times of the same points on a Quadro RTX 8000, for the paper's models only: other
    GPUs differ, and without a GPU it takes days.
    """
    requests = sum(run.requests for run in runs)
    lines = [
        f"{len(runs)} runs, {settings.samples:,} samples a task, {requests:,} completions of {settings.new_tokens} "
        "tokens"
    ]
    hours = 0.0
    for model in settings.models:
        if model not in PAPER_MODELS:
            continue
        info = _facts(settings, model)
        gigabytes = (info.num_layers * info.layer_bytes + info.lm_head_bytes) / 1e9
        agents = " and ".join(settings.agents[task] for task in settings.tasks)
        lines.append(
            f"{model}: weights {gigabytes:.1f} GB in {settings.dtype}, twice that in memory while they load; an "
            f"adapter (`harness train lite`) and the agents {agents} in {settings.artefacts or f'artefacts/{model}'}"
        )
        hours += sum(_published_s(run) for run in runs if run.model == model) / 3600
    if hours:
        lines.append(f"about {hours:.0f} hours at the speed of the paper's Quadro RTX 8000; without a GPU many days")
    return tuple(lines)


def check(settings: GridSettings) -> None:
    """Check that every model has its weights, adapter and agents; reads no weights.

    Raises:
        ConfigError: what is missing for all models, with the commands that make it.
    """
    missing, commands = [], []
    for model in settings.models:
        found = list(_missing(settings, model))
        missing += [what for what, _ in found]
        commands += [command for _, making in found for command in making]
    if missing:
        raise ConfigError(
            f"the grid cannot start: {'; '.join(missing)}. Use --scale small, or make them in this order "
            "(hours to tune, minutes to hours to trace, minutes to train):",
            dict.fromkeys(commands),
        )


def _missing(settings: GridSettings, model: str) -> Iterator[tuple[str, list[str]]]:
    """Return what a model lacks, and the commands that make it. What depends on missing weights is not checked."""
    name, given = Path(model).name, shell_word(model)
    traces = shell_word(f"traces/{name}")
    tune = f"harness train lite --model {given} --exit-head shared --source hub"
    trace = f"harness trace --model {given} --source hub --out {traces}"
    train = {
        task: f"harness train rl --model {given} --traces {traces} --preset paper --task {task} --name {agent}"
        for task, agent in settings.agents.items()
        if task in settings.tasks
    }
    try:
        info = _facts(settings, model, settings.weights)
    except ArtefactError:
        yield f"{model} has no adapter", [tune, trace, *train.values()]
        return
    except UnknownNameError:
        raise
    except ModelError as error:
        if model not in PAPER_MODELS:
            raise
        hub = _hub_name(error, model)
        licence = "; its licence must be accepted" if hub.startswith("meta-llama/") else ""
        lacks = f"{model} has no weights here, nor what is trained on them (the download needs the hub{licence})"
        yield lacks, [f"hf download {hub}", tune, trace, *train.values()]
        return
    for task, command in train.items():
        agent = settings.agents[task]
        ((_, strategy),) = build_all(parse_all([f"rl:agent={agent}"]))
        try:
            strategy.exit_points(info)
        except ArtefactError as error:
            found, _, _ = error.message.partition(". ")
            absent = "there is no" in found
            lacks = f"no agent {agent}" if absent else f"an agent of another model or task ({found})"
            yield f"{name} has {lacks}", [trace, command]


def available_tasks(tasks: Sequence[str], source: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the tasks that have data, and why the others are omitted; only embedded sources are looked at.

    Raises:
        DataError: no task has data.
    """
    if source != "embedded":
        return tuple(tasks), ()
    kept, reasons = [], []
    for name in tasks:
        try:
            TASKS.load(name)().embedded()
        except DataError as error:
            reasons.append(f"{name} is omitted: {error}")
        else:
            kept.append(name)
    if not kept:
        raise DataError(" ".join(reasons))
    return tuple(kept), tuple(reasons)


def _facts(settings: GridSettings, model: str, weights: WeightsChoice = "random") -> ModelInfo:
    return _resolve(model, weights, settings.dtype, settings.artefacts, settings.seed)


def _resolve(model: str, weights: WeightsChoice, dtype: str, artefacts: str | None, seed: int = 0) -> ModelInfo:
    return resolve(
        ModelRequest(
            model,
            weights=weights,
            dtype=dtype,
            exit_head="shared" if weights == "random" else "auto",
            artefacts=artefacts,
            seed=seed,
        )
    ).info


def _hub_name(error: ModelError, model: str) -> str:
    """The hub id that a refusal names in brackets, else the model's name."""
    _, _, rest = str(error).partition("(")
    return rest.partition(")")[0] or model


def _published_s(run: GridRun) -> float:
    """Seconds that the paper's own times add up to for one of our runs; each policy has as many points.

    The untuned run is cached full depth alone; a point without a published time counts as full depth.
    """
    (name,) = run.stands_for
    language = {"javacorpus": "java", "py150": "python"}[run.task]
    theirs = [point for point in green_code() if (point.model, point.language) == (name, language)]
    whole = {point.kv: point.time_s for point in theirs if point.strategy == "full" and point.weights == "tuned"}
    full, cached = whole["none"], whole["propagate"]
    samples = run.config.limit or 0
    if run.kind == "base":
        return samples * cached
    times = {point.threshold: point.time_s for point in theirs if point.strategy == "rl"}
    asked = [dict(spec.options).get("threshold") for spec in run.config.specs()]
    uncached = [full if text is None else times.get(float(text), full) for text in asked]
    return samples * (sum(uncached) + len(asked) * cached)
