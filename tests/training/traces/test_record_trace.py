"""``harness trace``: its columns are what transformers says, document by document, and it goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import ModelRequest, document_key
from harness.contracts.recipes import Silent, TrainingRun
from harness.decoding.engine import Engine
from harness.errors import ConfigError, DataError
from harness.models.artefacts import read_artefact
from harness.models.exit_modules import read_shortcuts
from harness.models.model import resolve
from harness.training.recipes import Shortcut
from harness.training.traces import record_trace
from harness.training.traces.record_trace import FIRST
from harness.training.traces.store import Traces, TraceWriter
from tests.training.tracing import trace_of

LENGTH = 60

tracer = partial(trace_of, documents=5, length=LENGTH)


def texts_of(source: Path) -> dict[str, str]:
    rows = map(json.loads, source.read_text(encoding="utf-8").splitlines())
    return {str(row["id"]): row["code"] for row in rows}


def write_source(file: Path, *texts: str) -> Path:
    file.write_text("".join(json.dumps({"id": f"d{n}", "code": text}) + "\n" for n, text in enumerate(texts)))
    return file


@dataclass(frozen=True)
class Naive:
    """A model as transformers runs it."""

    module: Any
    tokenizer: Any
    states: Callable[[Any, Tensor], list[Tensor]]
    read_out: Callable[[Any, Tensor], Tensor]

    def tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text)[:LENGTH]
        return ids


@pytest.fixture
def naive(naive_states: Callable[..., list[Tensor]], naive_read_out: Callable[..., Tensor]) -> Callable[[Path], Naive]:
    def read(folder: Path) -> Naive:
        from transformers import AutoModelForCausalLM

        module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = resolve(ModelRequest(str(folder), weights="pretrained", exit_head="shared")).tokenizer
        return Naive(module, tokenizer, naive_states, naive_read_out)

    return read


def rows_of(traces: Traces) -> list[tuple[str, dict[str, Tensor]]]:
    """Each document's own id and columns."""
    names = ("hidden", "last", "top", "top1", "top2", "entropy", "final", "final1", "input", "position", "document")
    columns = traces.columns(*names)
    found = []
    for number, facts in enumerate(traces.documents):
        rows = columns["document"] == number
        assert rows.sum() == facts["tokens"]
        found.append((name_of(facts), {name: column[rows] for name, column in columns.items()}))
    return found


def name_of(facts: Mapping[str, Any]) -> str:
    """A document's own id: without the stream before it, and the beginning of the key behind."""
    stream, key = facts["stream"], facts["key"][:12]
    name = str(facts["id"]).removeprefix(f"{stream}, ").removesuffix(f", {key}")
    assert facts["id"] == f"{stream}, {name}, {key}"
    return name


def assert_reads(columns: dict[str, Tensor], states: Sequence[Tensor], read_out: Callable[[Tensor], Tensor]) -> None:
    """The columns are what a softmax over whole logits of these states says, ``[exits + last][n, hidden_size]``."""
    probabilities = [read_out(state).float().softmax(-1) for state in states]
    best = [each.topk(2) for each in probabilities]
    entropy = [torch.distributions.Categorical(probs=each).entropy() for each in probabilities]
    close = partial(torch.testing.assert_close, rtol=2e-3, atol=2e-4)  # float16 on disk
    for e, _ in enumerate(states[:-1]):
        assert torch.equal(columns["top"][:, e].long(), best[e].indices[:, 0])
        close(columns["top1"][:, e].float(), best[e].values[:, 0])
        close(columns["top2"][:, e].float(), best[e].values[:, 1])
        close(columns["entropy"][:, e].float(), entropy[e])
    assert torch.equal(columns["final"].long(), best[-1].indices[:, 0])
    close(columns["final1"].float(), best[-1].values[:, 0])


