"""``harness sweep``: what it prints and writes says that it is replayed; what cannot be done takes one line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.sweep.live import pick
from harness.sweep.records import Sweep, SweepRow
from harness.training.traces.reading import held_out_rows
from harness.training.traces.store import Traces

Command = Callable[..., Any]


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


def test_json_is_the_file(sweep: Command, tmp_path: Path) -> None:
    done = sweep("--strategy", "confidence:threshold=0.5", "--no-references", "--json", "--out", tmp_path / "s")
    assert Sweep.model_validate_json(done.out) == Sweep.model_validate_json((tmp_path / "s" / "sweep.json").read_text())
    assert [row["operating_point"] for row in json.loads(done.out)["rows"]] == ["full", "confidence:threshold=0.5"]


def test_without_references_there_is_no_bound_to_compare_with(sweep: Command) -> None:
    rows = json.loads(sweep("--strategy", "confidence", "--points", 2, "--no-references", "--json").out)["rows"]
    assert {row["oracle_share"] for row in rows} == {None}


def test_the_model_is_the_trace_s_unless_it_is_named(cli: Command, traced: Path) -> None:
    """A trace of a folder knows the folder's name, not where it lies."""
    name = json.loads((traced / "index.json").read_text())["model"]
    line = cli("sweep", "--replay", traced, "--strategy", "confidence").error
    assert f"is of '{name}'" in line
    assert "--model" in line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--strategy", "confidnce"), "unknown strategy 'confidnce'. Did you mean 'confidence'?"),
        (("--strategy", "confidence:threshold=2"), "confidence:threshold=2 is not allowed"),
        (("--strategy", "confidence:thresholds=0.5"), "has no option 'thresholds'"),
        (("--strategy", "confidence", "--points", 0), "--points 0: input should be greater than or equal to 1."),
        (("--strategy", "confidence", "--document-split", "test"), "'test': input should be 'held-out' or 'all'."),
        (("--strategy", "confidence", "--kv", "none"), "--kv 'none' cannot be replayed"),
        (("--strategy", "confidence", "--keep", 1.5), "--keep 1.5: input should be less than or equal to 1."),
        (("--strategy", "confidence", "--live", -1), "--live -1: input should be greater than or equal to 0."),
        (("--strategy", "confidence", "--task", "javacorpus"), "no document of javacorpus; it has py150"),
        (("--strategy", "margin:decay=2"), "harness trace --new-tokens 15"),
        (("--strategy", "classifier"), "harness train classifier"),
        (("--strategy", "confidence", "--stop", "none,line"), "live: `harness run --stop none,line --strategy NAME`."),
        (("--strategy", "confidence", "--stop", "lines"), "unknown stop rule 'lines'. Did you mean 'line'?"),
        ((), "Missing option '--strategy'"),
    ],
)
def test_bad_input_takes_one_line(sweep: Command, arguments: tuple[object, ...], expected: str) -> None:
    assert expected in sweep(*arguments).error


def test_a_missing_trace_is_refused_with_the_command(cli: Command, tmp_path: Path) -> None:
    line = cli("sweep", "--replay", tmp_path / "none", "--strategy", "confidence").error
    assert "harness trace --out" in line


