"""Models in GGUF files: they compute what transformers makes of the same file, and what is wrong with one is named."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter, get_tensor_name_map
from gguf.constants import GGML_QUANT_SIZES, MODEL_ARCH_NAMES, GGMLQuantizationType
from gguf.quants import quantize
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from harness.contracts import ModelRequest
from harness.decoding import packing
from harness.decoding.engine import Engine
from harness.decoding.packing import tensors_of
from harness.errors import ModelError
from harness.host.cache import kept
from harness.models import model, weights
from harness.models.artefacts import write_artefact
from harness.models.fill_in_the_middle import fill_in_the_middle
from harness.models.gguf import GgufFile
from harness.models.model import LoadedModel, ResolvedModel
from harness.models.source import find_spec
from harness.models.trained import find, require
from strategies.full import Full

TEXTS = (
    "def f(x):\n    return x + 12\n",
    "",
    "naïve — 漢字 🎉\t\r\n",
    " leading",
    "<eos>",
    "class A:\n\n\n\tpass" * 40,
)
PROMPT = [5, 6, 7, 8, 300, 41]
SIZES = {"hidden_size": 256, "num_hidden_layers": 3, "intermediate_size": 256}  # whole blocks of K-quants
BY_HAND = {"Q4_K": ((0, 2),), "Q6_K": ((208, 210),), "Q5_K": ((0, 2),), "Q3_K": ((108, 110),), "Q2_K": ((80, 82),)}
"""K-quants, which the package does not make → bytes of a block's scale; all else in a block may be anything."""

Write = Callable[..., Path]


