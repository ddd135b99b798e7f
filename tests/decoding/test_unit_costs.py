"""What decoding costs: measured when asked for, as stated by a run that goes on, or bytes of weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.contracts import LM_HEAD, HeadChoice, Lossless, Strategy, UnitCosts
from harness.decoding.drafts.expected import Expected
from harness.decoding.engine import Engine
from harness.decoding.readings import Heads
from harness.decoding.unit_costs import PASSES, Timing
from harness.records import DraftTimes, UnitTimes
from strategies.confidence import Confidence
from strategies.dynamic_exit import DynamicExit
from strategies.fixed import Fixed
from strategies.full import Full
from strategies.oracle import Oracle
from tests.decoding.conftest import each_kind, with_heads

NEW, LAYERS, POINTS = 24, 6, (1, 2, 3, 4, 5)
SHORTLIST = HeadChoice("shortlist", 40)


def times(*drafters: str, layer_s: float = 1.0, check_s: float = 0.0, read_s: float = 0.0) -> UnitTimes:
    draft = DraftTimes(check_s=check_s, read_s=read_s)
    return UnitTimes(
        positions=9, rows=5, layer_s=layer_s, head_s=0.5, layer_row_s=0.25, head_row_s=0.125,
        drafts=dict.fromkeys(drafters, draft),
    )  # fmt: skip


@pytest.fixture
def make(llama: Any, tmp_path: Path) -> Callable[..., Engine]:
    """``make(timing)`` is an engine of a model for which a shortlist is trained."""
    return lambda timing=None: with_heads(llama, tmp_path, timing, layer_bytes=70, lm_head_bytes=900)


def costs(engine: Engine, strategy: Strategy, head: HeadChoice = LM_HEAD) -> UnitCosts:
    return engine.facts(strategy, Lossless(head=head)).costs


def decoded(engine: Engine, prompts: Sequence[Sequence[int]], strategy: Strategy, lossless: Lossless | None) -> Any:
    limits = [NEW] * len(prompts)
    return engine.decode(prompts, strategy, kv="recompute", max_new_tokens=limits, lossless=lossless)


def test_nothing_is_measured_until_somebody_asks_and_then_once(make: Any, prompts: Any) -> None:
    engine = make(Timing())
    decoded(engine, prompts, Full(), None)
    decoded(engine, prompts, Confidence(threshold=0.3), Lossless())
    assert engine.timing.times is None
    decoded(engine, prompts, Confidence(threshold=0.3), Lossless(sources=(Expected(),)))
    first = engine.timing.times
    assert first.drafts.keys() == {"Confidence, drafts by full"}
    decoded(engine, prompts, Confidence(threshold=0.3), Lossless(sources=(Expected(),)))
    assert engine.timing.times == first
    decoded(engine, prompts, DynamicExit(), Lossless(head=SHORTLIST))
    assert engine.timing.times.drafts.keys() == {"Confidence, drafts by full", "DynamicExit, drafts by shortlist/40"}
    assert engine.timing.times.layer_s == first.layer_s


def test_what_is_measured_is_what_is_told(make: Any) -> None:
    engine = make(Timing())
    found = costs(engine, Confidence(head="shortlist/40"), SHORTLIST)
    known = engine.timing.times
    draft = known.drafts["Confidence+shortlist/40, drafts by shortlist/40"]
    assert (known.positions, known.rows) == (128, 5)
    assert 0 < known.layer_s < 0.1
    assert 0 < known.head_s < 0.1
    assert min(known.layer_row_s, known.head_row_s) >= 0
    assert 0 < draft.check_s < 0.1
    assert 0 < draft.read_s < 0.1
    assert found == UnitCosts(
        known.layer_s, known.head_s, 0, "seconds on this machine, 128 positions read", draft.read_s, draft.check_s,
        POINTS, known.layer_row_s, known.head_row_s, tuple(sorted(known.pass_s.items())),
    )  # fmt: skip
    assert set(known.pass_s) == {*PASSES}
    assert list(dict(sorted(known.pass_s.items())).values()) == sorted(known.pass_s.values()), "more rows, no less time"


def test_a_strategy_that_decided_before_is_not_asked(make: Any) -> None:
    engine = make(Timing())
    assert costs(engine, Oracle()).asked_at == ()
    assert engine.timing.times.drafts.keys() == {"nobody, drafts by full"}
    assert engine.timing.times.drafts["nobody, drafts by full"].check_s == 0


def test_a_run_that_goes_on_measures_nothing(make: Any) -> None:
    engine = make(Timing(times("DynamicExit, drafts by shortlist/40", check_s=0.01, read_s=0.02), measures=False))
    assert costs(engine, DynamicExit(), SHORTLIST) == UnitCosts(
        1, 0.5, 0, "seconds on this machine, 9 positions read", 0.02, 0.01, POINTS, 0.25, 0.125
    )
    assert costs(engine, Fixed(2)).source == "bytes of weights read"  # never half of each


def test_without_times_costs_are_bytes_those_of_the_draft_head_too(make: Any) -> None:
    for engine in (make(), make(Timing(measures=False))):
        assert costs(engine, DynamicExit()) == UnitCosts(70, 900, 0, "bytes of weights read")
        size = Heads(engine.backbone)[SHORTLIST].nbytes
        assert costs(engine, DynamicExit(), SHORTLIST) == UnitCosts(70, 900, 0, "bytes of weights read", size)
        assert costs(engine, DynamicExit(), SHORTLIST).draft(2, LAYERS) == 140 + size


@pytest.mark.parametrize(
    ("drafting", "drafts"),
    [
        ({"read_s": 0.0}, True),
        ({"read_s": 100.0}, False),
        ({"check_s": 100.0}, False),
        ({"layer_s": 1e-9, "read_s": 1.0}, False),
    ],
)
def test_del_drafts_where_its_costs_let_it(make: Any, prompts: Any, drafting: dict[str, float], drafts: bool) -> None:
    engine = make(Timing(times("DynamicExit, drafts by full", **drafting), measures=False))
    made = decoded(engine, prompts, DynamicExit(), Lossless())
    assert (sum(one.drafts for one in made) > 0) is drafts
    plain = decoded(engine, prompts, Full(), None)
    assert [one.token_ids for one in made] == [one.token_ids for one in plain]


def test_a_model_of_few_positions_is_measured_at_those(make_case: Any) -> None:
    case = make_case("gpt2", max_position_embeddings=3)
    engine = Engine(case.engine.backbone, case.info, timing=Timing())
    assert costs(engine, DynamicExit()).source == "seconds on this machine, 3 positions read"
    assert engine.timing.times.rows == 3


@pytest.mark.slow
@each_kind
def test_every_family_can_be_measured(case: Any) -> None:
    engine = Engine(case.engine.backbone, case.info, timing=Timing())
    assert costs(engine, Confidence()).check > 0


@pytest.mark.parametrize(
    ("rows", "cost"), [(1, 10.5), (2, 12.0), (3, 13.0), (4, 14.0), (6, 22.0), (8, 30.0), (9, 34.0)]
)
def test_a_pass_of_several_rows_costs_what_was_measured(rows: int, cost: float) -> None:
    measured = UnitCosts(
        1, 0.5, 0, "this test", layer_row=0.1, head_row=0.5, passes=((1, 10.5), (2, 12), (4, 14), (8, 30))
    )
    assert measured.deep(10, rows) == pytest.approx(cost)


def test_a_further_row_has_one_price_where_no_pass_was_timed() -> None:
    assert UnitCosts(1, 0.5, 0, "this test", layer_row=0.1, head_row=0.5).deep(10, 3) == pytest.approx(10.5 + 2 * 1.5)
