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
from reports.interchange import (
    SpeedRow,
    Value,
    by_place,
    every_eval_ever,
    hub_results,
    spec_bench_rows,
    speed_bench_rows,
    speed_rows,
)
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
            later = tuple(0.005 + (took - 0.005) * n / 4 for n in range(5))  # prompts take 5 ms
            times = {"ttft_s": later[0], "latency_s": took, "token_times_s": later}
            run.window(point, {**more, **times}, block=block, duration=took)
    found: RecordedRun = run.recorded()
    return found


def test_a_row_says_how_fast_and_which_drafts_stood(recorded: RecordedRun) -> None:
    full, drafted = (SpeedRow.model_validate_json(row.model_dump_json()) for row in speed_rows(recorded))  # no bounds
    assert (full.method, drafted.method, full.lossless, drafted.lossless) == ("full", LOSSLESS, True, True)
    assert drafted.speedup is not None
    assert drafted.decode_speedup is not None
    assert drafted.speedup.value == pytest.approx(0.1 / 0.08)
    assert drafted.decode_speedup.value == pytest.approx(0.095 / 0.075)
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
    assert speed["score_details"]["score"] == pytest.approx(0.095 / 0.075)
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


def speed_bench(folder: Path, algorithm: str, throughput: float, rate: float, **more: Any) -> Path:
    """A folder as SPEED-Bench's ``run.py --save_dir`` leaves it: 2 questions, 8 passes, drafts of two tokens."""
    folder.mkdir()
    setup = {"engine": "VLLM", "engine_version": "0.11", "model_dir": "m", "draft_model_dir": None, "gpu": "B200"}
    setup |= {"speculative_algorithm": algorithm, "dataset_path": "speed/qualitative", "concurrency": 1, **more}
    accepted = {
        "Request_AL": {"a": 2.0, "b": 1.5}, "Category_AL": {"coding": 2.0, "writing": 1.5}, "Average_AL": 1.75,
        "Acceptance_Length_Histogram": {"1": 4, "2": 2, "3": 2},
        "Conditional_Acceptance_Rate": {"1": 1.0, "2": 0.5, "3": 0.5},
    }  # fmt: skip
    timing = {"Output TPS": throughput, "Request Generation Tokens Per Second": {"mean": f"{rate:.4f}"}}
    documents = {"configuration": setup, "timing": [{}, timing], "acceptance_rate": [{}, accepted]}
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    return folder


def test_speed_bench_s_results_become_rows(tmp_path: Path, cli: Command) -> None:
    drafted = speed_bench(tmp_path / "ngram", "NGRAM", 150.0, 180.0)
    plain = speed_bench(tmp_path / "none", "NONE", 100.0, 120.0)
    row = SpeedRow.model_validate_json(cli("convert", drafted, "--baseline", plain).out)
    assert (row.engine, row.method, row.task, row.samples) == ("SPEED-Bench, VLLM", "NGRAM", "SPEED-Bench: overall", 2)
    assert (row.speedup, row.decode_speedup) == (Value(value=1.5), Value(value=1.5))
    assert (row.tokens_per_verification, row.acceptance_by_place) == (Value(value=1.75), (0.5, 0.5))
    (alone,) = speed_bench_rows(drafted, None)
    assert (alone.speedup, alone.tokens_per_second, alone.baseline) == (None, 150.0, "none")
    (coding,) = speed_bench_rows(drafted, plain, categories=["coding"])
    assert (coding.tokens_per_verification, coding.speedup, coding.tokens_per_second) == (Value(value=2.0), None, None)
    assert "unknown category 'cooking'" in cli("convert", drafted, "--category", "cooking").error
    other = speed_bench(tmp_path / "other", "NONE", 100.0, 120.0, concurrency=8)
    assert "concurrency of" in cli("convert", drafted, "--baseline", other).error
    (drafted / "acceptance_rate.json").write_text("{}")
    assert "is no folder of SPEED-Bench's results" in cli("convert", drafted).error


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
