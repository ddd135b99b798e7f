"""Compiled layers do what torch's do, for every form that they take, and a token's bits are its own."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.decoding import kernels
from harness.decoding.backbone import Backbone, KVFiller
from harness.decoding.cache import KVCache, attend
from harness.decoding.engine import Engine
from harness.decoding.packing import ENOUGH, pack, prepare
from harness.registry import WEIGHTS_FORMATS

PACKED = [
    name for name in ("fp16", "int8", "int4", "w8a8", "w4a8") if WEIGHTS_FORMATS.load(name)().obstacle("cpu") is None
]
WIDE = {"hidden_size": 128, "num_attention_heads": 4, "head_dim": 32}
FORMS = ("llama", "llama-biases", "mistral", "qwen3", "opt", "opt-bare", "gpt2", "gpt2-layer-scaled", "neox-parallel",
         "neox-sequential")  # fmt: skip
LENGTH = 40


@pytest.fixture(scope="module")
def packed(make_case: Callable[..., Any]) -> Callable[[str, str], Engine]:
    """Engines of forms with heads of 32, by form and weights format."""
    found: dict[tuple[str, str], Engine] = {}

    def find(form: str, name: str) -> Engine:
        if (form, name) not in found:
            opt = {"word_embed_proj_dim": 128} if form.startswith("opt") else {}
            case = make_case(form, **WIDE, **opt)
            found[form, name] = Engine(pack(case.engine.backbone, name, "cpu"), case.info)
        return found[form, name]

    return find


def filled(engine: Engine) -> KVCache:
    cache = engine.cache(3, LENGTH + 8)
    cache.entries.copy_(torch.randn(cache.entries.shape, generator=torch.Generator().manual_seed(3)))
    return cache


def by_torch(
    backbone: Backbone, engine: Engine, cache: KVCache, state: Tensor, slots: Sequence[tuple[int, int]]
) -> Tensor:
    """The same layers operator by operator, one slot after the other."""
    rotary, heads = engine.rotary(LENGTH + 8), backbone.heads
    for index, block in enumerate(backbone.blocks):
        after = []
        for (row, position), mine in zip(slots, state.split(1), strict=True):
            places, rows = torch.tensor([position]), torch.tensor([row])
            queries, entries = block.project(mine, rotary, None if rotary is None else rotary.tables(places))
            cache.write(index, rows, places, entries)
            keys, values = cache.gather(index, rows, position + 1)
            after.append(block.finish(mine, attend(queries.unsqueeze(1), keys, values, None, heads, block.scale)))
        state = torch.cat(after)
    return state


SLOTS = (
    [(0, 0)],
    [(1, LENGTH)],
    [(0, 7), (1, LENGTH), (2, 20)],
    [(1, 30), (1, 31), (1, 32), (1, 33), (1, 34)],  # a draft
    [(0, 5), (1, 8), (1, 9), *[(2, place) for place in range(25, 34)]],
)


@pytest.mark.crossed
@torch.inference_mode()
@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("form", FORMS)
def test_layers_are_torch_s(packed: Callable[[str, str], Engine], form: str, slots: list[tuple[int, int]]) -> None:
    engine = packed(form, "fp16")
    compiled = engine.backbone.compiled
    assert compiled is not None
    state = torch.randn(len(slots), 128, generator=torch.Generator().manual_seed(1))
    mine, theirs = filled(engine), filled(engine)
    rows, positions = zip(*slots, strict=True)
    before = state.clone()
    run = compiled.slots(mine, engine.rotary(LENGTH + 8), rows, positions)
    got = run.run(run.run(state, 0, 2), 2, engine.info.num_layers)  # an exit in between
    assert torch.equal(state, before)
    expected = by_torch(engine.backbone, engine, theirs, state, slots)
    assert (got - expected).norm() <= 1e-4 * expected.norm()
    assert (mine.entries - theirs.entries).norm() <= 1e-4 * theirs.entries.norm()
    untouched = mine.entries == filled(engine).entries
    assert untouched.sum() == mine.entries.numel() - mine.entries[:, 0, :, 0].numel() * len(slots)


@pytest.mark.crossed
@torch.inference_mode()
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("form", FORMS)
def test_keys_and_values_of_skipped_layers_are_torch_s(
    packed: Callable[[str, str], Engine], form: str, slots: list[tuple[int, int]], threads: int
) -> None:
    engine = packed(form, "fp16")
    torch.set_num_threads(threads)
    mine, theirs, rotary = filled(engine), filled(engine), engine.rotary(LENGTH + 8)
    hidden = torch.randn(len(slots), 128, generator=torch.Generator().manual_seed(1))
    rows, positions = zip(*slots, strict=True)
    KVFiller(engine.backbone).fill(mine, rotary, 2, rows, positions, hidden)
    for index, block in list(enumerate(engine.backbone.blocks))[2:]:
        places = torch.tensor(positions)
        entries = block.fill(hidden, rotary, None if rotary is None else rotary.tables(places))
        theirs.write(index, torch.tensor(rows), places, entries)
    assert (mine.entries - theirs.entries).norm() <= 1e-4 * theirs.entries.norm()
    untouched = mine.entries == filled(engine).entries
    layers = engine.info.num_layers - 2
    assert untouched.sum() == mine.entries.numel() - mine.entries[0, 0, :, 0].numel() * layers * len(slots)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_states_that_a_policy_kept_in_another_type_are_filled_in(
    packed: Callable[[str, str], Engine], dtype: torch.dtype
) -> None:
    engine = packed("llama", "fp16")
    mine, theirs, rotary = filled(engine), filled(engine), engine.rotary(LENGTH + 8)
    hidden = torch.randn(1, 128, generator=torch.Generator().manual_seed(1)).to(dtype)
    fill = KVFiller(engine.backbone).fill
    fill(mine, rotary, 2, [0], [LENGTH], hidden)
    fill(theirs, rotary, 2, [0], [LENGTH], hidden.float())
    fill(theirs, rotary, 2, [], [], hidden[:0])
    assert mine.entries.equal(theirs.entries)


@pytest.mark.crossed
@torch.inference_mode()
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("form", ["llama", "neox-parallel"])
def test_the_bits_of_a_token_are_its_own(
    packed: Callable[[str, str], Engine], form: str, name: str, threads: int
) -> None:
    """Alone, among others, and after those of its row that it attends to; with one thread and with two."""
    engine = packed(form, name)
    slots, compiled = SLOTS[-1], engine.backbone.compiled
    assert compiled is not None
    rotary, last = engine.rotary(LENGTH + 8), engine.info.num_layers
    state = torch.randn(len(slots), 128, generator=torch.Generator().manual_seed(1))
    torch.set_num_threads(threads)
    whole = compiled.slots(filled(engine), rotary, *zip(*slots, strict=True)).run(state, 0, last)
    torch.set_num_threads(1)
    cache = filled(engine)
    for place, (row, position) in enumerate(slots):
        alone = compiled.slots(cache, rotary, [row], [position]).run(state[place : place + 1], 0, last)
        assert torch.equal(alone[0], whole[place])


@torch.inference_mode()
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so_and_harms_nobody_else(packed: Callable[[str, str], Engine], bad: float) -> None:
    engine = packed("llama", "fp16")
    assert engine.backbone.compiled is not None
    state = torch.randn(3, 128)
    state[1, 3] = bad
    run = engine.backbone.compiled.slots(filled(engine), engine.rotary(LENGTH + 8), [0, 1, 2], [5, 6, 7])
    after = run.run(state, 0, engine.info.num_layers)
    assert after[[0, 2]].isfinite().all()
    assert not after[1].isfinite().any()


def test_what_is_not_compiled_is_left_to_torch(make_case: Callable[..., Any]) -> None:
    for form, changes in (("llama", {}), ("opt-post-norm", {}), ("llama", {**WIDE, "hidden_act": "gelu_10"})):
        case = make_case(form, **changes)
        assert pack(case.engine.backbone, "fp16", "cpu").compiled is None
    wide = make_case("llama", **WIDE).engine.backbone
    assert wide.compiled is None
    mixed = pack(wide, "fp16", "cpu")
    blocks = [*mixed.blocks[:-1], pack(wide, "int8", "cpu").blocks[-1]]
    assert replace(mixed, blocks=blocks).compiled is None


@torch.inference_mode()
@pytest.mark.parametrize("activation", ["silu", "relu", "gelu", "gelu_new"])
def test_every_non_linearity_is_known(make_case: Callable[..., Any], activation: str) -> None:
    case = make_case("llama", **WIDE, hidden_act=activation)
    engine = Engine(pack(case.engine.backbone, "fp16", "cpu"), case.info)
    assert engine.backbone.compiled is not None
    state = 3 * torch.randn(2, 128)
    run = engine.backbone.compiled.slots(filled(engine), engine.rotary(LENGTH + 8), [0, 1], [3, 30])
    expected = by_torch(engine.backbone, engine, filled(engine), state, [(0, 3), (1, 30)])
    assert (run.run(state, 0, engine.info.num_layers) - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize(
    ("names", "begun"),
    [(["auto"], ["Fp16"]), (["auto", "int4", None], ["Fp16", "Int4"]), (["float32"], []), (["nothing"], [])],
)
def test_compiling_begins_beside_the_reading_of_a_model_that_is_worth_it(
    monkeypatch: pytest.MonkeyPatch, names: list[str | None], begun: list[str]
) -> None:
    asked = list[str]()
    monkeypatch.setattr(kernels, "prepare", lambda kind: asked.append(kind.name))
    prepare(names, ENOUGH, "cpu")
    assert asked == begun
    prepare(names, ENOUGH - 1, "cpu")
    prepare(["fp16"], ENOUGH, "cuda")
    assert asked == begun


def test_machine_code_is_kept_and_linked_without_numba(tmp_path: Path) -> None:
    """Compiled in one process and found in the next; another processor, and bytes that changed, are compiled for."""
    script = """
