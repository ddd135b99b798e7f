"""The page as a document: self-contained, small, valid, and in the colours of the reports."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx

from harness.serving.exit_settings import Loaded


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
    names = [link for link in linked if not link.startswith("#")]
    scripts = [file.name for file in (files("harness.serving") / "static").iterdir()]
    assert {f"static/{name}" for name in (*scripts, "depth.css")} >= {*names}
    served = {name: httpx.get(f"{url}/static/{name}") for name in (*scripts, "depth.css")}
    assert all(file.status_code == 200 for file in served.values())
    assert sum(len(text.content) for text in (answer, *served.values())) < 60_000
    for name, file in served.items():
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


def test_options_become_controls(service: Any, scripted_server: Any) -> None:
    options = {"p": 0.98765, "patience": 3, "seed": 0, "on": True, "heads": "", "layer": 14}
    limits = {"p": (0.0, 1.0), "patience": (2.0, 64.0), "layer": (1.0, 30.0)}
    service.settings.loaded = (
        Loaded("x", options, limits, {"p": "τ"}, {}, True),
        Loaded("y", {"layer": 15}, limits, {}, {}, False),
    )
    page = Markup(httpx.get(scripted_server[0]).text)
    sliders = {
        found["aria-label"]: [found.get(name) for name in ("min", "max", "step", "value")]
        for tag, found in page.elements
        if tag == "input" and found.get("type") == "range"
    }
    assert sliders["p, slider"] == ["0.0", "1.0", "0.01", "0.98765"]
    assert sliders["patience, slider"] == ["2.0", "64.0", "1", "3"]
    assert sliders["layer, slider"] == ["1.0", "30.0", "1", "15"], "15 is no exit point of this model"
    assert "seed, slider" not in sliders
    shown = {found["data-exact"]: found["value"] for _, found in page.elements if "data-exact" in found}
    assert shown == {"0.98765": "0.9877", "3": "3", "0": "0", "15": "15"}
    named = [found["data-option"] for _, found in page.elements if "data-option" in found]
    assert named == ["p", "patience", "seed", "on", "layer", "layer"]
