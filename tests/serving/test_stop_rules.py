"""Requests end by stop rules, the server's or their own, lossy and lossless beside each other, streamed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from harness.registry import STOPS
from harness.serving.completions import InvalidRequestError, early_exit_report
from harness.serving.service import Service
from tests.serving.conftest import alone, ids, job, run

SOURCE = """
    from harness.contracts import RowStop, Stop

    @dataclass(frozen=True)
    class Outside(Stop):
        tokens: int = 5
        states: bool = False
        file: str = ""

        def start(self, cursor):
            return Rule(self, cursor)

    class Rule(RowStop):
        def __init__(self, options, cursor):
            self.options, self.reads_states, self.seen = options, options.states, 0
            assert cursor.before.startswith("def load") and cursor.language == ""

        def see(self, layer, state):
            assert state.shape == (self_width,)
            self.seen += 1

        def over(self, token_ids):
            if self.options.tokens == 99:
                raise ValueError("not today")
            return (self.seen if self.reads_states else len(token_ids)) >= self.options.tokens
"""


@pytest.fixture
def after(plug_in: Callable[..., None], tiny_llama: Any) -> None:
    """A rule that ends completions after some tokens, or some states."""
    width = json.loads((tiny_llama / "config.json").read_text())["hidden_size"]
    plug_in("after", SOURCE.replace("self_width", str(width)), STOPS)


def test_rules_end_requests_lossy_and_lossless(own: Callable[..., Service], after: None) -> None:
    service = own(strategies=("fixed:layer=4",), stop="after", decode="lossless")
    ways: list[tuple[dict[str, Any], int]] = [
        ({}, 5),
        ({"stop_rule": "none"}, 24),
        ({"stop_rule": "after:tokens=3", "decode": "lossy"}, 3),
        ({"stop_rule": "after:tokens=3:states=true"}, 3),
        ({"stop_rule": "after:tokens=7:states=true", "decode": "lossy"}, 7),
        ({"stop_rule": "after:tokens=7", "draft": "lookup:min_n=1"}, 7),
    ]
    jobs = [job(service, tokens=24, **given) for given, _ in ways]
    for (_, tokens), wanted, done in zip(ways, jobs, run(service, *jobs), strict=True):
        assert ids(done) == alone(service, wanted).token_ids[:tokens]
        assert (done.ending, done.stopped_by) == (("length", "") if tokens == 24 else ("stop", "after"))
        report = early_exit_report(done)
        rule = None if wanted.setting.stop is None else wanted.setting.stop.written
        assert (report["stop_rule"], report["stopped_by"]) == (rule, done.stopped_by or None)


def test_a_rule_that_raises_fails_its_request_only(own: Callable[..., Service], after: None) -> None:
    service = own(strategies=("fixed:layer=4",))
    failed, fine = run(service, job(service, tokens=24, stop_rule="after:tokens=99"), job(service, tokens=24))
    assert "not today" in str(failed)
    assert len(ids(fine)) == 24


def test_what_a_request_may_not_say_is_refused(own: Callable[..., Service], after: None) -> None:
    service = own(strategies=("fixed:layer=4",))
    for rule, said in (
        ("after:file=/etc/passwd", "a request cannot set 'file' of after"),
        ("excess:heads=/etc/passwd", "a request cannot set 'heads' of excess"),
        ("statement", "must know the language of the code. Write statement:language=NAME"),
        ("statment", "Did you mean 'statement'"),
        ("excess", "there is no excess.json"),
    ):
        with pytest.raises(InvalidRequestError, match=said):
            service.settings.resolve({"stop_rule": rule})
    setting = service.settings.resolve({"stop_rule": "block:language=java"})
    assert setting.stop is not None
    assert setting.stop.written == "block:language=java"
