"""How often the host waits for the device, per token: counted on a device that only says that it is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from harness.contracts import Batch, ExitRule, ModelInfo, Strategy
from strategies.confidence import Confidence
from strategies.entropy import Entropy
from strategies.fixed import Fixed
from strategies.full import Full
from strategies.hash import _Layers
from strategies.margin import Margin
from strategies.patience import Patience
from strategies.random import Random
from strategies.saturation import Saturation
from strategies.schedule import Schedule
from tests.crossing import in_turn
from tests.decoding.pretended import DEVICE, Tape, crossings, moved

TOKENS = (3, 6)


@dataclass(frozen=True)
class Table(Full):
    """The hash strategy's rule over a table of its own: no artefact."""

    default_kv: ClassVar[str] = "recompute"

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        return model.exit_points

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        return _Layers({token: 1 + token % 7 for token in range(model.vocab_size)})


KNOWN = {"full": Full(), "fixed": Fixed(layer=3), "hash": Table(), "schedule": Schedule(first=5, last=2, horizon=9)}
ASKED = {
    "confidence": Confidence(threshold=0.5), "entropy": Entropy(), "patience": Patience(), "random": Random(),
    "margin": Margin(threshold=0.5, decay=2.0), "saturation": Saturation(),
}  # fmt: skip


def per_token(
    case: Any, prompts: list[list[int]], strategy: Strategy, kv: str, recorder: Tape | None = None
) -> tuple[float, float, float]:
    """Return reads, uploads that wait and checks per step; what comes out is what the CPU makes."""
    engine, found, checks = moved(case.engine, recorder=recorder), [], []
    for count in TOKENS:
        arguments: dict[str, Any] = {"kv": kv, "max_new_tokens": [count] * len(prompts)}
        made: list[Any] = []
        found.append(crossings(lambda: made.extend(engine.decode(prompts, strategy, **arguments))))  # noqa: B023
        here = case.engine.decode(prompts, strategy, **arguments)
        assert [(one.token_ids, one.exit_layers) for one in made] == [(one.token_ids, one.exit_layers) for one in here]
        checks.append(sum(one.exit_checks for one in made))
    steps = TOKENS[1] - TOKENS[0]
    reads, uploads = (
        (sum(getattr(found[1], kind).values()) - sum(getattr(found[0], kind).values())) / steps
        for kind in ("reads", "uploads")
    )
    return reads, uploads, (checks[1] - checks[0]) / steps


@in_turn(name=list(KNOWN), kv=["propagate", "recompute", "skip", "none"])
def test_what_the_host_knows_costs_no_read(llama: Any, prompts: list[list[int]], name: str, kv: str) -> None:
    """Full depth, a layer, a table, a schedule: a token is read once, since the host is to know it."""
    reads, uploads, checks = per_token(llama, prompts[:1], KNOWN[name], kv)

    assert (reads, uploads) == (1, 0)
    assert checks >= (0 if name == "full" else 1)


@pytest.mark.parametrize("name", ["fixed", "hash"])
def test_recorded_segments_cost_no_read(llama: Any, prompts: list[list[int]], name: str) -> None:
    tape, strategy = Tape(), KNOWN[name]

    assert per_token(llama, prompts[:1], strategy, strategy.default_kv, tape)[:2] == (1, 0)
    assert tape.replayed > 0


@pytest.mark.slow
@in_turn(name=list(ASKED), kv=["recompute", "propagate", "skip", "none"])
def test_a_check_is_one_read_at_most(llama: Any, prompts: list[list[int]], name: str, kv: str) -> None:
    reads, uploads, checks = per_token(llama, prompts[:1], ASKED[name], kv)

    assert 1 < reads <= checks + 1
    assert uploads == 0


@pytest.mark.slow
@in_turn(name=["classifier", "lte", "rl"], kv=["recompute", "propagate"])
def test_a_check_of_a_learned_exit_is_one_read_at_most(
    llama: Any, learned: Callable[..., Strategy], prompts: list[list[int]], name: str, kv: str
) -> None:
    strategy = learned(name, llama.info)
    per_token(llama, prompts[:1], strategy, kv)  # takes the controller to the device
    reads, uploads, checks = per_token(llama, prompts[:1], strategy, kv)

    assert 1 < reads <= checks + 1 + 1e-9  # of thirds
    assert uploads == 0


def test_rows_that_leave_apart_are_read_apart(llama: Any, prompts: list[list[int]]) -> None:
    """Three rows leave at three exits at most, so that their tokens are three reads."""
    reads, uploads, _ = per_token(llama, prompts, KNOWN["hash"], "recompute")

    assert 1 < reads <= 3
    assert uploads == 0


def test_counting_counts() -> None:
    def work() -> None:
        there = torch.zeros(3).to(DEVICE, non_blocking=True)
        torch.tensor([1], device=DEVICE)  # waits
        there[[0, 1]]  # so does a list as an index
        int(there[0]), there.tolist(), bool(there.any()), there.nonzero(), there[there == 1]

    found = crossings(work)
    assert (sum(found.reads.values()), sum(found.uploads.values())) == (5, 2)
    with pytest.raises(AssertionError, match="mixes"):
        crossings(lambda: torch.zeros(3, device=DEVICE) + torch.ones(3))
