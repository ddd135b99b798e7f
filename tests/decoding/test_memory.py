"""Weights are in memory once: reading a model and decoding with it needs little beyond them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# Python's and torch's own needs while decoding (thread pools, kernels first used, allocator slack), bytes. The head
# is not tied: transformers makes a tied one twice before it drops one, which would hide a copy of the engine's.
ALLOWANCE = 32 * 2**20

SCRIPT = """
import json, resource, sys
from pathlib import Path
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from harness.contracts import ModelInfo
from harness.decoding.engine import Engine
from harness.decoding.families import read
from strategies.fixed import Fixed

def peak():
    # VmHWM belongs to this process image alone; ru_maxrss may carry over what the parent had before exec.
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "VmHWM" in line)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

def info(config):
    return ModelInfo("tiny", "llama", config.num_hidden_layers, config.hidden_size, config.vocab_size, (4,),
                     config.max_position_embeddings, "float32", "random", 1, 1, 1, 1)

def decode(config):
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    engine = Engine(read(model), info(config))
    engine.decode([[1, 2, 3]], Fixed(layer=4), kv="propagate", max_new_tokens=[2])
    return sum(parameter.nbytes for parameter in model.parameters())

torch.set_num_threads(1)
shape = dict(intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=4,
             max_position_embeddings=128, tie_word_embeddings=False)
decode(AutoConfig.for_model("llama", **shape | dict(hidden_size=24, intermediate_size=8, vocab_size=8)))  # first use
before = peak()
weights = decode(AutoConfig.for_model("llama", **shape | dict(hidden_size=768, vocab_size=20000)))
print(json.dumps({"weights": weights, "grown": peak() - before}))
"""


@pytest.mark.slow
def test_peak_memory_is_the_weights_and_little_more() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    figures = json.loads(run.stdout.splitlines()[-1])
    cache = 12 * 2 * 4 * 64 * 128 * 4  # at most: layers, K and V, heads, width, positions, bytes
    assert 100e6 < figures["weights"] / 4 < 130e6
    assert 0.95 * figures["weights"] < figures["grown"] <= 1.15 * figures["weights"] + cache + ALLOWANCE, figures
