"""Docstrings as paragraphs of a terminal."""

from __future__ import annotations

from harness.appearance.terminal import paragraphs


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
