"""Tuning tiny models for real: what it writes, what a run makes of it, how it stops and goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import exits
from harness.contracts import ModelRequest, document_key
from harness.contracts.recipes import Trained, TrainingRun
from harness.errors import ResumeError, TrainingError
from harness.models.artefacts import read_artefact, write_artefact
from harness.models.export import export
from harness.models.model import resolve
from harness.models.trained import tuned_fingerprint
from harness.models.weights import merge
from harness.training.corpus import PackedStreams, read_streams
from harness.training.recipes import Lite
from harness.training.traces.store import Traces
from tasks.py150 import Py150
from tests.training.lite.conftest import QUICK

FLAGS = ("--task", "py150", "--preset", "lora", "--length", 32, "--batch", 2, "--rank", 4)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(1, 300, (2, 24), generator=torch.Generator().manual_seed(3))


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]


def weights_of(out: Path) -> dict[str, Tensor]:
    files = sorted(out.glob("*.safetensors"))
    assert files
    return {f"{file.stem}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def exits_of(out: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The tables before and after tuning."""
    exits = json.loads((out / "adapter.json").read_text())["exits"]
    return exits["before"], exits["after"]


# --------------------------------------------------------------------------------- what a run makes of it


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_merging_the_adapter_gives_peft_s_own_model(
    family: str,
    tune: Callable[..., Trained],
    tuned: Path,
    tiny_llama: Path,
    make_model: Any,
    tmp_path: Path,
    ids: Tensor,
) -> None:
    """The factors on disk, put into peft's LoRA and merged by peft, against the harness's merge at load."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder, out = tiny_llama, tuned
    if family == "gpt2":
        folder, out = make_model(family), tmp_path / "out"
        tune(folder, out, QUICK.replace(steps=2), documents=8)
    adapter = read_artefact(out / "adapter.json", "adapter")
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear")
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), config)
    parameters = {name: value for name, value in theirs.named_parameters() if ".lora_" in name}
    factors = adapter.tensors()
    assert len(factors) == len(parameters)
    for name, tensor in factors.items():
        parameters[f"base_model.model.{name}.default.weight"].data = tensor.float()
    theirs = theirs.merge_and_unload().eval()
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        before, expected = base(ids).logits, theirs(ids).logits
        merge(base, adapter)
        got = base(ids).logits
    assert (expected - before).abs().max() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_run_finds_adapter_and_shortcuts_of_its_own_accord(tuned: Path, tiny_llama: Path) -> None:
    found = resolve(ModelRequest(str(tiny_llama), artefacts=str(tuned)))
    adapter, shortcut = (
        read_artefact(tuned / "adapter.json", "adapter"),
        read_artefact(tuned / "shortcut.json", "shortcut"),
    )
    base = resolve(ModelRequest(str(tiny_llama), weights="pretrained", exit_head="shared"))
    assert found.info.weights == "tuned"
    assert found.info.fingerprint == tuned_fingerprint(base.info.fingerprint, adapter.sha256)
    assert found.info.exit_head == f"shortcut:{shortcut.sha256[:16]}"
    assert found.info.shortcut_bytes == (32 * 32 + 32) * 4
    loaded = found.load("cpu")
    assert list(loaded.backbone.shortcuts) == [4, 6, 10]
    assert torch.equal(loaded.backbone.shortcuts[6].maps[""].weight, shortcut.tensors()["6.weight"].float())
    assert adapter.sha256[:12] in loaded.weights_source
    untuned = base.load("cpu").backbone
    assert not torch.equal(loaded.backbone.blocks[0].output.weight, untuned.blocks[0].output.weight)


def test_what_was_read_is_indexed_and_what_was_held_out_is_not(
    tuned: Path, tiny_llama: Path, corpus_file: Path
) -> None:
    facts = read_artefact(tuned / "adapter.json", "adapter").facts
    assert facts["ngrams"] == read_artefact(tuned / "shortcut.json", "shortcut").facts["ngrams"]
    assert facts["ngrams"]["complete"]
    found = resolve(ModelRequest(str(tiny_llama), artefacts=str(tuned)))
    ngrams = found.seen.ngrams()
    assert ngrams is not None
    (stream,) = read_streams(
        [Py150()], [str(corpus_file)], found.tokenizer, split="train", length=32, documents=30, seed=0,
        note=lambda text: None,
    )  # fmt: skip
    assert facts["packs_read"] < len(stream.sequences)
    read = PackedStreams([stream], facts["packs_read"], seed=0)
    assert all(ngrams.has_run_of(read[number]["input_ids"].tolist()) for number in range(len(read)))
    assert facts["steps"] == facts["recipe"]["steps"]
    assert set(facts["held_out"]) == set(stream.held_out_keys)


def test_the_maps_of_tuned_weights_are_not_those_of_the_base(tuned: Path, tiny_llama: Path) -> None:
    found = resolve(ModelRequest(str(tiny_llama), weights="pretrained", artefacts=str(tuned)))
    assert found.info.exit_head == "shared"
    assert found.info.weights == "pretrained"
    assert found.seen.documents  # but no run draws what was learned from, base weights or not


def test_the_exits_of_a_run_are_those_that_were_trained(tuned: Path, tiny_llama: Path, corpus_file: Path) -> None:
    """The table after tuning, computed by the engine from the artefacts; bfloat16 in between."""
    from harness.decoding.engine import Engine

    found = resolve(ModelRequest(str(tiny_llama), weights="tuned", exit_head="shortcut", artefacts=str(tuned)))
    tokenizer = found.tokenizer
    (stream,) = read_streams(
        [Py150()], [str(corpus_file)], tokenizer, split="train", length=32, documents=30, seed=0, note=lambda text: None
    )
    engine = Engine(found.load("cpu").backbone, found.info)
    same, total = dict.fromkeys((4, 6, 10), 0), 0
    for sequence in (piece for document in stream.held_out for piece in document.split(32)):
        *exits, last = engine.read(sequence.tolist(), (4, 6, 10, 12))
        total += len(sequence) - 1
        final = engine.backbone.logits(last[:-1]).argmax(-1)
        for layer, state in zip(same, exits, strict=True):
            tokens = engine.backbone.logits(engine.backbone.exit_state(state[:-1], layer)).argmax(-1)
            same[layer] += int((tokens == final).sum())
    rows = json.loads((tuned / "shortcut.json").read_text())["exits"]["after"]
    assert {row["tokens"] for row in rows} == {total}  # fewer than are looked at in large streams: all
    reported = {row["layer"]: row["agreement"] for row in rows}
    for layer, count in same.items():
        assert count / total == pytest.approx(reported[layer], abs=0.05)
    before = json.loads((tuned / "shortcut.json").read_text())["exits"]["before"]
    assert rows != before


def test_whole_weights_are_a_model_of_their_own_that_knows_what_it_has_read_wherever_it_goes(
    tune: Callable[..., Trained], tiny_llama: Path, tmp_path: Path, ids: Tensor
) -> None:
    """`--method full`: small steps are not rounded away, and maps and documents belong to what came of it."""
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    of_base = write_artefact(
        out / "shortcut.json", "shortcut", {}, {"model_fingerprint": "ba5e" * 4, "exit_points": [4, 6, 10]}
    )
    recipe = QUICK.replace(method="full", learning_rate=1e-5, schedule="constant", steps=3)
    assert tune(tiny_llama, out, recipe).finished
    before, after = load_file(tiny_llama / "model.safetensors"), load_file(out / "model" / "model.safetensors")
    moved = torch.cat([(after[name] - before[name]).abs().flatten() for name in before])
    assert (moved > 0).float().mean() > 0.8
    assert 5e-6 < moved.median() < 4e-5  # Adam's first steps are of about the learning rate

    found = resolve(ModelRequest(str(out / "model"), artefacts=str(out)))
    assert found.info.exit_head.startswith("shortcut:")
    assert read_artefact(of_base.path, "shortcut").facts == of_base.facts, "those of the base weights stay"
    assert resolve(ModelRequest(str(out / "model"))).info.exit_head == found.info.exit_head
    assert len(found.seen.documents) == 30
    tokenizer = found.tokenizer
    assert tokenizer.decode(tokenizer.encode("def load_path(items):")) == "def load_path(items):"
    expected = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32)(ids).logits
    torch.testing.assert_close(found.load("cpu").module(ids).logits, expected)

    base = resolve(ModelRequest(str(tiny_llama), artefacts=str(out)))
    assert (base.info.weights, base.info.exit_head) == ("pretrained", "shared")
    assert base.seen.documents == found.seen.documents

    # without --artefacts: a run of it would be scored on what it has learned from
    found = resolve(ModelRequest(str((out / "model").rename(tmp_path / "elsewhere"))))
    assert len(found.seen.documents) == 30
    assert found.seen.ngrams() is not None
    assert found.info.exit_head.startswith("shortcut:")
    read: list[Any] = []
    export(found, tmp_path / "exported", lambda _, facts: read.append(facts) or "")  # type: ignore[func-returns-value]
    assert len(read[0]["documents"]) == 30  # its card does not say that nothing was tuned
    assert len(resolve(ModelRequest(str(tmp_path / "exported"))).seen.documents) == 30


@pytest.mark.parametrize(("method", "instructions"), [("full", False), ("full", True), ("lora", False), ("lora", True)])
def test_weights_train_in_float32_where_a_cpu_would_emulate_bfloat16(
    method: str, instructions: bool, tune: Callable[..., Trained], tiny_llama: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from harness.training.lite import lite_model, trainer

    real, autocast = lite_model.exit_losses, []

    def watched(*given: Any, **named: Any) -> Any:
        autocast.append(torch.is_autocast_enabled("cpu"))
        return real(*given, **named)

    monkeypatch.setattr(lite_model, "exit_losses", watched)
    monkeypatch.setattr(trainer, "multiplies_bfloat16", lambda: instructions)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    tune(tiny_llama, tmp_path / "out", QUICK.replace(method=method, exit_head="shared", steps=1), documents=8)
    assert autocast == [instructions]


# ------------------------------------------------------------------------------------- learning


@pytest.mark.slow
def test_every_exit_learns(tune: Callable[..., Trained], tiny_llama: Path, tmp_path: Path, corpus_file: Path) -> None:
    """Ten documents, thirty steps: losses fall by nats, and the document held out is read better at every exit."""
    few = tmp_path / "few.jsonl"
    few.write_text("".join(corpus_file.read_text().splitlines(keepends=True)[:10]))
    tune(tiny_llama, tmp_path / "out", QUICK.replace(steps=30, rank=16), few, documents=None, save_steps=100)
    lines = log_of(tmp_path / "out")
    for layer in ("4", "6", "10", "12"):
        first, last = (sum(line["cross_entropy"][layer] for line in part) / 4 for part in (lines[:4], lines[-4:]))
        assert last < first - 1, layer
    before, after = ({row["layer"]: row["accuracy"] for row in rows} for rows in exits_of(tmp_path / "out"))
    assert all(after[layer] > before[layer] + 0.02 for layer in (4, 6, 10, 12)), (before, after)


@pytest.mark.slow
def test_random_weights_learn_with_exits_from_the_start(tiny_llama: Path, tmp_path: Path, corpus_file: Path) -> None:
    """Preset layerskip: losses of exits and of the last layer fall, and the model's folder is one to run."""
    few = tmp_path / "few.jsonl"
    few.write_text("".join(corpus_file.read_text().splitlines(keepends=True)[:10]))
    options = Lite.build(
        {
            "preset": "layerskip", "model": str(tiny_llama), "out": tmp_path / "out", "tasks": ["py150"],
            "sources": [str(few)], "steps": 80, "length": 32, "batch": 4, "learning_rate": 0.01, "save_steps": 100,
        }
    )  # fmt: skip
    assert options.train(TrainingRun("lite", "harness train lite")).finished
    facts = json.loads((tmp_path / "out" / "tuning.json").read_text())
    assert facts["weights_source"] == "random weights, seed 0"
    before, after = ({row["layer"]: row["accuracy"] for row in facts["exits"][when]} for when in ("before", "after"))
    assert list(after) == list(range(1, 13))
    assert all(after[layer] > before[layer] + 0.1 for layer in range(3, 13)), (before, after)
    lines = log_of(tmp_path / "out")
    assert {len(line["cross_entropy"]) for line in lines} == {2}
    read = {int(layer) for line in lines for layer in line["cross_entropy"]}
    assert read == set(range(2, 13))  # the first exit has no weight
    assert resolve(ModelRequest(str(tmp_path / "out" / "model"))).info.num_layers == 12


