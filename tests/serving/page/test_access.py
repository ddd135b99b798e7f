"""The page is for all who come: by keyboard, by ear, in the dark, on a phone, and with an editor to set up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from harness.serving.completions import OverloadedError
from harness.serving.page import clients
from tests.appearance.contrast import contrast

Visit = Callable[..., Any]


@pytest.mark.slow
def test_the_keyboard_is_enough(visit: Visit) -> None:
    visitor = visit()
    page = visitor.page
    seen = []
    for _ in range(30):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            "[document.activeElement.id || document.activeElement.className || document.activeElement.ariaLabel,"
            " getComputedStyle(document.activeElement).outlineStyle]"
        )
        if not name:
            break  # past the last one
        assert outline != "none", name
        seen.append(name)
    assert seen[:3] == ["skip", "prompt", "strategy"]
    assert {"option-0-0", "tokens", "compare", "run", "tab-0", "copy"} <= set(seen)
    page.focus("#tokens")
    page.keyboard.press("Control+A")
    page.keyboard.type("6")
    page.keyboard.press("Control+Enter")
    visitor.done()
    assert page.locator("#tokens-early .tok").count() == 6
    page.focus("#run")
    page.keyboard.press("Enter")
    visitor.done()
    assert page.evaluate("document.activeElement.id") == "run", "the focus comes back"
    page.focus("#tokens-early")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.tip") == "layer 4 of 30"
    page.focus("#tab-0")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-1"
    assert page.is_visible("#panel-1")
    assert page.is_hidden("#panel-0")
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-0"


def test_escape_stops(visit: Visit, service: Any) -> None:
    service.token_s = 0.02
    visitor = visit()
    visitor.page.fill("#tokens", "250")
    visitor.page.focus("#run")
    visitor.page.keyboard.press("Enter")
    visitor.page.wait_for_selector("#tokens-early .tok")
    assert visitor.page.evaluate("document.activeElement.id") == "stop"
    visitor.page.keyboard.press("Escape")
    visitor.done()
    assert service.scripts[0].cancelled.wait(2)


def test_a_screen_reader_hears_the_text_and_the_end(visit: Visit, service: Any) -> None:
    visitor = visit()
    page = visitor.run(tokens=4)
    log = page.locator("#spoken")
    assert (log.get_attribute("aria-live"), log.text_content()) == ("polite", "    return [line.")
    assert page.get_attribute("#outcome", "role") == "status"
    assert page.text_content("#outcome") == "Finished: 4 tokens. Same text as full depth, token for token."
    assert page.locator("#spoken > span").count() == 1, "in a piece, not token by token"


CONTRASTS = """() => {
    const ground = e => { for (; e; e = e.parentElement) {
        const colour = getComputedStyle(e).backgroundColor;
        if (!/, 0\\)$/.test(colour)) return colour; } return "rgb(255, 255, 255)"; };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
    for (let node; (node = walker.nextNode());) {
        const e = node.parentElement, none = "script, noscript, :disabled, .tok span, .skip";
        if (!node.textContent.trim() || !e.checkVisibility() || e.closest(none)) continue;
        found.push([node.textContent.trim().slice(0, 40), getComputedStyle(e).color, ground(e)]);
    }
    return found;
}"""
"""Text, ink and ground of every visible text; marks of white space and what is disabled are left out."""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(visit: Visit, service: Any, scheme: str) -> None:
    """Contrast of at least 4.5 to 1 (WCAG 2.1 AA), in every state the page has."""
    service.differs_at, service.pieces = 2, tuple((f"t{layer}", layer) for layer in range(1, 31))
    visitor = visit(color_scheme=scheme)
    visitor.run(tokens=30)
    states = [visitor.page.evaluate(CONTRASTS)]
    visitor.page.select_option("#decode", "lossless")
    visitor.run()
    states.append(visitor.page.evaluate(CONTRASTS))
    service.refuses = OverloadedError("busy.")
    visitor.refused()
    states.append(visitor.page.evaluate(CONTRASTS))
    service.refuses, service.state = None, "loading"
    visitor.page.reload()
    visitor.page.wait_for_selector("#state-note:visible")
    states.append(visitor.page.evaluate(CONTRASTS))
    service.state = "failed"
    visitor.page.reload()
    visitor.page.wait_for_selector("#state-note:visible")
    states.append(visitor.page.evaluate(CONTRASTS))
    poor = {
        (text, ink, ground)
        for state in states
        for text, ink, ground in state
        if contrast(visitor.hexadecimal(ink), visitor.hexadecimal(ground)) < 4.5
    }
    assert len(states[0]) > 100
    assert poor == set()
    grounds = {visitor.hexadecimal(ground) for _, _, ground in states[0]}
    assert ("#ffffff" in grounds) == (scheme == "light")
    visitor.faults[:] = [fault for fault in visitor.faults if "503" not in fault]


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 800])
def test_a_phone_scrolls_one_way_only(visit: Visit, service: Any, width: int) -> None:
    service.pieces, service.differs_at = (
        (("an_identifier_that_is_longer_than_any_phone_is_wide" * 3, 4), *service.pieces),
        2,
    )
    service.model_name = "an-organisation-with-a-name/" + "and-a-model-with-a-longer-one" * 3
    visitor = visit(viewport={"width": width, "height": 780}, has_touch=True, is_mobile=True)
    page = visitor.run(tokens=9)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#tokens-full .tok").nth(3).focus()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_settings_for_editors_are_copied(visit: Visit) -> None:
    visitor = visit(permissions=["clipboard-read", "clipboard-write"])
    page = visitor.page
    tabs = page.locator("[role=tab]")
    assert tabs.all_inner_texts() == [client["title"] for client in clients().values()]
    for number in range(tabs.count()):
        tabs.nth(number).click()
        settings = page.locator(f"#settings-{number}").text_content()
        assert visitor.url in settings
        assert page.locator("[role=tabpanel]:visible").count() == 1
        page.locator(".copy:visible").click()
        page.wait_for_selector(".copy:visible:text-is('Copied')")
        assert page.evaluate("navigator.clipboard.readText()").replace("\r\n", "\n") == settings
