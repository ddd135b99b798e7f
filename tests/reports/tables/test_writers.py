"""Writers show every cell of any table, and whatever others wrote stays one cell."""

from __future__ import annotations

import csv
import io
import random
import re
from dataclasses import replace

import pytest

from harness.appearance.terminal import Console
from harness.records.estimate import MISSING, Estimate, NoInterval
from reports.tables.table import Column, Facts, Heading, Line, Part, Table
from reports.tables.writers import (
    csv_text,
    escape_markdown,
    fold_label,
    inert,
    markdown_code,
    to_csv,
    to_markdown,
    to_terminal,
)

HOSTILE = ("a|b", "=1+1", "<b>x</b>", "`t` @me #1", "[bold]x[/]", "\x1b[31mred\u202e", "one\ntwo", "$x_y^z% \\end{x}")


def table(seed: int = 0, **changes: object) -> Table:
    """Return a table of random size: a key, a label, numbers, estimates, sentences."""
    draw = random.Random(seed)
    rows = draw.randint(1, 12)
    label = tuple("name" + ":option=1" * draw.randint(0, 5) + str(row) for row in range(rows))
    columns = [
        Column(header="", cells=tuple("● ABCDEFGHIJKL"[2 + row] for row in range(rows)), kind="text"),
        Column(header="operating point", cells=label, kind="label"),
    ]
    for number in range(draw.randint(1, 14)):
        cells: list[Estimate | float | None] = []
        for _ in range(rows):
            value = draw.uniform(-2, 400)
            with_interval = Estimate(value=value, low=value - draw.random(), high=value + 1)
            cells.append(draw.choice([None, value, Estimate(value=value), with_interval]))
        form = draw.choice(["digits", "count", "fraction", "percent", "ratio", ".1f"])
        columns.append(
            Column(
                header=f"column\n{number}",
                cells=tuple(cells),
                form=form,
                unit=draw.choice(["", "ms"]),
                priority=draw.choice([0, 1, 2, 9]),
                needs_interval=draw.random() < 0.2,
            )
        )
    columns.append(Column(header="words", cells=("it is so, and more words follow on it",) * rows, kind="text"))
    made = Table(title="A table", columns=tuple(columns), notes=("A note.",), groups=((0, "some rows"),))
    return replace(made, **changes)  # type: ignore[arg-type]


def printed(parts: list[Part] | Table, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width, color_system=None).print(
        to_terminal([parts] if isinstance(parts, Table) else parts)
    )
    return file.getvalue()


