"""``harness train prompt-exit``: maps from the state of a prompt's token at an exit to keys and values above it.

In closed form: for each layer above the exit, the affine map with the least squared error to the keys (before rotation)
and values that full depth computes, plus a ridge penalty, over the tokens of train splits. It reads what the layer
behind the exit reads, the normed state, in which a few tokens with enormous activations weigh no more than others; the
first tokens of a text, attention sinks, are read by all layers and not fitted.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from harness.config import BASELINE, StrategySpec
from harness.config.options import build_strategy
from harness.contracts import Document, ModelRequest, document_key
from harness.contracts.models import with_bos
from harness.contracts.recipes import Trained, TrainingRun
from harness.decoding.backbone import Backbone
from harness.decoding.engine import Engine
from harness.decoding.prompt_exits import PromptMaps, Tail
from harness.decoding.teacher_forcing import TeacherForcing
from harness.errors import DataError
from harness.models.artefacts import write_artefact
from harness.models.model import resolve
from harness.registry import TASKS
from harness.training.corpus import read_corpora
from harness.training.identity import identity, provenance
from harness.training.recipes import PromptExit

HELD_OUT = 0.1
"""Share of each stream's documents on which the maps are measured; they are not fitted on them."""
NEW = 30
"""Tokens of full depth's text behind a prompt along which the maps are measured."""
FIRST = 4
"""Tokens that are not fitted: :class:`Tail` reads them by all layers."""


class MapMoments:
    """Second moments of what a map reads and what it should make, over tokens; inputs have a 1 behind them."""

    def __init__(self, backbone: Backbone, layer: int) -> None:
        self._backbone, self._layer = backbone, layer
        _, width = backbone.blocks[layer].qkv.shape
        rows = (backbone.num_layers - layer - 1) * 2 * backbone.heads.kv_heads * backbone.heads.head_dim
        self._inputs = torch.zeros(width + 1, width + 1, dtype=torch.float64)
        self._outputs = torch.zeros(width + 1, rows, dtype=torch.float64)

    def add(self, states: Mapping[int, Tensor]) -> None:
        """Take in the states of some tokens after so many layers, ``[n, hidden_size]`` each."""
        read = PromptMaps.read(self._backbone, self._layer, states[self._layer])
        read = torch.cat((read, torch.ones(len(read), 1)), dim=1)
        above = range(self._layer + 1, self._backbone.num_layers)
        entries = [self._backbone.blocks[layer].fill(states[layer], None, None).flatten(1) for layer in above]
        self._inputs += (read.t() @ read).double()
        self._outputs += (read.t() @ torch.cat(entries, dim=1)).double()

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Return weight ``[out, in]`` and bias ``[out]``; ``ridge`` is relative to the diagonal's mean."""
        damping = torch.full((len(self._inputs),), ridge * self._inputs.diagonal()[:-1].mean().item())
        damping[-1] = 0.0
        solution = torch.linalg.solve(self._inputs + damping.double().diag(), self._outputs).float()
        return solution[:-1].t().contiguous(), solution[-1].contiguous()


