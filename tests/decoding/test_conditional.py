"""Tokens whose exits the device decides: the same tokens, layers and counts, and one read for each."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import ExitView, Lossless, Strategy
from harness.decoding import conditional
from harness.decoding.graphs import recorder_for
from harness.errors import ModelError, OptionError
from strategies.confidence import Confidence
from strategies.fixed import Fixed
from strategies.margin import Margin
from tests.decoding.capturable_rules import RULES, Turning
from tests.decoding.pretended import Crossings, Tape, crossings, moved

COUNTS = ("exit_checks", "lm_head_evaluations", "shortcut_evaluations", "layers_executed", "kv_fill_layers")

STAYS = torch.tensor([False])


def decoded(engine: Any, prompts: list[list[int]], strategy: Any, kv: str, count: int = 16) -> list[Any]:
    made = engine.decode(prompts, strategy, kv=kv, max_new_tokens=[count] * len(prompts))
    names = ("token_ids", "exit_layers", "finish_reason", "failure", *COUNTS)
    return [{name: getattr(one, name) for name in names} for one in made]


@pytest.mark.parametrize("form", ["llama", "qwen3", "opt", "gpt2"])
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("kv", ["propagate", "recompute"])
@pytest.mark.crossed
def test_the_device_decides_as_the_host_does(
    cases: Callable[[str], Any], form: str, name: str, kv: str, prompts: list[list[int]]
) -> None:
    """As segments do that the host asks after. Twice, so that all is done again from what was recorded."""
    engine, strategy = cases(form).engine, RULES[name]
    segments, tokens = (moved(engine, recorder=Tape(conditional=whole)) for whole in (False, True))
    for prompt in prompts[:2]:
        with Crossings():
            asked = decoded(segments, [prompt], strategy, kv)
        for _ in range(2):
            gc.collect()
            with Crossings():
                assert decoded(tokens, [prompt], strategy, kv) == asked


@pytest.mark.parametrize("name", ["classifier", "lte", "rl"])
@pytest.mark.parametrize("kv", ["propagate", "recompute"])
def test_learned_exits_are_decided_alike(
    llama: Any, learned: Callable[..., Strategy], name: str, kv: str, prompts: list[list[int]]
) -> None:
    tape = Tape(conditional=True)
    segments, tokens = moved(llama.engine, recorder=Tape()), moved(llama.engine, recorder=tape)
    strategy = learned(name, llama.info)
    with Crossings():
        asked = decoded(segments, prompts[:1], strategy, kv, 24)
        assert len(set(asked[0]["exit_layers"])) >= 3
        for _ in range(2):
            assert decoded(tokens, prompts[:1], strategy, kv, 24) == asked
    assert tape.skipped > 0


def test_a_rule_that_cannot_be_a_key_is_asked_by_the_host(llama: Any, prompts: list[list[int]]) -> None:
    @dataclass(frozen=True)
    class Listed(Turning):
        layers: Any = ()

    tape = Tape(conditional=True)
    with Crossings():
        found = decoded(moved(llama.engine, recorder=tape), prompts[:1], Listed(layers=[1, 2]), "recompute")
        assert found == decoded(moved(llama.engine, recorder=Tape()), prompts[:1], Turning(), "recompute")
    assert tape.recorded > 1  # segments


def test_tokens_leave_at_several_layers(llama: Any, prompts: list[list[int]]) -> None:
    """What the comparison above compares, so that it is one: exits of all depths, and runs that join."""
    (made,) = decoded(llama.engine, prompts[:1], Turning(), "recompute", 30)
    assert len(set(made["exit_layers"])) >= 4
    assert made["layers_executed"] > sum(made["exit_layers"][1:])  # what waited has gone deeper since


@pytest.mark.parametrize("name", ["confidence", "saturation", "turning"])
def test_a_token_is_one_read(llama: Any, prompts: list[list[int]], name: str) -> None:
    engine = moved(llama.engine, recorder=Tape(conditional=True))

    def work(count: int) -> Crossings:
        return crossings(lambda: decoded(engine, prompts[:1], RULES[name], "propagate", count))

    work(20)  # records
    few, many = work(4), work(20)
    assert many.reads.total() - few.reads.total() == 16
    assert many.uploads.total() == few.uploads.total()


def test_what_no_check_needs_is_not_computed(llama: Any, prompts: list[list[int]]) -> None:
    tape = Tape(conditional=True)
    with Crossings():
        (made,) = decoded(moved(llama.engine, recorder=tape), prompts[:1], Confidence(threshold=0), "propagate", 9)
    assert set(made["exit_layers"][1:]) == {1}
    checks = len(llama.info.exit_points)
    assert tape.recorded == 1
    assert tape.skipped == 8 * (2 * checks - 1)  # behind the first check: the others, their answers, the last layers


def test_scores_that_are_no_numbers_fail_the_row(llama: Any, prompts: list[list[int]]) -> None:
    @dataclass(frozen=True)
    class Undefined(Turning):
        def should_exit(self, view: ExitView) -> Tensor:
            score = view.once("undefined", lambda: view.hidden_state.float().sum(-1) * torch.nan)
            return score > 0

    engine = moved(llama.engine, recorder=Tape(conditional=True))
    with Crossings():
        (made,) = engine.decode(prompts[:1], Undefined(), kv="recompute", max_new_tokens=[4])
    (here,) = llama.engine.decode(prompts[:1], Undefined(), kv="recompute", max_new_tokens=[4])
    assert str(made.failure) == str(here.failure)
    assert "scores of layer 1 are not finite" in str(made.failure)


@pytest.mark.parametrize(
    ("asks", "what"),
    [
        (lambda view: view.position >= 0, "cannot see positions"),
        (lambda view: view.hidden_state.sum(-1) > len(view.token_ids[0]), "cannot see tokens"),
        (lambda view: view.answer_with(view.top_token, view.top_probability) or view.top_token > 0, "more than answer"),
        (lambda view: view.hidden_state.sum() > 0, "returned a tensor of shape"),
        (lambda _: STAYS, "more than answer on the device"),
        (lambda view: view.logits_of(view.top_token.unsqueeze(1))[:, 0] > 0, "cannot see logits of some tokens"),
        (lambda view: view.full_depth_token > 0, "cannot see the last layer"),
    ],
)
def test_a_rule_that_cannot_be_recorded_is_refused(
    llama: Any, prompts: list[list[int]], asks: Callable[[ExitView], Tensor], what: str
) -> None:
    @dataclass(frozen=True)
    class Wrong(Turning):
        def should_exit(self, view: ExitView) -> Tensor:
            return asks(view)

    engine = moved(llama.engine, recorder=Tape(conditional=True))
    with Crossings(), pytest.raises(OptionError, match=what):
        engine.decode(prompts[:1], Wrong(), kv="recompute", max_new_tokens=[4])


def test_what_cannot_be_recorded_goes_segment_by_segment(llama: Any, prompts: list[list[int]]) -> None:
    """Several rows, a rule with a state, lossless rows, a policy that hides positions."""
    engine = moved(llama.engine, recorder=Tape(conditional=True))
    cases: list[tuple[list[list[int]], Strategy, str, dict[str, Any]]] = [
        (prompts, Confidence(threshold=0.5), "recompute", {}),
        (prompts[:1], Margin(threshold=0.1, decay=2.0), "recompute", {}),
        (prompts[:1], Fixed(layer=3), "propagate", {}),
        (prompts[:1], Confidence(threshold=0.5), "recompute", {"lossless": Lossless(most=3)}),
        (prompts[:1], Confidence(threshold=0.5), "skip", {}),
        (prompts[:1], Confidence(threshold=0.5), "none", {}),
    ]
    for rows, strategy, kv, more in cases:
        arguments: dict[str, Any] = {"kv": kv, "max_new_tokens": [8] * len(rows), **more}
        here = llama.engine.decode(rows, strategy, **arguments)
        with Crossings():
            there = engine.decode(rows, strategy, **arguments)
        assert [(one.token_ids, one.exit_layers) for one in there] == [(one.token_ids, one.exit_layers) for one in here]


def test_the_oldest_recorded_token_goes(llama: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditional, "MOST", 2)
    tape = Tape(conditional=True)
    engine = moved(llama.engine, recorder=tape)
    with Crossings():
        for threshold in (0.3, 0.4, 0.5, 0.5, 0.3):
            decoded(engine, prompts[:1], replace(Confidence(), threshold=threshold), "propagate", 4)
            gc.collect()
    assert tape.recorded == 4  # the first one twice


def test_a_cpu_has_no_such_graphs(llama: Any) -> None:
    assert recorder_for(llama.engine.backbone, "segments") is None
    with pytest.raises(ModelError, match="needs plain matrices on a CUDA device"):
        recorder_for(llama.engine.backbone, "conditional")
