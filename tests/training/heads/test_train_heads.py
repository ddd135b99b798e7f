"""``harness train classifier`` and ``lte``: from a small real trace to heads that a run finds and decodes with."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.config import parse_strategies
from harness.config.options import build_strategy
from harness.contracts import ModelRequest
from harness.contracts.recipes import Silent, TrainingRun
from harness.decoding.engine import Engine
from harness.errors import ArtefactError, DataError, TrainingError
from harness.models.artefacts import read_artefact
from harness.models.controllers import OBSERVATIONS, Network, find_controller
from harness.models.model import ResolvedModel, resolve
from harness.training.heads import learning
from harness.training.heads.learning import NEVER, train_on_trace
from harness.training.options import HeadOptions, TraceRequest
from harness.training.recipes import CertaintyHead, LikelihoodHeads, Shortcut
from harness.training.traces.reading import held_out_rows
from harness.training.traces.record_trace import trace
from harness.training.traces.store import Traces
from harness.training.traces.training_set import ReplayRow, SavedController
from tests.run_files import write_index

Train = Callable[..., SavedController]

POINTS, LAYERS = (4, 6, 10), 12
RECIPES: dict[str, type[HeadOptions]] = {"classifier": LikelihoodHeads, "lte": CertaintyHead}


def make_trace(model: Path, source: Path, out: Path, *tasks: str, documents: int = 14, **changes: Any) -> Traces:
    settings: dict[str, Any] = {"exit_head": "shared", "artefacts": None} | changes
    return trace(
        str(model), tasks or ["py150"], [str(source)], out, TraceRequest(documents=documents, length=72),
        weights="pretrained", exit_points="paper", dtype="float32", device="cpu", resume=False, progress=Silent(),
        **settings,
    )  # fmt: skip


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
def both(tiny_llama: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of both tasks."""
    out = tmp_path_factory.mktemp("traces") / "both"
    make_trace(tiny_llama, folder, out, "py150", "javacorpus")
    return out


@pytest.fixture
def train(tiny_llama: Path, both: Path, tmp_path: Path) -> Train:
    """``train(kind, **changes)``: ``harness train KIND`` on that trace as a function, into ``a``."""

    def run(
        kind: str = "classifier", *, observation: str = "rich", folder: Path = both, **changes: Any
    ) -> SavedController:
        options = RECIPES[kind](
            model=str(tiny_llama), traces=folder, out=tmp_path / "a", observation=observation, keep=0.9, hidden=8,
            epochs=3, learning_rate=1e-2,
        )  # fmt: skip
        made = train_on_trace(options.model_copy(update=changes), TrainingRun(kind, "harness train"))
        assert made is not None
        return made

    return run


@pytest.fixture
def resolved(tiny_llama: Path, tmp_path: Path) -> Callable[[], ResolvedModel]:
    return lambda: resolve(
        ModelRequest(str(tiny_llama), weights="pretrained", artefacts=str(tmp_path / "a"), exit_head="shared")
    )


# ----------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("observation", list(OBSERVATIONS))
@pytest.mark.parametrize("kind", RECIPES)
def test_what_is_written_is_found_for_the_model(
    train: Train, resolved: Callable[[], ResolvedModel], both: Path, kind: str, observation: str
) -> None:
    made = train(kind, observation=observation)
    info = resolved().info
    found = find_controller(kind, "", info)
    facts, traces = found.artefact.facts, Traces.open(both)
    assert found.artefact.sha256 == made.artefact.sha256
    assert found.observation == OBSERVATIONS[observation]
    assert found.exit_points == POINTS
    assert (facts["model_fingerprint"], facts["exit_head"]) == (info.fingerprint, "shared")
    assert facts["tokenizer_fingerprint"] == traces.index["tokenizer_fingerprint"]
    assert set(facts["documents"]) == {document["key"] for document in traces.documents}
    assert facts["trained_on"]["tokens"] == traces.tokens - made.tokens
    assert 0 < made.tokens < traces.tokens / 4
    assert resolved().seen.documents == set(facts["documents"])  # no run draws what it has learned from
    ngrams, inputs = resolved().seen.ngrams(), traces.columns("input", "document")
    assert ngrams is not None
    for number in range(len(traces.documents)):
        assert ngrams.has_run_of(inputs["input"][inputs["document"] == number].tolist()[:20])
    names = {name.partition(".")[0] for name in found.artefact.tensors()}
    assert names == ({"shared"} if kind == "lte" else {"4", "6", "10"})


