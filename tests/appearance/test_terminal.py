"""No text takes a way to the terminal on which it could hide something."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.panel import Panel
from rich.table import Table

from harness.appearance.pages import escape_html, templates
from harness.appearance.terminal import Console, Line, Text, escape
from harness.appearance.visible_text import is_hidden

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
