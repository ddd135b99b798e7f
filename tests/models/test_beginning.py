"""A tokenizer that puts a token before every text: whatever reads a text from its beginning reads that, too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.contracts import Document, ModelRequest
from harness.models.model import ResolvedModel, resolve

CODE = "def load_path(items):\n"


@pytest.fixture(scope="module")
def model(begun: Path) -> ResolvedModel:
    return resolve(ModelRequest(str(begun)))


@pytest.fixture(scope="module")
def bos(begun: Path) -> int:
    from transformers import AutoTokenizer

    number: int = AutoTokenizer.from_pretrained(begun).bos_token_id
    return number


def test_it_is_what_the_tokenizer_adds(model: ResolvedModel, bos: int, tiny_llama: Path) -> None:
    assert model.tokenizer.start_ids == (bos,)
    assert model.tokenizer.encode(CODE) == model.tokenizer.wrapped(CODE).input_ids[1:]
    assert resolve(ModelRequest(str(tiny_llama))).tokenizer.start_ids == ()


def test_a_run_s_full_depth_is_transformers_of_the_same_text(
    cli: Callable[..., Any], begun: Path, bos: int, rows_file: Path
) -> None:
    from transformers import AutoModelForCausalLM

    ran = cli(
        "run", "--model", begun, "--source", rows_file, "--protocol", "green-code", "--limit", 3, "--strategy", "full",
        "--max-new-tokens", 6, "--energy", "none", "--threads", 1, "--weights-format", "float32", "--out", "run",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    theirs = AutoModelForCausalLM.from_pretrained(begun)
    samples = [json.loads(line) for line in Path("run/samples.jsonl").read_text().splitlines()]
    assert samples
    for sample in samples:
        assert sample["prompt_ids"].count(bos) == 1
        assert sample["prompt_ids"][0] == bos
        out = theirs.generate(torch.tensor([sample["prompt_ids"]]), max_new_tokens=6, do_sample=False, pad_token_id=0)
        made = out[0, len(sample["prompt_ids"]) :].tolist()
        assert sample["token_ids"] == made[: len(sample["token_ids"])]


def test_a_prompt_fills_the_positions_with_it(cli: Callable[..., Any], begun: Path, tmp_path: Path) -> None:
    """256 positions: without room for it a sample would be refused in mid run."""
    rows = [{"id": f"r{number}", "code": "total = items + limit\n" * (198 + number)} for number in range(5)]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ran = cli(
        "run", "--model", begun, "--source", tmp_path / "long.jsonl", "--strategy", "full", "--max-new-tokens", 15,
        "--energy", "none", "--threads", 1, "--out", "run", "--limit", 0,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    samples = [json.loads(line) for line in Path("run/samples.jsonl").read_text().splitlines()]
    assert not [sample["error"] for sample in samples if sample.get("error") and sample["prompt_ids"]]
    assert max(len(sample["prompt_ids"]) + len(sample["token_ids"]) for sample in samples) == 256


def test_generate_and_the_server_read_it_before_text_and_not_before_tokens(begun: Path, bos: int) -> None:
    import harness
    from harness.serving.config import ServeConfig
    from harness.serving.service import Service

    ours = harness.load(begun, threads=1)
    plain = ours.loaded.tokenizer.encode(CODE)
    made = ours.generate(CODE, "full", max_new_tokens=5, stop="never")
    assert made.text == ours.generate([bos, *plain], "full", max_new_tokens=5, stop="never").text
    service = Service(ServeConfig.build({"model": str(begun), "max_new_tokens": 16, "energy": "none", "threads": 1}))
    assert service.encode(CODE, None, truncate=False).token_ids == (bos, *plain)
    assert service.encode(plain, None, truncate=False).token_ids == tuple(plain)
    assert service.encode("<bos>" + CODE, None, truncate=False).token_ids == (bos, *plain)
    for text in (CODE * 900, "<bos>" + CODE * 100):
        cut = service.encode(text, None, truncate=True)
        assert cut.token_ids[0] == bos
        assert cut.token_ids.count(bos) == 1
        assert len(cut.token_ids) == service.max_prompt_tokens
    assert ours.generate("<bos>" + CODE, "full", max_new_tokens=5, stop="never").text == made.text


def test_traces_and_tuning_read_it(begun: Path, bos: int, rows_file: Path, cli: Callable[..., Any]) -> None:
    from harness.training.corpus import pack
    from harness.training.traces.record_trace import FIRST
    from harness.training.traces.store import Traces

    ran = cli(
        "trace", "--model", begun, "--task", "py150", "--source", rows_file, "--documents", 3, "--length", 40,
        "--threads", 1, "--out", "t",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    tokenizer = resolve(ModelRequest(str(begun))).tokenizer
    texts = {json.loads(line)["code"] for line in rows_file.read_text().splitlines()}
    expected = {(bos, *tokenizer.encode(text))[FIRST:40] for text in texts}
    columns = Traces.open(Path("t")).columns("input", "document")
    for number in range(3):
        assert tuple(columns["input"][columns["document"] == number].tolist()) in expected
    packed = pack([Document(1, "a", CODE), Document(2, "b", f"<bos>{CODE}")], tokenizer, 4).flatten().tolist()
    assert packed.count(bos) == 2