def stored(array: np.ndarray, kind: str) -> np.ndarray:
    """Return a matrix as blocks of a quantisation: random ones of K-quants, with scales that keep numbers small."""
    number = GGMLQuantizationType[kind]
    if kind not in BY_HAND:
        return quantize(array, number)
    size, nbytes = GGML_QUANT_SIZES[number]
    random = np.random.default_rng(array.size)
    blocks = random.integers(0, 256, (array.size // size, nbytes), dtype=np.uint8)
    for start, end in BY_HAND[kind]:
        scales = random.uniform(1e-4, 2e-4, len(blocks)).astype(np.float16)
        blocks[:, start:end] = scales.view(np.uint8).reshape(-1, 2)
    if kind in ("Q4_K", "Q5_K", "Q2_K"):  # a scale of the least weights comes next
        start = BY_HAND[kind][0][1]
        blocks[:, start : start + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(array.shape[0], -1)


def as_llama_cpp(family: str, name: str, array: np.ndarray, config: Any) -> np.ndarray:
    """Return a weight in llama.cpp's order, as its converter writes it."""
    if family == "gpt2" and name.startswith("blk.") and array.ndim > 1:
        return np.ascontiguousarray(array.T)
    if family == "llama" and (".attn_q." in name or ".attn_k." in name):
        heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
        halves = array.reshape(heads, 2, len(array) // heads // 2, *array.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
    return array


def write_gguf(folder: Path, file: Path, kind: str = "F32", **facts: Any) -> Path:
    """Write a transformers model and its byte-level tokenizer as llama.cpp's converter does; ``facts`` go beside."""
    module = AutoModelForCausalLM.from_pretrained(folder)
    config, family = module.config, module.config.model_type
    writer = GGUFWriter(file, family)
    for add, value in {
        "block_count": config.num_hidden_layers, "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size, "head_count": config.num_attention_heads,
        "feed_forward_length": 4 * config.hidden_size if family == "gpt2" else config.intermediate_size,
    }.items():  # fmt: skip
        getattr(writer, f"add_{add}")(value)
    if family == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_key_length(config.head_dim if family == "qwen3" else 64)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    backend = json.loads(AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str())
    vocabulary = sorted(backend["model"]["vocab"], key=backend["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token == "<eos>" else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in backend["model"]["merges"]])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for key, value in facts.items():
        writer.add_key_value(*value) if isinstance(value, tuple) else writer.add_tensor(key, value)
    names = get_tensor_name_map(
        next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == family), config.num_hidden_layers
    )
    for parameter, tensor in module.named_parameters():
        name = names.get_name(parameter, (".weight", ".bias"))
        assert name is not None
        array = as_llama_cpp(family, name, tensor.detach().numpy(), config)
        if array.ndim == 1 or name == "position_embd.weight":
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, stored(array, kind), raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "early-exit-harness"


@pytest.fixture(scope="module")
def source(make_model: Callable[..., Path]) -> Callable[[str], Path]:
    """A random model of three layers of a family; each with something of its own."""
    made: dict[str, Path] = {}
    own = {
        "llama": {"num_key_value_heads": 2, "rms_norm_eps": 1e-5},
        "qwen2": {"num_key_value_heads": 1, "tie_word_embeddings": True, "rope_parameters": rope(1e6)},
        "qwen3": {"num_key_value_heads": 2, "head_dim": 128},  # as transformers takes for granted of a file
        "gpt2": {"max_position_embeddings": 1024},  # this too
    }

    def find(family: str) -> Path:
        if family not in made:
            changes = {"initializer_range": 0.1} | own[family]
            made[family] = make_model(family, **SIZES, **changes)
            draw_biases(made[family])
        return made[family]

    return find


def rope(base: float, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": base} | more


def draw_biases(folder: Path) -> None:
    """Give biases and norms numbers other than 0 and 1, so that one that is lost is noticed."""
    module = AutoModelForCausalLM.from_pretrained(folder)
    for _, tensor in module.named_parameters():
        if tensor.dim() == 1:
            torch.nn.init.normal_(tensor, float(tensor[0].detach() != 0), 0.1)
    module.save_pretrained(folder)


@pytest.fixture
def file(source: Callable[[str], Path], tmp_path: Path) -> Path:
    """A llama with its own LM head, in float32."""
    return write_gguf(source("llama"), tmp_path / "tiny.gguf")


def loaded(file: Path, **changes: Any) -> LoadedModel:
    return resolved(file, **changes).load("cpu")


def resolved(file: Path, **changes: Any) -> ResolvedModel:
    return model.resolve(ModelRequest(str(file), **{"weights": "pretrained", "exit_head": "shared"} | changes))


def decoded(found: LoadedModel, prompt: list[int], count: int = 20) -> list[int]:
    engine = Engine(found.backbone, found.info)
    return engine.decode([prompt], Full(), kv="recompute", max_new_tokens=[count])[0].token_ids


def transformers_own(file: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()


def greedy(theirs: Any, prompt: list[int], count: int = 20) -> list[int]:
    theirs.generation_config.eos_token_id = None
    found = theirs.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False, pad_token_id=0)
    return found[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *(("llama", kind) for kind in ("F16", "BF16", "Q8_0", "Q5_1", "Q4_0", "Q2_K", "Q4_K", "Q6_K")),
        *(("qwen2", kind) for kind in ("F16", "Q8_0", "Q4_0", "Q3_K", "Q5_K")),
        *(("qwen3", "Q8_0"), ("gpt2", "F16")),
    ],
)
def test_it_computes_what_transformers_makes_of_the_same_file(
    source: Callable[[str], Path], tmp_path: Path, family: str, kind: str
) -> None:
    file = write_gguf(source(family), tmp_path / f"{family}.gguf", kind)
    found, theirs = loaded(file), transformers_own(file)
    with torch.inference_mode():
        ours, expected = (one(torch.tensor([PROMPT])).logits for one in (found.module, theirs))
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    assert ours.std() > 0.01, "weights of zeros would agree, too"
    assert decoded(found, PROMPT) == greedy(theirs, PROMPT)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2"])
def test_float32_comes_back_as_it_was(source: Callable[[str], Path], tmp_path: Path, family: str) -> None:
    """Without transformers' reading of the file: order of heads, biases, norms, tied LM head, configuration."""
    there = AutoModelForCausalLM.from_pretrained(source(family))
    found = loaded(write_gguf(source(family), tmp_path / "m.gguf"))
    mine, theirs = (dict(one.named_parameters()) for one in (found.module, there))
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(mine[name], tensor), name
    assert found.module.config.tie_word_embeddings == (family in ("qwen2", "gpt2"))
    assert decoded(found, PROMPT) == decoded(loaded(source(family)), PROMPT)


@pytest.mark.parametrize(("family", "kind"), [("llama", "Q4_0"), ("qwen2", "Q8_0"), ("gpt2", "F16")])
def test_layers_are_packed_as_they_are_read(
    source: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, kind: str
) -> None:
    """The same packed weights come of it as of the whole model, which is never there; next time they are read."""
    file, formats = write_gguf(source(family), tmp_path / "m.gguf", kind), ["fp16", "int8", "int4"]
    monkeypatch.setattr(packing, "ENOUGH", 0)
    monkeypatch.setattr(model, "prepare", lambda *given: None)
    whole = resolved(file).load_all("cpu", formats=["float32", *formats])[1:]
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(weights.StoredWeights, "module", lambda self: pytest.fail("the whole model was read"))
    streamed = resolved(file).load_all("cpu", formats=formats)
    monkeypatch.setattr(model, "StoredWeights", lambda *given: pytest.fail("weights were read"))
    kept_ones = resolved(file).load_all("cpu", formats=formats)
    for one, two, three in zip(whole, streamed, kept_ones, strict=True):
        assert one.weights_sha256 == two.weights_sha256 == three.weights_sha256
        assert one.weights_source == two.weights_source == three.weights_source == "m.gguf, dequantised"
        expected, packed, read = (tensors_of(each.backbone) or {} for each in (one, two, three))
        assert "words" in expected
        for name, tensor in expected.items():
            assert torch.equal(packed[name].tensor, tensor.tensor), name
            assert torch.equal(read[name].tensor, tensor.tensor), name
        assert decoded(one, PROMPT) == decoded(two, PROMPT) == decoded(three, PROMPT)
    assert {one.kind for one in kept()} >= {"converted", "packed"}


def test_the_largest_tensor_is_never_whole_in_float32(
    source: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of the LM head and of word embeddings are read a few at a time, a layer at most twice."""
    file = write_gguf(source("llama"), tmp_path / "m.gguf", "Q8_0")
    monkeypatch.setattr("harness.decoding.kernels.layers._PACKED_TOGETHER", 1 << 14)
    found = resolved(file, weights_format="int8")
    found.load("cpu")  # its hash is kept
    asked: dict[str, list[int]] = {}
    real = GgufFile.rows

    def counted(self: GgufFile, name: str, first: int = 0, last: int | None = None, dtype: Any = None) -> Any:
        rows = real(self, name, first, last, dtype)
        asked.setdefault(name, []).append(len(rows) if rows.dtype is torch.float32 else 0)
        return rows

    monkeypatch.setattr(GgufFile, "rows", counted)
    found.load("cpu")
    assert max(asked["output.weight"]) < 320
    assert sum(asked["output.weight"]) == 320
    assert asked["token_embd.weight"] == [0]
    assert asked["blk.0.ffn_up.weight"] == [256]


def test_the_tokenizer_is_that_of_the_folder(source: Callable[[str], Path], file: Path) -> None:
    mine, theirs = resolved(file).tokenizer, resolved(source("llama")).tokenizer
    transformers = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for text in TEXTS:
        assert mine.encode(text) == theirs.encode(text) == transformers.encode(text, add_special_tokens=False)
        assert mine.decode(mine.encode(text)) == text
    assert mine.eos_token_ids == {0}
    assert mine.wrapped.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi"
    again = resolved(file).tokenizer
    assert [again.encode(text) for text in TEXTS] == [mine.encode(text) for text in TEXTS]


def test_the_first_end_of_a_text_ends_a_generation(source: Callable[[str], Path], tmp_path: Path) -> None:
    from gguf.constants import GGUFValueType

    more = {"eot": ("tokenizer.ggml.eot_token_id", 7, GGUFValueType.UINT32)}
    assert resolved(write_gguf(source("llama"), tmp_path / "m.gguf", **more)).tokenizer.eos_token_ids == {0, 7}


def test_llama_3_s_positions_are_recognised(make_model: Callable[..., Path], tmp_path: Path) -> None:
    """By the factors that llama.cpp's converter writes for each frequency; others are refused, not passed over."""
    facts = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    scaled = rope(500000.0) | {"rope_type": "llama3", "factor": 32.0} | facts
    folder = make_model("llama", **SIZES, rope_parameters=scaled)
    config = AutoModelForCausalLM.from_pretrained(folder).config
    plain = 500000.0 ** -(torch.arange(0, 64, 2) / 64)
    factors = (plain / ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0]).numpy()
    found = loaded(write_gguf(folder, tmp_path / "m.gguf", **{"rope_freqs.weight": factors}))
    assert found.module.config.rope_parameters == scaled
    assert decoded(found, PROMPT) == decoded(loaded(folder), PROMPT)
    wrong = write_gguf(folder, tmp_path / "n.gguf", **{"rope_freqs.weight": factors + 1})
    with pytest.raises(ModelError, match="by factors that are not Llama 3's"):
        resolved(wrong)


def test_a_model_is_told_by_its_file_s_content(file: Path, tmp_path: Path) -> None:
    """Not by its name or place; what was trained for it is found, and only by it."""
    info = resolved(file).info
    other = Path(shutil.copy(file, tmp_path / "other.gguf"))
    assert (info.name, resolved(other).info.name) == ("tiny", "other")
    assert resolved(other).info.fingerprint == info.fingerprint
    there = replace(info, artefacts=(str(tmp_path),))
    made = write_artefact(tmp_path / "shortlist.json", "shortlist", {}, {"model_fingerprint": info.fingerprint})
    assert require(find("shortlist", there)).sha256 == made.sha256
    content = bytearray(other.read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    assert resolved(other).info.fingerprint != info.fingerprint


def test_commands_take_the_file(tiny_run: Callable[..., Any], file: Path) -> None:
    assert tiny_run("--model", file, "--strategy", "fixed:layer=1", "--exit-points", "1,2", "--out", "o").code == 0
    manifest = json.loads(Path("o/manifest.json").read_text())
    assert manifest["model"]["name"] == "tiny"
    assert str(file.parent) not in json.dumps(manifest["model"])


def swap(before: bytes, after: bytes) -> Callable[[Path], object]:
    def act(file: Path) -> None:
        content = file.read_bytes()
        assert before in content
        file.write_bytes(content.replace(before, after, 1))

    return act


def cut(by: int = 0, to: int | None = None) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(file.read_bytes()[: -by if to is None else to])


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def fact(key: str, value: int | str) -> bytes:
    """Metadata as the file has it, a 32-bit number or a text."""
    told = struct.pack("<II", 4, value) if isinstance(value, int) else struct.pack("<I", 8) + text(value)
    return text(key) + told


def begin(version: bytes, tensors: int) -> bytes:
    return b"GGUF" + version + struct.pack("<Q", tensors)


def up(kind: int, *shape: int) -> bytes:
    """What the header says of a matrix, ``[in, out]``."""
    return text("blk.1.ffn_up.weight") + struct.pack("<IQQI", 2, *shape, kind)


THREE, COUNT, HEADS = struct.pack("<I", 3), "llama.block_count", "llama.attention.head_count"
REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut in its header": (cut(to=700), "is cut short: it ends in its header, at 700 bytes. Fetch it again"),
    "cut in its weights": (cut(by=9), "is cut short: it has "),
    "no bytes": (cut(to=0), "is no GGUF file. Give the folder"),
    "something else": (swap(b"GGUF", b"PK\3\4"), "is no GGUF file. Give the folder"),
    "the first version": (swap(THREE, struct.pack("<I", 1)), "is GGUF of version 1. Versions (2, 3) are read"),
    "big endian": (swap(THREE, struct.pack(">I", 3)), "in little-endian order"),
    "many tensors": (swap(begin(THREE, 30), begin(THREE, 1 << 60)), "has 0 dimensions. Fetch it again"),
    "an architecture": (swap(text("llama"), text("mamba")), "'mamba', which is not read from GGUF (gpt2, llama, "),
    "a quantisation": (swap(up(0, 256, 256), up(24, 256, 256)), "stores blk.1.ffn_up.weight as I8, which is not"),
    "a new quantisation": (swap(up(0, 256, 256), up(99, 256, 256)), "as type 99, which is not read. Q4_0 to Q8_0"),
    "another name": (swap(b"blk.1.ffn_up.", b"blk.1.ffn_xx."), "lacks blk.1.ffn_up.weight"),
    "other sizes": (swap(up(0, 256, 256), up(0, 128, 256)), "in (256, 128), where its sizes want (256, 256)"),
    "half a block": (swap(up(0, 256, 256), up(12, 250, 256)), "no whole number of blocks of 256"),
    "no size": (swap(text(COUNT), text("llama.block_xxxxx")), f"gives no number for {COUNT}"),
    "a layer less": (swap(fact(COUNT, 3), fact(COUNT, 2)), "has blk.2.attn_k.weight, which no llama model of 2"),
    "many heads": (swap(fact(HEADS, 4), fact(HEADS, 1 << 30)), "num_attention_heads = 1073741824 is not allowed"),
    "text for a number": (
        swap(fact("llama.attention.key_length", 64), fact("llama.attention.key_length", "x")),
        "gives no number for llama.attention.key_length",
    ),
    "no heads": (swap(fact(HEADS, 4), fact(HEADS, 0)), "num_attention_heads = 0 is not allowed"),
    "another tokenizer": (
        swap(fact("tokenizer.ggml.model", "gpt2"), fact("tokenizer.ggml.model", "rwkv")),
        "cannot be read: ",
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_is_wrong_with_a_file_is_one_line(file: Path, what: str) -> None:
    spoil, said = REFUSALS[what]
    spoil(file)
    with pytest.raises(ModelError) as refused:
        loaded(file)
    message = str(refused.value)
    assert said in message
    assert str(file) in message
    assert len(message.splitlines()) == 1


def test_a_part_of_a_file_is_refused_with_how_to_join_it(source: Callable[[str], Path], tmp_path: Path) -> None:
    from gguf.constants import GGUFValueType

    facts = {"a": ("split.count", 3, GGUFValueType.UINT16), "b": ("split.no", 1, GGUFValueType.UINT16)}
    part = write_gguf(source("llama"), tmp_path / "m-00002-of-00003.gguf", **facts)
    with pytest.raises(ModelError, match=r"is part 2 of 3\. Join them: llama-gguf-split --merge"):
        resolved(part)


def test_a_folder_with_a_file_in_it_leads_to_the_file(file: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no config\.json in it\. Give its GGUF file: --model .*tiny\.gguf"):
        resolved(file.parent)
    blob = file.rename(file.with_name("sha256-0123"))  # as Ollama names them
    assert find_spec(str(blob)).name == "sha256-0123"


def test_weights_that_say_nothing_are_refused(source: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source("llama"), tmp_path / "m"))
    module = AutoModelForCausalLM.from_pretrained(folder)
    module.model.layers[1].mlp.up_proj.weight.data[3, 4] = torch.nan
    module.save_pretrained(folder)
    broken = write_gguf(folder, tmp_path / "broken.gguf")
    for name in ("float32", "fp16"):
        with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN"):
            loaded(broken, weights_format=name)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_second_model_is_transformers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen2.5-Coder's published file: tokens, fill-in-the-middle and ids; 7 GB of memory and minutes."""
    place = os.environ.get("HARNESS_SECOND_MODEL")
    if place is None:
        pytest.skip("HARNESS_SECOND_MODEL names no file (qwen2.5-coder-1.5b-instruct-q4_k_m.gguf)")
    monkeypatch.delenv("XDG_CACHE_HOME")
    file = Path(place)
    found = loaded(file)
    prompt = found.tokenizer.encode("def quicksort(items):\n    if len(items) <= 1:\n        return items\n    pivot =")
    ours = decoded(found, prompt)
    marks = fill_in_the_middle(found.tokenizer)
    assert marks is not None
    assert (marks.family.name, marks.prefix, marks.middle, marks.suffix) == ("qwen", 151659, 151660, 151661)
    tokenizer = found.tokenizer
    del found
    assert ours == greedy(transformers_own(file), prompt)
    transformers = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    texts = [*TEXTS, *(path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))[:10])]
    for one in texts:
        assert tokenizer.encode(one) == transformers.encode(one, add_special_tokens=False)
        assert tokenizer.decode(tokenizer.encode(one)) == one
