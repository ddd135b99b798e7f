"""No character of another's text can hide, reorder others or speak to a terminal."""

from __future__ import annotations

import json
import subprocess
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.appearance.visible_text import escape_json, is_hidden, one_line, shell_command, shell_word, visible

ANY = st.text(alphabet=st.characters())
"""Any text, lone surrogates included."""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("fixed:layer=5 “é” 中 ⚠️", "fixed:layer=5 “é” 中 ⚠️"),
        ("two\nlines\tand\ttabs", "two\nlines\tand\ttabs"),
        ("\x1b[31mred\x07\x00\x7f", r"\x1b[31mred\x07\x00\x7f"),
        ("\x9b2J\x85", r"\x9b2J\x85"),  # a C1 control begins a sequence by itself
        ("a\rb\r\nc", "a\\rb\nc"),
        ("\u202egnp.exe\u2066\u200f\u061c", r"\u202egnp.exe\u2066\u200f\u061c"),
        ("\ufeffa\u200bb\u00adc\u2060", r"\ufeffa\u200bb\xadc\u2060"),
        ("a\u2028b\u2029c\u00a0d\u3000e", r"a\u2028b\u2029c\xa0d\u3000e"),
        ("\ud800\udcff", r"\ud800\udcff"),
        ("\U000e0041\U0001f469\u200d\U0001f4bb", "\\U000e0041\U0001f469\\u200d\U0001f4bb"),
        ("\u3164\uffa0\u2800", r"\u3164\uffa0\u2800"),
        ("\ue000", r"\ue000"),
    ],
)
def test_what_is_hidden_becomes_its_escape(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_every_control_and_format_character_is_hidden() -> None:
    for code in range(0x110000):
        if unicodedata.category(chr(code)) in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
            assert is_hidden(chr(code)), hex(code)


@given(ANY)
def test_whatever_comes_in_nothing_hidden_comes_out(text: str) -> None:
    shown = visible(text)
    assert not [character for character in shown if is_hidden(character) and character not in "\n\t"]
    assert shown.encode().decode() == shown  # it can be written
    assert visible(shown) == shown
    line = one_line(text)
    assert not any(map(is_hidden, line))
    assert one_line(line) == line


@given(ANY.filter(lambda text: "\0" not in text))
def test_a_word_for_a_shell_is_visible(text: str) -> None:
    word = shell_word(text)
    assert one_line(word) == word


@pytest.mark.parametrize(
    "name",
    ["plain", "two words", "it's", "-x", "", "a\nb\t c", "\x1b[2J", "\u202egnp", "\udcff\udc80 é\\", "a  b", "$(x)`y`"],
)
def test_bash_reads_the_word_as_the_name(name: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"printf %s {shell_word(name)}"], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert done.stdout == name.encode("utf-8", "surrogateescape")


@pytest.mark.slow
@settings(max_examples=40)
@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_json_reads_back_the_same_and_hides_nothing(value: object) -> None:
    for indent in (None, 2):
        text = escape_json(json.dumps(value, ensure_ascii=False, indent=indent))
        assert json.loads(text) == value
        assert not [character for character in text if is_hidden(character) and character != "\n"]


def test_a_command_is_its_words() -> None:
    assert shell_command(["cp", "-r", "two words", "a\x1bb"]) == r"cp -r 'two words' $'a\x1bb'"
