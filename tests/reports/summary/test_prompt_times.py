"""Reading a prompt is one work, whoever decodes afterwards: its time is pooled where requests are compared."""

from __future__ import annotations

from typing import Any

import pytest

from reports.metrics.speedups import DECODE_SPEEDUP, SPEEDUP, SPEEDUP_HIGHEST
from reports.metrics.time import TTFT_P50

FULL, OTHER, THIRD = "full", "fixed:layer=5", "fixed:layer=8"


def request(run: Any, point: str, prompt_s: float, decode_s: float, *, block: int = 0, **more: Any) -> None:
    """Add a window of one request whose prompt took so long, and two tokens after it."""
    times = (prompt_s, prompt_s + decode_s / 2, prompt_s + decode_s)
    window = {key: more.pop(key) for key in ("repeat",) if key in more}
    sample = {"token_times_s": times, "ttft_s": prompt_s, "latency_s": times[-1], **more}
    run.window(point, sample, duration=times[-1], block=block, **window)


def test_a_prompt_takes_its_mean_time_in_every_request_that_is_compared(build: Any) -> None:
    run = build(points=(FULL, OTHER, THIRD))
    request(run, FULL, 1.0, 2.0)
    request(run, OTHER, 3.0, 1.0)  # read three times as slowly, by chance
    request(run, THIRD, 2.0, 2.0)
    rows = {row.operating_point: row for row in run.summary().rows}
    assert rows[OTHER].value(SPEEDUP) == pytest.approx((2 + 2) / (2 + 1))
    assert rows[THIRD].value(SPEEDUP) == pytest.approx(1.0)
    assert rows[OTHER].value(DECODE_SPEEDUP) == pytest.approx(2.0)
    assert rows[OTHER].value(TTFT_P50) == 3.0, "what was measured stays"


def test_each_repeat_and_weights_format_is_pooled_by_itself(build: Any) -> None:
    run = build(points=(FULL, OTHER))
    for repeat, slow in ((0, 1.0), (1, 5.0)):
        request(run, FULL, slow, 2.0, repeat=repeat)
        request(run, OTHER, slow + 2, 1.0, repeat=repeat)
    assert run.row(OTHER).value(SPEEDUP_HIGHEST) == pytest.approx((2 + 2) / (2 + 1))
    run = build(points=("full@float32", "full@int4"), formats=("float32", "int4"))
    request(run, "full@float32", 4.0, 2.0)
    request(run, "full@int4", 2.0, 1.0)
    over = run.row("full@int4").value("speedup_over_fastest")
    assert over == pytest.approx(6 / 3)


@pytest.mark.parametrize(
    ("built", "sample"),
    [
        ({"kv": "none"}, {}),  # the first token is decoded as any other
        ({"batch_size": 2}, {}),  # one pass for several prompts
        ({}, {"arrival_s": 0.0, "queue_s": 0.0}),  # a slow prompt delays whoever waits
        ({}, {"prompt_ids": (1, 2)}),  # another text
    ],
)
def test_what_is_not_the_same_work_is_not_pooled(build: Any, built: dict[str, Any], sample: dict[str, Any]) -> None:
    run = build(**built)
    request(run, FULL, 1.0, 2.0)
    request(run, OTHER, 3.0, 1.0, **sample)
    assert run.row(OTHER).value(SPEEDUP) == pytest.approx(3 / 4)
