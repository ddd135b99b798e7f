"""Runs that decode losslessly: the names and order of their operating points, what is refused, what is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import RunConfig, run
from harness.config.strategies import parse_all
from harness.contracts import ModelInfo, ModelRequest
from harness.errors import OptionError
from harness.models.model import resolve
from harness.running.operating_points import OperatingPoint, build_all, operating_points, with_baseline
from tests.run_files import cut, samples, unseal

EXITS = "random:probability=0.6"


@pytest.fixture(scope="module")
def info(tiny_llama: Path) -> ModelInfo:
    return resolve(ModelRequest(str(tiny_llama), weights_format="float32")).info


@pytest.fixture
def points(info: ModelInfo) -> Callable[..., tuple[OperatingPoint, ...]]:
    """``points(*strategies, **configuration)`` are a run's operating points."""

    def of(*strategies: str, formats: tuple[str, ...] = ("float32",), **given: Any) -> tuple[OperatingPoint, ...]:
        config = RunConfig.build(given)
        built = with_baseline(build_all(parse_all(strategies, in_run=True)))
        return operating_points(built, config, [replace(info, weights_format=name) for name in formats])

    return of


def names(found: tuple[OperatingPoint, ...]) -> list[str]:
    return [point.name for point in found]


@pytest.fixture
def config(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"weights_format": "float32", "exit_points": "all", "max_new_tokens": 8}


NAMES: tuple[tuple[tuple[str, ...], dict[str, Any], list[str]], ...] = (
    (("fixed:layer=4",), {}, ["full", "fixed:layer=4"]),
    (("fixed:layer=4",), {"decode": "lossy,lossless"}, ["full", "fixed:layer=4", "fixed:layer=4@lossless"]),
    (("fixed:layer=4",), {"decode": "lossless"}, ["full", "fixed:layer=4@lossless"]),
    (
        ("fixed:layer=4",),
        {"decode": "lossless+lookup,lossless"},
        ["full", "full@lossless+lookup", "fixed:layer=4@lossless+lookup", "fixed:layer=4@lossless"],
    ),
    (  # what never exits and has no source runs once a format
        ("fixed:layer=4",),
        {"kv": "propagate,recompute", "decode": "lossy,lossless", "formats": ("float32", "int8")},
        [
            f"{name}@{stored}"
            for name in (
                *("full@propagate", "fixed:layer=4@propagate", "fixed:layer=4@recompute"),
                "fixed:layer=4@recompute@lossless",
            )
            for stored in ("float32", "int8")
        ],
    ),
    (
        ("fixed:layer=4,6@lossless", "full@lossless+lookup:k=2", "fixed:layer=6@lossy"),
        {"decode": "lossless"},
        ["full", "fixed:layer=4@lossless", "fixed:layer=6@lossless", "full@lossless+lookup:k=2", "fixed:layer=6"],
    ),
    (
        ("fixed:layer=4", "fixed:layer=4@lossless", "fixed:layer=4@lossy", "full@lossless"),
        {"decode": "lossy,lossless"},
        ["full", "fixed:layer=4", "fixed:layer=4@lossless"],
    ),
    (
        ("fixed:layer=4",),
        {"decode": "lossy,lossless", "draft_max": "2,8"},
        ["full", "fixed:layer=4", "fixed:layer=4@lossless@draft=2", "fixed:layer=4@lossless@draft=8"],
    ),
    (("fixed:layer=4@lossless",), {"draft_max": [4]}, ["full", "fixed:layer=4@lossless"]),
)


def test_names_say_what_is_compared_and_each_stands_once(points: Any) -> None:
    for strategies, given, expected in NAMES:
        found = points(*strategies, **given)
        assert names(found) == expected
        assert (found[0].lossless, found[0].record.decode, found[0].record.draft_max) == (None, "lossy", None)


def test_of_several_policies_those_that_defer_are_used_and_probes_are_of_lossy_points(points: Any) -> None:
    found = points("fixed:layer=4", kv="recompute,propagate,none", decode="lossless")
    assert names(found) == ["full@recompute", "full@none", "fixed:layer=4@recompute@lossless"]
    with pytest.raises(OptionError, match="under --kv propagate none do"):
        points("fixed:layer=4", kv="propagate,skip", decode="lossless")
    found = points("confidence:threshold=0.5", attribute=True, decode="lossless,lossy")
    assert [point.name for point in found if point.record.never_exits] == names(found)[-1:]
    assert (names(found)[-1], found[-1].record.lossless) == ("confidence:threshold=0.5 (never exits)", False)
    alone = points("confidence:threshold=0.5@lossless", attribute=True)
    assert names(alone) == ["full", "confidence:threshold=0.5@lossless"]


def test_records_say_how_a_point_decodes(points: Any) -> None:
    _, alone, looking = points("fixed:layer=4@lossless", "fixed:layer=4@lossless+lookup:n=4", draft_max=3)
    assert (alone.record.decode, alone.record.draft_max, alone.record.lossless) == ("lossless", 3, True)
    assert (looking.record.decode, looking.record.draft_sources) == ("lossless+lookup:n=4", ("lookup",))
    assert (looking.lossless.draft_max, [source.n for source in looking.lossless.sources]) == (3, [4])


def test_a_strategy_s_own_policy_gives_way_unless_it_was_named(points: Any) -> None:
    """Fixed exits run under propagate of themselves."""
    assert [point.kv for point in points("fixed:layer=4", decode="lossy,lossless")] == [
        "recompute", "propagate", "recompute",
    ]  # fmt: skip
    with pytest.raises(OptionError, match="under --kv propagate none do"):
        points("fixed:layer=4@lossless", kv="propagate")


