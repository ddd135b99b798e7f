"""Rules that parse: where statements and blocks end behind a cursor, character by character."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from harness.contracts import Cursor, Stop
from harness.errors import OptionError
from tasks.languages import JAVA
from tasks.stops.line import Line, LineEnd
from tasks.stops.syntax import Block, Statement


class Characters:
    """A tokenizer whose tokens are characters."""

    eos_token_ids: frozenset[int] = frozenset()
    start_ids: tuple[int, ...] = ()

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(map(chr, token_ids))

    def encode(self, text: str) -> list[int]:
        return list(map(ord, text))


def cut(rule: Stop, language: str, before: str, text: str) -> str | None:
    """Return the text up to where a rule ends it, asked after each character; ``None`` where it never does."""
    characters: Any = Characters()
    asked = rule.start(Cursor(characters.encode(before), characters, language, None, "cpu"))  # type: ignore[arg-type]
    token_ids = characters.encode(text)
    for count in range(1, len(token_ids) + 1):
        if asked.over(token_ids[:count]):
            return text[:count]
    return None


@pytest.mark.parametrize(
    ("before", "text", "wanted"),
    [
        ("x = foo(", "a,\n  b)\ny = 1\n", "a,\n  b)\n"),  # inside the brackets no line ends it
        ("x = 1\n", "\ny = 2\nz", "\ny = 2\n"),  # complete before the cursor
        ("x = 1", "\ny", "\n"),
        ("for i in x", ":\n    y(i)\nz\n", ":\n    y(i)\n"),  # a head is none, what stands inside is
        ("x = ", "'''a\nb;\n''' ; y\n", "'''a\nb;\n''' ;"),  # nor does a string's line or semicolon
        ('import os\nX = """\\\n[a]\nb', "s =\n    c\n", None),  # a parser that goes on behind it closes none
        ("x = a +", " \\\n b\n", " \\\n b\n"),
        ("x =", "\n", None),  # an error is no statement
        ("# x", " = 1\ny = 1\n", " = 1\ny = 1\n"),
        ("if x :<EOL>y = (", " 1 )<EOL>z<EOL>", " 1 )<EOL>"),  # CodeXGLUE's rows
        ("@foo", "\ndef f():\n    pass\n", "\ndef f():\n    pass\n"),
        ("    return x\n\ndef f(a):\n    ", "return a  # ;\nb\n", "return a  # ;\n"),  # cut at its left
    ],
)
def test_a_statement_of_python(before: str, text: str, wanted: str | None) -> None:
    assert cut(Statement(), "python", before, text) == wanted


@pytest.mark.parametrize(
    ("before", "text", "wanted"),
    [
        ("class A { void f() { int x = ", "1; int y;", "1;"),
        ("class A { void f() { for (int i = 0", "; i < 3; i++) { g(); } }", "; i < 3; i++) { g();"),
        ("class A { void f() { if (x) ", "{ } y();", "{ }"),
        ("class A { void f() { Runnable r = () -> ", "{ }; g();", "{ };"),  # a lambda's end is none
        ("class A { void f() { int[] a = ", "{1, 2}; g();", "{1, 2};"),
        ("class A { void f() { s = ", '"a;b" /* ; } */ + c; g();', '"a;b" /* ; } */ + c;'),
        ("class A { void f() ", "{ } void g() { }", "{ }"),  # a declaration
        ("x(); ", "} void g() { }", "}"),  # cut at its left: what it closes is not there
    ],
)
def test_a_statement_of_java(before: str, text: str, wanted: str) -> None:
    assert cut(Statement(), "java", before, text) == wanted


@pytest.mark.parametrize(
    ("before", "text", "wanted"),
    [
        ("class A { void f() { if (x) { y", "(); { z(); } } w(); }", "(); { z(); } }"),
        ("class A { void f() { s = ", '"}"; /* } */ }', '"}"; /* } */ }'),
        ("x(", "); } void", "); }"),  # the brace that opened it is cut off
    ],
)
def test_a_block_of_java(before: str, text: str, wanted: str) -> None:
    assert cut(Block(), "java", before, text) == wanted


