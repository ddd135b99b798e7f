"""A worker with this engine, or with transformers' ``generate``, both on the default model.

``python -m tests.peers.engine_worker FORMAT THREADS [WEIGHTS]`` in a weights format, or with ``generate`` in its place
for transformers in float32; of the pretrained weights, or those ``tuned`` to be read by one LM head at every exit.
Without being told another way, each decodes greedily at full depth. The engine's other ways are lossless,
``STRATEGY@DECODE`` as of ``harness run``; those of transformers are :data:`ASSISTED`, or ``early exit LAYER LENGTH``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

import harness
from harness.config import parse_all
from harness.config.decode import DRAFT_MAX, parse_decode
from harness.config.model import DEFAULT_MODEL
from harness.config.options import build_strategy
from harness.contracts import Lossless, ModelRequest, Strategy, Tokenizer, WeightsChoice
from harness.contracts.models import with_bos
from harness.decoding.engine import Engine
from harness.errors import HarnessError
from harness.models.model import resolve
from harness.running.operating_points import drafting
from strategies.full import Full
from tests.peers.workers import Decoded, Decoder, Spelling, serve

SHARED = "smollm2-135m-shared"
"""The shipped set with such weights."""

ASSISTED: dict[str, dict[str, Any]] = {
    "": {},
    "lookup": {"prompt_lookup_num_tokens": 6, "max_matching_ngram_size": 3},
}
"""Transformers' ways that need no layer, and what its ``generate`` is told: tokens and n-gram as of ``lookup``."""

SURE = 0.4
"""Probability below which a draft of transformers ends, unless its length is given: its own default."""


def load_engine(name: str, threads: int, weights: WeightsChoice) -> Decoder:
    loaded = harness.load(
        DEFAULT_MODEL, weights=weights, weights_format=name, exit_head="shared", artefacts=SHARED, device="cpu",
        threads=threads,
    ).loaded  # fmt: skip
    engine, deepest = Engine(loaded.backbone, loaded.info), loaded.info.num_layers

    def told(way: str) -> tuple[Strategy, str, Lossless | None]:
        strategy, _, decode = way.partition("@")
        if not decode:
            return Full(), "propagate", None
        one = build_strategy(parse_all((strategy,))[0])
        return one, "recompute", drafting(parse_decode(decode), DRAFT_MAX, "auto", one, loaded.info)

    def decode(prompt: list[int], count: int, way: str, _: Callable[[int], None]) -> Decoded:
        strategy, kv, lossless = told(way)
        (made,) = engine.decode([prompt], strategy, kv=kv, max_new_tokens=[count], lossless=lossless)
        passes = made.verifications if lossless else count - 1
        counts = {"passes": passes, "run": made.layers_executed, "read": made.layers_read, "first": 0, "again": 0}
        counts["first"] = made.layers_executed // deepest  # whatever leaves early is taken deep later
        return Decoded(list(made.token_ids), list(made.token_times_s), counts)

    @torch.inference_mode()
    def choices(prompt: list[int], text: list[int]) -> list[int]:
        (states,) = engine.read([*prompt, *text[:-1]], [deepest])
        chosen: list[int] = loaded.backbone.logits(states[-len(text) :]).argmax(dim=-1).tolist()
        return chosen

    return Decoder({"format": name, "torch": torch.__version__}, decode, choices)


class Clock:
    """A streamer of ``generate`` that notes when each token comes, and tells it; the prompt's come first."""

    def __init__(self, known: Callable[[int], None]) -> None:
        self.start, self.times_s = time.perf_counter(), list[float]()
        self._known: Callable[[int], None] | None = None
        self._later = known

    def put(self, tokens: torch.Tensor) -> None:
        self.times_s += [time.perf_counter() - self.start] * tokens.numel()
        if self._known is not None:
            for token in tokens.flatten().tolist():
                self._known(token)
        self._known = self._later

    def end(self) -> None:
        pass


class Layers:
    """What each layer of a module of transformers runs: rows of every call."""

    def __init__(self, module: Any) -> None:
        self._rows: list[list[int]] = [[] for _ in module.model.layers]
        for number, layer in enumerate(module.model.layers):
            layer.register_forward_pre_hook(
                lambda _, given, number=number: self._rows[number].append(given[0].shape[1])
            )

    def clear(self) -> None:
        for rows in self._rows:
            rows.clear()

    def counts(self, prompt: int) -> dict[str, int]:
        """Return what ran beyond the prompt, which a layer may have been given more than once."""
        beyond = [[rows % prompt if rows >= prompt else rows for rows in calls] for calls in self._rows]
        again = [sum(rows >= prompt for rows in calls) - 1 for calls in self._rows]
        return {
            "passes": len(self._rows[-1]) - 1,
            "run": sum(map(sum, beyond)),
            "read": sum(len(calls) - 1 for calls in self._rows),
            "first": sum(beyond[0]),
            "again": sum(again),
        }


def load_generate(threads: int, weights: WeightsChoice) -> Decoder:
    torch.set_num_threads(threads)
    request = ModelRequest(DEFAULT_MODEL, weights=weights, exit_head="shared", artefacts=SHARED)
    found = resolve(request)
    module = found.load("cpu").module
    settings, layers = module.generation_config, Layers(module)
    settings.eos_token_id, settings.pad_token_id = None, 0
    settings.num_assistant_tokens_schedule = "constant"
    own_length = settings.num_assistant_tokens or 20

    def told(way: str) -> dict[str, Any]:
        if way in ASSISTED:
            return ASSISTED[way]
        layer, length = map(int, way.removeprefix("early exit ").split())
        settings.num_assistant_tokens = length or own_length
        settings.assistant_confidence_threshold = 0.0 if length else SURE
        return {"assistant_early_exit": layer}

    @torch.inference_mode()
    def decode(prompt: list[int], count: int, way: str, known: Callable[[int], None]) -> Decoded:
        ids, given, clock = torch.tensor([prompt]), told(way), Clock(known)
        layers.clear()
        made = module.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, streamer=clock, **given
        )
        tokens = made[0, len(prompt) :].tolist()
        return Decoded(tokens, clock.times_s[-len(tokens) :], layers.counts(len(prompt)))

    facts = {"format": "float32", "torch": torch.__version__, "model": DEFAULT_MODEL}
    return Decoder(facts, decode, text=spelling(found.tokenizer))


def spelling(tokenizer: Tokenizer) -> Spelling:
    """Return how a tokenizer reads and writes."""
    return Spelling(
        lambda text: with_bos(tokenizer, tokenizer.encode(text)), tokenizer.decode, tokenizer.eos_token_ids.__contains__
    )


def load(wanted: str, threads: str, kind: WeightsChoice = "pretrained") -> Decoder:
    return load_generate(int(threads), kind) if wanted == "generate" else load_engine(wanted, int(threads), kind)


if __name__ == "__main__":
    serve(load, HarnessError)
