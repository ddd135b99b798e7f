"""The drawing puts letters where the numbers are, and loses none of them."""

from __future__ import annotations

import random
import string

import pytest

from reports.tables.plot import FRONT, Marker, Scale, draw


def place(picture: str, letter: str) -> tuple[int, int]:
    """Column and row of a letter inside the frame."""
    for row, line in enumerate(picture.splitlines()[1:]):
        gutter, edge, area = line.partition("┤") if "┤" in line else line.partition("│")
        if edge and letter in area:
            return len(gutter) + 1 + area.index(letter), row
    raise AssertionError(f"{letter} is not in the picture")


def test_better_is_higher_and_further_right() -> None:
    picture = draw([Marker("A", 1.0, 0.1), Marker("B", 2.0, 0.9), Marker("C", 3.0, 0.5)], "s", "score").plain
    (a, a_row), (b, b_row), (c, c_row) = (place(picture, letter) for letter in "ABC")
    assert a < b < c
    assert b_row < c_row < a_row


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("seed", range(5))
def test_every_letter_is_drawn_once_inside_the_width(width: int, seed: int) -> None:
    generator = random.Random(seed)
    letters = string.ascii_uppercase
    markers = [
        Marker(letter, generator.choice([1, 1.001, generator.random()]), generator.choice([0.5, generator.random()]))
        for letter in letters
    ]
    lines = draw(markers, "COST".lower(), "quality", width=width, height=16).plain.splitlines()
    assert len(lines) == 16 + 4
    assert max(map(len, lines)) <= width
    drawn = [character for line in lines[1:17] for character in line if character in letters]
    assert sorted(drawn) == list(letters)


def test_one_point_and_equal_points_can_be_drawn() -> None:
    assert "A" in draw([Marker("A", 0.0, 0.0, on_front=True)], "s", "score").plain
    picture = draw([Marker("A", 1.0, 0.5), Marker("B", 1.0, 0.5)], "s", "score").plain
    assert place(picture, "B") == (place(picture, "A")[0] + 1, place(picture, "A")[1])


def test_the_front_is_highlighted_and_connected() -> None:
    markers = [Marker("A", 2, 0.1, on_front=True), Marker("B", 1, 0.9, on_front=True), Marker("C", 1.2, 0.2)]
    text = draw(markers, "s", "score")
    styles = {text.plain[span.start]: str(span.style) for span in text.spans if span.end - span.start == 1}
    assert styles["A"] == styles["B"] == FRONT
    assert styles.get("C") != FRONT
    lines = text.plain.splitlines()
    (a, a_row), (b, b_row) = place(text.plain, "A"), place(text.plain, "B")
    assert lines[a_row + 1][b:a] == "╰" + "─" * (a - b - 1)
    assert all(lines[row + 1][b] == "│" for row in range(b_row + 1, a_row))


def test_axis_labels_carry_what_and_unit() -> None:
    lines = draw([Marker("A", 1.0, 0.5)], "speed-up, ×", "exact prefix").plain.splitlines()
    assert "exact prefix" in lines[0]
    assert "speed-up, ×" in lines[-1]


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.512, 0.514), (3.2e-4, 9.9e-4), (-2.0, 2.0), (700.0, 12_000.0)]
)
def test_ticks_are_round_inside_the_range_and_at_their_place(low: float, high: float) -> None:
    scale = Scale(low, high, 70)
    ticks = scale.ticks(5)
    assert 2 <= len(ticks) <= 11
    for cell, label in ticks:
        assert low - 1e-9 <= float(label) <= high + 1e-9
        assert cell == scale.cell(float(label))
    assert len({label for _, label in ticks}) == len(ticks)
