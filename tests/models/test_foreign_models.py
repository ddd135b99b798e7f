"""A model's folder as anybody may write it: what cannot be used is refused in one line, and nothing hangs."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import ModelError, OutOfMemoryError
from harness.models.model import ResolvedModel
from harness.models.source import text_back

pytestmark = pytest.mark.timeout(60)

Act = Callable[[], object]


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A model that may be spoilt."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "m"))


@pytest.fixture
def use(resolved: Callable[..., ResolvedModel], folder: Path) -> Act:
    """Resolve, tokenise and load the model, as a run does."""

    def everything() -> object:
        found = resolved(str(folder), weights="pretrained")
        found.tokenizer.decode(found.tokenizer.encode("def f(x): return x"))
        return found.load("cpu")

    return everything


def refusal(act: Act) -> str:
    with pytest.raises(ModelError) as refused:
        act()
    message = str(refused.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 900
    return message


def stands_or_is_refused(act: Act) -> None:
    """Whatever comes of it, it is no defect."""
    said = ""
    try:
        act()
    except ModelError as error:
        said = str(error)
    assert len(said.splitlines()) <= 1


def change(file: Path, **facts: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))


SIZES = (
    *("num_hidden_layers", "hidden_size", "vocab_size", "intermediate_size", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)
NO_SIZES = (0, -1, 10**9, 10**17, 1.5, 12.0, "12", True, [1], {}, {"__float__": "NaN"})


@pytest.mark.crossed
@pytest.mark.parametrize("value", NO_SIZES, ids=repr)
@pytest.mark.parametrize("field", SIZES)
def test_a_size_out_of_bounds_is_named_with_its_file(use: Act, folder: Path, field: str, value: object) -> None:
    change(folder / "config.json", **{field: value})
    message = refusal(use)
    assert message.startswith(
        f"{folder / 'config.json'}: {field} = {value!r} is not allowed: it must be a whole number"
    )


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"rms_norm_eps": 1}, "expected float, got int"),  # which transformers' own check refuses
        ({"rms_norm_eps": -1}, "rms_norm_eps = -1 is not allowed: it must be a number from "),
        ({"rope_theta": 1e300}, "rope_theta = 1e+300 is not allowed"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "config.json: factor = 0 is not allowed"),
        ({"rope_scaling": {"full_attention": {"factor": "x"}}}, "config.json: factor = 'x' is not allowed"),
        ({"hidden_size": None}, "config.json"),
        ({"num_key_value_heads": 3}, "have another shape in model.layers.0.self_attn."),
        ({"head_dim": 7}, "config.json cannot be used"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": None}, "hidden"),
        ({"eos_token_id": "0"}, "eos_token_id"),
        ({"eos_token_id": [0, True]}, "eos_token_id"),
        ({"eos_token_id": [[0]]}, "eos_token_id"),
        ({"hidden_act": "nonsense"}, "nonsense"),
        ({"attn_implementation": "somebody/kernel"}, "attn_implementation = 'somebody/kernel' may be code of the hub"),
        ({"_attn_implementation": "somebody/kernel"}, "may be code of the hub, which is never run"),
        ({"per_layer_config": [{"hidden_size": 3}]}, "layers of different shapes"),
        ({"model_type": ["llama"]}, "config.json"),
        ({"model_type": None}, "model family None is not supported"),
        ({"model_type": "\ud800"}, "half a surrogate pair"),
        ({"num_hidden_layers": 11}, "have more layers: model.layers.11."),
        ({"num_hidden_layers": 13}, "lack model.layers.12."),
        ({"intermediate_size": 65}, "have another shape in model.layers.0.mlp."),
    ],
    ids=repr,
)
def test_facts_that_make_no_model_are_named(use: Act, folder: Path, facts: dict[str, Any], said: str) -> None:
    change(folder / "config.json", **facts)
    assert said in refusal(use)


def test_code_beside_a_model_is_never_run(use: Act, folder: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    change(folder / "config.json", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]})
    stands_or_is_refused(use)
    assert not (folder / "ran").exists()


def test_weights_that_no_machine_holds_are_refused_before_they_are_drawn(
    resolved: Callable[..., ResolvedModel], folder: Path
) -> None:
    change(folder / "config.json", num_hidden_layers=20, hidden_size=1 << 17, intermediate_size=1 << 20)  # 33 TB
    found = resolved(str(folder))
    with pytest.raises(OutOfMemoryError, match=r"take [\d,]+ GiB in float32, and this machine has [\d,]+ GiB\. Use"):
        found.load("cpu")


DOCUMENTS = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "model.safetensors.index.json"),
)


@pytest.mark.crossed
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is not JSON (line 1"),
        (b'{"a": ', "it is not JSON (line 1"),
        (b'{"a": "\xff"}', "it is not UTF-8 (byte 7)"),
        (b"[]", "it holds a list, not an object"),
        (b"null", "it holds a NoneType, not an object"),
        (b"[" * 100_000, "it is nested deeper than 100"),
        (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "it is nested deeper than 100"),
        (b'{"a": 1e999}', "no finite double (1e999)"),
        (b'{"a": -Infinity}', "no finite double (-Infinity)"),
        (b'{"a": ' + b"1" * 5_000 + b"}", "an integer of more than 40 digits"),
        (b'{"a": "\\ud800"}', "half a surrogate pair"),
    ],
    ids=lambda value: repr(value)[:30],
)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_that_is_none_is_named(use: Act, folder: Path, name: str, content: bytes, said: str) -> None:
    (folder / name).write_bytes(content)
    message = refusal(use)
    assert message.startswith(f"cannot read {folder / name}: ")
    assert said in message


@pytest.mark.crossed
@pytest.mark.parametrize("name", [*DOCUMENTS, "model.safetensors", "merges.txt", "chat_template.jinja", "notes",
                                  "additional_chat_templates/a.jinja"])  # fmt: skip
def test_what_is_no_file_is_not_opened(use: Act, folder: Path, put: Callable[[Path], str], name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    said = put(folder / name)
    if said in ("it is a folder, not a file", "Too many levels of symbolic links"):
        stands_or_is_refused(use)
    else:
        assert refusal(use).startswith(f"cannot read {folder / name}: {said}")


@pytest.mark.parametrize("weights", ["pretrained", "random"])
@pytest.mark.parametrize(
    "part",
    [{"decoder": None}, {"pre_tokenizer": None}, {"normalizer": {"type": "Lowercase"}}],
    ids=lambda part: next(iter(part)),
)
def test_a_tokenizer_that_does_not_give_code_back_is_refused(
    resolved: Callable[..., ResolvedModel], folder: Path, part: dict[str, Any], weights: str
) -> None:
    """Scores would be of text that the model did not write."""
    change(folder / "tokenizer.json", **part)
    said = refusal(lambda: resolved(str(folder), weights=weights).tokenizer)
    assert said.startswith(f"the tokenizer of {folder.name} does not give code back as it was, but as ")
    assert "Copy the one that was published with the weights" in said


def test_tokenizers_of_every_kind_give_code_back(tiny_tokenizer: Any) -> None:
    """Llama's puts a space before a text, knows no newline but its byte, and drops that space again; others keep it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    spaced = Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str())
    spaced.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127)), "▁▁"]
    llama = Tokenizer(
        models.BPE({word: at for at, word in enumerate(words)}, [("▁", "▁")], unk_token="<unk>", byte_fallback=True)
    )
    llama.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    llama.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    for one in (tiny_tokenizer.backend_tokenizer, spaced, llama):
        assert text_back(PreTrainedTokenizerFast(tokenizer_object=one)) == ""


