"""The page is for all who come: by keyboard, by ear, in the dark, on a phone, and with an editor to set up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from harness.serving.page import clients

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
