"""A completion as HTML: nothing a model or a user writes becomes markup, and the text stays the text."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest

from harness.appearance.pages import depth_shade
from harness.records import SampleRecord
from reports.completions.page import coloured_tokens, follows

EVIL = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"


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


@pytest.mark.parametrize("text", [EVIL, "a b\tc\n\n    d", "é😀", ""])
def test_what_is_copied_is_what_was_generated(text: str) -> None:
    parsed = Parsed(coloured_tokens(sample(text, text, "x"), 12, None))
    assert parsed.text.replace("∅", "") == text + text + "x"
    assert {tag for tag, _ in parsed.elements} <= {"div", "span"}
    assert len(parsed.tokens) == 3


def test_texts_are_escaped_in_tips_too() -> None:
    parsed = Parsed(coloured_tokens(sample("ok", ids=(9,)), 12, sample(EVIL, ids=(1,))))
    assert {tag for tag, _ in parsed.elements} <= {"div", "span"}
    assert set(parsed.tokens[0]) == {"class", "tabindex", "data-layer", "data-tip", "style"}
    assert "<script>alert(1)" in parsed.tokens[0]["data-tip"]


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
    failed = full.model_copy(update={"error": "gone"})
    assert "differs" not in coloured_tokens(sample("z", ids=(9,)), 12, failed)


def test_the_first_token_is_prefill_s_where_a_cache_is_kept() -> None:
    for cached in (True, False):
        tokens = Parsed(coloured_tokens(sample("a", "b"), 12, None, cached=cached)).tokens
        assert ["prefill" in token["class"] for token in tokens] == [cached, False]


@pytest.mark.parametrize(("character", "name"), [("\u202e", "RIGHT-TO-LEFT OVERRIDE"), ("\x1b", "U+001B"), ("\r", "␍")])
def test_what_cannot_be_seen_is_named(character: str, name: str) -> None:
    html = coloured_tokens(sample(f"a{character}b"), 12, None)
    assert character not in html
    assert name in html


def test_old_runs_failures_and_nothing_take_one_line() -> None:
    old = sample("a").model_copy(update={"token_texts": ()})
    assert "Colours need a run of this version" in coloured_tokens(old, 12, None)
    assert "failed: &lt;b&gt;" in coloured_tokens(sample(error="<b>"), 12, None)
    assert "no token" in coloured_tokens(sample(), 12, None)


def test_following_is_a_share_of_full_depth_s_tokens() -> None:
    full = sample("a", "b", "c", "d", ids=(1, 2, 3, 4))
    assert follows(sample("a", "x", "c", ids=(1, 9, 3)), full) == 0.5
    assert follows(full, full) == 1
    assert follows(full, sample()) is None
    assert follows(sample(error="x"), full) is None


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


def test_a_run_of_before_discarded_drafts_names_a_draft_alone() -> None:
    one = sample("a", "b", drafted_at=(None, 4), accepted=(False, False))
    assert Parsed(coloured_tokens(one, 12, None)).tokens[1]["data-tip"] == (
        "full depth's, in place of a token drafted after layer 4 of 12"
    )
