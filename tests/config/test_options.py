"""From a strategy as written to a strategy as built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from harness.config import parse_strategies
from harness.config.options import OptionFacts, build_strategy, effective_options, option_facts
from harness.errors import OptionError, RegistryError, UnknownNameError
from strategies.margin import Margin

# ---------------------------------------------------------------------------------------- building


def built(text: str) -> Any:
    (spec,) = parse_strategies(text)
    return build_strategy(spec)


def test_text_becomes_typed_options() -> None:
    strategy = built("margin:threshold=0.7:horizon=20")
    assert strategy == Margin(threshold=0.7, decay=0.0, horizon=20)
    assert isinstance(strategy.horizon, int)
    assert effective_options(strategy) == {
        "threshold": 0.7,
        "decay": 0.0,
        "horizon": 20,
        "head": "full",
        "token": "full",
    }


@pytest.mark.parametrize(
    ("text", "error", "reason"),
    [
        ("confidance", UnknownNameError, r"unknown strategy 'confidance'\. Did you mean 'confidence'\?"),
        (
            "zzz",
            UnknownNameError,
            r"unknown strategy 'zzz'\. Known: clasp, classifier, confidence, consistent, del, endpoint, .*saturation",
        ),
        (
            "confidence:treshold=1",
            OptionError,
            r"has no option 'treshold'\. Did you mean 'threshold'\? Options: thresh",
        ),
        ("full:layer=3", OptionError, r"strategy 'full' has no option 'layer'\. It has none"),
        (
            "confidence:threshold=1.5",
            OptionError,
            r"confidence:threshold=1\.5 is not allowed: .*less than or equal to 1",
        ),
        ("confidence:threshold=high", OptionError, r"threshold=high is not allowed: .*number"),
        ("confidence:threshold=nan", OptionError, r"threshold=nan is not allowed"),
        ("fixed:layer=0", OptionError, r"fixed:layer=0 is not allowed: .*greater than or equal to 1"),
        ("fixed:layer=2.5", OptionError, r"fixed:layer=2\.5 is not allowed: .*integer"),
        ("patience:patience=1", OptionError, r"greater than or equal to 2"),
        ("random:seed=2147483648", OptionError, r"less than 2147483648"),
    ],
)
def test_refusals_name_option_value_and_range(text: str, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        built(text)


# ------------------------------------------------------------------------------------------- facts


def test_facts_of_strict_limits_and_of_none() -> None:
    seed = next(one for one in option_facts("random") if one.name == "seed")
    assert seed == OptionFacts("seed", "int", "≥ 0, < 2147483648", 0, "added to the run's own seed")
    assert option_facts("full") == []
    with pytest.raises(UnknownNameError, match="Did you mean 'margin'"):
        option_facts("margn")


# ----------------------------------------------------------------------------------- third parties


def test_an_option_without_a_default_must_be_given(plug_in: Callable[..., None]) -> None:
    plug_in(
        "needy",
        """
        @dataclass(frozen=True)
        class Outside(Strategy):
            layer: int
            note: str = "x"
            def should_exit(self, view): ...
        """,
    )
    with pytest.raises(OptionError, match=r"strategy 'needy' needs layer\. See `harness show needy`"):
        built("needy")
    assert effective_options(built("needy:layer=3")) == {"layer": 3, "note": "x"}
    assert [(one.name, one.kind, one.limits, one.default) for one in option_facts("needy")] == [
        ("layer", "int", "", None),
        ("note", "str", "", "x"),
    ]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("class Outside(Strategy):\n    pass", "strategy 'odd' is not a dataclass"),
        ("def Outside(): ...", "strategy 'odd' is not a dataclass"),
        (
            "@dataclass(frozen=True)\nclass Outside:\n    def should_exit(self, view): ...",
            r"strategy 'odd' lacks upper_bound, exit_points, artefacts, trained_defaults, start: "
            r"subclass harness\.contracts\.Strategy",
        ),
    ],
)
def test_what_is_no_strategy_is_refused(plug_in: Callable[..., None], source: str, reason: str) -> None:
    plug_in("odd", source)
    with pytest.raises(RegistryError, match=reason):
        built("odd")
    with pytest.raises(RegistryError, match=reason):
        option_facts("odd")
