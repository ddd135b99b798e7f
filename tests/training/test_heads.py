"""Small heads: the fit learns what states say, labels by hand, and what is written a run finds and decodes with."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.config.rules import build_stop, start_stop
from harness.contracts import Cursor, ModelRequest, Strategy
from harness.contracts.recipes import Silent, TrainingRun
from harness.decoding.engine import Engine
from harness.errors import ArtefactError, TrainingError
from harness.models.artefacts import Artefact, read_artefact
from harness.models.controllers import OBSERVATIONS, Network, Observation, find_controller
from harness.models.model import ResolvedModel, resolve
from harness.training.heads import (
    CONTINUE,
    EXIT,
    STOP,
    Targets,
    actions_of,
    calibrated,
    fit,
    labels_of,
    logistic_regression,
    precise_threshold,
    shares_of,
)
from harness.training.recipes import (
    ActionHeads,
    CandidatePredictors,
    CertaintyHead,
    ConsistentHeads,
    ExcessHeads,
    HeadOptions,
    HeadRecipe,
    LikelihoodHeads,
    Shortcut,
    TokenTable,
)
from harness.training.traces.reading import held_out_rows
from harness.training.traces.store import Traces
from harness.training.traces.training_set import TrainingSet, replay_rows, score_all, threshold_keeping
from strategies.classifier import Classifier
from strategies.consistent import Consistent
from strategies.fixed import Fixed
from strategies.full import Full
from strategies.hash import Hash
from strategies.lte import LearnToExit
from strategies.predictor import Predictor
from strategies.sec import StopExit

TraceMaker = Callable[..., Traces]
Train = Callable[..., Artefact]

POINTS, LAYERS = (4, 6, 10), 12
RECIPES: dict[str, type[HeadOptions]] = {"classifier": LikelihoodHeads, "lte": CertaintyHead}

# ------------------------------------------------------------------------------------------------------ the fit

WIDTH, TOKENS = 12, 2000


def world(seed: int = 0) -> tuple[Tensor, Tensor]:
    """States whose first coordinate says, exit by exit, whether the answer is there."""
    chance = torch.Generator().manual_seed(seed)
    states = torch.randn(TOKENS, 3, WIDTH, generator=chance)
    signs = torch.tensor([1.0, -1.0, 1.0])  # another direction at every exit
    return states, states[:, :, 0] * signs > 0


def fitted(states: Tensor, right: Tensor, observation: Observation | None = None, seed: int = 0, **how: Any) -> Any:
    recipe = HeadRecipe(**{"hidden": 8, "epochs": 10, "learning_rate": 1e-2, "batch": 256, **how})
    return fit(
        states, observation or Observation(), Targets(right.float()), POINTS, recipe, seed=seed, progress=Silent()
    )


@pytest.mark.parametrize("hidden", [0, 16])
def test_heads_of_their_own_learn_each_exit(hidden: int) -> None:
    networks = fitted(*world(), hidden=hidden, epochs=30, learning_rate=2e-2)
    assert set(networks) == {"4", "6", "10"}
    unseen, truth = world(seed=1)
    scores = score_all(networks, Observation(), unseen, POINTS)
    assert ((scores > 0) == truth).float().mean() > 0.95
    strict, loose = replay_rows(scores.sigmoid(), truth, POINTS, LAYERS, [0.99, 0.5])
    assert strict["agreement"] >= loose["agreement"] > 0.9
    assert strict["exit_layer"] > loose["exit_layer"]


def test_one_head_for_all_needs_to_know_where_it_is() -> None:
    hits = {}
    for place in (False, True):
        observation = Observation(place=place)
        networks = fitted(*world(), observation, objective="certainty", shared=True, hidden=32, epochs=20)
        assert set(networks) == {"shared"}
        unseen, truth = world(seed=1)
        hits[place] = ((score_all(networks, observation, unseen, POINTS) > 0.5) == truth).float().mean().item()
    assert hits[True] > 0.93
    assert hits[False] < 0.8  # the sign differs between exits


def test_standardisation_is_folded_into_the_first_map() -> None:
    """A state far from zero and of any size gives the same decisions: nothing but the network is kept."""
    states, right = world()
    plain, moved = fitted(states, right), fitted(500 * states + 90, right)
    unseen, _ = world(seed=1)
    a = score_all(plain, Observation(), unseen, POINTS)
    b = score_all(moved, Observation(), 500 * unseen + 90, POINTS)
    assert torch.allclose(a, b, atol=0.05)


def test_a_loss_that_is_no_number_stops() -> None:
    states, right = world()
    states[5, 1, 3] = torch.inf
    with pytest.raises(TrainingError, match="nan"):
        fitted(states, right)


def test_the_threshold_is_the_least_that_is_precise() -> None:
    logits, ends = torch.tensor([0.1, 3.0, 2.0, -1.0]), torch.tensor([1.0, 1.0, 0.0, 1.0])
    # from the top: 1 of 1, 1 of 2, 2 of 3, 3 of 4 are ends
    assert [precise_threshold(logits, ends, precision) for precision in (1.0, 0.75)] == [3.0, -1.0]
    assert precise_threshold(logits, 0 * ends, 0.5) is None


def test_no_threshold_helps_where_the_surest_exit_is_wrong() -> None:
    scores, right = torch.tensor([[0.9, 0.1]]), torch.tensor([[False, False]])
    assert threshold_keeping(scores, right, (2, 5), 10, 1.0) is None


# ------------------------------------------------------------------------------------------- classifier and lte


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, corpus_file: Path) -> Path:
    """A source with fourteen Python documents and fourteen others that pass for Java."""
    made = tmp_path_factory.mktemp("source")
    rows = [json.loads(line) for line in corpus_file.read_text(encoding="utf-8").splitlines()]
    for name, part in (("python", rows[:14]), ("java", rows[14:28])):
        lines = (json.dumps({"id": row["id"], "code": f"# {name}\n{row['code']}"}) for row in part)
        (made / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def both(make_trace: TraceMaker, tiny_llama: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of both tasks."""
    out = tmp_path_factory.mktemp("traces") / "both"
    make_trace(tiny_llama, folder, out, "py150", "javacorpus")
    return out


