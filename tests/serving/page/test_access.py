"""The page is for all who come: by keyboard, by ear, in the dark, on a phone, and with an editor to set up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

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
        if page.evaluate("document.activeElement === document.body"):
            break  # past the last one
        assert outline != "none", name
        seen.append(name)
    assert seen[:3] == ["skip", "prompt", "strategy"]
    assert {"option-0-0", "tokens", "compare", "run", "copy"} <= set(seen)
    page.focus("#tokens")
    page.keyboard.press("Control+A")
    page.keyboard.type("6")
    page.keyboard.press("Control+Enter")
    visitor.done()
    assert page.locator("#tokens-early .tok").count() == 6
    page.focus("#tokens-early")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.tip") == "layer 4 of 30"


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
    const none = "script, noscript, :disabled, .tok span, .skip";
    return [...document.body.querySelectorAll("*")].filter(e => e.checkVisibility() && !e.closest(none) &&
        [...e.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.textContent.trim())
    ).map(e => [e.textContent.trim().slice(0, 40), getComputedStyle(e).color, ground(e)]);
}"""
"""Text, ink and ground of every visible text; marks of white space and what is disabled are left out."""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_on_a_phone_which_scrolls_one_way_only(visit: Visit, service: Any, scheme: str) -> None:
    """Contrast of at least 4.5 to 1 (WCAG 2.1 AA)."""
    layers = tuple((f"t{layer}", layer) for layer in range(1, 31))
    service.pieces, service.differs_at = (("an_identifier_longer_than_a_phone_is_wide" * 3, 4), *layers), 2
    visitor = visit(color_scheme=scheme, viewport={"width": 360, "height": 780}, has_touch=True, is_mobile=True)
    page = visitor.run(tokens=31)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    found = page.evaluate(CONTRASTS)
    assert len(found) > 100
    pairs = {(visitor.hexadecimal(ink), visitor.hexadecimal(ground)): text for text, ink, ground in found}
    assert {text: pair for pair, text in pairs.items() if contrast(*pair) < 4.5} == {}
    assert any(ground == "#ffffff" for _, ground in pairs) == (scheme == "light")


def test_settings_for_editors_are_copied(visit: Visit) -> None:
    visitor = visit(permissions=["clipboard-read", "clipboard-write"])
    page = visitor.page
    titles = page.locator(".editors summary")
    assert titles.all_inner_texts() == [client["title"] for client in clients().values()]
    for number in range(titles.count()):
        if number:
            titles.nth(number).click()
        settings = page.locator(f"#settings-{number}").text_content()
        assert visitor.url in settings
        assert page.locator("details[open]").count() == 1
        page.locator(".copy:visible").click()
        page.wait_for_selector(".copy:visible:text-is('Copied')")
        assert page.evaluate("navigator.clipboard.readText()").replace("\r\n", "\n") == settings
