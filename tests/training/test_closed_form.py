"""What is made in closed form: shortcuts, heads and maps of prompt exits, by numpy, by hand, and as runs find them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.contracts import ModelInfo, ModelRequest
from harness.contracts.recipes import Silent, TrainingRun
from harness.decoding.blocks import Linear
from harness.decoding.engine import Engine
from harness.decoding.prompt_exits import PARTS, Tail
from harness.decoding.teacher_forcing import TeacherForcing
from harness.errors import ArtefactError
from harness.models.artefacts import Artefact, read_artefact, write_artefact
from harness.models.exit_modules import read_shortcuts
from harness.models.model import resolve
from harness.training.cheap_heads import rank, root_of
from harness.training.corpus import Stream
from harness.training.lite.fit import initial_shortcuts
from harness.training.prompt_exits import FIRST, Factors, MapMoments, distil, divergence
from harness.training.recipes import PromptExit, Shortcut
from harness.training.shortcut import ShortcutMoments
from harness.training.traces.reading import held_out_rows
from harness.training.traces.store import Traces

TraceMaker = Callable[..., Traces]
Array = NDArray[np.float64]

POINTS, WIDTH = (4, 6, 10), 32


def fit(model: Path, traces: Path, out: Path, **changes: Any) -> Artefact:
    options = Shortcut(model=str(model), traces=traces, out=out, **changes)
    said = options.train(TrainingRun("shortcut", "harness train shortcut"))  # type: ignore[attr-defined]
    return read_artefact(Path(said.note.rpartition("The maps are in ")[2]), "shortcut")


def told(made: Artefact) -> tuple[int, dict[int, list[float]]]:
    """Held-out tokens, and agreement before and with the maps by exit layer."""
    found = made.facts["held_out"]
    return found["tokens"], {int(layer): both for layer, both in found["agreement"].items()}


def info_of(model: Path, folder: Path | None = None, **changes: Any) -> ModelInfo:
    settings: dict[str, Any] = {"weights": "pretrained", "dtype": "float32", "exit_points": "paper"} | changes
    return resolve(ModelRequest(str(model), artefacts=str(folder) if folder else None, **settings)).info


@pytest.fixture(scope="module")
def traced(
    make_trace: TraceMaker, tiny_llama: Path, corpus_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A trace of twenty documents."""
    out = tmp_path_factory.mktemp("traces") / "t"
    make_trace(tiny_llama, corpus_file, out, documents=20)
    return out


# ---------------------------------------------------------------------------------------------- shortcuts


def test_what_is_written_is_found_and_read(tiny_llama: Path, traced: Path, tmp_path: Path) -> None:
    made = fit(tiny_llama, traced, tmp_path / "a")
    info, traces = info_of(tiny_llama, tmp_path / "a", exit_head="auto"), Traces.open(traced)
    assert info.exit_head == f"shortcut:{made.sha256[:16]}"
    facts = read_artefact(tmp_path / "a" / "shortcut.json", "shortcut").facts
    assert facts["model_fingerprint"] == info.fingerprint == info_of(tiny_llama).fingerprint
    assert facts["tokenizer_fingerprint"] == traces.index["tokenizer_fingerprint"]
    assert facts["exit_points"] == list(POINTS)
    assert facts["trained_on"] == {"streams": ["py150, path: corpus.jsonl"], "tokens": traces.tokens - told(made)[0]}
    assert set(facts["documents"]) == {document["key"] for document in traces.documents}
    assert facts["ngrams"]["complete"]
    assert (made.path.parent / facts["ngrams"]["file"]).is_file()
    maps = read_shortcuts(made, POINTS, torch.float32, "cpu", hidden_size=WIDTH)
    assert list(maps) == list(POINTS)
    assert all(each.maps[""].shape == (WIDTH, WIDTH) for each in maps.values())
    assert fit(tiny_llama, traced, tmp_path / "b").sha256 == made.sha256
    some = info_of(tiny_llama, tmp_path / "a", exit_head="shortcut", exit_points="4,10")
    assert some.exit_head == f"shortcut:{made.sha256[:16]}"
    with pytest.raises(ArtefactError, match=r"there are no shortcuts for .*exit points 4, 5"):
        info_of(tiny_llama, tmp_path / "a", exit_head="shortcut", exit_points="4,5")