# ------------------------------------------------------------------------------------ what it holds


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "gpt_neox"])
def test_columns_are_what_transformers_says(
    family: str, make_model: Callable[..., Path], corpus_file: Path, naive: Callable[[Path], Naive], tmp_path: Path
) -> None:
    folder = make_model(family)
    traces = tracer(folder, corpus_file, tmp_path / "t", documents=2)
    model, texts = naive(folder), texts_of(corpus_file)
    assert traces.exit_points == (4, 6, 10)
    assert len(traces.documents) == 2
    for name, columns in rows_of(traces):
        ids = model.tokens(texts[name])
        assert columns["position"].tolist() == list(range(FIRST, len(ids)))
        assert columns["input"].tolist() == ids[FIRST:]
        with torch.no_grad():
            states = [state[0, FIRST:] for state in model.states(model.module, torch.tensor([ids]))]
            exits = [states[point - 1] for point in traces.exit_points]
            torch.testing.assert_close(columns["hidden"].float(), torch.stack(exits, 1), rtol=2e-3, atol=2e-3)
            torch.testing.assert_close(columns["last"].float(), states[-1], rtol=2e-3, atol=2e-3)
            assert_reads(columns, [*exits, states[-1]], partial(model.read_out, model.module))
            final = model.module(torch.tensor([ids])).logits[0, FIRST:].argmax(-1)
        assert torch.equal(columns["final"].long(), final)
    whole = traces.columns("top", "final")
    assert 0 < (whole["top"] == whole["final"].unsqueeze(1)).float().mean() < 1  # exits that say something of their own


def test_exits_are_read_through_their_maps(
    tiny_llama: Path, corpus_file: Path, naive: Callable[[Path], Naive], tmp_path: Path
) -> None:
    """With ``--exit-head shortcut``, ``hidden`` stays the residual stream, and the head reads what the maps make."""
    shared = tracer(tiny_llama, corpus_file, tmp_path / "shared", documents=4)
    options = Shortcut(model=str(tiny_llama), traces=tmp_path / "shared", out=tmp_path / "a")
    options.train(TrainingRun("shortcut", "x"))  # type: ignore[attr-defined]
    made = read_artefact(tmp_path / "a" / "shortcut.json", "shortcut")
    mapped = tracer(
        tiny_llama, corpus_file, tmp_path / "mapped", documents=4, exit_head="shortcut", artefacts=str(tmp_path / "a")
    )
    assert mapped.index["exit_head"] == f"shortcut:{made.sha256[:16]}"
    model = naive(tiny_llama)
    maps = read_shortcuts(made, (4, 6, 10), torch.float32, "cpu", hidden_size=32)
    texts = texts_of(corpus_file)
    for (name, columns), (_, before) in zip(rows_of(mapped), rows_of(shared), strict=True):
        for same in ("hidden", "last", "final", "final1", "input", "position"):
            assert torch.equal(columns[same], before[same])
        assert not torch.equal(columns["top"], before["top"])
        with torch.no_grad():
            states = [
                state[0, FIRST:] for state in model.states(model.module, torch.tensor([model.tokens(texts[name])]))
            ]
            exits = [maps[point](states[point - 1]) for point in (4, 6, 10)]
            assert_reads(columns, [*exits, states[-1]], partial(model.read_out, model.module))


def test_the_index_says_whose_trace_it_is_and_of_what(tiny_llama: Path, corpus_file: Path, tmp_path: Path) -> None:
    traces = tracer(tiny_llama, corpus_file, tmp_path / "t", split="validation", seed=3)
    resolved = resolve(ModelRequest(str(tiny_llama), weights="pretrained", exit_head="shared"))
    tokenizer = resolved.tokenizer
    traces.check(resolved.info, tokenizer.fingerprint)
    known = {key: traces.index[key] for key in ("weights", "dtype", "split", "length", "new_tokens", "seed")}
    assert known == {
        "weights": "pretrained", "dtype": "float32", "split": "validation", "length": LENGTH, "new_tokens": 0, "seed": 3
    }  # fmt: skip
    texts = texts_of(corpus_file)
    for facts in traces.documents:
        name = name_of(facts)
        assert facts["stream"] == "py150, path: corpus.jsonl"
        assert facts["key"] == document_key(texts[name])
        assert facts["length"] == min(LENGTH, len(tokenizer.encode(texts[name])))
        assert "project" not in facts
    (tmp_path / "java.jsonl").write_text(json.dumps({"code": "package org.acme.tools;\nclass Tool { int size; }"}))
    (found,) = tracer(tiny_llama, tmp_path / "java.jsonl", tmp_path / "java", "javacorpus").documents
    assert found["project"] == "org.acme"


