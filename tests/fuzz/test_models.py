"""A folder of a model is understood, or refused in one line; what is no number is never run.

Cases end when the warm-up of a run has decoded with what was read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from .cases import REFUSED, Ran, Warm
from .hostile import SPECIAL, VALUES, Draw, as_json, changed_bytes, changed_json, make_special

Fuzz = Callable[..., None]
Fresh = Callable[[], AbstractContextManager[Path]]

FIELDS = [
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"),
    *("intermediate_size", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters"),
    *("eos_token_id", "bos_token_id", "pad_token_id", "model_type", "architectures", "hidden_act", "dtype"),
    *("tie_word_embeddings", "quantization_config", "auto_map", "attention_bias", "layer_types", "sliding_window"),
    *("transformers_version", "initializer_range", "attention_dropout", "use_cache", "torch_dtype", "mlp_bias"),
]  # fmt: skip
"""Of ``config.json``: what sizes and arithmetic hang on, whether the model writes them or not."""


@pytest.fixture(scope="session")
def sharded(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in several files, with an index."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("sharded")
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(folder, max_shard_size="100KB")
    for file in model.glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)
    assert (folder / "model.safetensors.index.json").is_file()
    return folder


@pytest.fixture(scope="session")
def decode(warm: Warm, rows_file: Path) -> Callable[..., Ran]:
    """``decode(folder, …)`` runs the model ``model`` in a folder until it has decoded."""

    def run(place: Path, *arguments: object) -> Ran:
        given = ("--source", rows_file, "--limit", 1, "--max-new-tokens", 2, "--energy", "none", "--threads", 1)
        return warm.run("run", "--model", "model", *given, *arguments, cwd=place, until="decoded")

    return run


def judged(ran: Ran, done: str, *, must_refuse: bool = False) -> Ran:
    try:
        refused = ran.judge() == REFUSED
        assert refused or not must_refuse, f"takes it\n{ran}"
    except AssertionError as error:
        raise AssertionError(f"{done}\n{error}") from None
    return ran


def damage_document(draw: Draw, file: Path) -> str:
    """Change a JSON file in one way; return what was done."""
    kind = draw(st.sampled_from(["field", "field", "field", "known", "bytes", "special", "whole"]))
    if kind == "special":
        what = draw(st.sampled_from(SPECIAL))
        make_special(file, what)
        return f"{file.name} is {what}"
    if kind == "bytes":
        data, said = changed_bytes(draw, file.read_bytes())
    elif kind == "whole":
        data, said = as_json(draw(VALUES)).encode("utf-8", "surrogatepass"), "replaced"
    else:
        document = json.loads(file.read_bytes())
        if kind == "known" and file.name == "config.json":
            field = draw(st.sampled_from(FIELDS))
            document[field] = draw(VALUES)
            said = f"{field} = {ascii(document[field])[:60]}"
        else:
            document, said = changed_json(draw, document)
        data = as_json(document, indent=2).encode("utf-8", "surrogatepass")
    file.write_bytes(data)
    return f"{file.name}: {said}"


def test_every_folder_is_decoded_as_it_is(decode: Callable[..., Ran], fresh: Fresh, model: Path, sharded: Path) -> None:
    """Else nothing below would say anything."""
    for folder in (model, sharded):
        with fresh() as place:
            shutil.copytree(folder, place / "model")
            assert decode(place, "--strategy", "full").judge() != REFUSED


@pytest.mark.slow
def test_no_document_of_a_model_breaks_a_run(
    fuzz: Fuzz, decode: Callable[..., Ran], fresh: Fresh, model: Path, sharded: Path
) -> None:
    names = ["config.json", "config.json", "config.json", "tokenizer.json", "tokenizer_config.json"]
    names += ["generation_config.json", "model.safetensors.index.json"]

    def case(draw: Draw) -> Ran:
        name = draw(st.sampled_from(names))
        with fresh() as place:
            shutil.copytree(sharded if name.endswith("index.json") else model, place / "model")
            if not (place / "model" / name).is_file():
                (place / "model" / name).write_text("{}")
            done = damage_document(draw, place / "model" / name)
            weights = draw(st.sampled_from(["pretrained", "pretrained", "auto", "random"]))
            ran = decode(place, "--weights", weights, "--strategy", "full", "--exit-points", "all")
            return judged(ran, f"{done}; --weights {weights}")

    fuzz("models: documents", case, few=40)


@pytest.mark.slow
def test_no_tensor_of_a_model_that_is_no_number_is_run(
    fuzz: Fuzz, decode: Callable[..., Ran], fresh: Fresh, model: Path
) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    layers = sorted({name.split(".")[2] for name in weights if name.startswith("model.layers.")})

    def case(draw: Draw) -> Ran:
        changed = {name: tensor.clone() for name, tensor in weights.items()}
        name = draw(st.sampled_from(sorted(changed)))
        what = draw(st.sampled_from(["nan", "inf", "-inf", "zero layer", "drop", "shape", "dtype"]))
        must_refuse = what != "dtype"
        if what == "zero layer":
            name = draw(st.sampled_from(layers))
            for each, tensor in changed.items():
                if each.startswith(f"model.layers.{name}."):
                    tensor.zero_()
        elif what == "drop":
            del changed[name]
        elif what == "shape":
            changed[name] = changed[name][: max(len(changed[name]) // 2, 1)].clone()
        elif what == "dtype":
            changed[name] = changed[name].to(draw(st.sampled_from(_dtypes())))
        else:
            changed[name].view(-1)[draw(st.integers(0, changed[name].numel() - 1))] = float(what)
        with fresh() as place:
            shutil.copytree(model, place / "model")
            save_file(changed, place / "model" / "model.safetensors", {"format": "pt"})
            ran = decode(place, "--strategy", "full")
            return judged(ran, f"{what} in {name}", must_refuse=must_refuse)

    fuzz("models: tensors", case, few=12)


def _dtypes() -> list[Any]:
    import torch

    return [torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn]


# -------------------------------------------------------------------------------------- artefacts