@pytest.mark.parametrize(
    ("before", "text", "wanted"),
    [
        ("def f():\n    x = ", "1\n    if x:\n        y\n    z\ndef g", "1\n    if x:\n        y\n    z\nd"),
        ("def f():\n", "    x\n    y\n\n# so\n\nz\n", "    x\n    y\n\n# so\n\nz"),  # its first line says how deep
        ("def f():\n    x = g(", "1,\n2)\n    y\nz", "1,\n2)\n    y\nz"),  # brackets
        ("def f():\n    x = ", '"""a\nb\n"""\nz', '"""a\nb\n"""\nz'),  # and strings have no lines
        ("x = 1\n", "y = 2\nz = 3\n", None),  # nothing ends a module
        ("def f():\n    if x:\n        y", "\n    else:\n", "\n    e"),
    ],
)
def test_a_block_of_python(before: str, text: str, wanted: str | None) -> None:
    assert cut(Block(), "python", before, text) == wanted


def test_a_gap_is_read_behind_the_code_before_it() -> None:
    characters: Any = Characters()
    before, after = "def f():\n    if x:\n        y = 1\n", "    return y\n"
    prompt = characters.encode(f"<fim_prefix>{before}<fim_suffix>{after}<fim_middle>")
    asked = Block().start(Cursor(prompt, characters, "python", None, code=before))  # type: ignore[arg-type]
    text = "        z = 2\n    return"
    ends = [count for count in range(1, len(text) + 1) if asked.over(characters.encode(text[:count]))]
    assert text[: ends[0]] == "        z = 2\n    r"


def test_a_line_is_the_protocol_s() -> None:
    assert cut(Line(), "java", "for (", "int i = 0; i") == "int i = 0;"
    assert cut(Line(language="python"), "java", "x", " = ';' ;\ny") == " = ';' ;\n"
    assert LineEnd(JAVA, Characters()).name == "line"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "text", "wanted"),
    [
        ('class A {\n  String s = "a', '; b; c" + x;\n', '; b; c" + x;'),  # inside a literal
        ('f("a\\', '";"); g();', '";");'),  # and behind its backslash
        ('g(\'"\', "a"', ', "b;"); h();', ', "b;");'),  # what is closed is over
        ("x(); // it is so", "; and {so}\ny();", "; and {so}\n"),  # inside a comment
        ("/* it's */ f(x", ", ';'); g();", ", ';');"),
        ("/** It's\n * one; ", "isn't; */ int x; int y;", "isn't; */ int x;"),  # that began lines before
        ("/* a\n", "b; c\n", "b; c\n"),
        ('s = """\n  it', ' is; """; f();', ' is; """;'),
        ("/* a */\n", "b; c\n", "b;"),
        ("f(); ", "g(); h();", "g();"),  # marks before the cursor are none
    ],
)
def test_a_line_of_java_is_read_from_its_beginning(before: str, text: str, wanted: str) -> None:
    assert cut(Line(), "java", before, text) == wanted


@pytest.mark.parametrize("rule", [Statement(), Block(), Line()])
def test_an_answer_depends_on_the_tokens_alone(rule: Stop) -> None:
    """Drafts that are discarded leave nothing behind."""
    characters: Any = Characters()
    cursor = Cursor(characters.encode("def f():\n    x = "), characters, "python", None, "cpu")  # type: ignore[arg-type]
    asked = rule.start(cursor)
    over, on = characters.encode("1\ny"), characters.encode("(1, y")
    assert [asked.over(over), asked.over(on), asked.over(over)] == [True, False, True]


@pytest.mark.parametrize(
    ("rule", "language", "said"),
    [
        (
            Statement(),
            "",
            r"'statement' must know the language .* Write statement:language=NAME, one of: java, python\.",
        ),
        (Block(), "kotlin", r"'block' has no grammar of kotlin\. It reads: java, python\. Use another rule"),
        (Line(language="pyton"), "java", r"has no grammar of pyton\. Did you mean 'python'\?"),
    ],
)
def test_what_cannot_be_read_is_refused(rule: Stop, language: str, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        rule.check(None, language)  # type: ignore[arg-type]
