"""A whole sweep of a small real trace."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.contracts.recipes import Silent, TrainingRun
from harness.errors import ArtefactError, ConfigError, DataError, OptionError
from harness.sweep.records import SweepRow
from harness.sweep.replay_sweep import SweepRequest, SweepResult, _not_replayed, _wanted, sweep
from harness.training.recipes import LikelihoodHeads
from harness.training.traces.reading import held_out_rows
from harness.training.traces.store import Traces
from harness.training.traces.training_set import replay_rows

POINTS, LAYERS = (4, 6, 10), 12
Swept = Callable[..., SweepResult]


@pytest.fixture
def swept(tiny_llama: Path, traced: Path) -> Swept:
    """``swept(*strategies, **changes of the request)``."""

    def run(*strategies: str, folder: Path = traced, artefacts: str | None = None, **changes: Any) -> SweepResult:
        return sweep(
            str(tiny_llama), folder, SweepRequest(strategies, **changes), artefacts=artefacts, progress=Silent()
        )

    return run


def by_name(result: SweepResult) -> dict[str, SweepRow]:
    return {row.operating_point: row for row in result.sweep.rows}


def columns(traced: Path, split: str = "held-out") -> dict[str, torch.Tensor]:
    traces = Traces.open(traced)
    found = traces.columns("top", "top1", "final", "document", "hidden", "entropy")
    held = held_out_rows(traces, found["document"], seed=0)
    return {name: column[held] if split == "held-out" else column for name, column in found.items()}


@pytest.mark.parametrize("split", ["held-out", "all"])
def test_rows_are_those_of_the_definition(swept: Swept, traced: Path, split: Any) -> None:
    rows = by_name(swept("confidence:threshold=0.2,0.4,0.7", documents=split))
    known = columns(traced, split)
    right = known["top"] == known["final"].unsqueeze(1)
    for threshold in (0.2, 0.4, 0.7):
        (expected,) = replay_rows(known["top1"].float(), right, POINTS, LAYERS, [threshold])
        row = rows[f"confidence:threshold={threshold}"]
        assert row.exit_layer_mean == pytest.approx(expected["exit_layer"])
        assert row.agreement == pytest.approx(expected["agreement"])
        assert row.layers_skipped == pytest.approx(1 - expected["exit_layer"] / LAYERS, abs=1e-6)
        assert (row.tokens, row.documents) == (len(right), len(known["document"].unique()))


def test_fixed_exits_and_the_bound(swept: Swept, traced: Path) -> None:
    found = swept("confidence:threshold=0.4", references=("fixed:layer=4,6,10", "oracle"), documents="all")
    rows, known = by_name(found), columns(traced, "all")
    right = known["top"] == known["final"].unsqueeze(1)
    for place, layer in enumerate(POINTS):
        row = rows[f"fixed:layer={layer}"]
        assert row.exit_layer_mean == layer
        assert row.agreement == pytest.approx(right[:, place].float().mean().item())
        assert (row.lm_head_per_token, row.reference) == (1, True)
        assert row.exits == {layer: 1}
    first = torch.cat((right, torch.ones(len(right), 1, dtype=torch.bool)), dim=1).int().argmax(1)
    bound = torch.tensor([*POINTS, LAYERS])[first].float().mean().item()
    assert rows["oracle"].exit_layer_mean == pytest.approx(bound)
    assert rows["oracle"].agreement == 1
    assert (rows["oracle"].pareto, rows["oracle"].rehearsed) == (False, True)
    asked = rows["confidence:threshold=0.4"]
    assert not asked.reference
    left = torch.cat(
        (columns(traced, "all")["top1"].float() >= 0.4, torch.ones(len(right), 1, dtype=torch.bool)), dim=1
    )
    exits = torch.tensor([*POINTS, LAYERS])[left.int().argmax(1)]
    agrees = torch.cat((right, torch.ones(len(right), 1, dtype=torch.bool)), dim=1)[left.cumsum(1).cumsum(1) == 1]
    assert 0 < int(agrees.sum()) < len(agrees)
    assert asked.oracle_share == pytest.approx(int((LAYERS - exits[agrees]).sum()) / (len(right) * (LAYERS - bound)))
    assert asked.oracle_share < (LAYERS - asked.exit_layer_mean) / (LAYERS - bound)  # wrong tokens skip, too
    assert rows["oracle"].oracle_share == 1
    assert found.sweep.rows[0].operating_point == "full"
    assert (rows["full"].expected_speedup, rows["full"].agreement, rows["full"].layers_skipped) == (1, 1, 0)


def test_expected_speed_up_is_counted_bytes(swept: Swept) -> None:
    result = swept("fixed:layer=6", kv="propagate")
    row, info = by_name(result)["fixed:layer=6"], result.resolved.info
    skipped = swept("fixed:layer=6", kv="skip")
    assert row.kv_fill_layers_per_token == 6
    traces = Traces.open(Path(result.sweep.traces))
    known = traces.columns("position", "document")
    held = held_out_rows(traces, known["document"], seed=0)
    reads = (known["position"][held] + 1).float().mean().item() * info.kv_entry_bytes
    full = 12 * (info.layer_bytes + reads) + info.lm_head_bytes
    here = 6 * (info.layer_bytes + reads) + info.lm_head_bytes
    assert row.expected_speedup == pytest.approx(full / (here + 6 * info.kv_projection_bytes), rel=1e-5)
    assert by_name(skipped)["fixed:layer=6"].expected_speedup == pytest.approx(full / here, rel=1e-5)
    assert by_name(skipped)["fixed:layer=6"].kv_fill_layers_per_token == 0


def test_the_bound_is_exact_whatever_the_others_do(swept: Swept) -> None:
    lossy, exact = (swept("fixed:layer=6", references=("oracle",), kv=kv).sweep for kv in ("propagate", "recompute"))
    assert lossy.rows[1] == exact.rows[1]
    assert lossy.rows[1].rehearsed
    assert any("kv propagate (the bound's: recompute)" in note for note in lossy.notes)


def test_a_name_alone_is_swept_with_its_own_threshold_before(swept: Swept) -> None:
    result = swept("confidence", "patience", points=7)
    names = [row.operating_point for row in result.sweep.rows]
    assert names[:2] == ["full", "confidence"]
    assert names[-1] == "patience"
    depths = [row.exit_layer_mean for row in result.sweep.rows[2:-1]]
    assert len(depths) >= 5
    assert depths == sorted(depths, reverse=True)
    assert swept("confidence", "patience", points=7).sweep.rows == result.sweep.rows


def test_the_front_is_of_agreement_and_expected_speed_up(swept: Swept) -> None:
    rows = swept("confidence", "saturation", references=("fixed:layer=4,6,10", "oracle"), points=6).sweep.rows
    candidates = [row for row in rows if not row.rehearsed]
    for row in candidates:
        beaten = any(
            other.agreement >= row.agreement
            and other.expected_speedup >= row.expected_speedup
            and (other.agreement, other.expected_speedup) != (row.agreement, row.expected_speedup)
            for other in candidates
        )
        assert row.pareto == (not beaten)


def test_intervals_hold_the_share_and_need_documents(swept: Swept) -> None:
    wide = by_name(swept("confidence:threshold=0.4", documents="all"))["confidence:threshold=0.4"]
    assert wide.agreement_ci is not None
    assert wide.agreement_ci[0] < wide.agreement < wide.agreement_ci[1]
    few = by_name(swept("confidence:threshold=0.4"))["confidence:threshold=0.4"]  # four documents
    assert few.documents == 4
    assert few.agreement_ci is None


@pytest.fixture(scope="module")
def heads(tiny_llama: Path, traced: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artefacts")
    heads = LikelihoodHeads(
        model=str(tiny_llama), traces=traced, out=out, keep=0.9, hidden=8, epochs=3, learning_rate=1e-2
    )
    assert heads.train(TrainingRun("classifier", "harness train")).finished
    return out


def test_heads_replay_as_their_training_replayed_them(swept: Swept, heads: Path) -> None:
    from harness.models.artefacts import read_artefact

    facts = read_artefact(heads / "classifier.json", "classifier").facts["replayed"]
    some = facts["rows"][5::10]
    result = swept(*(f"classifier:threshold={row['threshold']!r}" for row in some), artefacts=str(heads))
    assert result.sweep.tokens == facts["held_out_tokens"]
    for row in some:
        found = by_name(result)[f"classifier:threshold={row['threshold']!r}"]
        assert found.exit_layer_mean == pytest.approx(row["exit_layer"], abs=0.1)  # a score on the very threshold
        assert found.agreement == pytest.approx(row["agreement"], abs=0.02)
        assert list(found.artefacts) == ["classifier"]
    assert not [note for note in result.sweep.notes if "may have learned" in note]


def test_who_learned_from_what_is_said(swept: Swept, heads: Path) -> None:
    whole = swept("classifier", points=2, documents="all", artefacts=str(heads)).sweep
    assert "those the heads learned from included" in whole.title
    assert any("includes documents the heads learned from" in note for note in whole.notes)
    own = swept("classifier", points=2, artefacts=str(heads)).sweep
    assert not any("classifier.json" in note for note in own.notes)
    other = swept("classifier", points=2, seed=1, artefacts=str(heads)).sweep
    assert any(note.startswith("classifier.json learned from ") for note in other.notes)


def test_who_may_have_learned_from_what_is_said_of_heads_that_do_not_say_it(
    swept: Swept, heads: Path, tmp_path: Path
) -> None:
    """Those of an earlier version; an agent of one task drew what it held out from that task's documents alone."""
    older = tmp_path / "older"
    shutil.copytree(heads, older)
    facts = json.loads((older / "classifier.json").read_text())
    del facts["held_out_documents"]
    (older / "classifier.json").write_text(json.dumps(facts))
    assert not any(
        "classifier.json" in note for note in swept("classifier", points=2, artefacts=str(older)).sweep.notes
    )
    facts["trained_on"]["streams"] = ["javacorpus, embedded"]
    (older / "classifier.json").write_text(json.dumps(facts))
    notes = swept("classifier", points=2, artefacts=str(older)).sweep.notes
    assert any("classifier.json was trained with seed 0" in note and "may have learned" in note for note in notes)


