"""Editor sessions in a run: requests behind one another yield what they yield alone, and cost what is new."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from harness import RunConfig, run
from harness.contracts import Sample
from harness.decoding.engine import EngineSession
from harness.registry import STOPS
from harness.running.session import in_blocks
from tests.run_files import lines

DRAFTING = "random:probability=0.4@lossless+suffix"


@pytest.fixture(scope="module")
def records(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Samples of two documents, cold and warm."""
    folder = tmp_path_factory.mktemp("sessions") / "run"
    run(
        RunConfig(
            model=str(tiny_llama), tasks=("py150",), scenario="session:requests=4:window=120:step=30", energy="none",
            keep=("exact", "none"), strategies=("fixed:layer=4", "oracle", "random:probability=0.4@lossless+suffix"),
            limit=2, max_new_tokens=6, out=folder, idle_s=0, weights_format="float32", kv="recompute", threads=1,
            prefetch=("none", "draft"),
        )
    )  # fmt: skip
    return [record for record in lines(folder, "samples") if record["session"]]


def of(records: list[dict[str, Any]], keep: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (one["operating_point"].removesuffix(f"@keep={keep}"), one["sample_id"]): one
        for one in records
        if one["operating_point"].endswith(f"@keep={keep}")
    }


def test_warm_requests_yield_what_cold_ones_yield(records: list[dict[str, Any]]) -> None:
    warm, cold = of(records, "exact"), of(records, "none")
    assert warm.keys() == cold.keys()
    assert len({one["session"] for one in records}) == 2
    assert len(warm) == 4 * 8
    for key, one in warm.items():
        assert (one["token_ids"], one["exit_layers"]) == (cold[key]["token_ids"], cold[key]["exit_layers"])
        assert one["scores"] == cold[key]["scores"]


def test_what_earlier_requests_left_is_not_read_again(records: list[dict[str, Any]]) -> None:
    assert {one["prompt_reused"] for one in of(records, "none").values()} == {0}
    warm = of(records, "exact")
    for point in {point for point, _ in warm}:
        mine = [one for (name, _), one in warm.items() if name == point]
        for before, one in pairwise(mine):
            if one["session"] == before["session"]:
                shared = next(
                    (
                        at
                        for at, (a, b) in enumerate(zip(before["prompt_ids"], one["prompt_ids"], strict=False))
                        if a != b
                    ),
                    min(len(before["prompt_ids"]), len(one["prompt_ids"]) - 1),
                )
                assert one["prompt_reused"] >= (shared if shared >= 16 else 0)
    firsts = [one for one in mine if one["sample_id"].endswith("#1")]
    assert len(firsts) == 2
    assert sum(one["prompt_reused"] for one in mine) > sum(len(one["prompt_ids"]) for one in mine) / 5


def test_drafts_of_idle_time_change_no_token_and_are_counted(records: list[dict[str, Any]]) -> None:
    plain, ahead = (
        {one["sample_id"]: one for one in records if one["operating_point"] == f"{DRAFTING}{suffix}@keep=exact{tail}"}
        for suffix, tail in (("", ""), ("", "@prefetch=draft"))
    )
    assert plain.keys() == ahead.keys()
    assert len(ahead) == 8
    for key, one in ahead.items():
        assert one["token_ids"] == plain[key]["token_ids"]
        assert one["prefetch_used"] <= sum(one["accepted"])
    later = [one for one in ahead.values() if not one["sample_id"].endswith("#1")]
    assert sum(one["prefetched"] for one in later) > 0
    assert all(one["prefetch_s"] > 0 for one in later if one["prefetched"])
    others = [one for one in records if "prefetch" not in one["operating_point"]]
    assert {(one["prefetched"], one["prefetch_used"]) for one in others} == {(0, 0)}
    assert {one["operating_point"] for one in records if one["prefetched"]} == {f"{DRAFTING}@keep=exact@prefetch=draft"}


def test_requests_that_typing_overtakes_are_waste(records: list[dict[str, Any]]) -> None:
    assert any(one["overtaken"] for one in records)
    for one in records:
        assert (one["overtaken_s"] > 0) == (one["overtaken"] > 0)


def test_a_block_holds_whole_sessions() -> None:
    samples = [
        Sample(f"{name}#{place}", (1,), "", (), 1, session=name if name < "c" else "")
        for name, count in (("a", 3), ("b", 2), ("c", 3))
        for place in range(count)
    ]
    ids = [[sample.sample_id for sample in block] for block in in_blocks(samples, 2)]
    assert ids == [["a#0", "a#1", "a#2"], ["b#0", "b#1"], ["c#0", "c#1"], ["c#2"]]


