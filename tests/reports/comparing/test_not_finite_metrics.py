"""A metric that is infinite or NaN is missing and counted wherever it comes from; no test and no file meets it."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.appearance.visible_text import json_text
from harness.contracts import Metric
from reports.comparing.change import Change, change, corrected
from reports.comparing.compare import Wanted, compare_runs
from reports.comparing.document import comparison_document
from reports.metrics.vocabulary import all_metrics

PERPLEXITY = {"name": "perplexity", "header": "ppl", "meaning": "made up", "of_sample": lambda _: 1.0, "kind": "work"}
numbers = st.one_of(st.sampled_from((math.inf, -math.inf, math.nan, 0.0, 1.0, 1e12, 1e-300)), st.floats(-1e6, 1e6))


@pytest.mark.parametrize("percentile", [None, 50])
@pytest.mark.parametrize("paired", [True, False])
@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=5, max_size=12))
def test_changes_of_anything_are_finite_or_missing(paired: bool, percentile: int | None, rows: list[Any]) -> None:
    metric = Metric(**PERPLEXITY, percentile=percentile)
    row: Callable[[float], tuple[float, ...]] = lambda value: (value,) if percentile else (value, 1.0)  # noqa: E731
    a, b = ({frozenset([str(at)]): row(one[side]) for at, one in enumerate(rows)} for side in (0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = corrected([change(metric, a, b, paired=paired)])
    told = [getattr(found, name) for name in Change.__dataclass_fields__ if name != "metric"]
    flat = [one for value in told for one in (value if isinstance(value, tuple) else (value,))]
    assert all(math.isfinite(one) for one in flat if isinstance(one, float))
    if found.absolute is None:
        assert found.p_holm is None
        assert found.reason


def test_a_metric_that_is_infinite_is_missing_and_counted(
    build: Any, recorded: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plug-in's perplexity is infinite at a third of full depth's prompts, and at all of the fixed exit's."""

    def perplexity(sample: Any) -> float:
        if sample.operating_point != "full":
            return math.inf
        return math.inf if int(sample.sample_id[1:]) % 3 == 0 else 2.0 + len(sample.sample_id)

    metric = Metric(**PERPLEXITY | {"of_sample": perplexity})
    for module in ("reports.summary.summarise", "reports.comparing.change"):
        monkeypatch.setattr(f"{module}.all_metrics", lambda scores=(): (*all_metrics(scores), metric))
    times = {"full": [1.0, 1.1] * 9, "fixed:layer=5": [0.5, 0.6] * 9}
    a, b = recorded("a", seconds=times), recorded("b", seconds=times)
    found = compare_runs(a, b, Wanted())
    full, fixed = (point.of("perplexity") for point in found.points)
    assert (full.absolute, full.units) == (0.0, 12)
    assert full.reason == "left out, as not a finite number: 6 of A, 6 of B"
    assert fixed.p_holm is None
    assert fixed.reason.endswith("left out, as not a finite number: 18 of A, 18 of B")
    assert "perplexity: 24 number(s) left out as not finite or beyond all reason." in a.summary.notes
    assert [row.metrics.get("perplexity") is None for row in a.summary.rows] == [False, True]
    json.loads(json_text(comparison_document(found, [])), parse_constant=pytest.fail)
