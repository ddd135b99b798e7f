"""The page in a browser: what people see of a completion, what the form sends, and what is said of what goes wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.appearance.pages import depth_shade
from harness.serving.completions import InvalidRequestError, OverloadedError
from harness.serving.exit_settings import Loaded
from harness.serving.page import clients
from tests.appearance.contrast import contrast

Visit = Callable[..., Any]


# ------------------------------------------------------------------------------------------------- a completion


def test_a_completion_is_drawn_counted_and_spoken(visit: Visit, service: Any) -> None:
    """Tokens on the colour of their layer, the server's figures, and a text for screen readers."""
    visitor = visit()
    page = visitor.run(tokens=8)
    tokens = page.locator("#tokens-early .tok")
    assert tokens.count() == 8
    drawn = tokens.evaluate_all(
        "all => all.map(e => { const { backgroundColor, color } = getComputedStyle(e);"
        " return [+e.dataset.layer, backgroundColor, color, e.dataset.tip]; })"
    )
    assert [layer for layer, *_ in drawn] == [30, *[layer for _, layer in service.pieces[1:]]]
    for layer, ground, ink, tip in drawn:
        assert (visitor.hexadecimal(ground), visitor.hexadecimal(ink)) == depth_shade(layer, 30)
        assert tip.startswith(f"layer {layer} of 30")
    assert "prefill" in drawn[0][3]
    assert not [tip for *_, tip in drawn[1:] if "prefill" in tip]
    assert page.evaluate("document.getElementById('tokens-early').textContent") == "".join(
        text for text, _ in service.pieces
    )
    bars = page.locator("#profile-early i").evaluate_all(
        "all => all.map(e => [+e.dataset.layer, e.parentNode.firstChild.textContent])"
    )
    assert {layer: count for layer, count in bars if count} == {4: "2", 8: "1", 14: "2", 18: "1", 30: "1"}
    # decided: 4 14 4 18 14... after prefill's; each of 7 tokens could have skipped 30
    layers = [layer for _, layer in service.pieces[1:]]
    assert layers == [4, 14, 4, 18, 14, 30, 8]
    assert visitor.figure("skipped") == "56.2 % 118 of 210"
    assert visitor.figure("depth") == "13.1 of 30"
    assert visitor.figure("skipped", "full") == "0.0 % 0 of 210"
    assert visitor.figure("heads") == "10"
    assert re.fullmatch(r"\d+(\.\d)?", visitor.figure("rate"))
    for name in ("ttft", "tpot", "total"):
        assert re.fullmatch(r"\d+(\.\d+)? m?s", visitor.figure(name)), name
    assert visitor.figure("energy") == visitor.figure("energy", "full") == "~1.50 J not measured: estimate"
    assert "CPU time × 4 W per core" in visitor.page.inner_text("tr:has([data-figure=energy]) th")
    log = page.locator("#spoken")
    assert (log.get_attribute("aria-live"), log.text_content()) == (
        "polite",
        "".join(text for text, _ in service.pieces),
    )
    assert page.get_attribute("#outcome", "role") == "status"
    assert page.text_content("#outcome") == "Finished: 8 tokens. Same text as full depth, token for token."
    assert page.locator("#spoken > span").count() == 1, "in a piece, not token by token"


