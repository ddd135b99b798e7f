"""``harness train …``: the commands that make what strategies learn from and run on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

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
from harness.errors import ConfigError

__all__ = ["app"]

app = typer.Typer(
    name="train",
    help="Train what early exits need: exit-capable weights, exit heads, classifiers, RL agents.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Out = Annotated[Path | None, typer.Option(help="Folder for what is made. Default: artefacts/MODEL.", metavar="DIR")]
TraceFolder = Annotated[Path, typer.Option("--traces", help="Folder that `harness trace` made.", metavar="DIR")]
OBSERVATIONS_HELP = (
    "What it sees: paper (the hidden state), normal (divided by its size), rich (its change too), "
    "exit (as rich, of the state behind the exit's shortcut)."
)
ObservationName = Annotated[str, typer.Option(help=OBSERVATIONS_HELP)]
Seed = Annotated[int, typer.Option(help="Decides everything random.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")]
Keep = Annotated[float, typer.Option(help="Agreement with the last layer that the suggested threshold keeps.")]


@app.command()
def lite(
    model: Model = "smollm2-135m",
    task: Tasks = None,
    source: Sources = None,
    out: Out = None,
    preset: Annotated[str, typer.Option(help="paper, cpu, or auto: paper where there is a GPU.")] = "auto",
    method: Annotated[str | None, typer.Option(help="lora or full.")] = None,
    exit_head: Annotated[
        str | None, typer.Option(help="shared (the model's own head) or shortcut (a linear map per exit before it).")
    ] = None,
    weights_rule: Annotated[str | None, typer.Option(help="Loss weights: green-code or uniform.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens a pack.")] = None,
    batch: Annotated[int | None, typer.Option(help="Packs at once.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Gradient accumulation steps.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of weights or LoRA factors.")] = None,
    rank: Annotated[int | None, typer.Option(help="Of LoRA.")] = None,
    exits_per_step: Annotated[int | None, typer.Option(help="Random exits a step besides the last; 0 for all.")] = None,
    token_share: Annotated[float | None, typer.Option(help="Share of tokens each step's loss looks at.")] = None,
    distill: Annotated[float | None, typer.Option(help="Share of the loss that follows the last layer.")] = None,
    checkpointing: Annotated[bool | None, typer.Option(help="Recompute activations to save memory.")] = None,
    weights: Annotated[str, typer.Option(help="pretrained or random.")] = "pretrained",
    exit_points: Annotated[str, typer.Option(help="paper, all, or layers such as 4,8,12.")] = "paper",
    split: Annotated[str, typer.Option(help="Part of each dataset to learn from.")] = "train",
    documents: Annotated[int | None, typer.Option(help="Documents of each source at most. Default: all.")] = None,
    seed: Annotated[int, typer.Option(help="Decides order, sampling and initial factors.")] = 0,
    start_from: Annotated[
        str | None,
        typer.Option(help="Tune the adapter and maps of this folder, or shipped set, further.", metavar="DIR"),
    ] = None,
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 50,
    resume: Resume = False,
) -> None:
    """Tune a model with the aggregated loss of all its exits (LITE; GREEN-CODE Eq. 1)."""
    from harness.training.lite.train_lite import build_recipe, train_lite

    names = (
        "method", "exit_head", "weights_rule", "steps", "length", "batch", "accumulate", "learning_rate", "rank",
        "exits_per_step", "token_share", "distill", "checkpointing",
    )  # fmt: skip
    given: dict[str, Any] = dict(locals())
    _check_installed("accelerate", *(() if method == "full" else ("peft",)))
    start = check_choice("weights", weights, ("pretrained", "random"))  # an adapter belongs to base weights
    check_least(("save-steps", save_steps, 1), ("documents", 1 if documents is None else documents, 1))
    check_seed(seed)
    recipe = build_recipe(preset, {name: given[name] for name in names})
    folder = out or Path("artefacts") / Path(model).name
    with show_progress() as progress:
        result = train_lite(
            model, task or ["py150", "javacorpus"], source or ["embedded"], folder, recipe,
            weights=start, exit_points=exit_points, split=check_split(split), documents=documents, seed=seed,
            save_steps=save_steps, resume=resume, command=_command(), watch=progress, start_from=start_from,
        )  # fmt: skip
    if not result.finished:
        _stopped(folder)
    if not result.report:  # of another process than the first
        return
    print(result.report)
    if recipe.method == "full":
        say(f"The tuned model is {folder / 'model'}: use it with --model {folder / 'model'} --artefacts {folder}")
    else:
        say(f"Adapter, maps, exits.md and training.jsonl are in {folder}")


@app.command()
def shortcut(
    traces: TraceFolder,
    model: Model = "smollm2-135m",
    out: Out = None,
    name: Annotated[str, typer.Option(help="File name without its ending; begins with shortcut.")] = "shortcut",
    ridge: Annotated[float, typer.Option(help="Damping, relative to the mean variance.")] = 1e-4,
    artefacts: Artefacts = None,
    seed: Seed = 0,
) -> None:
    """Fit linear maps from every exit to the last layer, in closed form: an exit head for untuned weights."""
    from harness.training.shortcut.train_shortcut import train_shortcut

    check_seed(seed)
    _check_name(name)
    if not name.startswith("shortcut"):
        raise ConfigError(f"--name '{name}' would not be found: shortcuts are looked for as shortcut*.json.")
    if not 0 <= ridge < float("inf"):
        raise ConfigError(f"--ridge {ridge} must be 0 or more, and finite.")
    folder = out or Path("artefacts") / Path(model).name
    with show_progress() as progress:
        result = train_shortcut(
            model, traces, folder, name=name, ridge=ridge, artefacts=artefacts, seed=seed, command=_command(),
            watch=progress,
        )  # fmt: skip
    print("| exit layer | agreement before | with the maps |\n|--:|--:|--:|")
    for layer, (before, after) in result.agreement.items():
        print(f"| {layer} | {before:.3f} | {after:.3f} |")
    say(f"{result.tokens} held-out tokens. The maps are in {result.artefact.path}")


@app.command()
def classifier(
    traces: TraceFolder,
    model: Model = "smollm2-135m",
    out: Out = None,
    name: Annotated[str, typer.Option(help="File name without its ending.")] = "classifier",
    task: Annotated[list[str] | None, typer.Option(help="Learn from these tasks' documents only. Repeatable.")] = None,
    hidden: Annotated[int, typer.Option(help="Width of the hidden layer; 0: linear, as in CALM.")] = 128,
    epochs: Annotated[int, typer.Option(help="Passes over the trace.")] = 20,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    observation: ObservationName = "rich",
    keep: Keep = 0.98,
    artefacts: Artefacts = None,
    seed: Seed = 0,
    resume: Resume = False,
) -> None:
    """Train one head per exit point that tells whether the answer is already there (CALM)."""
    _heads(
        "classifier", traces, model, out, name, task, hidden, epochs, learning_rate, observation, keep, artefacts, seed,
        resume,
    )  # fmt: skip


@app.command()
def lte(
    traces: TraceFolder,
    model: Model = "smollm2-135m",
    out: Out = None,
    name: Annotated[str, typer.Option(help="File name without its ending.")] = "lte",
    task: Annotated[list[str] | None, typer.Option(help="Learn from these tasks' documents only. Repeatable.")] = None,
    hidden: Annotated[int, typer.Option(help="Width of the hidden layer; 0: linear, as in BERxiT.")] = 256,
    epochs: Annotated[int, typer.Option(help="Passes over the trace.")] = 20,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    observation: ObservationName = "rich",
    keep: Keep = 0.98,
    artefacts: Artefacts = None,
    seed: Seed = 0,
    resume: Resume = False,
) -> None:
    """Train one head for all exit points that regresses their certainty (BERxiT's learning to exit)."""
    _heads(
        "lte", traces, model, out, name, task, hidden, epochs, learning_rate, observation, keep, artefacts, seed,
        resume,
    )  # fmt: skip


@app.command()
def rl(
    traces: TraceFolder,
    model: Model = "smollm2-135m",
    out: Out = None,
    name: Annotated[str, typer.Option(help="File name without its ending.")] = "rl",
    task: Annotated[list[str] | None, typer.Option(help="Learn from these tasks' documents only. Repeatable.")] = None,
    preset: Annotated[str, typer.Option(help="paper (GREEN-CODE's Table III) or tuned.")] = "tuned",
    steps: Annotated[
        int | None, typer.Option(help="Decisions to learn from. Default: the preset's, 500000 or 2000000.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At the beginning; linear to 0.")] = None,
    envs: Annotated[int | None, typer.Option(help="Episodes at once; 1 with --live.")] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            help="savings; or GREEN-CODE's, java, python, or auto: one of these by the documents. Default: savings; "
            "auto with --preset paper or one of its coefficients."
        ),
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of exiting right but late, 0 to 1.")] = None,
    beta: Annotated[float | None, typer.Option(help="Weight of exiting too early, 0 to 1.")] = None,
    gamma: Annotated[float | None, typer.Option(help="Weight of continuing in vain, 0 to 1.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="Penalty of exiting wrong and late, 0 to 1.")] = None,
    penalty: Annotated[float | None, typer.Option(help="With --reward savings: price of a wrong exit.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of an episode.")] = 15,
    observation: Annotated[
        str | None, typer.Option(help=f"{OBSERVATIONS_HELP} Default: rich; paper with --preset paper.")
    ] = None,
    keep: Keep = 0.98,
    live: Annotated[bool, typer.Option("--live", help="Let the model generate (slow) instead of replaying.")] = False,
    source: Annotated[list[str] | None, typer.Option(help="With --live: where the trace's documents are.")] = None,
    device: Annotated[str, typer.Option(help="With --live: auto, cpu, cuda or cuda:N.")] = "auto",
    artefacts: Artefacts = None,
    seed: Seed = 0,
    save_steps: Annotated[int, typer.Option(help="Decisions between checkpoints.")] = 50_000,
    resume: Resume = False,
) -> None:
    """Train GREEN-CODE's agent (PPO) to decide where each token exits; minutes, on traces."""
    check_least(("save-steps", save_steps, 1))
    check_seed(seed)
    _check_name(name)
    _check_installed("stable_baselines3", "gymnasium")
    from harness.running.plan import resolve_device
    from harness.training.agents.train_agent import AgentRequest, build_settings, train_rl

    overrides = {"steps": steps, "learning_rate": learning_rate, "envs": envs}
    papers = preset == "paper" or any(value is not None for value in (alpha, beta, gamma, epsilon))
    request = AgentRequest(
        name=name,
        observation=observation or ("paper" if preset == "paper" else "rich"),
        reward=reward or ("auto" if papers else "savings"),
        tasks=task or (),
        length=tokens,
        keep=keep,
        live=live,
        coefficients={"alpha": alpha, "beta": beta, "gamma": gamma, "epsilon": epsilon, "penalty": penalty},
        sources=source or ("embedded",),
        artefacts=artefacts,
        device=resolve_device(device) if live else "cpu",
        seed=seed,
        save_steps=save_steps,
        resume=resume,
    )
    folder = out or Path("artefacts") / Path(model).name
    settings = build_settings(preset, overrides)
    with show_progress() as progress:
        result = train_rl("rl", model, traces, folder, settings, request, command=_command(), watch=progress)
    if not result.finished:
        _stopped(folder)
    print(result.report)
    say(f"The agent is {result.path}; {name}-training.jsonl beside it has its rewards.")


def _heads(
    kind: str,
    traces: Path,
    model: str,
    out: Path | None,
    name: str,
    task: list[str] | None,
    hidden: int,
    epochs: int,
    learning_rate: float,
    observation: str,
    keep: float,
    artefacts: str | None,
    seed: int,
    resume: bool,
) -> None:
    from harness.models.controllers import OBSERVATIONS
    from harness.training.heads.learning import HeadRecipe
    from harness.training.heads.train_heads import train_on_traces
    from harness.training.traces.thresholds import render_replay

    check_choice("observation", observation, tuple(OBSERVATIONS))
    check_seed(seed)
    _check_name(name)
    if hidden < 0 or epochs < 1 or not 0 < keep <= 1 or not 0 < learning_rate <= 1:
        raise ConfigError("--hidden is 0 or more, --epochs 1 or more, --keep in (0, 1], --learning-rate in (0, 1].")
    shared = kind == "lte"
    recipe = HeadRecipe(
        objective="certainty" if shared else "likelihood",
        shared=shared,
        hidden=hidden,
        epochs=epochs,
        learning_rate=learning_rate,
    )
    seen = OBSERVATIONS[observation]
    folder = out or Path("artefacts") / Path(model).name
    with show_progress() as progress:
        result = train_on_traces(
            model,
            traces,
            folder,
            recipe,
            seen,
            kind=kind,
            name=name,
            tasks=task or [],
            keep=keep,
            artefacts=artefacts,
            seed=seed,
            command=_command(),
            watch=progress,
            resume=resume,
        )
    if result is None:
        _stopped(folder)
    print(render_replay("threshold", result.rows))
    kept = result.kept
    advice = f" No exit keeps {keep:.0%}."
    if kept:
        advice = f" {keep:.0%} agreement from threshold {kept['threshold']:.4f} on."
    say(f"{result.tokens} held-out tokens, replayed.{advice} The heads are in {result.artefact.path}")


def _check_name(name: str) -> None:
    import re

    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise ConfigError(f"--name '{name}' is no plain file name: letters, digits, and . _ - behind the first.")


def _check_installed(*modules: str) -> None:
    from importlib.util import find_spec

    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} not installed: pip install 'early-exit-harness[train]'")


def _command() -> str:
    """Return the command as typed, for the record of what it made."""
    import shlex

    return shlex.join(["harness", *sys.argv[1:]])


def _stopped(folder: Path) -> NoReturn:
    say(f"Stopped; the checkpoint is kept. Go on with the same command and --resume. ({folder})")
    raise typer.Exit(130)