def test_a_run_decodes_behind_the_maps(
    cli: Callable[..., Any], tiny_run: Callable[..., Any], tiny_llama: Path, traced: Path, tmp_path: Path
) -> None:
    ran = cli("train", "shortcut", "--model", tiny_llama, "--traces", traced, "--out", "a", "--name", "shortcut-b")
    assert ran.code == 0, ran.err
    facts = read_artefact(tmp_path / "a" / "shortcut-b.json", "shortcut").facts
    rows = [line.replace("|", " ").split() for line in ran.out.splitlines()[2:]]
    said = {layer: [float(before), float(after)] for layer, before, after in rows}
    assert said == {layer: pytest.approx(both, abs=6e-4) for layer, both in facts["held_out"]["agreement"].items()}
    exits = {}
    for head in ("shared", "shortcut"):
        arguments = ("--artefacts", "a", "--exit-head", head, "--out", head)
        run = tiny_run("--strategy", "fixed:layer=4", *arguments)
        assert run.code == 0, run.err
        manifest = json.loads((tmp_path / head / "manifest.json").read_text())
        exits[head] = manifest["model"]["exit_head"]
        samples = [json.loads(line) for line in (tmp_path / head / "samples.jsonl").read_text().splitlines()]
        exits[f"{head} tokens"] = [s["token_ids"] for s in samples if s["operating_point"] == "fixed:layer=4"]
    digest = json.loads((tmp_path / "a" / "shortcut-b.json").read_text())["sha256"]
    assert (exits["shared"], exits["shortcut"]) == ("shared", f"shortcut:{digest[:16]}")
    assert exits["shared tokens"] != exits["shortcut tokens"]


def test_shortcuts_of_tuned_weights_and_of_more_exit_points_are_kept(
    make_trace: TraceMaker,
    tiny_llama: Path,
    traced: Path,
    corpus_file: Path,
    tmp_path: Path,
) -> None:
    folder, plain = tmp_path / "a", tmp_path / "a" / "shortcut.json"
    theirs = {"model_fingerprint": "07e4" * 4, "adapter_sha256": "f" * 64, "exit_points": list(POINTS)}
    write_artefact(plain, "shortcut", {"4.bias": torch.ones(1)}, theirs)
    before = plain.read_bytes(), plain.with_suffix(".safetensors").read_bytes()
    made = fit(tiny_llama, traced, folder)
    own = made.facts["model_fingerprint"][:8]
    assert made.path == folder / f"shortcut-{own}.json"
    assert (plain.read_bytes(), plain.with_suffix(".safetensors").read_bytes()) == before
    assert info_of(tiny_llama, folder, exit_head="auto").exit_head == f"shortcut:{made.sha256[:16]}"
    assert fit(tiny_llama, traced, folder, overwrite=True).path == plain
    make_trace(tiny_llama, corpus_file, tmp_path / "few", documents=4, exit_points="4,10")
    assert fit(tiny_llama, tmp_path / "few", folder).path == folder / f"shortcut-{own}-2.json"


def test_a_name_that_would_not_be_found_is_refused(
    cli: Callable[..., Any], tiny_llama: Path, traced: Path, tmp_path: Path
) -> None:
    for name, said in (
        ("my-shortcut", "should begin with shortcut, since shortcuts are looked for as shortcut*.json."),
        ("../shortcut", "should be a plain file name"),
    ):
        ran = cli("train", "shortcut", "--model", tiny_llama, "--traces", traced, "--out", "a", "--name", name)
        assert f"--name '{name}': input {said}" in ran.error
    assert not (tmp_path / "a").exists()


