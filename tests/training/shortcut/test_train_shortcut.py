"""``harness train shortcut``: from a small real trace to maps that a run finds, reads and decodes with."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from harness.contracts import ModelInfo, ModelRequest
from harness.contracts.recipes import Silent, TrainingRun
from harness.errors import ArtefactError, DataError
from harness.models.artefacts import read_artefact, write_artefact
from harness.models.model import resolve
from harness.models.weights import read_shortcuts
from harness.training.options import TraceRequest
from harness.training.recipes import Shortcut
from harness.training.shortcut import ShortcutResult, train_shortcut
from harness.training.traces.reading import held_out_rows
from harness.training.traces.record_trace import trace
from harness.training.traces.store import Traces, TraceWriter

Train = Callable[..., ShortcutResult]
Array = NDArray[np.float64]

POINTS, WIDTH = (4, 6, 10), 32


def make_trace(model: Path, source: Path, out: Path, documents: int = 20, **changes: Any) -> Traces:
    settings: dict[str, Any] = {"exit_head": "shared", "artefacts": None, "exit_points": "paper"} | changes
    return trace(
        str(model), ["py150"], [str(source)], out, TraceRequest(documents=documents, length=72), weights="pretrained",
        dtype="float32", device="cpu", resume=False, progress=Silent(), **settings,
    )  # fmt: skip


def fit(model: Path, traces: Path, out: Path, **changes: Any) -> ShortcutResult:
    options = Shortcut(model=str(model), traces=traces, out=out, **changes)
    return train_shortcut(options, TrainingRun("shortcut", "harness train shortcut"))


def info_of(model: Path, folder: Path | None = None, **changes: Any) -> ModelInfo:
    settings: dict[str, Any] = {"weights": "pretrained", "dtype": "float32", "exit_points": "paper"} | changes
    return resolve(ModelRequest(str(model), artefacts=str(folder) if folder else None, **settings)).info


@pytest.fixture(scope="module")
def traced(tiny_llama: Path, corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of twenty documents."""
    out = tmp_path_factory.mktemp("traces") / "t"
    make_trace(tiny_llama, corpus_file, out)
    return out


# ----------------------------------------------------------------------------------- what is written


def test_what_is_written_is_found_and_read(tiny_llama: Path, traced: Path, tmp_path: Path) -> None:
    made = fit(tiny_llama, traced, tmp_path / "a")
    info, traces = info_of(tiny_llama, tmp_path / "a", exit_head="auto"), Traces.open(traced)
    assert info.exit_head == f"shortcut:{made.artefact.sha256[:16]}"
    facts = read_artefact(tmp_path / "a" / "shortcut.json", "shortcut").facts
    assert facts["model_fingerprint"] == info.fingerprint == info_of(tiny_llama).fingerprint
    assert facts["tokenizer_fingerprint"] == traces.index["tokenizer_fingerprint"]
    assert facts["exit_points"] == list(POINTS)
    assert facts["trained_on"] == {"streams": ["py150, path: corpus.jsonl"], "tokens": traces.tokens - made.tokens}
    assert set(facts["documents"]) == {document["key"] for document in traces.documents}
    assert facts["ngrams"]["complete"]
    assert (made.artefact.path.parent / facts["ngrams"]["file"]).is_file()
    assert facts["held_out"]["agreement"] == {str(layer): list(both) for layer, both in made.agreement.items()}
    maps = read_shortcuts(made.artefact, POINTS, torch.float32, "cpu", hidden_size=WIDTH)
    assert list(maps) == list(POINTS)
    assert all(each.weight.shape == (WIDTH, WIDTH) and each.bias is not None for each in maps.values())


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
    tiny_llama: Path, traced: Path, corpus_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, plain = tmp_path / "a", tmp_path / "a" / "shortcut.json"
    theirs = {"model_fingerprint": "07e4" * 4, "adapter_sha256": "f" * 64, "exit_points": list(POINTS)}
    write_artefact(plain, "shortcut", {"4.bias": torch.ones(1)}, theirs)
    before = plain.read_bytes(), plain.with_suffix(".safetensors").read_bytes()
    made = fit(tiny_llama, traced, folder)
    own = made.artefact.facts["model_fingerprint"][:8]
    assert made.artefact.path == folder / f"shortcut-{own}.json"
    assert (plain.read_bytes(), plain.with_suffix(".safetensors").read_bytes()) == before
    assert info_of(tiny_llama, folder, exit_head="auto").exit_head == f"shortcut:{made.artefact.sha256[:16]}"
    caplog.clear()
    assert fit(tiny_llama, traced, folder, overwrite=True).artefact.path == plain
    assert not caplog.messages
    make_trace(tiny_llama, corpus_file, tmp_path / "few", documents=4, exit_points="4,10")
    fewer = fit(tiny_llama, tmp_path / "few", folder).artefact.path
    assert fewer == folder / f"shortcut-{own}-2.json"
    assert caplog.messages[-1] == f"runs take {plain} before {fewer}: it leads from these exit points, too"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("maps", "should begin with shortcut, since shortcuts are looked for as shortcut*.json."),
        ("my-shortcut", "should begin with shortcut, since shortcuts are looked for as shortcut*.json."),
        ("", "should be a plain file name"),
        ("../shortcut", "should be a plain file name"),
        ("shortcut/b", "should be a plain file name"),
    ],
)
def test_a_name_that_would_not_be_found_is_refused(
    cli: Callable[..., Any], tiny_llama: Path, traced: Path, tmp_path: Path, name: str, said: str
) -> None:
    ran = cli("train", "shortcut", "--model", tiny_llama, "--traces", traced, "--out", "a", "--name", name)
    assert f"--name '{name}': input {said}" in ran.error
    assert not list(tmp_path.rglob("*shortcut*"))
    assert not (tmp_path / "a").exists()


