"""Never exiting is transformers' greedy ``generate``, token for token, and weights are held once."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from harness.decoding.engine import Engine
from harness.decoding.families import read
from harness.registry import KV_POLICIES
from strategies.full import Full
from strategies.saturation import Saturation
from tests.crossing import in_turn
from tests.decoding.conftest import FORMS, each_kind

NEW = 16


@pytest.fixture(scope="module")
def generated(prompts: list[list[int]], greedy: Callable[..., list[int]]) -> Callable[[Any], list[list[int]]]:
    """The tokens of ``generate`` for all prompts, once for each form."""
    known: dict[str, list[list[int]]] = {}

    def find(case: Any) -> list[list[int]]:
        if case.form not in known:
            known[case.form] = [greedy(case.reference, prompt, NEW) for prompt in prompts]
        return known[case.form]

    return find


@pytest.mark.slow
@in_turn(rounds=2, case=list(FORMS), kv=KV_POLICIES.names())
def test_never_exiting_is_generate(
    case: Any, kv: str, prompts: list[list[int]], generated: Callable[[Any], list[list[int]]]
) -> None:
    expected = generated(case)
    assert all(len(set(tokens)) >= 5 for tokens in expected), "tokens that repeat prove little"

    never_asked = case.engine.decode(prompts, Full(), kv=kv, max_new_tokens=[NEW] * 3)
    asked_in_vain = case.engine.decode(prompts, Saturation(threshold=2), kv=kv, max_new_tokens=[NEW] * 3)

    assert [one.token_ids for one in never_asked] == expected
    assert [one.token_ids for one in asked_in_vain] == expected
    assert all(one.exit_layers == [case.info.num_layers] * NEW for one in never_asked + asked_in_vain)


@each_kind
def test_a_row_at_the_last_position_is_generate(
    case: Any, prompts: list[list[int]], greedy: Callable[..., list[int]]
) -> None:
    prompt = (prompts[0] * 50)[: case.info.max_positions - 8]
    done = case.engine.decode([prompt], Full(), kv="propagate", max_new_tokens=[8])
    assert done[0].token_ids == greedy(case.reference, prompt, 8)


@pytest.mark.parametrize("form", ["llama", "llama3-rope", "neox-parallel"])
def test_rotary_tables_grow_with_the_longest_sequence(
    form: str, make_case: Callable[..., Any], prompts: list[list[int]], greedy: Callable[..., list[int]]
) -> None:
    case = make_case(form, max_position_embeddings=1024)
    for length in (8, 700, 300):  # the tables first made for 8 positions end before 700
        prompt = (prompts[0] * 200)[:length]
        done = case.engine.decode([prompt], Full(), kv="propagate", max_new_tokens=[3])
        assert done[0].token_ids == greedy(case.reference, prompt, 3)


def test_reading_leaves_transformers_usable(
    case: Any, prompts: list[list[int]], greedy: Callable[..., list[int]]
) -> None:
    if case.gives_up_qkv:
        assert all(layer.attention.query_key_value.weight.numel() == 0 for layer in case.module.gpt_neox.layers)
        return
    ids = torch.tensor([prompts[0]])
    with torch.no_grad():
        torch.testing.assert_close(case.module(ids).logits, case.reference(ids).logits, atol=1e-3, rtol=1e-3)
    assert greedy(case.module, prompts[0], 8) == greedy(case.reference, prompts[0], 8)


def test_weights_are_held_once(case: Any) -> None:
    parameters = sum(parameter.nbytes for parameter in case.reference.parameters())
    engine = Engine(case.engine.backbone, case.info)  # without position tables, which come with the first run
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors(engine)}
    held |= {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors(case.module)}
    assert parameters <= sum(held.values()) <= 1.02 * parameters


@pytest.mark.parametrize("form", ["llama", "opt", "gpt2"])
def test_bfloat16_stays_within_its_rounding(form: str, make_case: Callable[..., Any], prompts: list[list[int]]) -> None:
    case = make_case(form)
    engine = Engine(read(case.module.to(torch.bfloat16)), case.info)
    for kv in ("propagate", "none"):
        done = engine.decode(prompts[:1], Full(), kv=kv, max_new_tokens=[NEW])[0]
        ids = torch.tensor([prompts[0] + done.token_ids])
        with torch.no_grad():
            logits = case.reference.to(torch.bfloat16)(ids).logits[0, len(prompts[0]) - 1 : -1].float()
        best = logits.amax(-1) - logits[range(NEW), done.token_ids]
        assert best.max() < 0.25 * logits.std()


def tensors(root: Any) -> Iterator[torch.Tensor]:
    """Every tensor that can be reached from an object, closures included."""
    waiting, met = [root], set[int]()
    while waiting:
        thing = waiting.pop()
        if id(thing) in met or isinstance(thing, type | types.ModuleType):
            continue
        met.add(id(thing))
        if isinstance(thing, torch.Tensor):
            yield thing
        elif isinstance(thing, types.FunctionType):
            waiting.extend(cell.cell_contents for cell in thing.__closure__ or ())
        else:
            waiting.extend(gc.get_referents(thing))


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