def test_the_wait_is_split_as_tokens_come_and_as_the_server_says(visit: Visit, service: Any) -> None:
    visitor = visit()
    page = visitor.page
    service.token_s = 0.3
    page.uncheck("#compare")
    page.fill("#prompt", "x" * 20)
    page.fill("#tokens", "4")
    page.click("#run")
    page.wait_for_selector("#tokens-early .tok >> nth=1")
    assert re.fullmatch(r"prompt [\d.]+ m?s decoding [\d.]+ m?s", " ".join(page.inner_text("#wait-early").split()))
    service.prompt_reused, service.queue_s = 15, 0.09  # of the request that runs
    visitor.done()
    queue, prompt, decoding = page.locator("#wait-early > span[data-part]").all_inner_texts()
    assert queue == "queue 90.0 ms"
    assert re.fullmatch(r"prompt 2\d\d ms \(15 of 20 tokens reused\)", prompt)
    assert re.fullmatch(r"decoding (9\d\d ms|1\.\d\d s)", decoding)
    wide = page.locator("#wait-early i").evaluate_all("all => all.map(e => e.getBoundingClientRect().width)")
    whole = page.locator("#wait-early .bar").evaluate("e => e.getBoundingClientRect().width")
    assert sum(wide) == pytest.approx(whole, abs=1)
    assert [width / whole for width in wide] == pytest.approx([0.075, 0.175, 0.75], abs=0.03)
    service.token_s, service.prompt_reused, service.queue_s = 0.002, 0, 0.0
    visitor.run()
    assert "(none of 20 tokens reused)" in page.inner_text("#wait-early")
    assert "queue" not in page.inner_text("#wait-early")


ENERGIES = {
    "~1.50 J not measured: estimate": (1.5, "estimate"),
    "0.835 J measured (NVML)": (0.8349, "nvml"),
    "123 J measured (RAPL)": (123.4, "rapl"),
    "~2.10 mJ not measured: estimate": (0.0021, "estimate"),
    "– nvml: no number": (None, "nvml"),
    "– no sensor": (None, "none"),
}


def test_energy_says_where_it_comes_from(visit: Visit) -> None:
    """Never a bare number, and no number where there is none."""
    script = """async ([reports, sensors]) => {
        const { energy } = await import("./static/figures.js");
        return reports
            .map(([energy_j, energy_source]) => energy({ energy_j, energy_source }, sensors.includes(energy_source)))
            .map(([value, under]) => `${value ?? "–"} ${under}`);
    }"""
    arguments = [[list(pair) for pair in ENERGIES.values()], ["rapl", "nvml"]]
    assert visit().page.evaluate(script, arguments) == list(ENERGIES)


def test_full_depth_reads_its_prompt_whole_where_others_exit(visit: Visit, service: Any) -> None:
    """Lossless requests do; strategy `full`, lossy, has a shallow prompt and is compared like any other."""
    service.config = service.config.model_copy(update={"prompt_exit": "tail:layer=18:tail=64", "prefetch": "deepen"})
    visitor = visit()
    page = visitor.run(tokens=4)
    _, full = visitor.sent
    assert full["parameters"]["early_exit"] == {"strategy": "full", "decode": "lossless"}
    assert page.inner_text("#name-full") == "full"
    facts = " ".join(page.inner_text(".facts").split())
    assert facts.endswith("prompt exit tail:layer=18:tail=64 prefetch deepen")
    page.select_option("#strategy", label="full")
    for decode in ("lossy", "lossless"):
        page.select_option("#decode", decode)
        assert page.is_enabled("#compare") is (decode == "lossy")


def test_the_same_prompt_runs_at_full_depth_too(visit: Visit, service: Any) -> None:
    service.differs_at = 5
    visitor = visit()
    page = visitor.run(tokens=8)
    early, full = visitor.sent
    assert [early["parameters"].pop("early_exit"), full["parameters"].pop("early_exit")] == [
        {"strategy": "confidence", "threshold": 0.9, "decode": "lossy"},
        {"strategy": "full", "decode": "lossy"},
    ]
    assert (early["inputs"], early["parameters"]) == (full["inputs"], full["parameters"])
    assert early["parameters"]["cache_prompt"] is False, "else the second finds the prompt of the first"
    differs = page.locator("#tokens-early .tok").evaluate_all("all => all.map(e => e.classList.contains('differs'))")
    assert differs == [False] * 5 + [True] * 3
    assert "full depth: “()”" in page.locator("#tokens-early .tok").nth(5).get_attribute("data-tip")
    assert page.inner_text("#verdict") == "Differs from full depth from token 6 on; keeps 5 of its 8 tokens in place."
    service.differs_at = 99
    assert visitor.run().inner_text("#verdict") == "Same text as full depth, token for token."
    names = [sent["parameters"]["early_exit"]["strategy"] for sent in visitor.sent[2:]]
    assert names == ["full", "confidence"], "in turns"
    page.uncheck("#compare")
    visitor.run()
    assert len(visitor.sent) == 5, "two of each comparison, and one"
    assert page.is_hidden("#run-full")
    assert page.locator("[data-full]:visible").count() == 0


