"""Lossless decoding replayed from a trace, against the engine that decodes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.config import parse_strategies
from harness.config.decode import build_decode, parse_decode
from harness.config.options import build_strategy
from harness.contracts import KVFacts, price
from harness.contracts.recipes import Silent
from harness.decoding.generation import Generation
from harness.errors import ConfigError, OptionError
from harness.records import DraftTimes, UnitTimes
from harness.running.operating_points import OperatingPoint, operating_point
from harness.sweep.records import SweepRow
from harness.sweep.replay_lossless import Decisions, Texts, decide, replay_lossless
from harness.sweep.replay_strategy import Outcome, replay
from harness.sweep.replay_sweep import SweepRequest, sweep
from harness.sweep.tokens import read_tokens
from harness.training.options import TraceRequest
from harness.training.traces.record_trace import trace
from tests.run_files import write_index

LAYERS, NEW = 12, 30
PROMPTS = [[5, 9, 40, 17, 5, 9, 40], [88, 3, 60, 61, 62, 7], [120, 14, 15], [33] * 9, list(range(40, 60))]
LAYERSKIP = "layerskip:layer=10:length=3"
EXITS = ("fixed:layer=10", "confidence:threshold=0.4", "margin:threshold=0.3", "entropy:threshold=0.75", "oracle")


def drafting(text: str, info: Any, decode: str, most: int) -> OperatingPoint:
    (spec,) = parse_strategies(text)
    lossless = build_decode(parse_decode(decode), most)
    return operating_point(
        spec, build_strategy(spec), info, "recompute", suffix=f"@{decode}", decode=parse_decode(decode),
        lossless=lossless,
    )  # fmt: skip


def live_and_replayed(
    tiny: Any, text: str, decode: str, most: int, eos: frozenset[int] = frozenset()
) -> tuple[list[Generation], Outcome]:
    point = drafting(text, tiny.info, decode, most)
    given: dict[str, Any] = {"max_new_tokens": [NEW] * len(PROMPTS), "eos_token_ids": eos}
    full = tiny.engine.decode(PROMPTS, build_strategy(parse_strategies("full")[0]), kv="recompute", **given)
    live = tiny.engine.decode(PROMPTS, point.strategy, kv="recompute", lossless=point.lossless, **given)
    if point.strategy.upper_bound:
        stops = [[*one.first_stops(LAYERS), *[LAYERS] * NEW] for one in live]
        live = tiny.engine.replay(PROMPTS, stops, kv="recompute", lossless=point.lossless, **given)
    assert [one.token_ids for one in live] == [one.token_ids for one in full]
    tokens = tiny.tokens(PROMPTS, [one.token_ids for one in full])
    decisions = Decisions()
    decisions.add(decide(point, tokens, tiny.info))
    texts = Texts(dict(enumerate(PROMPTS)), NEW, eos)
    return live, replay_lossless(point, decisions, texts, tiny.info, len(PROMPTS))


@pytest.mark.parametrize("most", [1, 3, 16])
@pytest.mark.parametrize("decode", ["lossless", "lossless+lookup:min_n=1"])
@pytest.mark.parametrize("text", [*EXITS, LAYERSKIP])
def test_what_stands_is_exactly_that_of_live_decoding(tiny: Any, text: str, decode: str, most: int) -> None:
    live, found = live_and_replayed(tiny, text, decode, most)
    assert found.count == sum(len(one.token_ids) - 1 for one in live)
    assert found.work.verifications == sum(one.verifications for one in live)
    assert found.work.accepted_tokens == sum(sum(one.accepted) for one in live)
    assert sum(one.verifications for one in live) < found.count  # some pass yielded several


@pytest.mark.parametrize(("layer", "length", "most"), [(10, 3, 16), (6, 4, 16), (4, 8, 2), (10, 1, 16)])
def test_drafts_of_a_fixed_exit_and_length_are_replayed_exactly(tiny: Any, layer: int, length: int, most: int) -> None:
    """What follows a wrong draft is as long wherever it stands."""
    live, found = live_and_replayed(tiny, f"layerskip:layer={layer}:length={length}", "lossless", most)
    assert counts(found) == {
        "drafts": sum(one.drafts for one in live),
        "read": sum(one.layers_read for one in live),
        "discarded": sum(one.layers_discarded for one in live),
        "heads": sum(one.lm_head_evaluations for one in live),
        "maps": sum(one.shortcut_evaluations for one in live),
        "checks": sum(one.exit_checks for one in live),
    }
    assert found.work.layers_discarded > 0
    assert found.work.verifications == sum(one.verifications for one in live)
    assert max(one.drafts / one.verifications for one in live) <= min(length, most)


TIMES = UnitTimes(positions=9, rows=5, layer_s=1.0, head_s=5.0, layer_row_s=0.25, head_row_s=0.5)
SECONDS = TIMES.costs(DraftTimes(check_s=0.125, read_s=2.0)).per_unit


@pytest.mark.parametrize("decode", ["lossless", "lossless+lookup:min_n=1"])
def test_what_replayed_decoding_would_take_is_what_live_counts_say(tiny: Any, decode: str) -> None:
    live, found = live_and_replayed(tiny, LAYERSKIP, decode, 16)
    passes = sum(one.verifications for one in live)
    read, executed = sum(one.layers_read for one in live), sum(one.layers_executed for one in live)
    taken = (
        read + (executed - read) / 4 + 5 * passes + (executed / LAYERS - passes) / 2
        + sum(one.exit_checks for one in live) / 8 + 2 * sum(one.drafting.passes for one in live)
    )  # fmt: skip
    assert price(found.amounts(tiny.info, KVFacts(defers=True)), SECONDS) == pytest.approx(
        taken, rel=0 if decode == "lossless" else 0.05
    )


def test_lossy_seconds_by_hand(info: Any, made: Any) -> None:
    (spec,) = parse_strategies("fixed:layer=4")
    found = replay(operating_point(spec, build_strategy(spec), info), made(top=[[1, 2, 3]] * 5, final=[1] * 5), info)
    exits = 5 * (4 + 0.125 + 2)
    assert price(found.amounts(info, KVFacts()), SECONDS) == exits
    assert price(found.amounts(info, KVFacts(defers=True)), SECONDS) == exits + 5 * 8 / 4


def test_a_sweep_measures_when_told_to(tiny_llama: Path, generated: Path) -> None:
    plain = swept(tiny_llama, generated, LAYERSKIP)
    assert {row.seconds_per_token for row in plain.values()} == {None}
    rows = swept(tiny_llama, generated, LAYERSKIP, "fixed:layer=4", measure_costs=True)
    assert rows["full"].expected_time_speedup == 1
    for row in rows.values():
        assert 0 < row.seconds_per_token < 1
        assert row.expected_time_speedup == rows["full"].seconds_per_token / row.seconds_per_token
    filled = swept(tiny_llama, generated, "fixed:layer=4", measure_costs=True, kv="propagate")
    assert filled["fixed:layer=4"].seconds_per_token is None  # nobody has measured what a fill takes
    assert {name: row.expected_speedup for name, row in plain.items()} == {
        name: row.expected_speedup for name, row in rows.items() if name in plain
    }


@pytest.mark.parametrize("text", EXITS)
def test_drafts_of_one_token_hold_nothing_that_a_trace_does_not(tiny: Any, text: str) -> None:
    """Then a wrong draft is followed by none, and every count is exact."""
    live, found = live_and_replayed(tiny, text, "lossless", 1)
    assert counts(found) == {
        "drafts": sum(one.drafts for one in live),
        "read": sum(one.layers_read for one in live),
        "discarded": sum(one.layers_discarded for one in live),
        "heads": sum(one.lm_head_evaluations for one in live),
        "maps": sum(one.shortcut_evaluations for one in live),
        "checks": sum(one.exit_checks for one in live),
    }


def counts(found: Outcome) -> dict[str, int]:
    return {
        "drafts": found.work.drafts,
        "read": found.work.layers_read,
        "discarded": found.work.layers_discarded,
        "heads": found.work.lm_head_evaluations,
        "maps": found.work.shortcut_evaluations,
        "checks": found.work.exit_checks,
    }


def test_the_bound_is_exact_with_drafts_of_any_length(tiny: Any) -> None:
    """It drafts nothing wrong."""
    live, found = live_and_replayed(tiny, "oracle", "lossless", 16)
    assert (found.work.layers_discarded, found.work.exit_checks) == (0, 0)
    assert found.work.layers_read == sum(one.layers_read for one in live)
    assert found.work.lm_head_evaluations == sum(one.lm_head_evaluations for one in live)
    assert found.work.shortcut_evaluations == sum(one.shortcut_evaluations for one in live)


def test_a_source_alone_is_replayed_exactly(tiny: Any) -> None:
    """What it proposes is verified at once, so that nothing follows a wrong draft."""
    live, found = live_and_replayed(tiny, "full", "lossless+lookup:min_n=1", 16)
    assert counts(found) == {
        "drafts": sum(one.drafts for one in live),
        "read": sum(one.layers_read for one in live),
        "discarded": sum(one.layers_discarded for one in live),
        "heads": sum(one.lm_head_evaluations for one in live),
        "maps": 0,
        "checks": 0,
    }
    assert found.work.verifications == sum(one.verifications for one in live)
    assert 0 < found.work.accepted_tokens == sum(sum(one.accepted) for one in live)


def test_the_end_of_a_text_is_replayed_as_it_is_decoded(tiny: Any) -> None:
    full = tiny.engine.decode(
        PROMPTS, build_strategy(parse_strategies("full")[0]), kv="recompute", max_new_tokens=[NEW] * len(PROMPTS)
    )
    eos = frozenset({full[0].token_ids[5], full[2].token_ids[9]})
    live, found = live_and_replayed(tiny, "oracle", "lossless", 16, eos)
    assert any(one.finish_reason == "eos" for one in live)
    assert found.work.verifications == sum(one.verifications for one in live)
    assert found.work.layers_read == sum(one.layers_read for one in live)


@pytest.mark.parametrize("text", ["fixed:layer=10", "confidence:threshold=0.4", "margin:threshold=0.3"])
def test_what_is_modelled_lies_within_the_interval_of_live_decoding(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """What follows a wrong draft: how much is drafted, and how many layers are read for it."""
    chance = np.random.default_rng(0)
    prompts = [chance.integers(1, 300, 6).tolist() for _ in range(40)]
    monkeypatch.setattr(f"{__name__}.PROMPTS", prompts)
    live, found = live_and_replayed(tiny, text, "lossless", 16)
    tokens = np.array([len(one.token_ids) - 1 for one in live])
    for replayed, counted in (
        (found.work.drafts, [one.drafts for one in live]),
        (found.work.layers_read, [one.layers_read for one in live]),
        (found.work.lm_head_evaluations, [one.lm_head_evaluations for one in live]),
    ):
        picked = chance.integers(0, len(live), (2000, len(live)))
        drawn = np.array(counted)[picked].sum(1) / tokens[picked].sum(1)
        low, high = np.quantile(drawn, (0.025, 0.975))
        assert low <= replayed / found.count <= high


# ------------------------------------------------------------------------------------- whole sweeps


@pytest.fixture(scope="module")
def generated(tiny_llama: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of what the tiny model generates after twelve documents' beginnings."""
    out = tmp_path_factory.mktemp("traces") / "made"
    trace(
        str(tiny_llama), ["py150"], [str(source)], out, TraceRequest(documents=12, length=64, new_tokens=12),
        weights="pretrained", exit_head="shared", artefacts=None, exit_points="paper", dtype="float32", device="cpu",
        resume=False, progress=Silent(),
    )  # fmt: skip
    return out