def learned(traced: Path, seed: int = 0) -> tuple[Array, Array]:
    """Hidden states ``[n, exits, hidden_size]`` and last ones of what is not held out."""
    traces = Traces.open(traced)
    columns = traces.columns("hidden", "last", "document")
    rows = ~held_out_rows(traces, columns["document"], seed=seed)
    return columns["hidden"][rows].double().numpy(), columns["last"][rows].double().numpy()


def least_squares(states: Array, last: Array, *, weighted: bool = True) -> Array:
    """The map of ``[state, 1]`` to the last state, by numpy; each token by the inverse square of its size."""
    size = np.sqrt((last**2).mean(-1, keepdims=True)) if weighted else np.ones((len(last), 1))
    rows = np.concatenate((states, np.ones((len(states), 1))), axis=1)
    solution: Array = np.linalg.lstsq(rows / size, last / size, rcond=None)[0]
    return solution


def test_the_maps_are_numpy_s_least_squares_and_agree_as_they_say(
    tiny_llama: Path, traced: Path, tmp_path: Path
) -> None:
    seed = 1
    made = fit(tiny_llama, traced, tmp_path / "a", ridge=1e-9, seed=seed)
    maps = read_shortcuts(made, POINTS, torch.float32, "cpu", hidden_size=WIDTH)
    states, last = learned(traced, seed)
    for e, point in enumerate(POINTS):
        linear, expected = maps[point].maps[""], least_squares(states[:, e], last)
        assert isinstance(linear, Linear)
        assert linear.bias is not None
        got = np.concatenate((linear.weight.t().double().numpy(), linear.bias.double().numpy()[None]))
        scale = np.abs(expected).max()
        assert np.abs(got - expected).max() < 0.01 * scale  # bfloat16 on disk
        plain = least_squares(states[:, e], last, weighted=False)
        assert np.abs(plain - expected).max() > 0.03 * scale  # so the weights would be missed
        everything = least_squares(*(part[: len(part) // 2] for part in (states[:, e], last)))
        assert np.abs(everything - expected).max() > 0.03 * scale  # and so would half of the tokens

    tokens, agreement = told(made)  # of held-out tokens, by the model's own head
    traces = Traces.open(traced)
    columns = traces.columns("hidden", "top", "final", "document")
    held = held_out_rows(traces, columns["document"], seed=seed)
    resolved = resolve(ModelRequest(str(tiny_llama), weights="pretrained", exit_head="shared"))
    backbone = resolved.load("cpu").backbone
    assert tokens == int(held.sum())
    for e, point in enumerate(POINTS):
        before, after = agreement[point]
        same = (columns["top"][held, e] == columns["final"][held]).float().mean().item()
        assert before == pytest.approx(same, abs=1e-4)
        top = backbone.logits(maps[point](columns["hidden"][held, e].float())).argmax(-1)
        share = (top == columns["final"][held]).float().mean().item()
        assert after == pytest.approx(share, abs=2.5 / tokens)  # maps on disk are bfloat16


def exact(tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States, the map that was applied to them, and where it leads."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(tokens, 6, generator=generator)
    weight, bias = torch.randn(6, 6, generator=generator), torch.randn(6, generator=generator)
    return states, weight, bias, states @ weight.t() + bias


def solved(*batches: tuple[Tensor, Tensor], ridge: float = 1e-9) -> tuple[Tensor, Tensor]:
    moments = ShortcutMoments([4], 6)
    for states, last in batches:
        moments.add({4: states}, last)
    fit = moments.solve(ridge=ridge)[4]
    return fit.weight, fit.bias


def test_an_exact_linear_map_is_found_and_one_huge_row_does_not_decide_it() -> None:
    states, weight, bias, last = exact(300, seed=2)
    got_weight, got_bias = solved((states, last))
    torch.testing.assert_close(got_weight, weight, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(got_bias, bias, rtol=1e-3, atol=1e-3)
    assert got_weight.dtype == got_bias.dtype == torch.float32
    huge = (torch.ones(1, 6), torch.full((1, 6), 1e4))  # as the first token of a sequence has it
    got_weight, got_bias = solved((states, last), huge)
    torch.testing.assert_close(got_weight, weight, rtol=0.05, atol=0.05)
    torch.testing.assert_close(got_bias, bias, rtol=0.05, atol=0.05)
    few, last = states[:3], last[:3]  # more directions than tokens still has a solution
    weight, bias = solved((few, last), ridge=1e-4)
    torch.testing.assert_close(few @ weight.t() + bias, last, rtol=0.05, atol=0.05)


def test_a_model_s_maps_lead_to_its_last_layer(
    family: str, make_module: Callable[..., Any], naive_states: Callable[..., list[Tensor]]
) -> None:
    """From the exit's state to the state that the final norm reads, not to the norm's output."""
    module = make_module(family).eval()
    sequences = torch.randint(0, 97, (120, 16), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    stream = Stream("made up", None, sequences, sequences[:1], (), (), ())  # type: ignore[arg-type]
    maps = initial_shortcuts(module, (2, 5), [stream])
    with torch.no_grad():
        states = [state.flatten(0, 1) for state in naive_states(module, sequences.long())]
    last = states[-1]
    size = last.pow(2).mean(-1, keepdim=True).sqrt()
    for layer, made in maps.items():
        state, weight, bias = states[layer - 1], made["weight"], made["bias"]
        rows = torch.cat((state, torch.ones(len(state), 1)), 1)
        best = rows @ torch.linalg.lstsq(rows / size, last / size).solution
        error = ((state @ weight.t() + bias - last) / size).pow(2).mean()
        assert error < 1.02 * ((best - last) / size).pow(2).mean()
        assert error < 0.9 * ((state - last) / size).pow(2).mean()


# ------------------------------------------------------------------------------------------- cheap heads


def test_streams_count_in_equal_shares_and_ties_go_to_the_smaller_id() -> None:
    many, few = torch.tensor([0, 90, 10, 0, 0]), torch.tensor([0, 0, 1, 1, 0])
    # shares: 0, .45, .05 + .25, .25, 0
    assert rank([many, few]).tolist() == [1, 2, 3, 0, 4]


def test_the_directions_are_those_of_the_least_squares_optimum() -> None:
    chance = torch.Generator().manual_seed(3)
    rows = torch.randn(50, 8, generator=chance)
    states = torch.randn(4000, 8, generator=chance) @ torch.randn(8, 8, generator=chance)
    root = root_of(rows, (states.t() @ states).double() / len(states))
    inverse = torch.linalg.inv(root)
    logits = states @ rows.t()
    values = torch.linalg.svdvals(logits)
    for size in (1, 3, 8):
        product = (states @ inverse[:size].t()) @ (rows @ root[:, :size]).t()
        best = float(values[size:].pow(2).sum())
        assert float((logits - product).pow(2).sum()) <= 1.001 * best + 1e-3 * float(values.pow(2).sum())
    torch.testing.assert_close(root @ root.t(), states.t() @ states / len(states), rtol=1e-3, atol=1e-3)


def test_what_they_make_is_found_by_a_run(
    cli: Callable[..., Any], tiny_llama: Path, traced: Path, rows_file: Path, unseen: Path, tmp_path: Path
) -> None:
    out = ("--model", tiny_llama, "--out", tmp_path / "made")
    ran = cli("train", "shortlist", *out, "--task", "py150", "--source", rows_file, "--size", 200)
    assert ran.code == 0, ran.err
    assert "in the first 200" in ran.out
    ran = cli("train", "lowrank", *out, "--traces", traced)
    assert ran.code == 0, ran.err
    for kind in ("shortlist", "lowrank"):
        facts = json.loads((tmp_path / "made" / f"{kind}.json").read_text())
        assert facts["documents"]
        assert facts["order"] is False if kind == "shortlist" else facts["ngrams"]["complete"]
    ran = cli(
        *("run", "--model", tiny_llama, "--source", unseen, "--task", "py150", "--limit", 1, "--max-new-tokens", 6),
        *("--strategy", "confidence:threshold=0.01:head=shortlist/50,lowrank/8,int8", "--energy", "none"),
        *("--threads", 1, "--artefacts", tmp_path / "made", "--out", tmp_path / "run"),
    )
    assert ran.code == 0, ran.err
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    cheap = [sample for sample in samples if sample["operating_point"] != "full"]
    assert len({sample["operating_point"] for sample in cheap}) == 3
    assert all(sample["cheap_head_evaluations"] == sample["exit_checks"] > 0 for sample in cheap)


# ----------------------------------------------------------------------------------------- exits for the prompt


def test_maps_of_a_prompt_exit_are_the_least_squares_of_what_layers_above_leave(tiny_llama: Path) -> None:
    resolved = resolve(ModelRequest(str(tiny_llama), weights="pretrained"))
    backbone = resolved.load("cpu").backbone
    chance, exit_layer = torch.Generator().manual_seed(0), 6
    texts = [torch.randint(0, resolved.info.vocab_size, (60,), generator=chance).tolist() for _ in range(8)]
    engine, above = Engine(backbone, resolved.info), range(exit_layer, resolved.info.num_layers)
    moments, read, wanted = MapMoments(backbone, exit_layer, 1), [], []
    for text in texts:
        states = dict(zip(above, engine.read(text, above), strict=True))
        moments.add(states)
        normed = backbone.blocks[exit_layer].attention_norm(states[exit_layer])
        read.append(torch.cat((normed[FIRST:], normed[FIRST - 1 : -1]), 1))
        left = [backbone.blocks[k].fill(states[k][FIRST:], None, None).flatten(1) for k in above[1:]]
        wanted.append(torch.cat(left, 1))
    rows = torch.cat((torch.cat(read), torch.ones(8 * (60 - FIRST), 1)), 1)
    expected = torch.linalg.lstsq(rows, torch.cat(wanted)).solution
    read, made, bias = moments.solve(1e-9, 1000)
    whole = made @ read
    torch.testing.assert_close(torch.cat((whole.t(), bias.unsqueeze(0))), expected, rtol=0.02, atol=0.02)
    errors = []
    for most in (40, 8):
        read, made, bias = moments.solve(1e-9, most)
        assert (read.shape[0], made.shape[1]) == (most, most)
        errors.append((rows[:, :-1] @ read.t() @ made.t() + bias - torch.cat(wanted)).square().mean().item())
    assert 0 < errors[0] < errors[1] < torch.cat(wanted).var(0).mean().item()


def test_distillation_brings_maps_nearer_to_full_depth(tiny_llama: Path) -> None:
    """The loss is the divergence of what the engine says behind such a prompt, and falls on texts it has not seen."""
    resolved = resolve(ModelRequest(str(tiny_llama), weights="pretrained"))
    backbone, info, exit_layer = resolved.load("cpu").backbone, resolved.info, 6
    chance = torch.Generator().manual_seed(0)
    texts = [torch.randint(0, info.vocab_size, (230,), generator=chance).tolist() for _ in range(12)]
    rows = (info.num_layers - exit_layer - 1) * 2 * backbone.heads.kv_heads * backbone.heads.head_dim
    noise = [torch.randn(shape, generator=chance) / 8 for shape in ((16, 2 * info.hidden_size), (rows, 16), (rows,))]
    maps = (noise[0], noise[1], noise[2])
    options = PromptExit(model=str(tiny_llama), tail=32, steps=60, learning_rate=1e-2)

    def loss(maps: Factors, text: list[int]) -> float:
        with torch.no_grad():
            return divergence(Engine(backbone, info), exit_layer, maps, text, 150, 190).item()

    with torch.inference_mode():
        tensors = {f"{exit_layer}.{name}": part for name, part in zip(PARTS, maps, strict=True)}
        engine = Engine(replace(backbone, trained=lambda kind: tensors), info)
        prompt, rest = texts[0][:190], texts[0][190:]
        full = TeacherForcing(engine, prompt, len(rest)).logits(rest).log_softmax(-1)
        said = TeacherForcing(engine, prompt, len(rest), Tail(exit_layer, 40, FIRST)).logits(rest).log_softmax(-1)
        expected = (full.exp() * (full - said)).sum(-1).mean().item()
    assert expected > 0.001
    assert loss(maps, texts[0]) == pytest.approx(expected, rel=0.02)
    trained = distil(Engine(backbone, info), exit_layer, maps, texts[4:], options, Silent())
    before, after = (sum(loss(each, text) for text in texts[:4]) for each in (maps, trained))
    assert after < 0.95 * before


def test_prompts_exit_as_they_were_trained_to(
    cli: Callable[..., Any], tiny_llama: Path, corpus_file: Path, unseen: Path, tmp_path: Path
) -> None:
    model = ("--model", tiny_llama, "--artefacts", tmp_path / "made")
    run = (
        *("run", *model, "--source", unseen, "--task", "py150", "--limit", 2, "--max-new-tokens", 6, "--untimed"),
        *("--weights-format", "float32", "--energy", "none", "--idle-s", 0, "--strategy", "fixed:layer=6"),
        *("--threads", 1, "--out", tmp_path / "run"),
    )
    (tmp_path / "made").mkdir()
    ran = cli(*run, "--prompt-exit", "layer=6:tail=8")
    assert ran.code == 2
    assert "harness train prompt-exit" in ran.err
    ran = cli(
        *("train", "prompt-exit", "--model", tiny_llama, "--out", tmp_path / "made", "--source", corpus_file),
        *("--task", "py150", "--layer", 4, "--layer", 6, "--tail", 8, "--documents", 20),
    )
    assert ran.code == 0, ran.err
    made = read_artefact(tmp_path / "made" / "prompt-exit.json", "prompt-exit")
    assert made.facts["exits"] == [4, 6]
    assert set(made.facts["held_out"]["agreement"]) == {"4", "6"}
    for wrong, said in (
        (("layer=10",), "has maps for prompt exits at 4, 6, not at 10"),
        (("layer=6", "--decode", "lossless"), "lossless decoding yields full depth's tokens"),
        (("layer=6", "--kv", "none"), "--kv none keeps none"),
        (("tail:tail=8",), "needs layer"),
    ):
        ran = cli(*run, "--prompt-exit", *wrong)
        assert (ran.code, said in ran.err) == (2, True), ran.err
    ran = cli(*run, "--prompt-exit", "none,layer=6:tail=8", "--decode", "lossy,lossless")
    assert ran.code == 0, ran.err
    points = json.loads((tmp_path / "run" / "manifest.json").read_text())["operating_points"]
    exits = {point["name"]: point["prompt_exit"] for point in points}
    written = "tail:layer=6:tail=8"
    assert exits == {
        "full": "",
        f"full@prompt={written}": written,
        "fixed:layer=6": "",
        f"fixed:layer=6@prompt={written}": written,
        "fixed:layer=6@lossless": "",
    }
    assert all(("prompt-exit" in point["artefacts"]) == bool(point["prompt_exit"]) for point in points)
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    shallow = [sample for sample in samples if sample["operating_point"] == f"full@prompt={written}"]
    assert any(sample["full_depth_ids"] != sample["token_ids"] for sample in shallow)