def with_artefacts(model: Path, folder: Path) -> ResolvedModel:
    request = ModelRequest(str(model), weights="pretrained", artefacts=str(folder), exit_head="shared")
    return resolve(request)


@pytest.fixture
def train(tiny_llama: Path, both: Path, tmp_path: Path) -> Train:
    """``train(kind, **changes)``: ``harness train KIND`` on that trace as a function, into ``a``."""

    def run(kind: str = "classifier", *, traces: Path = both, **changes: Any) -> Artefact:
        options = RECIPES[kind](
            model=str(tiny_llama), traces=traces, out=tmp_path / "a", keep=0.9, hidden=8, epochs=3, learning_rate=1e-2
        ).model_copy(update=changes)
        options.train(TrainingRun(kind, "harness train"))
        return read_artefact(tmp_path / "a" / f"{options.name or kind}.json", kind)

    return run


@pytest.fixture
def resolved(tiny_llama: Path, tmp_path: Path) -> Callable[[], ResolvedModel]:
    return lambda: with_artefacts(tiny_llama, tmp_path / "a")


def replay(scores: Tensor, right: Tensor, threshold: float) -> tuple[float, float]:
    """Mean layer and agreement of *exit where score ≥ threshold*, token by token."""
    depth = agreed = 0
    for score, hit in zip(scores.tolist(), right.tolist(), strict=True):
        place = next((e for e, value in enumerate(score) if value >= threshold), None)
        depth += LAYERS if place is None else POINTS[place]
        agreed += True if place is None else hit[place]
    return depth / len(scores), agreed / len(scores)


