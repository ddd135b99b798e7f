"""Whole sweeps of small real traces: rows, notes and files; what cannot be done takes one line."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.contracts.recipes import TrainingRun
from harness.errors import ArtefactError, ConfigError, DataError, HarnessError, OptionError
from harness.models.artefacts import read_artefact
from harness.replay.live import pick
from harness.replay.records import Sweep, SweepRow
from harness.replay.sweep import SweepResult
from harness.replay.tokens import read_tokens
from harness.training.recipes import LikelihoodHeads
from harness.training.traces.reading import held_out_rows
from harness.training.traces.store import Traces
from tests.run_files import write_index

POINTS, LAYERS = (4, 6, 10), 12
LAYERSKIP = "layerskip:layer=10:length=3"
Swept = Callable[..., SweepResult]
Command = Callable[..., Any]


def by_name(result: SweepResult) -> dict[str, SweepRow]:
    return {row.operating_point: row for row in result.sweep.rows}


def columns(traced: Path, split: str = "held-out") -> dict[str, torch.Tensor]:
    traces = Traces.open(traced)
    found = traces.columns("top", "top1", "final", "document", "hidden", "entropy")
    held = held_out_rows(traces, found["document"], seed=0)
    return {name: column[held] if split == "held-out" else column for name, column in found.items()}


def test_fixed_exits_and_the_bound(swept: Swept, traced: Path) -> None:
    found = swept("confidence:threshold=0.4", references=("fixed:layer=4,6,10", "oracle"), document_split="all")
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
    assert asked.agreement_ci is not None
    assert asked.agreement_ci[0] < asked.agreement < asked.agreement_ci[1]
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
    assert {(row.documents, row.agreement_ci) for row in result.sweep.rows[1:]} == {(4, None)}, "too few documents"
    depths = [row.exit_layer_mean for row in result.sweep.rows[2:-1]]
    assert len(depths) >= 5
    assert depths == sorted(depths, reverse=True)


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


@pytest.fixture(scope="module")
def heads(tiny_llama: Path, traced: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artefacts")
    heads = LikelihoodHeads(
        model=str(tiny_llama), traces=traced, out=out, keep=0.9, hidden=8, epochs=3, learning_rate=1e-2
    )
    assert heads.train(TrainingRun("classifier", "harness train")).finished
    return out


def test_heads_replay_as_their_training_replayed_them(swept: Swept, heads: Path) -> None:
    facts = read_artefact(heads / "classifier.json", "classifier").facts["replayed"]
    some = facts["rows"][5::10]
    result = swept(*(f"classifier:threshold={row['threshold']!r}" for row in some), artefacts=str(heads))
    assert result.sweep.tokens == facts["held_out_tokens"]
    for row in some:
        found = by_name(result)[f"classifier:threshold={row['threshold']!r}"]
        assert found.exit_layer_mean == pytest.approx(row["exit_layer"], abs=0.1)  # a score on the very threshold
        assert found.agreement == pytest.approx(row["agreement"], abs=0.02)
        assert list(found.artefacts) == ["classifier", "classifier.json"]
    assert not [note for note in result.sweep.notes if "may have learned" in note]


def test_who_learned_from_what_is_said(swept: Swept, heads: Path) -> None:
    whole = swept("classifier", points=2, document_split="all", artefacts=str(heads)).sweep
    assert "those the heads learned from included" in whole.title
    assert any("includes documents the heads learned from" in note for note in whole.notes)
    own = swept("classifier", points=2, artefacts=str(heads)).sweep
    assert not any("classifier.json" in note for note in own.notes)
    other = swept("classifier", points=2, seed=1, artefacts=str(heads)).sweep
    assert any(note.startswith("classifier.json learned from ") for note in other.notes)


# --------------------------------------------------------------------------------------- refusals

LEARNS = r"free:layer=6\S* cannot be replayed: it learns .* Run it: `harness run"
REFUSED: tuple[tuple[tuple[str, ...], dict[str, Any], type[HarnessError], str], ...] = (
    ((), {}, ConfigError, r"nothing to sweep\. Give --strategy"),
    (("confidnce",), {}, HarnessError, r"unknown strategy 'confidnce'. Did you mean 'confidence'"),
    (("confidence:threshold=2",), {}, OptionError, "confidence:threshold=2 is not allowed"),
    (("confidence:thresholds=0.5",), {}, OptionError, "has no option 'thresholds'"),
    (("confidence",), {"document_split": "test"}, HarnessError, "'held-out' or 'all'"),
    (("confidence",), {"folder": Path("none")}, ArtefactError, r"harness trace --model \S+ --out"),
    (("confidence",), {"tasks": ("javacorpus",)}, ArtefactError, "no document of javacorpus; it has py150"),
    (("classifier",), {"artefacts": "."}, ArtefactError, "harness train classifier"),
    (("fixed:layer=5",), {}, OptionError, "not an exit point"),
    (("fixed:layer=q25",), {}, ConfigError, "give percentiles of the threshold alone"),
    (("confidence:threshold=q25",), {"document_split": "all"}, ConfigError, "all are. Use --document-split held-out"),
    (("margin:decay=2",), {}, ConfigError, "harness trace --new-tokens 15"),
    (
        ("fixed:layer=10",),
        {"decode": "lossless"},
        ConfigError,
        r"documents' own tokens\. Trace what the model generates",
    ),
    (("fixed:layer=10",), {"kv": "propagate", "decode": "lossless"}, OptionError, "under --kv propagate none do"),
    (("fixed:layer=10",), {"decode": "lossless+lookup:n=0"}, OptionError, "lookup:n=0 is not allowed"),
    *(((f"free:layer=6{at}",), {}, ConfigError, LEARNS) for at in ("", ":threshold=0.2", ":threshold=q50")),
)


def test_refusals_name_the_remedy(swept: Swept) -> None:
    for strategies, given, error, said in REFUSED:
        with pytest.raises(error, match=said):
            swept(*strategies, **given)


def test_a_trace_of_another_model_or_of_one_document_is_refused(
    swept: Swept, tiny_opt: Path, make_trace: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ArtefactError, match="Trace again"):
        swept("confidence", model=str(tiny_opt))
    with pytest.raises(DataError, match="one document"):
        swept("confidence", folder=make_trace(tmp_path / "one", documents=1))


# ---------------------------------------------------------------------------------- generated tokens


def made(swept: Swept, folder: Path, *strategies: str, **given: Any) -> dict[str, SweepRow]:
    return by_name(swept(*strategies, folder=folder, document_split="all", **given))


def test_generated_tokens_leave_out_what_prefill_yields(swept: Swept, generated: Path) -> None:
    traces = Traces.open(generated)
    document = traces.columns("document")["document"]
    result = swept("margin:decay=3:threshold=0.2", folder=generated, document_split="all")
    assert result.sweep.tokens == len(document) - len(traces.documents)
    row = by_name(swept("confidence:threshold=q50", folder=generated))
    assert [one.percentile for one in row.values()] == [None, 50]
    held = held_out_rows(traces, document.long(), seed=0)
    starts = torch.cat((torch.ones(1, dtype=torch.bool), document.diff() != 0))
    (threshold,) = (one.options["threshold"] for one in row.values() if one.percentile)
    scores = traces.columns("top1")["top1"][~held & ~starts].float()  # no strategy is asked at the others
    assert (scores < threshold).float().mean().item() == pytest.approx(0.5, abs=1 / scores.numel())


def test_a_trace_of_before_prompts_were_kept_replays_exits_alone(swept: Swept, generated: Path, tmp_path: Path) -> None:
    older = Path(shutil.copytree(generated, tmp_path / "older"))
    index = json.loads((older / "index.json").read_text())
    for document in index["documents"]:
        del document["prompt"]
    write_index(older, index)
    assert made(swept, older, "fixed:layer=10") == made(swept, generated, "fixed:layer=10")
    with pytest.raises(ConfigError, match=r"was taken without prompts\. Trace again: `harness trace"):
        made(swept, older, "fixed:layer=10", decode="lossless")


def test_what_drafts_by_measured_costs_is_not_replayed(swept: Swept, generated: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"suffix cannot be replayed: what it drafts rests on costs .* Run it: `harness"
    ):
        made(swept, generated, "fixed:layer=10", decode="lossless+suffix")


def test_a_sweep_measures_when_told_to(swept: Swept, generated: Path) -> None:
    plain = made(swept, generated, LAYERSKIP)
    assert {row.seconds_per_token for row in plain.values()} == {None}
    rows = made(swept, generated, LAYERSKIP, "fixed:layer=4", measure_costs=True)
    assert rows["full"].expected_time_speedup == 1
    for row in rows.values():
        assert 0 < row.seconds_per_token < 1
        assert row.expected_time_speedup == rows["full"].seconds_per_token / row.seconds_per_token
    filled = made(swept, generated, "fixed:layer=4", measure_costs=True, kv="propagate")
    assert filled["fixed:layer=4"].seconds_per_token is None  # nobody has measured what a fill takes
    assert {name: row.expected_speedup for name, row in plain.items()} == {
        name: row.expected_speedup for name, row in rows.items() if name in plain
    }


def test_rows_are_typed_and_named_as_a_run_s(swept: Swept, generated: Path) -> None:
    rows = made(
        swept, generated, "fixed:layer=10", "full", references=("oracle",), draft_max=4,
        decode="lossy,lossless,lossless+lookup",
    )  # fmt: skip
    assert list(rows) == [
        "full", "oracle", "fixed:layer=10", "fixed:layer=10@lossless", "fixed:layer=10@lossless+lookup",
        "full@lossless+lookup",
    ]  # fmt: skip
    for name, row in rows.items():
        assert row.measurement == "replayed"
        assert row.lossless is ("@" in name)
        assert (row.draft_max, row.tokens_per_verification is None) == ((4, False) if row.lossless else (None, True))
        if row.lossless:
            assert (row.agreement, row.agreement_ci, row.oracle_share) == (1.0, None, None)
            assert (row.exits, row.layers_skipped) == ({12: 1.0}, 0.0)
            assert row.layers_discarded_per_token is not None
        elif "fixed" in name:
            assert row.layers_skipped == pytest.approx(1 - 10 / 12)
    drafting = rows["fixed:layer=10@lossless"]
    assert 1 <= drafting.tokens_per_verification <= 5
    assert rows["full"].expected_speedup == 1


def test_what_only_drafts_is_lossless_whatever_the_others_are(swept: Swept, generated: Path) -> None:
    rows = made(swept, generated, LAYERSKIP, "fixed:layer=10", references=("layerskip:layer=4:length=1",))
    assert list(rows) == ["full", "layerskip:layer=4:length=1@lossless", f"{LAYERSKIP}@lossless", "fixed:layer=10"]
    assert [row.lossless for row in rows.values()] == [False, True, True, False]


def test_parts_of_a_trace_do_not_cut_drafts(swept: Swept, generated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made(swept, generated, "confidence:threshold=0.4", decode="lossless")
    monkeypatch.setattr(read_tokens, "__kwdefaults__", {**read_tokens.__kwdefaults__, "part": 7})
    assert made(swept, generated, "confidence:threshold=0.4", decode="lossless") == whole


def test_the_command_shows_what_is_drafted(cli: Callable[..., Any], tiny_llama: Path, generated: Path) -> None:
    done = cli(
        *("sweep", "--replay", generated, "--model", tiny_llama, "--strategy", "fixed:layer=10", "--document-split"),
        *("all", "--decode", "lossy,lossless+lookup:n=2", "--draft-max", 3, "--out", "s", "--measure-costs"),
    )
    assert done.code == 0, done.err
    assert "times what each takes here" in " ".join(done.out.split())
    assert "Lossless decoding: what is drafted and verified, replayed" in done.out
    assert "behind a wrong draft" in " ".join(done.out.split())
    header, *lines = Path("s/sweep.csv").read_text().splitlines()
    assert {"decode", "draft_max", "acceptance", "tokens_per_verification"} <= set(header.split(","))
    assert sum("lossless+lookup:n=2" in line for line in lines) == 1


# ---------------------------------------------------------------------------------------- the command


@pytest.fixture
def sweep(cli: Command, tiny_llama: Path, traced: Path) -> Command:
    """``harness sweep`` on the tiny model's trace; further arguments win."""

    def run(*arguments: object) -> Any:
        return cli("sweep", "--replay", traced, "--model", tiny_llama, *arguments)

    return run


