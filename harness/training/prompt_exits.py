"""``harness train prompt-exit``: maps from the state of a prompt's token at an exit to keys and values above it.

In closed form: for each layer above the exit, the affine map with the least squared error to the keys (before rotation)
and values that full depth computes, plus a ridge penalty, over the tokens of train splits. It reads what the layer
behind the exit reads, the normed state, in which a few tokens with enormous activations weigh no more than others; the
first tokens of a text, attention sinks, are read by all layers and not fitted.

Then, where steps are asked for, by distillation: the last tokens of a text run behind a prompt that the maps have
filled, and the maps follow the gradient of the Kullback-Leibler divergence from full depth's distribution there, as
SwiftKV's projections do (Qiao 2024, arXiv 2410.03960); the model itself stays as it is.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.config import BASELINE, StrategySpec
from harness.config.options import build_strategy
from harness.contracts import Document, ModelRequest, document_key
from harness.contracts.models import with_bos
from harness.contracts.recipes import Progress, Trained, TrainingRun
from harness.decoding.backbone import Backbone
from harness.decoding.blocks import Block, Tables
from harness.decoding.engine import Engine
from harness.decoding.prompt_exits import PARTS, PromptMaps, Tail
from harness.decoding.teacher_forcing import TeacherForcing
from harness.errors import DataError, TrainingError
from harness.models.artefacts import write_artefact
from harness.models.model import resolve
from harness.models.ngrams import NgramIndex, write_index
from harness.registry import TASKS
from harness.training.corpus import hold_out, read_corpora
from harness.training.identity import identity, provenance
from harness.training.recipes import PromptExit

HELD_OUT = 0.1
"""Share of each stream's documents on which the maps are measured; they are not fitted on them."""
BEHIND = 96
"""Tokens behind a prompt, at most, along which maps are distilled."""
NEW = 30
"""Tokens of full depth's text behind a prompt along which the maps are measured."""
FIRST = 4
"""Tokens that are not fitted: :class:`Tail` reads them by all layers."""


Factors: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""A map: what reads, ``[rank, in]``, what makes, ``[out, rank]``, and a bias ``[out]``."""


class MapMoments:
    """Second moments of what a map reads and what it should make, over tokens; inputs have a 1 behind them.

    Args:
        backbone: the model.
        layer: the exit.
        before: tokens before it that a map reads beside a token.
    """

    def __init__(self, backbone: Backbone, layer: int, before: int) -> None:
        self._backbone, self._layer, self._before = backbone, layer, before
        width = (1 + before) * backbone.blocks[layer].qkv.shape[1]
        rows = (backbone.num_layers - layer - 1) * 2 * backbone.heads.kv_heads * backbone.heads.head_dim
        self._inputs = torch.zeros(width + 1, width + 1, dtype=torch.float64)
        self._outputs = torch.zeros(width + 1, rows, dtype=torch.float64)
        self._squares = torch.zeros(rows, dtype=torch.float64)

    @torch.inference_mode()
    def add(self, states: Mapping[int, Tensor]) -> None:
        """Take in a text's states after so many layers, ``[tokens, hidden_size]`` each, all but the first tokens'."""
        read = _reads(self._backbone, self._layer, self._before, states[self._layer])
        read = torch.cat((read, torch.ones(len(read), 1)), dim=1)
        above = range(self._layer + 1, self._backbone.num_layers)
        entries = [self._backbone.blocks[layer].fill(states[layer][FIRST:], None, None).flatten(1) for layer in above]
        self._inputs += (read.t() @ read).double()
        wanted = torch.cat(entries, dim=1)
        self._outputs += (read.t() @ wanted).double()
        self._squares += wanted.square().sum(0).double()

    @torch.inference_mode()
    def solve(self, ridge: float, rank: int) -> Factors:
        """Return the map of least squares, as two factors.

        Args:
            ridge: damping, relative to the mean variance of what is read.
            rank: of the map, at most; what is left out errs least where an error counts by the variance of the head
                that it is made in (reduced-rank regression, Izenman 1975).
        """
        count, width = self._inputs[-1, -1], self._backbone.heads.head_dim
        mean, expected = self._inputs[-1, :-1] / count, self._outputs[-1] / count
        spread = self._inputs[:-1, :-1] / count - mean.outer(mean)
        spread += ridge * spread.diagonal().mean() * torch.eye(len(spread), dtype=torch.float64)
        weight = torch.linalg.solve(spread, self._outputs[:-1] / count - mean.outer(expected))
        variance = (self._squares / count - expected.square()).view(-1, width).mean(1).clamp_min(1e-12)
        scale = variance.sqrt().repeat_interleave(width)
        weight /= scale
        _, _, found = torch.linalg.svd(torch.linalg.cholesky(spread).t() @ weight, full_matrices=False)
        kept = found[:rank]
        read, made = (weight @ kept.t()).t(), kept.t() * scale.unsqueeze(1)
        return read.float().contiguous(), made.float().contiguous(), (expected - made @ (read @ mean)).float()


def _reads(backbone: Backbone, layer: int, before: int, states: Tensor) -> Tensor:
    """Return what a map reads of a text's tokens behind its first."""
    reach = [[max(0, place - back) for place in range(FIRST, len(states))] for back in range(before + 1)]
    return PromptMaps.read(backbone, layer, states, reach)


