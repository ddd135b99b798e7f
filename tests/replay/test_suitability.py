"""``harness suitability``: speed-ups of families by hand, the verdict, and the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.contracts import ModelInfo
from harness.decoding.blocks import Linear
from harness.records import UnitTimes
from harness.replay.records import ExitFacts, HeadFacts, Setting, Suitability
from harness.replay.suitability import Prices, ReadExits, best_settings, describe
from harness.replay.tokens import TracedTokens
from harness.replay.verdict import verdict
from harness.training.traces.store import Traces

Command = Callable[..., Any]
POINTS, LAYERS, WIDTH = (4, 8), 12, 8


@pytest.fixture
def info() -> ModelInfo:
    return ModelInfo(
        "model", "llama", LAYERS, WIDTH, 50, POINTS, 100, "float32", "random", layer_bytes=1000, lm_head_bytes=500,
        kv_projection_bytes=100, kv_entry_bytes=0,
    )  # fmt: skip


@pytest.fixture
def read() -> Callable[..., ReadExits]:
    """``read(right, sure)``: which exits are right, ``[n, 2]`` bool, and their best probabilities; four documents."""

    def make(right: Any, sure: Any = None, maps: bool = False) -> ReadExits:
        hits = torch.as_tensor(right)
        count = len(hits)
        best = torch.as_tensor(sure).float() if sure is not None else hits.float()
        shard = {
            "hidden": torch.zeros(count, 2, WIDTH).half(),
            "top": torch.where(hits, 7, 3).int(),
            "final": torch.full((count,), 7).int(),
            "document": (torch.arange(count) * 4 // count).int(),
            "position": torch.arange(count).int(),
            "input": torch.zeros(count, dtype=torch.int32),
            "top1": best.half(),
            "top2": (best / 4).half(),
            "entropy": (1 - best).half(),
        }
        lines = {point: Linear(torch.eye(WIDTH)) for point in POINTS} if maps else {}
        tokens = TracedTokens(POINTS, [(shard, torch.arange(count))], lines, ["a", "b", "c", "d"], generated=False)
        return ReadExits("plain", True, tokens, torch.where(hits, 1, 20))

    return make


TIMES = UnitTimes(positions=9, rows=5, layer_s=1, head_s=2, layer_row_s=0.1, head_row_s=0.1)
PRICES = Prices(TIMES, check=2.5, map=0.25, short=0.5)


def best(
    reads: list[ReadExits], info: ModelInfo, prices: Prices | None = None, keep: float = 1.0, short: int = 50
) -> dict[str, Setting]:
    found = best_settings(reads, info, prices, keep=keep, step=lambda done: None, short=short)
    return {one.family: one for one in found}


def test_exits_that_are_always_right(read: Callable[..., ReadExits], info: ModelInfo) -> None:
    found = best([read([[True, True]] * 40)], info, PRICES)
    # 12 layers and a head, over 4 layers and a head
    assert found["fixed depth"].setting == "fixed:layer=4"
    assert found["fixed depth"].bytes_speedup == pytest.approx(12500 / 4500)
    # the 8 skipped layers run later, as a further row of another pass
    assert found["fixed depth"].time_speedup == pytest.approx(14 / (4 + 8 * 0.1 + 2))
    assert found["oracle"].bytes_speedup == found["fixed depth"].bytes_speedup
    # two tokens for a draft after 4 layers, read by the head, and a pass of 12 with a row more in 8 of them
    drafts = found["drafts of fixed length"]
    assert (drafts.agreement, drafts.agreement_ci, drafts.lossless) == (1, None, True)
    assert drafts.time_speedup is not None
    assert drafts.time_speedup > 28 / (4 + 2 + 12 + 8 * 0.1 + 2 + 0.1)
    assert not drafts.bound


def test_an_oracle_skips_what_is_right_and_nothing_else(read: Callable[..., ReadExits], info: ModelInfo) -> None:
    one = read([[True, True], [False, True], [False, False], [False, False]] * 10)
    facts = describe(one, info)
    assert facts.oracle_skip == pytest.approx((8 + 4) / 48)
    assert [exit_.agreement for exit_ in facts.exits] == [0.25, 0.5]
    assert [exit_.in_ten for exit_ in facts.exits] == [0.25, 0.5]
    assert [exit_.rank_median for exit_ in facts.exits] == [20, 1]  # the lower of two middle ones
    assert best([one], info)["oracle"].bytes_speedup == pytest.approx(50_000 / (36_000 + 4 * 500))


@pytest.mark.slow
def test_a_check_costs_a_head_unless_it_is_granted(read: Callable[..., ReadExits], info: ModelInfo) -> None:
    """The second exit is right and sure on half of the tokens, on which the first is sure as well, but wrong."""
    right, sure = [[False, True], [False, False]], [[0.3, 0.9], [0.2, 0.1]]
    found = best([read(right * 20, sure * 20)], info, PRICES, short=10)
    half = 0.5 * (12500 + 8500)
    assert found["learned check"].bytes_speedup == pytest.approx(12500 / half)
    assert found["learned check"].bound
    # at layer 8 alone: one check a token, which is the output's own head where it exits
    assert found["one check by the LM head"].setting.endswith(" at layer 8")
    assert found["one check by the LM head"].bytes_speedup == pytest.approx(12500 / (half + 0.5 * 500))
    assert found["check by the LM head"].bytes_speedup == pytest.approx(12500 / (half + 1.5 * 500))
    assert found["check by a short head"].bytes_speedup == pytest.approx(12500 / (half + 100))
    # 10 layers, the 4 that half of the tokens skip as rows, one check, and the head of those that go deep
    assert found["one check by the LM head"].time_speedup == pytest.approx(14 / (10 + 2 * 0.1 + 2.5 + 1))
    assert found["check by a short head"].time_speedup == pytest.approx(14 / (10 + 2 * 0.1 + 0.5 + 0.5 + 2))
    assert found["full depth"].speedup == 1


def test_maps_are_paid_for(read: Callable[..., ReadExits], info: ModelInfo) -> None:
    found = best([read([[True, True]] * 40, maps=True)], info, PRICES)
    assert found["fixed depth"].bytes_speedup == pytest.approx(12500 / (4500 + 4 * WIDTH * (WIDTH + 1)))
    assert found["fixed depth"].time_speedup == pytest.approx(14 / (4 + 0.8 + 2.25))


def test_what_keeps_too_little_is_left_out(read: Callable[..., ReadExits], info: ModelInfo) -> None:
    rows = [[False, True], [False, True], [False, True], [False, False]]
    assert "fixed depth" not in best([read(rows * 10)], info, keep=0.8)
    assert best([read(rows * 10)], info, keep=0.75)["fixed depth"].setting == "fixed:layer=8"


def setting(family: str, speedup: float, *, lossless: bool = False, bound: bool = False) -> Setting:
    return Setting(
        family=family, head="plain", setting="setting", lossless=lossless, bound=bound, agreement=1, layers=9,
        bytes_speedup=speedup,
    )  # fmt: skip


def judged(check: float, learned: float, drafts: float, short: float, skips: tuple[float, float] = (0.3, 0.3)) -> str:
    exits = (ExitFacts(layer=4, agreement=0.5, entropy=1, rank_median=2, in_ten=0.9),)
    heads = tuple(
        HeadFacts(name=name, own=own, exits=exits, oracle_skip=skip, ranked=9)
        for (name, own), skip in zip((("plain", True), ("closed-form maps", False)), skips, strict=True)
    )
    found = Suitability(
        model="m", weights="random", exit_head="shared", weights_format="float32", num_layers=12, exit_points=(4,),
        fingerprint="f", documents=4, tokens=9, streams=("s",), keep=0.95, heads=heads, head_in_layers=8,
        row_share=None, times=None,
        chances=(
            setting("full depth", 1), setting("oracle", 2, bound=True), setting("check by the LM head", check),
            setting("learned check", learned, bound=True),
            setting("drafts of fixed length", drafts, lossless=True),
            setting("drafts by a short head", short, lossless=True, bound=True),
        ),
    )  # fmt: skip
    return " ".join(verdict(found))


SENTENCES = (
    ((1.3, 1.35, 1.2, 1.3), ["Lossy, with 95% of the tokens kept: can pay. best check by the LM head"]),
    ((1.2, 1.5, 1.2, 1.3), ["A cheaper check could do more: best learned check, plain (setting), at most 1.50×"]),
    ((0.8, 1.2, 1.0, 1.0), ["only if checks cost next to nothing", "at most 1.00×", "`classifier`"]),
    ((0.8, 1.09, 1.0, 1.0), ["cannot pay. No setting is above 1.09×", "exits that draft cannot pay, 1.00× at most"]),
    ((0.8, 1.0, 1.2, 1.3), ["Lossless: can pay. best drafts of fixed length", "1.20× in bytes read", "`layerskip`"]),
    ((0.8, 1.0, 1.0, 1.3), ["Lossless: only with a head that drafts cheaply", "at most 1.30×"]),
)


def test_sentences() -> None:
    for speedups, said in SENTENCES:
        found = judged(*speedups)
        for words in ("found at no cost, is 2.00× in bytes read", *said):
            assert words in found
        assert "Exits know more" not in found


def test_maps_that_know_more_are_named() -> None:
    assert "closed-form maps would let 40% of layers be skipped, plain 30%" in judged(1, 1, 1, 1, (0.3, 0.4))


@pytest.fixture
def suitability(cli: Command, tiny_llama: Path, rows_file: Path) -> Command:
    """``harness suitability`` on the tiny model and small documents; further arguments win."""

    def run(*arguments: object) -> Any:
        small = ("--task", "py150", "--source", rows_file, "--documents", 8, "--length", 48, "--split", "test")
        return cli("suitability", tiny_llama, *(() if "--traces" in arguments else small), "--threads", 1, *arguments)

    return run


@pytest.mark.slow
def test_a_model_is_judged_and_its_trace_judged_again(suitability: Command, tmp_path: Path) -> None:
    asked = ("--no-measure-costs", "--keep", 0.5)
    ran = suitability(*asked, "--out", tmp_path / "s")
    assert ran.code == 0, ran.err
    said = " ".join(ran.out.split())
    for words in ("An oracle would skip", "closed-form maps", "Lossy, with 50% of the tokens kept", "Lossless: "):
        assert words in said
    found = Suitability.model_validate_json((tmp_path / "s" / "suitability.json").read_text())
    columns = Traces.open(tmp_path / "s" / "trace").columns("top", "final")
    right = columns["top"] == columns["final"].unsqueeze(1)
    (own,) = (head for head in found.heads if head.own)
    assert [one.agreement for one in own.exits] == pytest.approx(right.float().mean(0).tolist())
    ends = torch.tensor([*found.exit_points, found.num_layers])
    always = torch.cat((right, torch.ones(len(right), 1, dtype=torch.bool)), dim=1)
    first = ends[always.int().argmax(1)].float().mean().item()
    assert own.oracle_skip == pytest.approx(1 - first / found.num_layers)
    assert (found.times, found.best(lossless=True).time_speedup) == (None, None)
    again = suitability("--traces", tmp_path / "s" / "trace", *asked, "--json")
    assert Suitability.model_validate_json(again.out) == found
    timed = Suitability.model_validate_json(suitability("--traces", tmp_path / "s" / "trace", "--json").out)
    assert timed.times is not None
    assert timed.head_in_layers > 0
    assert all(one.time_speedup is not None and one.time_speedup > 0 for one in timed.chances)


def test_refusals(suitability: Command) -> None:
    for arguments, said in (
        (["--documents", 3], "greater than or equal to 4"),
        (["--model", "other"], "are two models. Give one"),
        (["--keep", 0], "--keep"),
        (["--traces", "nowhere"], "there is no trace nowhere"),
        (["--traces", "nowhere", "--weights", "pretrained"], "decides weights: omit that"),
        (["--exit-points", "400"], "400"),
    ):
        assert said in suitability(*arguments).error.replace("\n", " ")
