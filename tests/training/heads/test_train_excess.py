"""``harness train excess``: labels by hand from the syntax of documents, thresholds, and heads that a run finds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config.stops import build_stop
from harness.contracts import Cursor, ModelRequest
from harness.contracts.recipes import TrainingRun
from harness.decoding.engine import Engine
from harness.errors import ArtefactError, TrainingError
from harness.models.controllers import Network
from harness.models.model import resolve
from harness.training.heads.train_excess import calibrated, fit, labels_of, precise_threshold
from harness.training.recipes import ExcessHeads
from strategies.fixed import Fixed
from strategies.full import Full


class Words:
    """A tokenizer whose tokens are pieces of a text, in order."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self.pieces[token] for token in token_ids)


def labelled(language: str, *pieces: str) -> str:
    words: Any = Words(*pieces)
    found = labels_of(range(len(pieces)), words, language)
    return "".join("-" if isnan(one) else str(int(one)) for one in found)


def test_a_function_ends_with_its_last_token_and_the_white_space_behind_it() -> None:
    assert labelled("python", "import a\n", "def f(x):", "\n    return", " x", "\n", "\n", "y", " = 1\n") == "-00111--"
    # The innermost function counts; the outer one goes on until it ends.
    pieces = ("def f():\n", "    def g():\n", "        pass", "\n", "    y = 1", "\n", "    return g", "\n")
    assert labelled("python", *pieces) == "00110011"
    assert labelled("java", "class A {", " void f() {", " g(); ", "}", "\n", " int", " x; }") == "-0011--"
    assert labelled("cobol", "a", "b") == "--"


def test_the_threshold_is_the_least_that_is_precise() -> None:
    logits, labels = torch.tensor([0.1, 3.0, 2.0, -1.0]), torch.tensor([1.0, 1.0, 0.0, 1.0])
    # From the top: 1 of 1, 1 of 2, 2 of 3, 3 of 4 are ends.
    assert precise_threshold(logits, labels, 1.0) == 3.0
    assert precise_threshold(logits, labels, 0.7) == -1.0
    assert precise_threshold(logits, 0 * labels, 0.5) is None


def test_a_head_is_shifted_to_stop_from_one_half_on() -> None:
    head = Network(((torch.ones(1, 1), torch.zeros(1)),))
    x, labels = torch.tensor([[0.1], [3.0], [2.0], [-1.0]]), torch.tensor([1.0, 1.0, 0.0, 1.0])
    shifted, facts = calibrated(head, x[:, 0], labels, 1.0)
    assert (shifted(x)[:, 0].sigmoid() >= 0.5).tolist() == [False, True, False, False]
    assert facts == {"found": 1 / 3, "precision": 1.0}
    never, facts = calibrated(head, x[:, 0], 0 * labels + torch.tensor([0, 0, 0, 1.0]), 0.9)
    assert (never(x).sigmoid() < 1e-9).all()
    assert facts == {"found": 0.0, "precision": None}


def test_a_fit_has_no_gradient_left() -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(200, 3), (torch.rand(200) < 0.3).float()
    ((weight, bias),) = fit(x, labels, 0.01).layers
    error = (x @ weight.T + bias).squeeze(1).sigmoid() - labels
    assert (x.T @ error / 200 + 0.02 * weight[0]).abs().max() < 1e-3
    assert error.mean().abs() < 1e-3


def test_heads_are_trained_and_end_completions(tiny_llama: Path, functions: Path, tmp_path: Path) -> None:
    options = ExcessHeads(model=str(tiny_llama), traces=functions, out=tmp_path, precision=0.2)
    said = options.train(TrainingRun("excess", "harness train excess"))
    assert "| layers | ends found | stops that are ends |" in said.report
    facts = json.loads((tmp_path / "excess.json").read_text())
    assert [row["layer"] for row in facts["replayed"]["rows"]] == [4, 6, 10, 12]
    assert facts["trained_on"]["ends"] >= 8

    resolved = resolve(ModelRequest(str(tiny_llama), weights="pretrained", artefacts=str(tmp_path), exit_head="shared"))
    engine, info = Engine(resolved.load("cpu").backbone, resolved.info), resolved.info
    for written, tokens in (("excess:threshold=0", 2), ("excess:threshold=1", 6)):
        stop = build_stop(written)
        assert stop is not None
        stop.check(info, "")
        assert set(stop.rule.artefacts(info)) == {"excess"}
        for strategy in (Full(), Fixed(layer=4)):
            rule = stop.start(Cursor([5, 6, 7], resolved.tokenizer, "", info))
            (made,) = engine.decode([[5, 6, 7]], strategy, kv="recompute", max_new_tokens=[6], rules=[rule])
            assert (len(made.token_ids), made.stopped_by) == (tokens, "excess" if tokens == 2 else "")


def test_too_few_functions_are_refused(tiny_llama: Path, small_trace: Path, tmp_path: Path) -> None:
    options = ExcessHeads(model=str(tiny_llama), traces=small_trace, out=tmp_path)
    with pytest.raises(TrainingError, match=r"ends of functions .*Trace more --documents"):
        options.train(TrainingRun("excess", "harness train excess"))


def test_untrained_heads_name_the_recipe(tiny_llama: Path, tmp_path: Path) -> None:
    info = resolve(ModelRequest(str(tiny_llama), weights="pretrained", artefacts=str(tmp_path))).info
    stop = build_stop("excess")
    assert stop is not None
    with pytest.raises(ArtefactError, match="harness train excess"):
        stop.check(info, "python")


@pytest.fixture(scope="module")
def functions(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of documents full of short functions."""
    from harness.contracts.recipes import Silent
    from harness.training.options import TraceRequest
    from harness.training.traces.record_trace import trace

    made = tmp_path_factory.mktemp("functions")
    names = ["add", "take", "open", "read", "load", "keep", "drop", "find", "walk", "wait", "call", "send"]
    lines = []
    for number, name in enumerate(names):
        body = "".join(f"def {name}_{n}(x):\n    y = x + {n}\n    return y * {number}\n\n" for n in range(9))
        lines.append(json.dumps({"id": name, "code": body}))
    (made / "code.jsonl").write_text("\n".join(lines), encoding="utf-8")
    trace(
        str(tiny_llama), ["py150"], [str(made / "code.jsonl")], made / "t", TraceRequest(documents=12, length=160),
        weights="pretrained", exit_points="paper", dtype="float32", device="cpu", resume=False, progress=Silent(),
        exit_head="shared", artefacts=None,
    )  # fmt: skip
    return made / "t"
