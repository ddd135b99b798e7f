"""What transformers made of a configuration and a tokenizer once is found again without it, and is the same."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.contracts import ModelRequest
from harness.decoding.backbone import Backbone
from harness.models import skeleton as skeletons
from harness.models.model import ResolvedModel, resolve
from harness.models.skeleton import skeleton
from harness.models.tokenizer import PlainTokenizer

TEXTS = ("def f(x):\n    return x\n", "", "<eos>", "a<eos>b <bos>", "naïve — 漢字 🎉\t\r\n", " leading", "x" * 3000)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "early-exit-harness" / "configurations"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Says which folders transformers laid out."""
    folders: list[Path] = []
    real = skeletons.without_weights

    def counted(folder: Path, dtype: str) -> Any:
        folders.append(folder)
        return real(folder, dtype)

    monkeypatch.setattr(skeletons, "without_weights", counted)
    return folders


def facts(backbone: Backbone) -> Any:
    """Everything of a skeleton but its functions."""
    blocks = [
        [
            *(block.heads, block.scale, block.gated, block.parallel, block.post_norm),
            *(matrix.shape for matrix in (block.qkv, block.output, block.mlp_in, block.mlp_out)),
            *(getattr(matrix, "bias", None) is None for matrix in (block.qkv, block.output, block.mlp_in)),
            *norms(block.attention_norm, block.mlp_norm, block.query_norm, block.key_norm),
        ]
        for block in backbone.blocks
    ]
    embed = backbone.embed
    places = None if embed.places is None else embed.places.shape
    return (
        *(blocks, embed.words.shape, embed.words.dtype, places, embed.offset, embed.project_in is None),
        *(backbone.heads, backbone.lm_head.shape, backbone.dtype, backbone.project_out is None),
        *norms(backbone.final_norm),
    )


def norms(*found: Any) -> list[Any]:
    return [None if norm is None else (type(norm), norm.eps) for norm in found]


SCALED = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *(("llama", {}), ("llama", {"rope_parameters": SCALED}), ("qwen2", {}), ("qwen3", {"head_dim": 16})),
        *(("mistral", {"num_key_value_heads": 2}), ("opt", {}), ("gpt2", {}), ("gpt_neox", {})),
    ],
)
def test_a_kept_skeleton_is_what_the_family_reads(
    make_model: Callable[..., Path], made: list[Path], family: str, changes: dict[str, Any]
) -> None:
    folder = make_model(family, **changes)
    for dtype in ("float32", "bfloat16"):
        made.clear()
        first, second = skeleton(folder, dtype), skeleton(folder, dtype)
        assert len(made) == 1
        assert facts(first) == facts(second)
        numbers = torch.randn(1000).mul(9).to(getattr(torch, dtype))
        for mine, theirs in zip(first.blocks, second.blocks, strict=True):
            assert torch.equal(mine.activation(numbers), theirs.activation(numbers))
        if first.rotary is not None:
            assert second.rotary is not None
            for positions in (1, 37, 256, 5000):
                assert all(map(torch.equal, first.rotary(positions).plain, second.rotary(positions).plain))


def test_what_is_none_of_the_plain_parts_is_made_again(
    make_model: Callable[..., Path], made: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_model("llama", hidden_act="gelu_pytorch_tanh", initializer_range=0.2)
    monkeypatch.setattr(skeletons, "_ACTIVATIONS", {})
    assert facts(skeleton(folder, "float32")) == facts(skeleton(folder, "float32"))
    assert len(made) == 2


def test_another_configuration_is_read_anew(make_model: Callable[..., Path], tmp_path: Path, made: list[Path]) -> None:
    folder = shutil.copytree(make_model("llama"), tmp_path / "other")
    said = json.loads((folder / "config.json").read_text())
    first, shape = skeleton(folder, "float32"), resolved(folder).shape
    (folder / "config.json").write_text(json.dumps(said | {"rms_norm_eps": 0.25, "max_position_embeddings": 99}))
    second = skeleton(folder, "float32")
    assert len(made) == 2
    assert first.blocks[0].attention_norm.eps != 0.25
    assert second.blocks[0].attention_norm.eps == 0.25
    assert (shape.max_positions, resolved(folder).shape.max_positions) == (256, 99)


def resolved(folder: Path) -> ResolvedModel:
    return resolve(ModelRequest(str(folder), "pretrained", exit_head="shared"))


def test_facts_are_the_same_the_second_time(make_model: Callable[..., Path]) -> None:
    for family in ("llama", "gpt2"):
        first, second = resolved(make_model(family)), resolved(make_model(family))
        assert replace(first.info, name="") == replace(second.info, name="")
        assert first.shape == second.shape


@pytest.mark.parametrize("model", ["tiny_llama", "begun"])
def test_a_plain_tokenizer_is_transformers_own(
    request: pytest.FixtureRequest, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder: Path = request.getfixturevalue(model)
    theirs, plain = resolved(folder).tokenizer, resolved(folder).tokenizer
    assert not isinstance(theirs, PlainTokenizer)
    assert isinstance(plain, PlainTokenizer)
    for name in ("start_ids", "special_ids", "whole_ids", "eos_token_ids", "vocabulary", "fingerprint", "source"):
        assert getattr(plain, name) == getattr(theirs, name), name
    for text in TEXTS:
        token_ids = theirs.encode(text)
        assert plain.encode(text) == token_ids
        assert plain.decode(token_ids) == theirs.decode(token_ids)
    assert type(plain.wrapped) is type(theirs.wrapped)


def test_a_tokenizer_that_does_more_than_its_file_says_stays_transformers_own(
    make_model: Callable[..., Path], cache: Path
) -> None:
    folder = make_model("llama", vocab_size=400)
    file = folder / "tokenizer_config.json"
    said = json.loads(file.read_text())
    resolved(folder).tokenizer  # noqa: B018
    assert isinstance(resolved(folder).tokenizer, PlainTokenizer)
    file.write_text(json.dumps(said | {"additional_special_tokens": ["<new>"]}))
    for _ in "ab":
        found = resolved(folder).tokenizer
        assert not isinstance(found, PlainTokenizer)
    for document in cache.iterdir():
        document.write_bytes(b"damaged")
    file.write_text(json.dumps(said))
    assert not isinstance(resolved(folder).tokenizer, PlainTokenizer), "what is damaged is made again"


@pytest.mark.slow
def test_the_second_process_imports_no_transformers(tiny_llama: Path) -> None:
    code = (
        "import sys; from harness.decoding import packing; packing.ENOUGH = 0\n"
        "import harness; model = harness.load(sys.argv[1], weights_format='fp16')\n"
        "model.generate('def f', max_new_tokens=2)\n"
        "print(*{'transformers', 'numba', 'scipy', 'pandas', 'sympy'} & sys.modules.keys())"
    )
    for expected in (True, False):
        done = subprocess.run([sys.executable, "-c", code, tiny_llama], capture_output=True, text=True, check=True)
        assert ("transformers" in done.stdout) is expected
    assert not done.stdout.strip()