# --------------------------------------------------------------------------------------- refusals


def test_a_trace_of_another_model_is_refused(tiny_opt: Path, traced: Path) -> None:
    with pytest.raises(ArtefactError, match="Trace again"):
        sweep(str(tiny_opt), traced, SweepRequest(("confidence",)), artefacts=None, progress=Silent())


def test_refusals_name_the_remedy(swept: Swept, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing to sweep\. Give --strategy"):
        swept()
    with pytest.raises(ArtefactError, match=r"harness trace --model \S+ --out"):
        swept("confidence", folder=tmp_path / "none")
    with pytest.raises(ConfigError, match=r"free:layer=6 cannot be replayed: it learns .* Run it: `harness run"):
        swept("free:layer=6")
    with pytest.raises(ArtefactError, match="harness train classifier"):
        swept("classifier", artefacts=str(tmp_path))
    with pytest.raises(OptionError, match="not an exit point"):
        swept("fixed:layer=5")
    with pytest.raises(ArtefactError, match=r"no document of javacorpus; it has py150"):
        swept("confidence", tasks=("javacorpus",))


def test_a_single_document_has_none_held_out(tiny_llama: Path, source: Path, tmp_path: Path) -> None:
    from harness.training.options import TraceRequest
    from harness.training.traces.record_trace import trace

    trace(
        str(tiny_llama), ["py150"], [str(source)], tmp_path / "one", TraceRequest(documents=1, length=64),
        weights="pretrained", exit_head="shared", artefacts=None, exit_points="paper", dtype="float32", device="cpu",
        resume=False, progress=Silent(),
    )  # fmt: skip
    with pytest.raises(DataError, match="one document"):
        sweep(str(tiny_llama), tmp_path / "one", SweepRequest(("confidence",)), artefacts=None, progress=Silent())


def test_generated_tokens_leave_out_what_prefill_yields(tiny_llama: Path, source: Path, tmp_path: Path) -> None:
    from harness.training.options import TraceRequest
    from harness.training.traces.record_trace import trace

    traces = trace(
        str(tiny_llama), ["py150"], [str(source)], tmp_path / "made",
        TraceRequest(documents=12, length=64, new_tokens=6),
        weights="pretrained", exit_head="shared", artefacts=None, exit_points="paper", dtype="float32", device="cpu",
        resume=False, progress=Silent(),
    )  # fmt: skip
    result = sweep(
        str(tiny_llama), tmp_path / "made", SweepRequest(("margin:decay=3:threshold=0.2",), documents="all"),
        artefacts=None, progress=Silent(),
    )  # fmt: skip
    kept = sum(int(document["tokens"]) for document in traces.documents)
    first = traces.columns("document", "position")
    generated = len(first["document"]) - len(traces.documents)
    assert kept == len(first["document"])
    assert result.sweep.tokens == generated
    some = SweepRequest(("confidence",), documents="held-out")
    others = _not_replayed(traces, _wanted(traces, some), some)
    starts = torch.cat((torch.ones(1, dtype=torch.bool), first["document"].diff() != 0))
    assert others.any()
    assert not (others & starts).any()  # no strategy is asked there
    for text in ("free:layer=6", "free:layer=6:threshold=0.2", "free:layer=6:threshold=q50"):
        asked = SweepRequest((text,), documents="all")
        with pytest.raises(ConfigError, match=r"free:layer=6\S* cannot be replayed: it learns .* Run it: `harness run"):
            sweep(str(tiny_llama), tmp_path / "made", asked, artefacts=None, progress=Silent())
