"""Tiny random models and a tokenizer, made anew in a folder, the same each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FAMILIES = ("llama", "mistral", "qwen3", "opt", "gpt2", "gpt_neox")
DOCUMENTS = [
    "\n".join(
        f"def {verb}_{noun}(items, limit={number}):\n    for item in items:\n        total = item.{noun} + limit\n"
        f"    return {verb}(total, '{noun}')\n"
        for verb in ("load", "save", "merge")
    )
    for number, noun in enumerate(("path", "name", "size", "index", "token", "value", "layer", "score"))
]


def make_models(folder: Path) -> None:
    """Write ``rows.jsonl`` and a 12-layer model of each family, ``tiny-FAMILY``; exit points 4, 6 and 10."""
    lines = (json.dumps({"id": f"doc-{number}", "code": text}) for number, text in enumerate(DOCUMENTS))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = _tokenizer()
    for family in FAMILIES:
        _model(family, len(tokenizer)).save_pretrained(folder / f"tiny-{family}")
        tokenizer.save_pretrained(folder / f"tiny-{family}")


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(DOCUMENTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def _model(family: str, vocabulary: int) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 12,
        "num_attention_heads": 4,
        "vocab_size": vocabulary,
        "max_position_embeddings": 256,
        "eos_token_id": 0,
        "initializer_range": 0.3,  # wide enough that layers disagree about the next token
    }
    shape |= {"ffn_dim": 64, "word_embed_proj_dim": 32} if family == "opt" else {"intermediate_size": 64}
    if family == "gpt2":
        shape |= {"n_embd": 32, "n_layer": 12, "n_head": 4, "n_positions": 256}
    if family in ("llama", "mistral", "qwen3"):
        shape["num_key_value_heads"] = 2
    if family == "qwen3":
        shape["head_dim"] = 8
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape))
