from __future__ import annotations

import json
import random
from pathlib import Path

from tasks.languages import JAVA, PYTHON
from tasks.protocols.codexglue_line import cut_line


def test_a_line_ends_at_the_first_mark_outside_literals() -> None:
    for language, text, line in (
        (PYTHON, " x + 1 <EOL> y", "x + 1"),
        (PYTHON, " x + 1\n    y", "x + 1"),
        (PYTHON, " x > 1 : ", "x > 1 :"),
        (PYTHON, "<EOL> x", ""),
        (PYTHON, "x = '<STR_LIT:;>' ; y <EOL>", "x = '<STR_LIT:;>' ; y"),
        (JAVA, " x + 1 ; int y", "x + 1 ;"),
        (JAVA, " n ) { return", "n )"),
        (JAVA, "{ return", ""),
        (JAVA, " } else", "}"),
        (JAVA, " x\n ;", "x"),
        (JAVA, ' f ( "<STR_LIT:;>" ) ; g', 'f ( "<STR_LIT:;>" ) ;'),
        (JAVA, " f ( '<CHAR_LIT:;>' ) ; g", "f ( '<CHAR_LIT:;>' ) ;"),
        (JAVA, r' f("a\";{") ; g', r'f("a\";{") ;'),
        (JAVA, ' f("never closed ;\n g', 'f("never closed ;'),
        (JAVA, " x /* ; */ // }\n ;", "x /* ; */ // }"),
        (JAVA, " x / y ; z", "x / y ;"),
        (JAVA, ' f("http://a") ; g', 'f("http://a") ;'),
        (JAVA, " /* never closed ;\n g", "/* never closed ;"),
        (JAVA, " no mark at all", "no mark at all"),
    ):
        assert language.line(text) == line, (language.name, text)


def test_official_answers_are_whole_lines(data: Path) -> None:
    """What the official sets call a line is what we call one: marks cut nothing off and end it at once."""
    for language, mark in ((PYTHON, " <EOL> x"), (JAVA, " { x")):
        rows = (data / "codexglue_line" / f"{language.name}.jsonl").read_text(encoding="utf-8").splitlines()
        answers = [json.loads(row)["gt"] for row in rows]
        assert len(answers) == 1600
        assert [language.line(f" {answer}{mark}") for answer in answers] == answers


def test_java_comments_go_and_code_stays() -> None:
    source = (
        '/* licence\n */\n\npackage a; // b\n/** doc */\nString s = "/* no */ // no"; /* x */ int y;\nchar c = \'"\';\n'
    )
    assert JAVA.without_comments(source) == 'package a;\nString s = "/* no */ // no";  int y;\nchar c = \'"\';\n'


def test_a_java_file_names_its_project_and_a_python_file_does_not() -> None:
    for text, project in (
        ("<s> package org . jamwiki . db ; public class A { }", "org.jamwiki"),
        ("/* Copyright */package com.example;\nclass A {}", "com.example"),
        ("package quanto;", "quanto"),
        ("<s> public class A { void f ( ) { String package1 = B . package ; } }", None),
        ("import a.b;\nclass A {}", None),
    ):
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
    file = "import one.two\n" * 2 + "y = one.two(3)\n" * 8  # nothing is cut in its first fifth
    late = [cut_line(file, PYTHON, random.Random(seed)) for seed in range(60)]
    assert all(cut is not None and len(cut[0]) > 30 for cut in late)
    for text in ("", "x\ny\n", "# a b c d\n", '"""a b\nc d e f\n"""\n', "a ( ( (\n"):  # no line of code
        assert cut_line(text, PYTHON, random.Random(0)) is None
