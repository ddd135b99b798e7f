"""Tiny random models as transformers gives them, and something to learn from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

LAYERS, WIDTH, VOCABULARY = 6, 32, 97

_SHAPE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"intermediate_size": 64, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "opt": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": WIDTH, "dropout": 0.0}),
    "opt-post-norm": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False, "dropout": 0.0}),
    "gpt2": ("gpt2", {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "gpt_neox": ("gpt_neox", {"intermediate_size": 64, "rotary_pct": 0.25}),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_module() -> Callable[..., Any]:
    """``make_module(family, **config changes)`` builds a transformers model of 6 layers, a new one each time."""

    def make(family: str, **changes: Any) -> Any:
        from transformers import AutoConfig, AutoModelForCausalLM

        kind, shape = FAMILIES[family]
        torch.manual_seed(1)
        module = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**_SHAPE, **shape, **changes}))
        for name, parameter in module.named_parameters():
            if parameter.dim() == 1:  # norms and biases that do something
                nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.1)
        return module

    return make


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def read_out(module: Any, states: Tensor) -> Tensor:
    """The model's own final norm and LM head on states before the norm."""
    core = module.base_model
    core = getattr(core, "decoder", core)
    for name in ("norm", "final_layer_norm", "ln_f", "project_out"):
        states = (getattr(core, name, None) or nn.Identity())(states)
    return module.get_output_embeddings()(states)


@pytest.fixture(scope="session")
def naive_states() -> Callable[[Any, Tensor], list[Tensor]]:
    """Hidden states after 1…n layers, as the layers' own outputs: ``[n][batch, length, hidden_size]``."""

    def run(module: Any, ids: Tensor) -> list[Tensor]:
        core = module.base_model
        core = getattr(core, "decoder", core)
        layers = getattr(core, "h", None) or core.layers
        found: list[Tensor] = []

        def keep(_: Any, __: Any, out: Any) -> None:
            found.append(out[0] if isinstance(out, tuple) else out)

        hooks = [layer.register_forward_hook(keep) for layer in layers]
        try:
            module(ids, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    return run


@pytest.fixture(scope="session")
def naive_read_out() -> Callable[[Any, Tensor], Tensor]:
    return read_out


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred Python files, all different, as JSONL for ``--source``."""
    file = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    lines = []
    for number in range(100):
        names = [f"{word}_{number % 7}" for word in ("path", "name", "size", "index")]
        text = "\n".join(
            f"def {verb}_{name}(items, limit={number}):\n    for item in items:\n        total = item.{name} + limit\n"
            f"    return {verb}(total, '{name}')\n"
            for verb, name in zip(("load", "save", "merge", "count"), names, strict=True)
        )
        lines.append(json.dumps({"id": f"doc-{number}", "code": f"{text}# {number}\n"}))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def make_trace() -> Callable[..., Any]:
    """``make_trace(model, source, out, *tasks, …)`` traces fourteen documents, cut at 72 tokens."""
    from tests.training.tracing import trace_of

    return partial(trace_of, documents=14, length=72)


@pytest.fixture(scope="session")
def small_trace(
    make_trace: Callable[..., Any], tiny_llama: Path, corpus_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A trace of fourteen documents by the tiny model of twelve layers, at exits 4, 6 and 10, with the shared head."""
    made = tmp_path_factory.mktemp("small-trace")
    lines = corpus_file.read_text(encoding="utf-8").splitlines(keepends=True)[:14]
    (made / "code.jsonl").write_text("".join(lines), encoding="utf-8")
    make_trace(tiny_llama, made / "code.jsonl", made / "t")
    return made / "t"