def swept(tiny_llama: Path, folder: Path, *strategies: str, **given: Any) -> dict[str, SweepRow]:
    request = SweepRequest(strategies, documents="all", **given)
    found = sweep(str(tiny_llama), folder, request, artefacts=None, progress=Silent()).sweep
    return {row.operating_point: row for row in found.rows}


def test_rows_are_typed_and_named_as_a_run_s(tiny_llama: Path, generated: Path) -> None:
    rows = swept(
        tiny_llama, generated, "fixed:layer=10", "full", references=("oracle",), draft_max=4,
        decodes=("lossy", "lossless", "lossless+lookup"),
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
    drafting = rows["fixed:layer=10@lossless"]
    assert 1 <= drafting.tokens_per_verification <= 5
    assert rows["full"].expected_speedup == 1


def test_what_only_drafts_is_lossless_whatever_the_others_are(tiny_llama: Path, generated: Path) -> None:
    rows = swept(tiny_llama, generated, LAYERSKIP, "fixed:layer=10", references=("layerskip:layer=4:length=1",))
    assert list(rows) == ["full", "layerskip:layer=4:length=1@lossless", f"{LAYERSKIP}@lossless", "fixed:layer=10"]
    assert [row.lossless for row in rows.values()] == [False, True, True, False]
    looked_up = swept(tiny_llama, generated, LAYERSKIP, decodes=("lossy", "lossless+lookup"))
    assert list(looked_up) == ["full", f"{LAYERSKIP}@lossless+lookup"]


def test_parts_of_a_trace_do_not_cut_drafts(tiny_llama: Path, generated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = swept(tiny_llama, generated, "confidence:threshold=0.4", decodes=("lossless",))
    monkeypatch.setattr(read_tokens, "__kwdefaults__", {**read_tokens.__kwdefaults__, "part": 7})
    assert swept(tiny_llama, generated, "confidence:threshold=0.4", decodes=("lossless",)) == whole


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


@pytest.mark.parametrize(
    ("given", "refusal"),
    [
        ({"kv": "propagate", "decodes": ("lossless",)}, "under --kv propagate none do"),
        ({"decodes": ("lossless+lookup:n=0",)}, "lookup:n=0 is not allowed"),
    ],
)
def test_what_cannot_be_verified_is_refused(
    tiny_llama: Path, generated: Path, given: dict[str, Any], refusal: str
) -> None:
    with pytest.raises(OptionError, match=refusal):
        swept(tiny_llama, generated, "fixed:layer=10", **given)


def test_a_trace_of_documents_own_tokens_is_refused(tiny_llama: Path, traced: Path) -> None:
    with pytest.raises(ConfigError, match=r"of documents' own tokens\. Trace what the model generates: `harness trace"):
        swept(tiny_llama, traced, "fixed:layer=10", decodes=("lossless",))


def test_a_trace_of_before_prompts_were_kept_replays_exits_alone(
    tiny_llama: Path, generated: Path, tmp_path: Path
) -> None:
    older = shutil.copytree(generated, tmp_path / "older")
    index = json.loads((older / "index.json").read_text())
    for document in index["documents"]:
        del document["prompt"]
    write_index(older, index)
    alike = swept(tiny_llama, generated, "fixed:layer=10", decodes=("lossless",))
    assert swept(tiny_llama, older, "fixed:layer=10", decodes=("lossless",)) == alike
    with pytest.raises(ConfigError, match="was taken without prompts"):
        swept(tiny_llama, older, "fixed:layer=10", decodes=("lossless+lookup",))


def test_a_strategy_that_ends_drafts_itself_is_refused(tiny_llama: Path, generated: Path, plug_in: Any) -> None:
    plug_in(
        "ending",
        """
        from harness.contracts import DraftRule

        class Rule(DraftRule):
            def should_exit(self, view):
                return view.top_probability > 0.4

        @dataclass(frozen=True)
        class Outside(Strategy):
            def start(self, model, batch):
                return Rule()
        """,
    )
    assert "ending" in swept(tiny_llama, generated, "ending")
    with pytest.raises(ConfigError, match=r"ending@lossless cannot be replayed: it ends drafts by what it has seen"):
        swept(tiny_llama, generated, "ending", decodes=("lossless",))