# ------------------------------------------------------------------------------ stopping and going on


def test_resuming_is_as_if_nothing_had_happened(tune: Callable[..., Trained], tiny_llama: Path, tmp_path: Path) -> None:
    """With exits, tokens, packs and dropped layers that are drawn; another test goes on with all of them."""
    recipe = QUICK.replace(exits_per_step=1, token_share=0.5, accumulate=2, layer_dropout=0.3)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = tune(tiny_llama, whole, recipe)
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "checkpoint-4")  # killed after step 3: the log is ahead of the checkpoint
    for file in parts.glob("*.safetensors"):
        file.unlink()
    with (parts / "training.jsonl").open("a") as log:
        log.write('{"step": 4, "tok')  # and broken off
    got = tune(tiny_llama, parts, recipe, resume=True)

    left, right = weights_of(whole), weights_of(parts)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(right[name], tensor, rtol=0, atol=0, msg=name)
    assert got.report == expected.report
    assert [line["step"] for line in log_of(parts)] == [1, 2, 3, 4]
    for one, other in zip(log_of(whole), log_of(parts), strict=True):
        assert one["cross_entropy"] == other["cross_entropy"]


def test_what_cannot_be_begun_or_resumed(
    tune: Callable[..., Trained], tiny_llama: Path, tuned: Path, tmp_path: Path
) -> None:
    with pytest.raises(ResumeError, match=r"holds no checkpoint to resume from\. Omit --resume"):
        tune(tiny_llama, tmp_path / "out", resume=True)
    assert not (tmp_path / "out").exists()
    before = {path: path.stat().st_mtime_ns for path in tuned.rglob("*")}
    with pytest.raises(TrainingError, match=r"holds checkpoints of an earlier training .*--resume.*--out"):
        tune(tiny_llama, tuned)
    assert {path: path.stat().st_mtime_ns for path in tuned.rglob("*")} == before
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"cannot make .*Give another --out"):
        tune(tiny_llama, tmp_path / "file" / "below")