def test_tokens_are_full_depth_s_and_records_say_how_they_came(config: dict[str, Any], tmp_path: Path) -> None:
    strategies = (EXITS, "fixed:layer=10", "full@lossless+lookup")
    frame = run(RunConfig.build(config | {"strategies": strategies, "decode": "lossless", "draft_max": 3}))
    frame = frame.set_index("operating_point")
    assert list(frame.index) == ["full", f"{EXITS}@lossless", "fixed:layer=10@lossless", "full@lossless+lookup"]
    found = samples(tmp_path / "out")
    for name, records in found.items():
        for sample_id, record in records.items():
            full = found["full"][sample_id]
            assert record["token_ids"] == full["token_ids"]
            assert record["finish_reason"] == full["finish_reason"]
            if name == "full":
                assert (record["drafts"], record["verifications"], record["drafted_at"], record["accepted"]) == (
                    0, 0, [], [],
                )  # fmt: skip
                continue
            count = len(record["token_ids"])
            drafted, accepted = record["drafted_at"], record["accepted"]
            assert record["exit_layers"] == [12] * count
            assert (len(drafted), len(accepted)) == (count, count)
            assert (drafted[0], accepted[0]) == (None, False)  # prefill says the first one
            assert not any(kept for at, kept in zip(drafted, accepted, strict=True) if at is None)
            lost = [token for one in record["discarded"] for token in one["token_ids"]]
            assert sum(accepted) + len(lost) == record["drafts"] <= 3 * record["verifications"]
            assert len(lost) == sum(len(one["token_texts"]) for one in record["discarded"])
            assert count - 1 <= sum(accepted) + record["verifications"]
            assert record["layers_discarded"] % 12 == 0
            assert record["layers_executed"] == 12 * (count - 1) + record["layers_discarded"]
            assert 12 * record["verifications"] <= record["layers_read"] <= record["layers_executed"]
    layers = {at for record in found["fixed:layer=10@lossless"].values() for at in record["drafted_at"]}
    assert layers == {None, 10}
    assert set(frame["exact_prefix"]) == {1.0}
    assert frame.loc["full"].isna()["acceptance"]
    assert 0 < frame.loc[f"{EXITS}@lossless"]["acceptance"] < 1
    notes = json.loads((tmp_path / "out" / "summary.json").read_text())["notes"]
    assert "lossless rows: the tokens are full depth's in all 9 completions." in notes


def test_a_cheap_head_that_reads_drafts_loses_nothing(config: dict[str, Any], tmp_path: Path) -> None:
    run(RunConfig.build(config | {"strategies": ("fixed:layer=10@lossless",), "draft_head": "int8"}))
    assert sum(record["cheap_head_tokens"] for record in samples(tmp_path / "out")["fixed:layer=10@lossless"].values())
    (note,) = [line for line in json.loads((tmp_path / "out" / "summary.json").read_text())["notes"] if "cheap" in line]
    assert note.startswith("fixed:layer=10@lossless: a cheap head, int8 (")
    assert note.endswith("reads what exits draft; the LM head verifies it, so that nothing is lost.")


def test_the_bound_drafts_what_is_right_and_nothing_else(config: dict[str, Any], tmp_path: Path) -> None:
    """What it learned outside the window holds within: no draft is discarded."""
    run(RunConfig.build(config | {"strategies": ("oracle",), "decode": "lossy,lossless"}))
    found = samples(tmp_path / "out")
    shallow = 0
    for sample_id, full in found["full"].items():
        record, lossy = found["oracle@lossless"][sample_id], found["oracle"][sample_id]
        assert record["token_ids"] == full["token_ids"] == lossy["token_ids"]
        assert record["layers_discarded"] == 0
        assert record["drafts"] == sum(record["accepted"])
        left = [at for at, kept in zip(record["drafted_at"], record["accepted"], strict=True) if kept]
        assert set(left) <= set(lossy["exit_layers"])
        shallow += len(left)
    assert shallow


def test_a_run_goes_on_as_it_decoded_before(config: dict[str, Any], tmp_path: Path) -> None:
    settings = RunConfig.build(config | {"strategies": (EXITS,), "decode": "lossy,lossless", "draft_max": 4})
    run(settings)
    before = samples(tmp_path / "out")
    cut(tmp_path / "out", 3)
    run(settings, resume=tmp_path / "out")
    after = samples(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, records in before.items():
        for sample_id, record in records.items():
            again = after[name][sample_id]
            assert [again[key] for key in ("token_ids", "drafted_at", "drafts", "verifications")] == [
                record[key] for key in ("token_ids", "drafted_at", "drafts", "verifications")
            ]


def test_what_it_states_that_parts_take_decides_what_is_drafted_when_it_goes_on(
    config: dict[str, Any], tmp_path: Path
) -> None:
    """Whatever they take here."""
    settings = RunConfig.build(config | {"strategies": ("del", "fixed:layer=10@lossless+expected")})
    run(settings)
    unseal(tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "manifest.json").read_text())
    for draft in facts["model"]["unit_times"]["drafts"].values():
        draft["read_s"] = 1000.0
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(facts))
    cut(tmp_path / "out", 0)
    run(settings, resume=tmp_path / "out")
    found = samples(tmp_path / "out")
    assert all(one["drafts"] == 0 for one in found["del@lossless"].values())
    fixed = found["fixed:layer=10@lossless+expected"].values()
    assert all(one["drafts"] == one["verifications"] > 0 for one in fixed)