def test_tables_and_files_say_that_they_are_replayed(sweep: Command, tmp_path: Path) -> None:
    done = sweep("--strategy", "confidence", "--points", 4, "--out", tmp_path / "s")
    assert done.code == 0, done.err
    titles = [line for line in done.out.splitlines() if "replayed" in line]
    assert titles[0].startswith("replayed: py150, ")
    assert "4 held-out documents" in titles[0]
    assert any(line.startswith("All ") for line in titles)
    assert "drift that real exits cause is not included" in " ".join(done.out.split())
    assert "replayed in" in done.err
    plain = sweep("--strategy", "confidence:threshold=0.5", "--no-references", "--json", "--out", tmp_path / "json")
    told = Sweep.model_validate_json(plain.out)
    assert told == Sweep.model_validate_json((tmp_path / "json" / "sweep.json").read_text())
    assert [row.oracle_share for row in told.rows] == [None, None], "there is no bound to compare with"
    found = Sweep.model_validate_json((tmp_path / "s" / "sweep.json").read_text())
    assert found.measurement == "replayed"
    lines = list(csv.DictReader(io.StringIO((tmp_path / "s" / "sweep.csv").read_text())))
    assert len(lines) == len(found.rows)
    assert {line["measurement"] for line in lines} == {"replayed"}
    for line, row in zip(lines, found.rows, strict=True):
        assert line["operating_point"] == row.operating_point
        assert float(line["agreement"]) == row.agreement
        assert float(line["expected_speedup"]) == row.expected_speedup
        assert {int(layer): share for layer, share in json.loads(line["exits"]).items()} == row.exits
        name, *options = row.operating_point.split(":")
        assert all(piece in done.out for piece in (name, *options))
    assert {"full", "oracle", "fixed:layer=4", "fixed:layer=6", "fixed:layer=10"} <= {
        row.operating_point for row in found.rows
    }