@pytest.mark.parametrize("kind", RECIPES)
def test_it_decodes(train: Train, resolved: Callable[[], ResolvedModel], kind: str) -> None:
    """Deeper the stricter, the last layer where no score is enough, and the written threshold by default."""
    own = train(kind).artefact.facts["threshold"]
    model = resolved()
    engine = Engine(model.load("cpu").backbone, model.info)

    def layers(threshold: float | None) -> list[int]:
        option = "" if threshold is None else f":threshold={threshold!r}"
        (made,) = engine.decode(
            [list(range(5, 30))], build_strategy(*parse_strategies(kind + option)), kv="propagate",
            max_new_tokens=[12],
        )  # fmt: skip
        return made.exit_layers[1:]

    assert set(layers(2.0 if kind == "lte" else 1.0)) == {LAYERS}
    assert set(layers(0.0)) <= {*POINTS, LAYERS}
    assert layers(None) == layers(own)
    if kind == "classifier":
        assert set(layers(0.0)) == {POINTS[0]}


def test_a_run_decodes_with_what_the_command_wrote(
    cli: Callable[..., Any], tiny_run: Callable[..., Any], tiny_llama: Path, both: Path, tmp_path: Path
) -> None:
    ran = cli(
        *("train", "classifier", "--model", tiny_llama, "--traces", both, "--out", "made", "--hidden", 8),
        *("--epochs", 2, "--keep", 0.5, "--name", "classifier-small"),
    )
    assert ran.code == 0, ran.err
    assert ran.out.startswith("| threshold (replayed) | mean exit layer | agreement |")
    facts = read_artefact(tmp_path / "made" / "classifier-small.json", "classifier").facts
    assert f"from threshold {facts['threshold']:.4f} on" in ran.err
    assert facts["made"]["command"].startswith("harness train classifier --model")
    assert facts["recipe"]["hidden"] == 8
    run = tiny_run(
        "--strategy", "classifier:heads=classifier-small,threshold=0.2", "--artefacts", "made", "--out", "run"
    )
    assert run.code == 0, run.err
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    (point,) = [point for point in manifest["operating_points"] if point["strategy"] == "classifier"]
    digest = json.loads((tmp_path / "made" / "classifier-small.json").read_text())["sha256"]
    assert point["artefacts"] == {"classifier": digest}


# ------------------------------------------------------------------------------------ the replayed rows


def replay(scores: Tensor, right: Tensor, threshold: float) -> tuple[float, float]:
    """Mean layer and agreement of *exit where score ≥ threshold*, token by token."""
    depth = agreed = 0
    for score, hit in zip(scores.tolist(), right.tolist(), strict=True):
        place = next((e for e, value in enumerate(score) if value >= threshold), None)
        depth += LAYERS if place is None else POINTS[place]
        agreed += True if place is None else hit[place]
    return depth / len(scores), agreed / len(scores)