def test_a_token_beyond_the_embedding_is_refused(use: Act, folder: Path) -> None:
    file = folder / "tokenizer.json"
    model = json.loads(file.read_text())["model"]
    word = max(model["vocab"], key=model["vocab"].__getitem__)
    model["vocab"][word] = 5000  # as many words as before
    change(file, model=model)
    assert "has a token of id 5000 and m embeds ids below 320" in refusal(use)


UP = "model.layers.3.mlp.up_proj.weight"


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def save(folder: Path, weights: dict[str, torch.Tensor], name: str = "model.safetensors") -> None:
    from safetensors.torch import save_file

    save_file(weights, folder / name, {"format": "pt"})


@pytest.mark.crossed
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", [UP, "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"])
@pytest.mark.parametrize(("value", "fault"), [(torch.nan, "NaN"), (torch.inf, "infinity"), (-torch.inf, "infinity")])
def test_one_weight_that_is_no_number_is_found(
    resolved: Callable[..., ResolvedModel], folder: Path, name: str, value: float, fault: str, dtype: str
) -> None:
    weights = weights_of(folder)
    weights[name].view(-1)[-1] = value
    save(folder, weights)
    found = resolved(str(folder), weights="pretrained", dtype=dtype)
    said = f"{folder / 'model.safetensors'}: {name} holds {fault}, with which the model says nothing."
    assert refusal(lambda: found.load("cpu")).startswith(said)


