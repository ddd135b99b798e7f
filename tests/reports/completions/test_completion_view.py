"""The page of completions: which samples, what it says of them, and that a browser runs nothing of what is in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from reports.completions.page import choose_samples, completion_page
from reports.recorded import RecordedRun

EVIL = "<script>window.pwned=1</script>\"'><img src=x onerror='window.pwned=2'>{{ 7*7 }}"


def recorded(made: Any, **changes: Any) -> RecordedRun:
    manifest = made.manifest.model_copy(update=changes)
    return RecordedRun(Path("my-run"), manifest, tuple(made.windows), tuple(made.samples), made.summary())


def run_of(build: Any, kept: tuple[int, ...], points: tuple[str, ...] = ("full", "rl", "oracle")) -> RecordedRun:
    """A run of as many samples, each of four tokens of which ``rl`` keeps so many."""
    made = build(points=points)
    for block, keeps in enumerate(kept):
        for point in points:
            ids = (1, 2, 3, 4) if point == points[0] else tuple(n if n <= keeps else 9 for n in (1, 2, 3, 4))
            layers = (10, 10, 10, 10) if point == points[0] else (10, 2, 5, 8)
            texts = tuple(f"t{n} " for n in ids)
            made.window(point, {"token_ids": ids, "exit_layers": layers, "token_texts": texts, "text": "".join(texts)},
                        block=block)  # fmt: skip
    return recorded(made)


def test_the_least_and_the_most_faithful_are_shown(build: Any) -> None:
    run = run_of(build, (2, 3, 1, 4, 2, 3))
    shown = {sample.sample_id: sample for sample in choose_samples(run, 3)}
    assert list(shown) == ["0-0", "2-0", "3-0"], "in the run's order"
    assert shown["2-0"].why == "among the least faithful"
    assert shown["3-0"].why == "among the most faithful"
    assert (shown["2-0"].followed, shown["3-0"].followed) == (0.25, 1), "the bound is not asked"
    assert len(choose_samples(run, 6)) == len(choose_samples(run, 60)) == 6
    assert {sample.why for sample in choose_samples(run, 6)} == {"in the run's order"}
    assert len(choose_samples(run, 1)) == 1


def test_the_page_says_what_was_measured(build: Any) -> None:
    page = completion_page(run_of(build, (4, 2)))
    assert "2 of 2 samples" in page
    assert re.search(r"<dt>agreement</dt><dd>0\.50</dd>", page)
    assert re.search(r"<dt>mean layer</dt><dd>5\.0</dd>", page), "the token of prefill is left out"
    assert re.search(r"<dt>latency</dt><dd>400 ms</dd>", page)
    assert "a bound: it looked at the answer" in page
    assert "http://" not in page
    assert "https://" not in page


def test_full_depth_in_another_format_is_held_against_the_baseline(build: Any) -> None:
    made = build(points=("full@float32", "full@int8", "full@stop=line@int8"), formats=("float32", "int8"))
    for point, ids in zip(made.points, ((1, 2, 3, 4), (1, 2, 9, 9), (1, 2)), strict=True):
        texts = tuple(f"t{n} " for n in ids)
        made.window(point, {"token_ids": ids, "exit_layers": (10,) * len(ids), "token_texts": texts, "text": "t"})
    page = completion_page(recorded(made))
    assert page.count("; full depth: ") == 2, "the baseline has nothing beside it, the others differ in two tokens"
    assert re.findall(r"<dt>agreement</dt><dd>([\d.]+)</dd>", page) == ["0.50", "0.50"]
    assert [page.count(f"never exits; matrices in {stored}") for stored in ("float32", "int8")] == [1, 2]


def test_an_old_run_says_once_what_is_missing_and_shows_its_text(build: Any) -> None:
    made = build(points=("full",))
    made.window("full", {"token_ids": (1, 2), "text": "old <text>"})
    page = completion_page(recorded(made))
    assert page.count("Colours need a run of this version") == 1
    assert "old &lt;text&gt;" in page


def test_failed_samples_and_empty_runs_have_a_page(build: Any) -> None:
    made = build(points=("full", "rl"))
    made.window("full", {"sample_id": "a", "token_texts": ("a", "b", "c")})
    made.window("rl", {"sample_id": "a", "error": "out of <memory>"})
    assert "failed: out of &lt;memory&gt;" in completion_page(recorded(made))
    assert "No sample was finished." in completion_page(recorded(build(points=("full",))))


# ---------------------------------------------------------------------------------- in a browser


def evil_run(build: Any) -> RecordedRun:
    made = build(points=("full", EVIL.replace(":", "").replace("@", "")), tasks=("py150",))
    for point in made.points:
        made.window(
            point,
            {
                "sample_id": EVIL, "token_ids": (1, 2, len(point)), "exit_layers": (10, 2, 8), "text": EVIL,
                "token_texts": (EVIL, "\n    ", "</span></div>" + EVIL), "reference": f"</pre>{EVIL}",
            },
        )  # fmt: skip
    model = made.manifest.model.model_copy(update={"name": EVIL})
    return recorded(made, model=model)


def test_nothing_in_a_run_is_run_by_a_browser(chromium: Any, build: Any, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(completion_page(evil_run(build)), encoding="utf-8")
    page = chromium.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if not request.url.startswith("file:") else None)
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_timeout(100)
    assert page.evaluate("window.pwned") is None
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 1
    assert said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing sticks out of a phone"
    tokens = page.locator("main .tok")
    assert tokens.count() == 6
    assert EVIL in tokens.first.inner_text()
    assert "{{ 7*7 }}" in page.locator("h2").inner_text()

    page.locator("main .tokens").nth(1).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    at = page.evaluate("document.activeElement.dataset.layer")
    assert at == "2", "arrow keys walk through the tokens"
    tip = page.evaluate("getComputedStyle(document.activeElement, '::after').content")
    assert "layer 2 of 10" in tip
    page.keyboard.press("ArrowLeft")
    assert "prefill" in page.evaluate("getComputedStyle(document.activeElement, '::after').content")
    last = tokens.nth(5)
    assert "underline" in last.evaluate("element => getComputedStyle(element).textDecorationLine")
    page.check("#numbers")
    assert page.evaluate("getComputedStyle(document.querySelector('main .tok'), '::before').content") == '"10"'
    grounds = {scheme: _ground(chromium, tmp_path / "page.html", scheme) for scheme in ("light", "dark")}
    assert grounds["light"] == "rgb(255, 255, 255)"
    assert grounds["dark"] != grounds["light"]
    page.close()


def _ground(chromium: Any, path: Path, scheme: str) -> str:
    page = chromium.new_page(color_scheme=scheme)
    page.goto(path.as_uri())
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.close()
    return str(ground)
