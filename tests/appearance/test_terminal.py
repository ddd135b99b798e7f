"""No text hides on its way to the terminal or a page; docstrings are paragraphs; depth has readable colours."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

import pytest
from rich.panel import Panel
from rich.table import Table

from harness.appearance.pages import depth_colour, depth_shade, escape_html, templates
from harness.appearance.terminal import Console, Line, Text, escape, paragraphs
from harness.appearance.visible_text import is_hidden
from tests.appearance.contrast import contrast

EVIL = "a\x1b[2J\x9b\x07\u202eb\x00"
SHOWN = r"a\x1b[2J\x9b\x07\u202eb\x00"


def printed(*what: Any, **settings: Any) -> str:
    file = io.StringIO()
    Console(file=file, width=200, **settings).print(*what, highlight=False)
    return file.getvalue()


def in_a_table(cell: Any) -> Table:
    table = Table()
    table.add_column("name", no_wrap=True)
    table.add_row(cell)
    return table


@pytest.mark.parametrize(
    "what",
    [EVIL, Text(EVIL), Line(EVIL), Text("x").append(EVIL), Text.assemble("x", (EVIL, "bold")), in_a_table(Text(EVIL)),
     Panel(EVIL), escape(EVIL)],
    ids=lambda what: type(what).__name__,
)  # fmt: skip
def test_a_console_prints_escapes_whatever_it_is_given(what: Any) -> None:
    text = printed(what)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert r"\x1b[2J\x9b" in text


def test_a_cell_that_nobody_escaped_is_cut_off_and_not_obeyed() -> None:
    text = printed(in_a_table(EVIL))
    assert r"a\x1b" in text
    assert not [character for character in text if is_hidden(character) and character != "\n"]


def test_its_own_styles_still_reach_the_terminal() -> None:
    text = printed(f"[red]{escape(EVIL)}[/]", force_terminal=True, color_system="standard")
    assert text == f"\x1b[31m{SHOWN}\x1b[0m\n"


def test_a_column_is_as_wide_as_what_is_shown() -> None:
    lines = printed(in_a_table(Text(EVIL))).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert any(SHOWN in line for line in lines)


def test_text_is_no_markup() -> None:
    assert printed(f"[dim]{escape('[red]x[/red] :star: ' + chr(92))}[/]") == "[red]x[/red] :star: \\\n"


def test_a_line_stays_one() -> None:
    assert Line("a\nerror: b\r\nc").plain == "a error: b c"


def test_html_shows_a_text_as_it_stands() -> None:
    assert escape_html(f"<{EVIL}>&\n\t") == f"&lt;{SHOWN}&gt;&amp;\n\t"


def test_every_expression_of_a_template_is_escaped() -> None:
    page = templates("reports.leaderboard").from_string("{{ a }}|{{ '%s!'|format(a) }}|{{ b|safe }}|{{ 5 }}")
    shown = SHOWN.replace("<", "&lt;")
    assert page.render(a=EVIL + "<", b="<b>") == f"{shown}&lt;|{shown}&lt;!|<b>|5"


def test_lines_of_a_paragraph_are_joined_and_marks_go() -> None:
    text = """First ``line``.

    indented = stays
    as it is

Rule: a score of
:class:`harness.contracts.Score` or :func:`~tasks.rows.whole`.
- one
- two goes
on"""
    assert list(paragraphs(text)) == [
        "First line.",
        "    indented = stays\n    as it is",
        "Rule: a score of Score or whole.\n- one\n- two goes on",
    ]


def test_what_an_example_follows_ends_with_one_colon() -> None:
    assert list(paragraphs("The file is::\n\n    x = 1")) == ["The file is:", "    x = 1"]


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("layers", [2, 12, 30, 80])
def test_every_token_can_be_read(layers: int) -> None:
    for layer in range(1, layers + 1):
        ground, ink = depth_shade(layer, layers)
        assert contrast(ground, ink) >= 4.5


def test_deeper_is_darker() -> None:
    lightness = [contrast(depth_colour(step / 100), "#000000") for step in range(101)]
    assert all(one > other for one, other in pairwise(lightness))
    assert depth_colour(0) == depth_colour(-1) == "#fde725"
    assert depth_colour(1) == depth_colour(2) == "#440154"


def test_it_is_viridis() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    for step in range(0, 101, 5):
        theirs = matplotlib.colormaps["viridis"](1 - step / 100)[:3]
        ours = [int(depth_colour(step / 100)[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        assert ours == pytest.approx(theirs, abs=0.025)
