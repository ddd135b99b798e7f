"""Results in the formats of others: what is written is what was measured, and what is read is what was written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from huggingface_hub._eval_results import parse_eval_result_entries

from harness.errors import ConfigError
from reports.interchange import SpeedRow, by_place, every_eval_ever, hub_results, spec_bench_rows, speed_rows
from reports.recorded import RecordedRun

Command = Callable[..., Any]
LOSSLESS = "full@lossless+lookup"


def fallen(place: int, *tokens: int) -> dict[str, Any]:
    """Drafted tokens that were rejected from a place of the completion on."""
    many = len(tokens)
    return {"place": place, "token_ids": tokens, "drafted_at": (0,) * many, "token_texts": ("x",) * many}


@pytest.fixture
def recorded(build: Any) -> RecordedRun:
    """Look-up takes .08 s of full depth's .1: of one draft both tokens stand, the only one of the next falls."""
    run = build(points=("full", LOSSLESS, "oracle"), kv="recompute", source_kind="embedded", source="embedded: lines")
    work: dict[str, Any] = {
        "token_ids": (1, 2, 3, 4, 5), "drafted_at": (None, 0, 0, None, 0), "discarded": (fallen(4, 9),),
        "accepted": (False, True, True, False, False), "drafts": 3, "verifications": 2,
    }  # fmt: skip
    for block in range(10):
        for point, took in (("full", 0.1), (LOSSLESS, 0.08), ("oracle", 0.01)):
            more = work if point == LOSSLESS else {"token_ids": (1, 2, 3, 4, 5)}
            times = {"ttft_s": took / 5, "latency_s": took, "token_times_s": tuple(took * n / 5 for n in range(1, 6))}
            run.window(point, {**more, **times}, block=block, duration=took)
    found: RecordedRun = run.recorded()
    return found


def test_a_row_says_how_fast_and_which_drafts_stood(recorded: RecordedRun) -> None:
    full, drafted = (SpeedRow.model_validate_json(row.model_dump_json()) for row in speed_rows(recorded))  # no bounds
    assert (full.method, drafted.method, full.lossless, drafted.lossless) == ("full", LOSSLESS, True, True)
    assert drafted.speedup is not None
    assert drafted.decode_speedup is not None
    assert 1 < drafted.speedup.value < drafted.decode_speedup.value == pytest.approx(1.25)
    assert drafted.samples == 10
    assert drafted.acceptance_by_place == (0.5, 1.0)  # of two first tokens one stood, and then the second
    assert full.acceptance_by_place == ()
    assert full.acceptance is None  # missing, and not zero
    assert SpeedRow.model_json_schema()["required"] == ["engine", "method", "model", "task", "samples", "baseline"]


def test_places_are_counted_from_each_verification(build: Any) -> None:
    run = build()
    run.window("full", {
        "token_ids": tuple(range(8)), "accepted": (False, True, True, False, True, False, False, True),
        "drafted_at": (None, 0, 0, 0, 0, 0, None, 0),
        "discarded": (fallen(3, 5, 6), fallen(5, 7)),
    })  # fmt: skip
    assert by_place(run.samples) == (1.0, 0.5, 0.0)


def test_every_eval_ever_has_what_its_schema_wants(recorded: RecordedRun) -> None:
    (_, full), (name, drafted) = every_eval_ever(recorded, "us")
    assert name == "py150-full-lossless-lookup.json"
    for record in (full, drafted):
        assert {"schema_version", "evaluation_id", "retrieved_timestamp", "source_metadata", "model_info"} <= set(
            record
        )
        assert {"eval_library", "evaluation_results"} <= set(record)
        assert record["retrieved_timestamp"] == "1735689600"
        details = record["model_info"]["additional_details"]
        assert {"deployment_type", "model_availability"} <= set(details)
        assert all(isinstance(value, str) for value in details.values())
        for result in record["evaluation_results"]:
            config, score = result["metric_config"], result["score_details"]["score"]
            assert config["min_score"] <= score <= config["max_score"]
            assert result["source_data"]["source_type"] == "other"
    speed = next(one for one in drafted["evaluation_results"] if one["evaluation_name"].endswith("speed-up"))
    assert speed["score_details"]["score"] == pytest.approx(1.25)
    assert speed["score_details"]["uncertainty"]["confidence_interval"]["confidence_level"] == 0.95
    json.dumps(full, allow_nan=False)