@pytest.mark.parametrize(("seed", "width"), [*zip(range(8), (60, 80, 100, 132) * 2, strict=True)])
def test_a_terminal_shows_every_cell_of_a_wide_table_and_no_longer_line(seed: int, width: int) -> None:
    """A narrow one keeps every row, and what has no priority."""
    made = table(seed, wide=True)
    text, narrow = printed(made, width), printed(replace(made, wide=False), width)
    assert max(map(len, (*text.splitlines(), *narrow.splitlines()))) <= width
    assert "…" not in text
    for column in made.columns:
        if column.kind == "number":
            for cell in column.texts:
                assert re.search(rf"(^|\s){re.escape(cell)}(\s|$)", text, re.MULTILINE), f"{cell} at {width}"
        if column.priority == 0 and column.kind != "text":
            for cell in replace(column, intervals=False).texts:
                lines = fold_label(cell, max(20, width // 3)).splitlines() if column.kind == "label" else [cell]
                assert all(line in narrow for line in lines)


def test_columns_leave_by_priority_and_paired_ones_never_stand_without_intervals() -> None:
    estimates = (Estimate(value=1.5, low=1.25, high=1.75),) * 2
    made = Table(
        title="t",
        columns=(
            Column(header="name", cells=("a" * 20, "b"), kind="label"),
            *(Column(header=f"c{place}", cells=estimates, form=".2f", priority=place) for place in (5, 4, 3)),
            Column(header="ratio", cells=estimates, form="ratio", priority=9, needs_interval=True),
        ),
    )
    assert "1.50× [1.25, 1.75]" in printed(made, 100)
    narrow = printed(made, 50)
    assert "c3" in narrow
    assert "×" not in narrow
    assert "c5" not in printed(made, 26)
    assert "c3" in printed(made, 26)
    assert printed(replace(made, wide=True), 50).count("[1.25, 1.75]") == 8


def test_rows_stand_under_the_heading_of_their_group() -> None:
    made = Table.of_rows("t", ("name", "n"), [("one", 1.0), ("two", 2.0), ("three", 3.0)], groups=((0, "G"), (2, "H")))
    for text in (printed(made, 80), "\n".join(to_markdown([made]))):
        places = [text.index(word) for word in ("G", "one", "two", "H", "three")]
        assert places == sorted(places)


@pytest.mark.parametrize("seed", range(3))
def test_markdown_and_csv_have_every_cell_in_its_row(seed: int) -> None:
    made = table(seed)
    rows = [line for line in to_markdown([made]) if line.startswith("|")]
    assert len(rows) == 2 + 1 + made.rows
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    for number, row in enumerate(rows[3:]):
        shown = row.replace("\\", "")
        assert all(column.texts[number] in shown for column in made.columns)
    lines = list(csv.DictReader(io.StringIO(to_csv(made))))
    assert len(lines) == made.rows
    for column in made.columns:
        for cell, line in zip(column.cells, lines, strict=True):
            value = cell.value if isinstance(cell, Estimate) else cell
            assert line[column.term] == ("" if value is None else str(value))
            if isinstance(cell, Estimate) and cell.interval:
                assert (float(line[f"{column.term}_low"]), float(line[f"{column.term}_high"])) == cell.interval


@pytest.mark.parametrize("text", HOSTILE)
def test_whatever_others_wrote_stays_one_cell(text: str) -> None:
    made = Table(
        title=text,
        columns=(
            Column(header="name", cells=(text, "plain"), kind="label"),
            Column(header=text, cells=(text, None), kind="text", meaning=text),
            Column(header="n", cells=(1.0, 2.0)),
        ),
        notes=(text,),
        groups=((1, text),),
    )
    shown = printed([Heading(text), Facts(((text, text),)), Line(text), made], 80)
    markdown = "\n".join(to_markdown([Heading(text), Facts((("name", text),)), Line(text, bullet=True), made]))
    for written in (shown, markdown):
        assert not {"\x1b", "\u202e"} & set(written)
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4}
    assert "<b>" not in markdown.replace("`<b>x</b>`", "")
    lines = list(csv.reader(io.StringIO(to_csv(made))))
    assert [len(line) for line in lines] == [3, 3, 3]
    assert not any(cell.startswith("=") for line in lines for cell in line)


def test_what_was_not_determined_is_a_dash_and_what_has_no_interval_says_so() -> None:
    column = Column(header="x", cells=(None, 0.0, Estimate(value=1.0, no_interval=NoInterval.FEW_PAIRS)))
    assert column.texts == (MISSING, "0.00", "1.00 [too few]")
    assert replace(column, intervals=False).texts == (MISSING, "0.00", "1.00")
    assert Column(header="x", cells=(12.345, 0.0123456)).texts == ("12.3", "0.0")


def test_labels_fold_before_options_and_lose_nothing() -> None:
    label = "margin:threshold=0.9:temperature=4"
    assert fold_label(label, 40) == label
    assert fold_label(label, 22) == "margin:threshold=0.9\n  :temperature=4"
    assert fold_label("one-long-name", 10) == "one-long-n\n  ame"
    assert fold_label("classifier@lossless+lookup", 20) == "classifier@lossless\n  +lookup"


def test_text_that_begins_like_a_formula_is_shown_and_everything_else_stays() -> None:
    for first in ("=", "+", "-", "@", "\t=", " +", "\n@", "\uff1d"):
        assert inert(f"{first}1") == f"'{first}1"
    for value in (-1.5, 0, None, "", "a=b", "'=1", '{"a": "=1"}'):
        assert inert(value) == value
        assert type(inert(value)) is type(value)


def test_csv_hides_nothing_and_takes_no_value_without_a_column() -> None:
    text = csv_text(["=a\x1b"], [{"=a\x1b": "\u202e\r\n\x00"}])
    assert list(csv.reader(io.StringIO(text))) == [[r"'=a\x1b"], ["\\u202e\n\\x00"]]
    assert csv_text(["a", "b", "c"], [{"a": "-x", "b": -1.5}]) == "a,b,c\n'-x,-1.5,\n"
    with pytest.raises(ValueError, match="b"):
        csv_text(["a"], [{"a": 1, "b": 2}])


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("fixed:layer=5", "`fixed:layer=5`"),
        ("a_b*c <d> @e", "`a_b*c <d> @e`"),  # code has no markup
        ("two\nlines", "`two lines`"),
        ("`t` <b>@me #1", "\\`t\\` &lt;b&gt;&#64;me &#35;1"),
        ("a\x1b\u202eb", r"`a\x1b\u202eb`"),
        ("", ""),
    ],
)
def test_a_name_is_code_unless_it_holds_a_backtick(name: str, written: str) -> None:
    assert markdown_code(name) == written


def test_nothing_is_markup_and_nobody_is_mentioned() -> None:
    assert escape_markdown("\\`*_[x](y)\n<a> @b #1") == "\\\\\\`\\*\\_\\[x](y) &lt;a&gt; &#64;b &#35;1"
    assert escape_markdown("$x$ ~~y~~ &lt; \x1b\u202e") == r"\$x\$ \~\~y\~\~ &amp;lt; \\x1b\\u202e"