def cosine(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Return a schedule of so many steps: up to the learning rate in a twentieth, then along a cosine to 5 % of it."""
    warmup = max(1, steps // 20)

    def share(step: int) -> float:
        return min(1.0, (step + 1) / warmup) * (0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def distil(
    engine: Engine, layer: int, maps: Factors, texts: Sequence[Sequence[int]], options: PromptExit,
    progress: Progress,
) -> Factors:  # fmt: skip
    """Train an exit's map towards full depth's distribution of the tokens behind a prompt, one text a step.

    Args:
        engine: decodes with the model, in float32.
        layer: the exit.
        maps: to begin with.
        texts: tokens of documents; those that are too short are left out.
        options: steps, their learning rate, the seed, and the tail, of which some prompts have less.
        progress: is told of each step.

    Raises:
        TrainingError: the loss is not finite.
    """
    chance = random.Random(options.seed)
    texts = [text for text in texts if len(text) >= options.tail + 2 * BEHIND]
    if not texts:
        raise DataError(f"no document has {options.tail + 2 * BEHIND} tokens to distil from. Give longer ones.")
    read, made, bias = (part.clone().requires_grad_() for part in maps)
    optimizer = torch.optim.Adam([read, made, bias], lr=options.learning_rate, betas=(0.9, 0.98))
    schedule = cosine(optimizer, options.steps)
    progress.begin(f"distilling layer {layer}", options.steps)
    for step in range(1, options.steps + 1):
        text = chance.choice(texts)
        start = len(text) - chance.randint(BEHIND // 2, BEHIND)  # of the tokens that the loss is of
        split = start - chance.choice((1, options.tail // 4, options.tail // 2, options.tail, options.tail))
        with torch.autocast("cpu", torch.bfloat16):
            loss = divergence(engine, layer, (read, made, bias), text, split, start)
        if not math.isfinite(loss.item()):
            raise TrainingError(f"the loss is {loss.item()} at step {step}. Lower --learning-rate.")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([read, made, bias], 1.0)
        optimizer.step()
        schedule.step()
        progress.step(step, f"{loss.item():.3f} nats from full depth")
    return read.detach(), made.detach(), bias.detach()


def divergence(engine: Engine, layer: int, maps: Factors, text: Sequence[int], split: int, start: int) -> Tensor:
    """Return full depth's mean divergence from what is said from ``start`` on, where ``split`` ends what maps fill."""
    backbone, rotary = engine.backbone, engine.rotary(len(text))
    # copies, since autograd takes no tensor of inference mode
    states = [state.clone() for state in engine.read(text, range(layer, backbone.num_layers + 1))]
    wanted = backbone.logits(states[-1][start - 1 : -1]).float().log_softmax(-1)
    before = maps[0].shape[1] // states[0].shape[1] - 1
    read = _reads(backbone, layer, before, states[0])[: split - FIRST]
    places = torch.arange(len(text))
    tables = None if rotary is None else rotary.tables(places)
    heads, above = backbone.heads, backbone.num_layers - layer - 1
    filled = (
        F.linear(F.linear(read, maps[0]), *maps[1:]).float().view(len(read), above, 2 * heads.kv_heads, heads.head_dim)
    )
    hidden = states[0][split:]
    mask = torch.ones(len(text) - split, len(text), dtype=torch.bool).tril(split)
    for number, block in enumerate(backbone.blocks[layer:]):
        exact = slice(split if number == 0 else FIRST)  # the layer behind the exit has its own keys and values
        entries = [block.fill(states[number][exact], rotary, _part(tables, exact))]
        if number:
            between = filled[:, number - 1]
            if rotary is not None and tables is not None:
                between = rotary.turn(between, heads.kv_part((tables[0][FIRST:split], tables[1][FIRST:split])))
            entries.append(between)
        queries, own = block.project(hidden, rotary, _part(tables, slice(split, None)))
        hidden = block.finish(hidden, _attend(block, queries, torch.cat((*entries, own)), mask))
    said = backbone.logits(hidden[start - 1 - split : -1]).float().log_softmax(-1)
    return F.kl_div(said, wanted, reduction="none", log_target=True).sum(-1).mean()


def _part(tables: Tables | None, part: slice) -> Tables | None:
    return None if tables is None else (tables[0][part], tables[1][part])


def _attend(block: Block, queries: Tensor, entries: Tensor, mask: Tensor) -> Tensor:
    """Return the attention of queries ``[n, H, D]`` over keys with values ``[m, 2 KV, D]``, ``[n, H × D]``."""
    keys, values = (part.transpose(0, 1).to(queries.dtype) for part in entries.chunk(2, dim=1))
    found = F.scaled_dot_product_attention(
        queries.transpose(0, 1), keys, values, mask, scale=block.scale, enable_gqa=block.heads.grouped
    )
    return found.transpose(0, 1).flatten(1)


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
        apart = hold_out([one.project for one in corpus.documents], round(HELD_OUT * len(corpus.documents)))
        held_out += [corpus.documents[place] for place in apart]
        learned += [one for place, one in enumerate(corpus.documents) if place not in apart]
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
    moments = {layer: MapMoments(backbone, layer, options.before) for layer in layers}
    wanted = range(layers[0], info.num_layers)
    run.progress.begin("reading documents", len(texts))
    for number, text in enumerate(texts, 1):
        states = engine.read(text, wanted)
        found = {layer: state.float() for layer, state in zip(wanted, states, strict=True)}
        for one in moments.values():
            one.add(found)
        run.progress.step(number)
    tensors: dict[str, Tensor] = {}
    for layer, one in moments.items():
        run.progress.stage(f"fitting the map of layer {layer}")
        maps = one.solve(options.ridge, options.rank)
        if options.steps:
            maps = distil(engine, layer, maps, texts, options, run.progress)
        tensors |= {f"{layer}.{name}": part.bfloat16() for name, part in zip(PARTS, maps, strict=True)}
    run.progress.stage("measuring the maps on held-out documents")
    random.Random(options.seed).shuffle(prompts)
    measured = measure(Engine(replace(backbone, trained=lambda kind: tensors), info), prompts, rules)
    known = identity(info, tokenizer.fingerprint)
    facts = {
        **{name: fact for name, fact in known.items() if name not in ("exit_points", "exit_head")},
        "exits": layers,
        **options.model_dump(include={"before", "rank", "ridge", "steps", "learning_rate", "seed"}),
        "trained_on": {"streams": streams, "tokens": sum(map(len, texts))},
        "documents": sorted({document_key(document.text) for document in (*learned, *held_out)}),
        "projects": sorted({document.project for document in (*learned, *held_out) if document.project}),
        "held_out": {
            "prompts": len(prompts),
            "projects": sorted({document.project for document in held_out if document.project}),
            "tail": options.tail,
            "agreement": {str(layer): round(agreement, 4) for layer, (agreement, _) in measured.items()},
            "whole": {str(layer): round(whole, 4) for layer, (_, whole) in measured.items()},
        },
        "made": provenance(run.command),
    }
    if options.steps:
        facts["ngrams"] = write_index(options.folder, NgramIndex.of(texts))
    else:
        facts["order"] = False  # sums over tokens do not tell which texts they stood in
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
