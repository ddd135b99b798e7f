"""LITE tuning from its options to a tuned model."""

from __future__ import annotations

from typing import Any

from harness.contracts import ModelRequest, Split
from harness.contracts.recipes import Silent, TrainingRun
from harness.errors import ConfigError
from harness.host.libraries import require
from harness.models.model import resolve
from harness.registry import TASKS
from harness.training.corpus import Stream, read_streams
from harness.training.identity import identity, provenance
from harness.training.lite.fit import FitResult, fit
from harness.training.lite.start import find_start
from harness.training.options import LiteOptions, LiteRecipe
from harness.training.processes import is_main


def lite_recipe(options: LiteOptions) -> LiteRecipe:
    """Return how to tune: what was given, over the preset."""
    return LiteRecipe.part_of(options.under(options.preset))


def train_lite(options: LiteOptions, run: TrainingRun) -> FitResult:
    """Tune a model on tasks' documents; see :func:`harness.training.lite.fit.fit` for what the folder receives.

    With ``start_from``, a folder of artefacts or a shipped set, tuning goes on from its adapter and shortcuts: it reads
    on where that one stopped if the documents are the same, and holds out none that it has learned from.

    Raises:
        HarnessError: anything that cannot be done, in one line with the remedy.
    """
    recipe, seed, split = lite_recipe(options), options.seed, options.split
    require("train", "accelerate", *(["peft"] if recipe.method == "lora" else []))
    progress = run.progress if is_main() else Silent()
    loaders = [TASKS.load(name)() for name in options.tasks]
    # bfloat16 would round away whole-weight steps of 1e-5; LoRA's factors are float32 anyway
    dtype = "float32" if recipe.method == "full" else "bfloat16"
    resolved = resolve(
        ModelRequest(
            options.model, weights=options.weights, dtype=dtype, exit_points=options.exit_points, seed=seed,
            exit_head="shared",
        )
    )  # fmt: skip
    if not resolved.info.exit_points:
        raise ConfigError(f"{resolved.info.name} has no exit points to train. Give --exit-points.")
    if recipe.length > resolved.info.max_positions:
        raise ConfigError(
            f"--length {recipe.length}: {resolved.info.name} has {resolved.info.max_positions} positions."
        )
    start = None
    if options.start_from is not None:
        start = find_start(options.start_from, resolved.info, recipe)
    tokenizer = resolved.tokenizer

    def read(known: frozenset[str] = frozenset()) -> list[Stream]:
        return read_streams(
            loaders, options.sources, tokenizer, split=split, length=recipe.length, documents=options.documents,
            seed=seed, note=progress.stage, known=known,
        )  # fmt: skip

    learned = start.learned if start else None
    streams, skip = read(learned or frozenset()), 0
    if start is not None:
        data = [_data_facts(stream, split) for stream in streams]
        if learned is None and not start.same_cut(data, seed):
            streams = read(start.documents)
        skip = start.sequences_read(data, seed, recipe.length)
    progress.stage(f"loading {resolved.info.name}")
    module, weights_source = resolved.module(progress.stage)
    facts = {
        **identity(resolved.info, tokenizer.fingerprint),
        "exit_head": recipe.exit_head,
        "weights_source": weights_source,
        "data": [_data_facts(stream, split) for stream in streams],
        "documents": sorted({key for stream in streams for key in stream.keys} | (start.documents if start else set())),
        "held_out": sorted({key for stream in streams for key in stream.held_out_keys}),
        "made": provenance(run.command),
    }
    return fit(
        module, resolved.info.exit_points, recipe, streams, options.folder,
        facts=facts, seed=seed, save_steps=options.save_steps, resume=options.resume, progress=progress, start=start,
        skip=skip, reread=lambda: resolved.module(progress.stage)[0], tokenizer=tokenizer.wrapped,
    )  # fmt: skip


def _data_facts(stream: Stream, split: Split) -> dict[str, Any]:
    return {
        "stream": stream.name,
        "split": split,
        "fingerprint": stream.source.fingerprint,
        "documents": len(stream.keys),
        "tokens": stream.sequences.numel(),
        "held_out_tokens": sum(map(len, stream.held_out)),
    }