@pytest.mark.parametrize(("kind", "observation"), [("classifier", "rich"), ("classifier", "paper"), ("lte", "rich")])
def test_replayed_rows_are_of_the_written_network_on_held_out_documents(
    train: Train, both: Path, kind: str, observation: str
) -> None:
    made = train(kind, observation=observation, seed=2)
    artefact = read_artefact(made.artefact.path, kind)
    traces = Traces.open(both)
    columns = traces.columns("hidden", "top", "final", "document")
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

    rows: Sequence[ReplayRow] = artefact.facts["replayed"]["rows"]
    assert tuple(rows) == made.rows
    assert len(rows) > 10
    assert artefact.facts["replayed"]["held_out_tokens"] == made.tokens == int(held.sum())
    for row in rows:
        layer, agreement = replay(scores, right, row["threshold"])
        # a score that is its threshold but for the last bit may fall on either side
        assert row["exit_layer"] == pytest.approx(layer, abs=LAYERS / made.tokens)
        assert row["agreement"] == pytest.approx(agreement, abs=1.5 / made.tokens)
    assert len({row["exit_layer"] for row in rows}) > 3

    kept = made.kept
    assert kept is not None
    assert kept["agreement"] >= 0.9
    assert artefact.facts["threshold"] == kept["threshold"]
    looser = [row for row in rows if row["threshold"] < kept["threshold"] - 1e-3]
    assert looser
    assert min(row["agreement"] for row in looser) < 0.9


