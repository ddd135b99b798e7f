"""Completions as people read them: kinds of tokens, coloured tokens and the page, in which nothing is run."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from harness.appearance.pages import depth_shade
from harness.records import SampleRecord
from reports.completions.page import choose_samples, coloured_tokens, completion_page, follows
from reports.completions.token_kinds import KINDS, kinds_of
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


def sample(*texts: str, layers: tuple[int, ...] = (), ids: tuple[int, ...] = (), **more: Any) -> SampleRecord:
    return SampleRecord(
        window=0, operating_point="rl", task="py150", sample_id="a", token_texts=texts,
        token_ids=ids or tuple(range(len(texts))), exit_layers=layers or (12,) * len(texts), **more,
    )  # fmt: skip


class Parsed(HTMLParser):
    """Elements of a fragment, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def tokens(self) -> list[dict[str, str]]:
        return [attributes for _, attributes in self.elements if "tok" in attributes.get("class", "").split()]


@pytest.mark.parametrize("text", [EVIL, "a b\tc\n\n    dé😀", ""])
def test_what_is_copied_is_what_was_generated(text: str) -> None:
    parsed = Parsed(coloured_tokens(sample(text, text, "x"), 12, None))
    assert parsed.text.replace("∅", "") == text + text + "x"
    assert {tag for tag, _ in parsed.elements} <= {"div", "span"}
    assert len(parsed.tokens) == 3


def test_colour_and_tip_are_the_layer_s() -> None:
    tokens = Parsed(coloured_tokens(sample("a", "b", "c", layers=(12, 4, 8)), 12, None)).tokens
    assert [token["data-layer"] for token in tokens] == ["12", "4", "8"]
    assert [token["data-tip"].partition(",")[0] for token in tokens] == [f"layer {n} of 12" for n in (12, 4, 8)]
    for token, layer in zip(tokens, (12, 4, 8), strict=True):
        ground, ink = depth_shade(layer, 12)
        assert token["style"] == f"background:{ground};color:{ink}"


def test_only_what_differs_from_full_depth_is_underlined() -> None:
    full = sample("a", "b", ids=(1, 2))
    tokens = Parsed(coloured_tokens(sample("a", "x", "y", ids=(1, 5, 6)), 12, full)).tokens
    assert ["differs" in token["class"] for token in tokens] == [False, True, True]
    assert tokens[1]["data-tip"].endswith("full depth: “b”")
    assert tokens[2]["data-tip"].endswith("full depth: nothing more")
    assert not any("differs" in token["class"] for token in Parsed(coloured_tokens(full, 12, None)).tokens)
    assert "differs" not in coloured_tokens(sample("z", ids=(9,)), 12, full.model_copy(update={"error": "gone"}))
    (token,) = Parsed(coloured_tokens(sample("ok", ids=(9,)), 12, sample(EVIL, ids=(1,)))).tokens
    assert set(token) == {"class", "tabindex", "data-layer", "data-tip", "style"}, "texts are escaped in tips too"
    for cached in (True, False):
        tokens = Parsed(coloured_tokens(sample("a", "b"), 12, None, cached=cached)).tokens
        assert ["prefill" in token["class"] for token in tokens] == [cached, False]


def test_following_is_a_share_of_full_depth_s_tokens() -> None:
    full = sample("a", "b", "c", "d", ids=(1, 2, 3, 4))
    assert follows(sample("a", "x", "c", ids=(1, 9, 3)), full) == 0.5
    assert follows(full, sample()) is follows(sample(error="x"), full) is None


@pytest.mark.parametrize(("character", "name"), [("\u202e", "RIGHT-TO-LEFT OVERRIDE"), ("\x1b", "U+001B"), ("\r", "␍")])
def test_what_cannot_be_seen_is_named(character: str, name: str) -> None:
    html = coloured_tokens(sample(f"a{character}b"), 12, None)
    assert character not in html
    assert name in html


def test_drafts_show_where_they_came_from_and_what_became_of_them() -> None:
    lost = {"place": 3, "token_ids": (8, 9), "drafted_at": (0, 0), "token_texts": (EVIL, ")")}
    one = sample(
        *("a", "b", "c", "d", "e"), drafted_at=(None, 4, 0, 0, None), accepted=(False, True, True, False, False),
        discarded=[lost],
    )  # fmt: skip
    html = coloured_tokens(one, 12, None)
    parsed = Parsed(html)
    assert {tag for tag, _ in parsed.elements} <= {"div", "span"}
    assert parsed.text == "abcde"
    assert [token["class"] for token in parsed.tokens] == [
        "tok prefill", "tok accepted", "tok accepted", "tok replaced", "tok",
    ]  # fmt: skip
    assert [token["data-layer"] for token in parsed.tokens] == ["12", "4", "0", "12", "12"]
    tips = [token["data-tip"] for token in parsed.tokens]
    assert tips[1] == "drafted after layer 4 of 12; accepted by full depth"
    assert tips[2] == "proposed by the draft source; accepted by full depth"
    assert tips[3].startswith("full depth's, in place of “<script>")
    assert tips[3].endswith("…” proposed by the draft source")
    assert depth_shade(4, 12)[0] in parsed.tokens[1]["style"]
    assert "transparent" in parsed.tokens[2]["style"]


SHORT = {"i": "identifier", "k": "keyword", "o": "operator", "n": "number", "s": "string", "c": "comment",
         "w": "white space", "-": None}  # fmt: skip


@pytest.mark.parametrize(
    ("language", "tokens", "kinds"),
    [
        ("python", ["def", " f", "oo", "(", "x", "=", "1", ".5", "):", "\n   ", " return", ' "a', 'b"', "  # hi"],
         "kiioionnowkssc"),
        ("python", ["x", " =", " r'", "for", "'", " for", " y", " 1e", "-5", " 0x", "FF"], "iossskinnnn"),
        ("python", ["'''a", "\nif", " b'''", " if", " None"], "ssskk"),
        ("python", ["'unfinished", "\n", "while"], "swk"),  # a string ends with its line
        ("python", ["x = <STR_LIT>", " <EOL>", " <", "EOL", ">", " <NUM_LIT:1>", " < EOL >", " a < b"], "iwwwwnwi"),
        ("python", ["caf", "", "é", " naïve"], "i-ii"),  # a token that ends inside a character adds nothing
        ("python", ["print", " async", " x.", "y", " !=", " ->", " @"], "ikiiooo"),
        ("java", ["public", " int", " $x", " =", " 0L", ";", " // for", " all", "\n", "/* for", "\n*/", " true",
                  " None"],
         "kkionoccwcck".ljust(12) + "i"),
        ("java", ["'", "a", "'", ' "b\\"', 'c"', " instanceof", " List", "<", "String", ">"], "ssssskioio"),
    ],
)  # fmt: skip
def test_kinds_by_eye(language: str, tokens: list[str], kinds: str) -> None:
    assert kinds_of(tokens, language) == [SHORT[kind] for kind in kinds]


def test_every_token_of_real_code_has_a_kind() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    tokens = [text[start : start + 3] for start in range(0, len(text), 3)]
    kinds = kinds_of(tokens, "python")
    assert len(kinds) == len(tokens)
    assert set(kinds) <= set(KINDS)
    assert kinds_of(["fn", " x"], "rust") == [None, None]