def test_a_hub_reads_what_was_written(recorded: RecordedRun) -> None:
    for (_, text), point in zip(hub_results(recorded, "us/lines", "exact_prefix"), ("full", LOSSLESS), strict=True):
        (entry,) = parse_eval_result_entries(yaml.safe_load(text))
        assert (entry.dataset_id, entry.task_id, entry.value) == ("us/lines", "py150", 1.0)
        assert point in (entry.notes or "")
    with pytest.raises(ConfigError, match=r"has the score 'bleu'\. Known: .*exact_prefix"):
        next(hub_results(recorded, "us/lines", "bleu"))


def answer(question: int, tokens: list[int], seconds: list[float], **more: Any) -> str:
    choice = {"turns": ["…"] * len(tokens), "new_tokens": tokens, "wall_time": seconds, **more}
    facts = {"question_id": question, "category": "coding" if question % 2 else "writing", "model_id": "vicuna"}
    return json.dumps({**facts, "choices": [choice]}) + "\n"


def test_spec_bench_s_answers_become_rows(tmp_path: Path, cli: Command) -> None:
    mine, theirs = tmp_path / "mine.jsonl", tmp_path / "vanilla.jsonl"
    mine.write_text("".join(answer(n, [30, 30], [1.0, 0.5 + 0.01 * n], accept_lengths=[2, 4]) for n in range(16)))
    theirs.write_text("".join(answer(n, [30, 30], [2.0, 1.0]) for n in range(16)))
    (row,) = spec_bench_rows(mine, theirs)
    rates = [60 / (1.5 + 0.01 * n) for n in range(16)]  # mean over questions, over the same of the baseline
    assert row.tokens_per_second == pytest.approx(sum(rates) / 16)
    assert row.speedup is not None
    assert row.speedup.value == pytest.approx(sum(rates) / 16 / 20)
    assert row.speedup.low is not None
    assert row.speedup.low < row.speedup.value
    assert row.tokens_per_verification is not None
    assert row.tokens_per_verification.value == 3.0
    ran = cli("convert", mine, "--baseline", theirs, "--category", "coding")
    printed = SpeedRow.model_validate_json(ran.out)
    assert (printed.samples, printed.task, printed.source) == (
        8,
        "Spec-Bench: coding",
        "mine.jsonl, over vanilla.jsonl",
    )
    theirs.write_text(answer(3, [30], [1.0]))
    assert "do not answer the same questions" in cli("convert", mine, "--baseline", theirs).error
    theirs.write_text("{}\n")
    assert "vanilla.jsonl, line 1, is no answer of Spec-Bench" in cli("convert", mine, "--baseline", theirs).error
    assert "with Spec-Bench's answers --baseline FILE" in cli("convert", mine).error


def test_files_of_a_run_are_written(tmp_path: Path, tiny_run: Callable[..., Any], cli: Command) -> None:
    tiny_run("--strategy", "fixed:layer=4", "--out", "run")
    assert "Give --out DIR" in cli("convert", "run", "--to", "hub").error
    assert "--dataset OWNER/NAME" in cli("convert", "run", "--to", "hub", "--out", "hub").error
    assert cli("convert", "run", "--to", "hub", "--out", "hub", "--dataset", "us/lines").code == 0
    assert yaml.safe_load(Path("hub/eval.yaml").read_text())["tasks"][0]["id"] == "py150"
    assert len(list(Path("hub/.eval_results").glob("*.yaml"))) == 2
    assert cli("convert", "run", "--to", "every-eval-ever", "--out", "records").code == 0
    assert len(list(Path("records").glob("*.json"))) == 2
    assert cli("convert", "run", "--out", "rows.jsonl").code == 0
    rows = [SpeedRow.model_validate_json(line) for line in Path("rows.jsonl").read_text().splitlines()]
    assert [row.method for row in rows] == ["full", "fixed:layer=4"]