@pytest.mark.parametrize("kind", RECIPES)
def test_where_no_threshold_keeps_enough_it_never_exits(
    train: Train, resolved: Callable[[], ResolvedModel], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.training.traces.training_set.threshold_keeping", lambda *_: None)
    made = train(kind)
    assert made.kept is None
    assert made.artefact.facts["threshold"] == NEVER[made.artefact.facts["recipe"]["objective"]]
    model = resolved()
    engine = Engine(model.load("cpu").backbone, model.info)
    strategy = build_strategy(*parse_strategies(kind))
    (decoded,) = engine.decode([list(range(5, 20))], strategy, kv="propagate", max_new_tokens=[8])
    assert set(decoded.exit_layers) == {LAYERS}


# ------------------------------------------------------------------------------------------- seeds


def test_the_seed_decides_everything(train: Train) -> None:
    first, again, other = (train(seed=seed).artefact for seed in (0, 0, 1))
    assert first.sha256 == again.sha256
    assert first.sha256 != other.sha256


# ------------------------------------------------------------------------------------------- tasks


def test_with_a_task_it_learns_from_that_one_alone(
    train: Train, tiny_llama: Path, folder: Path, both: Path, tmp_path: Path
) -> None:
    """As from a trace that holds nothing else."""
    alone = tmp_path / "python"
    make_trace(tiny_llama, folder, alone, "py150")
    filtered, whole = train(tasks=["py150"]), train(folder=alone)
    assert filtered.artefact.sha256 == whole.artefact.sha256
    assert (filtered.rows, filtered.kept, filtered.tokens) == (whole.rows, whole.kept, whole.tokens)
    traces = Traces.open(both)
    keys = {document["key"] for document in traces.documents if document["stream"] == "py150, path: python.jsonl"}
    assert len(keys) == 14
    assert set(filtered.artefact.facts["documents"]) == keys
    assert filtered.artefact.facts["trained_on"]["streams"] == ["py150, path: python.jsonl"]
    everything = train(tasks=["py150", "javacorpus"])
    assert everything.artefact.sha256 == train().artefact.sha256 != filtered.artefact.sha256


def test_a_task_the_trace_has_not_is_refused_naming_what_there_is(train: Train, both: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError) as refusal:
        train(tasks=["py15", "rust"])
    assert str(refusal.value) == (
        f"the trace {both} has no document of py15, rust; it has javacorpus, path: java.jsonl; "
        "py150, path: python.jsonl."
    )
    assert not (tmp_path / "a").exists()


def test_a_stream_of_one_document_is_no_obstacle_to_another_task(train: Train, both: Path, tmp_path: Path) -> None:
    lonely = Path(shutil.copytree(both, tmp_path / "lonely"))
    index = json.loads((lonely / "index.json").read_text())
    assert index["documents"][-1]["stream"] == "javacorpus, path: java.jsonl"
    index["documents"][-1]["stream"] = "rust, path: rust.jsonl"
    write_index(lonely, index)
    assert train(tasks=["py150"], folder=lonely).artefact.sha256 == train(tasks=["py150"]).artefact.sha256
    for tasks in ([], ["rust"], ["py150", "rust"]):
        with pytest.raises(DataError, match="one document of rust"):
            train(tasks=tasks, folder=lonely)


def test_a_copy_of_what_is_held_out_is_not_learned_from(train: Train, both: Path, tmp_path: Path) -> None:
    """Every Java document passes for a copy of a Python one: with that one it is held out."""
    copies = Path(shutil.copytree(both, tmp_path / "copies"))
    index = json.loads((copies / "index.json").read_text())
    documents = index["documents"]
    for document, original in zip(documents[14:], documents[:14], strict=True):
        document["key"] = original["key"]
    write_index(copies, index)
    traces = Traces.open(copies)
    number = traces.columns("document")["document"]
    held = set(number[held_out_rows(traces, number, seed=0)].tolist())
    assert held == {place + other for place in {each % 14 for each in held} for other in (0, 14)}
    made = train(folder=copies, epochs=2)
    assert made.tokens == sum(documents[each]["tokens"] for each in held)
    assert made.artefact.facts["trained_on"]["tokens"] == traces.tokens - made.tokens


def test_a_stream_of_one_document_is_refused(train: Train, tiny_llama: Path, folder: Path, tmp_path: Path) -> None:
    make_trace(tiny_llama, folder, tmp_path / "one", documents=1)
    with pytest.raises(DataError, match="one document of py150, path: python"):
        train(folder=tmp_path / "one")
    assert not (tmp_path / "a").exists()


# ---------------------------------------------------------------------------------------- divergence


@pytest.mark.parametrize("kind", RECIPES)
def test_weights_that_the_last_step_blew_up_are_refused(train: Train, tmp_path: Path, kind: str) -> None:
    """One step: its loss was a number, and no further one is looked at."""
    with pytest.raises(TrainingError) as refusal:
        train(kind, epochs=1, batch=10**6, learning_rate=math.inf)
    assert str(refusal.value) == "training left weights that are no numbers. Lower --learning-rate."
    assert not (tmp_path / "a").exists()


# -------------------------------------------------------------------------------------- checkpoints


@pytest.fixture
def command(cli: Callable[..., Any], tiny_llama: Path, both: Path) -> Callable[..., Any]:
    """``command(kind, *arguments)``: ``harness train KIND`` on that trace, 3 epochs, into ``a``; later ones win."""

    def run(kind: str, *arguments: object) -> Any:
        given = ("train", kind, "--model", tiny_llama, "--traces", both, "--out", "a", "--hidden", 8, "--epochs", 3)
        return cli(*given, *arguments)

    return run


def interrupt(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any], step: int = 6) -> Any:
    """Run with a Ctrl-C in this step."""
    loss, calls = learning._loss, iter(range(step - 1))

    def press(*arguments: Any) -> Tensor:
        if next(calls, None) is None:
            signal.raise_signal(signal.SIGINT)
        return loss(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(learning, "_loss", press)
        return run()


@pytest.mark.parametrize("kind", RECIPES)
def test_ctrl_c_keeps_a_checkpoint_and_resume_gives_the_same_heads(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    ran = interrupt(monkeypatch, lambda: command(kind))
    assert ran.code == 130
    assert ran.out == ""
    assert "Stopped; the checkpoint is kept. Go on with the same command and --resume. (a)" in " ".join(ran.err.split())
    kept = tmp_path / "a" / "checkpoints" / f"heads-{kind}" / "step-000000006"
    assert sorted(path for path in (tmp_path / "a").rglob("*") if path.is_file()) == [
        kept.with_suffix(".json"), kept.with_suffix(".safetensors")
    ]  # fmt: skip
    begun = json.loads(kept.with_suffix(".json").read_text())
    assert begun["steps"] == 6
    assert command(kind, "--name", "other", "--seed", 1).code == 0  # into the same folder, and disturbs nothing
    resumed = command(kind, "--resume", "--keep", 0.5)  # which threshold is suggested is no part of training
    assert resumed.code == 0, resumed.err
    whole = command(kind, "--out", "whole", "--keep", 0.5)
    assert resumed.out == whole.out
    ours, theirs = (json.loads((tmp_path / each / f"{kind}.json").read_text()) for each in ("a", "whole"))
    del ours["made"], theirs["made"]
    assert ours == theirs  # sha256 of the tensors included


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--hidden", 9), "hidden 8, now it is 9"),
        (("--epochs", 4), "epochs 3, now it is 4"),
        (("--learning-rate", 0.5), "learning rate 0.001, now it is 0.5"),
        (("--observation", "paper"), "observation {'state': 'hidden', 'normalise': True,"),
        (("--seed", 1), "seed 0, now it is 1"),
        (
            ("--task", "py150"),
            "streams ['javacorpus, path: java.jsonl', 'py150, path: python.jsonl'], now it is ['py150",
        ),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], said: str
) -> None:
    interrupt(monkeypatch, lambda: command("classifier"))
    monkeypatch.setattr(
        "harness.training.traces.training_set.exit_states", lambda *_: pytest.fail("the states were read first")
    )
    line = command("classifier", "--resume", *arguments).error
    assert f"a/checkpoints/heads-classifier/step-000000006.json was trained with {said}" in line
    assert line.endswith("Omit --resume to begin anew.")