@pytest.mark.parametrize(("kind", "observation"), [("classifier", "rich"), ("lte", "paper")])
def test_what_is_written_is_found_and_replayed_on_held_out_documents(
    train: Train, resolved: Callable[[], ResolvedModel], both: Path, kind: str, observation: str
) -> None:
    artefact = train(kind, observation=observation, seed=2)
    model = resolved()
    found = find_controller(kind, "", model.info)
    facts, traces = found.artefact.facts, Traces.open(both)
    assert found.artefact.sha256 == artefact.sha256
    assert found.observation == OBSERVATIONS[observation]
    assert found.exit_points == POINTS
    assert (facts["model_fingerprint"], facts["exit_head"]) == (model.info.fingerprint, "shared")
    assert facts["tokenizer_fingerprint"] == traces.index["tokenizer_fingerprint"]
    assert set(facts["documents"]) == {document["key"] for document in traces.documents}
    assert model.seen.documents == set(facts["documents"])  # no run draws what it has learned from
    columns, ngrams = traces.columns("hidden", "top", "final", "document", "input"), model.seen.ngrams()
    assert ngrams is not None
    for number in range(len(traces.documents)):
        assert ngrams.has_run_of(columns["input"][columns["document"] == number].tolist()[:20])
    held = held_out_rows(traces, columns["document"], seed=2)
    tensors = artefact.tensors()
    x = OBSERVATIONS[observation].build_all(columns["hidden"][held].float())
    scores = torch.cat(
        [
            Network.of(tensors, "shared" if kind == "lte" else str(point), artefact.facts["activation"])(x[:, e])
            for e, point in enumerate(POINTS)
        ],
        dim=1,
    )
    scores = scores.sigmoid() if kind == "classifier" else scores
    right = columns["top"][held] == columns["final"][held].unsqueeze(1)

    told = artefact.facts["replayed"]
    rows, kept, tokens = told["rows"], told["kept"], told["held_out_tokens"]
    assert len(rows) > 10
    assert tokens == int(held.sum())
    assert 0 < tokens < traces.tokens / 4
    assert facts["trained_on"]["tokens"] == traces.tokens - tokens
    for row in rows:
        layer, agreement = replay(scores, right, row["threshold"])
        # a score that is its threshold but for the last bit may fall on either side
        assert row["exit_layer"] == pytest.approx(layer, abs=LAYERS / tokens)
        assert row["agreement"] == pytest.approx(agreement, abs=1.5 / tokens)
    assert len({row["exit_layer"] for row in rows}) > 3

    assert kept["agreement"] >= 0.9
    assert artefact.facts["threshold"] == kept["threshold"]
    looser = [row for row in rows if row["threshold"] < kept["threshold"] - 1e-3]
    assert looser
    assert min(row["agreement"] for row in looser) < 0.9


def test_with_a_task_it_learns_from_that_one_alone(
    train: Train, make_trace: TraceMaker, tiny_llama: Path, folder: Path, both: Path, tmp_path: Path
) -> None:
    """As from a trace that holds nothing else."""
    alone = tmp_path / "python"
    make_trace(tiny_llama, folder, alone, "py150")
    filtered, whole = train(tasks=["py150"]), train(traces=alone)
    assert filtered.sha256 == whole.sha256
    assert filtered.facts["replayed"] == whole.facts["replayed"]
    traces = Traces.open(both)
    keys = {document["key"] for document in traces.documents if document["stream"] == "py150, path: python.jsonl"}
    assert len(keys) == 14
    assert set(filtered.facts["documents"]) == keys
    assert filtered.facts["trained_on"]["streams"] == ["py150, path: python.jsonl"]
    everything = train(tasks=["py150", "javacorpus"])
    assert everything.sha256 == train().sha256 != filtered.sha256  # the seed decides everything
    assert train(seed=1).sha256 != everything.sha256
    with pytest.raises(ArtefactError, match=r"has no document of rust; it has javacorpus, path: java\.jsonl; py150,"):
        train(tasks=["rust"])


def test_weights_that_the_last_step_blew_up_are_refused(train: Train, tmp_path: Path) -> None:
    """One step: its loss was a number, and no further one is looked at."""
    with pytest.raises(TrainingError) as refusal:
        train(epochs=1, batch=10**6, learning_rate=math.inf)
    assert str(refusal.value) == "training left weights that are no numbers. Lower --learning-rate."
    assert not (tmp_path / "a").exists()


def test_what_looks_at_exit_states_learns_behind_the_maps(
    train: Train, make_trace: TraceMaker, tiny_llama: Path, folder: Path, both: Path, tmp_path: Path
) -> None:
    """The heads know the exit head they were trained with, and find it again in decoding alone."""
    Shortcut(model=str(tiny_llama), traces=both, out=tmp_path / "a").train(TrainingRun("shortcut", "x"))
    where = str(tmp_path / "a")
    traces = make_trace(
        tiny_llama, folder, tmp_path / "mapped", "py150", "javacorpus", exit_head="shortcut", artefacts=where
    )
    mapped = train(observation="exit", traces=tmp_path / "mapped", artefacts=where)
    plain = train(observation="rich", traces=tmp_path / "mapped", artefacts=where, name="plain")
    assert mapped.facts["exit_head"] == traces.index["exit_head"] != "shared"
    assert mapped.sha256 != plain.sha256
    settings: dict[str, Any] = {"weights": "pretrained", "dtype": "float32", "exit_points": "paper", "artefacts": where}
    info = resolve(ModelRequest(str(tiny_llama), exit_head="shortcut", **settings)).info
    assert find_controller("classifier", "", info).artefact.sha256 == mapped.sha256
    with pytest.raises(ArtefactError, match=r"was trained with exit head shortcut:.* runs with shared"):
        find_controller("classifier", "", resolve(ModelRequest(str(tiny_llama), exit_head="shared", **settings)).info)