@torch.inference_mode()
def fit_maps(options: PromptExit, run: TrainingRun) -> Trained:
    """Fit the maps and write ``prompt-exit.json`` in the folder."""
    resolved = resolve(ModelRequest(options.model, weights="auto", artefacts=options.artefacts, seed=options.seed))
    info, tokenizer, layers = resolved.info, resolved.tokenizer, sorted(set(options.layers))
    rules = {layer: Tail(layer, options.tail, FIRST) for layer in layers}
    for rule in rules.values():
        rule.exits(info)
    learned: list[Document] = []
    held_out: list[Document] = []
    streams = []
    for task, corpus in read_corpora(
        [TASKS.load(name)() for name in options.tasks], options.sources, options.split, limit=options.documents,
        seed=options.seed, note=run.progress.stage,
    ):  # fmt: skip
        count = max(1, round(HELD_OUT * len(corpus.documents)))
        held_out += corpus.documents[:count]
        learned += corpus.documents[count:]
        streams.append(f"{task}, {corpus.source.label}")
    kept = {document_key(document.text) for document in held_out}
    learned = [document for document in learned if document_key(document.text) not in kept]

    def read(documents: Sequence[Document]) -> list[list[int]]:
        length = min(options.length, info.max_positions)
        return [with_bos(tokenizer, tokenizer.encode(document.text))[:length] for document in documents]

    texts = [text for text in read(learned) if len(text) > FIRST]
    prompts = [text[:-NEW] for text in read(held_out) if len(text) > NEW + options.tail + FIRST]
    if not texts or not prompts:
        raise DataError(
            f"{', '.join(streams)}: no document of more than {FIRST} tokens to learn from, or none of more than "
            f"{NEW + options.tail + FIRST} to measure on. Give more documents."
        )
    run.progress.stage(f"loading {info.name}")
    backbone = resolved.load("cpu").backbone
    engine = Engine(backbone, info)
    moments = {layer: MapMoments(backbone, layer) for layer in layers}
    wanted = range(layers[0], info.num_layers)
    run.progress.begin("reading documents", len(texts))
    for number, text in enumerate(texts, 1):
        states = engine.read(text, wanted)
        found = {layer: state[FIRST:].float() for layer, state in zip(wanted, states, strict=True)}
        for one in moments.values():
            one.add(found)
        run.progress.step(number)
    tensors: dict[str, Tensor] = {}
    for layer, one in moments.items():
        weight, bias = one.solve(options.ridge)
        tensors |= {f"{layer}.weight": weight.bfloat16(), f"{layer}.bias": bias.bfloat16()}
    run.progress.stage("measuring the maps on held-out documents")
    random.Random(options.seed).shuffle(prompts)
    measured = measure(Engine(replace(backbone, trained=lambda kind: tensors), info), prompts, rules)
    known = identity(info, tokenizer.fingerprint)
    facts = {
        **{name: fact for name, fact in known.items() if name not in ("exit_points", "exit_head")},
        "exits": layers,
        "ridge": options.ridge,
        "seed": options.seed,
        "trained_on": {"streams": streams, "tokens": sum(map(len, texts))},
        "documents": sorted({document_key(document.text) for document in (*learned, *held_out)}),
        "order": False,  # sums over tokens do not tell which stood beside which
        "held_out": {
            "prompts": len(prompts),
            "tail": options.tail,
            "agreement": {str(layer): round(agreement, 4) for layer, (agreement, _) in measured.items()},
            "whole": {str(layer): round(whole, 4) for layer, (_, whole) in measured.items()},
        },
        "made": provenance(run.command),
    }
    artefact = write_artefact(options.folder / f"{run.recipe}.json", run.recipe, tensors, facts)
    lines = ["| exit | tokens as full depth's, along its text | whole texts kept |", "|--:|--:|--:|"]
    lines += [f"| {layer} | {agreement:.3f} | {whole:.2f} |" for layer, (agreement, whole) in measured.items()]
    note = f"{len(prompts)} held-out prompts, {NEW} tokens behind each, the last {options.tail} of a prompt read whole."
    return Trained("\n".join(lines), f"{note} The maps are {artefact.path}")


def measure(
    engine: Engine, prompts: Sequence[Sequence[int]], rules: Mapping[int, Tail]
) -> dict[int, tuple[float, float]]:
    """Return two shares for each rule: tokens of full depth's text that it says, too, and whole texts that stay."""
    full = build_strategy(StrategySpec(BASELINE))
    same: dict[int, list[Tensor]] = {name: [] for name in rules}
    for prompt in prompts:
        (made,) = engine.decode([prompt], full, kv=full.default_kv, max_new_tokens=[NEW])
        for name, rule in rules.items():
            said = TeacherForcing(engine, prompt, NEW, rule).choices(made.token_ids)
            same[name].append(torch.tensor(said) == torch.tensor(made.token_ids))
    return {
        name: (torch.cat(found).float().mean().item(), sum(bool(one.all()) for one in found) / len(found))
        for name, found in same.items()
    }