def test_resuming_with_anything_else_is_refused(
    tune: Callable[..., Trained], tiny_llama: Path, tuned: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tuned, tmp_path / "copy"))
    for change, words in (
        ({"rank": 8}, r"--rank 4, and now it is 8\. Resume with the flags it began with"),
        ({"exit_head": "shared"}, "--exit-head shortcut, and now it is shared"),
        ({"learning_rate": 0.02}, "--learning-rate 0.01, and now it is 0.02"),
        ({"steps": 6}, "--steps 4, and now it is 6"),
        ({"seed": 7}, r"--seed 0, and now it is 7\."),
        ({"documents": 20}, r"the documents of \[.*path: corpus\.jsonl \(\w{12}, 30 docum"),
    ):
        with pytest.raises(ResumeError, match=rf"checkpoints in .* began with {words}"):
            tune(tiny_llama, copy, resume=True, **change)


def test_a_checkpoint_that_was_cut_short_is_passed_over(
    tune: Callable[..., Trained], tiny_llama: Path, tuned: Path, tmp_path: Path
) -> None:
    """A kill while it was written, or a full disk: training goes on from the one before, to the same end."""
    copy = Path(shutil.copytree(tuned, tmp_path / "copy"))
    file = copy / "checkpoints" / "checkpoint-4" / "trainer_state.json"
    file.write_bytes(file.read_bytes()[:20])
    (copy / "training.jsonl").write_text('[1]\n{"step": "x"}\n' + (tuned / "training.jsonl").read_text())
    assert tune(tiny_llama, copy, resume=True).finished
    assert all(torch.equal(weights_of(copy)[key], tensor) for key, tensor in weights_of(tuned).items())
    assert [line["step"] for line in log_of(copy)] == [1, 2, 3, 4]