def test_a_checkpoint_of_another_trace_is_refused(
    command: Callable[..., Any], both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moved, it is the same trace; with one token's exits changed it is another."""
    interrupt(monkeypatch, lambda: command("classifier"))
    other = Path(shutil.copytree(both, tmp_path / "other"))
    shard = other / "shard-00000.safetensors"
    columns = load_file(shard)
    columns["top1"][7, 1] += 0.5
    save_file(columns, shard)
    index = json.loads((other / "index.json").read_text())
    index["shards"][0]["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    write_index(other, index)
    assert " was trained with trace " in command("classifier", "--resume", "--traces", other).error
    for name in (shard.name, "index.json"):
        shutil.copy(both / name, other)
    assert command("classifier", "--resume", "--traces", other).code == 0


def test_a_checkpoint_of_another_kind_is_refused(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, lambda: command("classifier", "--name", "mine"))
    line = command("lte", "--name", "mine", "--resume").error
    assert "heads-mine/step-000000006.json was trained with kind classifier, now it is lte." in line


# -------------------------------------------------------------------------------------- exit states


def test_what_looks_at_exit_states_learns_behind_the_maps(
    train: Train, tiny_llama: Path, folder: Path, both: Path, tmp_path: Path
) -> None:
    """The heads know the exit head they were trained with, and find it again in decoding alone."""
    Shortcut(model=str(tiny_llama), traces=both, out=tmp_path / "a").train(TrainingRun("shortcut", "x"))
    where = str(tmp_path / "a")
    traces = make_trace(
        tiny_llama, folder, tmp_path / "mapped", "py150", "javacorpus", exit_head="shortcut", artefacts=where
    )
    mapped = train(observation="exit", folder=tmp_path / "mapped", artefacts=where)
    plain = train(observation="rich", folder=tmp_path / "mapped", artefacts=where, name="plain")
    assert mapped.artefact.facts["exit_head"] == traces.index["exit_head"] != "shared"
    assert mapped.artefact.sha256 != plain.artefact.sha256
    settings: dict[str, Any] = {"weights": "pretrained", "dtype": "float32", "exit_points": "paper", "artefacts": where}
    info = resolve(ModelRequest(str(tiny_llama), exit_head="shortcut", **settings)).info
    assert find_controller("classifier", "", info).artefact.sha256 == mapped.artefact.sha256
    with pytest.raises(ArtefactError, match=r"was trained with exit head shortcut:.* runs with shared"):
        find_controller("classifier", "", resolve(ModelRequest(str(tiny_llama), exit_head="shared", **settings)).info)