def test_the_model_is_the_trace_s_unless_it_is_named(cli: Command, traced: Path) -> None:
    """A trace of a folder knows the folder's name, not where it lies."""
    name = json.loads((traced / "index.json").read_text())["model"]
    line = cli("sweep", "--replay", traced, "--strategy", "confidence").error
    assert f"is of '{name}'" in line
    assert "--model" in line


def test_other_people_s_files_are_left_alone(sweep: Command, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    assert "--kv 'none' cannot be replayed" in sweep("--strategy", "confidence", "--kv", "none").error
    line = sweep("--strategy", "confidence", "--out", tmp_path / "mine").error
    assert "holds other files (notes.txt). Use another --out." in line
    (tmp_path / "file").write_text("x")
    assert "Use another --out." in sweep("--strategy", "confidence", "--out", tmp_path / "file" / "s").error


# ------------------------------------------------------------------------------------------- live


def test_drift_stands_beside_the_replay(sweep: Command, rows_file: Path, tmp_path: Path) -> None:
    done = sweep(
        *("--strategy", "confidence:threshold=0.2,0.999", "--strategy", "fixed:layer=6", "--kv", "recompute"),
        *("--live", 6, "--source", rows_file, "--max-new-tokens", 6, "--out", tmp_path / "s"),
    )
    assert done.code == 0, done.err
    assert "decoded live" in done.out
    found = Sweep.model_validate_json((tmp_path / "s" / "sweep.json").read_text())
    drift = {row.operating_point: row for row in found.drift}
    assert set(drift) == {"confidence:threshold=0.2", "confidence:threshold=0.999", "fixed:layer=6"}
    by_name = {row.operating_point: row for row in found.rows}
    samples = [json.loads(line) for line in (tmp_path / "s" / "live" / "samples.jsonl").read_text().splitlines()]
    for name, row in drift.items():
        mine = [sample for sample in samples if sample["operating_point"] == name]
        layers = [layer for sample in mine for layer in sample["exit_layers"][1:]]
        assert (row.samples, row.tokens) == (len(mine), len(layers)) == (6, len(layers))
        assert row.live_exit_layer == pytest.approx(sum(layers) / len(layers))
        assert row.replayed_exit_layer == by_name[name].exit_layer_mean
        assert row.live_exit_layer_ci is None or row.live_exit_layer_ci[0] <= row.live_exit_layer
    fixed, never = drift["fixed:layer=6"], drift["confidence:threshold=0.999"]
    assert fixed.live_exit_layer == fixed.twin_exit_layer == 6
    # as long as tokens are full depth's, keys and values are too: the first difference is the replayed one
    full = {sample["sample_id"]: sample["token_ids"] for sample in samples if sample["operating_point"] == "full"}
    alike = total = 0
    for sample in samples:
        if sample["operating_point"] == "fixed:layer=6":
            for here, there in zip(sample["token_ids"][1:], full[sample["sample_id"]][1:], strict=False):
                total += 1
                alike += here == there
                if here != there:
                    break
    assert fixed.live_same_prefix == pytest.approx(alike / total)
    assert never.live_agreement == never.twin_agreement == never.live_same_prefix == 1
    assert never.twin_exit_layer == pytest.approx(never.live_exit_layer)


def test_what_is_decoded_live_is_what_was_asked_for_or_its_front(swept: Swept) -> None:
    rows = swept("confidence", references=("fixed:layer=4", "oracle"), points=9).sweep.rows
    asked = [row for row in rows if row.strategy == "confidence"]
    assert pick(rows, 100) == asked
    shallow, deep = pick(rows, 2)[::-1]
    assert shallow.exit_layer_mean < deep.exit_layer_mean
    assert not any(
        other.agreement > one.agreement and other.expected_speedup > one.expected_speedup
        for one in (shallow, deep) for other in asked
    )  # fmt: skip
    assert pick([row for row in rows if row.reference], 4) == []
