"""Stop rules as written."""

from __future__ import annotations

from typing import Any

import pytest

from harness.config import RunConfig
from harness.config.stops import build_stop
from harness.errors import HarnessError
from harness.serving.config import ServeConfig


@pytest.mark.parametrize(
    ("written", "stops"),
    [
        ("none", ("none",)),
        ("none, statement,none", ("none", "statement")),
        (["excess : threshold = 0.5", "block"], ("excess:threshold=0.5", "block")),
    ],
)
def test_a_comma_list_compares(written: Any, stops: tuple[str, ...]) -> None:
    config = RunConfig.build({"stop": written})
    assert config.stops == stops
    assert RunConfig.build(config.model_dump(mode="json")).stops == stops


def test_a_rule_is_built_with_its_options() -> None:
    built = build_stop("excess:threshold=0.25")
    assert built is not None
    assert (built.name, built.rule.threshold, built.written) == ("excess", 0.25, "excess:threshold=0.25")  # type: ignore[attr-defined]
    assert build_stop("none") is None


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("statment", r"unknown stop rule 'statment'.*Did you mean 'statement'"),
        ("", r"names no stop rule"),
        ("excess:0.5", r"cannot be read at '0\.5'"),
        ("excess:threshold=2", r"excess:threshold=2 is not allowed"),
        ("block:language=java:language=java", r"gives option 'language' twice"),
        ("block:tongue=java", r"has no option 'tongue'"),
        ("statement:language=kotlin", r"statement:language=kotlin is not allowed"),
        ("none:language=java", r"unknown stop rule 'none'"),
    ],
)
@pytest.mark.parametrize("kind", [RunConfig, ServeConfig])
def test_what_is_no_rule_is_refused(kind: Any, written: str, said: str) -> None:
    with pytest.raises(HarnessError, match=said) as refused:
        kind.build({"stop": written})
    assert "\n" not in str(refused.value)