def test_a_loss_that_is_no_number_stops_the_training(
    tune: Callable[..., Trained], tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.training.lite import lite_model

    real = lite_model.exit_losses
    for at, left in ((1, "no checkpoint is kept"), (4, "the last good checkpoint is .*checkpoint-2; `--resume` goes")):
        calls = iter(range(1, 100))

        def breaking(*arguments: Any, at: int = at, calls: Any = calls, **named: Any) -> Any:
            total, each = real(*arguments, **named)
            return (total * float("nan") if next(calls) == at else total), each

        monkeypatch.setattr(lite_model, "exit_losses", breaking)
        with pytest.raises(TrainingError, match=rf"the loss is nan at step {at}; {left}.*Lower --learning-rate"):
            tune(tiny_llama, tmp_path / str(at))
        assert not list((tmp_path / str(at)).glob("*.safetensors"))


def test_the_command_keeps_a_checkpoint_when_interrupted_and_resumed_leaves_everything_it_says(
    cli: Any, tiny_llama: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.training.lite import lite_model

    arguments = ["train", "lite", "--model", tiny_llama, "--source", corpus_file, *FLAGS, "--steps", 6]
    arguments += ["--out", "out", "--save-steps", 1000]
    out = tmp_path / "out"
    real, calls = lite_model.exit_losses, iter(range(3))

    def interrupt(*given: Any, **named: Any) -> Any:
        if next(calls, None) is None:
            signal.raise_signal(signal.SIGINT)
        return real(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(lite_model, "exit_losses", interrupt)
        ran = cli(*arguments)
    assert (ran.code, ran.out) == (130, "")
    assert "Traceback" not in ran.err
    assert "Stopped; the checkpoint is kept. Go on with the same command and --resume" in " ".join(ran.err.split())
    done = len(log_of(out))
    assert 0 < done < 6
    assert (out / "checkpoints" / f"checkpoint-{done}" / "model.safetensors").is_file()
    assert not (out / "adapter.json").exists()

    ran = cli(*arguments, "--resume")
    assert ran.code == 0, ran.err
    assert {path.name for path in out.iterdir()} >= {
        "adapter.json", "adapter.safetensors", "shortcut.json", "shortcut.safetensors", "exits.md", "training.jsonl",
        "checkpoints",
    }  # fmt: skip
    assert ran.out.strip() == (out / "exits.md").read_text().strip()
    table = [line.split("|") for line in ran.out.splitlines()[2:]]
    assert [int(row[2]) for row in table] == [4, 6, 10, 12]

    adapter, shortcut = read_artefact(out / "adapter.json", "adapter"), read_artefact(out / "shortcut.json", "shortcut")
    base = resolve(ModelRequest(str(tiny_llama), weights="pretrained", exit_head="shared")).info
    for artefact in (adapter, shortcut):
        assert artefact.facts["model_fingerprint"] == base.fingerprint
        assert artefact.facts["made"]["command"].startswith("harness train lite --model")
        assert artefact.facts["recipe"]["rank"] == 4
    assert shortcut.facts["adapter_sha256"] == adapter.sha256
    texts = [json.loads(line)["code"] for line in corpus_file.read_text().splitlines()]
    assert set(adapter.facts["documents"]) == {document_key(text) for text in texts}
    assert str(tmp_path) not in json.dumps(adapter.facts["data"])
    lines = log_of(out)
    assert [(line["step"], line["tokens"]) for line in lines] == [(step, 64 * step) for step in range(1, 7)]
    for line in lines:
        assert list(line["cross_entropy"]) == ["4", "6", "10", "12"]
        assert all(0 < value < 30 for value in line["cross_entropy"].values())


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self._folder),)


def test_no_code_in_a_checkpoint_runs(
    tune: Callable[..., Trained], tiny_llama: Path, tuned: Path, tmp_path: Path
) -> None:
    went_off = tmp_path / "went-off"
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        copy = Path(shutil.copytree(tuned, tmp_path / name))
        shutil.rmtree(copy / "checkpoints" / "checkpoint-4")
        file = copy / "checkpoints" / "checkpoint-2" / name
        assert file.is_file()
        torch.save(Bomb(went_off), file)
        torch.load(file, weights_only=False)
        went_off.rmdir()  # it is live
        with pytest.raises(TrainingError, match=r"checkpoint-2 is damaged: .*Remove it to resume from the one before"):
            tune(tiny_llama, copy, resume=True)
        assert not went_off.exists()


def test_tunings_are_compared_on_documents_that_none_has_learned_from(
    tuned: Path, tiny_llama: Path, corpus_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    shutil.copytree(tuned, again)
    exits.main([
        str(tuned), str(again), "--out", str(tmp_path / "traces"), "--model", str(tiny_llama), "--task", "py150",
        "--source", str(corpus_file), "--documents", "50",
    ])  # fmt: skip
    head, _, *rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    one, other = (dict(zip(head, row, strict=True)) for row in rows)
    traced = Traces.open(tmp_path / "traces" / "again").documents
    learned = set(read_artefact(tuned / "adapter.json", "adapter").facts["documents"])
    unread = sum(facts["key"] not in learned for facts in traced)
    assert 0 < unread < len(traced) == 50
    assert one == {**other, "tuning": tuned.name}
    assert (one["seed"], one["steps"], one["documents"]) == ("0", "4", str(unread))
