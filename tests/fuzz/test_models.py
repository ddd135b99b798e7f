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

from tests.fuzz.cases import REFUSED, Ran, Warm
from tests.fuzz.hostile import SPECIAL, VALUES, Draw, as_json, changed_bytes, changed_json, make_special

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
    layer, width, points = "model.layers.3.self_attn.q_proj", info.hidden_size, info.exit_points
    low = {f"{layer}.lora_A": torch.randn(2, width), f"{layer}.lora_B": torch.randn(width, 2) / 9}
    write_artefact(folder / "adapter.json", "adapter", low, facts | {"scale": 0.5})
    maps = {f"{point}.weight": torch.eye(width) for point in points}
    write_artefact(
        folder / "shortcut.json", "shortcut", maps | {f"{one}.bias": torch.ones(width) / 99 for one in points}, facts
    )
    heads = {str(point): Network(((torch.randn(1, width), torch.ones(1) / 9),), "relu") for point in points}
    write_controller(folder / "classifier.json", "classifier", Observation(), heads, facts | {"threshold": 0.9})
    return folder


USES = {
    "model": ("--strategy", "full"),
    "adapter": ("--weights", "tuned", "--exit-head", "shared", "--strategy", "full"),
    "shortcut": ("--weights", "pretrained", "--exit-head", "shortcut", "--strategy", "fixed:layer=2"),
    "classifier": ("--weights", "pretrained", "--exit-head", "shared", "--strategy", "classifier"),
}
"""What is damaged → what makes a run use it."""


@pytest.fixture(scope="session")
def decode(warm: Warm, rows_file: Path) -> Callable[..., Ran]:
    """``decode(folder, …)`` runs the model ``model`` in a folder until it has decoded."""

    def run(place: Path, *arguments: object, until: str | None = "decoded") -> Ran:
        given = ("--source", rows_file, "--limit", 1, "--max-new-tokens", 2, "--energy", "none", "--threads", 1)
        return warm.run("run", "--model", "model", *given, *arguments, cwd=place, until=until)

    return run


@pytest.fixture(scope="session")
def use(decode: Callable[..., Ran]) -> Callable[..., Ran]:
    """``use(folder, name)`` runs to its end: heads are read when their strategy decodes for the first time."""

    def run(place: Path, name: str) -> Ran:
        return decode(place, "--artefacts", "made", "--exit-points", "all", "--out", "out", *USES[name], until=None)

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
    decode: Callable[..., Ran], use: Callable[..., Ran], fresh: Fresh, model: Path, sharded: Path, artefacts: Path
) -> None:
    """Else nothing below would say anything."""
    for folder in (model, sharded):
        with fresh() as place:
            shutil.copytree(folder, place / "model")
            assert decode(place, "--strategy", "full").judge() != REFUSED
    for name in USES:
        with fresh() as place:
            shutil.copytree(model, place / "model")
            shutil.copytree(artefacts, place / "made")
            ran = use(place, name)
            assert ran.judge() == 0, ran


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

    fuzz("models: documents", case, cases=28)


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

    fuzz("models: tensors", case, cases=8)


def _dtypes() -> list[Any]:
    import torch

    return [torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn]


@pytest.mark.slow
def test_no_byte_of_weights_or_artefacts_breaks_a_run(
    fuzz: Fuzz, use: Callable[..., Ran], fresh: Fresh, model: Path, artefacts: Path
) -> None:
    def case(draw: Draw) -> Ran:
        name = draw(st.sampled_from(sorted(USES)))
        with fresh() as place:
            shutil.copytree(model, place / "model")
            shutil.copytree(artefacts, place / "made")
            file = place / "made" / f"{name}.json"
            tensors = place / "model" / "model.safetensors" if name == "model" else file.with_suffix(".safetensors")
            kinds = ["field", "header", "anywhere", "length", "special", *(["document"] * 3 if name != "model" else [])]
            kind, must_refuse = draw(st.sampled_from(kinds)), False
            if kind == "document":
                done = damage_document(draw, file)
            elif kind == "special":
                done = draw(st.sampled_from(SPECIAL))
                make_special(tensors, done)
            else:
                data = tensors.read_bytes()
                changed, done = _damaged(draw, kind, data)
                tensors.write_bytes(changed)
                if name != "model" and draw(st.booleans()):  # with its own hash: damaged where it was made
                    facts = json.loads(file.read_bytes()) | {"sha256": hashlib.sha256(changed).hexdigest()}
                    file.write_text(json.dumps(facts))
                else:
                    must_refuse = name != "model" and changed != data
            return judged(use(place, name), f"{name}, {kind}: {done}", must_refuse=must_refuse)

    fuzz("models: weights and artefacts", case, cases=24)


def _damaged(draw: Draw, kind: str, data: bytes) -> tuple[bytes, str]:
    """Return the bytes of a file of tensors with its header, a field of that, its length or anything changed."""
    size = int.from_bytes(data[:8], "little")
    if kind == "anywhere":
        return changed_bytes(draw, data)
    if kind == "length":
        number = draw(st.sampled_from([0, 1, size - 1, size + 1, len(data), 2**31, 2**63, 2**64 - 1]))
        return number.to_bytes(8, "little") + data[8:], f"header of {number} bytes"
    if kind == "field":
        document, done = changed_json(draw, json.loads(data[8 : 8 + size]))
        header = as_json(document).encode("utf-8", "surrogatepass")
    else:
        header, done = changed_bytes(draw, data[8 : 8 + size])
    return len(header).to_bytes(8, "little") + header + data[8 + size :], done
