"""The verdict in words."""

from __future__ import annotations

import pytest

from harness.suitability.record import ExitFacts, HeadFacts, Setting, Suitability
from harness.suitability.verdict import verdict


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


@pytest.mark.parametrize(
    ("speedups", "said"),
    [
        ((1.3, 1.35, 1.2, 1.3), ["Lossy, with 95% of the tokens kept: can pay. best check by the LM head"]),
        ((1.2, 1.5, 1.2, 1.3), ["A cheaper check could do more: best learned check, plain (setting), at most 1.50×"]),
        ((0.8, 1.2, 1.0, 1.0), ["only if checks cost next to nothing", "at most 1.00×", "`classifier`"]),
        (
            (0.8, 1.09, 1.0, 1.0),
            ["cannot pay. No setting is above 1.09×", "exits that draft cannot pay, 1.00× at most"],
        ),
        (
            (0.8, 1.0, 1.2, 1.3),
            ["Lossless: can pay. best drafts of fixed length", "1.20× in bytes read", "`layerskip`"],
        ),
        ((0.8, 1.0, 1.0, 1.3), ["Lossless: only with a head that drafts cheaply", "at most 1.30×"]),
    ],
)
def test_sentences(speedups: tuple[float, float, float, float], said: list[str]) -> None:
    found = judged(*speedups)
    assert "found at no cost, is 2.00× in bytes read" in found
    for words in said:
        assert words in found
    assert "Exits know more" not in found


def test_maps_that_know_more_are_named() -> None:
    assert "closed-form maps would let 40% of layers be skipped, plain 30%" in judged(1, 1, 1, 1, (0.3, 0.4))