# --------------------------------------------------------------------------------------------- the fit


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


@pytest.mark.parametrize("seed", [0, 1])
def test_the_maps_are_numpy_s_least_squares(tiny_llama: Path, traced: Path, tmp_path: Path, seed: int) -> None:
    made = fit(tiny_llama, traced, tmp_path / "a", ridge=1e-9, seed=seed)
    maps = read_shortcuts(made.artefact, POINTS, torch.float32, "cpu", hidden_size=WIDTH)
    states, last = learned(traced, seed)
    for e, point in enumerate(POINTS):
        linear, expected = maps[point], least_squares(states[:, e], last)
        assert linear.bias is not None
        got = np.concatenate((linear.weight.t().double().numpy(), linear.bias.double().numpy()[None]))
        scale = np.abs(expected).max()
        assert np.abs(got - expected).max() < 0.01 * scale  # bfloat16 on disk
        plain = least_squares(states[:, e], last, weighted=False)
        assert np.abs(plain - expected).max() > 0.03 * scale  # so the weights would be missed
        everything = least_squares(*(part[: len(part) // 2] for part in (states[:, e], last)))
        assert np.abs(everything - expected).max() > 0.03 * scale  # and so would half of the tokens


def test_damping_shrinks_the_maps(tiny_llama: Path, traced: Path, tmp_path: Path) -> None:
    sizes = []
    for number, ridge in enumerate((1e-9, 1e-2, 1.0)):
        made = fit(tiny_llama, traced, tmp_path / str(number), ridge=ridge)
        assert made.artefact.facts["ridge"] == ridge
        maps = read_shortcuts(made.artefact, POINTS, torch.float32, "cpu", hidden_size=WIDTH)
        sizes.append([maps[point].weight.norm().item() for point in POINTS])
    for slight, some, much in zip(*sizes, strict=True):
        assert slight > some > much


# -------------------------------------------------------------------------------------------- agreement


def linear_model(make_model: Callable[..., Path]) -> Path:
    """A model whose last layer is a linear function of every exit, and whose exits alone say something else.

    Embeddings have one size, so that norms are linear on them. Layers up to the eleventh change nothing; the last
    one's gate is open by its bias alone, and its MLP maps the state linearly. The head knows each token by its last
    state.
    """
    made = make_model("llama", mlp_bias=True, tie_word_embeddings=False)
    weights = load_file(made / "model.safetensors")
    chance = torch.Generator().manual_seed(0)
    for name, tensor in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight", "gate_proj.weight", "proj.bias")):
            tensor.mul_(1e-20)  # nothing, beside the rest; all zeros would be refused
    last = "model.layers.11.mlp."
    words = torch.randn(len(weights["lm_head.weight"]), WIDTH, generator=chance)
    words *= words.pow(2).mean(-1, keepdim=True).rsqrt()
    weights[last + "gate_proj.bias"].fill_(1.0)
    for part in ("up_proj.weight", "up_proj.bias", "down_proj.weight", "down_proj.bias"):
        weights[last + part].normal_(generator=chance)
    weights["model.embed_tokens.weight"] = words
    up = words @ weights[last + "up_proj.weight"].t() + weights[last + "up_proj.bias"]
    gate = torch.nn.functional.silu(torch.ones(()))
    end = words + gate * up @ weights[last + "down_proj.weight"].t() + weights[last + "down_proj.bias"]
    weights["lm_head.weight"] = end / end.norm(dim=-1, keepdim=True)
    save_file(weights, made / "model.safetensors", {"format": "pt"})
    return made


def test_agreement_rises_to_one_where_the_last_layer_is_a_linear_function(
    make_model: Callable[..., Path], corpus_file: Path, tmp_path: Path
) -> None:
    model = linear_model(make_model)
    make_trace(model, corpus_file, tmp_path / "t")
    made = fit(model, tmp_path / "t", tmp_path / "a", ridge=1e-9)
    assert list(made.agreement) == list(POINTS)
    for before, after in made.agreement.values():
        assert before < 0.5
        assert after == 1.0
    mapped = make_trace(model, corpus_file, tmp_path / "mapped", exit_head="shortcut", artefacts=str(tmp_path / "a"))
    columns = mapped.columns("top", "final")
    assert (columns["top"] == columns["final"].unsqueeze(1)).float().mean() > 0.99  # in decoding's own arithmetic


def test_agreement_is_of_held_out_tokens_by_the_model_s_own_head(
    tiny_llama: Path, traced: Path, tmp_path: Path
) -> None:
    made = fit(tiny_llama, traced, tmp_path / "a", seed=3)
    traces = Traces.open(traced)
    columns = traces.columns("hidden", "top", "final", "document")
    held = held_out_rows(traces, columns["document"], seed=3)
    maps = read_shortcuts(made.artefact, POINTS, torch.float32, "cpu", hidden_size=WIDTH)
    resolved = resolve(ModelRequest(str(tiny_llama), weights="pretrained", exit_head="shared"))
    backbone = resolved.load("cpu").backbone
    assert made.tokens == int(held.sum())
    for e, point in enumerate(POINTS):
        before, after = made.agreement[point]
        same = (columns["top"][held, e] == columns["final"][held]).float().mean().item()
        assert before == pytest.approx(same, abs=1e-4)
        top = backbone.logits(maps[point](columns["hidden"][held, e].float())).argmax(-1)
        share = (top == columns["final"][held]).float().mean().item()
        assert after == pytest.approx(share, abs=2.5 / made.tokens)  # maps on disk are bfloat16


def test_of_many_held_out_tokens_some_are_looked_at(
    tiny_llama: Path, traced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.training.shortcut.CHECKED", 10)
    made = fit(tiny_llama, traced, tmp_path / "a")
    assert made.tokens == 10
    assert all(round(10 * share, 6).is_integer() for both in made.agreement.values() for share in both)


def test_states_are_read_shard_by_shard(
    tiny_llama: Path, corpus_file: Path, traced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of three are in memory at most, and the same tokens are looked at as in a trace of one shard."""
    monkeypatch.setattr("harness.training.traces.record_trace.TraceWriter", partial(TraceWriter, shard_tokens=150))
    traces = make_trace(tiny_llama, corpus_file, tmp_path / "t")
    assert len(traces.index["shards"]) > 5
    read, states, most = Traces.shards, weakref.WeakSet[torch.Tensor](), 0

    def count(self: Traces, *names: str) -> Iterator[dict[str, torch.Tensor]]:
        nonlocal most
        for shard in read(self, *names):
            if "hidden" in shard:
                states.add(shard["hidden"])
                most = max(most, len(states))
            yield shard

    monkeypatch.setattr(Traces, "shards", count)
    made, whole = fit(tiny_llama, tmp_path / "t", tmp_path / "a"), fit(tiny_llama, traced, tmp_path / "b")
    assert 1 <= most <= 3  # the fit's last one, and two of the check
    for ours, theirs in zip(made.agreement.values(), whole.agreement.values(), strict=True):
        assert ours[0] == theirs[0]
        assert ours[1] == pytest.approx(theirs[1], abs=2.5 / made.tokens)  # sums in another order


def test_the_seed_decides(tiny_llama: Path, traced: Path, tmp_path: Path) -> None:
    first, again, other = (fit(tiny_llama, traced, tmp_path / str(n), seed=n // 2) for n in range(3))
    assert first.artefact.sha256 == again.artefact.sha256
    assert first.agreement == again.agreement
    assert first.artefact.sha256 != other.artefact.sha256


# ----------------------------------------------------------------------------------------- what is refused


def test_the_trace_of_another_model_is_refused(tiny_opt: Path, traced: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="is a trace with model fingerprint"):
        fit(tiny_opt, traced, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_one_document_is_too_few(tiny_llama: Path, corpus_file: Path, tmp_path: Path) -> None:
    make_trace(tiny_llama, corpus_file, tmp_path / "t", documents=1)
    with pytest.raises(DataError, match=r"one document of py150.*Trace more --documents"):
        fit(tiny_llama, tmp_path / "t", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_maps_for_some_exit_points_serve_fewer_and_not_others(tiny_llama: Path, traced: Path, tmp_path: Path) -> None:
    made = fit(tiny_llama, traced, tmp_path / "a")
    some = info_of(tiny_llama, tmp_path / "a", exit_head="shortcut", exit_points="4,10")
    assert some.exit_head == f"shortcut:{made.artefact.sha256[:16]}"
    with pytest.raises(ArtefactError, match=r"there are no shortcuts for .*exit points 4, 5"):
        info_of(tiny_llama, tmp_path / "a", exit_head="shortcut", exit_points="4,5")
