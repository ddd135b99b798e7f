from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tasks.languages import JAVA, PYTHON
from tasks.protocols.codexglue_line import cut_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (" x + 1 <EOL> y", "x + 1"),
        (" x + 1\n    y", "x + 1"),
        (" x > 1 : ", "x > 1 :"),
        ("<EOL> x", ""),
        ("x = '<STR_LIT:;>' ; y <EOL>", "x = '<STR_LIT:;>' ; y"),
    ],
)
def test_python_line_ends_at_the_mark_or_newline(text: str, line: str) -> None:
    assert PYTHON.line(text) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (" x + 1 ; int y", "x + 1 ;"),
        ("(x);", "(x);"),
        (" n ) { return", "n )"),
        ("{ return", ""),
        (" } else", "}"),
        (" x\n ;", "x"),
        (' f ( "<STR_LIT:;>" ) ; g', 'f ( "<STR_LIT:;>" ) ;'),
        (" f ( '<CHAR_LIT:;>' ) ; g", "f ( '<CHAR_LIT:;>' ) ;"),
        (r' f("a\";{") ; g', r'f("a\";{") ;'),
        (' f("never closed ;\n g', 'f("never closed ;'),
        (" x /* ; */ // }\n ;", "x /* ; */ // }"),
        (" x / y ; z", "x / y ;"),
        (' f("http://a") ; g', 'f("http://a") ;'),
        (" /* never closed ;\n g", "/* never closed ;"),
        (" no mark at all", "no mark at all"),
    ],
)
def test_java_line_ends_at_the_first_mark_outside_literals(text: str, line: str) -> None:
    assert JAVA.line(text) == line


@pytest.mark.parametrize("language", [PYTHON, JAVA])
def test_an_end_once_found_never_moves(language: object) -> None:
    chance = random.Random(7)
    for _ in range(500):
        text = "".join(
            chance.choice(["a", " ", '"', "'", "\\", ";", "{", "}", "\n", "<EOL>", ">", "<", "/", "*"])
            for _ in range(30)
        )
        ends = [language.line_end(text[:size]) for size in range(len(text) + 1)]  # type: ignore[attr-defined]
        found = [end for end in ends if end is not None]
        assert len(set(found)) <= 1
        assert ends == [None] * (len(ends) - len(found)) + found


@pytest.mark.parametrize("language", [PYTHON, JAVA])
def test_official_answers_are_whole_lines(language: object, data: Path) -> None:
    """What the official sets call a line is what we call one: marks cut nothing off and end it at once."""
    name, mark = language.name, {"python": " <EOL> x", "java": " { x"}  # type: ignore[attr-defined]
    with (data / "codexglue_line" / f"{name}.jsonl").open(encoding="utf-8") as file:
        answers = [json.loads(row)["gt"] for row in file]
    assert len(answers) == 1600
    assert [language.line(" " + answer + mark[name]) for answer in answers] == answers  # type: ignore[attr-defined]


def test_java_comments_go_and_code_stays() -> None:
    source = (
        '/* licence\n */\n\npackage a; // b\n/** doc */\nString s = "/* no */ // no"; /* x */ int y;\nchar c = \'"\';\n'
    )
    assert JAVA.without_comments(source) == 'package a;\nString s = "/* no */ // no";  int y;\nchar c = \'"\';\n'


@pytest.mark.parametrize(
    ("text", "project"),
    [
        ("<s> package org . jamwiki . db ; public class A { }", "org.jamwiki"),
        ("/* Copyright */package com.example;\nclass A {}", "com.example"),
        ("package quanto;", "quanto"),
        ("<s> public class A { void f ( ) { String package1 = B . package ; } }", None),
        ("import a.b;\nclass A {}", None),
    ],
)
def test_a_java_file_names_its_project_and_a_python_file_does_not(text: str, project: str | None) -> None:
    assert JAVA.project(text) == project
    assert PYTHON.project(text) is None


def test_a_cut_lies_between_tokens_of_a_code_line() -> None:
    source = '# only prose here, several words\n"""More\nprose = here\n"""\nvalue != other == "a b c d"\nx\n'
    cuts = {cut_line(source, PYTHON, random.Random(seed)) for seed in range(60)}
    assert {rest for _, rest in cuts} == {
        ' != other == "a b c d"',
        ' other == "a b c d"',
        ' == "a b c d"',
        ' "a b c d"',
    }
    assert all(source.startswith(before + rest + "\n") for before, rest in cuts)


@pytest.mark.parametrize("text", ["", "x\ny\n", "# a b c d\n", '"""a b\nc d e f\n"""\n', "a ( ( (\n"])
def test_a_document_without_code_lines_is_not_cut(text: str) -> None:
    assert cut_line(text, PYTHON, random.Random(0)) is None
