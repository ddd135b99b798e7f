"""``harness train lite``: from names and flags to a tuned model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from harness.contracts import ModelRequest, Split, WeightsChoice
from harness.errors import ConfigError
from harness.models.model import resolve
from harness.registry import TASKS
from harness.training.corpus import Stream, read_streams
from harness.training.identity import identity, provenance
from harness.training.lite.fit import FitResult, fit
from harness.training.lite.recipe import PRESETS, LiteRecipe
from harness.training.lite.start import find_start
from harness.training.processes import is_main
from harness.training.watch import Silent, Watch

__all__ = ["build_recipe", "train_lite"]


def build_recipe(preset: str, overrides: dict[str, Any]) -> LiteRecipe:
    """Return a preset's recipe with some values replaced.

    Args:
        preset: ``paper``, ``cpu``, or ``auto``: ``paper`` where there is a GPU.
        overrides: field → value; ``None`` values are left alone. ``exits_per_step=0`` means all.

    Raises:
        ConfigError: unknown preset, or a value out of range.
    """
    if preset == "auto":
        preset = "paper" if torch.cuda.is_available() else "cpu"
    if preset not in PRESETS:
        raise ConfigError(f"--preset '{preset}' is unknown. Use auto, {', '.join(PRESETS)}.")
    given = {name: value for name, value in overrides.items() if value is not None}
    if given.get("exits_per_step") == 0:
        given["exits_per_step"] = None
    recipe = replace(PRESETS[preset], **given)
    choices = {
        "method": ("lora", "full"),
        "exit_head": ("shared", "shortcut"),
        "weights_rule": ("green-code", "uniform"),
    }
    for name, allowed in choices.items():
        if getattr(recipe, name) not in allowed:
            raise ConfigError(
                f"--{name.replace('_', '-')} '{getattr(recipe, name)}' is unknown. Use {' or '.join(allowed)}."
            )
    for name in ("steps", "length", "batch", "accumulate", "rank"):
        if getattr(recipe, name) < 1 + (name == "length"):
            raise ConfigError(f"--{name} {getattr(recipe, name)} is too small.")
    if not 0 < recipe.learning_rate < float("inf"):
        raise ConfigError(f"--learning-rate {recipe.learning_rate} is not positive.")
    if (recipe.exits_per_step or 0) < 0:
        raise ConfigError(f"--exits-per-step {recipe.exits_per_step} is too small; 0 for all.")
    if not 0 < recipe.token_share <= 1 or not 0 <= recipe.distill <= 1:
        raise ConfigError("--token-share lies in (0, 1], --distill in [0, 1].")
    return recipe


def train_lite(
    model: str,
    tasks: Sequence[str],
    sources: Sequence[str],
    out: Path,
    recipe: LiteRecipe,
    *,
    weights: WeightsChoice,
    exit_points: str,
    split: Split,
    documents: int | None,
    seed: int,
    save_steps: int,
    resume: bool,
    command: str,
    watch: Watch,
    start_from: str | None = None,
) -> FitResult:
    """Tune a model on tasks' documents; see :func:`harness.training.lite.fit.fit` for what ``out`` receives.

    With ``start_from``, a folder of artefacts or a shipped set, tuning goes on from its adapter and maps: it reads on
    where that one stopped if the documents are the same, and holds out none that it has learned from.

    Raises:
        HarnessError: anything that cannot be done, in one line with the remedy.
    """
    watch = watch if is_main() else Silent()
    loaders = [TASKS.load(name)() for name in tasks]
    # bfloat16 would round away whole-weight steps of 1e-5; LoRA's factors are float32 anyway
    dtype = "float32" if recipe.method == "full" else "bfloat16"
    resolved = resolve(
        ModelRequest(model, weights=weights, dtype=dtype, exit_points=exit_points, seed=seed, exit_head="shared")
    )
    if not resolved.info.exit_points:
        raise ConfigError(f"{resolved.info.name} has no exit points to train. Give --exit-points.")
    if recipe.length > resolved.info.max_positions:
        raise ConfigError(
            f"--length {recipe.length}: {resolved.info.name} has {resolved.info.max_positions} positions."
        )
    start = find_start(start_from, resolved.info, recipe) if start_from is not None else None
    codec = resolved.tokenizer

    def read(known: frozenset[str] = frozenset()) -> list[Stream]:
        return read_streams(
            loaders, sources, codec, split=split, length=recipe.length, documents=documents, seed=seed,
            note=watch.stage, known=known,
        )  # fmt: skip

    learned = start.learned if start else None
    streams, skip = read(learned or frozenset()), 0
    if start is not None:
        data = [_data_facts(stream, split) for stream in streams]
        if learned is None and not start.same_cut(data, seed):
            streams = read(start.documents)
        skip = start.packs_read(data, seed, recipe.length)
    watch.stage(f"loading {resolved.info.name}")
    module, weights_source = resolved.module()
    facts = {
        **identity(resolved.info, codec.fingerprint),
        "exit_head": recipe.exit_head,
        "weights_source": weights_source,
        "data": [_data_facts(stream, split) for stream in streams],
        "documents": sorted({key for stream in streams for key in stream.keys} | (start.documents if start else set())),
        "held_out": sorted({key for stream in streams for key in stream.held_out_keys}),
        "made": provenance(command),
    }
    result = fit(
        module, resolved.info.exit_points, recipe, streams, out,
        facts=facts, seed=seed, save_steps=save_steps, resume=resume, watch=watch, start=start, skip=skip,
    )  # fmt: skip
    if result.finished and recipe.method == "full" and is_main():
        codec.wrapped.save_pretrained(out / "model")
    return result


def _data_facts(stream: Stream, split: Split) -> dict[str, Any]:
    return {
        "stream": stream.name,
        "split": split,
        "fingerprint": stream.source.fingerprint,
        "documents": len(stream.keys),
        "tokens": stream.packs.numel(),
        "held_out_tokens": stream.held_out.numel(),
    }
