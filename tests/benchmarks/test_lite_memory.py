"""What a LITE step needs at its peak: as much with twelve exits as with two.

Each measurement is a process of its own: a llama of 13 layers and width 64 with 50 000 words, four packs of 256
tokens, all exits, half of the loss distilled. Logits of one exit over all tokens are 205 MB, so that a loss that
forms them needs a gigabyte and more. Memory is not as moody as time: the bounds are asserted. Run with ``make bench``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

MB = 2**20
LOGITS = 4 * 255 * 50_000 * 4  # bytes of one exit's
ALLOWANCE = 64 * MB  # eight exits' states, activations and gradients, and allocator slack

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from harness.decoding.families import head_modules
from harness.training.lite.recipe import LiteModel, LiteRecipe

def read(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if field in line)

def make(exits, words):
    config = AutoConfig.for_model("llama", hidden_size=64, intermediate_size=128, num_hidden_layers=13,
                                  num_attention_heads=4, vocab_size=words, tie_word_embeddings=True)
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
    ids = torch.randint(0, words, (4, 256))
    loss = plain(model, ids) if how == "plain" else model(ids)["loss"]
    loss.backward()
    assert model.module.lm_head.weight.grad.abs().sum() > 0

torch.set_num_threads(1)
how, exits = sys.argv[1], int(sys.argv[2])
step(exits, 50, how)  # first use
before = read("VmRSS")
step(exits, 50_000, how)
print(json.dumps(read("VmHWM") - before))
"""


def grown(how: str, exits: int) -> int:
    """Bytes by which one step raised the peak of a fresh process."""
    command = [sys.executable, "-c", SCRIPT, how, str(exits)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_does_not_grow_with_the_exits(benchmark: Any) -> None:
    few = grown("chunked", 2)
    many = benchmark.pedantic(grown, ("chunked", 12), rounds=1)
    plain_two, plain_three = grown("plain", 2), grown("plain", 3)
    for name, value in (("2 exits", few), ("12 exits", many), ("2 exits, plain loss", plain_two)):
        benchmark.extra_info[name] = value // MB
        print(f"\n  peak of a step, {name}: {value / MB:.0f} MB", end="")
    print()
    assert plain_three - plain_two > LOGITS / 2  # so much one further exit would cost: the instrument sees it
    assert many - few < ALLOWANCE
    assert many < plain_two / 2