def test_drafts_are_told_from_what_full_depth_says(visit: Visit, service: Any) -> None:
    """Accepted ones stand on the colour of their layer, everything else on that of full depth."""
    visitor = visit()
    page = visitor.page
    page.select_option("#decode", "lossless")
    page.select_option("#draft", "lookup")
    page.fill("#draft-max", "7")
    visitor.run(tokens=8)
    assert [sent["parameters"]["early_exit"] for sent in visitor.sent] == [
        {"strategy": "confidence", "threshold": 0.9, "decode": "lossless", "draft": "lookup", "draft_max": 7},
        {"strategy": "full", "decode": "lossy"},
    ]
    drawn = page.locator("#tokens-early .tok").evaluate_all(
        "all => all.map(e => [+e.dataset.layer, e.className, e.dataset.tip, getComputedStyle(e).boxShadow])"
    )
    assert [layer for layer, *_ in drawn] == [30, 4, 14, 30, 0, 30, 30, 8]
    kinds = ["tok prefill", "tok accepted", "tok accepted", "tok replaced", "tok accepted", "tok replaced", "tok"]
    assert [names for _, names, *_ in drawn] == [*kinds, "tok accepted"]
    assert [tip for *_, tip, _ in drawn[2:7]] == [
        "drafted after layer 14 of 30; accepted by full depth",
        "full depth, layer 30 of 30; it replaces another token, drafted after layer 18 of 30",
        "proposed by the draft source, no layer ran; accepted by full depth",
        "full depth, layer 30 of 30; it replaces another token, proposed by the draft source, no layer ran",
        "full depth, layer 30 of 30; nothing was drafted here",
    ]
    assert len({drawn[place][3] for place in (1, 3, 6)}) == 3, "not told apart by colour alone"
    figures = {name: visitor.figure(name) for name in ("each", "acceptance", "discarded", "skipped")}
    assert figures == {
        "each": "1.75 4 verifications", "acceptance": "80 % 4 of 5", "discarded": "78", "skipped": "– lossless: none",
    }  # fmt: skip
    assert visitor.figure("each", "full") == "–"
    assert "decode=lossless+lookup:draft_max=7" in page.inner_text("#name-early")
    page.select_option("#decode", "lossy")
    visitor.run()
    assert page.locator("[data-lossless]:visible").count() == 0
    assert visitor.sent[-1]["parameters"]["early_exit"].keys() == {"strategy", "threshold", "decode"}, "its turn"


def test_what_a_server_cannot_verify_is_not_offered(visit: Visit, service: Any) -> None:
    service.settings.decodes, service.settings.sources = ("lossy",), ()
    visitor = visit()
    visitor.run(tokens=2)
    assert visitor.page.locator("#decode, #draft, [data-lossless]").count() == 0
    assert [sent["parameters"]["early_exit"] for sent in visitor.sent] == [
        {"strategy": "confidence", "threshold": 0.9},
        {"strategy": "full"},
    ]


# ------------------------------------------------------------------------------------------------- the form


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
    assert service.scripts[0].cancelled.wait(10), "the server saw that nobody waits"
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


# ------------------------------------------------------------------------------------------------- what goes wrong


def test_refusals_are_said_in_words(visit: Visit, service: Any, evil: str) -> None:
    visitor = visit()
    service.refuses = OverloadedError("64 requests are waiting. Try again later.")
    assert visitor.refused() == "The server is busy (429): 64 requests are waiting. Try again later."
    service.refuses = InvalidRequestError(f"layer = {evil} is not allowed.")
    words = visitor.refused()
    assert words == f"The server cannot do this (400): layer = {evil} is not allowed."
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


# ------------------------------------------------------------------------------- by keyboard, in the dark, on a phone


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
