"""Full depth is lm-eval's own model; exits are the engine's; what cannot be right is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ConfigError
from tests.lm_eval.conftest import KINDS

Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def make(tiny_llama: Path) -> Callable[..., Any]:
    from harness.lm_eval import EarlyExitLM

    def lm(*given: Any, **settings: Any) -> Any:
        return EarlyExitLM(str(tiny_llama), *given, **{"energy": "none", "threads": 1, **settings})

    return lm


@pytest.fixture(scope="module")
def ours(make: Callable[..., Any], evaluate: Evaluate) -> dict[str, Any]:
    return evaluate(make(batch_size=3), *KINDS)


def answers(results: dict[str, Any], kind: str) -> list[Any]:
    """What the model answered each document, in order; a log-likelihood is a number."""
    return [sample["resps"] for sample in results["samples"][f"ours_{kind}"]]


@pytest.mark.parametrize("kind", ["line", "long"])
def test_full_depth_writes_the_texts_of_hf(ours: dict[str, Any], hf: dict[str, Any], kind: str) -> None:
    assert answers(ours, kind) == answers(hf, kind)
    assert len({str(answer) for answer in answers(ours, kind)}) > 3


@pytest.mark.parametrize("kind", ["choice", "whole"])
def test_full_depth_has_the_likelihoods_of_hf(ours: dict[str, Any], hf: dict[str, Any], kind: str) -> None:
    for mine, theirs in zip(answers(ours, kind), answers(hf, kind), strict=True):
        for (one,), (other,) in zip(mine, theirs, strict=True):
            likelihood, other_likelihood = (float(each[0] if isinstance(each, tuple) else each) for each in (one, other))
            assert likelihood == pytest.approx(other_likelihood, rel=1e-5, abs=1e-4)
            if isinstance(one, tuple):
                assert one[1] == other[1]


def test_full_depth_has_the_metrics_of_hf(ours: dict[str, Any], hf: dict[str, Any]) -> None:
    assert ours["results"].keys() == hf["results"].keys() == {f"ours_{kind}" for kind in KINDS}
    for task, theirs in hf["results"].items():
        assert {name: value for name, value in ours["results"][task].items() if isinstance(value, float)} == {
            name: pytest.approx(value, rel=1e-5) for name, value in theirs.items() if isinstance(value, float)
        }
