"""The form decides what is sent, and Stop reaches the server."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

Visit = Callable[..., Any]


def test_the_server_of_the_other_tests_has_a_page(server: Any, visit: Visit) -> None:
    """Whatever engine and strategies are behind it."""
    page = visit(url=server.url).page
    loaded = server.service.settings.loaded
    offered = [text.removesuffix(" (default)") for text in page.locator("#strategy option").all_inner_texts()]
    assert offered == [strategy.name for strategy in loaded]
    sent = json.loads(page.inner_text("#sent"))
    default = next(strategy for strategy in loaded if strategy.default)
    numbers = {k: v for k, v in default.options.items() if not isinstance(v, str)}
    assert sent == {"strategy": default.name, **numbers, "decode": "lossy"}
    assert server.service.model_name in page.inner_text("h1")
    assert [int(layer) for layer in page.locator("#results .scale span").all_text_contents()] == [
        *server.service.info.exit_points,
        server.service.info.num_layers,
    ]


def test_sliders_and_fields_decide_what_is_sent(visit: Visit, service: Any) -> None:
    visitor = visit()
    page = visitor.page
    page.uncheck("#compare")
    slider, field = page.get_by_label("threshold, slider"), page.locator("[data-option=threshold] [type=number]")
    slider.press("ArrowLeft")
    assert field.input_value() == "0.89"
    visitor.run(tokens=3)
    early = {"strategy": "confidence", "threshold": 0.89, "decode": "lossy"}
    assert visitor.sent[-1]["parameters"] == {"max_new_tokens": 3, "details": True, "early_exit": early}
    field.fill("0.333")
    assert slider.input_value() == "0.33"
    assert json.loads(page.inner_text("#sent"))["threshold"] == 0.333
    field.fill("2")
    page.click("#run")
    assert len(visitor.sent) == 1, "what the field does not allow is not sent"

    page.select_option("#strategy", label="fixed")
    layer = page.get_by_label("layer, slider")
    layer.press("ArrowRight")
    assert layer.get_attribute("aria-valuetext") == "18", "the slider goes to the next exit point"
    visitor.run()
    assert visitor.sent[-1]["parameters"]["early_exit"] == {"strategy": "fixed", "layer": 18, "decode": "lossy"}
    assert "fixed:layer=18" in page.inner_text("#name-early")
    page.select_option("#strategy", label="full")
    assert page.is_disabled("#compare"), "full depth is not compared with itself"
    page.fill("#prompt", "import ")
    visitor.run()
    assert visitor.sent[-1]["inputs"] == "import "
    assert visitor.sent[-1]["parameters"]["early_exit"] == {"strategy": "full", "decode": "lossy"}


def test_a_long_default_is_shown_short_and_sent_exactly(visit: Visit, service: Any) -> None:
    exact = 0.9686169366530387
    service.settings.loaded = (replace(service.settings.loaded[0], options={"threshold": exact}),)
    visitor = visit()
    field = visitor.page.locator("[data-option=threshold] [type=number]")
    assert field.input_value() == "0.9686"
    visitor.run(tokens=2)
    assert visitor.sent[0]["parameters"]["early_exit"]["threshold"] == exact
    field.fill("0.96")
    assert json.loads(visitor.page.inner_text("#sent"))["threshold"] == 0.96
    field.fill("0.9686")
    assert json.loads(visitor.page.inner_text("#sent"))["threshold"] == exact


def test_stop_reaches_the_server(visit: Visit, service: Any) -> None:
    service.token_s = 0.02
    visitor = visit()
    page = visitor.page
    page.fill("#tokens", "250")
    page.focus("#run")
    page.keyboard.press("Enter")
    page.wait_for_selector("#tokens-early .tok:nth-child(3)")
    assert page.evaluate("document.activeElement.id") == "stop"
    page.keyboard.press("Escape")
    visitor.done()
    assert service.scripts[0].cancelled.wait(2), "the server saw that nobody waits"
    shown = page.locator("#tokens-early .tok").count()
    assert 3 <= shown < 250
    assert f"stopped after {shown} tokens" in page.inner_text("#progress-early")
    assert page.is_hidden("#error-early"), "stopping is no failure"
    assert len(visitor.sent) == 1, "full depth does not follow"
    service.token_s = 0.001
    visitor.run(tokens=4)
    assert page.locator("#tokens-early .tok").count() == 4, "and the next one works"


def test_a_key_is_asked_for_and_kept_in_memory(visit: Visit, service: Any) -> None:
    plain = visit()
    plain.run(tokens=1)
    assert plain.page.locator("#key").count() == 0
    assert "authorization" not in plain.sent[0]["headers"]
    service.config = service.config.model_copy(update={"api_key_file": Path("key")})
    visitor = visit()
    visitor.page.fill("#key", " s3cret-s3cret-s3cret ")
    visitor.run(tokens=1)
    assert visitor.sent[0]["headers"]["authorization"] == "Bearer s3cret-s3cret-s3cret"
    assert visitor.page.get_attribute("#key", "type") == "password"
    kept = visitor.page.evaluate(
        "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
    )
    assert "s3cret" not in kept
    assert "s3cret" not in visitor.page.content()