AFTER = """
from harness.contracts import RowStop, Stop

@dataclass(frozen=True)
class Outside(Stop):
    def start(self, cursor):
        return Counting()

class Counting(RowStop):
    def over(self, token_ids):
        return len(token_ids) == 3
"""


def test_stop_rules_and_prompt_exits_in_sessions(
    tiny_llama: Path, prompt_maps: Path, tmp_path: Path, plug_in: Callable[..., Path]
) -> None:
    """A rule cuts what the row without it generates, and of kept prompts only what is new is read, and counted.

    Requests end with their line whatever the rule: `line` changes nothing.
    """
    plug_in("after", AFTER, STOPS)
    frame = run(
        RunConfig(
            model=str(tiny_llama), tasks=("py150",), scenario="session:requests=4:window=120:step=30", energy="none",
            keep=("exact", "none"), strategies=("full",), stop="line,after", prompt_exit="layer=6:tail=8", limit=2,
            max_new_tokens=12, out=tmp_path / "run", idle_s=0, weights_format="float32", kv="recompute", threads=1,
            artefacts=str(prompt_maps), untimed=True,
        )
    )  # fmt: skip
    found = frame.set_index("operating_point")
    records = [record for record in lines(tmp_path / "run", "samples") if record["session"]]
    by_point: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_point.setdefault(record["operating_point"], []).append(record)
    assert len(by_point) == 3 * 2 * 2  # stop rules and none, kept and not, whole and shallow
    for name, mine in by_point.items():
        stop = next((part[5:] for part in name.split("@") if part.startswith("stop=")), "")
        without = by_point[name.replace(f"@stop={stop}", "")]
        row = found.loc[name]
        for one, whole in zip(mine, without, strict=True):
            assert one["sample_id"] == whole["sample_id"]
            if "keep=none" in name:
                ended = stop == "after" and len(whole["token_ids"]) > 3
                assert one["token_ids"] == (whole["token_ids"][:3] if ended else whole["token_ids"])
                assert one["stop_rule"] == ("after" if ended else whole["stop_rule"])
                assert one["prompt_reused"] == 0
            new = len(one["prompt_ids"]) - one["prompt_reused"]
            assert one["prompt_layers"] + one["prompt_layers_skipped"] == 12 * new
            assert one["prompt_layers_skipped"] % 6 == 0
            if "prompt=" not in name:
                assert one["prompt_layers_skipped"] == 0
            assert one["layers_executed"] == 12 * (len(one["token_ids"]) - 1)
        generated, possible = (sum(len(one["token_ids"]) for one in some) for some in (mine, by_point[full_of(name)]))
        saved = 1 - generated / possible if stop else math.nan
        assert row["tokens_saved"] == pytest.approx(saved, nan_ok=True)
        skipped = [sum(one[count] for one in mine) for count in ("prompt_layers_skipped", "prompt_layers")]
        share = skipped[0] / sum(skipped) if "prompt=" in name else math.nan
        assert row["prompt_layers_skipped"] == pytest.approx(share, nan_ok=True)


def full_of(name: str) -> str:
    return f"full@keep={name.partition('keep=')[2].partition('@')[0]}"


def test_requests_that_are_overtaken_end_by_the_stop_rule_as_others_do(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[tuple[int, ...], bool]] = []
    decode = EngineSession.decode

    def noted(self: EngineSession, owner: str, prompt: tuple[int, ...], *given: Any, **more: Any) -> Any:
        asked.append((prompt, more["rule"] is not None))
        return decode(self, owner, prompt, *given, **more)

    monkeypatch.setattr(EngineSession, "decode", noted)
    run(
        RunConfig(
            model=str(tiny_llama), tasks=("py150",), scenario="session:requests=4:window=120:step=30", energy="none",
            strategies=("full",), stop="line", limit=2, max_new_tokens=4, out=tmp_path / "run", idle_s=0, threads=1,
            weights_format="float32",
        )
    )  # fmt: skip
    ruled, plain = ([prompt for prompt, rule in asked if rule == wanted] for wanted in (True, False))
    assert sorted(ruled) == sorted(plain)
    assert any(record["overtaken"] for record in lines(tmp_path / "run", "samples"))