# -------------------------------------------------------------------------------- generated tokens


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_generated_tokens_are_those_of_greedy_generate(
    family: str, make_model: Callable[..., Path], corpus_file: Path, naive: Callable[[Path], Naive], tmp_path: Path
) -> None:
    folder, count = make_model(family), 9
    traces = tracer(folder, corpus_file, tmp_path / "t", documents=3, new_tokens=count)
    model, texts = naive(folder), texts_of(corpus_file)
    shares = []
    for name, columns in rows_of(traces):
        ids = model.tokens(texts[name])
        context = int(columns["position"][0]) + 1
        shares.append(context / len(ids))
        made = model.module.generate(torch.tensor([ids[:context]]), max_new_tokens=count, do_sample=False)[0]
        new = made[context:].tolist()
        assert columns["final"].tolist() == new
        assert columns["input"].tolist() == [ids[context - 1], *new[:-1]]
        assert columns["position"].tolist() == list(range(context - 1, context - 1 + len(new)))
        with torch.no_grad():
            states = [state[0, context - 1 :] for state in model.states(model.module, made[:-1].unsqueeze(0))]
            exits = [states[point - 1] for point in traces.exit_points]
            torch.testing.assert_close(columns["hidden"].float(), torch.stack(exits, 1), rtol=2e-3, atol=2e-3)
            assert_reads(columns, [*exits, states[-1]], partial(model.read_out, model.module))
    assert all(0.2 - 0.5 / LENGTH <= share <= 0.6 + 0.5 / LENGTH for share in shares)
    assert len(set(shares)) > 1


def test_a_generation_that_ends_is_traced_to_its_end(
    make_model: Callable[..., Path], corpus_file: Path, tmp_path: Path
) -> None:
    endless = tracer(make_model("llama"), corpus_file, tmp_path / "endless", documents=1, new_tokens=9)
    (_, first), *_ = rows_of(endless)
    ending = first["final"].tolist()
    place = ending.index(ending[4])
    folder = make_model("llama", eos_token_id=ending[4])
    traces = tracer(folder, corpus_file, tmp_path / "t", documents=1, new_tokens=9)
    (_, columns), *_ = rows_of(traces)
    assert columns["final"].tolist() == ending[: place + 1]


def test_contexts_follow_the_seed_and_leave_room_for_what_is_generated(
    tiny_llama: Path, documents: list[str], tmp_path: Path
) -> None:
    source = write_source(tmp_path / "rows.jsonl", *documents)

    def contexts(name: str, **changes: Any) -> dict[str, int]:
        traces = tracer(tiny_llama, source, tmp_path / name, documents=3, new_tokens=4, **changes)
        return {name: int(columns["position"][0]) + 1 for name, columns in rows_of(traces)}

    assert contexts("a", seed=1) != contexts("b", seed=2)
    traces = tracer(tiny_llama, source, tmp_path / "tight", documents=3, length=256, new_tokens=240)
    assert all(int(columns["position"][0]) + 1 == 16 for _, columns in rows_of(traces))


# ------------------------------------------------------------------------------------------ resume


class Notes(Silent):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, int, int]] = []

    def begin(self, what: str, total: int, done: int = 0) -> None:
        self.begun.append((what, total, done))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the sequences that the model was run on."""
    found: list[int] = []
    real = Engine.read

    def read(self: Engine, token_ids: Sequence[int], layers: Sequence[int]) -> list[Tensor]:
        found.append(len(token_ids))
        return real(self, token_ids, layers)

    monkeypatch.setattr(Engine, "read", read)
    return found


def assert_same(one: Traces, other: Traces) -> None:
    assert one.documents == other.documents
    for (_, left), (_, right) in zip(rows_of(one), rows_of(other), strict=True):
        for name, column in left.items():
            assert torch.equal(column, right[name]), name


def test_resume_traces_the_rest_alone_and_gives_the_same(
    tiny_llama: Path, corpus_file: Path, tmp_path: Path, reads: list[int]
) -> None:
    new_tokens = 5
    whole = tracer(tiny_llama, corpus_file, tmp_path / "whole", documents=6, new_tokens=new_tokens)
    reads.clear()
    tracer(tiny_llama, corpus_file, tmp_path / "t", documents=3, new_tokens=new_tokens)
    assert len(reads) == 3
    notes = Notes()
    resumed = tracer(
        tiny_llama, corpus_file, tmp_path / "t", documents=6, new_tokens=new_tokens, resume=True, progress=notes
    )
    assert len(reads) == 6
    assert notes.begun == [("tracing", 6, 3)]
    assert_same(resumed, whole)
    before = {path.name: path.read_bytes() for path in (tmp_path / "t").iterdir()}
    assert_same(tracer(tiny_llama, corpus_file, tmp_path / "t", documents=6, new_tokens=new_tokens, resume=True), whole)
    assert len(reads) == 6
    assert {path.name: path.read_bytes() for path in (tmp_path / "t").iterdir()} == before


def test_resume_with_a_second_source_of_equal_ids_traces_it(
    tiny_llama: Path, documents: list[str], tmp_path: Path, reads: list[int]
) -> None:
    """Both files are ``rows.jsonl`` with documents ``d0`` to ``d2``: only their texts tell them apart."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first = write_source(tmp_path / "a" / "rows.jsonl", *documents[:3])
    second = write_source(tmp_path / "b" / "rows.jsonl", *documents[3:6])
    whole = tracer(tiny_llama, first, tmp_path / "whole", sources=[str(first), str(second)])
    tracer(tiny_llama, first, tmp_path / "t")
    reads.clear()
    resumed = tracer(tiny_llama, first, tmp_path / "t", sources=[str(first), str(second)], resume=True)
    assert len(reads) == 3
    assert {facts["key"] for facts in resumed.documents} == set(map(document_key, documents[:6]))
    assert len({facts["id"] for facts in resumed.documents}) == 6
    assert_same(resumed, whole)