def test_other_people_s_files_are_left_alone(sweep: Command, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    line = sweep("--strategy", "confidence", "--out", tmp_path / "mine").error
    assert "holds other files (notes.txt). Use another --out." in line
    (tmp_path / "file").write_text("x")
    assert "Use another --out." in sweep("--strategy", "confidence", "--out", tmp_path / "file" / "s").error


# ------------------------------------------------------------------------------------ from outside


def test_a_strategy_from_outside_is_swept_over_its_threshold(sweep: Command, plug_in: Command) -> None:
    plug_in(
        "norm",
        """
        from typing import Annotated
        from pydantic import Field

        @dataclass(frozen=True)
        class Outside(Strategy):
            '''Exit when the hidden state is long.'''

            threshold: Annotated[float, Field(ge=0, le=1000, description="length")] = 10.0

            def should_exit(self, view):
                return view.hidden_state.norm(dim=-1) >= self.threshold
        """,
    )
    done = sweep("--strategy", "norm", "--points", 5, "--no-references", "--json")
    rows = json.loads(done.out)["rows"]
    assert [row["strategy"] for row in rows] == ["full", *["norm"] * 6]
    depths = [row["exit_layer_mean"] for row in rows[2:]]
    assert depths == sorted(depths, reverse=True)
    assert len(set(depths)) == 5


def test_one_that_looks_at_logits_is_told_what_a_trace_has(sweep: Command, plug_in: Command) -> None:
    plug_in(
        "raw",
        """
        @dataclass(frozen=True)
        class Outside(Strategy):
            '''Exit on a logit.'''

            def should_exit(self, view):
                return view.logits.amax(-1) > 3
        """,
    )
    line = sweep("--strategy", "raw").error
    assert "raw cannot be replayed on this trace: it asks for logits" in line
    assert "top_probability" in line
    assert "harness run --strategy raw" in line


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
        assert row.samples == len(mine) == 6
        assert row.tokens == len(layers)
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


def made_row(name: str, speedup: float, agreement: float, **changes: Any) -> SweepRow:
    facts: dict[str, Any] = {
        "operating_point": name, "strategy": name, "options": {}, "exit_points": (4,), "tokens": 10, "documents": 1,
        "exit_layer_mean": 12 / speedup, "layers_skipped": 0.5, "agreement": agreement, "agreement_ci": None,
        "exit_checks_per_token": 1, "lm_head_per_token": 1, "shortcut_per_token": 0, "kv_fill_layers_per_token": 1,
        "expected_speedup": speedup, "oracle_share": None, "exits": {4: 1.0},
    }  # fmt: skip
    return SweepRow.model_validate(facts | changes)


def test_what_is_decoded_live_is_what_was_asked_for_or_its_front() -> None:
    rows = [
        made_row("full", 1, 1, reference=True),
        made_row("bound", 3, 1, rehearsed=True),
        made_row("reference", 4, 1, reference=True),
        *[made_row(f"front {number}", 1 + number / 10, 1 - number / 20) for number in range(8)],
        made_row("beaten", 1, 0.1),
    ]
    assert [row.operating_point for row in pick(rows, 9)] == [*[f"front {number}" for number in range(8)], "beaten"]
    assert [row.operating_point for row in pick(rows, 8)] == [f"front {number}" for number in range(8)]
    assert [row.operating_point for row in pick(rows, 2)] == ["front 2", "front 6"]
    assert pick(rows[:3], 4) == []


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_numbers_are_never_cut_off(sweep: Command, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    done = sweep("--strategy", "confidence", "--points", 3)
    assert max(map(len, done.out.splitlines())) <= width
    rows = json.loads(sweep("--strategy", "confidence", "--points", 3, "--json").out)["rows"]
    for row in rows:
        assert f" {row['agreement']:.4f}" in done.out
        assert f"{row['expected_speedup']:.2f}×" in done.out
    assert "…" not in done.out.replace(" … ", "")
    head = done.out.partition("All ")[2].partition("●")[0]
    assert ("checks" in head) == (width >= 100)


def test_percentiles_are_of_documents_that_are_not_replayed(sweep: Command, traced: Path) -> None:
    done = sweep("--strategy", "confidence:threshold=q25,q90", "--no-references", "--json")
    assert done.code == 0, done.err
    rows = [row for row in Sweep.model_validate_json(done.out).rows if row.strategy == "confidence"]
    assert [row.percentile for row in rows] == [25, 90]
    traces = Traces.open(traced)
    columns = traces.columns("document", "top1")
    held = held_out_rows(traces, columns["document"].long(), seed=0)
    scores = columns["top1"][~held].float().flatten()
    for row in rows:
        below = (scores < row.options["threshold"]).float().mean().item()
        assert row.percentile is not None
        assert below == pytest.approx(row.percentile / 100, abs=0.03)
    assert "all are. Use --document-split held-out" in " ".join(
        sweep("--strategy", "confidence:threshold=q25", "--document-split", "all").error.split()
    )
    assert "give percentiles of the threshold alone" in sweep("--strategy", "fixed:layer=q25").error