import sys, torch
import llvmlite.binding as llvm
from harness.decoding import kernels
from harness.decoding.weights.fp16 import Fp16
if sys.argv[1] == "another":
    llvm.get_host_cpu_name = lambda: sys.argv[1]
if sys.argv[1] == "product":
    product = Fp16().pack(torch.eye(64), None)(torch.arange(128.0).view(2, 64))
    assert torch.equal(product, torch.arange(128.0).view(2, 64))
print(kernels.address_of("threads") > 0, "numba" in sys.modules)
"""

    def run(what: str) -> str:
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
        return subprocess.check_output([sys.executable, "-c", script, what], env=environment, text=True).strip()

    assert run("product") == "True True"
    assert run("product") == run("threads") == "True False"
    (smallest, _) = sorted(tmp_path.rglob("compiled/*"), key=lambda file: file.stat().st_size)
    assert run("another") == "True True"
    document = gzip.decompress(smallest.read_bytes())
    smallest.write_bytes(gzip.compress(document.replace(b'"code": "f', b'"code": "g', 1)))
    assert run("threads") == "True True"
    assert run("threads") == "True False"


def test_a_function_is_compiled_once_whichever_thread_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    made, ready, found = list[str](), threading.Barrier(4), list[int]()
    monkeypatch.setattr(kernels, "_addresses", {})
    monkeypatch.setattr(kernels, "_compile", lambda name, key: made.append(name) or 7)
    monkeypatch.setattr(kernels, "kept_document", lambda kind, key: None)

    def ask() -> None:
        ready.wait()
        found.append(kernels.address_of("Fp16"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (made, found) == (["Fp16"], [7] * 4)
