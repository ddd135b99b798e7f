"""The page as a document: self-contained, small, valid, and in the colours of the reports."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx

from harness.appearance.pages import depth_shade
from harness.serving.exit_settings import Loaded
from harness.serving.page import ASSETS, asset, controls


class Markup(HTMLParser):
    """Elements of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements, self.inside_label = list[tuple[str, dict[str, str | None]]](), set[str]()
        self._labels = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._labels += tag == "label"
        if self._labels and "id" in dict(attrs):
            self.inside_label.add(str(dict(attrs)["id"]))

    def handle_endtag(self, tag: str) -> None:
        self._labels -= tag == "label"

    def values(self, *names: str) -> list[str]:
        return [str(found[name]) for _, found in self.elements for name in names if name in found]


def test_nothing_comes_from_elsewhere_and_it_is_small(service: Any, scripted_server: Any) -> None:
    url = scripted_server[0]
    answer = httpx.get(url)
    page = Markup(answer.text)
    linked = page.values("src", "href")
    assert {link for link in linked if not link.startswith("#")} <= {f"static/{name}" for name in ASSETS}
    files = {name: httpx.get(f"{url}/static/{name}") for name in ASSETS}
    assert all(file.status_code == 200 for file in files.values())
    assert sum(len(text.content) for text in (answer, *files.values())) < 60_000
    for name, file in files.items():
        assert not re.findall(r"@import|url\(|innerHTML|insertAdjacent|eval\(|document\.write|storage\b", file.text), (
            name
        )
        outside = set(re.findall(r"[a-z]+:?//[\w.]+", file.text))
        assert outside <= {"http://www.w3.org"}, name  # the name of SVG
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert not [tag for tag, _ in page.elements if tag == "style"]
    assert not [name for _, found in page.elements for name in found if name == "style" or name.startswith("on")]
    scripts = [found for tag, found in page.elements if tag == "script"]
    assert all("src" in found or found["type"] == "application/json" for found in scripts)


def test_what_it_does_not_have_is_not_there(scripted_server: Any) -> None:
    for name in ("page.py", "..%2fpage.py", "%2e%2e/templates/page.html", "nothing.js"):
        assert httpx.get(f"{scripted_server[0]}/static/{name}").status_code == 404, name


def test_ids_are_unique_and_everything_has_a_name(service: Any, scripted_server: Any) -> None:
    service.config = service.config.model_copy(update={"api_key_file": Path("key")})
    page = Markup(httpx.get(scripted_server[0]).text)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    labelled = set(page.values("for")) | page.inside_label
    fields = [found for tag, found in page.elements if tag in {"input", "select", "textarea"}]
    assert len(fields) >= 9
    assert not [found for found in fields if found.get("id") not in labelled and not found.get("aria-label")]
    referred = " ".join(page.values("aria-labelledby", "aria-controls", "for", "data-copy")).split()
    assert set(referred) <= set(ids)
    assert page.elements[1] == ("html", {"lang": "en"}) or page.elements[0] == ("html", {"lang": "en"})


def test_depths_look_as_in_reports(service: Any) -> None:
    style = asset("depth.css", 30).decode()
    for layer in range(1, 31):
        ground, ink = depth_shade(layer, 30)
        assert f'[data-layer="{layer}"] {{ background: {ground}; color: {ink}; }}' in style
    assert '[data-layer="31"]' not in style


def test_options_become_controls() -> None:
    options = {"p": 0.9, "cosine": 0.5, "patience": 3, "seed": 0, "hot": 0.0, "on": True, "heads": "", "layer": 14}
    limits = {
        "p": (0.0, 1.0),
        "cosine": (-1.0, 2.0),
        "patience": (2.0, 64.0),
        "hot": (0.0, 100.0),
        "layer": (1.0, 30.0),
    }
    made = {c.name: c for c in controls(Loaded("x", options, limits, {"p": "τ"}, {}, False), (4, 14, 26))}
    assert {name: control.kind for name, control in made.items()} == {
        "p": "range", "cosine": "range", "patience": "range", "seed": "number", "hot": "range", "on": "switch",
        "layer": "layer",
    }  # fmt: skip
    assert [(made[n].step, made[n].low, made[n].high) for n in ("p", "cosine", "patience", "hot")] == [
        (0.01, 0, 1),
        (0.01, -1, 2),
        (1, 2, 64),
        (1, 0, 100),
    ]
    assert made["layer"].high == 2, "the slider walks over the three exit points"
    assert made["p"].description == "τ"
    odd = controls(Loaded("x", {"layer": 15}, {"layer": (1.0, 30.0)}, {}, {}, False), (4, 14, 26))
    assert [(control.kind, control.whole) for control in odd] == [("range", True)], "15 is no exit point of this model"
