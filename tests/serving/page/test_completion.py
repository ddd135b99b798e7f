"""What people see of a completion: tokens, their depth, figures, and full depth beside it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from harness.appearance.pages import depth_shade

Visit = Callable[..., Any]


def test_every_token_stands_on_the_colour_of_its_layer(visit: Visit, service: Any) -> None:
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


def test_figures_are_those_of_the_server(visit: Visit, service: Any) -> None:
    visitor = visit()
    visitor.run(tokens=8)
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
    differs = page.locator("#tokens-early .tok").evaluate_all("all => all.map(e => e.classList.contains('differs'))")
    assert differs == [False] * 5 + [True] * 3
    assert "full depth: “()”" in page.locator("#tokens-early .tok").nth(5).get_attribute("data-tip")
    assert page.inner_text("#verdict") == "Differs from full depth from token 6 on; keeps 5 of its 8 tokens in place."
    service.differs_at = 99
    assert visitor.run().inner_text("#verdict") == "Same text as full depth, token for token."
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
    assert visitor.sent[-2]["parameters"]["early_exit"].keys() == {"strategy", "threshold", "decode"}


def test_what_a_server_cannot_verify_is_not_offered(visit: Visit, service: Any) -> None:
    service.settings.decodes, service.settings.sources = ("lossy",), ()
    visitor = visit()
    visitor.run(tokens=2)
    assert visitor.page.locator("#decode, #draft, [data-lossless]").count() == 0
    assert [sent["parameters"]["early_exit"] for sent in visitor.sent] == [
        {"strategy": "confidence", "threshold": 0.9},
        {"strategy": "full"},
    ]
