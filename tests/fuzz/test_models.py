"""A folder of a model or of artefacts is understood, or refused in one line; what is no number is never run.

Cases end when the warm-up of a run has decoded with what was read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from .cases import REFUSED, Ran, Warm
from .hostile import SPECIAL, TEXTS, VALUES, Draw, as_json, changed_bytes, changed_json, make_special

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
def artefacts(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter, shortcuts for it, and heads for the base weights."""
    import torch

    from harness.contracts import ModelRequest
    from harness.models.artefacts import write_artefact
    from harness.models.controllers import Network, Observation, write_controller
    from harness.models.model import resolve
    from harness.training.identity import identity

    folder = tmp_path_factory.mktemp("artefacts")
    torch.manual_seed(0)
    info = resolve(ModelRequest(str(model), weights="pretrained", exit_head="shared", exit_points="all")).info
    facts = identity(info, "t") | {"documents": ["a" * 16], "made": {"command": "harness train"}}
    layer, width = "model.layers.3.self_attn.q_proj", info.hidden_size
    low = {f"{layer}.lora_A": torch.randn(2, width), f"{layer}.lora_B": torch.randn(width, 2) / 9}
    write_artefact(folder / "adapter.json", "adapter", low, facts | {"scale": 0.5})
    maps = {f"{point}.weight": torch.eye(width) for point in info.exit_points}
    maps |= {f"{point}.bias": torch.zeros(width) + 0.01 for point in info.exit_points}
    write_artefact(folder / "shortcut.json", "shortcut", maps, facts)
    heads = {
        str(point): Network(((torch.randn(1, width), torch.zeros(1) + 0.1),), "relu") for point in info.exit_points
    }
    write_controller(folder / "classifier.json", "classifier", Observation(), heads, facts | {"threshold": 0.9})
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


def test_every_folder_is_decoded_as_it_is(
    decode: Callable[..., Ran], fresh: Fresh, model: Path, sharded: Path, artefacts: Path
) -> None:
    """Else nothing below would say anything."""
    chosen = ("--artefacts", artefacts, "--exit-points", "all")
    for folder in (model, sharded):
        with fresh() as place:
            shutil.copytree(folder, place / "model")
            assert decode(place, "--strategy", "full").judge() != REFUSED
            if folder == model:
                tuned = decode(place, *chosen, "--weights", "tuned", "--exit-head", "shared", "--strategy", "full")
                assert tuned.judge() != REFUSED, tuned
                base = (*chosen, "--weights", "pretrained")
                assert decode(place, *base, "--exit-head", "shortcut", "--strategy", "fixed:layer=2").judge() != REFUSED
                heads = decode(place, *base, "--exit-head", "shared", "--strategy", "classifier")
                assert heads.judge() != REFUSED, heads


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
def test_no_byte_of_the_weights_breaks_a_run(fuzz: Fuzz, decode: Callable[..., Ran], fresh: Fresh, model: Path) -> None:
    def case(draw: Draw) -> Ran:
        with fresh() as place:
            shutil.copytree(model, place / "model")
            file = place / "model" / "model.safetensors"
            data = file.read_bytes()
            size = int.from_bytes(data[:8], "little")
            kind = draw(st.sampled_from(["header", "header", "field", "anywhere", "special", "length"]))
            if kind == "special":
                said = draw(st.sampled_from(SPECIAL))
                make_special(file, said)
            elif kind == "length":
                number = draw(st.sampled_from([0, 1, size - 1, size + 1, len(data), 2**31, 2**63, 2**64 - 1]))
                said = f"header of {number} bytes"
                file.write_bytes(number.to_bytes(8, "little") + data[8:])
            elif kind == "field":
                header, said = changed_json(draw, json.loads(data[8 : 8 + size]))
                text = as_json(header).encode("utf-8", "surrogatepass")
                file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
            elif kind == "header":
                header, said = changed_bytes(draw, data[8 : 8 + size])
                file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
            else:
                changed, said = changed_bytes(draw, data)
                file.write_bytes(changed)
            return judged(decode(place, "--strategy", "full"), f"model.safetensors, {kind}: {said}")

    fuzz("models: weights", case, few=20)


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

USES = {
    "adapter": ("--weights", "tuned", "--exit-head", "shared", "--strategy", "full"),
    "shortcut": ("--weights", "pretrained", "--exit-head", "shortcut", "--strategy", "fixed:layer=2"),
    "classifier": ("--weights", "pretrained", "--exit-head", "shared", "--strategy", "classifier"),
}
"""Artefact → what makes a run use it. Warm-up decodes at full depth; strategies are started by what follows it."""


@pytest.mark.slow
def test_no_artefact_breaks_a_run(
    fuzz: Fuzz, warm: Warm, rows_file: Path, fresh: Fresh, model: Path, artefacts: Path
) -> None:
    """The run goes to its end: heads are read when their strategy decodes for the first time."""

    def case(draw: Draw) -> Ran:
        name = draw(st.sampled_from(sorted(USES)))
        with fresh() as place:
            shutil.copytree(artefacts, place / "made")
            file = place / "made" / f"{name}.json"
            kind = draw(st.sampled_from(["document", "document", "document", "tensors", "bytes"]))
            must_refuse = False
            if kind == "document":
                done = damage_document(draw, file)
            elif kind == "tensors":
                done, must_refuse = _damage_tensors(draw, file)
            else:
                tensors = file.with_suffix(".safetensors")
                data, said = changed_bytes(draw, tensors.read_bytes())
                must_refuse = data != tensors.read_bytes() and not draw(st.booleans())
                tensors.write_bytes(data)
                done = f"{tensors.name}: {said}"
                if not must_refuse:  # with its own hash: damaged where it was made
                    _seal(file)
            base = ("--model", model, "--source", rows_file, "--limit", 1, "--max-new-tokens", 3, "--energy", "none")
            chosen = ("--threads", 1, "--artefacts", "made", "--exit-points", "all", "--out", "out", *USES[name])
            return judged(warm.run("run", *base, *chosen, cwd=place), done, must_refuse=must_refuse)

    fuzz("artefacts", case, few=24)


def _damage_tensors(draw: Draw, file: Path) -> tuple[str, bool]:
    """Change a tensor of an artefact, hash and all; return what was done, and whether that must be refused."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(file.with_suffix(".safetensors"))
    name = draw(st.sampled_from(sorted(tensors)))
    what = draw(st.sampled_from(["nan", "inf", "drop", "rename", "shape", "rank", "dtype", "empty"]))
    tensor = tensors.pop(name)
    if what in ("nan", "inf"):
        tensor.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = float(what)
    elif what == "rename":
        name = draw(TEXTS).encode("utf-8", "replace").decode()
    elif what == "shape":
        tensor = tensor.repeat(*[2] * tensor.dim())
    elif what == "rank":
        tensor = tensor[None]
    elif what == "dtype":
        tensor = tensor.to(draw(st.sampled_from(_dtypes())))
    elif what == "empty":
        tensor = tensor[:0]
    if what != "drop":
        tensors[name] = tensor.contiguous()
    save_file(tensors, file.with_suffix(".safetensors"))
    _seal(file)
    return f"{file.stem}: {what} in {name!a}", what not in ("dtype", "rank")


def _seal(file: Path) -> None:
    facts = json.loads(file.read_bytes())
    facts["sha256"] = hashlib.sha256(file.with_suffix(".safetensors").read_bytes()).hexdigest()
    file.write_text(json.dumps(facts))
