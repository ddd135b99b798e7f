"""What goes wrong is said in words, and nothing of a model or a strategy is run by the browser."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from harness.serving.completions import InvalidRequestError, OverloadedError
from harness.serving.exit_settings import Loaded

Visit = Callable[..., Any]


def test_refusals_are_said_in_words(visit: Visit, service: Any, evil: str) -> None:
    visitor = visit()
    service.refuses = OverloadedError("64 requests are waiting. Try again later.")
    assert visitor.refused() == "The server is busy (429): 64 requests are waiting. Try again later."
    service.refuses = InvalidRequestError(f"layer = {evil} is not allowed.")
    words = visitor.refused()
    assert words == f"The server cannot do this (422): layer = {evil} is not allowed."
    assert visitor.page.evaluate("window.pwned") is None
    assert len(visitor.sent) == 2, "full depth is not tried after a refusal"
    assert visitor.page.evaluate("document.getElementById('tokens-full').dataset.empty") == "not run"
    service.refuses = None
    visitor.run()
    assert visitor.page.is_hidden("#error-early")


def test_a_failure_half_way_keeps_what_came(visit: Visit, service: Any) -> None:
    service.fails_at = 5
    visitor = visit()
    assert "the engine ran out of <memory>." in visitor.refused()
    assert visitor.page.locator("#tokens-early .tok").count() in {4, 5}
    assert "failed after" in visitor.page.inner_text("#progress-early")
    assert visitor.figure("energy") == "–"


@pytest.mark.slow
def test_a_server_that_is_gone_is_noticed_and_so_is_its_return(visit: Visit) -> None:
    visitor = visit()
    visitor.page.route("**/generate_stream", lambda route: route.abort())
    visitor.page.route("**/health", lambda route: route.abort())
    visitor.page.click("#run")
    visitor.page.wait_for_selector("#state[data-state=unreachable]")
    assert "cannot be reached" in visitor.page.inner_text("#error-early")
    visitor.page.unroute("**/health")
    visitor.page.wait_for_selector("#state[data-state=ready]")
    assert visitor.page.is_enabled("#run")
    visitor.faults[:] = [fault for fault in visitor.faults if "ERR_FAILED" not in fault]


def test_half_an_answer_is_never_taken_for_one(visit: Visit) -> None:
    visitor = visit()
    broken = {
        'data: {"index":0,"token":{"id":1,"text":"x","exit_layer":4}}\n\n': "The answer broke off",
        "data: {oh no\n\n": "The answer broke off",
        'data:{"error":{"message":"too hot"}}\n\n': "It failed half-way: too hot",
    }
    bodies = iter(broken)
    visitor.page.route(
        "**/generate_stream", lambda route: route.fulfill(body=next(bodies), content_type="text/event-stream")
    )
    for words in broken.values():
        visitor.run()
        assert words in visitor.page.inner_text("#error-early")


def test_events_are_read_however_they_are_cut(visit: Visit) -> None:
    """Line breaks of either kind, pieces that end inside a character."""
    script = """async () => {
        const text = ['data: {"token":{"text":"é日"}}\\r\\n\\r\\n', ': comment\\n\\n',
            'data:{"generated_text":"🙂"}\\n\\n', 'data: [DONE]\\n\\n'];
        const bytes = new TextEncoder().encode(text.join(""));
        const { complete } = await import("./static/stream.js");
        const seen = [];
        for (const size of [1, 2, 3, 7, 1000]) {
            const body = new ReadableStream({ start(c) {
                for (let at = 0; at < bytes.length; at += size) c.enqueue(bytes.slice(at, at + size));
                c.close(); } });
            window.fetch = async () => new Response(body);
            const events = [];
            for await (const event of complete({}, "", new AbortController().signal)) events.push(event);
            seen.push(JSON.stringify(events));
        }
        return seen;
    }"""
    seen = visit().page.evaluate(script)
    assert [json.loads(events) for events in seen] == [[{"token": {"text": "é日"}}, {"generated_text": "🙂"}]] * 5


def test_it_works_while_the_model_loads(visit: Visit, service: Any) -> None:
    service.state = "loading"
    visitor = visit()
    page = visitor.page
    assert page.inner_text("#state") == "loading"
    assert "being loaded" in page.inner_text("#state-note")
    assert page.is_disabled("#run")
    page.fill("#prompt", "typed meanwhile")
    service.state = "ready"
    page.wait_for_selector("#state[data-state=ready]")
    assert page.is_hidden("#state-note")
    visitor.run(tokens=2)
    assert visitor.sent[0]["inputs"] == "typed meanwhile", "nothing was reloaded"
    visitor.faults[:] = [fault for fault in visitor.faults if "503" not in fault]


def test_texts_stay_texts(visit: Visit, service: Any, evil: str) -> None:
    """Of the model, of strategies, of the machine: whatever they try to be."""
    service.pieces = ((evil, 4), ("</div></script>" + evil, 14), ("\u202e\x00\u2028", 8))
    service.info = replace(service.info, name=evil)
    service.model_name = evil
    service.energy_description = service.device = evil
    service.settings.loaded = (
        Loaded(evil, {evil: 0.5}, {evil: (0.0, 1.0)}, {evil: evil}, {}, True),
        *service.settings.loaded[2:],
    )
    visitor = visit()
    page = visitor.run(tokens=3)
    page.wait_for_timeout(50)
    assert page.evaluate("window.pwned") is None
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2
    assert evil in page.inner_text("h1")
    assert page.evaluate("document.querySelector('#tokens-early .tok').textContent") == evil
    assert page.locator("#tokens-early .tok").nth(2).inner_text() == "⟨U+202E⟩⟨U+0000⟩⟨U+2028⟩"
    assert visitor.sent[0]["parameters"]["early_exit"] == {"strategy": evil, evil: 0.5, "decode": "lossy"}