def test_an_interrupt_keeps_finished_shards_and_resume_finishes(
    cli: Callable[..., Any], tiny_llama: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_trace, "TraceWriter", partial(TraceWriter, shard_tokens=3 * (LENGTH - FIRST)))
    whole = tracer(tiny_llama, corpus_file, tmp_path / "whole", documents=8)
    command = ["trace", "--model", tiny_llama, "--task", "py150", "--source", corpus_file, "--documents", 8]
    command += ["--length", LENGTH, "--weights", "pretrained", "--device", "cpu", "--out", tmp_path / "t"]
    real, calls = Engine.read, iter(range(5))

    def interrupt(self: Engine, token_ids: Sequence[int], layers: Sequence[int]) -> list[Tensor]:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return real(self, token_ids, layers)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "read", interrupt)
        ran = cli(*command)
    assert ran.code == 130
    assert ran.out == ""
    assert "Go on with the same command and --resume." in " ".join(ran.err.split())
    assert "Traceback" not in ran.err
    kept = Traces.open(tmp_path / "t")
    assert len(kept.documents) == 3  # five were traced, three of them on disk
    assert kept.documents == whole.documents[:3]
    ran = cli(*command, "--resume")
    assert ran.code == 0, ran.err
    assert_same(Traces.open(tmp_path / "t"), whole)


# ----------------------------------------------------------------------------------- what is no use


def test_documents_too_short_to_say_anything_are_passed_over(
    tiny_llama: Path, documents: list[str], tmp_path: Path, naive: Callable[[Path], Naive]
) -> None:
    encode, text = naive(tiny_llama).tokenizer.encode, documents[0]
    shortest = next(text[:end] for end in range(len(text)) if len(encode(text[:end])) == FIRST + 2)
    source = write_source(tmp_path / "rows.jsonl", shortest, "x = 1", documents[1], "pass")
    traces = tracer(tiny_llama, source, tmp_path / "t", documents=0)
    assert sorted((name, len(columns["final"])) for name, columns in rows_of(traces))[0] == ("d0", 2)
    assert sorted(name for name, _ in rows_of(traces)) == ["d0", "d2"]
    again = tracer(tiny_llama, source, tmp_path / "t", documents=0, resume=True)
    assert again.documents == traces.documents
    short = write_source(tmp_path / "short.jsonl", "x = 1", "pass")
    with pytest.raises(DataError, match=r"not one document is longer than 9 tokens\. Give other data with --source"):
        tracer(tiny_llama, short, tmp_path / "none", documents=0)
    assert not (tmp_path / "none").exists()


def test_what_leaves_nothing_to_trace_is_refused_before_the_model_is_loaded(
    tiny_llama: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.models.model.ResolvedModel.load", lambda *_, **__: pytest.fail("loaded first"))
    for length, new_tokens, said in ((LENGTH, LENGTH, 60), (10_000, 256, 256)):  # the latter: the model's positions
        with pytest.raises(ConfigError, match=rf"^--new-tokens {new_tokens} leaves no room .* have {said} tokens\.$"):
            tracer(tiny_llama, corpus_file, tmp_path / "t", length=length, new_tokens=new_tokens)
    for content in ("", "{broken\n[1]\n"):
        (tmp_path / "rows.jsonl").write_text(content)
        with pytest.raises(DataError, match=r"^[^\n]*rows\.jsonl[^\n]*$"):
            tracer(tiny_llama, tmp_path / "rows.jsonl", tmp_path / "t")
    assert not (tmp_path / "t").exists()