# ------------------------------------------------------------------------------- sec, consistent and predictor


def test_labels_are_what_would_be_right() -> None:
    top = torch.tensor([[5, 1, 5], [1, 1, 1], [2, 1, 1], [3, 5, 1]])
    final, truth = torch.tensor([5, 5, 1, 1]), torch.full((4,), 5)
    assert actions_of(top, final, truth).tolist() == [
        [EXIT, CONTINUE, EXIT],  # the exit between is followed by one that is right
        [CONTINUE] * 3,  # the last layer is
        [STOP] * 3,
        [CONTINUE, EXIT, STOP],  # nobody behind the third is
    ]


def trained(
    recipe: str, of: type[Any], model: Path, trace: Path, out: Path, strategies: Sequence[Strategy], **options: Any
) -> list[list[int]]:
    """Train, and return the exit layers of some strategies on a prompt."""
    said = of(model=str(model), traces=trace, out=out, **options).train(TrainingRun(recipe, ""))
    assert "| threshold (replayed) | mean exit layer | agreement |" in said.report
    resolved = with_artefacts(model, out)
    engine = Engine(resolved.load("cpu").backbone, resolved.info)
    found = []
    for strategy in strategies:
        assert strategy.exit_points(resolved.info) == POINTS
        assert recipe in strategy.artefacts(resolved.info)
        (made,) = engine.decode([[5, 6, 7]], strategy, kv="recompute", max_new_tokens=[8])
        assert made.failure is None
        found.append(made.exit_layers)
    return found


NEVER, AT_ONCE = [LAYERS] * 8, [LAYERS] + [4] * 7


@pytest.mark.parametrize(
    ("recipe", "of", "options", "strategies", "expected"),
    [
        (
            "classifier", LikelihoodHeads, {}, [Classifier(1.0), Classifier(0.0), Classifier()], [NEVER, AT_ONCE],
        ),
        ("lte", CertaintyHead, {}, [LearnToExit(2.0), LearnToExit()], [NEVER]),
        (
            "sec", ActionHeads, {"precision": 0.2}, [StopExit(1.0, 1.0), StopExit(1.0, 0.0), StopExit()],
            [NEVER, [LAYERS]],  # the prompt's own token, and no other
        ),
        (
            "consistent", ConsistentHeads, {"saving": 0.5}, [Consistent(1.0), Consistent(0.0), Consistent()],
            [NEVER, AT_ONCE],
        ),
        (
            "predictor", CandidatePredictors, {"head": "full", "candidates": 4},
            [Predictor(1.0, "full"), Predictor(0.0, "full"), Predictor(None, "full")],
            [NEVER, AT_ONCE],  # the best token of the first exit is always a candidate
        ),
    ],
    ids=["classifier", "lte", "sec", "consistent", "predictor"],
)  # fmt: skip
def test_heads_are_trained_and_run(
    tiny_llama: Path, small_trace: Path, tmp_path: Path, recipe: str, of: type[Any], options: dict[str, Any],
    strategies: Sequence[Strategy], expected: list[list[int]],
) -> None:  # fmt: skip
    found = trained(recipe, of, tiny_llama, small_trace, tmp_path, strategies, hidden=4, epochs=2, **options)
    assert found[: len(expected)] == expected


# --------------------------------------------------------------------------------------------------------- hash


def test_shares_are_counted_by_the_token_that_was_read() -> None:
    read = torch.tensor([5, 2, 5, 5, 2, 9])
    right = torch.tensor([[1, 1], [0, 1], [1, 0], [0, 1], [0, 1], [1, 1]]).bool()
    token_ids, shares = shares_of(read, right, 2)
    assert token_ids.tolist() == [2, 5]  # 9 was read once
    assert shares.flatten().tolist() == pytest.approx([0, 2 / 3, 2 / 4, 2 / 4])
    assert shares_of(read, right, 1)[1][2].tolist() == [0.5, 0.5]  # once, and counted as twice
    assert shares_of(read, right, 4)[0].tolist() == []