def test_the_file_of_several_is_named_and_numbers_that_are_no_floating_point_are_refused(
    use: Act, folder: Path
) -> None:
    """transformers casts whole numbers without a word."""
    weights = weights_of(folder)
    (folder / "model.safetensors").unlink()
    up, others = weights.pop(UP), dict.fromkeys(weights, "model-00002-of-00002.safetensors")
    save(folder, weights, "model-00002-of-00002.safetensors")
    index = {UP: "model-00001-of-00002.safetensors"} | others
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    for spoilt, said in (
        (torch.full_like(up, torch.nan), "holds NaN"),
        *(((100 * up).to(kind), "is stored as ") for kind in (torch.int8, torch.int32, torch.bool)),
    ):
        save(folder, {UP: spoilt}, index[UP])
        assert refusal(use).startswith(f"{folder / index[UP]}: {UP} {said}")


@pytest.mark.parametrize("length", [0, 8, 100, -1])
def test_weights_cut_off_are_refused(use: Act, folder: Path, length: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    refusal(use)


def test_a_text_without_an_end_or_with_a_mark_is_named(use: Act, folder: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(b"\xef\xbb\xbf" + kept)
        assert f"{folder / name} begins with a byte order mark, which transformers refuses" in refusal(use)
        (folder / name).write_bytes(kept)
    for name in ("merges.txt", "tokenizer.json"):
        (folder / name).touch()
        os.truncate(folder / name, 1 << 40)  # a hole: it takes no room
        assert f"{name}: it is larger than 256 MiB" in refusal(use)
        (folder / name).unlink()


def test_pickled_weights_are_not_read(resolved: Callable[..., ResolvedModel], folder: Path) -> None:
    torch.save(weights_of(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"cannot be read from folder m as safetensors.*--weights random"):
        resolved(str(folder), weights="pretrained").load("cpu")


@pytest.mark.parametrize("name", [UP, "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"])
def test_a_layer_of_zeros_is_found(use: Act, folder: Path, name: str) -> None:
    weights = weights_of(folder)
    weights[name].zero_()
    save(folder, weights)
    assert f"{folder / 'model.safetensors'}: {name} is all zeros" in refusal(use)
    weights[name].view(-1)[0] = 1e-3
    save(folder, weights)
    use()


def test_biases_may_be_zero_and_random_weights_are_not_looked_at(
    resolved: Callable[..., ResolvedModel], make_model: Callable[..., Path]
) -> None:
    folder, notes = make_model("gpt2"), list[str]()
    assert all(not tensor.any() for name, tensor in weights_of(folder).items() if name.endswith("c_attn.bias"))
    resolved(str(folder), weights="pretrained").load("cpu", notes.append)
    assert re.fullmatch(rf"preparing {folder.name}, its weights checked in \d+\.\d\d s", notes[0])
    resolved(str(folder)).load("cpu", notes.append)
    assert len(notes) == 1


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": []}, "has no weight_map"),
        ({"weight_map": {}}, "has no weight_map"),
        *(
            ({"weight_map": {UP: name}}, "which is no safetensors file beside it")
            for name in (5, None, [], "", "/dev/zero", "../m/model.safetensors", "/etc/passwd", "pytorch_model.bin")
        ),
        ({"weight_map": {UP: "gone.safetensors"}}, "which is not there"),
        ({"weight_map": {UP: "other.safetensors"}}, "cannot be read"),
        ({"weight_map": {UP: "other.safetensors"}, "metadata": 5}, "cannot be read"),
    ],
    ids=repr,
)
def test_an_index_that_leads_elsewhere_is_not_followed(
    use: Act, folder: Path, index: dict[str, Any], said: str
) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert said in refusal(use)


def test_an_adapter_beside_the_weights_is_not_mixed_in(use: Act, folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "elsewhere"}))
    assert "has an adapter of peft beside its weights (adapter_config.json)" in refusal(use)
