"""What a LITE step needs at its peak: logits of one exit at a time, so that further exits cost their states alone.

Each measurement is a process of its own: a llama of 13 layers with SmolLM2-135M's width and vocabulary, two sequences
of 128 tokens, all exits, half of the loss distilled. Memory is not as moody as time: the bounds are asserted. Run with
``make bench``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

MB = 2**20
WIDTH, WORDS, PACKS, LENGTH = 576, 49_152, 2, 128
STATES = 4 * PACKS * LENGTH * WIDTH  # bytes of one exit's
LOGITS = 4 * PACKS * (LENGTH - 1) * WORDS
FEW, MANY = 2, 12

SCRIPT = (
    f"""
WIDTH, WORDS, PACKS, LENGTH, FEW = {WIDTH}, {WORDS}, {PACKS}, {LENGTH}, {FEW}
"""
    + """
import json, sys
from pathlib import Path
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from harness.decoding.families import head_modules
from harness.training.lite.lite_model import LiteModel
from harness.training.recipes import LiteRecipe

def read(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if field in line)

def make(exits, words):
    config = AutoConfig.for_model("llama", hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=13,
                                  num_attention_heads=9, vocab_size=words, tie_word_embeddings=True)
    torch.manual_seed(0)
    recipe = LiteRecipe(method="full", exit_head="shared", exits_per_step=None, token_share=1.0, distill=0.5)
    return LiteModel(AutoModelForCausalLM.from_config(config), range(1, exits + 1), recipe)

def plain(model, ids):
    states, last = model.exit_states(ids, model.exit_points)
    head = head_modules(model.core).lm_head
    labels = ids[:, 1:].flatten()
    losses = [torch.nn.functional.cross_entropy(head(s[:, :-1].flatten(0, 1)), labels) for s in (*states, last)]
    return sum(losses) / len(losses)

def step(exits, words, how):
    model = make(exits, words)
    ids = torch.randint(0, words, (PACKS, LENGTH))
    loss = plain(model, ids) if how == "plain" else model(ids)["loss"]
    loss.backward()
    assert model.module.lm_head.weight.grad.abs().sum() > 0

torch.set_num_threads(1)
how, exits = sys.argv[1], int(sys.argv[2])
step(FEW, 50, how)  # first use, with few exits however many are measured
before = read("VmRSS")
step(exits, WORDS, how)
print(json.dumps(read("VmHWM") - before))
"""
)


def grown(how: str, exits: int) -> int:
    """Bytes by which one step raised the peak of a fresh process."""
    command = [sys.executable, "-c", SCRIPT, how, str(exits)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_does_not_grow_with_the_exits(benchmark: Any) -> None:
    wanted = (("chunked", FEW), ("chunked", MANY), ("plain", 2), ("plain", 3))
    with ThreadPoolExecutor(2) as two:  # each process tells of itself
        few, many, plain_two, plain_three = benchmark.pedantic(
            lambda: list(two.map(lambda one: grown(*one), wanted)), rounds=1
        )
    for name, value in ((f"{FEW} exits", few), (f"{MANY} exits", many), ("2 exits, plain loss", plain_two)):
        benchmark.extra_info[name] = value // MB
        print(f"\n  peak of a step, {name}: {value / MB:.0f} MB", end="")
    print()
    assert plain_three - plain_two > LOGITS / 2  # so much one further exit would cost: the instrument sees it
    assert many - few < LOGITS / 2  # their states are LOGITS / 8, and the rest is the allocator's slack
