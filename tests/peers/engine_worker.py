"""A worker with full depth of this engine, or with transformers' ``generate``, both on the default model.

``python -m tests.peers.engine_worker FORMAT THREADS`` in a weights format, or with ``generate`` in its place for
transformers in float32.
"""

from __future__ import annotations

import sys
import time

import torch

import harness
from harness.config.model import DEFAULT_MODEL
from harness.contracts import ModelRequest
from harness.decoding.engine import Engine
from harness.errors import HarnessError
from harness.models.model import resolve
from strategies.full import Full
from tests.peers.workers import Decoded, Decoder, serve


def load_engine(name: str, threads: int) -> Decoder:
    loaded = harness.load(
        DEFAULT_MODEL, weights="pretrained", weights_format=name, exit_head="shared", device="cpu", threads=threads
    ).loaded
    engine, full, deepest = Engine(loaded.backbone, loaded.info), Full(), loaded.info.num_layers

    def decode(prompt: list[int], count: int) -> Decoded:
        (made,) = engine.decode([prompt], full, kv="propagate", max_new_tokens=[count])
        return Decoded(list(made.token_ids), list(made.token_times_s))

    @torch.inference_mode()
    def choices(prompt: list[int], text: list[int]) -> list[int]:
        (states,) = engine.read([*prompt, *text[:-1]], [deepest])
        chosen: list[int] = loaded.backbone.logits(states[-len(text) :]).argmax(dim=-1).tolist()
        return chosen

    return Decoder({"format": name, "torch": torch.__version__}, decode, choices)


class Clock:
    """A streamer of ``generate`` that notes when each token comes; the prompt comes first and does not count."""

    def __init__(self) -> None:
        self.start, self.times_s = time.perf_counter(), list[float]()

    def put(self, _: torch.Tensor) -> None:
        self.times_s.append(time.perf_counter() - self.start)

    def end(self) -> None:
        del self.times_s[0]


def load_generate(threads: int) -> Decoder:
    torch.set_num_threads(threads)
    module = resolve(ModelRequest(DEFAULT_MODEL, weights="pretrained", exit_head="shared")).load("cpu").module

    @torch.inference_mode()
    def decode(prompt: list[int], count: int) -> Decoded:
        ids = torch.tensor([prompt])
        clock = Clock()
        made = module.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False,
            streamer=clock,
        )  # fmt: skip
        return Decoded(made[0, len(prompt) :].tolist(), clock.times_s)

    return Decoder({"format": "float32", "torch": torch.__version__}, decode)


if __name__ == "__main__":
    wanted, limit = sys.argv[1], int(sys.argv[2])
    serve(lambda: load_generate(limit) if wanted == "generate" else load_engine(wanted, limit), HarnessError)