def test_a_table_is_trained_on_a_trace_and_run(tiny_llama: Path, small_trace: Path, tmp_path: Path) -> None:
    options = TokenTable(model=str(tiny_llama), traces=small_trace, out=tmp_path / "a", least=2, keep=0.5)
    said = options.train(TrainingRun("hash", "harness train hash"))
    again = options.train(TrainingRun("hash", "harness train hash"))
    assert again == said, "what is of the same model is replaced"
    facts = read_artefact(tmp_path / "a" / "hash.json", "hash").facts
    assert facts["recipe"] == {"least": 2}
    assert facts["documents"]
    resolved = with_artefacts(tiny_llama, tmp_path / "a")
    engine = Engine(resolved.load("cpu").backbone, resolved.info)
    data = TrainingSet.open(options, TrainingRun("hash", ""))
    learned = set(data.traces.columns("input")["input"][data.learned].tolist())
    made = [engine.decode([[5, 6, 7]], Hash(threshold=t), kv="recompute", max_new_tokens=[12])[0] for t in (0.0, 1.0)]
    assert set(made[1].exit_layers) == {12}
    for token, layer in zip(made[0].token_ids, made[0].exit_layers[1:], strict=False):
        assert layer == 4 if token in learned else layer == 12


# ------------------------------------------------------------------------------------------------------- excess


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
    ((weight, bias),) = logistic_regression(x, labels, 0.01).layers
    error = (x @ weight.T + bias).squeeze(1).sigmoid() - labels
    assert (x.T @ error / 200 + 0.02 * weight[0]).abs().max() < 1e-3
    assert error.mean().abs() < 1e-3


@pytest.fixture(scope="module")
def functions(make_trace: TraceMaker, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of documents full of short functions."""
    made = tmp_path_factory.mktemp("functions")
    names = ["add", "take", "open", "read", "load", "keep", "drop", "find", "walk", "wait", "call", "send"]
    lines = []
    for number, name in enumerate(names):
        body = "".join(f"def {name}_{n}(x):\n    y = x + {n}\n    return y * {number}\n\n" for n in range(9))
        lines.append(json.dumps({"id": name, "code": body}))
    (made / "code.jsonl").write_text("\n".join(lines), encoding="utf-8")
    make_trace(tiny_llama, made / "code.jsonl", made / "t", documents=12, length=160)
    return made / "t"


def test_heads_are_trained_and_end_completions(tiny_llama: Path, functions: Path, tmp_path: Path) -> None:
    options = ExcessHeads(model=str(tiny_llama), traces=functions, out=tmp_path, precision=0.2)
    said = options.train(TrainingRun("excess", "harness train excess"))
    assert "| layers | ends found | stops that are ends |" in said.report
    facts = json.loads((tmp_path / "excess.json").read_text())
    assert [row["layer"] for row in facts["replayed"]["rows"]] == [4, 6, 10, 12]
    assert facts["trained_on"]["ends"] >= 8

    resolved = with_artefacts(tiny_llama, tmp_path)
    engine, info = Engine(resolved.load("cpu").backbone, resolved.info), resolved.info
    for written, tokens in (("excess:threshold=0", 2), ("excess:threshold=1", 6)):
        stop = build_stop(written)
        assert stop is not None
        stop.rule.check(info, "")
        assert set(stop.rule.artefacts(info)) == {"excess", "excess.json"}
        for strategy in (Full(), Fixed(layer=4)):
            rule = start_stop(stop, Cursor([5, 6, 7], resolved.tokenizer, "", info))
            (made,) = engine.decode([[5, 6, 7]], strategy, kv="recompute", max_new_tokens=[6], rules=[rule])
            assert (len(made.token_ids), made.stopped_by) == (tokens, "excess" if tokens == 2 else "")


def test_too_few_functions_are_refused(tiny_llama: Path, small_trace: Path, tmp_path: Path) -> None:
    options = ExcessHeads(model=str(tiny_llama), traces=small_trace, out=tmp_path)
    with pytest.raises(TrainingError, match=r"ends of functions .*Trace more --documents"):
        options.train(TrainingRun("excess", "harness train excess"))
